"""Resizing against torch's own numbers and against its properties."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import resize

USSS = np.load(Path(__file__).parents[1] / 'fixtures' / 'usss_ops.npz')
COSA = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')

# Jitted: a compiled whole costs less than dozens of small programs.
bilinear = jax.jit(resize.bilinear, static_argnums=1)
half_pixel = jax.jit(resize.half_pixel, static_argnums=1)
nearest = jax.jit(resize.nearest, static_argnums=1)
upsample_zero = jax.jit(resize.upsample_zero, static_argnums=1)


def test_bilinear_gives_torch_numbers():
    # torch 2.13: interpolate(arange(6).reshape(1, 1, 2, 3), (3, 4), 'bilinear', align_corners=True)
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    expected = [[0, 2 / 3, 4 / 3, 2], [1.5, 13 / 6, 17 / 6, 3.5], [3, 11 / 3, 13 / 3, 5]]
    np.testing.assert_allclose(np.asarray(bilinear(x, (3, 4)))[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize('size', [(17, 13), (4, 3), (9, 1), (1, 1), (33, 65)])
def test_bilinear_is_interpolation_between_aligned_corners(size):
    x = np.random.default_rng(0).standard_normal((2, 9, 5, 3)).astype(np.float32)
    expected = x
    for axis, out in zip((1, 2), size, strict=True):
        positions = np.arange(out) * (x.shape[axis] - 1) / max(out - 1, 1)
        grid = np.arange(x.shape[axis])
        expected = np.apply_along_axis(
            lambda v, p=positions, g=grid: np.interp(p, g, v), axis, expected
        )
    np.testing.assert_allclose(bilinear(x, size), expected, atol=2e-6)


def test_bilinear_of_one_pixel_is_constant():
    x = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(bilinear(x, (4, 5)), np.broadcast_to(x, (1, 4, 5, 3)))


def test_bilinear_gives_float32_and_leaves_equal_sizes_alone():
    x = (np.arange(48) / 7).reshape(1, 4, 6, 2).astype(jnp.bfloat16)
    assert bilinear(x, (8, 8)).dtype == jnp.float32
    np.testing.assert_array_equal(bilinear(x, (4, 6)), x.astype(np.float32))


def test_bilinear_gradient_is_the_transpose():
    r = np.random.default_rng(0)
    x, g = (r.standard_normal(s).astype(np.float32) for s in ((1, 4, 3, 2), (1, 9, 7, 2)))

    @jax.jit
    def both(x, g):
        y, vjp = jax.vjp(lambda x: resize.bilinear(x, (9, 7)), x)
        return y, vjp(g)[0]

    y, back = both(x, g)
    np.testing.assert_allclose(np.vdot(back, x), np.vdot(g, y), rtol=1e-5)


def test_nearest_reads_the_floor():
    # 41 -> 321 and 321 -> 41 as torch's 'nearest', not 'nearest-exact'.
    for n, out in ((41, 321), (321, 41), (65, 17), (5, 5), (1, 7)):
        x = np.arange(n * 2).reshape(1, n, 2)
        expected = [i * n // out for i in range(out)]
        np.testing.assert_array_equal(
            nearest(x, (out, 2)), [2 * np.array(expected)[:, None] + [0, 1]]
        )


def test_nearest_keeps_dtype_and_takes_channels():
    labels = np.array([[[-1, 7], [3, 2]]], np.int32)
    big = nearest(labels, (4, 2))
    assert big.dtype == jnp.int32
    np.testing.assert_array_equal(big[0], [[-1, 7], [-1, 7], [3, 2], [3, 2]])
    stacked = nearest(np.stack([labels, labels + 1], -1), (4, 2))
    np.testing.assert_array_equal(stacked, np.stack([big, np.asarray(big) + 1], -1))


@pytest.mark.parametrize('resizer', [resize.bilinear, resize.nearest])
def test_bad_arguments_are_named(resizer):
    with pytest.raises(ValueError, match=r'size is \(0, 3\)'):
        resizer(np.zeros((1, 2, 2, 1)), (0, 3))
    with pytest.raises(ValueError, match=r'shape \(2, 2\)'):
        resizer(np.zeros((2, 2)), (3, 3))


def test_upsampling_and_its_gradient_are_usss_s():
    @jax.jit
    def both(x, cotangent):
        y, pullback = jax.vjp(resize.upsample_zero, x)
        return y, pullback(cotangent)[0]

    y, gradient = both(USSS['up/input'], USSS['up/cotangent'])
    for ours, theirs in ((y, USSS['up/output']), (gradient, USSS['up/input_grad'])):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_upsampling_dims_the_border():
    found = upsample_zero(np.ones((1, 2, 3, 1), np.float32))
    np.testing.assert_array_equal(found[..., 0], USSS['up/ones_output'])
    np.testing.assert_array_equal(found[0, 7, :4, 0], np.float32([9, 11, 13, 15]) / 16)
    single = upsample_zero(USSS['up/single_input'])
    np.testing.assert_allclose(single, USSS['up/single_output'], rtol=1e-6)


def test_upsampling_of_one_pixel_among_zeros_is_the_kernel():
    x = np.zeros((1, 3, 4, 1), np.float32)
    x[0, 1, 2] = 1
    expected = np.zeros((24, 32), np.float32)
    expected[4:20, 12:28] = USSS['up/kernel']
    np.testing.assert_array_equal(upsample_zero(x)[0, ..., 0], expected)


@pytest.mark.parametrize('factor', [1, 2, 3])
def test_upsampling_by_any_factor_is_interpolation_between_zeros(factor):
    x = np.random.default_rng(0).standard_normal((1, 4, 3, 2)).astype(np.float32)
    expected = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis, n in ((1, 4), (2, 3)):
        positions, grid = (np.arange(factor * n) + 0.5) / factor - 0.5, np.arange(-1, n + 1)
        expected = np.apply_along_axis(
            lambda v, p=positions, g=grid: np.interp(p, g, v), axis, expected
        )
    np.testing.assert_allclose(upsample_zero(x, factor), expected, atol=1e-6)


@pytest.mark.parametrize('images', [1, 2, 6])
def test_upsampling_a_few_images_at_a_time_is_the_same(monkeypatch, images):
    x = np.random.default_rng(0).standard_normal((6, 3, 2, 2)).astype(jnp.bfloat16)
    shift = np.arange(6, dtype=np.float32)
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', images * 4 * 6 * 4 * 2)

    @jax.jit
    def both(x, shift):
        def function(y, shift):
            return {'sum': (y.sum(-1) - shift[:, None, None]) ** 2}

        found = resize.map_upsample_zero(function, x, shift, factor=2)
        return found, function(resize.upsample_zero(x, 2), shift)

    traced = both.trace(x, shift)
    turns = [str(6 // images)] if images < 6 else []
    assert re.findall(r'length=(\d+)', str(traced.jaxpr)) == turns
    found, expected = traced.lower().compile()(x, shift)
    assert found['sum'].shape == (6, 6, 4) and found['sum'].dtype == jnp.float32
    np.testing.assert_allclose(found['sum'], expected['sum'], rtol=1e-6)


def test_bad_arguments_of_upsampling_are_named():
    for factor in (0, 1.5):
        with pytest.raises(ValueError, match=f'factor is {factor}; expected a positive integer'):
            resize.upsample_zero(np.zeros((1, 2, 2, 1)), factor)
    with pytest.raises(ValueError, match=r'shape \(2, 2\); expected \[B, h, w, C\]'):
        resize.upsample_zero(np.zeros((2, 2)))


@pytest.mark.parametrize('i', range(3))
def test_bicubic_gives_torch_numbers(i):
    expected = COSA[f'bicubic_out{i}']
    found = resize.bicubic(COSA['bicubic_in'], expected.shape[1:3])
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('size', [(17, 13), (4, 3), (9, 1), (27, 2)])
def test_half_pixel_is_interpolation_between_aligned_edges(size):
    x = np.random.default_rng(0).standard_normal((2, 9, 5, 3)).astype(np.float32)
    expected = x
    for axis, out in zip((1, 2), size, strict=True):
        n = x.shape[axis]
        # np.interp repeats the first and the last value, as half_pixel does.
        positions, grid = (np.arange(out) + 0.5) * n / out - 0.5, np.arange(n)
        expected = np.apply_along_axis(
            lambda v, p=positions, g=grid: np.interp(p, g, v), axis, expected
        )
    np.testing.assert_allclose(half_pixel(x, size), expected, atol=2e-6)
    mapped = resize.map_half_pixel(
        lambda y, shift: y.sum(-1) + shift[:, None, None], x, size, x[:, 0, 0, 0]
    )
    np.testing.assert_allclose(mapped, expected.sum(-1) + x[:, :1, :1, 0], atol=5e-6)


def test_half_pixel_and_bicubic_leave_equal_sizes_alone_and_name_bad_arguments():
    x = (np.arange(48) / 7).reshape(1, 4, 6, 2).astype(jnp.bfloat16)
    for resizer in (resize.half_pixel, resize.bicubic):
        assert resizer(x, (8, 8)).dtype == jnp.float32
        np.testing.assert_array_equal(resizer(x, (4, 6)), x.astype(np.float32))
        with pytest.raises(ValueError, match=r'size is \(0, 3\)'):
            resizer(x, (0, 3))
        with pytest.raises(ValueError, match=r'shape \(2, 2\)'):
            resizer(np.zeros((2, 2)), (3, 3))


@pytest.mark.parametrize('size', [(6, 20), (1, 1)])
def test_parts_of_several_sizes_are_resized_as_each_alone(size):
    r = np.random.default_rng(0)
    whole, sizes = (9, 14), [(9, 14), (7, 3), (1, 14)]
    x, y = (r.standard_normal((3, *sides, 2)).astype(np.float32) for sides in (whole, size))

    @jax.jit
    def alone(x, y):
        parts = [x[i : i + 1, :height, :width] for i, (height, width) in enumerate(sizes)]
        parts = [resize.half_pixel(part, size)[0] for part in parts]
        return parts, [resize.half_pixel(y[i : i + 1], sides)[0] for i, sides in enumerate(sizes)]

    @jax.jit
    def together(x, y, sizes):
        return resize.part_to(x, sizes, size), resize.to_part(y, sizes, whole)

    parts, placed = together(x, y, np.array(sizes, np.int32))
    assert parts.shape == y.shape and placed.shape == x.shape
    for i, (part, place) in enumerate(zip(*alone(x, y), strict=True)):
        height, width = sizes[i]
        np.testing.assert_allclose(parts[i], part, atol=1e-5)
        np.testing.assert_allclose(placed[i, :height, :width], place, atol=1e-5)
        beyond = np.broadcast_to(place[-1, -1], placed[i, height:, width:].shape)
        np.testing.assert_allclose(placed[i, height:, width:], beyond, atol=1e-5)


@pytest.mark.parametrize('size', [(3, 4), (6, 7), (12, 14), (20, 9)])
def test_a_function_between_two_sizes_is_the_same_of_the_pixels_that_are_read(size):
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3), np.float32)

    def whole(x):
        middle = jax.nn.softmax(resize.half_pixel(x, (12, 14)))
        return resize.half_pixel(middle, size)

    def read(x):
        return resize.half_pixel_through(jax.nn.softmax, x, (12, 14), size)

    np.testing.assert_allclose(read(x), whole(x), atol=1e-6)
    gradients = [jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (read, whole)]
    np.testing.assert_allclose(*gradients, atol=1e-5)
