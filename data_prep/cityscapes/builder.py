"""TFDS builder of `cityscapes`, finely annotated images."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, images, records

# Label id -> class and its name, "train id": https://github.com/mcordts/cityscapesScripts/blob/
# master/cityscapesscripts/helpers/labels.py
_CLASSES = {
    7: 'road', 8: 'sidewalk', 11: 'building', 12: 'wall', 13: 'fence', 17: 'pole',
    19: 'traffic light', 20: 'traffic sign', 21: 'vegetation', 22: 'terrain', 23: 'sky',
    24: 'person', 25: 'rider', 26: 'car', 27: 'truck', 28: 'bus', 31: 'train', 32: 'motorcycle',
    33: 'bicycle',
}  # fmt: skip
CLASS_NAMES = tuple(_CLASSES.values())
PALETTE = (  # RGB, as the authors' scripts draw them
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
SPLITS = {'train': 2975, 'val': 500}  # images
IMAGES = 'leftImg8bit_trainvaltest.zip'
LABELS = 'gtFine_trainvaltest.zip'
NEEDED_FROM_USER = f"""\
FOLDER has the two archives
  {IMAGES} (11 GB) and
  {LABELS} (241 MB)
from https://www.cityscapes-dataset.com/downloads/, which asks you to register and to agree to its
licence."""

# Ids 0..33; that of license plates, -1, is 255 in 8 bits. All but the 19 classes are void.
_IDS = {
    **dict.fromkeys([*range(34), 255], records.VOID),
    **{value: index for index, value in enumerate(_CLASSES)},
}
_EXPECTED = 'a label id, 0..33 or 255 (-1)'


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """How many pixels of the original become one, a side, and by which filter.

    Attributes:
        shrink: that number.
        pillow: whether as `images.resize` does, otherwise as `records.shrink` does.
    """

    shrink: int
    pillow: bool = False


class Builder(records.FromFiles):
    """Read the archives."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = (
        Config(name='full', shrink=1, description='2048x1024 pixels, the image files as they are'),
        Config(name='half', shrink=2, description='1024x512 pixels, means of 2x2'),
        Config(
            name='half_pil',
            shrink=2,
            pillow=True,
            description="1024x512 pixels, resized by Pillow's bilinear filter, as USSS does",
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            CLASS_NAMES,
            description='Street scenes of 50 cities, 19 classes, finely annotated.',
            homepage='https://www.cityscapes-dataset.com/',
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # the user downloads
        files = find_archives(self._source)
        members, labels = (archives.members(file) for file in files)
        pairs = {}
        for split, count in self._splits.items():
            pairs[split] = find_pairs(members, split)
            if len(pairs[split]) != count:
                raise ValueError(
                    f'{files[0]}: split {split}: expected {count} images, found {len(pairs[split])}'
                )
            archives.require(files[1], labels, (label for _, label in pairs[split].values()))
        self.info.metadata['archives'] = {file.name: archives.fingerprint(file) for file in files}

        def items(split: str) -> Iterator[tuple[str, bytes, np.ndarray]]:
            for image_id, (image, label) in pairs[split].items():
                yield read_item(
                    image_id,
                    (f'{files[0]}: {image}', members[image]()),
                    (f'{files[1]}: {label}', labels[label]()),
                    self.builder_config.shrink,
                    self.builder_config.pillow,
                )

        return {split: self._generate_examples(split, items(split)) for split in pairs}

    def _generate_examples(
        self, split: str, items: Iterator[tuple[str, bytes, np.ndarray]]
    ) -> Iterator[tuple[int, dict]]:
        return records.examples(self.info.metadata, split, items)


def find_archives(source: Path) -> tuple[Path, Path]:
    """Find the archives of the images and of the labels.

    Raises:
        FileNotFoundError: one is missing; says where to get it.
    """
    files = source / IMAGES, source / LABELS
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(
            f'--source {source}: there is no {missing}. In --source FOLDER,\n{NEEDED_FROM_USER}'
        )
    return files


def find_pairs(members: archives.Members, split: str) -> dict[str, tuple[str, str]]:
    """Find a split's images, and says where the labels have to be.

    Args:
        members: of the archive of images.
        split: name of the split.

    Returns:
        id, such as 'aachen_000000_000019' -> names of image and label in their archives; sorted.
    """
    pairs = {}
    for name in sorted(members):
        path = PurePosixPath(name)
        if len(path.parts) == 4 and path.match(f'leftImg8bit/{split}/*/*_leftImg8bit.png'):
            image_id = path.name.removesuffix('_leftImg8bit.png')
            label = f'gtFine/{split}/{path.parent.name}/{image_id}_gtFine_labelIds.png'
            pairs[image_id] = name, label
    return pairs


def read_item(
    image_id: str,
    image: tuple[str, bytes],
    label: tuple[str, bytes],
    shrink: int,
    pillow: bool = False,
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and its label.

    Args:
        image_id: handed on.
        image: name for messages, and PNG.
        label: name for messages, and PNG of label ids.
        shrink: see `Config`.
        pillow: see `Config`.

    Returns:
        id, encoded image, label uint8 [H, W] of classes and void.

    Raises:
        ValueError: a file cannot be read, the sizes differ, or a label value is no label id.
    """
    photograph, values = images.decode_pair(image, label)
    values = records.relabel(values, _IDS, label[0], _EXPECTED)
    if shrink == 1 or pillow:
        size = values.shape[0] // shrink, values.shape[1] // shrink
        return image_id, *images.at_size(photograph, image[1], values, size)
    pixels, values = records.shrink(photograph.pixels, values, shrink)
    return image_id, images.encode_png(pixels), values
