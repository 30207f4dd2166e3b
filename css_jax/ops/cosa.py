"""CoSA's losses of swapped assignments: CAMs teach the segmentation, and the other way round.

Source: CoSA (arXiv 2402.17891, ECCV 2024) and its authors' program; `separation` is our reading of
the paper's contrastive loss, which that program has not. Conventions are those of `ops.cam`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from css_jax.ops import losses, resize, weak


def cam2seg_loss(
    logits: Array,
    mask: Array,
    weights: Array | None = None,
    by_weight: bool = False,
    ignore: int = -1,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return cross-entropy of a segmentation by labels from CAMs, of background and of foreground.

    The two means are taken apart, so that the few pixels of foreground count as much.

    Args:
        logits: [B, h, w, C], resized to the labels with `resize.half_pixel`.
        mask: [B, H, W] integer labels, or `ignore`.
        weights: [B, H, W], of each pixel's loss; None: 1 each.
        by_weight: whether the counts are sums of weights, which makes weighted means. Else they are
            numbers of pixels, as the authors have it; with weights of mean 1 that is the same.
        ignore: label of pixels that have none.

    Returns:
        (sum, count) of background and (sum, count) of foreground, float32 scalars.
    """
    values = resize.map_half_pixel(
        lambda logits, mask: losses.pixel_cross_entropy(logits, mask, ignore),
        logits,
        mask.shape[1:],
        mask,
    )
    counted = jnp.ones(mask.shape, jnp.float32) if weights is None else weights
    values = values * counted
    if not by_weight:
        counted = jnp.ones(mask.shape, jnp.float32)

    def over(region: Array) -> tuple[Array, Array]:
        return jnp.where(region, values, 0.0).sum(), jnp.where(region, counted, 0.0).sum()

    return over(mask == 0), over((mask > 0) & (mask != ignore))


def seg2cam_loss(cam: Array, probabilities: Array) -> tuple[Array, Array]:
    """Return the logistic loss of positive CAM values by the teacher's segmentation.

    A CAM that is negative counts as 0 and has no gradient. All positions and all classes count,
    those of padding and of absent classes too.

    Args:
        cam: [B, h, w, K] raw CAMs, of any float dtype.
        probabilities: [B, H, W, C], with background, resized to h x w with `resize.half_pixel`.

    Returns:
        (sum of the losses, B h w K), float32 scalars.
    """
    targets = resize.half_pixel(probabilities[..., 1:], cam.shape[1:3])
    return weak.multilabel_soft_margin(jax.nn.relu(cam.astype(jnp.float32)), targets)


def separation(
    cam: Array, region: Array, image_labels: Array, temperature: float = 0.5
) -> tuple[Array, Array]:
    """Return a contrastive loss that parts the CAM values of foreground and background.

    Our reading of the paper. Of each image and each class c that it has, m is the sigmoid of CAM c;
    a pair of positions has similarity s = (1 - |m_i - m_j|) / temperature. Two positions of class
    c, or two of background, are a positive pair; one of each is a negative one. The loss is the
    mean of -s + log(e^s + N) over the positive pairs, with N the mean of e^s over negative ones.

    Args:
        cam: [B, h, w, K] raw CAMs, of any float dtype.
        region: [B, h, w] integer labels; those that are neither c nor 0 are in no pair.
        image_labels: [B, K], 0 or 1.
        temperature: what similarities are divided by.

    Returns:
        (sum, number) over the images and their classes that have pairs of both kinds, float32.
    """
    batch, height, width, num_classes = cam.shape
    values = jax.nn.sigmoid(cam.astype(jnp.float32)).reshape(batch, height * width, num_classes)
    region = region.reshape(batch, height * width)

    def of_images(value: Array, label: Array, has: Array) -> tuple[Array, Array]:
        foreground = (region == label) & has[:, None]
        of_image = partial(_separation, temperature=temperature)
        return jax.vmap(of_image)(value, foreground, region == 0)

    def nothing(value: Array, label: Array, has: Array) -> tuple[Array, Array]:
        return 0 * value[:, 0], 0 * value[:, 0]

    # The pairs of one class at a time, and once more in the backward pass: those of all would be
    # B K (h w)^2 numbers. Most classes are in no image and take no time.
    @jax.checkpoint
    def of_class(given: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        return lax.cond(given[2].any(), of_images, nothing, *given)

    of_classes = jnp.moveaxis(values, -1, 0), jnp.arange(1, num_classes + 1), image_labels.T > 0
    total, counted = lax.map(of_class, of_classes)
    return total.sum(), counted.sum()


def _separation(
    values: Array, foreground: Array, background: Array, temperature: float
) -> tuple[Array, Array]:
    """Return the loss of one image and class, and 1; or 0 and 0 where a kind of pair is missing.

    Args:
        values: [n].
        foreground: [n] bool.
        background: [n] bool.
        temperature: what similarities are divided by.
    """
    # Less the largest possible, 1 / temperature, which cancels out: no exponential overflows.
    similarity = -jnp.abs(values[:, None] - values) / temperature
    same = foreground[:, None] & foreground | background[:, None] & background
    positive = same & ~jnp.eye(len(values), dtype=bool)
    negative = foreground[:, None] & background
    positives, negatives = positive.sum(), negative.sum()
    both = (positives > 0) & (negatives > 0)
    total = jax.nn.logsumexp(jnp.where(negative, similarity, -jnp.inf))
    log_negative = total - jnp.log(jnp.maximum(negatives, 1))  # of the mean
    loss = jnp.where(positive, jax.nn.softplus(log_negative - similarity), 0.0).sum()
    loss = loss / jnp.maximum(positives, 1)
    return jnp.where(both, loss, 0.0), both.astype(jnp.float32)
