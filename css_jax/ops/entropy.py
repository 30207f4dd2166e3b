"""Entropy of pixels over label embeddings, as USSS minimises it: within a label set and across two.

A pixel's scores are the products of its embedding, which is not normalised, with the unit rows of a
label set; the entropy is that of their softmax, in float32 whatever the embeddings are.

Source: arXiv 1811.10323 and its authors' program.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from css_jax.ops import resize
from css_jax.ops.losses import Term

# A row shorter than this has no direction, and scores next to nothing.
_SMALLEST_NORM = 1e-12
# Scores so far below the largest, and farther ones, have probability 0 and an entropy of 0.
_FAR_BELOW = 1e9


class LabelEmbeddings(NamedTuple):
    """The fixed rows that the pixels are scored against, those of one label set.

    Attributes:
        rows: [R, E], one or several of each label, the row of void last: it is never scored.
        valid: [R - 1] bool, the rows that are in the softmax; None: all of them. A label that no
            labelled pixel has is without an embedding.
    """

    rows: Array
    valid: Array | None = None


class Measured(NamedTuple):
    """What `measure` gives of a batch: sums, so that batches and devices are added up.

    Attributes:
        entropy: label set -> sum of the entropies of the pixels at full size, and their number.
        nearest: label set -> [R - 1] float32, how many cells of the embedding map score each row
            highest; without gradient. Its largest share is that of the commonest row, which is 1
            where all has collapsed onto one row.
        length: sum of |e| over the cells of the embedding map, and their number; without gradient.
            A pixel at full size, which lies between cells, has a length of at most theirs.
    """

    entropy: dict[str, Term]
    nearest: dict[str, Array]
    length: Term


def unit_rows(rows: Array) -> Array:
    """Return v / max(|v|, 1e-12) of each row [R, E], in float32; rows of zeros stay zero."""
    rows = rows.astype(jnp.float32)
    square = jnp.square(rows).sum(-1, keepdims=True)
    # The bound is inside of the root, whose gradient at 0 is infinite.
    return rows / jnp.sqrt(jnp.maximum(square, _SMALLEST_NORM**2))


def similarity(features: Array, rows: Array) -> Array:
    """Return the score of each pixel with each row but void's: v_r e / |v_r|.

    Args:
        features: [..., E] pixel embeddings e, any float type.
        rows: [R, E] label embeddings v, void's last.

    Returns:
        [..., R - 1] float32.

    Raises:
        ValueError: pixels and rows differ in E, or there is no row but void's.
    """
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != features.shape[-1]:
        raise ValueError(
            f'rows has shape {rows.shape}; expected [R, {features.shape[-1]}] with void last, as '
            f'the pixel embeddings have {features.shape[-1]} channels'
        )
    # Not in TF32: an error of a score is one of its exponential.
    return jnp.einsum(
        '...e,re->...r',
        features.astype(jnp.float32),
        unit_rows(rows)[:-1],
        precision='highest',
    )


def entropy(similarity: Array, valid: Array | None = None) -> Array:
    """Return the entropy of each pixel's softmax over its scores, temperature 1.

    Args:
        similarity: [..., R] scores, any float type.
        valid: [R] bool, the rows that are in the softmax; None: all of them.

    Returns:
        [...] float32 in [0, log R], 0 where no row is valid. It is finite for all scores that are,
        and so is its gradient, -q_r (log q_r + H).

    Raises:
        ValueError: `valid` has not one entry a row.
    """
    scores = similarity.astype(jnp.float32)
    valid = _valid(valid, scores.shape[-1])
    largest = jnp.max(scores, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    # H = log Z + sum of q_r · (largest - s_r), of which no term is negative: nothing cancels.
    below = jnp.minimum(jax.lax.stop_gradient(largest) - scores, _FAR_BELOW)
    below = jnp.where(valid, below, 0.0)
    weights = jnp.where(valid, jnp.exp(-below), 0.0)
    total = jnp.where(valid.any(), weights.sum(-1), 1.0)  # 1 at least
    return jnp.log(total) + (weights * below).sum(-1) / total


def loss(features: Array, own: Array, other: Array, alpha: float, beta: float) -> Array:
    """Return alpha · (mean entropy over the other label set) + beta · (that over the own one).

    Args:
        features: [B, H, W, E] pixel embeddings at full size.
        own: [R1, E] label embeddings of the images' dataset, void's last.
        other: [R2, E] those of the other dataset, void's last.
        alpha: weight of the cross term.
        beta: weight of the within term.

    Returns:
        Float32 scalar. `measure` gives the same for less memory.
    """
    cross = entropy(similarity(features, other)).mean()
    within = entropy(similarity(features, own)).mean()
    return alpha * cross + beta * within


def measure(
    embedding: Array, label_sets: Mapping[str, LabelEmbeddings], factor: int = 8
) -> Measured:
    """Return the entropies of the enlarged embedding map over one or several label sets.

    Scores are linear in the embedding, so that they are computed at its own size and enlarged
    instead of it (`resize.upsample_zero`), those of all label sets in one pass; softmax and entropy
    follow at full size, a few images at a time and once more in the backward pass.

    Args:
        embedding: [B, h, w, E] pixel embeddings before they are enlarged, any float type.
        label_sets: name -> its rows, such as 'within' and 'cross'.
        factor: how many times larger the pixels' map is.

    Returns:
        See `Measured`; `Term.total` of `entropy` is what is differentiated.

    Raises:
        ValueError: no label set, or as `similarity`, `entropy` and `resize.upsample_zero`.
    """
    if not label_sets:
        raise ValueError('label_sets is empty; expected one or more')
    scores = {name: similarity(embedding, one.rows) for name, one in label_sets.items()}
    valid = {name: _valid(one.valid, scores[name].shape[-1]) for name, one in label_sets.items()}
    ends = [0]
    for one in scores.values():
        ends.append(ends[-1] + one.shape[-1])

    def entropies(enlarged: Array) -> dict[str, Array]:
        """Sum over the pixels of each image: [n, H, W, all rows] -> [n] for each label set."""
        return {
            name: entropy(enlarged[..., start:end], valid[name]).sum((1, 2))
            for name, start, end in zip(scores, ends, ends[1:], strict=False)
        }

    sums = resize.map_upsample_zero(
        entropies, jnp.concatenate(list(scores.values()), axis=-1), factor=factor
    )
    count, height, width = embedding.shape[:3]
    pixels = jnp.float32(count * height * width * factor**2)
    lengths = jnp.linalg.norm(jax.lax.stop_gradient(embedding).astype(jnp.float32), axis=-1)
    return Measured(
        entropy={name: Term(one.sum(), pixels) for name, one in sums.items()},
        nearest={name: _nearest(scores[name], valid[name]) for name in scores},
        length=Term(lengths.sum(), jnp.float32(lengths.size)),
    )


def _valid(valid: Array | None, rows: int) -> Array:
    if valid is None:
        return jnp.ones(rows, bool)
    if valid.shape != (rows,):
        raise ValueError(f'valid has shape {valid.shape}; expected ({rows},), one for each row')
    return valid.astype(bool)


def _nearest(scores: Array, valid: Array) -> Array:
    """Count for each row the cells that score it highest: [B, h, w, R] -> [R] float32."""
    highest = jnp.where(valid, scores, -jnp.inf).argmax(-1)[..., None] == jnp.arange(len(valid))
    return (highest & valid.any()).sum((0, 1, 2)).astype(jnp.float32)
