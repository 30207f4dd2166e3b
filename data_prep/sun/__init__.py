"""SUN RGB-D: indoor scenes with 37 classes; the colour images alone, no depth."""
