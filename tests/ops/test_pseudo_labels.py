"""Pseudo-labels of both spaces against the reference program, and before any prototype is there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import prototypes, pseudo_labels, resize

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'reference_small.npz')


def nhwc(name):
    return jnp.asarray(np.moveaxis(GOLDEN[name], 1, -1))


def close(ours, theirs):
    assert np.max(np.abs(ours - theirs)) <= 1e-4 * np.max(np.abs(theirs))


def test_both_spaces_and_their_mix_are_the_reference_s():
    temperature = float(GOLDEN['temperature'])
    label_lgt, conf_lgt = pseudo_labels.from_logits(nhwc('pred'), (12, 10))
    label_rep, conf_rep = pseudo_labels.from_prototypes(
        nhwc('rep'), jnp.asarray(GOLDEN['prototypes']), (12, 10), temperature
    )
    np.testing.assert_array_equal(label_lgt, GOLDEN['label_lgt'])
    np.testing.assert_array_equal(label_rep, GOLDEN['label_rep'])
    np.testing.assert_array_equal(pseudo_labels.mix(label_lgt, label_rep), GOLDEN['label_mix'])
    close(conf_lgt, GOLDEN['conf_lgt'])
    close(conf_rep, GOLDEN['conf_rep'])


def test_no_class_seen_gives_ignore_and_zero():
    labels, indicator = pseudo_labels.from_prototypes(
        jnp.ones((1, 2, 2, 4)), jnp.zeros((3, 4)), (4, 4), 0.5, jnp.zeros(3, bool)
    )
    np.testing.assert_array_equal(labels, -1)
    np.testing.assert_array_equal(indicator, 0)


def test_unseen_classes_stay_out_of_the_softmax():
    z = jax.random.normal(jax.random.key(0), (1, 3, 3, 4))
    rho = jax.random.normal(jax.random.key(1), (3, 4))
    seen = jnp.array([True, False, True])
    labels, indicator = pseudo_labels.from_prototypes(z, rho.at[1].set(0), (3, 3), 0.1, seen)
    two, expected = pseudo_labels.from_prototypes(z, rho[jnp.array([0, 2])], (3, 3), 0.1)
    np.testing.assert_array_equal(labels, 2 * two)
    np.testing.assert_allclose(indicator, expected, rtol=1e-5)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match='temperature: got 0'):
        pseudo_labels.from_prototypes(jnp.ones((1, 2, 2, 4)), jnp.ones((3, 4)), (2, 2), 0)


@pytest.mark.parametrize('batch', [1, 2, 5])
def test_a_few_images_at_a_time_give_the_same_labels(monkeypatch, batch):
    z = jax.random.normal(jax.random.key(0), (batch, 3, 4, 6))
    rho = jax.random.normal(jax.random.key(1), (7, 6))
    seen = jnp.arange(7) != 4
    scores = resize.bilinear(z, (9, 10))
    cosines = jnp.where(seen, resize.bilinear(prototypes.cosine(z, rho), (9, 10)) / 0.1, -jnp.inf)
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 2 * 4 * 9 * 10 * 7)  # of two images
    spaces = jax.jit(
        lambda z: (
            pseudo_labels.from_logits(z, (9, 10)),
            pseudo_labels.from_prototypes(z, rho, (9, 10), 0.1, seen),
        )
    )(z)
    for (labels, indicator), expected in zip(spaces, (scores, cosines), strict=True):
        np.testing.assert_array_equal(labels, expected.argmax(-1))
        np.testing.assert_allclose(indicator, jax.nn.softmax(expected).max(-1), rtol=1e-5)
