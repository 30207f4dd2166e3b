"""What UniMatch needs of ops/: held to outputs of its authors' program, and what it draws."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import qmc

from css_jax.ops import augment, boxes, color, dropout, losses, schedules
from tests.ops.test_augment import keys_of, random_images

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'unimatch_ops.npz')


def nhwc(name):
    return np.moveaxis(GOLDEN[name], 1, -1)


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= tolerance * np.max(np.abs(theirs))


# Dropout of channels.


def test_complementary_dropout_is_the_authors():
    bernoulli, spared = GOLDEN['drop_bernoulli'], np.zeros(4, bool)
    spared[GOLDEN['drop_kept']] = True
    first = dropout.complementary(bernoulli, spared)
    factors = np.concatenate([first, 2 - first])
    np.testing.assert_array_equal(factors, GOLDEN['drop_factors'])
    for tap in (0, 3):
        close(GOLDEN[f'drop_in{tap}'] * factors[:, None], GOLDEN[f'drop_out{tap}'])


@pytest.mark.parametrize(('count', 'expected'), [(1, 0), (4, 2), (5, 2)])
def test_half_of_the_images_is_spared(count, expected):
    drawn = jax.jit(jax.vmap(partial(dropout.complementary_scale, channels=300)))
    scale = np.asarray(drawn(keys_of(400 * count).reshape(400, count)))
    spared = (scale == 1).all(-1)
    assert (spared.sum(1) == expected).all() and set(np.unique(scale)) <= {0.0, 1.0, 2.0}
    others = scale[~spared]
    assert set(np.unique(others)) == {0.0, 2.0} and abs(others.mean() - 1) < 0.01
    if expected:
        share = spared.mean(0)  # every place is spared alike
        assert np.abs(share - expected / count).max() < 4 * 0.025
    assert len(np.unique(others, axis=0)) == len(others)


def test_channels_are_dropped_independently():
    factors = np.asarray(dropout.channels(keys_of(50), 400, 0.25))
    np.testing.assert_allclose(np.unique(factors), [0, 4 / 3], rtol=1e-6)
    assert abs((factors == 0).mean() - 0.25) < 0.01
    other = np.asarray(dropout.channels(keys_of(50), 400, 0.25, 'last'))
    assert abs(np.corrcoef(factors.ravel(), other.ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(dropout.channels(keys_of(2), 8, 0.0), 1)


# Boxes.

STATIC = ('size', 'prob', 'area', 'ratio')
corners = jax.jit(boxes.corners, static_argnames=STATIC)
cutmix_box = jax.jit(augment.cutmix_box, static_argnames=STATIC)


@pytest.mark.parametrize('side', [321, 518])
def test_boxes_have_the_law_of_40000_of_the_authors(side, monkeypatch):
    """By draws that fill the five axes evenly: as good as many more random ones."""
    drawn = qmc.Sobol(5, seed=0).random(4096).astype(np.float32)
    monkeypatch.setattr(boxes.draws, 'uniform', lambda *_: jnp.minimum(drawn, 1 - 2**-24))
    found = np.asarray(jax.jit(boxes.corners, static_argnums=1)(keys_of(4096), (side, side)))
    top, bottom, left, right = found.T
    there = bottom > top
    assert abs(1 - there.mean() - GOLDEN[f'box{side}_empty_share']) < 0.01
    high, wide = (bottom - top)[there], (right - left)[there]
    assert high.min() > 0 and bottom.max() <= side and right.max() <= side
    for name, values in {
        'area': high * wide / side**2,
        'ratio': high / wide,
        'top': top[there] / side,
        'left': left[there] / side,
    }.items():
        ours = np.quantile(values, np.linspace(0, 1, 21))
        theirs = GOLDEN[f'box{side}_{name}_quantiles']
        assert np.abs(ours - theirs)[1:-1].max() < 0.02, name
    places = (np.arange(8) * side + side // 2) // 8
    rows, columns = (
        (first[:, None] <= places) & (places < end[:, None])
        for first, end in ((top, bottom), (left, right))
    )
    coverage = (rows[:, :, None] & columns[:, None]).mean(0)
    assert np.abs(coverage - GOLDEN[f'box{side}_coverage8x8']).max() < 0.01


def test_a_box_is_drawn_where_its_corners_are():
    keys, size = keys_of(40), (24, 36)
    law = {'prob': 1.0, 'area': (0.1, 0.3), 'ratio': (0.5, 1.0)}
    box = np.asarray(cutmix_box(keys, size, **law))
    top, bottom, left, right = np.asarray(corners(keys, size, **law)).T
    assert box.shape == (40, *size) and box.dtype == bool
    for i in range(40):
        expected = np.zeros(size, bool)
        expected[top[i] : bottom[i], left[i] : right[i]] = True
        np.testing.assert_array_equal(box[i], expected)
    shares = box.mean((1, 2))
    assert shares.min() > 0.07 and shares.max() < 0.3
    # The table has ratios from the one end to the other; sides are rounded down.
    assert ((bottom - top) / (right - left)).max() < 1.2
    assert not cutmix_box(keys, size, prob=0.0).any()


def test_no_box_is_no_error_where_none_of_the_area_fits():
    assert not cutmix_box(keys_of(20), (8, 200), prob=1.0, area=(0.4, 0.4)).any()
    tiny = cutmix_box(keys_of(20), (2, 2), prob=1.0)  # of no pixel, or of one
    assert (tiny.sum((1, 2)) <= 2).all()


@pytest.mark.parametrize('view', [1, 2])
def test_views_are_pasted_as_the_authors_have_it(view):
    box = GOLDEN[f'v2_cutmix_box{view}'] == 1
    softmax = jax.nn.softmax(nhwc('v2_pred_u_w'))
    own = {
        'image': nhwc(f'v2_img_u_s{view}'),
        'label': softmax.argmax(-1),
        'indicator': softmax.max(-1),
        'valid': GOLDEN['v2_ignore_mask'] != 255,
    }
    found = augment.paste(box, own, np.arange(4)[::-1])
    by_tree = augment.paste(box, own, jax.tree.map(lambda x: x[::-1], own))
    jax.tree.map(np.testing.assert_array_equal, found, by_tree)
    np.testing.assert_array_equal(found['image'], nhwc(f'v2_mixed_img_u_s{view}'))
    np.testing.assert_array_equal(found['label'], GOLDEN[f'v2_label{view}'])
    close(found['indicator'], GOLDEN[f'v2_conf{view}'])
    np.testing.assert_array_equal(found['valid'], GOLDEN[f'v2_ignore{view}'] != 255)


# Colours.


def test_some_examples_become_grey_as_by_pillow():
    levels = np.random.default_rng(0).integers(0, 256, (200, 6, 5, 3), np.uint8)
    found = 255 * np.asarray(color.grey(keys_of(200), np.float32(levels) / 255, 0.2))
    changed = np.abs(found - levels).max((1, 2, 3)) > 0.01
    assert 20 < changed.sum() < 60
    for ours, image in zip(found[changed], levels[changed], strict=True):
        theirs = np.float32(Image.fromarray(image).convert('L'))[..., None]
        np.testing.assert_allclose(ours, np.broadcast_to(theirs, ours.shape), atol=0.51)
    images = random_images(3, 4, 4)
    np.testing.assert_array_equal(color.grey(keys_of(3), images, 0.0), images)


# Losses and schedules.


@pytest.mark.parametrize('view', [1, 2])
def test_the_loss_of_a_strong_view_is_the_authors(view):
    label, conf, ignore = (GOLDEN[f'v2_{name}{view}'] for name in ('label', 'conf', 'ignore'))
    threshold = float(GOLDEN['v2_conf_thresh'])

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        given = logits, label.astype(np.int32), conf, ignore != 255, threshold
        return losses.mean(*losses.confident_over_valid(*given))

    value, gradient = loss(nhwc(f'v2_pred_u_s{view}'))
    close(value, GOLDEN[f'v2_loss_u_s{view}'])
    close(np.moveaxis(gradient, -1, 1) / 4, GOLDEN[f'v2_grad_pred_u_s{view}'])  # of L, a quarter


def test_the_loss_counts_all_valid_pixels_and_is_0_without_any():
    label = np.array([[[0, 1, 1, 0]]])
    indicator, valid = np.float32([[[0.9, 0.2, 0.9, 0.9]]]), np.array([[[1, 1, 1, 0]]], bool)
    of = jax.jit(jax.value_and_grad(
        lambda x, valid: losses.mean(*losses.confident_over_valid(x, label, indicator, valid, 0.9))
    ))  # fmt: skip
    value, gradient = of(np.zeros((1, 1, 4, 2), np.float32), valid)
    np.testing.assert_allclose(value, 2 / 3 * np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(gradient.any(-1)[0, 0], [True, False, True, False])
    value, gradient = of(np.full((1, 1, 4, 2), 1e4, np.float32), ~valid & False)
    assert value == 0 and not gradient.any()


def test_the_rate_is_set_behind_the_update():
    base, factor, epochs, per_epoch = GOLDEN['adamw_settings']
    rate = schedules.poly(base, int(epochs * per_epoch), lag=1)
    for name, times in (('backbone', 1), ('head', factor)):
        theirs = GOLDEN[f'adamw_learning_rate_used_{name}']
        np.testing.assert_allclose(times * rate(np.arange(len(theirs))), theirs, rtol=1e-5)
    assert rate(0) == rate(1) == jnp.float32(base) > rate(2)  # Python's integers, not compiled
    warm = schedules.poly(1.0, 10, warmup_steps=4, lag=1)
    np.testing.assert_allclose([warm(0), warm(1)], [0.25, 0.5])
