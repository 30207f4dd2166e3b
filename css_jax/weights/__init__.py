"""Files of weights: what a fresh run starts with, and the names that others give arrays."""
