"""A procedural dataset: textured shapes over clutter. Needs nothing from the user."""
