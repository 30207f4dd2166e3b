"""Losses against the reference program's numbers, and where it would divide by zero."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import losses

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'reference_small.npz')


def nhwc(name):
    return jnp.asarray(np.moveaxis(GOLDEN[name], 1, -1))


def close(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.max(np.abs(np.asarray(ours) - theirs)) <= 1e-4 * np.max(np.abs(theirs))


CASES = {
    'ce': lambda x: losses.cross_entropy(x, GOLDEN['label']),
    'ohem_thresh0p7_kept300': lambda x: losses.ohem_cross_entropy(x, GOLDEN['label'], 0.7, 300),
    'ohem_thresh0p7_kept400': lambda x: losses.ohem_cross_entropy(x, GOLDEN['label'], 0.7, 400),
    'unsup_weighted_0p97': lambda x: losses.weighted_unsupervised(
        x, GOLDEN['label'], GOLDEN['indicator'], 0.97
    ),
    'unsup_weighted_sparse_0p95': lambda x: losses.weighted_unsupervised(
        x, GOLDEN['label_sparse'], GOLDEN['indicator_high'], 0.95
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_value_and_gradient_are_the_reference_s(name):
    value, grad = jax.value_and_grad(lambda x: losses.mean(*CASES[name](x)))(nhwc('logits'))
    close(value, GOLDEN[name])
    close(np.moveaxis(grad, -1, 1), GOLDEN[f'{name}_grad'])


@pytest.mark.parametrize(
    'loss',
    [
        losses.cross_entropy,
        lambda x, y: losses.ohem_cross_entropy(x, y, 0.7, 10),
        lambda x, y: losses.weighted_unsupervised(x, y, jnp.ones(y.shape)),
        lambda x, y: losses.thresholded_unsupervised(x, y, jnp.ones(y.shape)),
    ],
)
def test_all_ignored_gives_zero_and_a_finite_gradient(loss):
    labels = jnp.full((2, 4, 4), -1)
    value, grad = jax.value_and_grad(lambda x: losses.mean(*loss(x, labels)))(
        1e4 * jnp.ones((2, 4, 4, 3))
    )
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_ohem_keeps_all_when_fewer_are_valid_than_kept():
    logits = 9.0 * jax.nn.one_hot(jnp.zeros((1, 4, 4), int), 3)  # every pixel is easy
    labels = jnp.zeros((1, 4, 4), int).at[0, 0].set(-1)
    assert losses.ohem_cross_entropy(logits, labels, 0.7, 13)[1] == 12
    assert losses.ohem_cross_entropy(logits, labels, 0.7, 100)[1] == 12


def test_ohem_keeps_the_hardest():
    margins = jnp.arange(16.0).reshape(1, 4, 4) / 2
    logits = jnp.stack([margins, jnp.zeros_like(margins)], -1)
    total, count = losses.ohem_cross_entropy(logits, jnp.zeros((1, 4, 4), int), 0.5, 5)
    assert count == 5
    expected = jax.nn.softplus(-jnp.arange(5) / 2).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_an_image_without_pseudo_labels_adds_nothing_to_the_others():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (2, 4, 4, 3))
    labels = jnp.stack([jnp.zeros((4, 4), int), jnp.full((4, 4), -1)])
    indicator = jnp.full((2, 4, 4), 0.99)
    both = losses.weighted_unsupervised(logits, labels, indicator)
    alone = losses.weighted_unsupervised(logits[:1], labels[:1], indicator[:1])
    np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_thresholded_counts_confident_labelled_pixels_only():
    labels = jnp.array([[[0, 1, -1, 1]]])
    indicator = jnp.array([[[0.97, 0.5, 1.0, 0.98]]])
    logits = jax.random.normal(jax.random.key(1), (1, 1, 4, 2))
    total, count = losses.thresholded_unsupervised(logits, labels, indicator, 0.97)
    assert count == 2
    log_p = jax.nn.log_softmax(logits)[0, 0]
    np.testing.assert_allclose(total, -(log_p[0, 0] + log_p[3, 1]), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 64, 64, 2), jnp.bfloat16)
    total, count = losses.cross_entropy(logits, jnp.zeros((1, 64, 64), int))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total / count, np.log(2), rtol=1e-6)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r'labels: got shape \(2, 4, 5\), expected \(2, 4, 4\)'):
        losses.cross_entropy(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 5), int))
