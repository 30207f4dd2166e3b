"""Views of an image, averaged: held to plain numpy loops over the same windows."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import inference, metrics, resize

IMAS = np.load(Path(__file__).parents[1] / 'fixtures' / 'imas_ops.npz')


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).normal(size=(2, 13, 22, 3)).astype(np.float32)


def predict(x):
    """A network of a kind: what it gives depends on the neighbours and on the place in a window."""
    ramp = jnp.linspace(0, 2, x.shape[1])[:, None] * jnp.linspace(-1, 1, x.shape[2])
    y = x + 0.5 * jnp.roll(x, 1, 1) - 0.3 * jnp.roll(x, 1, 2)
    return jnp.concatenate([3 * y, y[..., :1] * ramp[..., None]], -1)  # 4 classes


# Jitted: a compiled whole costs less than dozens of small programs. The network is the first
# argument, and what says how it is run is static.
network = jax.jit(predict)
sliding = jax.jit(inference.sliding, static_argnums=(0, 2, 3, 4, 5))
mirrored = jax.jit(inference.mirrored, static_argnums=0)
multi_scale = jax.jit(inference.multi_scale, static_argnums=(0, 2))


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def close(ours, theirs):
    """The same up to what another order of a program's operations makes of it."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'expected'),
    [
        (1024, 768, 512, [0, 256]),
        (2048, 768, 512, [0, 512, 1024, 1280]),
        (2048, 769, 513, [0, 513, 1026, 1279]),
        (768, 768, 512, [0]),
        (769, 768, 512, [0, 1]),
        (9, 3, 2, [0, 2, 4, 6]),
    ],
)
def test_windows_cover_the_axis_and_end_at_its_border(length, window, stride, expected):
    assert inference.starts(length, window, stride) == expected
    covered = np.zeros(length, int)
    for start in expected:
        covered[start : start + window] += 1
    assert covered.min() == 1 and expected[-1] + window == length


