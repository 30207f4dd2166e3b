"""ADE20K: scenes with the 150 classes of the Scene Parsing benchmark."""
