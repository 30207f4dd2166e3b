"""Colours of classes, where a dataset has none of its own."""

import numpy as np


def default(count: int) -> np.ndarray:
    """Return PASCAL VOC's colours, uint8 [count, 3] RGB; class 0 is black."""
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> channel) & 1) << (7 - bit)).astype(np.uint8)
        index = index >> 3
    return colours
