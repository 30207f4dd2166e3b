"""Random intensity: twelve changes of an image's colours, in whole numbers as Pillow makes them.

Source: iMAS (arXiv 2211.11335) and its authors' program, which draws two of the twelve for each
image, with replacement. Images are uint8 and stay so. The arithmetic is that of Pillow 13. Values
differ by 1 where Pillow's double precision ends just below a whole number (autocontrast), or where
a device adds a product that it has not rounded first (contrast, brightness, color, sharpness); in
hue one in thousands differs by up to 7.

A level says how far an operation goes: [0, 0.999], of hue [-0.999, 0.999]. Inside, a batch is
[3, B, H, W], so that the pixels of a channel are neighbours; levels are [B], or one number.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

NAMES = (
    'identity',
    'autocontrast',
    'equalize',
    'invert',
    'blur',
    'contrast',
    'brightness',
    'color',
    'sharpness',
    'posterize',
    'solarize',
    'hue',
)

_WITHOUT_PARAMETER = NAMES[:4]
_VALUES = np.arange(256, dtype=np.int32)


def parameter(name: str, level: Array | float) -> Array | float:
    """Return what an operation makes of a level.

    Args:
        name: 'blur' (radius in pixels), 'contrast', 'brightness', 'color', 'sharpness' (factor of
            the distance to the mean, to black, to grey, to the smoothed image), 'posterize' (bits
            that are kept), 'solarize' (first value that is inverted) or 'hue' (255ths of a turn,
            of which the whole ones count).
        level: of any shape; numbers of Python and NumPy keep their precision.

    Returns:
        The parameter, in the shape of `level`.

    Raises:
        ValueError: there is no operation of this name, or it has no parameter.
    """
    match name:
        case 'blur':
            return 0.1 + 1.9 * level
        case 'contrast' | 'brightness' | 'color' | 'sharpness':
            return 0.95 - 0.85 * level
        case 'posterize':
            return 8 - jnp.maximum(_ceil(4 * level), 1)
        case 'solarize':
            return jnp.clip(256 - _ceil(255 * level), 1, 256)
        case 'hue':
            return 0.5 * level * 255
    raise ValueError(f'name is {name!r}; expected that of an operation with a parameter')


# The name of an operation and its level -> what the operation makes of it, see `parameter`.
Parameter = Callable[[str, Array], Array]


def strong(images: Array, ops: Array, levels: Array, parameter: Parameter = parameter) -> Array:
    """Return images after n operations each, one on what the other gives.

    A CPU takes one image after the other, and computes its operations alone. Elsewhere all images
    are changed together: operations on a value alone are one table an image, whichever it is; the
    four that need other pixels or channels are made of every image, and chosen from.

    Args:
        images: [B, H, W, 3] uint8.
        ops: [B, n] int32 places in `NAMES`.
        levels: [B, n] float32, or whatever `parameter` takes.
        parameter: what the operations that have a parameter make of a level.

    Returns:
        [B, H, W, 3] uint8.
    """
    if jax.default_backend() == 'cpu':
        return one_by_one(images, ops, levels, parameter)
    return together(images, ops, levels, parameter)


def one_by_one(images: Array, ops: Array, levels: Array, parameter: Parameter = parameter) -> Array:
    """Return what `strong` does, as a loop over the images that branches by their operations."""

    def one(given: tuple[Array, Array, Array]) -> Array:
        image, ops, levels = given
        planes = jnp.moveaxis(image, -1, 0)[:, None]
        for op, level in zip(ops, levels, strict=True):
            changes = [partial(_changed, name, parameter=parameter) for name in NAMES]
            planes = lax.switch(op, changes, planes, level)
        return jnp.moveaxis(planes[:, 0], 0, -1)

    return lax.map(one, (images, ops, levels))


def together(images: Array, ops: Array, levels: Array, parameter: Parameter = parameter) -> Array:
    """Return what `strong` does, without a branch."""
    planes = jnp.moveaxis(images, -1, 0)
    for i in range(ops.shape[1]):
        planes = _one_each(planes, ops[:, i], levels[:, i], parameter)
    return jnp.moveaxis(planes, 0, -1)


def chain(image: Array, ops: Array, levels: Array) -> Array:
    """Return the image [H, W, 3] uint8 after operations [n] int32 at levels [n], see `strong`."""
    return strong(image[None], ops[None], levels[None])[0]


def identity(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 itself."""
    return image


