"""TFDS builder of `coco`: the images of COCO that have an instance, 80 classes and background.

COCO has instances, no masks of classes: they are painted here, crowds at the bottom and smaller
instances over larger ones, see `instances`. That order is ours. Images without any instance are
left out, as the field does that trains on tags; how many is said. The config `2017_all` has them,
all background, as those do who train on masks: UniMatch's lists name images of all.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, images, records
from data_prep.coco import instances

# The `categories` of the annotations; ids that are missing are of none.
_CATEGORIES = {
    1: 'person', 2: 'bicycle', 3: 'car', 4: 'motorcycle', 5: 'airplane', 6: 'bus', 7: 'train',
    8: 'truck', 9: 'boat', 10: 'traffic light', 11: 'fire hydrant', 13: 'stop sign',
    14: 'parking meter', 15: 'bench', 16: 'bird', 17: 'cat', 18: 'dog', 19: 'horse', 20: 'sheep',
    21: 'cow', 22: 'elephant', 23: 'bear', 24: 'zebra', 25: 'giraffe', 27: 'backpack',
    28: 'umbrella', 31: 'handbag', 32: 'tie', 33: 'suitcase', 34: 'frisbee', 35: 'skis',
    36: 'snowboard', 37: 'sports ball', 38: 'kite', 39: 'baseball bat', 40: 'baseball glove',
    41: 'skateboard', 42: 'surfboard', 43: 'tennis racket', 44: 'bottle', 46: 'wine glass',
    47: 'cup', 48: 'fork', 49: 'knife', 50: 'spoon', 51: 'bowl', 52: 'banana', 53: 'apple',
    54: 'sandwich', 55: 'orange', 56: 'broccoli', 57: 'carrot', 58: 'hot dog', 59: 'pizza',
    60: 'donut', 61: 'cake', 62: 'chair', 63: 'couch', 64: 'potted plant', 65: 'bed',
    67: 'dining table', 70: 'toilet', 72: 'tv', 73: 'laptop', 74: 'mouse', 75: 'remote',
    76: 'keyboard', 77: 'cell phone', 78: 'microwave', 79: 'oven', 80: 'toaster', 81: 'sink',
    82: 'refrigerator', 84: 'book', 85: 'clock', 86: 'vase', 87: 'scissors', 88: 'teddy bear',
    89: 'hair drier', 90: 'toothbrush',
}  # fmt: skip
CLASS_NAMES = ('background', *_CATEGORIES.values())
IDS = {category: index for index, category in enumerate(_CATEGORIES, 1)}  # category id -> class
# Config -> images. With an instance, but for the last; all of 2014 are 82,783 and 40,504.
SPLITS = {
    '2014': {'train': 82_081, 'val': 40_137},
    '2017': {'train': 117_266, 'val': 4952},
    '2017_all': {'train': 118_287, 'val': 5000},
}
YEARS = ('2014', '2017')  # of the releases
NEEDED_FROM_USER = """\
FOLDER has three archives of https://cocodataset.org/#download, those of --config's year:
  train2014.zip (13 GB), val2014.zip (6 GB) and annotations_trainval2014.zip (241 MB), or
  train2017.zip (18 GB), val2017.zip (1 GB) and annotations_trainval2017.zip (241 MB),
or what they unpack to: the folders train2014, val2014 and annotations, or train2017 and so on.
The images are of Flickr's users, each under the terms that the annotations name. The preparation
needs a package more, pip install pycocotools, and while it runs up to 2 GB of memory."""

_ANNOTATIONS = re.compile(r'(?:.*/)?(instances_(?:train|val)\d{4}\.json)')
_IMAGE = re.compile(r'(?:.*/)?([^/.][^/]*\.jpg)')

Pair = tuple[archives.Entry, instances.Picture]  # image, what is in it


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """Which images of a release there are.

    Attributes:
        year: of the release.
        every: also those without an instance.
    """

    year: str
    every: bool = False


def _config(name: str) -> Config:
    year, every = name.removesuffix('_all'), name.endswith('_all')
    counts = SPLITS[name]
    return Config(
        name=name,
        year=year,
        every=every,
        description=f'the release of {year}, {counts["train"]:,} images and {counts["val"]:,}'
        + (', with those that have no instance' if every else ''),
    )


class Builder(records.FromFiles):
    """Read the published files; `splits` is by default that of the config in the module's."""

    BUILDER_CONFIGS = tuple(map(_config, SPLITS))

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            CLASS_NAMES,
            description='Everyday scenes, 80 classes of things and background.',
            homepage='https://cocodataset.org/',
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # the user downloads
        year, every = self.builder_config.year, self.builder_config.every
        places = find_source(self._source, year)
        spool = Path(self.data_dir).parent
        annotations = archives.tree(places['annotations'], _ANNOTATIONS, spool)
        pairs = {}
        for split, count in (self._splits or SPLITS[self.builder_config.name]).items():
            name = f'instances_{split}{year}.json'
            if name not in annotations:
                raise ValueError(f'{places["annotations"]}: there is no {name} in it')
            files = archives.tree(places[split], _IMAGE, spool)
            pairs[split] = find_pairs(places[split], files, annotations[name], split, count, every)
        self.info.metadata['archives'] = {
            place.name: archives.fingerprint(place) for place in places.values() if place.is_file()
        }
        return {
            split: self._generate_examples(
                split, annotations[f'instances_{split}{year}.json'], found
            )
            for split, found in pairs.items()
        }

    def _generate_examples(
        self, split: str, annotation: archives.Entry, pairs: Mapping[str, Pair]
    ) -> Iterator[tuple[int, dict]]:
        items = (read_item(image_id, *pair, annotation.shown) for image_id, pair in pairs.items())
        return records.examples(self.info.metadata, split, items)


