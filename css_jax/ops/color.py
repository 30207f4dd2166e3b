"""Colour jitter, grey and blur on the device, for images [B, H, W, 3] in [0, 1]."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from css_jax.ops import draws

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_GREY = (0.299, 0.587, 0.114)  # luma of RGB, ITU-R BT.601


def color(
    keys: jax.Array,
    images: jax.Array,
    *,
    jitter_prob: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> jax.Array:
    """Jitter brightness, contrast, saturation and hue in a random order (torchvision's law).

    The first three move a pixel away from (factor > 1) or towards (factor < 1) black, the image's
    mean grey and the pixel's own grey; the last shifts the hue in HSV. Values are clipped to
    [0, 1] after each.

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, 3] float32 in [0, 1].
        jitter_prob: probability that an example is jittered at all.
        brightness: the factor is uniform in [1 - brightness, 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: the shift is uniform in [-hue, hue], in turns.

    Returns:
        The images, in the shape they came in.
    """
    drawn = draws.uniform(keys, 'color', 9)
    jittered = drawn[:, 0, None, None, None] < jitter_prob
    order = jnp.argsort(drawn[:, 1:5], axis=1)  # a uniform permutation of the four
    spread = jnp.array([brightness, contrast, saturation, hue])
    amount = spread * draws.between(drawn[:, 5:], (-1, 1))  # factor - 1, or the hue's shift
    amount = jnp.take_along_axis(amount, order, axis=1)
    rgb = jnp.moveaxis(images, -1, 0)  # [3, B, H, W]
    # An example is at one of the four changes at each place. Three of them are one blend with
    # different targets, so a place costs a blend and a turn of the hue, not four changes.
    for place in range(4):
        change, strength = order[:, place, None, None], amount[:, place, None, None]
        grey = sum(weight * channel for weight, channel in zip(_GREY, rgb, strict=True))
        target = jnp.where(change == _CONTRAST, grey.mean((1, 2), keepdims=True), grey)
        target = jnp.where(change == _BRIGHTNESS, 0.0, target)
        blended = jnp.clip(rgb + strength * (rgb - target), 0, 1)
        rgb = jnp.where(change == _HUE, _turn_hue(rgb, strength), blended)
    return jnp.where(jittered, jnp.moveaxis(rgb, 0, -1), images)


def grey(keys: jax.Array, images: jax.Array, prob: float) -> jax.Array:
    """Take the colour out of some examples: the grey value of each pixel in all of its channels.

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, 3] float32 in [0, 1].
        prob: probability that an example becomes grey.

    Returns:
        The images, in the shape they came in.
    """
    chosen = draws.uniform(keys, 'grey', 1)[:, :, None, None] < prob
    value = (images * jnp.array(_GREY)).sum(-1, keepdims=True)
    return jnp.where(chosen, value, images)


def blur(keys: jax.Array, images: jax.Array, *, prob: float, sigma: Sequence[float]) -> jax.Array:
    """Blur with a Gaussian of random width, cut at 3.5 of the largest sigma, borders reflected.

    Args:
        keys: [B] typed keys, one an example.
        images: [B, H, W, C] float32.
        prob: probability that an example is blurred.
        sigma: the standard deviation is uniform in this range, in pixels.

    Returns:
        The images, in the shape they came in.

    Raises:
        ValueError: the range is not 0 < low <= high.
    """
    draws.check_range('sigma', sigma)
    drawn = draws.uniform(keys, 'blur', 2)
    deviation = draws.between(drawn[:, 1:], sigma)  # [B, 1]
    radius = math.ceil(3.5 * sigma[1])
    distance = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * (distance / deviation) ** 2)  # [B, taps]
    # Without blur the kernel is a unit impulse: exact, and cheaper than choosing between images.
    kernel = jnp.where(drawn[:, :1] < prob, kernel / kernel.sum(1, keepdims=True), distance == 0)
    taps = kernel.T[..., None, None, None]  # [taps, B, 1, 1, 1]
    for axis in (1, 2):
        margin = [(0, 0)] * 4
        margin[axis] = (radius, radius)
        # Made once: fused into the sum, what the pixels come from would be computed for every tap.
        padded = jax.lax.optimization_barrier(jnp.pad(images, margin, mode='reflect'))
        shifted = [
            jax.lax.slice_in_dim(padded, i, i + images.shape[axis], axis=axis)
            for i in range(2 * radius + 1)
        ]
        images = sum(tap * image for tap, image in zip(taps, shifted, strict=True))
    return jax.lax.optimization_barrier(images)  # likewise, in what follows


def _turn_hue(rgb: jax.Array, turns: jax.Array) -> jax.Array:
    """Shift the hue of [3, B, H, W] at constant value and chroma."""
    red, green, blue = rgb
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1 / jnp.maximum(chroma, 1e-30)  # a grey pixel has no hue, and needs none
    sextant = jnp.where(
        value == red,
        (green - blue) * scale,
        jnp.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    # HSV to RGB for all sextants at once: V - C clip(min(k, 4 - k), 0, 1), k = (n + hue) mod 6.
    k = jnp.stack([sextant + 6 * turns + n for n in (5, 3, 1)])
    k = k - 6 * jnp.floor(k / 6)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
