"""One file for each --mode, of the same name."""
