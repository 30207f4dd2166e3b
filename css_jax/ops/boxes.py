"""CutMix's boxes by the law of UniMatch, and what is pasted into them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from css_jax.ops import draws

_RATIOS = 2048  # of height to width, that a box's is chosen from


def cutmix_box(
    keys: Array,
    size: tuple[int, int],
    prob: float = 0.5,
    area: Sequence[float] = (0.02, 0.4),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
) -> Array:
    """Draw one box an image, as UniMatch does (CVPR 2023, its authors' program).

    See `corners`.

    Args:
        keys: [B] typed keys, one an example.
        size: (H, W) of the images.
        prob: probability that there is a box.
        area: range of the box's area, as a share of the image's; uniform.
        ratio: range of its height divided by its width.

    Returns:
        [B, H, W] bool, true inside the box; false everywhere where there is none.
    """
    top, bottom, left, right = corners(keys, size, prob, area, ratio).T[:, :, None]  # each [B, 1]
    row, column = jnp.arange(size[0]), jnp.arange(size[1])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return rows[:, :, None] & columns[:, None, :]


def corners(
    keys: Array,
    size: tuple[int, int],
    prob: float = 0.5,
    area: Sequence[float] = (0.02, 0.4),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
) -> Array:
    """Draw the boxes of `cutmix_box`.

    The authors' program draws an area once, and then a uniform ratio and a place in the image until
    the box lies inside. Of an area a ratio r is then as likely as there are places for its box:
    p(r) is proportional to (H - h + 1) (W - w + 1), with h and w rounded down, and 0 where the box
    is larger than the image. So r is drawn by these weights, out of a table, and the place after
    it, without trying. No box of the area may fit, if the image is long and narrow: then there is
    none.

    Args:
        keys: as `cutmix_box`.
        size: likewise.
        prob: likewise.
        area: likewise.
        ratio: likewise.

    Returns:
        [B, 4] int32 top, bottom, left, right, the ends exclusive; 0 where there is no box.
    """
    height, width = size
    drawn = draws.uniform(keys, 'box', 5)
    pixels = draws.between(drawn[:, 1:2], area) * (height * width)  # [B, 1]
    ratios = draws.between((jnp.arange(_RATIOS) + 0.5) / _RATIOS, ratio)
    high = jnp.sqrt(pixels * ratios).astype(jnp.int32)  # [B, ratios]
    wide = jnp.sqrt(pixels / ratios).astype(jnp.int32)
    # A box of no pixels has no place more than one of one pixel: it begins inside the image, too.
    places = jnp.clip(height - high + 1, 0, height) * jnp.clip(width - wide + 1, 0, width)
    # 0 where no box fits, so that rounding of the sums chooses none of these.
    sums = jnp.where(places > 0, jnp.cumsum(places.astype(jnp.float32), axis=1), 0.0)
    total = sums.max(1, keepdims=True)
    chosen = jnp.argmax(sums > drawn[:, 2:3] * total, axis=1, keepdims=True)
    high, wide = (jnp.take_along_axis(side, chosen, axis=1)[:, 0] for side in (high, wide))
    top = draws.integer(drawn[:, 3], height - high + 1)
    left = draws.integer(drawn[:, 4], width - wide + 1)
    there = (drawn[:, 0] < prob) & (total[:, 0] > 0)
    found = jnp.stack([top, top + high, left, left + wide], axis=1)
    return jnp.where(there[:, None], found, 0).astype(jnp.int32)


def paste(box: Array, tree: Any, partner: Any) -> Any:
    """Replace the box of each image, and of its maps, by what its partner has there.

    Args:
        box: [B, H, W] bool, of the image that receives.
        tree: pytree of arrays [B, H, W, ...].
        partner: whose pixels these are: a pytree like `tree`, or [B] integers, places in the batch.

    Returns:
        A pytree like `tree`.
    """
    if getattr(partner, 'ndim', None) == 1:
        places = jnp.asarray(partner)
        partner = jax.tree.map(lambda x: x[places], tree)

    def one(own: Array, other: Array) -> Array:
        return jnp.where(box.reshape(*box.shape, *[1] * (own.ndim - 3)), other, own)

    return jax.tree.map(one, tree, partner)
