"""Operations and bytes counted from a jaxpr, against counts by hand and the paper's network."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import count, roofline, step
from css_jax import methods, state

pytestmark = pytest.mark.soak


def counted(function, *shapes, dtype=jnp.float32):
    """Kernels of a function of arrays of these shapes."""
    return count.kernels(
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes))
    )


def convolution(stride=1, padding=0, dilation=1, groups=1):
    return functools.partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


# Of a 3 x 3 kernel, 4 channels to 5, on 2 maps of 8 x 8: by axis (output, tap) pairs inside the
# map and all of them.
@pytest.mark.parametrize(
    ('settings', 'inside', 'pairs'),
    [
        ({}, 6 * 3, 6 * 3),
        ({'padding': 1}, 8 * 3 - 2, 8 * 3),
        ({'padding': 1, 'stride': 2}, 4 * 3 - 1, 4 * 3),
        ({'padding': 6, 'dilation': 6}, 8 + 2 + 2, 8 * 3),
        ({'padding': 12, 'dilation': 12}, 8, 8 * 3),
    ],
)
def test_taps_that_meet_padding_are_counted_apart(settings, inside, pairs):
    (kernel,) = counted(convolution(**settings), (2, 8, 8, 4), (3, 3, 4, 5))
    assert kernel.flops == 2 * 2 * 4 * 5 * inside**2
    assert kernel.flops + kernel.padding == 2 * 2 * 4 * 5 * pairs**2
    assert kernel.kind == 'convolution'


def test_a_depthwise_convolution_has_one_channel_in():
    (kernel,) = counted(convolution(groups=4), (2, 8, 8, 4), (3, 3, 1, 4))
    assert kernel.flops == 2 * 2 * 4 * (6 * 3) ** 2


@pytest.mark.parametrize('settings', [{'padding': 1}, {'padding': 1, 'stride': 2}, {'groups': 2}])
def test_both_gradients_of_a_convolution_cost_what_it_costs(settings):
    groups = settings.get('groups', 1)
    shapes = (2, 8, 8, 4), (3, 3, 4 // groups, 6)

    def both(x, kernel):
        y, backward = jax.vjp(convolution(**settings), x, kernel)
        return backward(y)

    (forward,) = counted(convolution(**settings), *shapes)
    kernels = [k for k in counted(both, *shapes) if k.kind == 'convolution']
    assert [k.flops for k in kernels] == [forward.flops] * 3


def test_a_product_moves_its_operands_and_its_result_once():
    kernels = counted(lambda a, b: a @ b, (3, 64, 32), (3, 32, 16), dtype=jnp.bfloat16)
    (kernel,) = kernels
    assert kernel.flops == 2 * 3 * 64 * 32 * 16
    assert kernel.bytes == 2 * 3 * (64 * 32 + 32 * 16 + 64 * 16)
    assert (kernel.kind, kernel.type) == ('product', 'bfloat16')


def test_precision_decides_the_peak():
    exact = counted(lambda a: jnp.matmul(a, a, precision='highest'), (8, 8))
    assert [k.type for k in exact + counted(lambda a: a @ a, (8, 8))] == ['float32', 'default']


def test_what_runs_often_counts_as_often():
    def scanned(x, w):
        return lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, w), None), x, length=7)[0]

    assert count.totals(counted(scanned, (4, 4), (4, 4)))['flops'] == 7 * 2 * 4**3


def test_what_is_computed_anew_counts_again():
    def f(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    once, again = (
        count.totals(counted(jax.value_and_grad(g), (4, 4), (4, 4)))['flops']
        for g in (f, jax.checkpoint(f))
    )
    assert (once, again) == (4 * 2 * 4**3, 6 * 2 * 4**3)


def test_of_a_conditional_the_costliest_branch_runs():
    def f(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count.totals(counted(f, (4, 4)))['flops'] == 2 * 2 * 4**3


def test_what_nothing_depends_on_has_no_cost():
    def f(x):
        jax.jit(lambda x: x @ x)(x)
        return x + 1

    assert count.totals(counted(f, (4, 4))) == {'flops': 0, 'padding': 0, 'bytes': 2 * 64}


def test_devices_count_their_own_share():
    mesh = jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    f = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(spec('d'), spec()), out_specs=spec('d')
    )
    assert count.totals(counted(jax.jit(f), (8, 4), (4, 4)))['flops'] == 2 * 4 * 4 * 4


def test_elementwise_work_is_one_pass():
    unit = 4 * 1000
    kernels = counted(lambda x, y: jnp.tanh(x * y + 1) * x, (1000,), (1000,))
    assert [k.bytes for k in kernels] == [3 * unit]  # two read, one written


def test_results_of_the_same_arrays_are_one_pass():
    kernels = counted(lambda x: (x + 1, x.sum(), x * 2), (1000,))
    assert sum(k.bytes for k in kernels) == 3 * 4000 + 4


def test_batch_statistics_are_three_readings_and_one_writing():
    def normalise(x):
        mean = x.mean(0)
        var = jnp.square(x - mean).mean(0)
        return (x - mean) / jnp.sqrt(var + 1e-5)

    big = sum(k.bytes for k in counted(normalise, (100_000, 4)))
    assert big == pytest.approx(4 * 4 * 400_000, rel=1e-3)


def test_a_chain_of_skips_is_not_read_again_from_its_beginning():
    """As in the backward pass of a ResNet: every link is written, or bytes grow with its square."""

    def chain(x, n):
        for _ in range(n):
            x = x + jnp.tanh(x) * x.mean(0) + x.max(0)
        return x

    small, large = (
        sum(k.bytes for k in counted(functools.partial(chain, n=n), (10_000, 4))) for n in (8, 16)
    )
    assert large < 2.2 * small


def test_a_slice_and_a_gather_read_what_they_give():
    assert count.totals(counted(lambda x: x[:10] * 2, (1000,)))['bytes'] == 2 * 40
    taken = counted(lambda x: x[jnp.arange(10) * 7] * 2, (1000,))
    assert count.totals(taken)['bytes'] <= 3 * 40


# The paper's network: DeepLabV3+ on ResNet-101 at stride 8, 512 x 512, two heads, 21 classes.


def traced(size, **changes):
    """Kernels of a step."""
    run = step.Run(step.configuration(size, **changes))
    return count.kernels(run.jitted.trace(*run.shapes).jaxpr)


def forward(size, pixels, **changes):
    """Kernels of the network on two images."""
    ctx = methods.context(step.configuration(size, **changes))
    images = jax.ShapeDtypeStruct((2, pixels, pixels, 3), jnp.float32)
    return count.kernels(jax.make_jaxpr(ctx.train)(state.shapes(ctx), images))


def network_flops(kernels):
    """Of the networks in bfloat16, whose 1x1 convolutions are products; L_c's are in float32."""
    own = [k for k in kernels if k.type == 'bfloat16' and k.kind in ('convolution', 'product')]
    sums = count.totals(own)
    return sums['flops'] + sums['padding']


