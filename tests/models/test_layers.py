"""Convolution padding and initial values; BatchNorm's statistics, by torch's formulas."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from css_jax.models import layers
from css_jax.models.layers import (
    BatchNorm,
    Conv,
    by_products,
    channels,
    convolve,
    he_normal,
    max_pool,
)


def plain(x, kernel, stride, dilation):
    """The convolution with every tap kept."""
    padding = [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision='highest',
    )


@pytest.mark.parametrize(
    ('size', 'taps', 'stride', 'dilation'),
    [
        ((5, 9), 3, 1, 5),  # rows keep the centre tap alone, columns all three
        ((4, 4), 3, 1, 12),
        ((3, 7), 5, 1, 2),  # rows lose the outer two of five taps
        ((1, 2), 7, 2, 1),
        ((8, 8), 3, 2, 1),  # even size, stride 2: torch pads (1, 1), 'SAME' would pad (0, 1)
    ],
)
@pytest.mark.parametrize('products', [False, True])
def test_cut_taps_and_products_change_nothing(size, taps, stride, dilation, products, monkeypatch):
    monkeypatch.setattr(layers, 'by_products', lambda shape, size: products)
    r = np.random.default_rng(0)
    x = jnp.asarray(r.standard_normal((2, *size, 3)), jnp.float32)
    kernel = jnp.asarray(r.standard_normal((taps, taps, 3, 4)), jnp.float32)

    @jax.jit
    def outcomes(x, kernel):
        found = []
        for f in (convolve, plain):
            y, vjp = jax.vjp(lambda x, kernel, f=f: f(x, kernel, stride, dilation), x, kernel)
            found.append((y, *vjp(y)))
        return found

    with jax.default_matmul_precision('highest'):
        for a, b in zip(*outcomes(x, kernel), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize(
    ('platform', 'inputs', 'features', 'size', 'expected'),
    [
        ('cpu', 304, 256, (32, 40), True),  # a decoder's
        ('cpu', 128, 256, (32, 32), True),
        ('cpu', 512, 512, (16, 16), True),
        ('gpu', 512, 512, (16, 16), False),
        ('cpu', 304, 256, (16, 16), False),
        ('cpu', 256, 128, (31, 33), False),
        ('cpu', 64, 512, (128, 128), False),
    ],
)
def test_which_kernel_s_gradients_are_products(
    platform, inputs, features, size, expected, monkeypatch
):
    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    assert by_products((3, 3, inputs, features), size) == expected
    images = jax.ShapeDtypeStruct((2, 2 * size[0] - 1, 2 * size[1], inputs), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, inputs, features), jnp.float32)
    gradient = jax.grad(lambda kernel, x: convolve(x, kernel, stride=2).sum())
    program = str(jax.make_jaxpr(gradient)(kernel, images))
    assert program.count('dot_general') == 9 * expected


def test_its_products_in_bfloat16_are_added_in_float32(monkeypatch):
    monkeypatch.setattr(layers, 'by_products', lambda shape, size: True)
    r = np.random.default_rng(0)
    x = jnp.asarray(r.standard_normal((2, 6, 7, 64)), jnp.bfloat16)
    kernel = jnp.asarray(r.standard_normal((3, 3, 64, 64)), jnp.bfloat16)
    f = jax.grad(lambda k, x: convolve(x, k, 1, 2).astype(jnp.float32).sum())
    found, exact = f(kernel, x), f(kernel.astype('float32'), x.astype('float32'))
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - exact)
    assert (error <= 2**-8 * np.abs(exact) + 1e-5 * np.abs(exact).max()).all()


def test_initial_values_have_the_stated_distributions():
    @jax.jit
    def initial(key):
        x = jnp.zeros((1, 4, 4, 40))
        ours, backbone = Conv(64, 3, use_bias=True), Conv(64, 3, kernel_init=he_normal)
        return ours.init(key, x)['params'], backbone.init(key, x)['params']['kernel']

    params, kernel = jax.device_get(initial(jax.random.key(0)))
    bound = (9 * 40) ** -0.5
    for values in params.values():
        assert np.abs(values).max() <= bound
    assert np.abs(params['bias']).max() > 0.8 * bound
    np.testing.assert_allclose(params['kernel'].std(), bound / 3**0.5, rtol=0.02)
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)
    assert np.abs(kernel).max() > 3 * (2 / (9 * 64)) ** 0.5  # normal, not truncated


def test_channels_are_rounded_and_at_least_eight():
    assert [channels(n, 0.25) for n in (256, 48, 16)] == [64, 12, 8]
    assert channels(304, 1.0) == 304


@pytest.fixture(scope='module')
def batch():
    """A batch far from zero mean, and variables that are not the initial ones."""
    r = np.random.default_rng(0)
    x = (r.standard_normal((4, 3, 2, 5)) * [0.1, 1, 2, 3, 4] + 20).astype(np.float32)
    params = {'scale': r.uniform(0.5, 2, 5), 'bias': r.standard_normal(5)}
    stats = {'mean': r.standard_normal(5), 'var': r.uniform(0.5, 2, 5)}
    variables = {'params': params, 'batch_stats': stats}
    return x, jax.tree.map(lambda a: a.astype(np.float32), variables)


@partial(jax.jit, static_argnums=0)
def trained(module, variables, x):
    return module.apply(variables, x, train=True, mutable=['batch_stats'])


def test_training_normalises_by_biased_and_stores_unbiased_variance(batch):
    x, variables = batch
    y, updates = trained(BatchNorm(), variables, x)
    exact = x.astype(np.float64).reshape(-1, 5)
    mean, var = exact.mean(0), exact.var(0)
    scale, bias = (variables['params'][k] for k in ('scale', 'bias'))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-4)
    old, new = variables['batch_stats'], updates['batch_stats']
    np.testing.assert_allclose(new['mean'], 0.9 * old['mean'] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new['var'], 0.9 * old['var'] + 0.1 * exact.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_running_statistics(batch):
    x, variables = batch
    y = jax.jit(BatchNorm().apply, static_argnames='train')(variables, x, train=False)
    params, stats = variables['params'], variables['batch_stats']
    normal = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
    expected = normal * params['scale'] + params['bias']
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_statistics_stay_float32_in_bfloat16(batch):
    x, variables = batch
    y, updates = trained(BatchNorm(dtype=jnp.bfloat16), variables, x)
    _, expected = trained(BatchNorm(), variables, x)
    assert y.dtype == jnp.bfloat16
    for key in ('mean', 'var'):
        np.testing.assert_array_equal(updates['batch_stats'][key], expected['batch_stats'][key])


def test_one_value_per_channel_is_refused(batch):
    x, variables = batch
    with pytest.raises(ValueError, match='more than one value per channel'):
        trained(BatchNorm(), variables, x[:1, :1, :1])


def test_constant_channel_has_finite_gradient():
    x = np.full((4, 2, 2, 1), 1e3, np.float32)
    variables = {
        'params': {'scale': np.ones(1), 'bias': np.zeros(1)},
        'batch_stats': {'mean': np.zeros(1), 'var': np.ones(1)},
    }
    loss = jax.value_and_grad(lambda x: trained(BatchNorm(), variables, x)[0].sum())
    y, gradient = jax.jit(loss)(x)
    assert y == 0
    assert np.isfinite(gradient).all()


def test_devices_share_statistics_as_one_big_batch(batch):
    x, variables = batch
    weight = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def sharded(x):
        def one(x):
            return trained(BatchNorm(axis_name='devices'), variables, x)

        y, updates = jax.vmap(one, axis_name='devices')(x.reshape(4, 1, 3, 2, 5))
        return y.reshape(x.shape), updates

    def whole(x):
        return trained(BatchNorm(), variables, x)

    @jax.jit
    def both(x):
        found = []
        for f in (sharded, whole):
            y, backward, updates = jax.vjp(f, x, has_aux=True)
            found.append((y, updates['batch_stats'], backward(weight)[0]))
        return found

    (y, stats, gradient), (expected_y, expected_stats, expected) = jax.device_get(both(x))
    np.testing.assert_allclose(y, expected_y, atol=1e-5)
    for key in ('mean', 'var'):
        every_device = np.broadcast_to(expected_stats[key], (4, 5))
        np.testing.assert_allclose(stats[key], every_device, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * float(np.abs(expected).max()))


@pytest.mark.parametrize('ceil', [0, 1])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_max_pool_is_xla_s_with_its_gradient(ceil, dtype):
    rng, padding = np.random.default_rng(0), [(1, 1 + ceil), (1, 1 + ceil)]
    sizes = (9, 8), (8, 7), (1, 2)
    # Full of ties, as behind a ReLU.
    images = [jnp.asarray(rng.integers(0, 3, (2, *size, 3)), dtype) for size in sizes]

    def theirs(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding)

    def pooled(f, x):
        y, backward = jax.vjp(f, x)
        cotangent = (7 * jnp.arange(y.size) % 19 - 9).reshape(y.shape).astype(dtype)
        return y, backward(cotangent)[0]

    def ours(x):
        return pooled(lambda x: max_pool(x, padding), x)

    found, expected = jax.jit(
        lambda images: [[f(x) for x in images] for f in (ours, partial(pooled, theirs))]
    )(images)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert 'select_and_scatter' in str(jax.make_jaxpr(partial(pooled, theirs))(images[0]))
    assert 'select_and_scatter' not in str(jax.make_jaxpr(ours)(images[0]))
