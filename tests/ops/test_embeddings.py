"""Centroids against the program of USSS's authors and against the definition of k-means; PCA."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import embeddings

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'usss_ops.npz')
KEY = jax.random.key(0)


def cells(count=400, size=6, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, size)).astype(np.float32)
    return features, rng.integers(-1, num_classes, count)


def blobs(counts, size=5, seed=0):
    """Features around one far corner for each count, shuffled, and which corner each is of."""
    rng = np.random.default_rng(seed)
    corner = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = 50 * np.eye(len(counts), size)[corner] + rng.normal(size=(len(corner), size))
    return features.astype(np.float32), corner


def test_class_sums_are_the_authors(monkeypatch):
    features = GOLDEN['centroids/features'].reshape(-1, 4)
    for at_once in (7, 10**6):
        monkeypatch.setattr(embeddings, '_ROWS_AT_ONCE', at_once)
        sums, counts = embeddings.class_sums(features, GOLDEN['centroids/labels'].ravel(), 5)
        assert sums.dtype == counts.dtype == np.float32
        np.testing.assert_allclose(sums, GOLDEN['centroids/sums'], atol=1e-5)
        np.testing.assert_array_equal(counts, GOLDEN['centroids/counts'])


def test_void_is_left_out_and_one_centroid_is_the_mean_of_all():
    features = GOLDEN['centroids/features'].reshape(-1, 4)
    labels = GOLDEN['centroids/labels'].ravel().astype(np.int32)
    labels[labels == 4] = -1
    sums, counts = (GOLDEN[f'centroids/{x}'][:4] for x in ('sums', 'counts'))
    found, number = embeddings.centroids(features, labels, 5, 1, KEY)
    assert (found.shape, number.shape) == ((5, 1, 4), (5, 1))
    np.testing.assert_allclose(found[:4, 0], sums / counts[:, None], atol=1e-6)
    np.testing.assert_array_equal(number[:, 0], [*counts, 0])
    assert not np.any(found[4])
    again, _ = embeddings.centroids(features, labels, 5, 1, None)
    np.testing.assert_array_equal(again, found)


def test_clusters_that_are_far_apart_are_found():
    features, corner = blobs([90, 30, 7])
    found, counts = embeddings.centroids(features, np.zeros(127, int), 1, 3, KEY)
    order = found[0].argmax(1)  # which corner a centroid is of
    np.testing.assert_array_equal(counts[0], np.array([90, 30, 7])[order])
    for centroid, of in zip(found[0], order, strict=True):
        np.testing.assert_allclose(centroid, features[corner == of].mean(0), atol=1e-4)


def test_each_centroid_is_the_mean_of_those_that_are_nearest_to_it():
    features, labels = cells()
    found, counts = embeddings.centroids(features, labels, 3, 4, KEY)
    assert found.dtype == counts.dtype == np.float32
    for label in range(3):
        own = features[labels == label]
        nearest = np.square(own[:, None] - found[label]).sum(-1).argmin(1)
        np.testing.assert_array_equal(counts[label], np.bincount(nearest, minlength=4))
        means = [own[nearest == i].mean(0) for i in range(4)]
        np.testing.assert_allclose(found[label], means, atol=1e-5)


def test_the_key_decides_and_other_labels_do_not():
    features, labels = cells()
    found, counts = embeddings.centroids(features, labels, 3, 4, KEY)
    again, _ = embeddings.centroids(jax.numpy.array(features), labels, 3, 4, KEY)
    np.testing.assert_array_equal(again, found)
    others = np.where(labels == 0, -1, labels)
    for key, same in ((KEY, True), (jax.random.key(1), False)):
        found_others, counts_others = embeddings.centroids(features, others, 3, 4, key)
        assert np.array_equal(found_others[1:], found[1:]) == same
        assert np.array_equal(counts_others[1:], counts[1:]) == same
        assert not np.any(found_others[0]) and not np.any(counts_others[0])


def test_fewer_features_than_centroids_repeat_the_mean():
    features, _ = cells(3)
    found, counts = embeddings.centroids(features, np.int32([1, 1, 0]), 3, 3, KEY)
    expected = np.stack([features[2], features[:2].mean(0), np.zeros(6)])
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), atol=1e-6)
    np.testing.assert_array_equal(counts, np.repeat([[1], [2], [0]], 3, axis=1))


def test_equal_features_leave_no_centroid_without_one():
    features = np.repeat(np.float32([[0.1, 0.2, 0.7]]), 5, axis=0)
    found, counts = embeddings.centroids(features, np.zeros(5, int), 1, 4, KEY)
    np.testing.assert_allclose(found[0], features[:4], rtol=1e-6)
    assert counts.min() >= 1 and counts.sum() == 5


def test_an_empty_cluster_takes_the_farthest_feature(monkeypatch):
    features = np.array([[0.0], [1], [2], [30], [32]])
    starts = np.array([[1.0], [1000], [900]])  # two of them the nearest to nothing
    monkeypatch.setattr(embeddings, '_first_centroids', lambda *_: starts)
    monkeypatch.setattr(embeddings, '_LLOYD_STEPS', 1)
    found, counts = embeddings._clusters(features, 3, None)
    np.testing.assert_array_equal(found[:, 0], [1, 32, 30])
    np.testing.assert_array_equal(counts, [3, 1, 1])


def test_an_empty_cluster_does_not_empty_another(monkeypatch):
    starts = np.array([[0.5], [130], [1000]])  # 100 is the farthest, and alone
    monkeypatch.setattr(embeddings, '_first_centroids', lambda *_: starts)
    monkeypatch.setattr(embeddings, '_LLOYD_STEPS', 1)
    found, counts = embeddings._clusters(np.array([[0.0], [1], [100]]), 3, None)
    np.testing.assert_array_equal(found[:, 0], [1, 100, 0])
    np.testing.assert_array_equal(counts, 1)


def test_first_centroids_are_drawn_by_distance():
    features, _ = blobs([500, 2])
    squares = np.square(features).sum(1)
    drawn = [
        embeddings._first_centroids(features, squares, 2, np.random.default_rng(seed))
        for seed in range(20)
    ]
    # Drawn evenly, hardly ever one of the two; as it is, with 0.95 and more.
    assert sum({*pair.argmax(1)} == {0, 1} for pair in drawn) >= 15
    assert len({pair.tobytes() for pair in drawn}) > 10


def test_principal_components_are_those_of_the_singular_values(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5)) * [9, 5, 3, 2, 1] @ rng.normal(size=(5, 5)) + 7
    features = features.astype(np.float32)
    weights = rng.random(60)
    weights[:4] = 0
    mean = np.average(features.astype(np.float64), axis=0, weights=weights)
    around = (features - mean) * np.sqrt(weights)[:, None]
    expected = np.linalg.svd(around, full_matrices=False)[2].T
    for at_once in (7, 10**6):
        monkeypatch.setattr(embeddings, '_ROWS_AT_ONCE', at_once)
        found_mean, components = embeddings.pca(features, weights, 3)
        assert found_mean.dtype == components.dtype == np.float32
        np.testing.assert_allclose(found_mean, mean, rtol=1e-6)
        assert components.shape == (5, 3)
        np.testing.assert_allclose(np.abs(components), np.abs(expected[:, :3]), atol=1e-5)
        np.testing.assert_allclose(components.T @ components, np.eye(3), atol=1e-6)


def test_the_largest_entry_of_a_component_is_positive():
    _, components = embeddings.pca(cells(size=20)[0], np.ones(400), 20)
    assert (components[np.abs(components).argmax(0), range(20)] > 0).all()


def test_a_weight_is_a_number_of_features():
    features, _ = cells(20)
    weights = np.arange(20) % 3
    expected = embeddings.pca(np.repeat(features, weights, axis=0), np.ones(weights.sum()), 6)
    for ours, theirs in zip(embeddings.pca(features, 7.0 * weights, 6), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_rows_are_label_major_with_void_last():
    rng = np.random.default_rng(0)
    centroids, mean, components = (
        rng.normal(size=shape).astype(np.float32) for shape in ((3, 2, 5), (5,), (5, 4))
    )
    rows = embeddings.rows(centroids, mean, components)
    assert (rows.shape, rows.dtype) == ((7, 4), np.float32)
    for label in range(3):
        for i in range(2):
            expected = (centroids[label, i] - mean) @ components
            np.testing.assert_allclose(rows[2 * label + i], expected, atol=1e-5)
    assert not np.any(rows[-1])


@pytest.mark.parametrize(
    ('given', 'answer'),
    [
        ((np.ones((4, 2, 3)), np.zeros(4, int), 2, 1, None), r'features has shape \(4, 2, 3\)'),
        ((np.ones((4, 3)), np.zeros(5, int), 2, 1, None), r'labels has shape \(5,\); .*\(4,\)'),
        ((np.ones((4, 3)), np.full(4, 2), 2, 2, KEY), 'labels: got 2; expected -1 to 1'),
        ((np.ones((4, 3)), np.full(4, -2), 2, 1, None), 'labels: got -2'),
        ((np.full((4, 3), np.nan), np.zeros(4, int), 2, 2, KEY), 'not finite'),
        ((np.ones((4, 3)), np.zeros(4, int), 2, 0, KEY), 'k is 0; expected 1 or more'),
    ],
)
def test_centroids_of_what_does_not_fit_are_refused(given, answer):
    with pytest.raises(ValueError, match=answer):
        embeddings.centroids(*given)


@pytest.mark.parametrize(
    ('weights', 'dim', 'answer'),
    [
        (np.ones(3), 2, r'weights has shape \(3,\); expected \(4,\)'),
        (np.zeros(4), 2, 'weights: expected'),
        (np.array([1, 1, -1, 1]), 2, 'weights: expected'),
        (np.array([1, 1, np.nan, 1]), 2, 'weights: expected'),
        (np.ones(4), 4, 'dim is 4; expected 1 to 3'),
        (np.ones(4), 0, 'dim is 0'),
    ],
)
def test_components_of_what_does_not_fit_are_refused(weights, dim, answer):
    with pytest.raises(ValueError, match=answer):
        embeddings.pca(np.ones((4, 3)), weights, dim)
