"""TFDS builder of `figures`: as `shapes`, with another label set in another style.

Two of its classes are classes of `shapes`, in other colours: 'circle' is the disc, 'ring' the ring.
With `shapes` it is the small pair of datasets on which methods of several label sets run.
"""

import numpy as np

from data_prep.shapes import builder, draw

CLASS_NAMES = ('background', 'circle', 'diamond', 'hexagon', 'arrow', 'ring')
NEEDED_FROM_USER = ''
SPLITS = builder.SPLITS

_ARROW = np.array(
    [(1.0, 0.0), (0.0, 0.8), (0.0, 0.3), (-1.0, 0.3), (-1.0, -0.3), (0.0, -0.3), (0.0, -0.8)]
)
STYLE = draw.Style(
    CLASS_NAMES,
    {
        'circle': ([draw.polygon(1.0, corners=48)], 1.0),
        'diamond': ([draw.polygon(1.0, 0.6, corners=4)], 1.4),
        'hexagon': ([draw.polygon(1.0, corners=6)], 1.1),
        'arrow': ([_ARROW], 1.3),
        'ring': ([draw.polygon(1.0, corners=48), draw.polygon(0.5, corners=48)], 1.2),
    },
    {
        'circle': ('checks', 0.45, 0.60, 0.20, 0.80),
        'diamond': ('waves', 0.08, 0.75, 0.35, 0.95),
        'hexagon': ('grid', 0.58, 0.45, 0.15, 0.70),
        'arrow': ('dots', 0.92, 0.70, 0.30, 0.90),
        'ring': ('stripes', 0.25, 0.65, 0.10, 0.60),
    },
)


class Builder(builder.Builder):
    """Draws and stores the images; the same seed gives the same images."""

    name = 'figures'
    STYLE = STYLE

    def __init__(self, *, seed: int = 1, **kwargs):
        """Initialise; for the arguments see `shapes`, whose images have another seed."""
        super().__init__(seed=seed, **kwargs)
