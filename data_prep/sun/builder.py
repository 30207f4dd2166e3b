"""TFDS builder of `sun`: the colour images of SUN RGB-D and their 37 classes.

The files have 0 where a pixel has no label and 1 to 37 for the classes, wall to bag. Records have
0 to 36, and 255 for void.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, images, records

CLASS_NAMES = (
    'wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf',
    'picture', 'counter', 'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror',
    'floor_mat', 'clothes', 'ceiling', 'books', 'fridge', 'tv', 'paper', 'towel', 'shower_curtain',
    'box', 'whiteboard', 'person', 'night_stand', 'toilet', 'sink', 'lamp', 'bathtub', 'bag',
)  # fmt: skip
SPLITS = {'train': 5285, 'test': 5050, 'val': 475}  # images; val is a part of test, if it is known
VAL_LIST = 'split/val37.txt'
LISTS = {'train': 'train37.txt', 'test': 'test37.txt', 'val': VAL_LIST}
ARCHIVE = 'sun_rgbd.tgz'
_FOLDERS = ('image', 'label37')
_REORGANISED = (ARCHIVE, 'SUN_RGBD')
# Of the first release; its labels have been published by either name.
_IMAGES = {'train': 'SUNRGBD-train_images', 'test': 'SUNRGBD-test_images'}
_LABELS = ('sunrgbd_train_test_labels', 'sunrgbd_test_train_labels')
_ENDINGS = ('', '.tgz', '.tar.gz', '.tar')  # '': unpacked, a folder
NEEDED_FROM_USER = f"""\
FOLDER has the copy of https://github.com/chrischoy/SUN_RGBD (its script fetches the images):
  {ARCHIVE}, or the folders image and label37 in it, and beside them from the repository
  train37.txt, test37.txt and {VAL_LIST}, which may be missing: then there is no split val,
or the files of https://github.com/ankurhanda/sunrgbd-meta-data, as archives or in folders of
their names:
  {_IMAGES['train']}.tgz, {_IMAGES['test']}.tgz and {_LABELS[0]}.tar.gz.
