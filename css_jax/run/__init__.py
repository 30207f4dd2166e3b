"""What lies in a run's folder: its configuration, checkpoints and record."""
