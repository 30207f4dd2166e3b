"""Resizing, windows, boxes, pairs, colours and rates, for drawn sizes and contents."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from css_jax.ops import boxes, imas, inference, intensity, interpolation, schedules
from tests import drawn
from tests.drawn import B, H, W

LENGTHS = st.integers(1, 40)


@given(n=LENGTHS, out=LENGTHS, scale=st.floats(0.3, 3), antialias=st.booleans())
def test_interpolation_keeps_constants_and_turns_with_the_map(n, out, scale, antialias):
    linear = interpolation.aligned(n, out), interpolation.half_pixel(n, out)
    cubic = interpolation.bicubic(n, out, None, antialias)
    for matrix in (*linear, cubic):
        assert matrix.shape == (out, n) and matrix.dtype == np.float32
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-5)
        if out > 1:  # one row is the first one where corners are aligned
            np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-5)
        if n == out:
            np.testing.assert_array_equal(matrix, np.eye(n))
    assert all((matrix >= 0).all() for matrix in linear)  # no value beyond those that are there
    scaled = interpolation.bicubic(n, max(1, int(n * scale)), scale, antialias)
    np.testing.assert_allclose(scaled.sum(1), 1, rtol=1e-5)


@given(n=st.integers(1, 12), factor=st.integers(1, 9))
def test_enlarging_between_zeros_spreads_each_pixel_evenly(n, factor):
    matrix = interpolation.zero(n, factor)
    np.testing.assert_array_equal(matrix[::-1, ::-1], matrix)
    assert (matrix.sum(1) <= 1 + 1e-6).all() and (matrix.sum(0) <= factor + 1e-5).all()
    inner = slice(factor // 2, factor * n - factor // 2)
    np.testing.assert_allclose(matrix.sum(1)[inner], 1, rtol=1e-5)


between = jax.jit(interpolation.between, static_argnums=(2, 3))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=4, max_size=4))
def test_parts_are_interpolated_as_if_they_were_alone(sizes):
    n, out = np.int32(sizes).T
    found = np.asarray(between(n, out, 9, 12))
    for i, (own, length) in enumerate(sizes):
        alone = interpolation.half_pixel(own, length)
        np.testing.assert_allclose(found[i, :length, :own], alone, atol=1e-6)
        assert not found[i, :, own:].any() and (found[i, length:] == found[i, length - 1]).all()


@given(
    size=st.tuples(LENGTHS, LENGTHS),
    window=st.tuples(LENGTHS, LENGTHS),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    cut_off=st.booleans(),
)
def test_windows_cover_every_pixel_and_lie_inside(size, window, shares, cut_off):
    if not cut_off:
        window = tuple(min(pair) for pair in zip(window, size, strict=True))
    stride = tuple(max(1, int(s * w)) for s, w in zip(shares, window, strict=True))
    covered = np.zeros(size, int)
    for top, left, bottom, right in inference.windows(size, window, stride, cut_off):
        assert 0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]
        shape = bottom - top, right - left
        assert shape == window or (cut_off and (np.array(shape) <= window).all())
        covered[top:bottom, left:right] += 1
    assert covered.all()


@jax.jit
def averaged(images, kernel):
    def predict(images):
        return images @ kernel

    return {
        'mirrored': inference.mirrored(predict, images),
        'scales': inference.multi_scale(predict, images, (0.5, 1.0, 1.5)),
        'windows': inference.sliding(predict, images, (2, 3), (1, 2), 3),
    }


@given(seed=drawn.orders, scale=st.sampled_from([0.0, 1.0, 1e3, 1e30]))
def test_averaged_views_are_distributions_whatever_the_order_of_images(seed, scale):
    r = np.random.default_rng(seed)
    images = r.normal(size=(B, H, W, 3)).astype(np.float32)
    kernel = (scale * r.normal(size=(3, 5))).astype(np.float32)
    found = jax.device_get(averaged(images, kernel))
    again = jax.device_get(averaged(images[::-1], kernel))
    for name, logits in found.items():
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(np.exp(logits.astype(float)).sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(np.exp(again[name][::-1]), np.exp(logits), atol=1e-5)


@jax.jit
def placed(bits, uniform):
    keys = jax.random.wrap_key_data(bits, impl='threefry2x32')
    centres = [(uniform[i] * side).astype(np.int32) for i, side in ((1, 30), (2, 200))]
    return (
        boxes.corners(keys, (30, 200), prob=1.0),
        imas.boxes(uniform[0], *centres, (30, 200), (0.25, 0.5)),
    )


@given(drawn.orders)
def test_boxes_lie_inside_the_image(seed):
    r = np.random.default_rng(seed)
    uniform = np.where(r.random((3, 64)) < 0.1, 1 - 2**-24, r.random((3, 64))).astype(np.float32)
    found = jax.device_get(placed(r.integers(0, 2**32, (64, 2), np.uint32), uniform))
    of_area = (found[0][:, 1] - found[0][:, 0]) * (found[0][:, 3] - found[0][:, 2])
    assert (of_area <= 0.4 * 30 * 200).all() and of_area.any()
    found = found[0], found[1][:, [0, 2, 1, 3]]
    for top, bottom, left, right in (one.T for one in found):
        assert ((top >= 0) & (top <= bottom) & (bottom <= 30)).all()
        assert ((left >= 0) & (left <= right) & (right <= 200)).all()


pairs = jax.jit(imas.pair_by_easiness, static_argnums=1)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=10, max_size=10))
def test_the_partner_of_a_partner_is_the_image_itself(easiness):
    """Also among images that are equally easy; the easier one, the harder its partner."""
    h = np.float32(easiness)
    partner = np.asarray(pairs(h, 5))
    np.testing.assert_array_equal(partner[partner], np.arange(10))
    np.testing.assert_array_equal(partner // 5, np.arange(10) // 5)
    for group in (slice(0, 5), slice(5, 10)):
        order = np.argsort(h[group], kind='stable')
        assert (np.diff(h[partner[group]][order]) <= 0).all()


ALONE = ('blur', 'sharpness')  # of all operations these look at neighbours
strong = jax.jit(intensity.strong)


@given(seed=drawn.orders, kind=st.sampled_from(['noise', 'constant', 'two values']))
def test_colours_depend_on_no_other_image_and_on_no_place(seed, kind):
    r = np.random.default_rng(seed)
    images = r.integers(0, 256, (12, 17, 24, 3), np.uint8)
    if kind != 'noise':
        images = images[:, :1, :1] + np.zeros_like(images)
        images[:, :5] //= 1 if kind == 'constant' else 2
    ops, levels = r.integers(0, 12, (12, 2)), r.uniform(0, 0.999, (12, 2)).astype(np.float32)
    ops = ops.astype(np.int32)
    found = np.asarray(strong(images, ops, levels))
    order = r.permutation(12)
    np.testing.assert_array_equal(strong(images[order], ops[order], levels[order]), found[order])
    places = r.permutation(17 * 24)

    def moved(x):
        return x.reshape(12, -1, 3)[:, places].reshape(x.shape)

    pointwise = ~np.isin(ops, [intensity.NAMES.index(name) for name in ALONE]).any(1)
    again = np.asarray(strong(moved(images), ops, levels))
    np.testing.assert_array_equal(again[pointwise], moved(found)[pointwise])


@given(
    base=st.floats(1e-6, 1),
    steps=st.integers(1, 64),
    warmup=st.integers(0, 64),
    power=st.floats(0.1, 2),
)
def test_rates_rise_then_fall_and_decays_rise_to_their_limit(base, steps, warmup, power):
    t = np.arange(80)
    warmup = min(warmup, steps)
    for rate in (
        schedules.poly(base, steps, power, warmup_steps=warmup)(t),
        schedules.poly_from_warmup(base, steps, warmup, power=power)(t),
        schedules.poly_by_epoch(base, steps, 4, power)(t),
        base * schedules.rampdown(t, steps),
        base * schedules.rampdown_by_pass(t, 4, steps),
    ):
        rate = np.asarray(rate)
        assert np.isfinite(rate).all() and (rate >= 0).all() and (rate <= base * (1 + 1e-5)).all()
        assert (np.diff(rate[warmup:]) <= 1e-6 * base).all()
    for decay in (schedules.ema_decay(t, power / 2), schedules.ema_decay_after(t, 4, 3, power / 2)):
        assert decay[0] == 0 and (np.diff(decay) >= 0).all() and (decay <= power / 2 + 1e-6).all()
