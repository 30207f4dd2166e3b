"""Image-level labels: which classes an image has, and a loss of their scores.

Of C classes, background is class 0 and has no image-level label; K = C - 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def image_labels(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Return which foreground classes occur in the mask of a whole image; on the host.

    Args:
        mask: [H, W] uint8 class indices; background and values from C on (255: void) do not count.
        num_classes: C, with background.

    Returns:
        [K] uint8, 1 where class k + 1 occurs, else 0.
    """
    counts = np.bincount(np.asarray(mask, np.uint8).ravel(), minlength=256)
    return (counts[1:num_classes] > 0).astype(np.uint8)


def multilabel_soft_margin(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the logistic loss of each score on its own, as torch's MultiLabelSoftMarginLoss.

    -[y log sigmoid(x) + (1 - y) log sigmoid(-x)]

    Args:
        logits: x, [..., K] scores of any float dtype.
        labels: y in [0, 1], same shape.

    Returns:
        (sum of all losses, number of them), float32 scalars.
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    # softplus(x) - x y is the same, and is finite for every x.
    losses = jax.nn.softplus(logits) - logits * labels
    return losses.sum(), jnp.float32(losses.size)
