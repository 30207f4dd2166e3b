"""What is read of a prediction: labels, probabilities, confidence and similarity, by name."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np


class Maps(NamedTuple):
    """What is predicted of one image.

    Attributes:
        labels: int32 [H, W] in [0, num_classes).
        confidence: float32 [H, W], the largest of the probabilities.
        similarity: float32 [H, W] in [0, 1], to the nearest prototype, see
            `css_jax.methods.method.Method`; None for methods without prototypes.
    """

    labels: np.ndarray
    confidence: np.ndarray
    similarity: np.ndarray | None


def asked(
    wanted: Iterable[str], logits: jax.Array, similarity: jax.Array | None
) -> dict[str, jax.Array]:
    """Return what is wanted of a prediction, by name.

    Args:
        wanted: of 'labels' [...] int32, 'probabilities' [..., C], 'confidence' [...], the largest
            of these, and 'similarity'.
        logits: [..., C] float32.
        similarity: [...] float32, where it is wanted.
    """
    every = {
        'labels': lambda: logits.argmax(-1).astype(jnp.int32),
        'probabilities': lambda: jax.nn.softmax(logits),
        'confidence': lambda: jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, axis=-1)),
        'similarity': lambda: similarity,
    }
    return {name: every[name]() for name in wanted}


def of_strip(wanted: tuple[str, ...], sums: jax.Array, count: jax.Array) -> dict[str, jax.Array]:
    """Return what is wanted of a strip of windows, see `asked`.

    Args:
        wanted: see `asked`.
        sums: [h, W, C] of probabilities, and of similarities as the last channel where wanted.
        count: [h], how many strips were added to each row; 0 where a row is not read.
    """
    mean = sums / jnp.maximum(count, 1)[:, None, None]
    similarity = None
    if 'similarity' in wanted:
        mean, similarity = mean[..., :-1], mean[..., -1]
    return asked(wanted, jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny)), similarity)


def enlarged(
    found: Mapping[str, np.ndarray], size: tuple[int, int], wanted: Iterable[str]
) -> dict[str, np.ndarray]:
    """Return what is wanted of an image that was made smaller, at its own size; see `asked`.

    Args:
        found: 'probabilities' [h, w, C] and perhaps 'similarity' [h, w] of the smaller image. They
            are resized bilinearly.
        size: height and width of the image.
        wanted: see `asked`.
    """

    def large(array: np.ndarray) -> np.ndarray:
        return cv2.resize(np.ascontiguousarray(array), size[::-1], interpolation=cv2.INTER_LINEAR)

    small = found['probabilities']
    if 'probabilities' in wanted:
        every = [large(small[..., i]) for i in range(small.shape[-1])]
        return {'probabilities': np.stack(every, axis=-1)}
    # One class after the other: a large image's probabilities of all classes may not fit.
    labels, confidence = np.zeros(size, np.int32), large(small[..., 0])
    for i in range(1, small.shape[-1]):
        other = large(small[..., i])
        labels[other > confidence] = i
        np.maximum(confidence, other, out=confidence)
    maps = {'labels': labels, 'confidence': confidence}
    if 'similarity' in found:
        maps['similarity'] = large(found['similarity'])
    return {name: maps[name] for name in wanted}
