"""Evaluation arithmetic: counts on the device, scores of their sums on the host."""

import jax.numpy as jnp
import numpy as np
from jax import Array

# Scores are told apart in steps of 0.01: far less than what two logits that matter differ by.
_LARGEST, _BINS = 20.0, 4000


def confusion(labels: Array, predictions: Array, num_classes: int, ignore: int = -1) -> Array:
    """Return counts of (true class, predicted class) over one batch.

    Args:
        labels: [...] integer truth of any dtype, or `ignore`.
        predictions: [...] integer classes, same shape.
        num_classes: C.
        ignore: label of pixels that do not count.

    Returns:
        [C, C] int32, rows true. Sum batches on the host in int64: int32 overflows after
        1,024 Cityscapes frames.
    """
    # As int32: a cell's number is beyond uint8, and -1 is none of its values.
    labels = labels.astype(jnp.int32)
    index = jnp.where(labels != ignore, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[index.ravel()].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def scores(
    matrix: np.ndarray, void: bool = False, absent: str = 'omit'
) -> dict[str, float | list[float | None] | None]:
    """Return scores of a confusion matrix.

    Both options are for USSS (arXiv 1811.10323), whose networks have a channel of void.

    Args:
        matrix: [C, C] integer counts, rows true; with `void` [C + 1, C + 1].
        void: whether the last class is void. Its pixels do not count; where it is predicted on
            others the true class is missed, and no class has a false positive.
        absent: what becomes of a class that is neither true nor predicted anywhere: 'omit' leaves
            it out of the mean, 'zero' lets it count as 0.

    Returns:
        'iou': a list over the C classes, None where the class is omitted; 'miou': their mean over
        the classes that have one; 'accuracy': the share of pixels right. All in [0, 1]; miou and
        accuracy are None where nothing is left to divide by.

    Raises:
        ValueError: `absent` is neither of the two.
    """
    if absent not in ('omit', 'zero'):
        raise ValueError(f"absent is {absent!r}; expected 'omit' or 'zero'")
    matrix = np.asarray(matrix, np.int64)
    counted = matrix[:-1] if void else matrix  # [C, C + 1] or [C, C]
    classes = len(counted)
    hits = np.diag(counted)
    union = counted[:, :classes].sum(0) + counted.sum(1) - hits
    empty = 0.0 if absent == 'zero' else None
    iou = [float(h / u) if u else empty for h, u in zip(hits, union, strict=True)]
    present = [v for v in iou if v is not None]
    total = int(counted.sum())
    return {
        'miou': float(np.mean(present)) if present else None,
        'iou': iou,
        'accuracy': float(hits.sum() / total) if total else None,
    }


def score_histogram(scores: Array, truth: Array, counted: Array) -> Array:
    """Count the scores of one batch, those of true and of false classes apart.

    Args:
        scores: [B, K] logits; beyond -20 and 20 they are alike.
        truth: [B, K] bool, which classes are there.
        counted: [B] bool, which rows count.

    Returns:
        [2, K, 4000] int32, of true ones first; the bins are 0.01 wide and ascend. Sum batches on
        the host.
    """
    shifted = jnp.clip(scores.astype(jnp.float32), -_LARGEST, _LARGEST) + _LARGEST
    bins = jnp.minimum(jnp.floor(shifted * (_BINS / (2 * _LARGEST))), _BINS - 1).astype(jnp.int32)
    classes = scores.shape[1]
    rows = jnp.where(truth, 0, 1), jnp.broadcast_to(jnp.arange(classes), truth.shape), bins
    weights = jnp.broadcast_to(counted[:, None], truth.shape).astype(jnp.int32)
    return jnp.zeros((2, classes, _BINS), jnp.int32).at[rows].add(weights)


def average_precision(counts: np.ndarray) -> np.ndarray:
    """Return each class's average precision by its scores.

    It is the sum of (R_n - R_{n-1}) P_n over the thresholds n, from the highest down, with P_n and
    R_n the precision and recall of what lies at the threshold or above. Scores of one bin are ties.

    Args:
        counts: [2, K, bins] of `score_histogram`, summed.

    Returns:
        [K] float64 in [0, 1]; NaN for a class that is nowhere true.
    """
    true, false = np.asarray(counts, np.float64)[..., ::-1]
    hits = true.cumsum(-1)
    precision = hits / np.maximum(hits + false.cumsum(-1), 1)
    total = true.sum(-1)
    return np.where(total > 0, (true * precision).sum(-1) / np.maximum(total, 1), np.nan)