It can also be {ARCHIVE} itself. From archives the preparation needs more of the disk of --data_dir
while it runs: images and labels are copied there first, as a compressed archive can only be read
from its beginning."""

_WANTED = re.compile(
    r'(?:.*/)?(image/(?:train|test)/img-\d{6}\.jpg|label37/(?:train|test)/\d{8}\.png'
    r'|(?:train37|test37|split/val37)\.txt)'
)
_FIRST_IMAGE = re.compile(r'(?:.*/)?(img-\d{6})\.jpg')  # of the first release
_FIRST_LABEL = re.compile(r'(?:.*/)?(img-\d{6})\.png')
_IMAGE = re.compile(r'image/((?:train|test)/img-\d{6})\.jpg')
_IDS = {
    **{value: value - 1 for value in range(1, len(CLASS_NAMES) + 1)},
    0: records.VOID,
    records.VOID: records.VOID,
}
_EXPECTED = f'1..{len(CLASS_NAMES)}, or 0 or {records.VOID} for void'

Files = Mapping[str, archives.Entry]  # named as in `_WANTED`
Pair = tuple[archives.Entry, archives.Entry]  # image, label


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """Height and width of the records, see `data_prep.images.resize`; None: as in the files."""

    size: tuple[int, int] | None


class Builder(records.FromFiles):
    """Read the published files."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = (
        Config(
            name='640x480',
            size=(480, 640),
            description="640x480 pixels, resized by Pillow's bilinear filter, as USSS does",
        ),
        Config(
            name='full',
            size=None,
            description='561 to 730 pixels wide, the image files as they are',
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            CLASS_NAMES,
            description='Indoor scenes, 37 classes, colour images without depth.',
            homepage='https://rgbd.cs.princeton.edu/',
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # the user downloads
        places = find_source(self._source)
        files = read_files(self._source, places, Path(self.data_dir).parent, self._splits['test'])
        pairs = {
            split: find_pairs(self._source, files, split, self._splits[split])
            for split in LISTS
            if split != 'val' or VAL_LIST in files
        }
        if 'val' in pairs:  # stored as two parts, so that no image is stored twice
            pairs = divide(self._source, pairs)
            self.info.metadata['unions'] = {'test': ['val', 'rest']}
        self.info.metadata['archives'] = {
            place.name: archives.fingerprint(place) for place in places.values() if place.is_file()
        }
        return {split: self._generate_examples(split, found) for split, found in pairs.items()}

    def _generate_examples(
        self, split: str, pairs: Mapping[str, Pair]
    ) -> Iterator[tuple[int, dict]]:
        size = self.builder_config.size
        items = (read_item(image_id, *pair, size) for image_id, pair in pairs.items())
        return records.examples(self.info.metadata, split, items)


def find_source(source: Path) -> dict[str, Path]:
    """Find the files in either layout of `NEEDED_FROM_USER`.

    Returns:
        'all' -> the folder or archive that has images and labels; or 'train', 'test' and 'labels',
        those of the first release.

    Raises:
        FileNotFoundError: neither is there, or not whole; says where to get it.
    """
    if source.is_file():
        return {'all': source}
    for folder in (source, source / _REORGANISED[1]):
        if all((folder / name).is_dir() for name in _FOLDERS):
            return {'all': folder}
    if (source / ARCHIVE).is_file():
        return {'all': source / ARCHIVE}
    found = {split: _find(source, name) for split, name in _IMAGES.items()}
    found['labels'] = _find(source, *_LABELS)
    if not any(found.values()):
        missing = f'neither {source / "image"} and {source / "label37"}, nor {source / ARCHIVE}, '
        missing += f'nor {source / _IMAGES["train"]}.tgz'
    elif None in found.values():
        names = {**_IMAGES, 'labels': _LABELS[0]}
        missing = 'no ' + ' and no '.join(
            str(source / names[part]) for part, place in found.items() if place is None
        )
    else:
        return found
    raise FileNotFoundError(
        f'--source {source}: there is {missing}. In --source FOLDER,\n{NEEDED_FROM_USER}'
    )


def _find(source: Path, *names: str) -> Path | None:
    """Return a folder of one of these names, or an archive."""
    for name in names:
        for ending in _ENDINGS:
            place = source / f'{name}{ending}'
            if place.is_file() if ending else place.is_dir():
                return place
    return None


def read_files(source: Path, places: Mapping[str, Path], spool: Path, tests: int) -> Files:
    """Find images, labels and lists, named as in the reorganised copy whatever the layout.

    Args:
        source: folder in which lists may lie beside an archive.
        places: see `find_source`.
        spool: see `archives.tree`.
        tests: labels of the first release that are of the test split: the first ones.

    Returns:
        Such as 'image/train/img-000001.jpg', 'label37/train/00000001.png' and 'train37.txt' -> the
        file.

    Raises:
        ValueError, OSError: as `archives.tree`.
    """
    if 'all' in places:
        files = archives.tree(places['all'], _WANTED, spool)
        for name in LISTS.values():
            if source.is_dir() and (source / name).is_file():
                files[name] = archives.Entry(str(source / name), (source / name).read_bytes)
        return files
    files = {}
    for split in _IMAGES:
        found = archives.tree(places[split], _FIRST_IMAGE, spool)
        files |= {f'image/{split}/{name}.jpg': entry for name, entry in found.items()}
    found = archives.tree(places['labels'], _FIRST_LABEL, spool)
    for name, entry in found.items():
        number = int(name.removeprefix('img-'))
        split, number = ('test', number) if number <= tests else ('train', number - tests)
        files[f'label37/{split}/{number:08d}.png'] = entry
    return files


def find_pairs(source: Path, files: Files, split: str, count: int) -> dict[str, Pair]:
    """Find a split's images and their labels: those of its list, without one all by their numbers.

    Args:
        source: for messages.
        files: see `read_files`.
        split: train, test or val.
        count: images it must have.

    Returns:
        id, such as 'train/img-000001' -> image and label, in the list's order.

    Raises:
        ValueError: an image or label is missing, a line names none or one twice, or their number
            is wrong.
    """
    if LISTS[split] in files:
        named = _listed(files[LISTS[split]], split)
    else:
        there = sorted(name for name in files if name.startswith(f'image/{split}/'))
        named = [('', name, _label_of(name)) for name in there]
    pairs: dict[str, Pair] = {}
    for place, image, label in named:
        missing = next((name for name in (image, label) if name not in files), None)
        if missing is not None:
            of = f'{place} names {missing}' if place else f'{files[image].shown} has no label'
            raise ValueError(f'{of}: there is no {missing} in {source}')
        image_id = _IMAGE.fullmatch(image)[1]
        if image_id in pairs:
            raise ValueError(f'{place} names {image} again; expected every image once')
        pairs[image_id] = files[image], files[label]
    if len(pairs) != count:
        raise ValueError(f'{source}: split {split}: expected {count} images, found {len(pairs)}')
    return pairs


def _listed(entry: archives.Entry, split: str) -> list[tuple[str, str, str]]:
    """Read a list: image, depth and label in each line; the label may come without its folder.

    Returns:
        Place for messages, image and label of each line.
    """
    try:
        lines = entry.read().decode('utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise ValueError(f'{entry.shown} is no text, expected three paths a line') from None
    found = []
    for number, line in enumerate(lines, 1):
        if not (words := line.split()):
            continue
        place = f'{entry.shown}, line {number}'
        if len(words) < 2 or not _IMAGE.fullmatch(words[0]):
            raise ValueError(
                f'{place}: got {line.strip()!r}, expected image, depth and label, as in '
                f'{"test" if split == "val" else split}37.txt of chrischoy/SUN_RGBD'
            )
        label = words[-1]
        folder = _label_of(words[0]).rpartition('/')[0]
        found.append((place, words[0], label if '/' in label else f'{folder}/{label}'))
    return found


def _label_of(image: str) -> str:
    """Return the label's name, 'label37/train/00000001.png', of 'image/train/img-000001.jpg'."""
    _, split, name = image.split('/')
    return f'label37/{split}/{int(name.removeprefix("img-").removesuffix(".jpg")):08d}.png'


def divide(source: Path, pairs: Mapping[str, dict[str, Pair]]) -> dict[str, dict[str, Pair]]:
    """Divide the test split into val and the rest of it.

    Args:
        source: for messages.
        pairs: of train, test and val.

    Returns:
        Those of train, val and rest.

    Raises:
        ValueError: an image of val is not in test; names it.
    """
    for image_id in pairs['val']:
        if image_id not in pairs['test']:
            raise ValueError(
                f'{source}: {VAL_LIST} names {image_id}, which is not in the test split'
            )
    rest = {key: pair for key, pair in pairs['test'].items() if key not in pairs['val']}
    return {'train': pairs['train'], 'val': pairs['val'], 'rest': rest}


def read_item(
    image_id: str, image: archives.Entry, label: archives.Entry, size: tuple[int, int] | None
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and its label.

    Args:
        image_id: handed on.
        image: JPEG.
        label: PNG, 1 to 37, void being 0 or 255.
        size: of the result, see `Config`.

    Returns:
        id, encoded image, label uint8 [H, W].

    Raises:
        ValueError: a file cannot be read, the sizes differ, or a label value is no class.
    """
    data = image.read()
    photograph, values = images.decode_pair((image.shown, data), (label.shown, label.read()))
    values = records.relabel(values, _IDS, label.shown, _EXPECTED)
    return image_id, *images.at_size(photograph, data, values, size)
