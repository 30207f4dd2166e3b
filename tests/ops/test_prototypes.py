import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import prototypes as P

C, D = 5, 8


def pixels(shape=(2, 6, 7), seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(*shape, D)).astype(np.float32)
    return z, rng.integers(-1, C, shape)


# Jitted: a compiled whole costs less than dozens of small programs.
class_sums = jax.jit(P.class_sums, static_argnums=2)
update = jax.jit(P.update)
cosine = jax.jit(P.cosine)
mean_cosine = jax.jit(P.mean_cosine)


def test_class_sums_are_raw_sums_without_ignore_and_mask():
    z, labels = pixels()
    labels[0, 0, :2] = 255, C  # no class either
    mask = np.random.default_rng(1).random(labels.shape) < 0.6
    sums, counts = jax.device_get(class_sums(z, labels, C, mask))
    for c in range(C):
        own = z[(labels == c) & mask]
        np.testing.assert_allclose(sums[c], own.sum(axis=0), rtol=1e-5, atol=1e-5)
        assert counts[c] == len(own)
    assert sums.dtype == counts.dtype == jnp.float32


def test_class_sums_accumulate_bfloat16_in_float32():
    z = np.ones((4096, D), jnp.bfloat16)
    sums, counts = jax.device_get(class_sums(z, np.zeros(4096, int), 1))
    assert sums.dtype == jnp.float32 and (sums == 4096).all() and counts[0] == 4096


def test_update_first_time_average_and_absent():
    old = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
    sums = np.stack([np.full(D, 6.0), np.full(D, 8.0), np.zeros(D)]).astype(np.float32)
    counts = np.array([3.0, 2.0, 0.0], np.float32)
    for seen in (np.array([True, False, False]), np.array([1.0, 0.0, 0.0], np.float32)):
        new, now_seen = jax.device_get(update(old, seen, sums, counts, decay=0.9))
        np.testing.assert_allclose(new[0], 0.9 * old[0] + 0.1 * 2.0, rtol=1e-6)
        np.testing.assert_array_equal(new[1], 4.0)
        np.testing.assert_array_equal(new[2], old[2])
        np.testing.assert_array_equal(now_seen, np.array([1, 1, 0], seen.dtype))
        assert now_seen.dtype == seen.dtype


def test_cosine_equals_numpy():
    z, _ = pixels()
    rho = np.random.default_rng(2).normal(size=(C, D)) * 100
    expected = z @ rho.T
    expected /= np.linalg.norm(z, axis=-1)[..., None] * np.linalg.norm(rho, axis=-1)
    np.testing.assert_allclose(cosine(z, rho.astype(np.float32)), expected, atol=2e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_zero_vectors_have_cosine_zero_and_gradient_zero(dtype):
    z, rho = np.ones((3, D), dtype), np.ones((2, D), np.float32)
    z[1], rho[0] = 0, 0

    @jax.jit
    def both(z, rho):
        def f(z, rho):
            value = P.cosine(z, rho)
            return (value**2 + value).sum(), value

        return jax.grad(f, (0, 1), has_aux=True)(z, rho)

    (by_z, by_rho), value = jax.device_get(both(z, rho))
    np.testing.assert_allclose(value, [[0, 1], [0, 0], [0, 1]], atol=1e-2)
    assert value.dtype == jnp.float32
    assert np.isfinite(by_z.astype(np.float32)).all() and np.isfinite(by_rho).all()
    assert (by_z[1] == 0).all() and (by_rho[0] == 0).all()


def test_mean_cosine_over_seen_pairs():
    rho = np.float32([[1, 0], [0, 2], [3, 3], [-1, 0]])
    half = np.sqrt(0.5)
    assert mean_cosine(rho, np.array([1, 1, 1, 0])) == pytest.approx(2 * half / 3, abs=1e-6)
    assert mean_cosine(rho, np.array([True, False, False, True])) == pytest.approx(-1)
    assert mean_cosine(rho, np.array([1, 0, 0, 0])) == 0
    assert mean_cosine(rho, np.zeros(4)) == 0


def test_errors_name_the_argument():
    z, labels = pixels()
    with pytest.raises(ValueError, match=r'labels has shape \(2, 6\)'):
        P.class_sums(z, labels[..., 0], C)
    with pytest.raises(ValueError, match=r'mask has shape \(6, 7\)'):
        P.class_sums(z, labels, C, labels[0] > 0)
    with pytest.raises(ValueError, match='last axis'):
        P.cosine(z, np.zeros((C, D + 1)))
