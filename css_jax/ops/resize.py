"""Resizing as torch does it: bilinear in two ways, bicubic and nearest; and by a fixed kernel.

`bilinear` aligns the corners of the two grids (torch: align_corners=True), `half_pixel` their edges
(align_corners=False). A method has the one that its authors have.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from css_jax.ops import interpolation

# A map with an axis of classes is resized for so many bytes at a time, but one image at least. On a
# CPU that takes no longer than all at once; small batches and crops need no loop.
_BYTES_AT_ONCE = 64 * 2**20


def bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize feature maps bilinearly with align_corners=True.

    Output row i reads the input at i (h-1) / (H-1): first and last rows map onto each other, which
    `jax.image.resize` cannot do. No antialiasing. Two interpolation matrices are applied, so that
    the gradient is two matrix products as well.

    Args:
        x: [B, h, w, C], any real dtype.
        size: (H, W).

    Returns:
        [B, H, W, C] float32; the values of `x` unchanged where the size is the same.

    Raises:
        ValueError: `x` has not four axes, or `size` is not two positive integers.
    """
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w, C]')
    return _interpolated(x, _checked(size), interpolation.aligned)


def half_pixel(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize feature maps bilinearly with align_corners=False.

    Output row i reads the input at (i + 0.5) h / H - 0.5, not beyond its first and last row. No
    antialiasing: a map that shrinks to less than half is read at some of its rows alone.

    Args:
        x: [B, h, w, C], any real dtype.
        size: (H, W).

    Returns:
        [B, H, W, C] float32; the values of `x` unchanged where the size is the same.

    Raises:
        ValueError: as `bilinear`.
    """
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w, C]')
    return _interpolated(x, _checked(size), interpolation.half_pixel)


def bicubic(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize feature maps bicubically with align_corners=False, as torch does.

    Output row i reads the four rows around (i + 0.5) h / H - 0.5; beyond a border the border is
    repeated. The kernel is that of a = -0.75, where `jax.image.resize` has another one. No
    antialiasing.

    Args:
        x: [B, h, w, C], any real dtype.
        size: (H, W).

    Returns:
        [B, H, W, C] float32; the values of `x` unchanged where the size is the same.

    Raises:
        ValueError: as `bilinear`.
    """
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w, C]')
    return _interpolated(x, _checked(size), interpolation.bicubic)


def map_bilinear(
    function: Callable[..., Any], x: jax.Array, size: tuple[int, int], *maps: jax.Array
) -> Any:
    """Return function(bilinear(x, size), *maps) without holding all of the resized array at once.

    Where that array is large it is made for a few images at a time, and once more in the backward
    pass, so that only `x` and what the function gives live as a whole: with 150 classes, 16 images
    of 512 x 512 resized are 2.5 GB.

    Args:
        function: ([n, H, W, C] float32, *maps of n images) -> arrays [n, ...]; what it gives for an
            image depends on no other.
        x: [B, h, w, C], any real dtype.
        size: (H, W).
        *maps: [B, ...].

    Returns:
        Arrays [B, ...].

    Raises:
        ValueError: as `bilinear`.
    """
    size = _checked(size)
    return _map_resized(function, partial(bilinear, size=size), size, x, *maps)


def map_half_pixel(
    function: Callable[..., Any], x: jax.Array, size: tuple[int, int], *maps: jax.Array
) -> Any:
    """Return function(half_pixel(x, size), *maps) a few images at a time, as `map_bilinear`.

    Args:
        function: ([n, H, W, C] float32, *maps of n images) -> arrays [n, ...]; what it gives for an
            image depends on no other.
        x: [B, h, w, C], any real dtype.
        size: (H, W).
        *maps: [B, ...].

    Returns:
        Arrays [B, ...].

    Raises:
        ValueError: as `bilinear`.
    """
    size = _checked(size)
    return _map_resized(function, partial(half_pixel, size=size), size, x, *maps)


def half_pixel_through(
    function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    between: tuple[int, int],
    size: tuple[int, int],
) -> jax.Array:
    """Return half_pixel(function(half_pixel(x, between)), size), of the pixels that are read alone.

    A map that shrinks is read at two rows and columns for each of its own, so that from 448 to 56
    pixels a side the function is needed at a sixteenth of them.

    Args:
        function: of each pixel by itself, [B, n, m, C] float32 -> [B, n, m, C'] float32.
        x: [B, h, w, C], any real dtype.
        between: (H, W) at which the function is applied.
        size: (H', W').

    Returns:
        [B, H', W', C'] float32.

    Raises:
        ValueError: as `bilinear`.
    """
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w, C]')
    enlarge, shrink = [], []
    for n, middle, out in zip(x.shape[1:3], _checked(between), _checked(size), strict=True):
        to_size = interpolation.half_pixel(middle, out)
        read = np.flatnonzero(to_size.any(0))
        enlarge.append(interpolation.half_pixel(n, middle)[read])
        shrink.append(to_size[:, read])
    product = partial(jnp.einsum, 'Hh,Ww,bhwc->bHWc', precision='highest')  # as `_interpolated`
    return product(*shrink, function(product(*enlarge, x.astype(jnp.float32))))


def upsample_zero(x: jax.Array, factor: int = 8) -> jax.Array:
    """Enlarge feature maps bilinearly by a whole factor, zeros around them.

    Output row i reads the input at (i + 0.5) / factor - 0.5, linearly between neighbours; what lies
    outside is 0 and weighs as much as what lies inside, so that a ring of factor / 2 pixels is
    dimmed. It is what a transposed convolution with a fixed bilinear kernel gives, as DRN and USSS
    (arXiv 1811.10323) have it; `jax.image.resize` repeats the border instead, and `bilinear` aligns
    corners. Like every linear map of pixels it may change places with one of channels.

    Args:
        x: [B, h, w, C], any real dtype.
        factor: how many times larger; 1 changes nothing.

    Returns:
        [B, factor h, factor w, C] float32.

    Raises:
        ValueError: `x` has not four axes, or `factor` is no positive integer.
    """
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w, C]')
    factor = _checked_factor(factor)
    size = factor * x.shape[1], factor * x.shape[2]
    return _interpolated(x, size, lambda n, _: interpolation.zero(n, factor))


