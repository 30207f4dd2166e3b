"""`shapes` with fewer classes, a dozen images each: what a method of two label sets runs on."""

import types

import numpy as np

from css_jax.data.sources import VOID
from data_prep import records
from data_prep.shapes import draw
from data_prep.shapes.builder import Builder

SPLITS = {'train': 12, 'val': 4}


class _Fewer(Builder, skip_registration=True):
    """The first classes alone; the others are void."""

    COUNT = 0

    def __init__(self, **kwargs):
        super().__init__(splits=SPLITS, **kwargs)

    def _info(self):
        return records.dataset_info(self, draw.CLASS_NAMES[: self.COUNT])

    def _draw(self, split):
        for name, image, label in super()._draw(split):
            yield name, image, np.where(label < self.COUNT, label, VOID).astype(np.uint8)


class Coarse(_Fewer):
    """Three classes."""

    name, COUNT = 'coarse', 3


class Fine(_Fewer):
    """Five classes."""

    name, COUNT = 'fine', 5


DATASETS = {
    builder.name: types.SimpleNamespace(
        Builder=builder, CLASS_NAMES=draw.CLASS_NAMES[: builder.COUNT], NEEDED_FROM_USER=''
    )
    for builder in (Coarse, Fine)
}
