"""Networks of runs as files for other programs: what they compute, and a module a format."""
