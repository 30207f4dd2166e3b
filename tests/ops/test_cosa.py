"""CoSA's losses against the authors' program, and against their definition pair by pair."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import cosa, losses, weak

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')


@jax.jit
def cam2seg(logits, mask, weights):
    """The authors' combination, and its gradient."""

    def loss(logits):
        background, foreground = cosa.cam2seg_loss(logits, mask, weights)
        return 0.5 * losses.mean(*background) + 0.5 * losses.mean(*foreground)

    return jax.value_and_grad(loss)(logits)


@jax.jit
def seg2cam(cam, probabilities):
    return jax.value_and_grad(lambda x: losses.mean(*cosa.seg2cam_loss(x, probabilities)))(cam)


@jax.jit
def separation(cam, region, labels, temperature):
    def loss(cam):
        total, count = cosa.separation(cam, region, labels, temperature)
        return total, count

    return jax.value_and_grad(loss, has_aux=True)(cam)


def held(found, loss, gradient):
    np.testing.assert_allclose(found[0], GOLDEN[loss], rtol=1e-5)
    expected = GOLDEN[gradient]
    np.testing.assert_allclose(found[1], expected, atol=1e-5 * np.abs(expected).max())


def masks():
    mask = GOLDEN['cpl_mask0'].astype(np.int32)
    return {
        '': mask,
        '_no_fg': np.where(mask > 0, -1, mask),
        '_no_bg': np.where(mask == 0, -1, mask),
        '_ignored': np.full_like(mask, -1),
    }


@pytest.mark.parametrize('case', ['', '_no_fg', '_no_bg', '_ignored'])
def test_segmentation_by_cams_is_the_authors(case):
    assert GOLDEN['c2s_fg_alpha'] == 0.5
    found = cam2seg(GOLDEN['c2s_logits'], masks()[case], np.ones((3, 32, 32), np.float32))
    np.testing.assert_allclose(found[0], GOLDEN[f'c2s_loss{case}'], rtol=1e-5)
    if f'c2s_grad{case}' in GOLDEN:
        held(found, f'c2s_loss{case}', f'c2s_grad{case}')
    assert np.isfinite(found[1]).all() and (case != '_ignored' or not found[1].any())


def test_weighted_segmentation_is_the_authors():
    found = cam2seg(GOLDEN['c2s_logits'], masks()[''], GOLDEN['c2s_weights'])
    held(found, 'c2s_weighted_loss', 'c2s_weighted_grad')


def test_counts_are_of_pixels_or_of_weights():
    mask, weights = masks()[''], GOLDEN['c2s_weights']
    logits = GOLDEN['c2s_logits']
    plain = jax.jit(cosa.cam2seg_loss)(logits, mask)
    weighted = jax.jit(lambda *x: cosa.cam2seg_loss(*x, by_weight=True))(logits, mask, weights)
    for (_, count), (_, weight), region in zip(plain, weighted, (mask == 0, mask > 0), strict=True):
        assert count == region.sum()
        np.testing.assert_allclose(weight, weights[region].sum(), rtol=1e-5)


def test_cams_by_segmentation_are_the_authors():
    found = seg2cam(GOLDEN['s2c_cam'], GOLDEN['spl_prob'])
    held(found, 's2c_loss', 's2c_grad')
    assert (np.asarray(found[1])[GOLDEN['s2c_cam'] <= 0] == 0).all()
    _, zero = seg2cam(0 * GOLDEN['s2c_cam'], GOLDEN['spl_prob'])
    assert not zero.any()  # no gradient at 0 either


def test_soft_margin_is_the_authors():
    @jax.jit
    def margin(logits, labels):
        def loss(x):
            return losses.mean(*weak.multilabel_soft_margin(x, labels))

        return jax.value_and_grad(loss)(logits)

    held(margin(GOLDEN['margin_logits'], GOLDEN['cpl_labels']), 'margin_loss', 'margin_grad')
    far = np.float32([[-1e4, 1e4, 1e4], [-1e4, 0, 0], [0, 0, 0]]).repeat(2, 1)[:, :5]
    value, gradient = margin(far, np.zeros((3, 5), np.float32))
    np.testing.assert_allclose(value, (3e4 + 8 * np.log(2)) / 15, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_labels_of_a_mask_are_without_background_and_void():
    mask = np.uint8([[0, 3, 255], [3, 1, 0]])
    found = weak.image_labels(mask, 5)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [1, 0, 1, 0])
    np.testing.assert_array_equal(weak.image_labels(np.full((2, 2), 255, np.uint8), 3), [0, 0])


def test_separation_is_the_recorded_one():
    given = (GOLDEN[f'ours_csc_{name}'] for name in ('region', 'tau'))
    region, temperature = given
    (total, count), gradient = separation(
        GOLDEN['s2c_cam'], region.astype(np.int32), GOLDEN['cpl_labels'], float(temperature)
    )
    assert count == GOLDEN['ours_csc_count']
    np.testing.assert_allclose(total, GOLDEN['ours_csc_sum'], rtol=1e-5)
    assert np.isfinite(gradient).all() and gradient.any()


@pytest.mark.parametrize('temperature', [0.5, 0.005])  # of the latter exp(1 / tau) is infinite
def test_separation_is_that_of_its_pairs(temperature):
    cam, labels = GOLDEN['s2c_cam'], np.float32([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
    region = np.random.default_rng(0).integers(-1, 3, (3, 8, 8)).astype(np.int32)
    region[1] = 5  # no background
    region[2] = [4, *[0] * 7]  # a column of class 4
    expected = []
    for image, c in ((0, 1), (0, 2), (2, 4)):
        m = 1 / (1 + np.exp(-cam[image, ..., c - 1].astype(float).ravel()))
        s = (1 - np.abs(m[:, None] - m)) / temperature
        r = region[image].ravel()
        n = np.exp(s[r == c][:, r == 0]).mean()
        parts = []
        for one in (c, 0):
            own = s[r == one][:, r == one]
            parts += [own[i, j] for i in range(len(own)) for j in range(len(own)) if i != j]
        parts = np.array(parts)
        expected.append((-parts + np.log(np.exp(parts) + n)).mean())
    (total, count), gradient = separation(cam, region, labels, temperature)
    assert count == 3
    np.testing.assert_allclose(total, sum(expected), rtol=1e-4)
    assert np.isfinite(gradient).all() and not gradient[1].any()


def test_separation_parts_the_two_kinds():
    """A step against the gradient raises the contrast, in whichever direction it was."""
    region = np.zeros((3, 8, 8), np.int32)
    region[:, :4] = 1
    labels = np.float32([[1, 0, 0, 0, 0]] * 3)
    cam = np.random.default_rng(0).normal(size=(3, 8, 8, 5)).astype(np.float32)
    cam[:, :4, :, 0] += 0.5
    _, gradient = separation(cam, region, labels, 0.5)
    moved = -np.asarray(gradient)[..., 0]
    assert moved[:, :4].mean() > 0 > moved[:, 4:].mean()
    assert not np.asarray(gradient)[..., 1:].any()


def test_nothing_to_separate_is_no_loss():
    for region in (-1, 0, 1):
        (total, count), gradient = separation(
            GOLDEN['s2c_cam'], np.full((3, 8, 8), region, np.int32), np.ones((3, 5)), 0.5
        )
        assert total == 0 and count == 0 and not gradient.any()
