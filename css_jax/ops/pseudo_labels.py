"""Pseudo-labels of the two spaces and what is made of them (Eq. 1, 4, 5 and Sec. 3.3)."""

import jax.numpy as jnp
from jax import Array

from css_jax.ops import prototypes as prototype_ops
from css_jax.ops import resize


def from_logits(logits: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return pseudo-labels of the logit space (Eq. 1).

    Args:
        logits: [B, h, w, C] of the teacher.
        size: (H, W) to resize the logits to first, bilinearly with align_corners.

    Returns:
        labels [B, H, W] int32 and confidence j_lgt [B, H, W] float32, the largest softmax value.
    """
    return resize.map_bilinear(_most_likely, logits, size)


def from_prototypes(
    representations: Array,
    prototypes: Array,
    size: tuple[int, int],
    temperature: float = 0.5,
    seen: Array | None = None,
    ignore: int = -1,
) -> tuple[Array, Array]:
    """Return pseudo-labels of the representation space: the nearest prototype (Eq. 4, 5).

    Args:
        representations: [B, h, w, D] of the teacher.
        prototypes: [C, D].
        size: (H, W) to resize the cosine similarities to, bilinearly with align_corners.
        temperature: tau_sim of the softmax over the classes.
        seen: [C], whether a class has a prototype yet; the others stay out of the softmax.
            None: all have.
        ignore: label given everywhere while no class is seen.

    Returns:
        labels [B, H, W] int32 and softmax similarity j_rep [B, H, W] float32.
    """
    if temperature <= 0:
        raise ValueError(f'temperature: got {temperature}, expected more than 0')
    similarity = prototype_ops.cosine(representations, prototypes)  # [B, h, w, C]
    if seen is None:
        return resize.map_bilinear(lambda s: _most_likely(s / temperature), similarity, size)
    seen = seen.astype(bool)
    labels, indicator = resize.map_bilinear(
        lambda s: _most_likely(jnp.where(seen, s / temperature, -1e9)), similarity, size
    )
    return jnp.where(seen.any(), labels, ignore), jnp.where(seen.any(), indicator, 0.0)


def mix(first: Array, second: Array, ignore: int = -1) -> Array:
    """Mix pseudo-labels (Sec. 3.3): the label where both spaces agree, else `ignore`.

    Args:
        first: integer labels of one space, any shape.
        second: those of the other space, same shape.
        ignore: label where they differ.
    """
    return jnp.where(first == second, first, ignore)


def _most_likely(scores: Array) -> tuple[Array, Array]:
    """Return arg-max and largest softmax value of [..., C] scores, not the softmax of others."""
    scores = scores.astype(jnp.float32)
    # Not exp(largest - log-sum-exp): of scores near 1e4 that difference keeps three digits.
    indicator = 1 / jnp.exp(scores - scores.max(-1, keepdims=True)).sum(-1)
    return scores.argmax(-1).astype(jnp.int32), indicator
