"""TFDS builder of `idd`: part I of the India Driving Dataset, 26 classes.

The archive has polygons, no masks: they are drawn as IDD's own tool draws them, by which level-3
ids are 0 to 25 and 255. Where that tool has been run its masks lie beside the polygons, and are
taken instead. The test split has no annotations and is left out.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, images, records
from data_prep.idd import polygons

# Class -> the other labels that are of it: level3Id of https://github.com/AutoNUE/public-code/blob/
# 5d9a93b/helpers/anue_labels.py. The classes have the names that its evaluation prints.
_CLASSES = {
    'road': (), 'drivable fallback': ('parking',), 'sidewalk': (),
    'non-drivable fallback': ('rail track',), 'person': ('animal',), 'rider': (), 'motorcycle': (),
    'bicycle': (), 'autorickshaw': (), 'car': (), 'truck': (), 'bus': (),
    'vehicle fallback': ('caravan', 'trailer', 'train'), 'curb': (), 'wall': (), 'fence': (),
    'guard rail': (), 'billboard': (), 'traffic sign': (), 'traffic light': (),
    'pole': ('polegroup',), 'obs-str-bar-fallback': (), 'building': (), 'bridge': ('tunnel',),
    'vegetation': (), 'sky': ('fallback background',),
}  # fmt: skip
_VOID = ('unlabeled', 'ego vehicle', 'rectification border', 'out of roi', 'license plate')
CLASS_NAMES = tuple(_CLASSES)
LABELS = {
    **{label: i for i, (name, more) in enumerate(_CLASSES.items()) for label in (name, *more)},
    **dict.fromkeys(_VOID, records.VOID),
}  # name in a file of polygons -> class id or void
SPLITS = {'train': 6993, 'val': None}  # images; None: any number
UNVERIFIED = {'val': 981}  # images, as others count them; another number is no error
ARCHIVE = 'idd-segmentation.tar.gz'
FOLDER = 'IDD_Segmentation'
NEEDED_FROM_USER = f"""\
FOLDER is the archive of part I, "IDD - Segmentation",
  {ARCHIVE} (18.5 GB),
