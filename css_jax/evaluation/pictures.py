"""Pictures of images, label maps and indicators, as PNG files."""

import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from css_jax.run import files
from data_prep.palette import default

_HEADING = 18  # pixels above each column
_GAP = 3
_SAMPLE = 256  # pixels of the longer side of a sample of a training log, at most


def palette(colours: np.ndarray, num_classes: int) -> np.ndarray:
    """Return colours for all classes of a network, which may have more than a dataset.

    Args:
        colours: of the dataset's classes, uint8 [C, 3], see `css_jax.data.sources.palette`.
        num_classes: of the network.

    Returns:
        uint8 [num_classes, 3] RGB; those of further classes are PASCAL VOC's.
    """
    return np.concatenate([colours, default(num_classes)[len(colours) :]])


def colourise(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colour labels as an image.

    Args:
        labels: int [..., H, W]; what is no class, as ignore and void, becomes white.
        colours: uint8 [C, 3] RGB, of the classes.

    Returns:
        uint8 RGB [..., H, W, 3].
    """
    white = len(colours)
    known = (labels >= 0) & (labels < white)
    colours = np.concatenate([colours, np.full((1, 3), 255, np.uint8)])
    return colours[np.where(known, labels, white)]


def grey(indicator: np.ndarray) -> np.ndarray:
    """Show an indicator [..., H, W] in [0, 1] as uint8 RGB [..., H, W, 3]."""
    levels = np.clip(np.asarray(indicator, np.float32) * 255, 0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeat the cells of a coarse map [B, h, w] up to [B, H, W], about evenly."""
    rows, columns = (
        np.arange(side) * cells // side for side, cells in zip(size, labels.shape[1:3], strict=True)
    )
    return labels[:, rows[:, None], columns]


def denormalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Turn standardised images [..., 3] back to uint8 RGB."""
    rgb = np.asarray(images) * np.asarray(std) + np.asarray(mean)
    return np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8)


def aligned(images: Sequence[np.ndarray], size: Sequence[int] | None = None) -> np.ndarray:
    """Stack images of several sizes, white right of and below the smaller ones.

    Args:
        images: uint8 RGB [h, w, 3] each.
        size: H, W; None: the largest height and width.

    Returns:
        uint8 [B, H, W, 3].
    """
    height, width = size or np.max([image.shape[:2] for image in images], axis=0)
    stacked = np.full((len(images), height, width, 3), 255, np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return stacked


def shrink(image: np.ndarray, side: int, labels: bool = False) -> np.ndarray:
    """Return an image whose longer side has at most `side` pixels; a smaller one as it is.

    Args:
        image: [H, W] or [H, W, 3].
        side: in pixels.
        labels: values are classes, which have no mean.
    """
    factor = side / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    how = cv2.INTER_NEAREST if labels else cv2.INTER_AREA
    return cv2.resize(image, (width, height), interpolation=how)


def samples(found: Sequence[Sequence[np.ndarray]], colours: np.ndarray) -> np.ndarray:
    """Return a picture of samples: image, truth and prediction, a row each; uint8 RGB.

    Args:
        found: for each sample its image uint8 [H, W, 3], and true and predicted classes [H, W].
        colours: uint8 [C, 3] RGB, of the classes.
    """
    rows = [
        (
            shrink(image, _SAMPLE),
            *(colourise(shrink(x, _SAMPLE, labels=True), colours) for x in (truth, predicted)),
        )
        for image, truth, predicted in found
    ]
    titles = ('image', 'truth', 'prediction')
    columns = zip(titles, zip(*rows, strict=True), strict=True)
    return grid({title: aligned(column) for title, column in columns})


def write(path: str | pathlib.Path, image: np.ndarray) -> None:
    """Write uint8 RGB [H, W, 3] as a PNG, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    files.write(path, cv2.imencode('.png', image[..., ::-1])[1].tobytes())


def write_grid(
    path: str | pathlib.Path, columns: Mapping[str, np.ndarray], cell: int = 128
) -> None:
    """Write a `grid` as a PNG.

    Args:
        path: of the file.
        columns: see `grid`.
        cell: see `grid`.
    """
    write(path, grid(columns, cell))


def grid(columns: Mapping[str, np.ndarray], cell: int = 128) -> np.ndarray:
    """Return a picture with a headed column for each batch and a row for each example.

    Args:
        columns: heading -> [B, H, W, 3] uint8 RGB; columns may differ in all of B, H, W.
        cell: height of a row in pixels, about; images are enlarged by a whole number.

    Returns:
        uint8 RGB.
    """
    sizes = np.array([images.shape[:3] for images in columns.values()])
    scale = max(1, round(cell / sizes[:, 1].max()))
    rows = sizes[:, 0].max()
    height, width = (int(side) * scale + _GAP for side in sizes[:, 1:].max(0))
    picture = np.full((_HEADING + height * rows, width * len(columns), 3), 255, np.uint8)
    for j, (heading, images) in enumerate(columns.items()):
        size = min(0.4, 0.4 * (width - 4) / cv2.getTextSize(heading, 0, 0.4, 1)[0][0])
        cv2.putText(picture, heading, (j * width + 2, 13), 0, size, (0, 0, 0), 1, cv2.LINE_AA)
        for i, image in enumerate(images):
            big = image.repeat(scale, axis=0).repeat(scale, axis=1)
            y, x = _HEADING + i * height, j * width
            picture[y : y + big.shape[0], x : x + big.shape[1]] = big
    return picture


def write_points(
    path: str | pathlib.Path,
    places: np.ndarray,
    names: Sequence[str],
    groups: np.ndarray,
    titles: Sequence[str],
    side: int = 900,
) -> None:
    """Write a PNG of named points in the plane, a colour for each group.

    Args:
        path: of the file.
        places: [N, 2] float.
        names: of the points, [N].
        groups: [N] int, places in `titles`.
        titles: of the groups.
        side: of the picture in pixels.
    """
    grid = np.full((side, side, 3), 255, np.uint8)
    low, high = places.min(0), places.max(0)
    # One scale for both axes, so that distances are true.
    scale = 0.8 * side / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    colours = [tuple(map(int, colour)) for colour in default(len(titles) + 1)[1:]]
    for place, name, group in zip(places, names, groups, strict=True):
        x, y = (scale * (place - middle) + side / 2).astype(int).tolist()
        cv2.circle(grid, (x, side - y), 5, colours[group], -1, cv2.LINE_AA)
        corner = x + 8, side - y + 4
        cv2.putText(grid, name, corner, 0, 0.45, colours[group], 1, cv2.LINE_AA)
    for i, title in enumerate(titles):
        corner = 10, 24 + 22 * i
        cv2.putText(grid, title, corner, 0, 0.6, colours[i], 2, cv2.LINE_AA)
    if not cv2.imwrite(str(path), grid[..., ::-1]):
        raise OSError(f'could not write {path}')