@pytest.mark.parametrize('case', ['cityscapes', 'voc'])
def test_windows_that_are_cut_off_are_those_of_imas(case):
    *size, window = IMAS[f'windows_{case}_size'].tolist()
    expected = IMAS[f'windows_{case}_top_left_bottom_right'].tolist()
    for side, stride in ((window, window * 2 // 3), ((window,) * 2, (window * 2 // 3,) * 2)):
        found = inference.windows(tuple(size), side, stride, cut_off=True)
        assert [list(place) for place in found] == expected


def test_windows_begin_while_they_are_inside():
    found = inference.windows((5, 9), (4, 5), (3, 4), cut_off=True)
    rows, columns = [(0, 4), (3, 5)], [(0, 5), (4, 9), (8, 9)]
    assert found == [(top, left, down, right) for top, down in rows for left, right in columns]


def test_windows_that_are_not_cut_off_are_moved_back():
    found = inference.windows((5, 9), (4, 5), (3, 4), cut_off=False)
    assert found == [(0, 0, 4, 5), (0, 4, 4, 9), (1, 0, 5, 5), (1, 4, 5, 9)]


def test_the_stride_is_two_thirds_rounded_up():
    assert inference.default_stride((768, 769)) == (512, 513)
    assert inference.default_stride((1, 2)) == (1, 2)


def test_the_stride_of_windows_that_are_cut_off_is_rounded_down():
    assert inference.default_stride((769, 512), cut_off=True) == (512, 341)
    assert inference.default_stride((1, 2), cut_off=True) == (1, 1)  # 0 would never end


@pytest.mark.parametrize('batch_size', [1, 2, 5, 7, 64])
def test_overlapping_windows_equal_a_plain_loop(images, batch_size):
    height, width, window, stride = 13, 22, (6, 9), (4, 6)
    total, count = np.zeros((2, height, width, 4)), np.zeros((height, width, 1))
    for top in (0, 4, 7):
        for left in (0, 6, 12, 13):
            region = np.s_[:, top : top + 6, left : left + 9]
            total[region] += softmax(np.asarray(network(images[region]), np.float64))
            count[region[1:]] += 1
    assert count.max() == 6  # rows 7-9 (two windows) by columns 13-14 (three)

    logits = np.asarray(sliding(predict, images, window, stride, batch_size))
    np.testing.assert_allclose(np.exp(logits), total / count, atol=1e-6)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ('window', 'stride', 'batch_size'),
    [
        ((7, 9), (4, 6), 1),
        ((5, 9), (3, 6), 5),  # 18 whole windows: four calls, with two blanks
        ((7, 9), (4, 6), 64),
        ((16, 30), (10, 20), 2),  # windows larger than the image, the stride smaller
        ((40, 9), (26, 6), 4),
    ],
)
def test_windows_that_are_cut_off_equal_a_plain_loop(images, window, stride, batch_size):
    total, count = np.zeros((2, 13, 22, 4)), np.zeros((13, 22, 1))
    for top in range(0, 13, stride[0]):
        for left in range(0, 22, stride[1]):
            region = np.s_[:, top : top + window[0], left : left + window[1]]
            total[region] += softmax(np.asarray(network(images[region]), np.float64))
            count[region[1:]] += 1
    logits = np.asarray(sliding(predict, images, window, stride, batch_size, True))
    np.testing.assert_allclose(np.exp(logits), total / count, atol=1e-6)


def test_windows_that_are_cut_off_give_what_imas_gives():
    golden = {
        name: IMAS[f'sliding_random_{name}']
        for name in ('images', 'weights', 'label', 'summed_softmax', 'prediction', 'union')
    }
    window = (int(IMAS['sliding_random_window']),) * 2

    def centred(x):
        x = x - x.mean((1, 2), keepdims=True)
        return jnp.matmul(x, golden['weights'], precision='highest')

    stride = inference.default_stride(window, cut_off=True)
    logits = np.asarray(sliding(centred, golden['images'], window, stride, 4, True))
    count = np.zeros((17, 25, 1))
    for top, left, bottom, right in inference.windows((17, 25), window, stride, cut_off=True):
        count[top:bottom, left:right] += 1
    summed = golden['summed_softmax']
    np.testing.assert_allclose(np.exp(logits) * count, summed, rtol=0, atol=1e-5 * summed.max())
    np.testing.assert_array_equal(logits.argmax(-1), golden['prediction'])

    labels = golden['label'].astype(np.int32)
    matrix = np.asarray(metrics.confusion(labels, logits.argmax(-1), 5), np.int64)
    np.testing.assert_array_equal(np.diag(matrix), IMAS['sliding_random_intersection'])
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    np.testing.assert_array_equal(union, golden['union'])
    # Class 4 is in no label, but predicted: its 0 counts in either definition of mIoU.
    miou = float(IMAS['sliding_random_miou'])
    assert metrics.scores(matrix)['miou'] == pytest.approx(miou, rel=1e-9)


def test_windows_of_cityscapes_that_are_cut_off_have_four_shapes():
    seen = []

    def spy(x):
        seen.append(x.shape[:3])
        return jnp.zeros((*x.shape[:3], 19))

    def predicted(x):
        return inference.sliding(spy, x, (769, 769), (512, 512), 2, cut_off=True)

    image = jax.ShapeDtypeStruct((1, 1024, 2048, 3), jnp.float32)
    assert jax.eval_shape(predicted, image).shape == (1, 1024, 2048, 19)
    asked, *seen = seen  # for the number of classes
    assert asked == (1, 769, 769)
    # In a row three windows are whole: two calls of two, one of which is a blank.
    assert set(seen) == {(2, 769, 769), (1, 769, 512), (2, 512, 769), (1, 512, 512)}


def test_an_image_no_larger_than_the_stride_is_one_window_of_its_own_size(images):
    logits = sliding(predict, images, (30, 33), (20, 22), 1, True)
    close(logits, network(images))
    padded = sliding(predict, images, (30, 33), (20, 22), 1)
    assert abs(np.asarray(padded) - logits).max() > 0.1


def test_probabilities_are_averaged_not_logits():
    """A window that is sure of class 0 must not outvote two that lean to class 1."""

    def one_is_loud(x):
        loud = x[:, :1, :1, :1] == 0  # the first window shows column 0
        logits = jnp.where(loud, jnp.array([100.0, 0.0]), jnp.array([0.0, 3.0]))
        return jnp.broadcast_to(logits, (*x.shape[:3], 2))

    x = np.broadcast_to(np.arange(5, dtype=np.float32)[:, None], (1, 3, 5, 3))
    logits = sliding(one_is_loud, x, (3, 3), (1, 1), 2)  # at columns 0, 1, 2
    assert np.asarray(logits)[0, 0].argmax(-1).tolist() == [0, 0, 1, 1, 1]


def test_one_window_is_the_network_itself(images):
    for window in ((13, 22), (13, 30), (40, 22)):
        logits = sliding(predict, images, window, (1, 1), 1)
        padded = np.pad(
            images, ((0, 0), (0, window[0] - 13), (0, window[1] - 22), (0, 0)), 'reflect'
        )
        close(logits, np.asarray(network(padded))[:, :13, :22])
    close(sliding(predict, images, (13, 22), (9, 15), 1), network(images))


def test_an_image_is_padded_along_the_axis_that_is_too_short(images):
    padded = np.pad(images, ((0, 0), (0, 7), (0, 0), (0, 0)), 'reflect')
    expected = np.asarray(sliding(predict, padded, (20, 9), (14, 6), 4))[:, :13]
    assert expected.shape == (2, 13, 22, 4)
    close(sliding(predict, images, (20, 9), (14, 6), 4), expected)


def test_a_mirrored_image_gives_mirrored_probabilities(images):
    logits = np.asarray(mirrored(predict, images))
    plain = softmax(np.asarray(network(images)))
    mirror = softmax(np.asarray(network(images[:, :, ::-1])))[:, :, ::-1]
    np.testing.assert_allclose(np.exp(logits), (plain + mirror) / 2, atol=1e-6)
    close(mirrored(predict, images[:, :, ::-1]), logits[:, :, ::-1])
    assert abs(plain - mirror).max() > 0.1


def test_scale_one_alone_changes_nothing(images):
    close(multi_scale(predict, images, (1.0,)), network(images))


def test_scales_are_averaged_at_the_image_s_size(images):
    seen = []

    def spy(x):
        seen.append(x.shape[1:3])
        return jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)

    flat = np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    logits = multi_scale(spy, flat, (0.5, 1.0, 1.75, 0.01))
    assert seen == [(6, 11), (13, 22), (23, 38), (1, 1)]
    assert logits.shape == images.shape
    np.testing.assert_allclose(np.exp(logits), softmax(flat), atol=1e-5)

    both = multi_scale(predict, images, (1.0, 1.0))
    np.testing.assert_allclose(np.exp(both), softmax(np.asarray(network(images))), atol=1e-6)


