"""Class activation maps (CAMs): merging of views, and pseudo-labels from them.

Source: CoSA (arXiv 2402.17891, ECCV 2024) and its authors' program. Of C classes, background is
class 0; channel k of a CAM belongs to class k + 1, and image labels [B, K] say which of these an
image has. Maps are resized with `resize.half_pixel`. A box is (top, bottom, left, right) of what is
no padding, the ends exclusive. Nothing here has a gradient to be used.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from css_jax.ops import resize

# What the authors give logits of absent classes: finite, and no softmax sees it.
_ABSENT = -1e5


def merge(raws: Sequence[Array], size: tuple[int, int]) -> Array:
    """Merge raw CAMs of several scales, each of images and of their mirror images.

    At each scale the larger of the two counts, where it is positive; scales are added up.

    Args:
        raws: of each scale [2B, h, w, K], of any float dtype: B images, then their mirror images,
            not mirrored back.
        size: (H, W).

    Returns:
        [B, H, W, K] float32, not negative.
    """
    return sum(jax.nn.relu(jnp.maximum(*_unmirrored(raw, size))) for raw in raws)


def merge_logits(raws: Sequence[Array], size: tuple[int, int]) -> Array:
    """Add up logits of several scales, each of images and of their mirror images.

    Args:
        raws: of each scale [2B, h, w, C], as in `merge`.
        size: (H, W).

    Returns:
        [B, H, W, C] float32; with n scales it is 2n times a mean, so that a softmax is sharper.
    """
    return sum(sum(_unmirrored(raw, size)) for raw in raws)


def normalise(cam: Array) -> Array:
    """Stretch the CAM of each image and class to [0, 1].

    Its smallest value is subtracted, then it is divided by what is then the largest, plus 1e-5. A
    CAM of one value becomes 0.

    Args:
        cam: [B, H, W, K].

    Returns:
        [B, H, W, K] float32.
    """
    cam = cam.astype(jnp.float32)
    cam = cam - cam.min((1, 2), keepdims=True)
    return cam / (cam.max((1, 2), keepdims=True) + 1e-5)


def present(image_labels: Array) -> Array:
    """Return which of all C classes an image has: background, and those that it is labelled with.

    Args:
        image_labels: [B, K], 0 or 1.

    Returns:
        [B, C] bool.
    """
    return jnp.pad(image_labels > 0, ((0, 0), (1, 0)), constant_values=True)


def largest(cam: Array, image_labels: Array) -> Array:
    """Return the largest value of a CAM over the classes that the image has.

    Args:
        cam: [B, H, W, K], not negative.
        image_labels: [B, K], 0 or 1.

    Returns:
        [B, H, W] float32; 0 for an image without a label.
    """
    return _labelled(cam, image_labels).max(-1)


def inside(box: Array, size: tuple[int, int]) -> Array:
    """Return whether a pixel of the original size is no padding.

    Args:
        box: [B, 4] int top, bottom, left, right, the ends exclusive.
        size: (H, W).

    Returns:
        [B, H, W] bool.
    """
    top, bottom, left, right = box.T[:, :, None]  # each [B, 1]
    row, column = jnp.arange(size[0]), jnp.arange(size[1])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return rows[:, :, None] & columns[:, None, :]


def pseudo_labels(
    cam: Array,
    image_labels: Array,
    low: Array | float,
    high: Array | float,
    box: Array,
    shrink: int = 2,
    ignore: int = -1,
) -> Array:
    """Return pseudo-labels of a normalised CAM: what is sure to be a class, or to be background.

    A threshold stands for background beside the CAM, and the class with the largest softmax wins; a
    tie is background. A pixel has the class that wins against `high`, is background where
    background wins against `low`, and has no label between the two. They are compared at a smaller
    size, and the softmax is resized back, which smooths the labels.

    Args:
        cam: [B, H, W, K] in [0, 1].
        image_labels: [B, K], 0 or 1; no other class is given.
        low: threshold under which a pixel is background.
        high: threshold above which it is foreground.
        box: [B, 4] int top, bottom, left, right; outside there is no label.
        shrink: the CAM is compared at (H // shrink, W // shrink); 0 and 1: at its own size.
        ignore: the label of pixels that have none.

    Returns:
        [B, H, W] int32.
    """
    size = cam.shape[1:3]
    smaller = size if shrink < 2 else (max(1, size[0] // shrink), max(1, size[1] // shrink))
    labelled = resize.half_pixel(_labelled(cam, image_labels), smaller)
    possible = present(image_labels)

    def winner(threshold: Array | float) -> Array:
        background = jnp.broadcast_to(jnp.float32(threshold), (*labelled.shape[:3], 1))
        scores = jnp.concatenate([background, labelled], axis=-1)
        shares = jax.nn.softmax(jnp.where(possible[:, None, None], scores, -jnp.inf), axis=-1)
        return resize.map_half_pixel(lambda x: x.argmax(-1).astype(jnp.int32), shares, size)

    sure, any_at_all = winner(high), winner(low)
    labels = jnp.where(sure > 0, sure, jnp.where(any_at_all == 0, 0, ignore))
    return jnp.where(inside(box, size), labels, ignore)


def masked(logits: Array, image_labels: Array) -> Array:
    """Return logits [B, H, W, C] float32 with -1e5 for the classes that an image does not have.

    Args:
        logits: [B, H, W, C].
        image_labels: [B, K], 0 or 1.
    """
    possible = present(image_labels)[:, None, None]
    return jnp.where(possible, logits.astype(jnp.float32), _ABSENT)


def segmentation_labels(logits: Array, image_labels: Array, temperature: float = 0.01) -> Array:
    """Return soft pseudo-labels of a segmentation: a sharp softmax over the image's classes.

    Args:
        logits: [B, H, W, C].
        image_labels: [B, K], 0 or 1.
        temperature: what logits are divided by.

    Returns:
        [B, H, W, C] float32, which sum up to 1; 0 for absent classes.
    """
    return jax.nn.softmax(masked(logits, image_labels) / temperature, axis=-1)


def from_cam(cam: Array, image_labels: Array, threshold: float = 0.5) -> Array:
    """Return what a normalised CAM predicts: the largest class, or background.

    Args:
        cam: [B, H, W, K] in [0, 1].
        image_labels: [B, K], 0 or 1.
        threshold: up to this value a pixel is background.

    Returns:
        [B, H, W] int32.
    """
    labelled = _labelled(cam, image_labels)
    return jnp.where(labelled.max(-1) > threshold, labelled.argmax(-1) + 1, 0).astype(jnp.int32)


def _labelled(cam: Array, image_labels: Array) -> Array:
    """Return the CAM [B, H, W, K] float32, 0 for the classes that an image does not have."""
    return jnp.where(image_labels[:, None, None] > 0, cam.astype(jnp.float32), 0.0)


def _unmirrored(raw: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return maps [2B, h, w, K] resized, as those of images and of mirror images, mirrored back."""
    plain, mirror = jnp.split(resize.half_pixel(raw, size), 2)
    return plain, mirror[:, :, ::-1]