def map_upsample_zero(
    function: Callable[..., Any], x: jax.Array, *maps: jax.Array, factor: int = 8
) -> Any:
    """Return function(upsample_zero(x, factor), *maps) a few images at a time, as `map_bilinear`.

    Args:
        function: ([n, factor h, factor w, C] float32, *maps of n images) -> arrays [n, ...]; what
            it gives for an image depends on no other.
        x: [B, h, w, C], any real dtype.
        *maps: [B, ...].
        factor: how many times larger.

    Returns:
        Arrays [B, ...].

    Raises:
        ValueError: as `upsample_zero`.
    """
    factor = _checked_factor(factor)
    size = factor * x.shape[1], factor * x.shape[2]
    return _map_resized(function, partial(upsample_zero, factor=factor), size, x, *maps)


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize maps by torch's *nearest*: output i reads input floor(i h / H).

    This is not `jax.image.resize(..., 'nearest')`, which reads pixel centres (*nearest-exact*).

    Args:
        x: [B, h, w] or [B, h, w, C], any dtype.
        size: (H, W).

    Returns:
        [B, H, W] or [B, H, W, C] of the dtype of `x`.

    Raises:
        ValueError: `x` has neither three nor four axes, or `size` is not two positive integers.
    """
    if x.ndim not in (3, 4):
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w] or [B, h, w, C]')
    height, width = _checked(size)
    rows = np.arange(height) * x.shape[1] // height  # integers: no pixel lost to rounding
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows[:, None], columns[None, :]]


def _map_resized(
    function: Callable[..., Any],
    resize: Callable[[jax.Array], jax.Array],
    size: tuple[int, int],
    x: jax.Array,
    *maps: jax.Array,
) -> Any:
    """Return function(resize(x), *maps) a few images at a time; `size` is that of resize(x)."""

    def resized(x: jax.Array, *maps: jax.Array) -> Any:
        return function(resize(x), *maps)

    count = len(x)
    at_once = max(1, _BYTES_AT_ONCE // (4 * size[0] * size[1] * x.shape[-1]))
    if count <= at_once or size == x.shape[1:3]:
        return resized(x, *maps)
    while count % at_once:  # every part is alike: one loop, nothing left over
        at_once -= 1
    parts = jax.tree.map(lambda a: a.reshape(-1, at_once, *a.shape[1:]), (x, *maps))
    part = jax.checkpoint(resized, prevent_cse=False)  # which a loop prevents by itself
    given = jax.lax.map(lambda arrays: part(*arrays), parts)
    return jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), given)


def _interpolated(
    x: jax.Array, size: tuple[int, int], matrix: Callable[[int, int], np.ndarray]
) -> jax.Array:
    """Return x [B, h, w, C] resized by matrices [out, n] = matrix(n, out) of both axes."""
    height, width = size
    x = x.astype(jnp.float32)
    product = partial(jnp.einsum, precision='highest')  # TF32 would cost three digits
    if height != x.shape[1]:
        x = product('Hh,bhwc->bHwc', matrix(x.shape[1], height), x)
    if width != x.shape[2]:
        x = product('Ww,bHwc->bHWc', matrix(x.shape[2], width), x)
    return x


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or any(n != int(n) or n < 1 for n in size):
        raise ValueError(f'size is {size}; expected (height, width), two positive integers')
    return int(size[0]), int(size[1])


def _checked_factor(factor: int) -> int:
    if factor != int(factor) or factor < 1:
        raise ValueError(f'factor is {factor}; expected a positive integer')
    return int(factor)


def part_to(x: jax.Array, sizes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize the upper left part of each map as `half_pixel`; the parts are of several sizes.

    Args:
        x: [B, H, W, C], any real dtype.
        sizes: [B, 2] int, height and width of each part, from 1 to (H, W); they may be traced.
        size: (h, w).

    Returns:
        [B, h, w, C] float32; what lies outside a part is not read.

    Raises:
        ValueError: as `bilinear`.
    """
    return _between(x, sizes, jnp.broadcast_to(jnp.array(size), sizes.shape), size)


def to_part(x: jax.Array, sizes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize each map as `half_pixel` to the upper left part of a larger one.

    Args:
        x: [B, h, w, C], any real dtype.
        sizes: [B, 2] int, height and width of each part, from 1 to (H, W); they may be traced.
        size: (H, W).

    Returns:
        [B, H, W, C] float32; outside a part its last row and column are repeated.

    Raises:
        ValueError: as `bilinear`.
    """
    whole = jnp.broadcast_to(jnp.array(x.shape[1:3]), sizes.shape)
    return _between(x, whole, sizes, size)


def _between(x: jax.Array, n: jax.Array, out: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize parts of maps [B, h, w, C], of n [B, 2] pixels, to parts of out [B, 2] of `size`."""
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; expected [B, h, w, C]')
    down, across = (
        interpolation.between(n[:, axis], out[:, axis], x.shape[1 + axis], length)
        for axis, length in enumerate(_checked(size))
    )
    product = partial(jnp.einsum, precision='highest')  # as `_interpolated`
    x = product('bHh,bhwc->bHwc', down, x.astype(jnp.float32))
    return product('bWw,bHwc->bHWc', across, x)
