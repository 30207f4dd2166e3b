"""Pure array maths: no configuration, no network, no device axis. Sums come with their counts."""
