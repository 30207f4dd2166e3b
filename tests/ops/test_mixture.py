"""Thresholds from a mixture of Gaussians against scikit-learn's, and degenerate histograms."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import cam, mixture

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')
VALUES = GOLDEN['gmm_values']


@partial(jax.jit, static_argnums=1)
def found(counts, components, otherwise=0.5):
    """Thresholds, and the mixture with its number of iterations."""
    return mixture.thresholds(counts, components, otherwise), mixture.fit(counts, components)


histogram = jax.jit(mixture.histogram)


def test_a_histogram_counts_what_is_above_the_floor():
    counts = np.asarray(histogram(VALUES))
    expected, _ = np.histogram(VALUES[VALUES > 0.05], 256, (0, 1))
    np.testing.assert_array_equal(counts, expected)
    edges = np.asarray(histogram(np.float32([[0, 0.05], [0.051, 1], [1.5, 0.5]])))
    assert edges.sum() == 4 and edges[255] == 2 and edges[128] == 1 and edges[13] == 1


@pytest.mark.parametrize(('components', 'name'), [(2, 'two'), (3, 'three')])
def test_thresholds_are_those_of_the_authors(components, name):
    thresholds, (fitted, iterations) = found(histogram(VALUES), components)
    assert thresholds.shape == (components - 1,)
    np.testing.assert_allclose(thresholds, np.atleast_1d(GOLDEN[f'gmm_{name}']), atol=0.0042)
    assert iterations == GOLDEN[f'gmm_iterations{components}']
    np.testing.assert_allclose(fitted, GOLDEN[f'gmm_fit{components}'], rtol=2e-3)


def test_bins_below_the_floor_do_not_count():
    counts = np.asarray(histogram(VALUES))
    more = counts.copy()
    more[:12] = 1000
    np.testing.assert_array_equal(found(more, 2)[0], found(counts, 2)[0])


@pytest.mark.parametrize('components', [2, 3])
@pytest.mark.parametrize('bins', [[], [100], [255], [13, 14]])
def test_hardly_a_value_is_no_nan(components, bins):
    counts = np.zeros(256, np.float32)
    counts[bins] = 7
    otherwise = np.float32([0.25, 0.7])[: components - 1]
    thresholds, fitted = found(counts, components, otherwise)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fitted))
    if not bins:
        np.testing.assert_array_equal(thresholds, otherwise)
    values = [*otherwise, *((np.array(bins) + 0.5) / 256)]
    assert all(np.isclose(x, values).any() for x in np.asarray(thresholds))


def test_far_parts_are_parted_where_nothing_is():
    values = np.random.default_rng(0).normal([0.2, 0.8], 0.03, (5000, 2)).astype(np.float32)
    low = float(found(histogram(values), 2)[0][0])
    assert 0.2 < low < 0.5  # largest value of the lower part


def test_smoothing_is_the_authors():
    after = 0.25
    for value, expected in zip(
        GOLDEN['threshold_ema_in'], GOLDEN['threshold_ema_out'], strict=True
    ):
        after = mixture.smooth(after, value)
        np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_other_components_are_named():
    with pytest.raises(ValueError, match='components is 4; expected 2 or 3'):
        mixture.thresholds(np.ones(256), 4)


def test_the_noise_that_a_queue_starts_with_is_an_even_histogram():
    thresholds, _ = found(np.ones(256, np.float32), 3)
    low, high = np.asarray(thresholds)
    assert 0.05 < low < high < 1
    assert not np.asarray(cam.largest(GOLDEN['cpl_cam'], 0 * GOLDEN['cpl_labels'])).any()
