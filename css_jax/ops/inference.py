"""Inference from several views of an image: sliding windows, its mirror image, other scales.

A prediction is a function of standardised images [B, H, W, 3] to logits [B, H, W, C]. Each
function here takes one and gives a better one of the same kind, so that they nest.

Views are averaged as softmax probabilities, not as logits: the logits of one confident view may be
any size and would outvote all others. The field's programs do so too, for instance UniMatch
(https://github.com/LiheYoung/UniMatch/blob/main/supervised.py, `evaluate`). What is given is its
logarithm, which are logits of that very distribution. `resized` alone adds up logits.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from css_jax.ops import resize

Predict = Callable[[Array], Array]

_TINY = jnp.finfo(jnp.float32).tiny  # log(0) would make the loss of a pixel infinite


def mirrored(predict: Predict, images: Array) -> Array:
    """Average over an image and its mirror image, left and right exchanged.

    Args:
        predict: images [2B, H, W, 3] -> logits [2B, H, W, C].
        images: [B, H, W, 3].

    Returns:
        [B, H, W, C] logits.
    """
    logits = predict(jnp.concatenate([images, images[:, :, ::-1]]))  # one network, compiled once
    plain, mirror = jnp.split(logits, 2)
    return _log_mean([plain, mirror[:, :, ::-1]])


def multi_scale(predict: Predict, images: Array, scales: Sequence[float]) -> Array:
    """Average over an image at several scales.

    Images are resized bilinearly, antialiased when they shrink (as the strong view is); logits are
    resized back bilinearly.

    Args:
        predict: images [B, h, w, 3] -> logits [B, h, w, C], for the size at each scale.
        images: [B, H, W, 3].
        scales: factors; the size at s is (round(H s), round(W s)), at least a pixel.

    Returns:
        [B, H, W, C] logits; those of `predict` unchanged if the one scale is 1.
    """
    height, width = images.shape[1:3]
    parts = []
    for scale in scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        shape = (images.shape[0], *size, images.shape[3])
        scaled = images if size == (height, width) else jax.image.resize(images, shape, 'bilinear')
        parts.append(resize.bilinear(predict(scaled), (height, width)))
    return _log_mean(parts)


def resized(
    predict: Predict,
    images: Array,
    sizes: Array,
    window: tuple[int, int],
    scales: Sequence[float],
    flip: bool,
) -> Array:
    """Add up the logits of an image that is resized to one window, and of that at several scales.

    The authors of CoSA (arXiv 2402.17891) evaluate so: logits, not probabilities, are added up. All
    is resized bilinearly with half-pixel centres, without antialiasing, whatever the aspect.

    Args:
        predict: images [K, h, w, 3] -> logits [K, any height, any width, C], for the size at each
            scale; K is 2B with `flip`, else B.
        images: [B, H, W, 3]; what lies outside their `sizes` is not seen.
        sizes: [B, 2] int, height and width of each image; they may be traced.
        window: height and width that every image is resized to.
        scales: factors; the size at s is (int(h s), int(w s)) of the window, at least a pixel.
        flip: whether each view is mirrored too.

    Returns:
        [B, H, W, C] logits; only inside their `sizes` do they mean anything.
    """
    whole = resize.part_to(images, sizes, window)
    total = 0.0
    for scale in scales:
        view = resize.half_pixel(whole, tuple(max(1, int(side * scale)) for side in window))
        views = jnp.concatenate([view, view[:, :, ::-1]]) if flip else view
        logits = resize.half_pixel(predict(views), window)
        if flip:
            plain, mirror = jnp.split(logits, 2)
            logits = plain + mirror[:, :, ::-1]
        total = total + logits
    return resize.to_part(total, sizes, images.shape[1:3])


def at_multiple(predict: Predict, images: Array, multiple: int) -> Array:
    """Predict images whose sides are resized to their nearest multiples of a number.

    Half a multiple is rounded up, and a side has one at least. Images and logits are resized
    bilinearly with corners aligned, as UniMatch V2's authors do it for a network of patches.

    Args:
        predict: images [B, h, w, 3] -> logits [B, h, w, C], of sides that are multiples.
        images: [B, H, W, 3].
        multiple: the number.

    Returns:
        [B, H, W, C] logits; those of `predict` unchanged if H and W are multiples.
    """
    size = images.shape[1:3]
    near = tuple(max(1, int(side / multiple + 0.5)) * multiple for side in size)
    if near == size:
        return predict(images)
    return resize.bilinear(predict(resize.bilinear(images, near)), size)


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where the windows begin along an axis; the last is moved back to end at the border.

    Args:
        length: of the axis, at least `window`.
        window: length of a window.
        stride: between the beginnings.
    """
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def default_stride(window: tuple[int, int], cut_off: bool = False) -> tuple[int, int]:
    """Return 2/3 of the window for each axis: neighbours overlap by a third.

    Args:
        window: height and width of a window.
        cut_off: whether windows are cut off, see `windows`; the stride is then rounded down, as
            iMAS has it, else up.
    """
    if cut_off:
        return max(1, 2 * window[0] // 3), max(1, 2 * window[1] // 3)
    return -(-2 * window[0] // 3), -(-2 * window[1] // 3)


def windows(
    size: tuple[int, int],
    window: tuple[int, int] | int,
    stride: tuple[int, int] | int,
    cut_off: bool,
) -> list[tuple[int, int, int, int]]:
    """Return the windows that cover an image, row by row.

    Args:
        size: height and width of the image; at least `window`, unless windows are cut off.
        window: height and width of a window, or one number for both.
        stride: between neighbours, likewise.
        cut_off: windows begin at every multiple of the stride inside the image and end at its
            border, as iMAS (arXiv 2211.11335) evaluates; they are then of several sizes, and may
            lie in others. Else all are of one size, the last ones moved back (see `starts`).

    Returns:
        (top, left, bottom, right) each, the ends exclusive.
    """
    axes = []
    for length, part, step in zip(size, _pair(window), _pair(stride), strict=True):
        begins = range(0, length, step) if cut_off else starts(length, part, step)
        axes.append([(begin, min(begin + part, length)) for begin in begins])
    return [(top, left, bottom, right) for top, bottom in axes[0] for left, right in axes[1]]


def sliding(
    predict: Predict,
    images: Array,
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    cut_off: bool = False,
) -> Array:
    """Predict windows that cover an image, and average where they overlap.

    Windows of one shape go through the network `batch_size` at a time, and are added up one after
    the other in a map as large as the images, the only one that is kept.

    Args:
        predict: images [K, h, w, 3] -> logits [K, h, w, C], for each shape of a window.
        images: [B, H, W, 3]; smaller ones are padded right and bottom by reflection, unless windows
            are cut off.
        window: height and width of a window.
        stride: between neighbours, see `windows`.
        batch_size: most windows in one call of `predict`.
        cut_off: whether windows end at the border, in several shapes, see `windows`; an image no
            larger than the stride is then one window of its own size.

    Returns:
        [B, H, W, C] logits; those of `predict` unchanged if there is one window.
    """
    height, width = images.shape[1:3]
    down, right = max(0, window[0] - height), max(0, window[1] - width)
    if (down or right) and not cut_off:
        images = jnp.pad(images, ((0, 0), (0, down), (0, right), (0, 0)), mode='reflect')
    places = windows(images.shape[1:3], window, stride, cut_off)
    if len(places) == 1:
        return predict(images)[:, :height, :width]

    def probabilities(images: Array) -> Array:
        return jax.nn.softmax(predict(images).astype(jnp.float32))

    mean = windows_mean(probabilities, images, window, stride, batch_size, cut_off)
    return _log(mean)[:, :height, :width]


def windows_mean(
    function: Predict,
    images: Array,
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    cut_off: bool = False,
) -> Array:
    """Return the mean of what a function gives for the windows of an image that show a pixel.

    Args:
        function: images [K, h, w, 3] -> float32 [K, h, w, N], for each shape of a window.
        images: [B, H, W, 3], at least as large as the window, unless windows are cut off.
        window: see `sliding`.
        stride: see `sliding`.
        batch_size: see `sliding`.
        cut_off: see `sliding`.

    Returns:
        float32 [B, H, W, N].
    """
    count = np.zeros(images.shape[1:3], np.float32)
    shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for top, left, bottom, end in windows(images.shape[1:3], window, stride, cut_off):
        count[top:bottom, left:end] += 1
        shapes.setdefault((bottom - top, end - left), []).append((top, left))
    example = jax.ShapeDtypeStruct((1, *next(iter(shapes)), images.shape[3]), images.dtype)
    channels = jax.eval_shape(function, example).shape[-1]
    total = jnp.zeros((*images.shape[:3], channels), jnp.float32)
    for shape, begins in shapes.items():
        total = _add_windows(total, function, images, shape, begins, batch_size)
    return total / count[..., None]


def _add_windows(
    total: Array,
    function: Predict,
    images: Array,
    shape: tuple[int, int],
    begins: Sequence[tuple[int, int]],
    batch_size: int,
) -> Array:
    """Add what a function gives for windows of one shape, which begin at (top, left)."""
    corners = [(b, *begin) for b in range(images.shape[0]) for begin in begins]
    calls = -(-len(corners) // batch_size)
    each = -(-len(corners) // calls)
    blanks = calls * each - len(corners)  # at most one a call; they are looked at but not added
    weights = np.array([1.0] * len(corners) + [0.0] * blanks, np.float32).reshape(calls, each)
    corners = np.array(corners + corners[:1] * blanks, np.int32).reshape(calls, each, 3)

    def cut(corner: Array) -> Array:
        return lax.dynamic_slice(images, (*corner, 0), (1, *shape, images.shape[3]))[0]

    def add(total: Array, view: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (b, top, left), weight, values = view
        place = (b, top, left, 0)
        sums = lax.dynamic_slice(total, place, (1, *values.shape))
        sums = sums + weight * values
        return lax.dynamic_update_slice(total, sums, place), None

    def call(total: Array, views: tuple[Array, Array]) -> tuple[Array, None]:
        corners, weights = views
        return lax.scan(add, total, (corners, weights, function(jax.vmap(cut)(corners))))

    return lax.scan(call, total, (corners, weights))[0]


def _pair(sides: tuple[int, int] | int) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, (int, np.integer)) else sides


def _log_mean(logits: Sequence[Array]) -> Array:
    """Return the logarithm of the mean softmax; a single one's logits unchanged, bit for bit."""
    if len(logits) == 1:
        return logits[0]
    return _log(sum(jax.nn.softmax(part.astype(jnp.float32)) for part in logits) / len(logits))


def _log(probabilities: Array) -> Array:
    return jnp.log(jnp.maximum(probabilities, _TINY))
