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

from css_jax.ops import pillow

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
    if name in pillow.PIXELS:
        return pillow.PIXELS[name](planes, value)
    if name == 'identity':
        return planes
    table = jnp.broadcast_to(pillow.TABLES[name](planes, value), (*planes.shape[:2], 256))
    # Times one, exact in any precision: all but a product would be fused into the look-up, and the
    # table would be computed for every pixel.
    return pillow.look_up(planes, table.astype(jnp.float32) @ jnp.eye(256))


def _one_each(planes: Array, op: Array, level: Array, parameter: Parameter) -> Array:
    """Return planes [3, B, H, W] uint8 after operation op [B] of each image at its level [B].

    An image that a table changes is left alone by what follows, and the other way round.
    """
    chosen = op[:, None] == np.arange(len(NAMES))  # [B, 12]
    values = {name: _value(name, level, parameter) for name in NAMES}
    tables = [pillow.TABLES.get(name, pillow.identity)(planes, values[name]) for name in NAMES]
    shape = *planes.shape[:2], 256
    tables = jnp.stack([jnp.broadcast_to(table, shape) for table in tables]).astype(jnp.float32)
    # A product, of numbers that any precision holds: a choice would be fused into the look-up, and
    # all tables would be computed for every pixel.
    table = jnp.einsum('bk,kcbv->cbv', chosen.astype(jnp.float32), tables)
    planes = lax.optimization_barrier(pillow.look_up(planes, table))
    changed = planes
    for name, change in pillow.PIXELS.items():
        this = chosen[:, NAMES.index(name), None, None]
        changed = jnp.where(this, change(planes, values[name]), changed)
    return lax.optimization_barrier(changed)


def _value(name: str, level: Array | float, parameter: Parameter) -> Array | None:
    """Return the parameters of an operation as [B, 1, 1] float32, or None where it has none."""
    if name in _WITHOUT_PARAMETER:
        return None
    return jnp.asarray(parameter(name, level), jnp.float32).reshape(-1, 1, 1)


def _ceil(x: Array | float) -> Array | float:
    return -(-x // 1)
