"""Draws the images of `shapes`: textured objects that hide one another, over clutter.

A class is a shape with a usual texture and palette. Hue, colourfulness, brightness, light, size,
stretch, rotation, period and phase vary from object to object, one in twenty borrows any class's
texture, and others hide parts of the shape: a few images do not cover a class, hundreds do.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.records import VOID

CLASS_NAMES = ('background', 'disc', 'square', 'triangle', 'star', 'ring', 'cross')

_SUPERSAMPLING = 4  # sub-pixels a side: a pixel's coverage by an object is known to 1/16
_REFERENCE_SIZE = 64  # pixels a side at which lengths below are given


class Style(NamedTuple):
    """What a dataset's classes look like.

    Attributes:
        class_names: the background first.
        shapes: class -> outlines of radius about 1, a hole where two overlap, and a factor that
            gives every class about the same area.
        surfaces: class -> its usual texture, hue in turns, saturation, dark and light value.
    """

    class_names: Sequence[str]
    shapes: Mapping[str, tuple[list[np.ndarray], float]]
    surfaces: Mapping[str, tuple[str, float, float, float, float]]


def draw(
    rng: np.random.Generator, size: int, style: Style | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image and its labels.

    Args:
        rng: source of everything that varies.
        size: height and width in pixels; what is drawn scales with it.
        style: of the classes; None: `SHAPES`.

    Returns:
        image: uint8 [size, size, 3], RGB.
        label: uint8 [size, size], index into the class names, or `VOID` on the pixels that an
            object's outline crosses: they show two things at once.
    """
    style = style or SHAPES
    unit = size / _REFERENCE_SIZE
    image = _background(rng, size, unit)
    label = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(3, 6)):
        image, label = _add_object(rng, image, label, unit, style)
    noise = rng.normal(0, rng.uniform(0.01, 0.04), image.shape)
    return np.rint(255 * np.clip(image + noise, 0, 1)).astype(np.uint8), label


def _background(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """Draw cloudy colours, a faint texture and small bits of what objects are made of."""
    grey = rng.uniform(0.2, 0.8, (4, 4, 1))
    clouds = (grey + rng.uniform(-0.15, 0.15, (4, 4, 3))).astype(np.float32)
    image = cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    x, y = _local_grid(size, rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi), 1.0)
    faint = _texture(rng, rng.choice(list(TEXTURES)), x, y, unit)
    image = image + rng.uniform(0.0, 0.15) * (faint[..., None] - 0.5)
    for _ in range(rng.integers(4, 9)):
        corners = rng.uniform(-1, 1, (rng.integers(3, 6), 2)) * rng.uniform(2, 5) * unit
        cover = _coverage([corners + rng.uniform(0, size, 2)], size)[..., None]
        image = image * (1 - cover) + rng.uniform(0, 1, 3) * cover
    return image


def _add_object(
    rng: np.random.Generator, image: np.ndarray, label: np.ndarray, unit: float, style: Style
) -> tuple[np.ndarray, np.ndarray]:
    """Lay one object of a random class over the image and its labels."""
    size = len(image)
    names = style.class_names
    kind = int(rng.integers(1, len(names)))
    outlines, relative_size = style.shapes[names[kind]]
    radius = rng.uniform(14, 21) * relative_size * unit
    centre, angle = rng.uniform(0.05, 0.95, 2) * size, rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.8, 1.0)

    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = radius * np.array([1.0, stretch])
    cover = _coverage([(line * scale) @ rotation + centre for line in outlines], size)

    texture, *palette = style.surfaces[names[kind]]
    if rng.random() >= 0.95:
        texture = style.surfaces[names[rng.integers(1, len(names))]][0]
    x, y = _local_grid(size, centre, angle, stretch)
    pattern = _texture(rng, texture, x, y, unit)[..., None]
    dark, light = _two_colours(rng, *palette)
    shade = 1 + rng.uniform(-0.3, 0.3) * x[..., None] / radius
    colour = (dark + (light - dark) * pattern) * shade

    image = image * (1 - cover[..., None]) + colour * cover[..., None]
    label = np.where(cover == 1, kind, np.where(cover == 0, label, VOID)).astype(np.uint8)
    return image, label