def find_source(source: Path, year: str = '') -> dict[str, Path]:
    """Find the folders or archives of a release, after a look at whether polygons can be filled.

    Args:
        source: folder that has them.
        year: of the release; '': any that is whole.

    Returns:
        'train', 'val' and 'annotations' -> folder or zip.

    Raises:
        FileNotFoundError: one is missing, or `pycocotools` is; says where to get it.
    """
    instances.rasteriser()
    found = {each: _find_parts(source, each) for each in ([year] if year else YEARS)}
    # Of several the first that has most; only if it is not whole, none is.
    nearest = max(found.values(), key=lambda parts: sum(map(Path.exists, parts.values())))
    missing = [str(place) for place in nearest.values() if not place.exists()]
    if missing:
        raise FileNotFoundError(
            f'--source {source}: there is no {" and no ".join(missing)}. In --source FOLDER,\n'
            f'{NEEDED_FROM_USER}'
        )
    return nearest


def _find_parts(source: Path, year: str) -> dict[str, Path]:
    """Return the parts of a release: folders where they are there, otherwise archives."""
    parts = {}
    for split in SPLITS[year]:
        folder = source / f'{split}{year}'
        parts[split] = folder if folder.is_dir() else source / f'{split}{year}.zip'
    folder = source / 'annotations'  # has one name for all years
    here = any((folder / f'instances_{split}{year}.json').is_file() for split in SPLITS[year])
    parts['annotations'] = folder if here else source / f'annotations_trainval{year}.zip'
    return parts


def find_pairs(
    place: Path,
    files: Mapping[str, archives.Entry],
    annotation: archives.Entry,
    split: str,
    count: int | None,
    every: bool = False,
) -> dict[str, Pair]:
    """Find a split's images that have an instance, and what is in them.

    Args:
        place: of the images, for messages.
        files: file name -> image.
        annotation: see `instances.parse`.
        split: name of the split.
        count: images it must have; None: any number but 0.
        every: find those without an instance too.

    Returns:
        id, the image's file name without its ending -> image and what is in it, sorted.

    Raises:
        ValueError: as `instances.parse`, or an image is missing or listed twice, or their number
            is wrong.
    """
    pictures = instances.parse(annotation, IDS)
    pairs: dict[str, Pair] = {}
    for picture in sorted(pictures, key=lambda picture: picture.file_name):
        if not (picture.instances or every):
            continue
        name = picture.file_name
        if name not in files:
            raise ValueError(f'{place}: there is no {name} in it, which {annotation.shown} names')
        image_id = PurePosixPath(name).stem
        if image_id in pairs:
            raise ValueError(f'{annotation.shown} has the image {name} twice; expected it once')
        pairs[image_id] = files[name], picture
    if not pairs or count not in (None, len(pairs)):
        expected = 'images' if count is None else f'{count} images'
        expected += '' if every else ' with an instance'
        raise ValueError(
            f'{annotation.shown}: split {split}: expected {expected}, found '
            f'{len(pairs) or "none"} among {len(pictures)}'
        )
    if left := len(pictures) - len(pairs):
        images.LOG.warning(
            '%s: %d of %d images have no instance and are left out', split, left, len(pictures)
        )
    return pairs


def read_item(
    image_id: str, image: archives.Entry, picture: instances.Picture, annotation: str
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and paint its label.

    Args:
        image_id: handed on.
        image: JPEG.
        picture: what is in it.
        annotation: name of its file, for messages.

    Returns:
        id, encoded image, label uint8 [H, W] of 0 to 80; COCO has no void.

    Raises:
        ValueError: the image cannot be read, or has another size than the annotation says.
    """
    data = image.read()
    photograph = images.decode(image.shown, data)
    if warning := images.check_sizes(image.shown, photograph, annotation, picture.size):
        images.LOG.warning('warning: %s', warning)
    return image_id, images.encoded(photograph, data), instances.draw(picture)
