"""Confusion counts and scores against loops."""

import jax
import numpy as np

from css_jax.ops import metrics


def test_confusion_counts_pairs_and_leaves_ignored_pixels_out():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(-1, 4, (2, 9, 7)), rng.integers(0, 4, (2, 9, 7))
    expected = np.zeros((4, 4), int)
    for t, p in zip(labels.ravel(), predictions.ravel(), strict=True):
        if t >= 0:
            expected[t, p] += 1
    ours = jax.jit(metrics.confusion, static_argnums=2)(labels, predictions, 4)
    np.testing.assert_array_equal(ours, expected)


def test_scores_leave_out_a_class_with_an_empty_union():
    matrix = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    scores = metrics.scores(matrix)
    assert scores['iou'] == [3 / 6, 4 / 7, None]
    np.testing.assert_allclose(scores['miou'], (3 / 6 + 4 / 7) / 2)
    np.testing.assert_allclose(scores['accuracy'], 7 / 10)


def test_a_class_predicted_but_never_true_counts_as_zero():
    assert metrics.scores(np.array([[1, 1], [0, 0]]))['iou'] == [0.5, 0.0]


def test_scores_of_nothing():
    assert metrics.scores(np.zeros((2, 2), int)) == {
        'miou': None,
        'iou': [None, None],
        'accuracy': None,
    }


def test_sums_beyond_int32():
    scores = metrics.scores(np.array([[2**40, 2**40], [0, 2**40]]))
    np.testing.assert_allclose(scores['iou'], [0.5, 0.5])
