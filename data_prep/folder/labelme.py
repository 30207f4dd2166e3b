"""LabelMe's JSON files: shapes drawn on an image, each with the name of its class."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_prep.folder import classes
from data_prep.folder.classes import Table
from data_prep.records import VOID

_BACKGROUND = ('background', '_background_')  # names of what is under no shape


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
        ValueError: a label or a kind of shape is not known, or the image had another size when
            they were drawn; names the file.
    """
    values = dict.fromkeys(classes.VOID_NAMES, VOID) | dict(
        zip(table.names, table.values, strict=True)
    )
    for name in _BACKGROUND:
        values.setdefault(name, values.get(_BACKGROUND[0], values.get(_BACKGROUND[1])))
    if values[_BACKGROUND[0]] is None:
        raise ValueError(
            f'{file}: the table of classes has no background, which is what lies under no polygon; '
            'expected a line `background`'
        )
    shapes, drawn = _shapes(file)
    if drawn not in (None, size):
        raise ValueError(
            f'{file}: drawn on an image of width x height {drawn[1]}x{drawn[0]}, came '
            f'{size[1]}x{size[0]}; expected the image that was labelled'
        )
    image = Image.new('I', size[::-1], values[_BACKGROUND[0]])
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        label, kind = shape['label'], shape.get('shape_type') or 'polygon'
        if label not in values:
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
    return np.asarray(image, np.int32)


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
