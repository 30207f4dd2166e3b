"""Easiness of unlabelled images: how far student and teacher agree on them, and how sure they are.

Source: iMAS (arXiv 2211.11335) and its authors' program, which names easiness "hardness":
it is large where an image is easy.
"""

import jax.numpy as jnp
from jax import Array

from css_jax.ops import pseudo_labels


def confusion(student_labels: Array, teacher_labels: Array, num_classes: int) -> Array:
    """Return how many pixels of each image have each pair of labels.

    Args:
        student_labels: [B, H, W] int32.
        teacher_labels: [B, H, W] int32.
        num_classes: C; pixels where either label lies outside [0, C) do not count.

    Returns:
        [B, C, C] int32, rows the teacher's class and columns the student's.
    """
    images, cells = len(teacher_labels), num_classes**2
    known = jnp.ones(teacher_labels.shape, bool)
    for labels in (student_labels, teacher_labels):
        known &= (labels >= 0) & (labels < num_classes)
    # A cell of one flat array for each pixel; pixels that do not count go to the one behind it.
    image = jnp.arange(images)[:, None, None]
    cell = cells * image + num_classes * teacher_labels + student_labels
    cell = jnp.where(known, cell, images * cells).ravel()
    counts = jnp.zeros(images * cells + 1, jnp.int32).at[cell].add(1)
    return counts[:-1].reshape(images, num_classes, num_classes)


def weighted_iou(confusion: Array, ignore_background: bool) -> tuple[Array, Array]:
    """Return W_t and W_s: the IoU of the two maps, weighted by the classes of either.

    W_t = sum_c w_c IoU_c, where w_c is the share of class c in the teacher's map; W_s has the
    shares of the student's map and the same IoU.

    Args:
        confusion: [B, C, C] counts, rows the teacher's class.
        ignore_background: leave class 0 out of the shares; it stays in the unions.

    Returns:
        (W_t [B], W_s [B]) float32; 0 where no pixel has a share.
    """
    teacher, student = confusion.sum(2), confusion.sum(1)  # [B, C] pixels of each class
    both = jnp.diagonal(confusion, axis1=1, axis2=2)
    iou = both / jnp.maximum(teacher + student - both, 1)  # 0 for a class of neither: it weighs 0

    def weighted(counts: Array) -> Array:
        if ignore_background:
            counts = counts.at[:, 0].set(0)
        shares = counts / jnp.maximum(counts.sum(1, keepdims=True), 1)
        return (shares * iou).sum(1)

    return weighted(teacher), weighted(student)


def mean_iou(confusion: Array) -> Array:
    """Return the IoU of the two maps, the mean over the classes that either shows.

    Args:
        confusion: [B, C, C] counts, rows the teacher's class.

    Returns:
        [B] float32.
    """
    both = jnp.diagonal(confusion, axis1=1, axis2=2)
    union = confusion.sum(2) + confusion.sum(1) - both
    return (both / jnp.maximum(union, 1)).sum(1) / jnp.maximum((union > 0).sum(1), 1)


def easiness(
    student_logits: Array,
    teacher_logits: Array,
    threshold: float,
    ignore_background: bool,
    class_weights: bool = True,
    normalised: bool = False,
) -> Array:
    """Return the easiness of each image from the logits of its weak view, see `easiness_of_maps`.

    Args:
        student_logits: [B, H, W, C].
        teacher_logits: [B, H, W, C].
        threshold: tau.
        ignore_background: leave class 0 out of the weights.
        class_weights: see `easiness_of_maps`.
        normalised: see `easiness_of_maps`.

    Returns:
        [B] float32 in [0, 1].
    """
    size = student_logits.shape[1:3]
    student = pseudo_labels.from_logits(student_logits, size)
    teacher = pseudo_labels.from_logits(teacher_logits, size)
    classes = student_logits.shape[-1]
    return easiness_of_maps(
        *student, *teacher, classes, threshold, ignore_background, class_weights, normalised
    )


def easiness_of_maps(
    student_labels: Array,
    student_confidence: Array,
    teacher_labels: Array,
    teacher_confidence: Array,
    num_classes: int,
    threshold: float,
    ignore_background: bool,
    class_weights: bool = True,
    normalised: bool = False,
) -> Array:
    """Return the easiness of each image, h = (rho_t W_t + rho_s W_s) / 2.

    W are the weighted IoU of `weighted_iou`, rho_t and rho_s the shares of all pixels whose
    confidence is at least tau.

    Args:
        student_labels: [B, H, W] int32.
        student_confidence: [B, H, W] float32, the largest softmax value.
        teacher_labels: [B, H, W] int32.
        teacher_confidence: [B, H, W] float32.
        num_classes: C.
        threshold: tau.
        ignore_background: leave class 0 out of the weights. An image of which either network
            thinks that all is class 0 then has h = 0.
        class_weights: W are weighted; else both are `mean_iou`.
        normalised: divide by rho_t + rho_s, not by 2; 0 where both are 0.

    Returns:
        [B] float32 in [0, 1]; it has no gradient.
    """
    counts = confusion(student_labels, teacher_labels, num_classes)
    teacher_iou, student_iou = (
        weighted_iou(counts, ignore_background) if class_weights else 2 * (mean_iou(counts),)
    )
    teacher_sure = (teacher_confidence >= threshold).mean((1, 2))
    student_sure = (student_confidence >= threshold).mean((1, 2))
    agreed = teacher_sure * teacher_iou + student_sure * student_iou
    if not normalised:
        return agreed / 2
    sure = teacher_sure + student_sure
    return jnp.where(sure > 0, agreed / jnp.where(sure > 0, sure, 1), 0)
