"""Dropout of whole channels of an image's features: whether each is kept, and how it is scaled.

What is returned are factors [B, C], by which all pixels of an image are multiplied. Every draw
comes from the example's own key, see `css_jax.ops.draws`.
"""

import jax.numpy as jnp
from jax import Array

from css_jax.ops import draws


def channels(keys: Array, count: int, prob: float, purpose: str = 'channels') -> Array:
    """Return the factors of independent dropout: 0 with probability p, else 1 / (1 - p).

    Args:
        keys: [B] typed keys, one an example.
        count: C, channels.
        prob: p, below 1.
        purpose: of the draws; two purposes draw independently from the same keys.

    Returns:
        [B, C] float32.
    """
    kept = draws.uniform(keys, purpose, count) >= prob
    return kept / (1.0 - prob)


def complementary(bernoulli: Array, spared: Array) -> Array:
    """Return the factors of the first of two views, which share the channels out.

    Each channel is kept, and doubled, in one of the two views and dropped in the other one. An
    image that is spared has all channels, as they are, in both (UniMatch V2, TPAMI 2025, and its
    authors' program).

    Args:
        bernoulli: [B, C] of 0 and 1; 1: the first view has the channel.
        spared: [B] bool.

    Returns:
        [B, C] float32; the factors of the second view are 2 minus these.
    """
    return jnp.where(spared[:, None], 1.0, 2.0 * bernoulli)


def complementary_scale(keys: Array, channels: int) -> Array:
    """Draw the factors of `complementary`: fair coins, and B // 2 images that are spared.

    Args:
        keys: [B] typed keys, one an example.
        channels: C.

    Returns:
        [B, C] float32.
    """
    order = draws.uniform(keys, 'spared', 1)[:, 0].argsort()
    spared = order.argsort() < len(keys) // 2
    coins = draws.uniform(keys, 'complementary', channels) < 0.5
    return complementary(coins.astype(jnp.float32), spared)
