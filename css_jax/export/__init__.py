"""Networks of runs as files for other programs: the program, and a module for each format."""
