"""Dense energy of a segmentation: pixels alike in place and colour should have the same class.

Source: the program of CoSA's authors (arXiv 2402.17891). They filter with a permutohedral lattice,
whose output is about half of the sum that it stands for; here the sum is computed as it is, at a
side that may be smaller. At side n of a 448-pixel crop the energy is about (n / 224)^4 / 0.57 times
the authors' at 224, which belongs in its weight.
"""

import jax.numpy as jnp
from jax import Array, lax

from css_jax.ops import cam, resize

# The kernel is made for so many bytes at a time, but one row at least.
_BYTES_AT_ONCE = 64 * 2**20


def dense_energy(
    images: Array,
    probabilities: Array,
    mask: Array,
    box: Array,
    sigma_rgb: Array | float,
    sigma_xy: Array | float,
    side: int | tuple[int, int],
    ignore: int = -1,
) -> tuple[Array, Array]:
    """Return -sum_i gate_i sum_c Q_ic (K Q)_ic, with the gradient that the authors give it.

    Q are the probabilities, 0 in the padding, and K_ij = exp(-|f_i - f_j|^2 / 2) with
    f = (x / sigma_xy, y / sigma_xy, rgb / sigma_rgb), K_ii = 1 included. The gate is 1 where there
    is no pseudo-label, else 1 less the largest probability. Its gradient takes the gate as given:
    -2 gate K Q by the probabilities; there is none by images.

    Args:
        images: [B, H, W, 3] in 0 ... 255, not standardised.
        probabilities: [B, H, W, C], a softmax; or of the size at which the energy is computed.
        mask: [B, H, W] integer pseudo-labels, or `ignore`.
        box: [B, 4] int top, bottom, left, right of what is no padding, the ends exclusive.
        sigma_rgb: in levels.
        sigma_xy: in pixels of H x W.
        side: height and width at which it is computed, or the height alone; the width is then
            W side / H, rounded. Images and labels are resized with `resize.nearest`, probabilities
            with `resize.half_pixel`.
        ignore: label of pixels that have none.

    Returns:
        (sum over all images, number of images), float32 scalars. The sum is of (side^2)^2 pairs:
        its weight should be small.
    """
    count, height, width = images.shape[:3]
    size = side if isinstance(side, tuple) else (int(side), max(1, round(width * side / height)))
    colours = resize.nearest(images.astype(jnp.float32), size)
    inside = resize.nearest(cam.inside(box, (height, width)), size).astype(jnp.float32)
    unknown = resize.nearest(mask, size) == ignore
    probabilities = resize.half_pixel(probabilities, size)

    likely = lax.stop_gradient(probabilities).max(-1)
    gate = jnp.where(unknown, 1.0, jnp.maximum(inside - likely, 0.0))
    inner = (probabilities * inside[..., None]).reshape(count, size[0] * size[1], -1)
    features = _features(colours, sigma_rgb, sigma_xy * size[0] / height)
    filtered = gaussian_filter(lax.stop_gradient(features), lax.stop_gradient(inner))
    # Half of the gradient: K Q counts as given, though it is of Q as well.
    energy = -(gate.reshape(count, -1, 1) * filtered * inner).sum()
    return 2 * energy - lax.stop_gradient(energy), jnp.float32(count)


def gaussian_filter(features: Array, values: Array) -> Array:
    """Return sum_j exp(-|f_i - f_j|^2 / 2) v_j, a few rows i at a time.

    It is for values without gradient: in a backward pass the whole kernel would be kept.

    Args:
        features: f, [B, n, d]; each dimension is one of the kernel's loops, so that d is small.
        values: v, [B, n, C].

    Returns:
        [B, n, C] float32; not divided by the sum of the weights.
    """
    count, pixels, _ = features.shape
    planes = jnp.moveaxis(features.astype(jnp.float32), -1, 0)  # [d, B, n]
    values = values.astype(jnp.float32)

    def of_rows(rows: Array) -> Array:
        """Return [B, r, C] of the features of r pixels, [d, B, r]."""
        # Differences, not products: those of near pixels keep their digits.
        distances = sum(
            jnp.square(row[:, :, None] - plane[:, None])
            for row, plane in zip(rows, planes, strict=True)
        )
        # TF32 would cost three digits.
        return jnp.einsum('brn,bnc->brc', jnp.exp(-distances / 2), values, precision='highest')

    rows = max(1, min(pixels, _BYTES_AT_ONCE // (4 * count * pixels)))
    if rows == pixels:
        return of_rows(planes)
    parts = -(-pixels // rows)
    rows = -(-pixels // parts)
    # The last rows are padded: every part is alike, and one loop makes all.
    padded = jnp.pad(planes, ((0, 0), (0, 0), (0, parts * rows - pixels)))
    padded = padded.reshape(*padded.shape[:2], parts, rows)
    found = lax.map(of_rows, jnp.moveaxis(padded, 2, 0))  # [parts, B, rows, C]
    return jnp.moveaxis(found, 0, 1).reshape(count, parts * rows, -1)[:, :pixels]


def _features(colours: Array, sigma_rgb: Array | float, sigma_xy: Array | float) -> Array:
    """Return [B, h w, 5] features of colours [B, h, w, 3]: row, column and colour, divided."""
    count, height, width = colours.shape[:3]
    place = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij'), -1)
    place = jnp.broadcast_to(place / sigma_xy, (count, height, width, 2))
    both = jnp.concatenate([place, colours / sigma_rgb], axis=-1)
    return both.reshape(count, height * width, 5)
