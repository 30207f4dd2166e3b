"""Evaluation arithmetic: confusion counts on the device, scores on the host in int64."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def confusion(labels: Array, predictions: Array, num_classes: int, ignore: int = -1) -> Array:
    """Return counts of (true class, predicted class) over one batch.

    Args:
        labels: [...] integer truth, or `ignore`.
        predictions: [...] integer classes, same shape.
        num_classes: C.
        ignore: label of pixels that do not count.

    Returns:
        [C, C] int32, rows true. Sum batches on the host in int64: int32 overflows after
        1,024 Cityscapes frames.
    """
    index = jnp.where(labels != ignore, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[index.ravel()].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def scores(matrix: np.ndarray) -> dict[str, float | list[float | None]]:
    """Return scores of a confusion matrix.

    Args:
        matrix: [C, C] integer counts, rows true.

    Returns:
        'iou': a list over classes, None where the class is neither true nor predicted anywhere;
        'miou': their mean over the classes that have one; 'accuracy': the share of pixels right.
        All in [0, 1]; miou and accuracy are None for an empty matrix.
    """
    matrix = np.asarray(matrix, np.int64)
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    iou = [float(h / u) if u else None for h, u in zip(hits, union, strict=True)]
    present = [v for v in iou if v is not None]
    total = int(matrix.sum())
    return {
        'miou': float(np.mean(present)) if present else None,
        'iou': iou,
        'accuracy': float(hits.sum() / total) if total else None,
    }
