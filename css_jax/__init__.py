"""Semi-supervised semantic segmentation in JAX: CSS (Space Engage, ICCV 2023) and baselines."""

__version__ = '0.1.0'
