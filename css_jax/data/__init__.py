"""From prepared records to batches on the host."""
