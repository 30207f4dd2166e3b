"""Pixel losses. Each returns (sum, count), so that a mean over devices is psum(sum)/psum(count).

Source where nothing else is said: CSS (arXiv 2307.09755, Eq. 7 and 8) and its authors' program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from css_jax.ops import resize


def mean(total: Array, count: Array) -> Array:
    """Return total / count, and 0 where there is nothing to count; a soft count may be below 1."""
    # The inner where keeps the branch that is not taken, and its gradient, finite.
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def pixel_cross_entropy(logits: Array, labels: Array, ignore: int = -1) -> Array:
    """Return softmax cross-entropy of each pixel, in float32.

    Args:
        logits: [..., C] scores of any float dtype; a map [B, h, w, C] smaller than the labels is
            resized to them first, bilinearly and a few images at a time (`resize.map_bilinear`).
        labels: [...] or [B, H, W], integer classes in [0, C), or `ignore`.
        ignore: label of pixels that have none.

    Returns:
        Float32 of the shape of `labels`, 0 where the label is `ignore`, NaN where it is no class.

    Raises:
        ValueError: logits and labels are not of the same pixels.
    """
    if logits.shape[:-1] == labels.shape:
        return _pixel_cross_entropy(logits.astype(jnp.float32), labels, ignore)
    fits = logits.ndim == 4 and labels.ndim == 3 and len(logits) == len(labels)
    if not fits or any(n > out for n, out in zip(logits.shape[1:3], labels.shape[1:], strict=True)):
        raise ValueError(
            f'labels: got shape {labels.shape}, expected {logits.shape[:-1]} as of logits '
            f'{logits.shape} without the classes, or larger maps of as many images'
        )
    return resize.map_bilinear(
        lambda logits, labels: _pixel_cross_entropy(logits, labels, ignore),
        logits,
        labels.shape[1:],
        labels,
    )


def _pixel_cross_entropy(logits: Array, labels: Array, ignore: int) -> Array:
    num_classes = logits.shape[-1]
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    # A masked sum, not an index: its gradient is no scatter, and is fused with the softmax.
    own = jnp.where(labels[..., None] == jnp.arange(num_classes), shifted, 0.0).sum(-1)
    losses = jnp.log(jnp.exp(shifted).sum(-1)) - own
    # A label that is no class makes the loss NaN, which stops a run.
    losses = jnp.where((labels >= 0) & (labels < num_classes), losses, jnp.nan)
    return jnp.where(labels != ignore, losses, 0.0)


class Term(NamedTuple):
    """A mean: total / count, of all that the sums are over.

    Sums are added up over devices and micro-batches before they are divided: a mean of means
    would be another number where these hold different numbers of pixels. A term's weight in the
    loss is the method's (`css_jax.methods.method.Method.weights`), as no micro-batch decides it.

    Attributes:
        total: [] float32, of a loss what is differentiated.
        count: [] float32.
    """

    total: Array
    count: Array | float


class Total(NamedTuple):
    """A sum for the log, added up over devices and micro-batches and not divided.

    Attributes:
        total: [] float32.
    """

    total: Array


def cross_entropy(logits: Array, labels: Array, ignore: int = -1) -> tuple[Array, Array]:
    """Return cross-entropy over the labelled pixels (Eq. 7).

    Args:
        logits: [..., C], or a smaller map, see `pixel_cross_entropy`.
        labels: [...] integer classes, or `ignore`.
        ignore: label of pixels that have none.

    Returns:
        (sum of the pixels' losses, number of pixels not ignored), float32 scalars.
    """
    losses = pixel_cross_entropy(logits, labels, ignore)
    return losses.sum(), (labels != ignore).sum().astype(jnp.float32)


def ohem_cross_entropy(
    logits: Array, labels: Array, threshold: float = 0.7, min_kept: int = 50_000, ignore: int = -1
) -> tuple[Array, Array]:
    """Return cross-entropy over the hard pixels: online hard example mining, as for Cityscapes.

    A valid pixel is kept if the probability of its true class is at most
    max(threshold, the min_kept-th smallest such probability in the batch). With fewer than
    `min_kept` valid pixels all are kept.

    Args:
        logits: [..., C], or a smaller map, see `pixel_cross_entropy`.
        labels: [...] integer classes, or `ignore`.
        threshold: probability up to which a pixel always counts as hard.
        min_kept: pixels kept at least, over the whole batch given here.
        ignore: label of pixels that have none.

    Returns:
        (sum over the kept pixels, number of kept pixels), float32 scalars.
    """
    losses = pixel_cross_entropy(logits, labels, ignore).ravel()
    valid = (labels != ignore).ravel()
    probability = jnp.exp(-jax.lax.stop_gradient(losses))
    if 0 < min_kept <= probability.size:
        # Ignored pixels sort behind every valid one; fewer valid than min_kept gives 2: keep all.
        kth = jnp.sort(jnp.where(valid, probability, 2.0))[min_kept - 1]
        kept = valid & (probability <= jnp.maximum(threshold, kth))
    else:
        kept = valid if min_kept > 0 else valid & (probability <= threshold)
    return jnp.where(kept, losses, 0.0).sum(), kept.sum().astype(jnp.float32)


def weighted_unsupervised(
    logits: Array, labels: Array, indicator: Array, threshold: float = 0.97, ignore: int = -1
) -> tuple[Array, Array]:
    """The reference's L_u: each image weighs by the share of its pixels that are confident.

    w_i = #(pixels of image i with indicator >= threshold) / #(its pixels with a pseudo-label);
    L_u = mean of w_i · CE over the pixels of the batch whose CE > 0. The numerator counts the
    pixels without a pseudo-label too, so that w_i may exceed 1.

    Args:
        logits: [B, h, w, C], resized to the labels where smaller.
        labels: [B, H, W] pseudo-labels, or `ignore`.
        indicator: [B, H, W] in [0, 1].
        threshold: delta_u.
        ignore: label of pixels that have none.

    Returns:
        (sum of w_i · CE, number of pixels with CE > 0), float32 scalars. An image without a
        pseudo-label adds nothing.
    """
    losses = pixel_cross_entropy(logits, labels, ignore)
    confident = (indicator >= threshold).sum((1, 2))
    labelled = (labels != ignore).sum((1, 2))
    weights = confident / jnp.maximum(labelled, 1)
    return (weights[:, None, None] * losses).sum(), (losses > 0).sum().astype(jnp.float32)


def thresholded_unsupervised(
    logits: Array, labels: Array, indicator: Array, threshold: float = 0.97, ignore: int = -1
) -> tuple[Array, Array]:
    """The paper's L_u (Eq. 8): cross-entropy over the confident pixels.

    Args:
        logits: [B, h, w, C], resized to the labels where smaller.
        labels: [B, H, W] pseudo-labels, or `ignore`.
        indicator: [B, H, W] in [0, 1].
        threshold: delta_u; pixels with indicator >= threshold count.
        ignore: label of pixels that have none.

    Returns:
        (sum over the confident pixels, number of them), float32 scalars.
    """
    return cross_entropy(logits, jnp.where(indicator >= threshold, labels, ignore), ignore)


def easiness_weighted(
    logits: Array,
    labels: Array,
    confidence: Array,
    easiness: Array,
    threshold: float,
    ignore: int = -1,
) -> tuple[Array, Array]:
    """Return iMAS's L_u of one view: each image weighs by its easiness (arXiv 2211.11335).

    The loss of an image is h times the sum of the cross-entropy over its confident pixels, divided
    by the number of all of its pixels.

    Args:
        logits: [B, h, w, C], resized to the labels where smaller.
        labels: [B, H, W] pseudo-labels, or `ignore`.
        confidence: [B, H, W] in [0, 1].
        easiness: h, [B]; of an image with a box of another one that of the image.
        threshold: tau; pixels with confidence >= threshold count.
        ignore: label of pixels that have none.

    Returns:
        (sum of the images' losses, number of images), float32 scalars.
    """
    confident = jnp.where(confidence >= threshold, labels, ignore)
    losses = pixel_cross_entropy(logits, confident, ignore).mean((1, 2))
    return (easiness * losses).sum(), jnp.float32(len(labels))


def confident_over_valid(
    logits: Array, labels: Array, indicator: Array, valid: Array, threshold: float
) -> tuple[Array, Array]:
    """Return UniMatch's loss of a strong view (CVPR 2023; TPAMI 2025, and its authors' program).

    The sum of the cross-entropy over the confident pixels, to be divided by the number of all that
    are no padding, the others of these included: the fewer are confident, the less it weighs.

    Args:
        logits: [B, h, w, C], resized to the labels where smaller.
        labels: [B, H, W] integer pseudo-labels, -1 for pixels that have none.
        indicator: [B, H, W] in [0, 1], their confidence.
        valid: [B, H, W] bool, false in the padding.
        threshold: tau; pixels with indicator >= threshold are confident.

    Returns:
        (sum over confident pixels, number of valid pixels), float32 scalars.
    """
    confident = valid & (indicator >= threshold)
    losses = pixel_cross_entropy(logits, jnp.where(confident, labels, -1))
    return losses.sum(), valid.sum().astype(jnp.float32)