def autocontrast(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8, each channel stretched to 0 ... 255; it has no level."""
    return _alone('autocontrast', image, level)


def equalize(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8, each channel's histogram made even; it has no level."""
    return _alone('equalize', image, level)


def invert(image: Array, level: Array | float) -> Array:
    """Return the negative of the image [H, W, 3] uint8; it has no level."""
    return _alone('invert', image, level)


def blur(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 blurred by boxes, close to a Gaussian."""
    return _alone('blur', image, level)


def contrast(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 moved towards the mean of its luma."""
    return _alone('contrast', image, level)


def brightness(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 moved towards black."""
    return _alone('brightness', image, level)


def color(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 moved towards the luma of each pixel."""
    return _alone('color', image, level)


def sharpness(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 moved towards its smoothed self, the border unchanged."""
    return _alone('sharpness', image, level)


def posterize(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 with the high 4 to 7 bits of its values."""
    return _alone('posterize', image, level)


def solarize(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8, values from a threshold on inverted."""
    return _alone('solarize', image, level)


def hue(image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8, its hue turned; 8-bit HSV alone moves values by up to 7."""
    return _alone('hue', image, level)


def _alone(name: str, image: Array, level: Array | float) -> Array:
    """Return the image [H, W, 3] uint8 after one operation."""
    planes = jnp.moveaxis(image, -1, 0)[:, None]
    return jnp.moveaxis(_changed(name, planes, level)[:, 0], 0, -1)


def _changed(
    name: str, planes: Array, level: Array | float, parameter: Parameter = parameter
) -> Array:
    """Return planes [3, B, H, W] uint8 after one operation at one level."""
    value = _value(name, level, parameter)
    if name in _PIXELS:
        return _PIXELS[name](planes, value)
    if name == 'identity':
        return planes
    table = jnp.broadcast_to(_TABLES[name](planes, value), (*planes.shape[:2], 256))
    # Times one, exact in any precision: all but a product would be fused into the look-up, and the
    # table would be computed for every pixel.
    return _look_up(planes, table.astype(jnp.float32) @ jnp.eye(256))


def _one_each(planes: Array, op: Array, level: Array, parameter: Parameter) -> Array:
    """Return planes [3, B, H, W] uint8 after operation op [B] of each image at its level [B].

    An image that a table changes is left alone by what follows, and the other way round.
    """
    chosen = op[:, None] == np.arange(len(NAMES))  # [B, 12]
    values = {name: _value(name, level, parameter) for name in NAMES}
    tables = [_TABLES.get(name, _identity)(planes, values[name]) for name in NAMES]
    shape = *planes.shape[:2], 256
    tables = jnp.stack([jnp.broadcast_to(table, shape) for table in tables]).astype(jnp.float32)
    # A product, of numbers that any precision holds: a choice would be fused into the look-up, and
    # all tables would be computed for every pixel.
    table = jnp.einsum('bk,kcbv->cbv', chosen.astype(jnp.float32), tables)
    planes = lax.optimization_barrier(_look_up(planes, table))
    changed = planes
    for name, change in _PIXELS.items():
        this = chosen[:, NAMES.index(name), None, None]
        changed = jnp.where(this, change(planes, values[name]), changed)
    return lax.optimization_barrier(changed)


def _look_up(planes: Array, table: Array) -> Array:
    """Return the values of planes [3, B, H, W] uint8 by a table [3, B, 256], or fewer axes."""
    tables = jnp.broadcast_to(table, (*planes.shape[:2], 256)).astype(jnp.uint8)
    return tables.ravel().at[_flat(planes)].get(mode='promise_in_bounds')


def _flat(planes: Array) -> Array:
    """Return where the value of each pixel is in [3, B, 256] made flat."""
    first = 256 * jnp.arange(planes.shape[0] * planes.shape[1])
    return first.reshape(*planes.shape[:2], 1, 1) + planes


def _identity(planes: Array, _: None) -> Array:
    return _VALUES


def _autocontrast(planes: Array, _: None) -> Array:
    low, high = planes.min((2, 3)), planes.max((2, 3))
    low, high = (value[..., None].astype(jnp.int32) for value in (low, high))
    stretched = 255 * (_VALUES - low) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), _VALUES)


def _equalize(planes: Array, _: None) -> Array:
    counts = jnp.zeros(planes.shape[0] * planes.shape[1] * 256, jnp.int32)
    counts = counts.at[_flat(planes).ravel()].add(1).reshape(*planes.shape[:2], 256)
    below = jnp.cumsum(counts, axis=2) - counts
    # Pixels below the highest value that occurs; 0 where it is the only one.
    step = jnp.where(counts > 0, below, 0).max(2, keepdims=True) // 255
    even = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, even, _VALUES)


def _invert(planes: Array, _: None) -> Array:
    return 255 - _VALUES


def _contrast(planes: Array, factor: Array) -> Array:
    pixels = np.uint32(planes.shape[2] * planes.shape[3])
    total = _luma(planes).sum((1, 2), dtype=jnp.uint32)
    mean = ((2 * total + pixels) // (2 * pixels)).astype(jnp.int32)  # int(total / pixels + 0.5)
    return _blended(mean[:, None], _VALUES, factor[..., 0])


def _brightness(planes: Array, factor: Array) -> Array:
    return _blended(0, _VALUES, factor[..., 0])


def _posterize(planes: Array, bits: Array) -> Array:
    dropped = 8 - bits[..., 0].astype(jnp.int32)
    return _VALUES >> dropped << dropped


def _solarize(planes: Array, threshold: Array) -> Array:
    return jnp.where(threshold[..., 0] > _VALUES, _VALUES, 255 - _VALUES)


def _blur(planes: Array, radius: Array) -> Array:
    """Blur by three boxes along rows, then three along columns (Gwosdek et al., SSVM 2011).

    A box has half-width n + a, with a fraction a: its pixels weigh alike, but the two at its ends.
    Weights are fixed-point numbers of 24 bits, and their sum with any pixels is below 2^32.
    """
    variance = _divide(radius * radius, 3)
    wide = variance >= 2 / 3  # n = floor((sqrt(12 variance + 1) - 1) / 2): 1 or 0
    n = wide.astype(jnp.float32)
    half = n + (2 * n + 1) * (n * (n + 1) - 3 * variance) / (6 * (variance - (n + 1) ** 2))
    inner = (2**24 / (2 * half + 1)).astype(jnp.uint32)
    outer = (2**24 - jnp.where(wide, 3, 1).astype(jnp.uint32) * inner) // 2
    weights = inner, jnp.where(wide, inner, outer), jnp.where(wide, outer, 0)
    for axis in (3, 3, 3, 2, 2, 2):
        margin = [(0, 0)] * 4
        margin[axis] = (2, 2)
        # Made once: fused into the sum, what the pixels come from would be computed for every tap.
        padded = lax.optimization_barrier(jnp.pad(planes, margin, mode='edge'))
        taps = [
            lax.slice_in_dim(padded, i, i + planes.shape[axis], axis=axis).astype(jnp.uint32)
            for i in range(5)
        ]
        pairs = taps[2], taps[1] + taps[3], taps[0] + taps[4]
        total = sum(weight * pair for weight, pair in zip(weights, pairs, strict=True))
        planes = (total + 2**23 >> 24).astype(jnp.uint8)
    return lax.optimization_barrier(planes)  # likewise, in what follows


def _color(planes: Array, factor: Array) -> Array:
    return _blended(_luma(planes), planes, factor).astype(jnp.uint8)


def _sharpness(planes: Array, factor: Array) -> Array:
    wide = planes.astype(jnp.float32)  # sums are exact in it
    rows, inside = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:], wide[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inside
    smooth = jnp.round(total / 13)  # never half-way
    # From `inside`, not from the bytes: with all its readers alike a CPU makes `wide` once.
    sharp = _blended(smooth, inside, factor).astype(jnp.uint8)
    return lax.dynamic_update_slice(planes, sharp, (0, 0, 1, 1))


def _hue(planes: Array, angle: Array) -> Array:
    """Turn the hue in HSV of 8 bits each: H = int(255 hue), S = int(255 chroma / V)."""
    red, green, blue = planes.astype(jnp.float32)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    least = jnp.minimum(jnp.minimum(red, green), blue)
    chroma = value - least
    first, second = value == red, value == green
    corner = jnp.where(first, 0.0, jnp.where(second, 2.0, 4.0))
    after = jnp.where(first, green >= blue, jnp.where(second, blue >= red, red >= green))
    away = 1 - (2 * value + least - red - green - blue) / jnp.maximum(chroma, 1)
    sixths = jnp.where(chroma > 0, corner + jnp.where(after, away, -away), 0)
    turns = _divide(sixths, 6)
    turns = jnp.where(turns < 0, turns + 1, turns)
    shift = angle.astype(jnp.int32)  # towards 0
    turned = (jnp.floor(255 * turns).astype(jnp.int32) + shift & 255).astype(jnp.float32)
    saturation = jnp.floor(255 * (chroma / jnp.maximum(value, 1)))
    # Back, for all sextants at once: V - V S clip(min(k, 4 - k), 0, 1), k = (n + 6 H) mod 6.
    channels = []
    for n in (5, 3, 1):
        k = 6 * turned + 255 * n
        k = jnp.where(k >= 1530, k - 1530, k)
        share = jnp.clip(jnp.minimum(k, 1020 - k), 0, 255)
        channels.append(value - jnp.floor(value * saturation * share / 255**2 + 0.5))
    return jnp.stack(channels).astype(jnp.uint8)


def _luma(planes: Array) -> Array:
    """Return [B, H, W] int32 luma of planes [3, B, H, W]: ITU-R BT.601 in 16-bit fixed point."""
    red, green, blue = planes.astype(jnp.int32)
    return 19595 * red + 38470 * green + 7471 * blue + 32768 >> 16


def _blended(base: Array | int, values: Array, factor: Array) -> Array:
    """Return int(base + factor (values - base)), cut off at 0 and 255, int32."""
    difference = values.astype(jnp.int32) - base
    return jnp.clip(base + factor * difference, 0, 255).astype(jnp.int32)


def _value(name: str, level: Array | float, parameter: Parameter) -> Array | None:
    """Return the parameters of an operation as [B, 1, 1] float32, or None where it has none."""
    if name in _WITHOUT_PARAMETER:
        return None
    return jnp.asarray(parameter(name, level), jnp.float32).reshape(-1, 1, 1)


def _divide(x: Array, divisor: float) -> Array:
    """Return x / divisor as a division rounds it: by a constant XLA would multiply its inverse."""
    return x / jnp.where(jnp.isfinite(x), jnp.float32(divisor), 1)


def _ceil(x: Array | float) -> Array | float:
    return -(-x // 1)


_TABLES = {
    'autocontrast': _autocontrast,
    'equalize': _equalize,
    'invert': _invert,
    'contrast': _contrast,
    'brightness': _brightness,
    'posterize': _posterize,
    'solarize': _solarize,
}
_PIXELS = {'blur': _blur, 'color': _color, 'sharpness': _sharpness, 'hue': _hue}
