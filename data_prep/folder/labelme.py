"""LabelMe's JSON files: shapes drawn on an image, each with the name of its class.

They are read, and written for label maps that are to be corrected in a labelling tool.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from data_prep.folder import classes
from data_prep.folder.classes import Table
from data_prep.records import VOID

_BACKGROUND = ('background', '_background_')  # names of what is under no shape
_IGNORE = '__ignore__'  # of `classes.VOID_NAMES` the one that LabelMe has
_VERSION = '5.5.0'  # of LabelMe's, whose form of files this is
_NOTHING = -1  # where no shape is drawn and there is no background


def has_shapes(file: Path) -> bool:
    """Return whether a JSON file is one of LabelMe's, or cannot be read.

    What cannot be read is named later, with all that is wrong.
    """
    try:
        return 'shapes' in json.loads(file.read_bytes())
    except (ValueError, TypeError, RecursionError):
        return True


def table(files: Iterable[Path]) -> Table:
    """Return the table of LabelMe's files: background, then all labels in the alphabet's order.

    What cannot be read counts for nothing here.
    """
    found = set()
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found |= {shape['label'] for shape in _shapes(file)[0]}
    names = ['background', *sorted(found - {'background', '_background_', *classes.VOID_NAMES})]
    names += sorted(found & set(classes.VOID_NAMES))
    return classes.checked(Path("LabelMe's labels"), names, range(len(names)), [])


def draw(file: Path, size: tuple[int, int], table: Table) -> np.ndarray:
    """Draw LabelMe's shapes in their order, as LabelMe does; what is under none is background.

    Args:
        file: JSON.
        size: height and width.
        table: has the labels.

    Returns:
        int32 [H, W] of the table's values.

    Raises:
        ValueError: a label or a kind of shape is not known, the image had another size when they
            were drawn, or there is no background and shapes leave some of the image out; names the
            file.
    """
    values = dict.fromkeys(classes.VOID_NAMES, VOID) | dict(
        zip(table.names, table.values, strict=True)
    )
    for name in _BACKGROUND:
        values.setdefault(name, values.get(_BACKGROUND[0], values.get(_BACKGROUND[1])))
    background = values[_BACKGROUND[0]]
    fill_all = _NOTHING if background is None else background
    shapes, drawn = _shapes(file)
    if drawn not in (None, size):
        raise ValueError(
            f'{file}: drawn on an image of width x height {drawn[1]}x{drawn[0]}, came '
            f'{size[1]}x{size[0]}; expected the image that was labelled'
        )
    image = Image.new('I', size[::-1], fill_all)
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        label, kind = shape['label'], shape.get('shape_type') or 'polygon'
        if values.get(label) is None:
            raise ValueError(f'{file}: label {label!r}; expected one of {", ".join(table.names)}')
        points, fill = [tuple(map(float, point)) for point in shape['points']], values[label]
        if kind == 'polygon' and len(points) >= 3:
            pen.polygon(points, outline=fill, fill=fill)
        elif kind == 'rectangle' and len(points) == 2:
            (x0, x1), (y0, y1) = (sorted(axis) for axis in zip(*points, strict=True))
            pen.rectangle((x0, y0, x1, y1), outline=fill, fill=fill)
        elif kind == 'circle' and len(points) == 2:
            (x, y), edge = points
            radius = float(np.hypot(edge[0] - x, edge[1] - y))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=fill, fill=fill)
        else:
            raise ValueError(
                f'{file}: a {kind} of {len(points)} points; expected polygons, rectangles, circles'
            )
    label_map = np.asarray(image, np.int32)
    if (label_map == _NOTHING).any():
        raise ValueError(
            f'{file}: the table of classes has no background, which is what lies under no polygon; '
            'expected a line `background`, or polygons of the whole image'
        )
    return label_map


def document(
    labels: np.ndarray, names: Sequence[str], image: str, ignore: int = VOID
) -> dict[str, Any]:
    """Return the content of a file of LabelMe's of which `draw` makes the same label map.

    A polygon goes round each connected piece, the larger ones first, so that what lies in a hole is
    drawn over what surrounds it. Background has a polygon only where it lies in another one.

    Args:
        labels: int [H, W], places in `names`, or `ignore`.
        names: of the classes.
        image: name of the image's file beside.
        ignore: the label of pixels that are void.
    """
    background = next((i for i, name in enumerate(names) if name in _BACKGROUND), _NOTHING)
    canvas = np.full(labels.shape, background, np.int32)
    shapes = []
    for piece in sorted(_pieces(labels), key=lambda piece: -piece.filled.sum()):
        top, left = piece.corner
        height, width = piece.own.shape
        there = canvas[top : top + height, left : left + width]
        if (there[piece.own] == piece.label).all():
            continue
        there[piece.filled] = piece.label
        points = piece.outline + np.array([left, top])
        shapes.append(
            {
                'label': _IGNORE if piece.label == ignore else names[piece.label],
                'points': np.resize(points, (max(3, len(points)), 2)).tolist(),
                'group_id': None,
                'description': '',
                'shape_type': 'polygon',
                'flags': {},
            }
        )
    height, width = labels.shape
    return {
        'version': _VERSION,
        'flags': {},
        'shapes': shapes,
        'imagePath': image,
        'imageData': None,
        'imageHeight': height,
        'imageWidth': width,
    }


def without_small(labels: np.ndarray, least: int, ignore: int = VOID) -> np.ndarray:
    """Return labels [H, W] in which pieces of a class of fewer than `least` pixels are void."""
    cleaned = labels.copy()
    for label in np.setdiff1d(labels, ignore):
        _, piece, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4
        )
        small = stats[:, cv2.CC_STAT_AREA] < least
        small[0] = False  # all other labels
        cleaned[small[piece]] = ignore
    return cleaned


class _Piece(NamedTuple):
    """A connected piece of a label map.

    Attributes:
        label: of its pixels.
        corner: top and left of its box.
        own: bool [h, w], its pixels in that box.
        filled: likewise, with those of its holes.
        outline: int [N, 2], x and y in that box: the corners of its polygon.
    """

    label: int
    corner: tuple[int, int]
    own: np.ndarray
    filled: np.ndarray
    outline: np.ndarray


def _pieces(labels: np.ndarray) -> list[_Piece]:
    """Return the pieces of a label map that are connected by sides.

    What touches at a corner alone is apart. So of two pieces one lies in a hole of the other, or
    neither is inside the other's outline.
    """
    found = []
    for label in np.unique(labels):
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4
        )
        for number, (left, top, width, height, _) in enumerate(stats[1:].tolist(), start=1):
            own = pieces[top : top + height, left : left + width] == number
            (outline,), _ = cv2.findContours(
                own.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            filled = cv2.drawContours(np.zeros(own.shape, np.uint8), [outline], -1, 1, cv2.FILLED)
            found.append(_Piece(int(label), (top, left), own, filled > 0, outline[:, 0]))
    return found


def _shapes(file: Path) -> tuple[list[dict], tuple[int, int] | None]:
    """Return the shapes of one of LabelMe's files, checked, and its image's height and width."""
    try:
        content = json.loads(file.read_bytes())
        shapes, size = content['shapes'], (content.get('imageHeight'), content.get('imageWidth'))
        good = all(isinstance(s['label'], str) and _are_points(s['points']) for s in shapes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is none of LabelMe's files: {error!r}") from None
    if not good:
        raise ValueError(f"{file} is none of LabelMe's files: a shape without label or points")
    return shapes, None if None in size else size


def _are_points(points: object) -> bool:
    """Tell whether this is a list of pairs of numbers that can be drawn."""
    return isinstance(points, list) and all(
        len(point) == 2 and all(abs(float(number)) < 1e6 for number in point) for point in points
    )
