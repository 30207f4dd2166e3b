"""Resizing against torch's own numbers and against its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import resize

# Jitted: a compiled whole costs less than dozens of small programs.
bilinear = jax.jit(resize.bilinear, static_argnums=1)
nearest = jax.jit(resize.nearest, static_argnums=1)


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
