"""Matrices that resize a map along one axis: rows are output pixels, columns input pixels."""

import jax
import jax.numpy as jnp
import numpy as np


def aligned(n: int, out: int) -> np.ndarray:
    """Return the [out, n] float32 matrix of align_corners=True along one axis."""
    matrix = np.zeros((out, n), np.float32)
    rows = np.arange(out)
    # Position i (n-1) / (out-1) in whole numbers: lower neighbour and remainder are exact.
    lower, remainder = np.divmod(rows * (n - 1), max(out - 1, 1))
    fraction = remainder / max(out - 1, 1)
    np.add.at(matrix, (rows, lower), 1 - fraction)
    np.add.at(matrix, (rows, np.minimum(lower + 1, n - 1)), fraction)
    return matrix


def half_pixel(n: int, out: int) -> np.ndarray:
    """Return the [out, n] float32 matrix of align_corners=False along one axis."""
    matrix = np.zeros((out, n), np.float32)
    rows = np.arange(out)
    # Position (i + 0.5) n / out - 0.5 in whole numbers, as above.
    lower, remainder = np.divmod(np.maximum((2 * rows + 1) * n - out, 0), 2 * out)
    fraction = remainder / (2 * out)
    np.add.at(matrix, (rows, lower), 1 - fraction)
    np.add.at(matrix, (rows, np.minimum(lower + 1, n - 1)), fraction)
    return matrix


def bicubic(n: int, out: int, scale: float | None = None, antialias: bool = False) -> np.ndarray:
    """Return the [out, n] float32 matrix of torch's bicubic resize along one axis.

    Output row i reads the input around (i + 0.5) / scale - 0.5.

    Args:
        n: length of the input.
        out: length of the output.
        scale: output rows for each input row, as torch is told it; None: out / n.
        antialias: the kernel is as many times wider as the map shrinks. As in torch its a is then
            -0.5, at a border its weights are divided by their sum, and an axis that keeps its
            length stays as it is, whatever the scale; else a is -0.75, and the border is repeated.
    """
    step = 1 / scale if scale and not (antialias and n == out) else n / out
    positions = (np.arange(out)[:, None] + 0.5) * step - 0.5
    if antialias:
        weights = _cubic(np.abs(np.arange(n) - positions) / max(step, 1.0), -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    matrix, rows = np.zeros((out, n)), np.arange(out)[:, None]
    taps = np.floor(positions).astype(int) + np.arange(-1, 3)
    np.add.at(matrix, (rows, np.clip(taps, 0, n - 1)), _cubic(np.abs(positions - taps), -0.75))
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Return the weights of Keys' cubic kernel at distances of 0 and more."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance <= 2, far, 0.0))


def zero(n: int, factor: int) -> np.ndarray:
    """Return the [factor n, n] float32 matrix of `resize.upsample_zero` along one axis."""
    # Distances in halves of an output pixel, thus in whole numbers.
    positions = 2 * np.arange(factor * n)[:, None] + 1 - factor
    distances = np.abs(positions - 2 * factor * np.arange(n))
    return (np.maximum(2 * factor - distances, 0) / (2 * factor)).astype(np.float32)


def between(n: jax.Array, out: jax.Array, columns: int, rows: int) -> jax.Array:
    """Return the float32 matrices [B, rows, columns] of `half_pixel`, of traced lengths.

    Args:
        n: [B] int, length of the input's part.
        out: [B] int, length of the output's part; rows behind it are like its last one.
        columns: length of the input.
        rows: length of the output.
    """
    n, out = n.astype(jnp.int32)[:, None], out.astype(jnp.int32)[:, None]
    row = jnp.minimum(jnp.arange(rows, dtype=jnp.int32), out - 1)
    lower, remainder = jnp.divmod(jnp.maximum((2 * row + 1) * n - out, 0), 2 * out)
    fraction = (remainder / (2 * out))[..., None]
    column = jnp.arange(columns, dtype=jnp.int32)
    upper = jnp.minimum(lower + 1, n - 1)
    below = jnp.where(column == lower[..., None], 1 - fraction, 0.0)
    return below + jnp.where(column == upper[..., None], fraction, 0.0)
