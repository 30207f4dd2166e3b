"""Semi-supervised semantic segmentation in JAX: CSS (Space Engage, ICCV 2023) and baselines."""
