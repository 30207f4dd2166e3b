"""CoSA's strong view: one of nine operations on colours, at a whole magnitude from 1 to 9.

Source: the authors' program (arXiv 2402.17891). The operations are those of `ops.intensity`, with
other parameters: contrast, brightness, colour and sharpness may also become more than they are.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from css_jax.ops import intensity

NAMES = (
    'identity',
    'autocontrast',
    'equalize',
    'solarize',
    'color',
    'contrast',
    'brightness',
    'sharpness',
    'posterize',
)
MAGNITUDES = 9

_PLACES = np.array([intensity.NAMES.index(name) for name in NAMES], np.int32)

_M = np.arange(MAGNITUDES + 1)  # float64, rounded once: products of the factors are Pillow's
_FACTORS = (0.1 + 0.18 * _M).astype(np.float32)
_PARAMETERS = {
    'solarize': np.minimum(256 * _M // 10, 255),
    'posterize': 4 - 4 * _M // 10,
    **dict.fromkeys(('color', 'contrast', 'brightness', 'sharpness'), _FACTORS),
}


def parameter(name: str, magnitude: Array | int) -> Array:
    """Return what an operation makes of a magnitude.

    At magnitude m solarize inverts values from min(int(25.6 m), 255) on, posterize keeps
    4 - int(0.4 m) bits, and color, contrast, brightness and sharpness have factor 0.1 + 0.18 m.

    Args:
        name: of an operation of `ops.intensity`; of those that are not in `NAMES` it is 0.
        magnitude: m, integers 1 to 9 of any shape.

    Returns:
        float32 of the shape of `magnitude`.
    """
    values = _PARAMETERS.get(name, np.zeros(MAGNITUDES + 1))
    return jnp.asarray(values, jnp.float32)[magnitude]


def strong(images: Array, ops: Array, magnitudes: Array) -> Array:
    """Return images after one operation each.

    Args:
        images: [B, H, W, 3] uint8.
        ops: [B] int32 places in `NAMES`.
        magnitudes: [B] int32, 1 to 9.

    Returns:
        [B, H, W, 3] uint8.
    """
    places = jnp.asarray(_PLACES)[ops]
    return intensity.strong(images, places[:, None], magnitudes[:, None], parameter)


def operation(name: str, images: Array, magnitude: int) -> Array:
    """Return images after the same operation.

    Args:
        name: one of `NAMES`.
        images: [B, H, W, 3] uint8.
        magnitude: m, 1 to 9.

    Returns:
        [B, H, W, 3] uint8.

    Raises:
        ValueError: there is no operation of this name, or no such magnitude.
    """
    if name not in NAMES:
        raise ValueError(f'name is {name!r}; expected one of {", ".join(NAMES)}')
    if not 1 <= magnitude <= MAGNITUDES:
        raise ValueError(f'magnitude is {magnitude}; expected 1 to {MAGNITUDES}')
    ops = jnp.full(len(images), NAMES.index(name), jnp.int32)
    return strong(images, ops, jnp.full(len(images), magnitude, jnp.int32))