def _coverage(outlines: list[np.ndarray], size: int) -> np.ndarray:
    """Return each pixel's share inside the outlines (a hole where two overlap), [size, size]."""
    canvas = np.zeros((size * _SUPERSAMPLING,) * 2, np.uint8)
    corners = [np.rint(line * _SUPERSAMPLING).astype(np.int32) for line in outlines]
    cv2.fillPoly(canvas, corners, 1)
    # Rows, then columns, as whole numbers: a quarter of the time that a mean over both takes.
    rows = canvas.reshape(size, _SUPERSAMPLING, -1).sum(1, dtype=np.uint8)
    blocks = rows.reshape(size, size, _SUPERSAMPLING).sum(2, dtype=np.uint8)
    return blocks / _SUPERSAMPLING**2


def _local_grid(
    size: int, centre: np.ndarray, angle: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return every pixel centre's place in an object's own axes, in pixels, two [size, size]."""
    y, x = np.mgrid[:size, :size] + 0.5
    x, y = x - centre[0], y - centre[1]
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    return along, across / stretch


def _two_colours(
    rng: np.random.Generator, hue: float, saturation: float, dark: float, light: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a texture's dark and light colour, RGB in [0, 1], near the given hue and values."""
    hues = (hue + rng.normal(0, 0.06) + rng.normal(0, 0.03, 2)) % 1.0
    saturations = np.clip(saturation + rng.normal(0, 0.06, 2), 0, 1)
    values = np.clip(np.array([dark, light]) + rng.normal(0, 0.06, 2), 0, 1)
    hsv = np.stack([360 * hues, saturations, values], axis=-1).astype(np.float32)
    return tuple(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0])


def _texture(
    rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray, unit: float
) -> np.ndarray:
    """Return a texture's values in [0, 1] at the points (x, y), with random period and phase."""
    frequency = 2 * np.pi / (rng.uniform(7.0, 11.0) * unit)
    phase = rng.uniform(0, 2 * np.pi, 2)
    return TEXTURES[name](frequency * x + phase[0], frequency * y + phase[1])


def _sharpen(wave: np.ndarray) -> np.ndarray:
    """Turn a wave in [-1, 1] into [0, 1] with steep but not aliased steps."""
    return 0.5 + 0.5 * np.tanh(3 * wave)


def polygon(*radii: float, corners: int) -> np.ndarray:
    """Return a closed outline [corners, 2] whose radii repeat, one after the other, by angle."""
    angles = 2 * np.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=-1)


_ARM = 0.36  # half the width of a cross's arm
_QUARTER = np.array([(1.0, _ARM), (_ARM, _ARM), (_ARM, 1.0)])  # of its outline
_CROSS = np.concatenate(
    [_QUARTER @ np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
)

# Outlines of radius about 1, and a factor that gives every class about the same area.
_OUTLINES = {
    'disc': ([polygon(1.0, corners=48)], 1.0),
    'square': ([polygon(1.0, corners=4)], 1.2),
    'triangle': ([polygon(1.0, corners=3)], 1.35),
    'star': ([polygon(1.0, 0.45, corners=10)], 1.45),
    'ring': ([polygon(1.0, corners=48), polygon(0.5, corners=48)], 1.2),
    'cross': ([_CROSS], 1.2),
}

# Functions of a point's two phases, to [0, 1].
TEXTURES = {
    'plain': lambda u, v: 0.5 + 0.3 * np.sin(0.2 * u),
    'stripes': lambda u, v: _sharpen(np.sin(u)),
    'checks': lambda u, v: _sharpen(2 * np.sin(u) * np.sin(v)),
    'dots': lambda u, v: _sharpen(np.sin(u) + np.sin(v) - 0.7),
    'grid': lambda u, v: _sharpen(np.maximum(np.sin(u), np.sin(v)) - 0.6),
    'waves': lambda u, v: _sharpen(np.sin(u + 1.5 * np.sin(0.7 * v))),
}

# What a class usually looks like: texture, hue in turns, saturation, dark and light value.
_SURFACES = {
    'disc': ('stripes', 0.00, 0.70, 0.25, 0.75),
    'square': ('checks', 0.12, 0.50, 0.15, 0.95),
    'triangle': ('dots', 0.33, 0.85, 0.40, 0.90),
    'star': ('plain', 0.50, 0.35, 0.65, 0.95),
    'ring': ('waves', 0.65, 0.80, 0.05, 0.45),
    'cross': ('grid', 0.83, 0.60, 0.30, 0.75),
}

SHAPES = Style(CLASS_NAMES, _OUTLINES, _SURFACES)
