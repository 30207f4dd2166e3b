"""A picture of labelled samples with their masks, to be looked at before training."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from data_prep import images
from data_prep.folder import reading
from data_prep.records import VOID

_COUNT, _ROW = 9, 3  # samples, and how many in a row
_TILE = (240, 180)  # width, height of an image
_LINE = 18  # pixels of a line of the legend


def draw(plan: reading.Plan, file: Path) -> None:
    """Draw nine labelled images, each beside itself under its mask, and the classes' colours.

    Args:
        plan: what was written.
        file: PNG to write.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    every = [(split, i) for split, named in plan.splits.items() if split != reading.UNLABELLED
             for i in range(len(named))]  # fmt: skip
    places = np.linspace(0, len(every) - 1, min(_COUNT, len(every))).astype(int)
    colours = palette(plan)
    wanted = {every[i] for i in places}
    tiles = []
    for split in plan.splits:
        indices = {i for other, i in wanted if other == split}
        tiles += [_tile(plan, split, i, colours) for i in sorted(indices)]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _ROW)
    rows = [np.concatenate(tiles[i : i + _ROW], 1) for i in range(0, len(tiles), _ROW)]
    grid = np.concatenate(rows)
    legend = _legend(plan.classes.names, colours, grid.shape[1])
    draft = file.with_name(f'{file.name}.part')
    try:
        draft.write_bytes(images.encode_png(np.concatenate([grid, legend])))
        draft.rename(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(f'{file}: {error.strerror or error}') from error


def palette(plan: reading.Plan) -> np.ndarray:
    """Return the classes' colours, uint8 [256, 3]: PASCAL VOC's, and black where that is void."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    colours[VOID] = 255
    return colours


def _tile(plan: reading.Plan, split: str, index: int, colours: np.ndarray) -> np.ndarray:
    """Return an image and, right of it, the same under its mask, framed."""
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
    tile[4 : 4 + size[1], 8 + _TILE[0] : 8 + _TILE[0] + size[0]] = over
    return tile


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
        pen.text((x + 20, y), name.encode('latin-1', 'replace').decode('latin-1'), fill='black')
    return np.asarray(canvas)
