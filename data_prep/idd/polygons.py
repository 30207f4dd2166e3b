"""Annotations of IDD: polygons with the name of a label, drawn one over another."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep import records

_FEWEST = 3  # corners of a polygon
_LARGEST = 1 << 20  # coordinate, either way


class Annotation(NamedTuple):
    """A file of polygons that has been read and found to be one.

    Attributes:
        size: height and width of its image.
        polygons: (class id or void, corners (x, y)), in the file's order; what is not drawn is not
            among them.
    """

    size: tuple[int, int]
    polygons: list[tuple[int, list[tuple[float, float]]]]


def parse(data: bytes, name: str, ids: Mapping[str, int]) -> Annotation:
    """Read an annotation.

    Deleted objects and polygons of fewer than three corners are left out. A label that is not
    known and ends in 'group' is the label without it.

    Args:
        data: JSON with `imgWidth`, `imgHeight` and `objects`, each with `label`, `polygon` and
            perhaps `deleted`.
        name: of the file, for messages.
        ids: name of a label -> class id or void.

    Returns:
        The annotation.

    Raises:
        ValueError: it is none, or a label is not known; names the file.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{name} is no readable annotation: {error}') from error
    try:
        size = _whole(content['imgHeight']), _whole(content['imgWidth'])
        polygons = list(_polygons(content['objects']))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f'{name} is no readable annotation: expected imgHeight, imgWidth and objects, each '
            f'with label and polygon [[x, y], ...]; came {error!r}'
        ) from error
    return Annotation(size, [(_id(label, name, ids), corners) for label, corners in polygons])


def draw(annotation: Annotation) -> np.ndarray:
    """Draw polygons in their order as Pillow fills them; pixels of none are void.

    Args:
        annotation: see `parse`.

    Returns:
        uint8 [H, W].
    """
    image = Image.new('L', annotation.size[::-1], records.VOID)
    canvas = ImageDraw.Draw(image)
    for class_id, corners in annotation.polygons:
        canvas.polygon(corners, fill=class_id)
    return np.array(image)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value < _LARGEST:
        raise ValueError(f'{value!r} as a size')
    return value


def _polygons(objects: list[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield label and corners of the objects that are drawn."""
    for each in objects:
        if each.get('deleted') or len(each['polygon']) < _FEWEST:
            continue
        label, polygon = each['label'], each['polygon']
        if not isinstance(label, str):
            raise TypeError(f'{label!r} as a label')
        corners = [(x, y) for x, y in polygon]
        for value in (value for corner in corners for value in corner):
            if not math.isfinite(value) or abs(value) > _LARGEST:
                raise ValueError(f'{value!r} as a coordinate')
        yield label, corners


def _id(label: str, name: str, ids: Mapping[str, int]) -> int:
    single = label if label in ids else label.removesuffix('group')
    if single not in ids:
        raise ValueError(
            f'{name}: label {label!r} is not known; expected one of {", ".join(ids)}, or one of '
            "them with 'group' at its end"
        )
    return ids[single]
