"""Weights of pseudo-labels by their perplexity: a CAM value near the threshold is a doubtful label.

Our reading of CoSA (arXiv 2402.17891), whose authors' program has no such weight: of the paper's
figures are the reciprocal and its range.
"""

import jax.numpy as jnp
from jax import Array

from css_jax.ops import cam

_NEAREST = 1e-4  # the smallest distance from the threshold: at 0 the perplexity would be infinite


def perplexity(
    cam_max: Array, threshold: Array | float, alpha: float = 0.9, beta: float = 1.0
) -> Array:
    """Return (-log(alpha d))^beta, where d is a CAM value's distance from the threshold.

    d is 1 at the CAM values 0 and 1, and 0 at the threshold, linear between them.

    Args:
        cam_max: [...] in [0, 1], the largest CAM value of a pixel, see `cam.largest`.
        threshold: xi in [0, 1], what is larger is foreground.
        alpha: in (0, 1); the nearer to 1, the less perplexity has a sure pixel.
        beta: exponent.

    Returns:
        [...] float32, positive.
    """
    above = (cam_max - threshold) / jnp.maximum(1 - threshold, _NEAREST)
    below = (threshold - cam_max) / jnp.maximum(threshold, _NEAREST)
    distance = jnp.where(cam_max >= threshold, above, below)
    return (-jnp.log(alpha * jnp.clip(distance, _NEAREST, 1))) ** beta


def reciprocal(
    cam_max: Array, threshold: Array | float, box: Array, alpha: float = 0.9, beta: float = 1.0
) -> Array:
    """Return 1 / perplexity inside the boxes, and 0 outside.

    These are `weights` before they are divided: for weighted means over several devices, as
    `cosa.cam2seg_loss` has them with `by_weight`.

    Args:
        cam_max: [B, H, W] in [0, 1].
        threshold: xi, see `perplexity`.
        box: [B, 4] int top, bottom, left, right, the ends exclusive.
        alpha: see `perplexity`.
        beta: likewise.

    Returns:
        [B, H, W] float32.
    """
    within = cam.inside(box, cam_max.shape[1:])
    return jnp.where(within, 1 / perplexity(cam_max, threshold, alpha, beta), 0.0)


def weights(
    cam_max: Array, threshold: Array | float, box: Array, alpha: float = 0.9, beta: float = 1.0
) -> Array:
    """Return 1 / perplexity, divided so that its mean is 1 over foreground and over background.

    Means are over all images given, foreground is what is larger than the threshold, and pixels
    outside the boxes are in no mean.

    Args:
        cam_max: [B, H, W] in [0, 1].
        threshold: xi, see `perplexity`.
        box: [B, 4] int top, bottom, left, right, the ends exclusive.
        alpha: see `perplexity`.
        beta: likewise.

    Returns:
        [B, H, W] float32; 0 outside the boxes.
    """
    raw = reciprocal(cam_max, threshold, box, alpha, beta)
    within, foreground = cam.inside(box, cam_max.shape[1:]), cam_max > threshold
    scales = []
    for region in (within & foreground, within & ~foreground):
        total, count = jnp.where(region, raw, 0.0).sum(), region.sum()
        scales.append(count / jnp.where(count > 0, total, 1.0))
    return raw * jnp.where(foreground, *scales)