def test_impossible_classes_stay_finite(images):
    def certain(x):
        return jnp.broadcast_to(jnp.array([0.0, 1e4]), (*x.shape[:3], 2))

    logits = np.asarray(mirrored(certain, images))
    assert np.isfinite(logits).all() and (logits.argmax(-1) == 1).all()


@pytest.mark.parametrize('cut_off', [False, True])
def test_views_nest(images, cut_off):
    """Windows inside the mirror inside the scales: each window is mirrored and resized."""

    def windows(x):
        return inference.sliding(predict, x, (9, 15), (6, 10), 4, cut_off)

    def nested(x):
        return inference.multi_scale(lambda y: inference.mirrored(windows, y), x, (1.0, 2.0))

    def by_hand(x):
        large = jax.image.resize(x, (2, 26, 44, 3), 'bilinear')
        two = inference.resize.bilinear(inference.mirrored(windows, large), (13, 22))
        return inference.mirrored(windows, x), two

    logits, (one, two) = jax.device_get(jax.jit(lambda x: (nested(x), by_hand(x)))(images))
    np.testing.assert_allclose(np.exp(logits), (np.exp(one) + softmax(two)) / 2, atol=1e-5)


@pytest.mark.parametrize('flip', [False, True])
def test_resized_images_of_two_sizes_equal_each_alone(images, flip):
    window, scales = (10, 14), (1.0, 0.55, 1.5)
    sizes = np.array([[13, 22], [8, 17]], np.int32)

    def coarse(x):  # a network's logits at half its input's size
        return predict(x)[:, ::2, ::2]

    found = jax.jit(inference.resized, static_argnums=(0, 3, 4, 5))(
        coarse, images, sizes, window, scales, flip
    )
    assert found.shape == (2, 13, 22, 4)

    @functools.partial(jax.jit, static_argnums=1)
    def alone(image, size):
        whole, total = resize.half_pixel(image[None], window), 0.0
        for scaled in ((10, 14), (5, 7), (15, 21)):
            view = resize.half_pixel(whole, scaled)
            total += resize.half_pixel(coarse(view), window)
            if flip:
                total += resize.half_pixel(coarse(view[:, :, ::-1]), window)[:, :, ::-1]
        return resize.half_pixel(total, size)[0]

    for i, (height, width) in enumerate(sizes.tolist()):
        expected = alone(images[i, :height, :width], (height, width))
        np.testing.assert_allclose(found[i, :height, :width], expected, rtol=1e-5, atol=1e-5)
