"""Annotations of COCO: instances as polygons or runs of pixels, painted one over another.

COCO's instances overlap and it publishes no order of them. Which one is on top is our rule: regions
of a crowd are at the bottom, a smaller instance is over a larger one by the file's `area`, and of
two equal ones that with the larger id is on top.
"""

import array
import functools
import importlib
import json
import operator
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data_prep import archives

_FEWEST = 6  # numbers of a polygon: three corners
_LARGEST = 1 << 16  # coordinate, either way
_KEPT = ('id', 'file_name', 'height', 'width', 'images', 'annotations', 'counts', 'size')


class Runs(NamedTuple):
    """A mask as lengths of runs, down the columns; the first run is outside.

    Attributes:
        size: height and width.
        lengths: int64; their sum is the number of pixels.
    """

    size: tuple[int, int]
    lengths: np.ndarray


class Instance(NamedTuple):
    """An annotation.

    Attributes:
        number: its id.
        image: id of its image.
        class_id: its class.
        area: in pixels, as the file has it.
        crowd: whether it is many instances in one.
        shape: polygons as x, y, x, y, ..., which may be none, or runs.
    """

    number: int
    image: int
    class_id: int
    area: float
    crowd: bool
    shape: list[array.array] | Runs


class Picture(NamedTuple):
    """An image and what is in it.

    Attributes:
        file_name: without folder.
        size: height and width.
        instances: in the order in which they are painted.
    """

    file_name: str
    size: tuple[int, int]
    instances: list[Instance]


def rasteriser() -> types.ModuleType:
    """Return `pycocotools.mask`, which fills polygons as COCO does.

    Raises:
        FileNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module('pycocotools.mask')
    except ModuleNotFoundError:
        raise FileNotFoundError(
            "coco's polygons are filled by a package that is not installed: pip install pycocotools"
        ) from None


def parse(file: archives.Entry, ids: Mapping[int, int]) -> list[Picture]:
    """Read a file of instances; polygons of fewer than three corners are left out.

    Args:
        file: JSON with `images` and `annotations`.
        ids: category id -> class.

    Returns:
        All images, in the file's order.

    Raises:
        ValueError: it is no such file, or an annotation has a category or an image that is not
            known, or a segmentation that cannot be read; names the file and the annotation.
    """
    try:
        # The file has 450 MB and would be 2 GB of lists and numbers: every annotation is made
        # small as soon as it is read, and the text replaces the bytes.
        text = file.read().decode()
        content = json.loads(text, object_hook=functools.partial(_small, ids=ids))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f'{file.shown} is no readable annotation: {error}') from error
    except _Wrong as error:
        raise ValueError(f'{file.shown}: {error}') from error
    try:
        pictures: dict[int, Picture] = {}
        for each in content['images']:
            size = operator.index(each['height']), operator.index(each['width'])
            number = operator.index(each['id'])
            if number in pictures:
                raise ValueError(f'two images with the id {number}')
            pictures[number] = Picture(each['file_name'], size, [])
            if not isinstance(each['file_name'], str):
                raise TypeError(f'{each["file_name"]!r} as a file name')
        annotations = list(content['annotations'])
        if strange := [each for each in annotations if not isinstance(each, Instance)]:
            raise TypeError(f'{strange[0]!r} as an annotation')
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{file.shown} is no readable annotation: expected images, each with id, file_name, '
            f'height and width, and annotations, each with a segmentation; came {error!r}'
        ) from error
    for instance in annotations:
        where = f'{file.shown}: annotation {instance.number}'
        if instance.image not in pictures:
            raise ValueError(f'{where} is of image {instance.image}, which is not in its images')
        picture = pictures[instance.image]
        if isinstance(instance.shape, Runs) and instance.shape.size != picture.size:
            raise ValueError(
                f'{where}: its segmentation has height and width {instance.shape.size}, expected '
                f'{picture.size} as {picture.file_name}'
            )
        picture.instances.append(instance)
    for picture in pictures.values():
        picture.instances.sort(key=lambda each: (not each.crowd, -each.area, each.number))
    return list(pictures.values())


def draw(picture: Picture) -> np.ndarray:
    """Paint instances in their order; pixels of none are 0, background.

    Args:
        picture: see `parse`.

    Returns:
        uint8 [H, W].
    """
    label = np.zeros(picture.size, np.uint8)
    for instance in picture.instances:
        label[_mask(instance.shape, picture.size)] = instance.class_id
    return label


class _Wrong(Exception):
    """What is wrong with an annotation; no ValueError, as that is JSON's too."""


def _small(each: dict[str, Any], ids: Mapping[int, int]) -> Instance | dict[str, Any]:
    """Make an annotation an `Instance`; of other objects leave out what is not used."""
    if 'segmentation' not in each:
        return {key: each[key] for key in _KEPT if key in each}
    where = f'annotation {each.get("id")!r}'
    try:
        number, image, category = (
            operator.index(each[key]) for key in ('id', 'image_id', 'category_id')
        )
        area, crowd = float(each['area']), bool(each['iscrowd'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _Wrong(
            f'{where}: expected id, image_id, category_id, area and iscrowd; came {error!r}'
        ) from error
    if category not in ids:
        raise _Wrong(f'{where} has category {category}; expected one of {len(ids)} from 1 to 90')
    try:
        shape = _shape(each['segmentation'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _Wrong(f'{where}: its segmentation cannot be read: {error!r}') from error
    return Instance(number, image, ids[category], area, crowd, shape)


def _shape(segmentation: Any) -> list[array.array] | Runs:
    """Return polygons, or runs that fill their size."""
    if isinstance(segmentation, dict):
        height, width = (operator.index(side) for side in segmentation['size'])
        counts = segmentation['counts']
        counts = uncompressed(counts) if isinstance(counts, str) else counts
        lengths = np.array([operator.index(count) for count in counts], np.int64)
        # Checked here: of runs that are too few pycocotools makes pixels at random.
        if lengths.min(initial=0) < 0 or sum(lengths.tolist()) != height * width:
            raise ValueError(f'runs of {lengths.sum()} pixels for {height} times {width}')
        return Runs((height, width), lengths)
    polygons = [array.array('d', polygon) for polygon in segmentation]
    for polygon in polygons:
        if len(polygon) % 2:
            raise ValueError(f'a polygon of {len(polygon)} numbers')
        if not (np.abs(np.asarray(polygon)) <= _LARGEST).all():  # nor NaN
            raise ValueError('a coordinate that is no number of pixels')
    # pycocotools would take two corners for a box.
    return [polygon for polygon in polygons if len(polygon) >= _FEWEST]


def uncompressed(text: str) -> list[int]:
    """Read COCO's compressed runs: five bits in a character, lowest first, the sixth says go on.

    From the fourth on a length is written as its difference from the one two before it.

    Args:
        text: characters '0' to 'o'.

    Returns:
        The lengths.

    Raises:
        ValueError: it has other characters or ends in the middle.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord('0')
        if not 0 <= bits < 64:
            raise ValueError(f'{character!r} among compressed runs')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # below 0
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError('compressed runs that are cut short')
    return lengths


def _mask(shape: list[array.array] | Runs, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an instance, bool [H, W]."""
    if isinstance(shape, Runs):
        lengths = shape.lengths
    elif shape:
        mask = rasteriser()
        filled = mask.merge(mask.frPyObjects(shape, *size))
        lengths = uncompressed(filled['counts'].decode())  # its own decode warns with NumPy 2.4
    else:
        return np.zeros(size, bool)
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(size[::-1]).T
