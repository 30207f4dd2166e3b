"""Confusion counts and scores against loops, and against the program of USSS's authors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import metrics

USSS = np.load(Path(__file__).parents[1] / 'fixtures' / 'usss_ops.npz')


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


@pytest.fixture(scope='module')
def usss_matrices():
    """One [6, 6] of each of the batches, void the last, twice: with void's pixels and without."""
    confusion = jax.jit(metrics.confusion, static_argnums=2)
    found = []
    for i in range(3):
        labels, predictions = (USSS[f'iou/{x}{i}'].astype(np.int32) for x in ('label', 'pred'))
        void = confusion(labels, predictions, 6)
        ignored = confusion(np.where(labels == 5, -1, labels), predictions, 6)
        np.testing.assert_array_equal(void[:-1], ignored[:-1])
        assert np.any(void[-1]) and not np.any(ignored[-1])
        found.append((np.asarray(void), np.asarray(ignored)))
    return found


def test_scores_with_a_channel_of_void_are_the_authors(usss_matrices):
    for matrix in np.sum(usss_matrices, axis=0):
        np.testing.assert_array_equal(np.diag(matrix)[:5], USSS['iou/tp'])
        np.testing.assert_array_equal(matrix[:5, :5].sum(0) - np.diag(matrix)[:5], USSS['iou/fp'])
        np.testing.assert_array_equal(matrix[:5].sum(1) - np.diag(matrix)[:5], USSS['iou/fn'])
        scores = metrics.scores(matrix, void=True, absent='zero')
        np.testing.assert_allclose(scores['iou'], USSS['iou/iou'], rtol=1e-6)
        np.testing.assert_allclose(scores['miou'], USSS['iou/miou'], rtol=1e-6)
        np.testing.assert_allclose(
            scores['accuracy'], USSS['iou/tp'].sum() / matrix[:5].sum(), rtol=1e-12
        )


def test_pixel_accuracy_that_counts_void_is_the_authors(usss_matrices):
    found = [metrics.scores(void)['accuracy'] for void, _ in usss_matrices]
    np.testing.assert_allclose(found, USSS['iou/pixel_accuracy_of_batches'], rtol=1e-6)


def exact_precision(scores, truth):
    """Average precision of one class by its definition, a threshold at every score."""
    precision, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        now = (truth & chosen).sum() / truth.sum()
        precision += (now - recall) * (truth & chosen).sum() / chosen.sum()
        recall = now
    return precision


def test_average_precision_equals_its_definition():
    rng = np.random.default_rng(0)
    truth = rng.random((60, 4)) < [0.3, 0.5, 0.1, 0]  # the last class is nowhere
    scores = np.rint(100 * (rng.normal(size=(60, 4)) * 3 + truth)) / 100 + 0.005
    scores[:, 1] = np.rint(scores[:, 1])  # many ties
    scores[0], truth[0, 2] = [19.995, -19.995, 25, 0], True
    counted = rng.random(60) < 0.7
    counted[0] = True
    histogram = jax.jit(metrics.score_histogram)
    total = sum(
        np.asarray(histogram(scores[i : i + 20], truth[i : i + 20], counted[i : i + 20]), np.int64)
        for i in (0, 20, 40)
    )
    assert total.sum() == 4 * counted.sum()
    np.testing.assert_array_equal(total[0].sum(-1), truth[counted].sum(0))
    expected = [exact_precision(scores[counted, k], truth[counted, k]) for k in range(3)]
    found = metrics.average_precision(total)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)
    assert np.isnan(found[3]) and len(set(expected)) == 3


def test_average_precision_of_one_bin_and_of_a_perfect_order():
    scores = np.array([[-30.0, 0.001], [-20.0, 0.009], [-50.0, 0.0]])
    truth = np.array([[True, True], [False, True], [False, False]])
    found = jax.jit(metrics.score_histogram)(scores, truth, np.ones(3, bool))
    np.testing.assert_allclose(metrics.average_precision(found), [1 / 3, 2 / 3])
    true, false = [[0, 0, 2], [2, 0, 1]], [[3, 1, 0], [0, 3, 0]]  # of each bin, from the lowest
    expected = [1, 1 / 3 * 1 + 2 / 3 * 3 / 6]
    np.testing.assert_allclose(metrics.average_precision([true, false]), expected)


# Rows true, void last: no class 2 anywhere but where void is true.
VOID = np.array([[6, 1, 0, 1], [2, 4, 0, 0], [0, 0, 0, 0], [5, 5, 5, 5]])


def test_predicting_void_is_a_miss_and_no_false_positive():
    scores = metrics.scores(VOID, void=True)
    assert scores['iou'] == [6 / 10, 4 / 7, None]
    np.testing.assert_allclose(scores['miou'], (6 / 10 + 4 / 7) / 2)
    np.testing.assert_allclose(scores['accuracy'], 10 / 14)


def test_an_absent_class_counts_as_zero_where_asked_for():
    scores = metrics.scores(VOID, void=True, absent='zero')
    assert scores['iou'] == [6 / 10, 4 / 7, 0]
    np.testing.assert_allclose(scores['miou'], (6 / 10 + 4 / 7) / 3)
    perfect = metrics.scores(np.diag([9, 0, 0, 0]), absent='zero')
    assert (perfect['miou'], perfect['accuracy']) == (0.25, 1)
    nothing = metrics.scores(np.zeros((3, 3), int), void=True, absent='zero')
    assert nothing == {'miou': 0, 'iou': [0, 0], 'accuracy': None}


def test_the_defaults_know_no_void_and_leave_absent_classes_out():
    matrix = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert metrics.scores(matrix) == metrics.scores(matrix, void=False, absent='omit')
    with pytest.raises(ValueError, match="absent is 'one'; expected 'omit' or 'zero'"):
        metrics.scores(matrix, absent='one')