from https://idd.insaan.iiit.ac.in, which asks you to register and to agree to its terms, or a
folder that has it, or the folder {FOLDER} that it unpacks to (it holds leftImg8bit and gtFine).
From the archive the preparation needs 15 GB more on the disk of --data_dir while it runs: what it
reads is copied there first, as a compressed archive can only be read from its beginning."""

_WANTED = re.compile(
    r'(?:.*/)?((?:leftImg8bit|gtFine)/(?:train|val)/[^/]+/[^/.][^/]*'
    r'_(?:leftImg8bit\.png|gtFine_polygons\.json|gtFine_label[lL]evel3Ids\.png))'
)
_MASKS = ('_gtFine_labellevel3Ids.png', '_gtFine_labelLevel3Ids.png')  # of IDD's tool
_POLYGONS = '_gtFine_polygons.json'
_IDS = {value: value for value in [*range(len(CLASS_NAMES)), records.VOID]}
_EXPECTED = f'a level-3 id, 0..{len(CLASS_NAMES) - 1}, or {records.VOID} for void'

Pair = tuple[archives.Entry, archives.Entry]  # image, annotation


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """Height and width of the records, see `data_prep.images.resize`; None: as in the files."""

    size: tuple[int, int] | None


class Builder(records.FromFiles):
    """Read the published files."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = (
        Config(
            name='1024x512',
            size=(512, 1024),
            description="1024x512 pixels, resized by Pillow's bilinear filter, as USSS does",
        ),
        Config(
            name='full',
            size=None,
            description='1920x1080 and 1280x720 pixels, the image files as they are',
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            CLASS_NAMES,
            description='Street scenes from India, 26 classes of level 3, part I.',
            homepage='https://idd.insaan.iiit.ac.in/',
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # the user downloads
        place = find_source(self._source)
        files = archives.tree(place, _WANTED, Path(self.data_dir).parent)
        pairs = {
            split: find_pairs(place, files, split, count) for split, count in self._splits.items()
        }
        if place.is_file():
            self.info.metadata['archives'] = {place.name: archives.fingerprint(place)}
        return {split: self._generate_examples(split, found) for split, found in pairs.items()}

    def _generate_examples(
        self, split: str, pairs: Mapping[str, Pair]
    ) -> Iterator[tuple[int, dict]]:
        size = self.builder_config.size
        items = (read_item(image_id, *pair, size) for image_id, pair in pairs.items())
        return records.examples(self.info.metadata, split, items)


def find_source(source: Path) -> Path:
    """Find the folder that holds leftImg8bit and gtFine, or the archive.

    Raises:
        FileNotFoundError: neither is there; says where to get it.
    """
    if source.is_file():
        return source
    for folder in (source, source / FOLDER):
        if all((folder / name).is_dir() for name in ('leftImg8bit', 'gtFine')):
            return folder
    if (source / ARCHIVE).is_file():
        return source / ARCHIVE
    raise FileNotFoundError(
        f'--source {source}: there are neither {source / "leftImg8bit"} and '
        f'{source / "gtFine"}, nor {source / FOLDER}, nor {source / ARCHIVE}. In --source FOLDER,\n'
        f'{NEEDED_FROM_USER}'
    )


def find_pairs(
    place: Path, files: Mapping[str, archives.Entry], split: str, count: int | None
) -> dict[str, Pair]:
    """Find a split's images and their annotations.

    Args:
        place: of all of them, for messages.
        files: see `archives.tree`; names as 'leftImg8bit/train/0/024541_leftImg8bit.png'.
        split: name of the split.
        count: images it must have; None: any number but 0.

    Returns:
        id, such as 'train/0/024541' -> image and annotation, sorted.

    Raises:
        ValueError: an image has no annotation, or their number is wrong.
    """
    pairs = {}
    for name, image in files.items():
        if not name.startswith(f'leftImg8bit/{split}/'):
            continue
        image_id = name.removeprefix('leftImg8bit/').removesuffix('_leftImg8bit.png')
        names = [f'gtFine/{image_id}{ending}' for ending in (*_MASKS, _POLYGONS)]
        there = [files[name] for name in names if name in files]
        if not there:
            raise ValueError(
                f'{image.shown} has no annotation: there is neither {names[-1]} nor {names[0]} in '
                f'{place}'
            )
        pairs[image_id] = image, there[0]
    if not pairs or count not in (None, len(pairs)):
        expected = 'images' if count is None else f'{count} images'
        raise ValueError(
            f'{place}: split {split}: expected {expected}, '
            f'leftImg8bit/{split}/DRIVE/FRAME_leftImg8bit.png, found {len(pairs) or "none"}'
        )
    said = UNVERIFIED.get(split) if count is None else None
    if said not in (None, len(pairs)):
        images.LOG.warning(
            'warning: %s: split %s: found %d images, others count %d',
            place, split, len(pairs), said,
        )  # fmt: skip
    return pairs


def read_item(
    image_id: str,
    image: archives.Entry,
    annotation: archives.Entry,
    size: tuple[int, int] | None,
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and its annotation.

    Args:
        image_id: handed on.
        image: PNG.
        annotation: polygons, or a mask of level-3 ids.
        size: of the result, see `Config`.

    Returns:
        id, encoded image, label uint8 [H, W].

    Raises:
        ValueError: a file cannot be read, the sizes differ, or there is a label that IDD has not.
    """
    data = image.read()
    if annotation.shown.endswith(_POLYGONS):
        photograph = images.decode(image.shown, data)
        parsed = polygons.parse(annotation.read(), annotation.shown, LABELS)
        images.check_sizes(image.shown, photograph, annotation.shown, parsed.size)
        label = polygons.draw(parsed)
    else:
        photograph, label = images.decode_pair(
            (image.shown, data), (annotation.shown, annotation.read())
        )
        label = records.relabel(label, _IDS, annotation.shown, _EXPECTED)
    return image_id, *images.at_size(photograph, data, label, size)
