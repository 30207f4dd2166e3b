"""What iMAS does to the views of an unlabelled batch (arXiv 2211.11335).

An image's easiness says how strongly it is distorted, and with which image and how often it is
mixed. Images are mixed within groups of consecutive ones (the authors' groups: those of one GPU).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from css_jax.ops import draws
from css_jax.ops.augment import Maps


def blend(strong: Array, weak: Array, easiness: Array) -> Array:
    """Return h strong + (1 - h) weak: the easier an image, the stronger its photometry.

    Args:
        strong: [B, H, W, 3] float32.
        weak: [B, H, W, 3] float32.
        easiness: h, [B].

    Returns:
        [B, H, W, 3] float32.
    """
    h = easiness[:, None, None, None]
    return h * strong + (1 - h) * weak


def mixes(easiness: Array, uniform: Array, group: int) -> Array:
    """Return whether the group of each image is mixed: where its draw is below its mean easiness.

    Args:
        easiness: h, [B].
        uniform: [B / group] draws in [0, 1), one a group.
        group: images in a group.

    Returns:
        [B] bool.

    Raises:
        ValueError: the group does not divide B.
    """
    below_one = jnp.minimum(uniform, 1 - 2**-24)  # also of a draw that float32 rounds up to 1
    return jnp.repeat(below_one < _grouped(easiness, group).mean(1), group)


def pair_by_easiness(easiness: Array, group: int) -> Array:
    """Return whose box each image receives: within a group the hardest pairs with the easiest.

    The image of rank r by easiness has that of rank group - 1 - r as partner; the middle one of an
    odd group has itself. Of equal easiness the first image ranks first.

    Args:
        easiness: h, [B].
        group: images in a group.

    Returns:
        [B] int32 indices into the batch.

    Raises:
        ValueError: the group does not divide B.
    """
    order = jnp.argsort(_grouped(easiness, group), axis=1)  # stable
    rank = jnp.argsort(order, axis=1)
    partner = jnp.take_along_axis(order[:, ::-1], rank, axis=1)
    first = group * jnp.arange(len(order))[:, None]
    return (first + partner).reshape(-1).astype(jnp.int32)


def boxes(
    uniform: Array, row: Array, column: Array, size: tuple[int, int], scale_range: Sequence[float]
) -> Array:
    """Return CutMix's boxes around given centres, clipped to the image.

    A box is 2 (int(v H) // 2) by 2 (int(v W) // 2) pixels, where v = low + (high - low) u.

    Args:
        uniform: u, [B] in [0, 1); images of a group have the same.
        row: [B] int32, of the centre.
        column: [B] int32, of the centre.
        size: (H, W).
        scale_range: (low, high).

    Returns:
        [B, 4] int32 top, left, bottom, right, the ends exclusive; empty where int(v H) or int(v W)
        is below 2.
    """
    scale = draws.between(uniform, scale_range)
    height, width = size
    down = (height * scale).astype(jnp.int32) // 2
    right = (width * scale).astype(jnp.int32) // 2
    return jnp.stack(
        [
            jnp.maximum(row - down, 0),
            jnp.maximum(column - right, 0),
            jnp.minimum(row + down, height),
            jnp.minimum(column + right, width),
        ],
        axis=1,
    ).astype(jnp.int32)


def paste(boxes: Array, partner: Array, images: Array, maps: Maps) -> tuple[Array, Maps]:
    """Replace the box of each image, and of its maps, by what its partner has there.

    Args:
        boxes: [B, 4] int32 top, left, bottom, right, the ends exclusive.
        partner: [B] int32 indices into the batch.
        images: [B, H, W, 3].
        maps: maps [B, H, W].

    Returns:
        The images and maps, in the shapes they came in.
    """
    top, left, bottom, right = boxes.T[:, :, None]  # each [B, 1]
    row, column = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    replaced = rows[:, :, None] & columns[:, None, :]
    images = jnp.where(replaced[..., None], images[partner], images)
    return images, {name: jnp.where(replaced, x[partner], x) for name, x in maps.items()}


def _grouped(easiness: Array, group: int) -> Array:
    if len(easiness) % group:
        raise ValueError(f'group is {group}; expected a divisor of the {len(easiness)} images')
    return easiness.reshape(-1, group)
