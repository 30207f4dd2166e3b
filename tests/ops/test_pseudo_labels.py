"""Pseudo-labels of both spaces against the reference program, and before any prototype is there."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import prototypes, pseudo_labels, resize

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'reference_small.npz')


def nhwc(name):
    return np.moveaxis(GOLDEN[name], 1, -1)


def close(ours, theirs):
    assert np.max(np.abs(ours - theirs)) <= 1e-4 * np.max(np.abs(theirs))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Jitted: a compiled whole costs less than dozens of small programs.
from_prototypes = jax.jit(pseudo_labels.from_prototypes, static_argnums=(2, 3))


def test_both_spaces_and_their_mix_are_the_reference_s():
    @jax.jit
    def spaces(logits, z, rho):
        label_lgt, conf_lgt = pseudo_labels.from_logits(logits, (12, 10))
        label_rep, conf_rep = pseudo_labels.from_prototypes(
            z, rho, (12, 10), float(GOLDEN['temperature'])
        )
        return label_lgt, conf_lgt, label_rep, conf_rep, pseudo_labels.mix(label_lgt, label_rep)

    label_lgt, conf_lgt, label_rep, conf_rep, label_mix = spaces(
        nhwc('pred'), nhwc('rep'), GOLDEN['prototypes']
    )
    np.testing.assert_array_equal(label_lgt, GOLDEN['label_lgt'])
    np.testing.assert_array_equal(label_rep, GOLDEN['label_rep'])
    np.testing.assert_array_equal(label_mix, GOLDEN['label_mix'])
    close(conf_lgt, GOLDEN['conf_lgt'])
    close(conf_rep, GOLDEN['conf_rep'])


def test_no_class_seen_gives_ignore_and_zero():
    labels, indicator = from_prototypes(
        np.ones((1, 2, 2, 4)), np.zeros((3, 4)), (4, 4), 0.5, np.zeros(3, bool)
    )
    np.testing.assert_array_equal(labels, -1)
    np.testing.assert_array_equal(indicator, 0)


def test_unseen_classes_stay_out_of_the_softmax():
    z, rho, seen = normal(1, 3, 3, 4), normal(3, 4, seed=1), np.array([True, False, True])
    rho[1] = 0
    labels, indicator = from_prototypes(z, rho, (3, 3), 0.1, seen)
    two, expected = from_prototypes(z, rho[[0, 2]], (3, 3), 0.1)
    np.testing.assert_array_equal(labels, 2 * np.asarray(two))
    np.testing.assert_allclose(indicator, expected, rtol=1e-5)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match='temperature: got 0'):
        pseudo_labels.from_prototypes(np.ones((1, 2, 2, 4)), np.ones((3, 4)), (2, 2), 0)


@pytest.mark.parametrize('batch', [1, 2, 5])
def test_a_few_images_at_a_time_give_the_same_labels(monkeypatch, batch):
    z, rho, seen = normal(batch, 3, 4, 6), normal(7, 6, seed=1), np.arange(7) != 4
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 2 * 4 * 9 * 10 * 7)  # of two images

    @jax.jit
    def both(z):
        scores = resize.bilinear(z, (9, 10)), resize.bilinear(prototypes.cosine(z, rho), (9, 10))
        own = pseudo_labels.from_logits(z, (9, 10))
        return scores, (own, pseudo_labels.from_prototypes(z, rho, (9, 10), 0.1, seen))

    (scores, cosines), spaces = jax.device_get(both(z))
    cosines = np.where(seen, cosines / np.float32(0.1), -np.inf)
    for (labels, indicator), expected in zip(spaces, (scores, cosines), strict=True):
        np.testing.assert_array_equal(labels, expected.argmax(-1))
        e = np.exp(expected - expected.max(-1, keepdims=True))
        np.testing.assert_allclose(indicator, 1 / e.sum(-1), rtol=1e-5)
