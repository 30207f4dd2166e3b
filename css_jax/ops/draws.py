"""Random draws of augmentation: each example draws from its own key, whoever its neighbours are."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def uniform(keys: jax.Array, purpose: str, count: int) -> jax.Array:
    """Draw numbers in [0, 1) from each example's key folded with the purpose.

    Args:
        keys: [B] typed keys, one an example.
        purpose: what the draw is for; two purposes draw independently from the same keys.
        count: how many numbers an example needs.

    Returns:
        [B, count] float32.
    """
    fold = zlib.crc32(purpose.encode())

    def draw(key):
        return jax.random.uniform(jax.random.fold_in(key, fold), (count,))

    return jax.vmap(draw)(keys)


def integer(draw: jax.Array, count: int | jax.Array) -> jax.Array:
    """Map draws from [0, 1) to int32 in 0 ... count - 1."""
    return jnp.minimum((draw * count).astype(jnp.int32), count - 1)  # the product may round up


def between(draw: jax.Array, bounds: Sequence[float]) -> jax.Array:
    """Map draws from [0, 1) to [low, high)."""
    low, high = bounds
    return low + (high - low) * draw


def check_range(name: str, bounds: Sequence[float]) -> None:
    """Raise ValueError unless the bounds named `name` are two numbers, 0 < low <= high."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f'{name} is {bounds}; expected two numbers, 0 < low <= high')
