"""TFDS builder of `ade20k`: the images of the Scene Parsing benchmark and their 150 classes.

The files have 0 where a pixel is of no class, and 1 to 150 for the classes, wall to flag. Records
have 0 to 149, and 255 for void.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, images, records
from data_prep.ade20k.classes import CLASS_NAMES, PALETTE

__all__ = ['CLASS_NAMES', 'NEEDED_FROM_USER', 'PALETTE', 'SPLITS', 'Builder']

SPLITS = {'train': 20_210, 'val': 2000}  # images
ARCHIVE = 'ADEChallengeData2016.zip'
# Address as in https://github.com/CSAILVision/semantic-segmentation-pytorch/blob/ad30ddb1c4381df625
# 02b5f6b532e38afdee7fdf/download_ADE20K.sh, of its authors; SHA-1 as in scripts/datasets/ade20k.py
# of https://github.com/dmlc/gluon-cv, commit 0cc699cfd3ec2c3f3f7de6ca0016c79fb66606ec.
URL = f'http://data.csail.mit.edu/places/ADEchallenge/{ARCHIVE}'
SHA1 = '219e1696abb36c8ba3a3afe7fb2f4b4606a897c7'
NEEDED_FROM_USER = f"""\
FOLDER has the archive, as published:
  {ARCHIVE} (1 GB), {URL}
or what it unpacks to: the folder ADEChallengeData2016, or images and annotations themselves.
--download fetches the archive where neither is there. Its terms are those of ADE20K, see
http://groups.csail.mit.edu/vision/datasets/ADE20K/."""

_UNPACKED = 'ADEChallengeData2016'
_PARTS = {'images': 'jpg', 'annotations': 'png'}
_FOLDERS = {'train': 'training', 'val': 'validation'}
_FILE = re.compile(
    r'(?:.*/)?(images/(?:training|validation)/ADE_(?:train|val)_\d{8}\.jpg'
    r'|annotations/(?:training|validation)/ADE_(?:train|val)_\d{8}\.png)'
)
_IDS = {0: records.VOID, **{index + 1: index for index in range(len(CLASS_NAMES))}}
_EXPECTED = f'1..{len(CLASS_NAMES)}, or 0 for void'

Pair = tuple[archives.Entry, archives.Entry]  # image, label


class Builder(records.FromFiles):
    """Read the archive, or its folders."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name='full', description='the image files as they are'),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            CLASS_NAMES,
            description='Scenes indoors and outdoors, 150 classes.',
            homepage='http://sceneparsing.csail.mit.edu/',
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # `archives` needs no more than a folder
        place = find_source(self._source)
        files = archives.tree(place, _FILE, Path(self.data_dir).parent)
        pairs = {
            split: find_pairs(place, files, split, count) for split, count in self._splits.items()
        }
        if place.is_file():
            noted = archives.fingerprint(place, SHA1 if place.name == ARCHIVE else '')
            self.info.metadata['archives'] = {place.name: noted}
        return {split: self._generate_examples(split, found) for split, found in pairs.items()}

    def _generate_examples(
        self, split: str, pairs: Mapping[str, Pair]
    ) -> Iterator[tuple[int, dict]]:
        items = (read_item(image_id, *pair) for image_id, pair in pairs.items())
        return records.examples(self.info.metadata, split, items)


def find_source(source: Path) -> Path:
    """Find the folder that has images and annotations, or the archive.

    Args:
        source: a folder that has either, or the archive itself.

    Raises:
        FileNotFoundError: neither is there; says where to get it.
    """
    if source.is_file():
        return source
    for folder in (source, source / _UNPACKED):
        if all((folder / part).is_dir() for part in _PARTS):
            return folder
    if (source / ARCHIVE).is_file():
        return source / ARCHIVE
    raise FileNotFoundError(
        f'--source {source}: there is no {source / ARCHIVE}. In --source FOLDER,\n'
        f'{NEEDED_FROM_USER}'
    )


def download(folder: Path) -> None:
    """Fetch the archive, unless it or what it unpacks to is there.

    Raises:
        OSError, ValueError: as `archives.download`.
    """
    try:
        find_source(folder)
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        print(f'fetching {URL}')
        archives.download(URL, folder / ARCHIVE, SHA1)


def find_pairs(
    place: Path, files: Mapping[str, archives.Entry], split: str, count: int | None
) -> dict[str, Pair]:
    """Find a split's images and their labels.

    Args:
        place: of the files, for messages.
        files: such as 'images/training/ADE_train_00000001.jpg' -> the file.
        split: 'train' or 'val'.
        count: images it must have; None: any number but 0.

    Returns:
        id, such as 'ADE_train_00000001' -> image and label, sorted.

    Raises:
        ValueError: an image has no label, or a label no image, or their number is wrong.
    """
    found: dict[str, dict[str, archives.Entry]] = {}
    for part, ending in _PARTS.items():
        start = f'{part}/{_FOLDERS[split]}/'
        names = (name for name in files if name.startswith(start))
        found[part] = {name[len(start) :].removesuffix(f'.{ending}'): files[name] for name in names}
    ids = {part: there.keys() for part, there in found.items()}
    if alone := sorted(ids['images'] ^ ids['annotations']):
        part = 'annotations' if alone[0] in ids['images'] else 'images'
        missing = f'{part}/{_FOLDERS[split]}/{alone[0]}.{_PARTS[part]}'
        (there,) = (found[other][alone[0]].shown for other in _PARTS if other != part)
        raise ValueError(f'{place}: there is no {missing} in it, but {there}')
    if not ids['images'] or count not in (None, len(ids['images'])):
        expected = 'images' if count is None else f'{count} images'
        raise ValueError(
            f'{place}: split {split}: expected {expected}, found {len(ids["images"]) or "none"}'
        )
    return {key: (found['images'][key], found['annotations'][key]) for key in sorted(ids['images'])}


def read_item(
    image_id: str, image: archives.Entry, label: archives.Entry
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and its label.

    Args:
        image_id: handed on.
        image: JPEG.
        label: PNG, 1 to 150, void being 0.

    Returns:
        id, encoded image, label uint8 [H, W].

    Raises:
        ValueError: a file cannot be read, the sizes differ, or a label value is no class.
    """
    data = image.read()
    photograph, values = images.decode_pair((image.shown, data), (label.shown, label.read()))
    values = records.relabel(values, _IDS, label.shown, _EXPECTED)
    return image_id, images.encoded(photograph, data), values
