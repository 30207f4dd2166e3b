"""Dilated 3x3 convolutions by undilated ones and by matrix products: the same sums, reordered.

A dilated convolution never mixes the d x d interleaved grids that its dilation d divides the map
into. With the grids as images of their own (space-to-batch layout) it is an undilated one, 1x1
convolutions stay what they are, and so do BatchNorm's statistics, which are sums over all pixels:
a network's dilated layers run in that layout from end to end. ASPP's rates divide no map; there a
convolution is a sum of matrix products that leave out what only meets padding. `docs/speed.md` has
what either is worth where.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LOG = logging.getLogger('css_jax')


class Forms(NamedTuple):
    """How the dilated layers of a backbone run, and ASPP's convolutions.

    Attributes:
        layers: 'dilated' | 'space_to_batch'.
        pyramid: 'dilated' | 'products'.
    """

    layers: str
    pyramid: str


# Of `config.model.atrous`; 'auto' is by platform, and 'dilated' on one that is not in AUTO.
FORMS = {
    'dilated': Forms('dilated', 'dilated'),
    'space_to_batch': Forms('space_to_batch', 'products'),
}
# Decided by `python -m benchmarks.convolutions`: the whole network, in each pair of these forms.
AUTO = {
    # Measured: products take 0.8 of the time at the paper's width and as long at the quickstart's.
    # Layers in space to batch are no faster, and slower by a factor where the grids are smaller
    # than a kernel.
    'cpu': Forms('dilated', 'products'),
    # Not measured, so the form that XLA is given is the plain one. Its dilated convolutions were
    # reported 15 to 23 times slower than PyTorch's there (https://github.com/openxla/xla/pull/32231
    # hands the forward ones to cuDNN): 'space_to_batch' is the form to try first.
    'gpu': Forms('dilated', 'dilated'),
    # Not measured, and no report known: a window's dilation is part of XLA's own convolution there.
    'tpu': Forms('dilated', 'dilated'),
}


def forms(atrous: str) -> Forms:
    """Return the forms that `config.model.atrous` stands for on this process's default platform.

    Args:
        atrous: 'auto' or a key of FORMS.
    """
    if atrous != 'auto':
        return FORMS[atrous]
    return AUTO.get(jax.default_backend(), FORMS['dilated'])


def regrid(x: jax.Array, before: int, after: int) -> jax.Array:
    """Rearrange a map from one space-to-batch layout to another.

    In layout d image (b, r, s) of a batch [B, d, d] has the pixels (d i + r, d j + s) of image b.

    Args:
        x: [B before^2, H / before, W / before, C].
        before: the layout that x is in; 1: images.
        after: the layout asked for, a divisor of H and W.

    Returns:
        [B after^2, H / after, W / after, C].
    """
    if before == after:
        return x
    if after % before and before % after:  # neither is made of the other's grids
        return regrid(regrid(x, before, 1), 1, after)
    _, height, width, channels = x.shape
    if after > before:
        d, k = before, after // before  # row i of grid r is row i // k of grid (i % k) d + r
        x = x.reshape(-1, d, d, height // k, k, width // k, k, channels)
        x = x.transpose(0, 4, 1, 6, 2, 3, 5, 7)  # [B, k, d, k, d, H / after, W / after, C]
        return x.reshape(-1, height // k, width // k, channels)
    d, k = after, before // after
    x = x.reshape(-1, k, d, k, d, height, width, channels)
    x = x.transpose(0, 2, 4, 5, 1, 6, 3, 7)  # [B, d, d, H / before, k, W / before, k, C]
    return x.reshape(-1, height * k, width * k, channels)


def regrids(form: str, size: Sequence[int], multiple: int, images: Sequence[int]) -> bool:
    """Say whether a backbone's dilated layers run in space-to-batch layout.

    They do where `form` asks for it and both sides of the map divide by every dilation. Where they
    do not, that is logged, once a process and size of images (as debug from the fourth on).

    Args:
        form: see `Forms.layers`.
        size: height and width of the map that the dilated layers work on.
        multiple: the least common one of their dilations.
        images: height and width of the images, for the log line.
    """
    if form == 'dilated' or multiple == 1:
        return False
    divides = all(side % multiple == 0 for side in size)
    if not divides:
        _say(tuple(images), tuple(size), multiple)
    return divides


@functools.cache
def _say(images: tuple[int, int], size: tuple[int, int], multiple: int) -> None:
    """Log that images of a size are not rearranged, the first time that it is called with it."""
    few = _say.cache_info().currsize < 3  # an evaluation may have hundreds of sizes
    LOG.log(
        logging.INFO if few else logging.DEBUG,
        '%d x %d: dilated convolutions, as space_to_batch needs maps with sides that are multiples '
        'of %d, and theirs are %d x %d',
        *images,
        multiple,
        *size,
    )


def within(block: Callable[[], Any], before: int, after: int) -> Callable[[], Callable]:
    """Return a block that is handed a map in one layout and works in another, see `regrid`.

    Args:
        block: makes the module, (x, train) -> x.
        before: layout of the map that comes in.
        after: layout that the block works in and that its result is in.

    Returns:
        The same kind of function as `block`.
    """
    if before == after:
        return block
    return lambda: lambda x, train: block()(regrid(x, before, after), train)


class Zone(NamedTuple):
    """Rows (or columns) of a map that the same taps of a kernel read.

    Attributes:
        rows: of the input.
        taps: of the kernel, that read them.
        targets: for each tap the rows of the output that it reads them for.
    """

    rows: slice
    taps: slice
    targets: tuple[slice, ...]


def zones(size: int, taps: int, dilation: int) -> list[Zone]:
    """Divide the rows of a map by the taps that read them, those left out that meet padding only.

    Args:
        size: number of rows.
        taps: of the kernel on this axis, odd.
        dilation: of the kernel.

    Returns:
        The zones from the first row to the last: for three taps of a dilation below half the size
        the outer ones, read by two taps, and the inner one, read by three.
    """
    centre = taps // 2
    reaches = [n * dilation for n in range(1, centre + 1) if n * dilation < size]
    cuts = sorted({0, size, *reaches, *(size - reach for reach in reaches)})
    found = []
    for start, stop in itertools.pairwise(cuts):
        shifts = {i: (centre - i) * dilation for i in range(taps)}
        shifts = {i: s for i, s in shifts.items() if 0 <= start + s < size}
        targets = tuple(slice(start + s, stop + s) for s in shifts.values())
        found.append(Zone(slice(start, stop), slice(min(shifts), max(shifts) + 1), targets))
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def products(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """A convolution of stride 1 as matrix products; equals `layers.convolve`.

    The map is cut into `zones` along both axes, nine for 3x3 taps. The pixels of a zone are
    multiplied once with all of the taps that read them, one product [pixels, C] x [C, taps *
    features], and the results, which are far narrower than what went in (256 of 2048 channels), are
    shifted to where they belong and added up, in float32 and rounded once. No multiplication with
    padding is done, in the gradients neither: of ASPP's nine taps on a 64 x 64 map 6.9, 5.1 and 3.5
    are left at the rates 12, 24 and 36. The gradients are given here because those that jax derives
    would multiply float32 with bfloat16.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, features], k odd, of x's dtype.
        dilation: of the kernel, both axes.

    Returns:
        [B, H, W, features] of x's dtype.
    """
    _, height, width, _ = x.shape
    y = jnp.zeros((), jnp.float32)
    for down in zones(height, kernel.shape[0], dilation):
        for right in zones(width, kernel.shape[1], dilation):
            part = jnp.einsum(
                'bhwc,ijcf->bhwijf',
                x[:, down.rows, right.rows],
                kernel[down.taps, right.taps],
                preferred_element_type=jnp.float32,
            )
            for i, rows in enumerate(down.targets):
                for j, columns in enumerate(right.targets):
                    y += _placed(part[:, :, :, i, j], {1: (rows, height), 2: (columns, width)})
    return y.astype(x.dtype)


def _forward(x, kernel, dilation):
    return products(x, kernel, dilation), (x, kernel)


def _backward(dilation, kept, gradient):
    """The gradients of `products`, as one product each a zone: (x's, the kernel's)."""
    x, kernel = kept
    bands, kernel_gradient = [], jnp.zeros((), jnp.float32)
    for down in zones(x.shape[1], kernel.shape[0], dilation):
        band = []
        for right in zones(x.shape[2], kernel.shape[1], dilation):
            windows = [
                jnp.stack([gradient[:, rows, columns] for columns in right.targets], axis=3)
                for rows in down.targets
            ]
            windows = jnp.stack(windows, axis=3)  # [B, h, w, taps, taps, features]
            taps = kernel[down.taps, right.taps]
            float32 = {'preferred_element_type': jnp.float32}
            band.append(jnp.einsum('bhwijf,ijcf->bhwc', windows, taps, **float32).astype(x.dtype))
            part = x[:, down.rows, right.rows]
            part = jnp.einsum('bhwc,bhwijf->ijcf', part, windows, **float32)
            sides = {0: (down.taps, kernel.shape[0]), 1: (right.taps, kernel.shape[1])}
            kernel_gradient += _placed(part, sides)
        bands.append(jnp.concatenate(band, axis=2))
    return jnp.concatenate(bands, axis=1), kernel_gradient.astype(kernel.dtype)


products.defvjp(_forward, _backward)


def _placed(part: jax.Array, places: dict[int, tuple[slice, int]]) -> jax.Array:
    """Pad with zeros: axis -> (where `part` belongs, size of the result) for those that grow."""
    padding = [(0, 0, 0)] * part.ndim
    for axis, (place, size) in places.items():
        padding[axis] = (place.start, size - place.stop, 0)
    return lax.pad(part, jnp.zeros((), part.dtype), padding)
