"""Small datasets of `folder`, as a user would have prepared them."""

import numpy as np

from data_prep import records
from data_prep.folder.builder import Builder
from data_prep.images import encode_png


def prepare(data_dir, name, classes=2, size=(40, 52), **splits):
    """Prepare `folder/NAME`; split -> how many images, or their sizes. Returns `data_dir`."""
    names = ('background', *(f'class{i}' for i in range(1, classes)))
    items = {
        split: _items(split, [size] * images if isinstance(images, int) else images, classes)
        for split, images in splits.items()
    }
    records.prepare(Builder(config=name, class_names=names, items=items, data_dir=data_dir))
    return str(data_dir)


def _items(split, sizes, classes):
    def items():
        for index, size in enumerate(sizes):
            rng = np.random.default_rng([*split.encode(), index])
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            label = rng.integers(0, classes, size).astype(np.uint8)
            if split == 'unlabelled':
                label[:] = 255
            yield f'{split} {index:02d}', encode_png(image), label

    return items
