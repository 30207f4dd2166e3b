"""Convolution padding and initial values; BatchNorm's statistics, by torch's formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from css_jax.models.layers import BatchNorm, Conv, channels, convolve, he_normal, max_pool


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
def test_cut_taps_change_nothing(size, taps, stride, dilation):
    r = np.random.default_rng(0)
    x = jnp.asarray(r.standard_normal((2, *size, 3)), jnp.float32)
    kernel = jnp.asarray(r.standard_normal((taps, taps, 3, 4)), jnp.float32)

    def outcome(f):
        y, vjp = jax.vjp(lambda x, kernel: f(x, kernel, stride, dilation), x, kernel)
        return y, *vjp(y)

    with jax.default_matmul_precision('highest'):
        for a, b in zip(outcome(convolve), outcome(plain), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_initial_values_have_the_stated_distributions():
    x = jnp.zeros((1, 4, 4, 40))
    conv = Conv(64, 3, use_bias=True)
    params = conv.init(jax.random.key(0), x)['params']
    bound = (9 * 40) ** -0.5
    for values in params.values():
        assert float(jnp.abs(values).max()) <= bound
    assert float(jnp.abs(params['bias']).max()) > 0.8 * bound
    np.testing.assert_allclose(params['kernel'].std(), bound / 3**0.5, rtol=0.02)
    kernel = Conv(64, 3, kernel_init=he_normal).init(jax.random.key(0), x)['params']['kernel']
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)
    assert float(jnp.abs(kernel).max()) > 3 * (2 / (9 * 64)) ** 0.5  # normal, not truncated


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
    return x, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), variables)


def test_training_normalises_by_biased_and_stores_unbiased_variance(batch):
    x, variables = batch
    y, updates = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
    exact = x.astype(np.float64).reshape(-1, 5)
    mean, var = exact.mean(0), exact.var(0)
    scale, bias = (np.asarray(variables['params'][k]) for k in ('scale', 'bias'))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-4)
    old, new = variables['batch_stats'], updates['batch_stats']
    np.testing.assert_allclose(new['mean'], 0.9 * old['mean'] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new['var'], 0.9 * old['var'] + 0.1 * exact.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_running_statistics(batch):
    x, variables = batch
    y = BatchNorm().apply(variables, x, train=False)
    params, stats = variables['params'], variables['batch_stats']
    expected = (x - stats['mean']) / jnp.sqrt(stats['var'] + 1e-5) * params['scale'] + params[
        'bias'
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_statistics_stay_float32_in_bfloat16(batch):
    x, variables = batch
    y, updates = BatchNorm(dtype=jnp.bfloat16).apply(
        variables, x, train=True, mutable=['batch_stats']
    )
    _, expected = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    for key in ('mean', 'var'):
        np.testing.assert_array_equal(updates['batch_stats'][key], expected['batch_stats'][key])


def test_one_value_per_channel_is_refused(batch):
    x, variables = batch
    with pytest.raises(ValueError, match='more than one value per channel'):
        BatchNorm().apply(variables, x[:1, :1, :1], train=True, mutable=['batch_stats'])


def test_constant_channel_has_finite_gradient():
    module = BatchNorm()
    x = jnp.full((4, 2, 2, 1), 1e3)
    variables = module.init(jax.random.key(0), x, train=False)
    loss = lambda x: module.apply(variables, x, True, mutable=['batch_stats'])[0].sum()  # noqa: E731
    y, gradient = jax.value_and_grad(loss)(x)
    assert y == 0
    assert bool(jnp.isfinite(gradient).all())


def test_devices_share_statistics_as_one_big_batch(batch):
    x, variables = batch
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32)

    def run(x, axis_name):
        module = BatchNorm(axis_name=axis_name)
        return module.apply(variables, x, train=True, mutable=['batch_stats'])

    def sharded(x):
        return jax.vmap(lambda x: run(x, 'devices'), axis_name='devices')(x.reshape(4, 1, 3, 2, 5))

    y, updates = sharded(x)
    expected_y, expected = run(x, None)
    np.testing.assert_allclose(y.reshape(x.shape), expected_y, atol=1e-5)
    for key in ('mean', 'var'):
        every_device = np.broadcast_to(expected['batch_stats'][key], (4, 5))
        np.testing.assert_allclose(updates['batch_stats'][key], every_device, rtol=1e-5)

    gradient = jax.grad(lambda x: jnp.vdot(sharded(x)[0].reshape(x.shape), weight))(x)
    expected = jax.grad(lambda x: jnp.vdot(run(x, None)[0], weight))(x)
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize('size', [(9, 8), (8, 7), (1, 2)])
@pytest.mark.parametrize('ceil', [0, 1])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_max_pool_is_xla_s_with_its_gradient(size, ceil, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (2, *size, 3)), dtype)  # full of ties, as behind a ReLU
    padding = [(1, 1 + ceil), (1, 1 + ceil)]

    def theirs(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding)

    expected, backward = jax.vjp(theirs, x)
    found, own_backward = jax.vjp(lambda x: max_pool(x, padding), x)
    np.testing.assert_array_equal(found, expected)
    cotangent = jnp.asarray(rng.integers(-9, 9, expected.shape), dtype)
    np.testing.assert_array_equal(own_backward(cotangent)[0], backward(cotangent)[0])
    text = jax.jit(lambda x: own_backward(x)).lower(cotangent).as_text()
    assert 'select_and_scatter' not in text
