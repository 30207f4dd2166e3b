"""The dense energy against the authors' loss with an exact filter, and against its definition."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import cam, crf, losses, resize

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')


@partial(jax.jit, static_argnames='side')
def energy(logits, mask, box, sigma_rgb, sigma_xy, side):
    def loss(logits):
        shares = jax.nn.softmax(resize.half_pixel(logits, (32, 32)))
        images = GOLDEN['energy_images_u8']
        found = crf.dense_energy(images, shares, mask, box, sigma_rgb, sigma_xy, side)
        return losses.mean(*found)

    return jax.value_and_grad(loss)(logits)


def given(row, **changed):
    sigma_rgb, sigma_xy, scale = GOLDEN['energy_sigmas'][row]
    values = {
        'logits': GOLDEN['c2s_logits'],
        'mask': GOLDEN['energy_mask'].astype(np.int32),
        'box': GOLDEN['energy_boxes'],
        'sigma_rgb': sigma_rgb,
        'sigma_xy': sigma_xy,
        'side': int(32 * scale),
    }
    return values | changed


@pytest.mark.parametrize('row', [0, 1])
def test_energy_and_gradient_are_the_authors(row):
    value, gradient = energy(**given(row))
    np.testing.assert_allclose(value, GOLDEN[f'energy{row}_exact'], rtol=1e-5)
    expected = GOLDEN[f'energy{row}_exact_grad']
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('rows', [1, 60, 256])  # 60: the last part is padded
def test_the_filter_is_the_authors_whatever_is_made_at_a_time(monkeypatch, rows):
    monkeypatch.setattr(crf, '_BYTES_AT_ONCE', rows * 4 * 3 * 256)
    sigma_rgb, sigma_xy, scale = GOLDEN['energy_sigmas'][0]
    inside = resize.nearest(cam.inside(GOLDEN['energy_boxes'], (32, 32)), (16, 16))

    @jax.jit
    def half(logits, images):
        shares = resize.half_pixel(jax.nn.softmax(resize.half_pixel(logits, (32, 32))), (16, 16))
        shares = shares * inside[..., None]
        features = crf._features(images, sigma_rgb, sigma_xy * scale)
        return shares, crf.gaussian_filter(features, shares.reshape(3, 256, -1))

    images = GOLDEN['energy_images_u8'][:, ::2, ::2].astype(np.float32)
    shares, filtered = half(GOLDEN['c2s_logits'], images)
    np.testing.assert_allclose(shares, GOLDEN['energy0_half_prob'], atol=1e-5)
    expected = GOLDEN['energy0_half_filtered'].reshape(3, 256, -1)
    np.testing.assert_allclose(filtered, expected, atol=1e-5 * np.abs(expected).max())


def test_a_smaller_side_has_about_the_same_mean_over_pairs():
    whole, _ = energy(**given(0))
    smaller, gradient = energy(**given(0, side=8))
    assert 0.8 < smaller * (16 / 8) ** 4 / whole < 1.25
    assert np.isfinite(gradient).all()


def test_without_a_pixel_there_is_no_energy():
    value, gradient = energy(**given(0, box=np.zeros((3, 4), np.int32)))
    assert value == 0 and not gradient.any()


def test_the_gate_is_doubt_where_there_is_a_label():
    """A pixel that is labelled and sure has no energy; without a label it has its whole one."""
    sure = np.zeros((3, 8, 8, 6), np.float32)
    sure[..., 2] = 1e3
    box = np.int32([[0, 32, 0, 32]] * 3)
    for label, low, high in ((2, 0, 0), (-1, -np.inf, -256)):
        value, _ = energy(**given(0, logits=sure, mask=np.full((3, 32, 32), label), box=box))
        assert low <= value <= high


def test_other_shapes_keep_their_proportions():
    images = np.zeros((1, 12, 20, 3), np.uint8)
    shares = np.full((1, 12, 20, 2), 0.5, np.float32)
    mask, box = np.full((1, 12, 20), -1), np.int32([[0, 12, 0, 20]])
    found = jax.jit(crf.dense_energy, static_argnames='side')
    value, count = found(images, shares, mask, box, 15.0, 1e6, side=6)
    np.testing.assert_allclose(value, -((6 * 10) ** 2) * 2 * 0.25, rtol=1e-5)  # K is 1 everywhere
    assert count == 1