def test_the_network_is_526_gflop_an_image():
    kernels = forward('real', 512, **{'model.atrous': 'dilated'})
    assert network_flops(kernels) / 2 == pytest.approx(526e9, rel=0.005)


@pytest.mark.parametrize(('both', 'tflop', 'ms'), [(False, 58.9, 120), (True, 67.3, 136)])
def test_a_step_of_16_pairs_and_its_bound_on_an_h200(both, tflop, ms):
    kernels = traced('real', **{'model.atrous': 'dilated', 'teacher.labelled_pass': both})
    assert network_flops(kernels) / 1e12 == pytest.approx(tflop, rel=0.005)
    bound = roofline.bound(kernels, roofline.DATASHEETS['H200'])
    assert bound == pytest.approx(ms, rel=0.01)


@pytest.mark.parametrize(
    ('backbone', 'encoder', 'head'),
    [
        ('dinov2_small', 46.7, 11.3),
        pytest.param('dinov2_base', 151.6, 41.9, marks=pytest.mark.soak),
    ],
)
def test_dinov2_and_dpt_at_518_pixels(backbone, encoder, head):
    """GMAC of a forward pass, resizing by matrices among them."""
    config = step.configuration('real', **step.CASES[backbone])
    assert {tuple(stream.crop) for stream in config.data.streams.values()} == {(518, 518)}
    ctx = methods.context(config)
    images = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
    params = {'params': state.shapes(ctx).params}
    own = {'params': params['params']['backbone']}

    def flops(module, given):
        return count.totals(count.kernels(jax.make_jaxpr(module.apply)(given, images)))['flops']

    first = flops(ctx.module.backbone, own)
    assert first / 2e9 == pytest.approx(encoder, rel=0.005)
    assert (flops(ctx.module, params) - first) / 2e9 == pytest.approx(head, rel=0.02)


def test_either_form_of_the_dilated_convolutions_has_the_same_arithmetic():
    flops = [
        count.totals(forward('small', 64, **{'model.atrous': form}))['flops']
        for form in ('dilated', 'space_to_batch')
    ]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)


def test_the_bound_is_the_slower_of_arithmetic_and_memory():
    best = {'bfloat16': 4.0, 'default': 2.0, 'float32': 1.0, 'GB/s': 1000.0}
    product = count.Kernel('product', 'bfloat16', flops=8e12, bytes=1e9)
    copy = count.Kernel('pass', bytes=3e12, count=2)
    assert roofline.bound([product], best) == pytest.approx(2000)
    assert roofline.bound([product, copy], best) == pytest.approx(2000 + 6000)
    assert roofline.rate({'bfloat16': 1.0, 'default': 2.0, 'float32': 3.0}, 'bfloat16') == 3.0
