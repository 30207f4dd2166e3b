"""A picture of labelled samples with their masks or tags, to be looked at before training."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from data_prep import images
from data_prep.folder import classes, reading
from data_prep.palette import default
from data_prep.records import VOID

_COUNT, _ROW = 9, 3  # samples, and how many in a row
_TILE = (240, 180)  # width, height of an image
_LINE = 18  # pixels of a line of the legend


def draw(plan: reading.Plan, file: Path) -> None:
    """Draw nine labelled images, each beside itself under its mask, and the classes' colours.

    Beside a tagged image are its classes' names; where there are masks, too, three are tagged.

    Args:
        plan: what was written.
        file: PNG to write.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    tagged = [reading.TAGGED] if plan.splits.get(reading.TAGGED) else []
    masked = [split for split in plan.splits if split not in (reading.TAGGED, reading.UNLABELLED)]
    wanted = {
        *_spread(plan, masked, _COUNT - _ROW * len(tagged)),
        *_spread(plan, tagged, _ROW),
    }
    colours = palette(plan)
    tiles = []
    for split in plan.splits:
        indices = {i for other, i in wanted if other == split}
        tiles += [_tile(plan, split, i, colours) for i in sorted(indices)]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _ROW)
    rows = [np.concatenate(tiles[i : i + _ROW], 1) for i in range(0, len(tiles), _ROW)]
    grid = np.concatenate(rows)
    if plan.found.masks:
        grid = np.concatenate([grid, _legend(plan.classes.names, colours, grid.shape[1])])
    draft = file.with_name(f'{file.name}.part')
    try:
        draft.write_bytes(images.encode_png(grid))
        draft.rename(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(f'{file}: {error.strerror or error}') from error


def _spread(plan: reading.Plan, splits: Sequence[str], most: int) -> list[tuple[str, int]]:
    """Return split and place of images from everywhere in these splits."""
    every = [(split, i) for split in splits for i in range(len(plan.splits[split]))]
    places = np.linspace(0, len(every) - 1, min(most, len(every))).astype(int)
    return [every[i] for i in places]


def palette(plan: reading.Plan) -> np.ndarray:
    """Return the colours of class ids, uint8 [256, 3]: the table's, else VOC's; void is white."""
    colours = default(256)
    if own := classes.colours(plan.found.table, plan.classes):
        colours[: len(own)] = own
    colours[VOID] = 255
    return colours


def _tile(plan: reading.Plan, split: str, index: int, colours: np.ndarray) -> np.ndarray:
    """Return an image and, right of it, the same under its mask or its tags, framed."""
    name, seen = list(plan.splits[split].items())[index]
    one = plan._replace(splits={split: {name: seen}})
    _, data, label = next(reading.items(one, split))
    image = images.decode(name, data).pixels
    factor = min(_TILE[0] / image.shape[1], _TILE[1] / image.shape[0])
    size = tuple(max(1, int(side * factor)) for side in (image.shape[1], image.shape[0]))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    mixed = cv2.addWeighted(image, 0.4, colours[label], 0.6, 0)
    over = np.where((label == 0)[..., None], image, mixed)
    tile = np.full((_TILE[1] + 8, 2 * _TILE[0] + 12, 3), 255, np.uint8)
    tile[4 : 4 + size[1], 4 : 4 + size[0]] = image
    if seen.tags:
        shown = [name for name, yes in zip(plan.classes.names, seen.tags, strict=True) if yes]
        tile[4:-4, 8 + _TILE[0] : -4] = _text(shown)
    else:
        tile[4 : 4 + size[1], 8 + _TILE[0] : 8 + _TILE[0] + size[0]] = over
    return tile


def _text(names: Sequence[str]) -> np.ndarray:
    """Return an image's tags, a line each, the background last."""
    canvas = Image.new('RGB', _TILE, 'white')
    pen = ImageDraw.Draw(canvas)
    for row, name in enumerate([*names[1:], names[0]]):
        fill = 'grey' if name == names[0] else 'black'
        pen.text((6, 4 + row * _LINE), _drawable(name), fill=fill)
    return np.asarray(canvas)


def _legend(names: tuple[str, ...], colours: np.ndarray, width: int) -> np.ndarray:
    """Return lines of the classes' colours and names, the void's last."""
    entries = [*enumerate(names), (VOID, '(void)')]
    columns = max(1, width // 220)
    lines = -(-len(entries) // columns)
    canvas = Image.new('RGB', (width, lines * _LINE + 8), 'white')
    pen = ImageDraw.Draw(canvas)
    for place, (index, name) in enumerate(entries):
        row, column = divmod(place, columns)
        x, y = 6 + column * 220, 4 + row * _LINE
        pen.rectangle((x, y, x + 14, y + 12), fill=tuple(map(int, colours[index])), outline='black')
        pen.text((x + 20, y), _drawable(name), fill='black')
    return np.asarray(canvas)


def _drawable(name: str) -> str:
    return name.encode('latin-1', 'replace').decode('latin-1')
