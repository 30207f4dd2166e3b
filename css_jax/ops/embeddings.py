"""Label embeddings from the features of labelled pixels: centroids, and their principal components.

They are made once, on the host: NumPy, float64 inside, float32 arrays out. The steps are fill-ins
where USSS (arXiv 1811.10323) and its authors' program give rows without saying how they came about.
"""

from collections.abc import Iterator

import jax
import numpy as np

_LLOYD_STEPS = 50
# Rows that are float64 at a time: 300,000 of 512 numbers would be 1.2 GB.
_ROWS_AT_ONCE = 8192


def class_sums(
    features: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the features of each label and their number.

    `css_jax.ops.prototypes.class_sums` is the same within a compiled step, in float32.

    Args:
        features: [N, D], any float type.
        labels: [N] int in [0, C), or -1 where there is none.
        num_classes: C.

    Returns:
        sums [C, D] and counts [C], both float32.

    Raises:
        ValueError: shapes do not fit, a label is none of these, or a feature is not finite.
    """
    features = _features(features)
    labels = _labels(labels, len(features), num_classes)
    sums = np.zeros((num_classes, features.shape[1]))
    for part, own in _parts(features, labels):
        for label in np.unique(own[own >= 0]):
            sums[label] += part[own == label].sum(0)
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    return sums.astype(np.float32), counts.astype(np.float32)


def centroids(
    features: np.ndarray, labels: np.ndarray, num_classes: int, k: int, key: jax.Array | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return k centroids of the features of each label: the mean, or the clusters of k-means.

    With k > 1: k-means++ and 50 steps of Lloyd, fewer once nothing moves. A cluster that loses its
    last feature takes the one that is farthest from its centroid. A label of fewer than k features
    has its mean k times.

    Args:
        features: [N, D], any float type.
        labels: [N] int in [0, C), or -1 where there is none.
        num_classes: C.
        k: centroids of each label.
        key: of the random draws; of a label they do not depend on other labels. Not read for k = 1.

    Returns:
        centroids [C, k, D] and counts [C, k], both float32: how many features each is the mean of;
        both 0 where a label has no feature, and only there.

    Raises:
        ValueError: `k` is not positive, or as `class_sums`.
    """
    if k < 1:
        raise ValueError(f'k is {k}; expected 1 or more')
    if k == 1:
        sums, counts = class_sums(features, labels, num_classes)
        return (sums / np.maximum(counts, 1)[:, None])[:, None], counts[:, None]
    features = _features(features)
    labels = _labels(labels, len(features), num_classes)
    seed = np.ravel(jax.random.key_data(key)).tolist()
    found = np.zeros((num_classes, k, features.shape[1]), np.float32)
    counts = np.zeros((num_classes, k), np.float32)
    for label in range(num_classes):
        own = features[labels == label].astype(np.float64)
        if len(own):
            mean = own.mean(0)
            # Around the mean, so that distances, as differences of squares, keep their digits.
            around, counts[label] = _clusters(own - mean, k, np.random.default_rng([*seed, label]))
            found[label] = mean + around
    return found, counts


def pca(features: np.ndarray, weights: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of features and their principal components.

    Args:
        features: [N, D], any float type.
        weights: [N], not negative; with 1 / (number of features of its label) for each feature all
            labels weigh alike.
        dim: how many components, those of the largest variance, largest first.

    Returns:
        mean [D] and components [D, dim], both float32: orthonormal columns, the entry that is
        largest in absolute value positive. Components without variance are arbitrary.

    Raises:
        ValueError: shapes do not fit, `dim` is not in 1 ... D, no weight is positive or one is
            negative, or a feature is not finite.
    """
    features, weights = _features(features), np.asarray(weights, np.float64)
    if weights.shape != features.shape[:1]:
        raise ValueError(f'weights has shape {weights.shape}; expected {features.shape[:1]}')
    if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise ValueError('weights: expected numbers that are not negative, and a positive one')
    size = features.shape[1]
    if not 1 <= dim <= size:
        raise ValueError(f'dim is {dim}; expected 1 to {size}, as features have {size} channels')
    weights = weights / weights.sum()
    mean, covariance = np.zeros(size), np.zeros((size, size))
    for part, own in _parts(features, weights):
        mean += own @ part
    for part, own in _parts(features, weights):
        part = (part - mean) * np.sqrt(own)[:, None]
        covariance += part.T @ part
    components = np.linalg.eigh(covariance)[1][:, ::-1][:, :dim]  # eigh: smallest first
    largest = np.take_along_axis(components, np.abs(components).argmax(0)[None], axis=0)
    return mean.astype(np.float32), (components * np.sign(largest)).astype(np.float32)


def rows(centroids: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Return label embeddings: centroids in the space of the components, and void's row, zeros.

    Args:
        centroids: [C, k, D]; that of a label without features is to be left out of the softmax.
        mean: [D].
        components: [D, dim].

    Returns:
        [C k + 1, dim] float32, the k rows of a label side by side, void's row last.
    """
    centroids, mean, components = (np.asarray(a, np.float64) for a in (centroids, mean, components))
    flat = centroids.reshape(-1, centroids.shape[-1])
    return np.pad((flat - mean) @ components, ((0, 1), (0, 0))).astype(np.float32)


def _clusters(
    features: np.ndarray, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return k centroids [k, D] of one label's features [n, D], n > 0, and their counts [k]."""
    count = len(features)
    if count < k:
        return np.repeat(features.mean(0, keepdims=True), k, axis=0), np.full(k, count)
    squares = np.square(features).sum(1)
    found = _first_centroids(features, squares, k, rng)
    places, before = np.arange(count), None
    for _ in range(_LLOYD_STEPS):
        distances = _distances(features, squares, found)
        cluster = distances.argmin(1)
        counts = np.bincount(cluster, minlength=k)
        own = distances[places, cluster]
        for empty in np.flatnonzero(counts == 0):
            # Not a cluster's only feature: that would empty another one.
            farthest = np.where(counts[cluster] > 1, own, -np.inf).argmax()
            counts[cluster[farthest]] -= 1
            cluster[farthest], own[farthest], counts[empty] = empty, 0.0, 1
        if before is not None and np.array_equal(cluster, before):
            break
        before = cluster
        found = (np.arange(k)[:, None] == cluster) @ features / counts[:, None]
    return found, counts


def _first_centroids(
    features: np.ndarray, squares: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw k features by k-means++: each with a probability by its distance from those drawn."""
    count = len(features)
    drawn = [int(rng.integers(count))]
    nearest = np.full(count, np.inf)
    for _ in range(k - 1):
        last = features[drawn[-1:]]
        nearest = np.minimum(nearest, _distances(features, squares, last)[:, 0])
        nearest[drawn] = 0.0
        total = nearest.sum()
        # Where all features are among those drawn, any will do.
        drawn.append(int(rng.choice(count, p=nearest / total if total > 0 else None)))
    return features[drawn]


def _distances(features: np.ndarray, squares: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return squared distances [n, k] of features [n, D], `squares` their own, and points."""
    products = features @ points.T
    return np.maximum(squares[:, None] - 2 * products + np.square(points).sum(1), 0.0)


def _parts(features: np.ndarray, *others: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield some rows at a time, the features' in float64."""
    for start in range(0, len(features), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        yield features[part].astype(np.float64), *(other[part] for other in others)


def _features(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2:
        raise ValueError(f'features has shape {features.shape}; expected [N, D]')
    if not np.isfinite(features).all():
        raise ValueError('features: got numbers that are not finite')
    return features


def _labels(labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f'labels has shape {labels.shape}; expected ({count},)')
    wrong = labels[(labels < -1) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f'labels: got {wrong[0]}; expected -1 to {num_classes - 1}')
    return labels
