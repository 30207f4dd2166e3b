"""Weights by perplexity against recorded ones and their properties."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import cam, cosa, perplexity

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')
LARGEST = np.asarray(cam.largest(GOLDEN['cpl_cam'], GOLDEN['cpl_labels']))
BOXES = GOLDEN['cpl_boxes']

# Jitted: a compiled whole costs less than dozens of small programs.
perplexities = jax.jit(perplexity.perplexity)
weights = jax.jit(perplexity.weights)


def test_perplexity_and_weights_are_the_recorded_ones():
    threshold, (alpha, beta) = float(GOLDEN['ours_threshold']), GOLDEN['ours_alpha_beta']
    found = perplexities(LARGEST, threshold, alpha, beta)
    np.testing.assert_allclose(found, GOLDEN['ours_perplexity'], rtol=1e-4)
    found = weights(LARGEST, threshold, BOXES, alpha, beta)
    np.testing.assert_allclose(found, GOLDEN['ours_weights'], atol=1e-5 * found.max())


def test_means_are_1_over_foreground_and_over_background():
    found = np.asarray(weights(LARGEST, 0.45, BOXES))
    inside = np.asarray(cam.inside(BOXES, (32, 32)))
    for region in (inside & (LARGEST > 0.45), inside & (LARGEST <= 0.45)):
        np.testing.assert_allclose(found[region].mean(), 1, rtol=1e-5)
    assert not found[~inside].any() and (~inside).any()


def test_the_farther_from_the_threshold_the_surer():
    found = np.asarray(perplexities(np.float32([0, 0.1, 0.3, 0.4, 0.5, 0.8, 1]), 0.4))
    assert (np.diff(found[:4]) > 0).all() and (np.diff(found[3:]) < 0).all()
    np.testing.assert_allclose(found[[0, 6]], -np.log(0.9), rtol=1e-5)
    np.testing.assert_allclose(found[3], -np.log(0.9e-4), rtol=1e-5)
    np.testing.assert_allclose(
        perplexities(0.8, 0.4, 0.8, 1.5), (-np.log(0.8 * 2 / 3)) ** 1.5, 1e-5
    )


@pytest.mark.parametrize('threshold', [0.0, 0.45, 1.0])
def test_a_kind_that_does_not_occur_makes_nothing_infinite(threshold):
    for values, box in ((LARGEST, BOXES), (0 * LARGEST, BOXES), (LARGEST, 0 * BOXES)):
        found = weights(values, threshold, box)
        assert np.isfinite(found).all() and (found >= 0).all()


def test_weighted_means_are_the_same_with_either_count():
    """Divided by pixels with weights of mean 1, or by the sum of weights as they are."""
    inside = cam.inside(BOXES, (32, 32))
    mask = np.where(inside, np.where(LARGEST > 0.45, 1, 0), -1)

    @jax.jit
    def both(logits):
        raw = perplexity.reciprocal(LARGEST, 0.45, BOXES)
        divided = perplexity.weights(LARGEST, 0.45, BOXES)
        return (
            cosa.cam2seg_loss(logits, mask, divided),
            cosa.cam2seg_loss(logits, mask, raw, by_weight=True),
        )

    for (total, count), (other, weight) in zip(*both(GOLDEN['c2s_logits']), strict=True):
        np.testing.assert_allclose(total / count, other / weight, rtol=1e-5)
