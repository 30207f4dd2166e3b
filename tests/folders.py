"""Small folders of images and masks, and datasets of `folder`, as a user would make them."""

import numpy as np
from PIL import Image

from data_prep import records
from data_prep.folder import reading
from data_prep.folder.builder import Builder
from data_prep.folder.reading import Settings
from data_prep.images import encode_png

H, W = 24, 32  # of the images in folders
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255]], np.uint8)


def prepare(data_dir, name, classes=2, size=(40, 52), masks=True, **splits):
    """Prepare `folder/NAME`; split -> how many images, or their sizes. Returns `data_dir`.

    The split `tagged` has tags in place of masks, and without `masks` those of labelled images do:
    image i has the background and class i, beginning again where there are no more classes.
    """
    names = ('background', *(f'class{i}' for i in range(1, classes)))
    sizes = {s: [size] * n if isinstance(n, int) else n for s, n in splits.items()}
    void = [split for split in splits if split in ('unlabelled', 'tagged') or not masks]
    tags = {
        split: {_id(split, i): [1, *(int(i % classes == c) for c in range(1, classes))]
                for i in range(len(sizes[split]))}
        for split in void if split != 'unlabelled'
    }  # fmt: skip
    items = {split: _items(split, sizes[split], classes, split in void) for split in splits}
    records.prepare(
        Builder(config=name, class_names=names, items=items, tags=tags, data_dir=data_dir)
    )
    return str(data_dir)


def _id(split, index):
    return f'{split} {index:02d}'


def _items(split, sizes, classes, void):
    def items():
        for index, size in enumerate(sizes):
            rng = np.random.default_rng([*split.encode(), index])
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            label = rng.integers(0, classes, size).astype(np.uint8)
            if void:
                label[:] = 255
            yield _id(split, index), encode_png(image), label

    return items


def ids(number, count=3):
    """A mask with all ids below `count`."""
    rng = np.random.default_rng(number)
    return rng.permutation(np.resize(np.arange(count), H * W)).reshape(H, W).astype(np.uint8)


def image(number):
    return np.random.default_rng([1, number]).integers(0, 256, (H, W, 3), np.uint8)


def put(file, content, **options):
    """Write an array, an image or text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        content = content if isinstance(content, Image.Image) else Image.fromarray(content)
        content.save(file, **options)


def pairs(root, *names, images='images', masks='masks', ending='.png', change=lambda mask: mask):
    """Write an image and a mask of each name; the name's place is the number of both."""
    for number, name in enumerate(names):
        put(root / images / f'{name}{ending}', image(number))
        put(root / masks / f'{name}.png', change(ids(number)))


def read(source, **settings):
    """Read a folder in which nothing is wrong."""
    plan, problems = reading.read(source, Settings(**settings))
    assert problems == []
    return plan


def split_ids(plan):
    return {split: list(named) for split, named in plan.splits.items()}


def labels(plan, split='train'):
    return {name: label for name, _, label in reading.items(plan, split)}


def text(plan):
    return '\n'.join(plan.report)
