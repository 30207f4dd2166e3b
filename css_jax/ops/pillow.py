"""What Pillow's operations on colours compute, on planes [3, B, H, W] uint8, in whole numbers.

A function takes the planes and the operation's parameter of each image, [B, 1, 1] float32 (None of
those that have none). Those of `TABLES` give what becomes of each value, [3, B, 256] or fewer axes,
those of `PIXELS` the planes. `css_jax.ops.intensity` says how near they are to Pillow.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_VALUES = np.arange(256, dtype=np.int32)


def look_up(planes: Array, table: Array) -> Array:
    """Return the values of planes [3, B, H, W] uint8 by a table [3, B, 256], or fewer axes."""
    tables = jnp.broadcast_to(table, (*planes.shape[:2], 256)).astype(jnp.uint8)
    return tables.ravel().at[_flat(planes)].get(mode='promise_in_bounds')


def _flat(planes: Array) -> Array:
    """Return where the value of each pixel is in [3, B, 256] made flat."""
    first = 256 * jnp.arange(planes.shape[0] * planes.shape[1])
    return first.reshape(*planes.shape[:2], 1, 1) + planes


def identity(planes: Array, _: None) -> Array:
    """Leave every value as it is."""
    return _VALUES


def autocontrast(planes: Array, _: None) -> Array:
    """Stretch each channel to 0 ... 255."""
    low, high = planes.min((2, 3)), planes.max((2, 3))
    low, high = (value[..., None].astype(jnp.int32) for value in (low, high))
    stretched = 255 * (_VALUES - low) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), _VALUES)


def equalize(planes: Array, _: None) -> Array:
    """Make each channel's histogram even."""
    counts = jnp.zeros(planes.shape[0] * planes.shape[1] * 256, jnp.int32)
    counts = counts.at[_flat(planes).ravel()].add(1).reshape(*planes.shape[:2], 256)
    below = jnp.cumsum(counts, axis=2) - counts
    # Pixels below the highest value that occurs; 0 where it is the only one.
    step = jnp.where(counts > 0, below, 0).max(2, keepdims=True) // 255
    even = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, even, _VALUES)


def invert(planes: Array, _: None) -> Array:
    """Give the negative."""
    return 255 - _VALUES


def contrast(planes: Array, factor: Array) -> Array:
    """Move values towards the mean luma, by a factor."""
    pixels = np.uint32(planes.shape[2] * planes.shape[3])
    total = _luma(planes).sum((1, 2), dtype=jnp.uint32)
    mean = ((2 * total + pixels) // (2 * pixels)).astype(jnp.int32)  # int(total / pixels + 0.5)
    return _blended(mean[:, None], _VALUES, factor[..., 0])


def brightness(planes: Array, factor: Array) -> Array:
    """Move values towards 0, by a factor."""
    return _blended(0, _VALUES, factor[..., 0])


def posterize(planes: Array, bits: Array) -> Array:
    """Keep the high bits."""
    dropped = 8 - bits[..., 0].astype(jnp.int32)
    return _VALUES >> dropped << dropped


def solarize(planes: Array, threshold: Array) -> Array:
    """Invert values from a threshold on."""
    return jnp.where(threshold[..., 0] > _VALUES, _VALUES, 255 - _VALUES)


def blur(planes: Array, radius: Array) -> Array:
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


def color(planes: Array, factor: Array) -> Array:
    """Move pixels towards their luma, by a factor."""
    return _blended(_luma(planes), planes, factor).astype(jnp.uint8)


def sharpness(planes: Array, factor: Array) -> Array:
    """Move pixels towards their smoothed selves, by a factor; the border stays."""
    wide = planes.astype(jnp.float32)  # sums are exact in it
    rows, inside = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:], wide[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inside
    smooth = jnp.round(total / 13)  # never half-way
    # From `inside`, not from the bytes: with all its readers alike a CPU makes `wide` once.
    sharp = _blended(smooth, inside, factor).astype(jnp.uint8)
    return lax.dynamic_update_slice(planes, sharp, (0, 0, 1, 1))


def hue(planes: Array, angle: Array) -> Array:
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


def _divide(x: Array, divisor: float) -> Array:
    """Return x / divisor as a division rounds it: by a constant XLA would multiply its inverse."""
    return x / jnp.where(jnp.isfinite(x), jnp.float32(divisor), 1)


TABLES = {
    'autocontrast': autocontrast,
    'equalize': equalize,
    'invert': invert,
    'contrast': contrast,
    'brightness': brightness,
    'posterize': posterize,
    'solarize': solarize,
}
PIXELS = {'blur': blur, 'color': color, 'sharpness': sharpness, 'hue': hue}
