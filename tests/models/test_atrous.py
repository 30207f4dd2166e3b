"""Dilated convolutions in other forms: equal in outputs, gradients and statistics, and cheaper."""

import logging
import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, PartitionSpec

from css_jax import models
from css_jax.models import atrous, deeplab, layers, mobilenet, resnet
from tests.small import drawn

CONFIG = {
    'backbone': 'bottleneck',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 0.125,
    'representation_dim': 8,
    'dtype': 'float32',
}
# Two blocks in the dilated layers, as their first one's dilation may not be that of the others.
BACKBONES = {
    'basic': partial(resnet.build, resnet.BasicBlock, (1, 1, 2, 2)),
    'bottleneck': partial(resnet.build, resnet.Bottleneck, (1, 1, 2, 2)),
    'mobilenet': mobilenet.build,
}
FORMS = tuple(atrous.FORMS)  # the direct one first


@pytest.fixture(scope='module', autouse=True)
def shallow():
    """The backbones above; MobileNet's five equal blocks of layer3 are two."""
    with pytest.MonkeyPatch.context() as patch:
        blocks = mobilenet.BLOCKS
        patch.setattr(mobilenet, 'BLOCKS', (*blocks[1:2], blocks[3], *blocks[5:7], *blocks[11:]))
        for name, build in BACKBONES.items():
            patch.setitem(models.BACKBONES, name, build)
        yield


def backbone(form, **changes):
    config = SimpleNamespace(**(CONFIG | {'atrous': form} | changes))
    return models.BACKBONES[config.backbone](config, None)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def variables(module, x):
    """Random variables of scales that ReLU6 often cuts.

    Where it never does, the next BatchNorm divides a scale out again, whose gradient is then a
    difference of equal numbers.
    """
    return drawn(shapes(module, x), 1, 3)


def shapes(module, x):
    return jax.eval_shape(lambda key, x: module.init(key, x, False), jax.random.key(0), x)


def trained(modules, given, x):
    """Gives for each module, in one program, outputs, batch_stats and all gradients."""

    def one(module, given, x):
        def apply(params, x):
            return module.apply(given | {'params': params}, x, True, mutable=['batch_stats'])

        y, backward, updates = jax.vjp(apply, given['params'], x, has_aux=True)
        return y, updates, backward(jax.tree.map(cotangent, y))

    return jax.jit(lambda given, x: [one(module, given, x) for module in modules])(given, x)


def cotangent(y):
    """Values that bfloat16 has, so that it is the same for any type."""
    return ((7 * jnp.arange(y.size) % 31) / 16 - 1).reshape(y.shape).astype(y.dtype)


def with_gradients(f, *arrays):
    """Gives f(*arrays) and its gradients."""

    def both(*arrays):
        y, backward = jax.vjp(f, *arrays)
        return y, *backward(cotangent(y))

    return jax.jit(both)(*arrays)


def assert_equal(found, expected):
    """Compares every array to 1e-5 of its largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name, largest = jax.tree_util.keystr(path), float(np.abs(b).max())
        assert largest > 0, name
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest, err_msg=name)


def equations(f, *arguments):
    """All equations of a function's program, those of what it calls included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    return walk(jax.make_jaxpr(f)(*arguments).jaxpr)


def dilations(f, *arguments):
    """Dilations of a program's convolutions whose kernels have more than one tap."""
    return {
        equation.params['rhs_dilation'][0]
        for equation in equations(f, *arguments)
        if equation.primitive.name == 'conv_general_dilated'
        and max(equation.invars[1].aval.shape[:2]) > 1
    }


def flops(f, *arguments):
    """Operations of a program's convolutions and products, padding included."""
    total = 0
    for equation in equations(f, *arguments):
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            total += 2 * size * math.prod(shape[axis] for axis in contracted)
        if equation.primitive.name == 'conv_general_dilated':
            total += 2 * size * math.prod(equation.invars[1].aval.shape[:-1])
    return total


@pytest.mark.parametrize(
    ('changes', 'images'),
    [
        ({'backbone': 'basic'}, (3, 64, 96)),
        ({'width': 0.0625, 'stem': 'deep', 'remat': ('layer3', 'layer4')}, (1, 96, 64)),
        ({'backbone': 'mobilenet', 'width': 0.25}, (2, 64, 96)),
        *(
            pytest.param(changes, (2, 64, 96), marks=pytest.mark.soak)
            for changes in (
                {'backbone': 'basic', 'stem': 'deep'},
                {'width': 0.0625},
                {'width': 0.0625, 'stem': 'deep', 'output_stride': 16},
            )
        ),
    ],
)
def test_backbones_are_the_same(changes, images):
    x = normal(0, *images, 3)
    modules = [backbone(form, **changes) for form in FORMS]
    assert shapes(modules[0], x) == shapes(modules[1], x)
    with jax.default_matmul_precision('highest'):
        expected, found = trained(modules, variables(modules[0], x), x)
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ('changes', 'left'),
    [
        ({}, {1}),
        ({'stem': 'deep'}, {1}),
        ({'output_stride': 16}, {1}),
        ({'backbone': 'basic'}, {1, 2}),  # second convolutions of layer3_0 and layer4_0
        ({'backbone': 'basic', 'stem': 'deep'}, {1}),
    ],
)
def test_what_stays_dilated(changes, left):
    x = jnp.zeros((1, 128, 128, 3))
    for form, expected in zip(FORMS, ({1, 2, 4}, left), strict=True):
        module = backbone(form, **changes)
        found = dilations(lambda v, x, m=module: m.apply(v, x, False), shapes(module, x), x)
        assert found == (expected - {4} if changes.get('output_stride') == 16 else expected)


@pytest.mark.parametrize('before', [1, 2, 4])
@pytest.mark.parametrize('after', [1, 2, 4])
def test_layouts_are_interleaved_grids(before, after):
    images = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)

    def layout(d):
        grids = [images[b, r::d, s::d] for b in range(2) for r in range(d) for s in range(d)]
        return jnp.asarray(np.stack(grids))

    np.testing.assert_array_equal(atrous.regrid(layout(before), before, after), layout(after))


@pytest.mark.parametrize('changes', [{}, {'backbone': 'mobilenet', 'width': 0.25}])
def test_sizes_that_do_not_divide_stay_dilated_and_are_logged_once(changes, caplog):
    def program(form, height, width):
        module, x = backbone(form, **changes), jnp.zeros((1, height, width, 3))
        return str(jax.make_jaxpr(lambda v, x: module.apply(v, x, False))(shapes(module, x), x))

    atrous._say.cache_clear()
    with caplog.at_level(logging.INFO, 'css_jax'):
        program('space_to_batch', 64, 81)
        assert program('space_to_batch', 64, 81) == program('dilated', 64, 81)
        assert program('space_to_batch', 48, 64) == program('dilated', 48, 64)
        assert program('space_to_batch', 64, 96) != program('dilated', 64, 96)
    assert caplog.messages == [
        '64 x 81: dilated convolutions, as space_to_batch needs maps with sides that are multiples '
        'of 4, and theirs are 8 x 11',
        '48 x 64: dilated convolutions, as space_to_batch needs maps with sides that are multiples '
        'of 4, and theirs are 6 x 8',
    ]


def test_auto_is_by_platform_and_silent_where_it_is_dilated(monkeypatch, caplog):
    short = partial(resnet.build, resnet.Bottleneck, (1, 1, 1, 1))
    monkeypatch.setitem(models.BACKBONES, 'short', short)

    def program(form, name='short', side=64):
        module = models.build(CONFIG | {'backbone': name, 'atrous': form}, 5)
        x = jnp.zeros((1, side, side, 3))
        return str(jax.make_jaxpr(lambda v, x: module.apply(v, x))(shapes(module, x), x))

    assert atrous.AUTO['gpu'] == atrous.FORMS['dilated']  # until another is measured there
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setitem(atrous.AUTO, 'gpu', atrous.FORMS['space_to_batch'])
    assert program('auto') == program('space_to_batch') != program('dilated')
    # MobileNet's own dilated convolutions are no XLA convolutions; ASPP's are.
    monkeypatch.setitem(atrous.AUTO, 'gpu', atrous.Forms('space_to_batch', 'dilated'))
    assert program('auto', 'mobilenet') == program('dilated', 'mobilenet')
    dilated = program('dilated', side=40)
    with caplog.at_level(logging.INFO, 'css_jax'):
        for platform in ('cpu', 'tpu', 'a new one'):
            monkeypatch.setattr(jax, 'default_backend', lambda name=platform: name)
            # At 5 x 5 pixels, which do not divide; the CPU has products.
            assert (program('auto', side=40) == dilated) == (platform != 'cpu')
    assert not caplog.messages


def test_impossible_values_are_named():
    with pytest.raises(ValueError, match=r"atrous is 'space'.*'auto', 'dilated', 'space_to_batch'"):
        models.build(CONFIG | {'atrous': 'space'}, 5)


@pytest.mark.parametrize('taps', [1, 3, 5])
def test_zones_hold_each_product_once_and_none_with_padding(taps):
    for size in (1, 2, 7, 12):
        for dilation in (1, 2, 3, 5, 6, 11, 12, 30):
            found = []
            for zone in atrous.zones(size, taps, dilation):
                tap_numbers = range(taps)[zone.taps]
                assert len(tap_numbers) == len(zone.targets) > 0
                for tap, target in zip(tap_numbers, zone.targets, strict=True):
                    rows = range(size)[zone.rows]
                    targets = range(target.start, target.stop)
                    found += [(t, tap, r) for r, t in zip(rows, targets, strict=True)]
            expected = [
                (out, tap, out + (tap - taps // 2) * dilation)
                for out in range(size)
                for tap in range(taps)
                if 0 <= out + (tap - taps // 2) * dilation < size
            ]
            assert sorted(found) == expected


SIZES = [
    ((3, 5, 9), 5),  # rows are read by the centre tap alone, columns by all three
    ((2, 10, 7), 5),  # twice the dilation: no inner rows
    ((1, 64, 64), 12),
    ((1, 64, 64), 24),
    ((1, 64, 64), 36),  # inner zones are read by the centre tap alone
    ((2, 4, 4), 12),
    ((2, 1, 2), 1),
]


@pytest.mark.parametrize(('size', 'dilation'), SIZES)
def test_products_are_the_convolution(size, dilation):
    x, kernel = normal(0, *size, 3), normal(1, 3, 3, 3, 4)
    with jax.default_matmul_precision('highest'):
        found = with_gradients(lambda x, k: atrous.products(x, k, dilation), x, kernel)
        direct = with_gradients(lambda x, k: layers.convolve(x, k, 1, dilation), x, kernel)
    for a, b in zip(found, direct, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))


def assert_rounded_once(found, exact):
    """bfloat16 has eight bits: rounding moves a value by 2^-8 of it at most."""
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - exact)
    assert (error <= 2**-8 * np.abs(exact) + 1e-5 * float(np.abs(exact).max())).all()
    assert error.max() > 0


def test_bfloat16_is_rounded_once():
    x, kernel = normal(0, 2, 12, 16, 64).astype('bfloat16'), normal(1, 3, 3, 64, 4)
    kernel = kernel.astype('bfloat16')
    wide = [a.astype('float32') for a in (x, kernel)]

    def grids(x, kernel):
        return atrous.regrid(layers.convolve(atrous.regrid(x, 1, 4), kernel), 4, 1)

    with jax.default_matmul_precision('highest'):
        exact = with_gradients(lambda x, k: layers.convolve(x, k, 1, 4), *wide)
    for f in (lambda x, k: atrous.products(x, k, 4), grids):
        for a, b in zip(with_gradients(f, x, kernel), exact, strict=True):
            assert_rounded_once(a, b)


def test_aspp_is_the_same_at_sizes_that_do_not_divide():
    x = normal(0, 3, 13, 9, 6)
    modules = [deeplab.ASPP(4, (3, 6, 9), f, layers.Conv, layers.BatchNorm) for f in FORMS]
    given = variables(modules[0], x)
    with jax.default_matmul_precision('highest'):
        expected, found = trained(modules, given, x)
    assert_equal(found, expected)
    assert dilations(lambda v, x: modules[1].apply(v, x, False), given, x) == set()


def test_products_over_devices_are_those_of_one():
    mesh = Mesh(np.array(jax.devices()[:2]), ('data',))
    x, kernel = normal(0, 4, 8, 8, 3), normal(1, 3, 3, 3, 4)

    def gradient(x, kernel):
        kernel = jax.lax.pcast(kernel, 'data', to='varying')
        y, backward = jax.vjp(lambda k: atrous.products(x, k, 3), kernel)
        return jax.lax.psum(backward(y)[0], 'data')

    spec = PartitionSpec()
    found = jax.jit(
        jax.shard_map(gradient, mesh=mesh, in_specs=(PartitionSpec('data'), spec), out_specs=spec)
    )(x, kernel)
    y, backward = jax.vjp(lambda k: layers.convolve(x, k, 1, 3), kernel)
    expected = backward(y)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))


def spared(size, channels, features):
    """Operations that ASPP at stride 8 does not spend on the padding of a square map."""
    taps = sum(9 - (1 + 2 * (size - rate) / size) ** 2 for rate in (12, 24, 36))  # of 27
    return taps * 2 * size * size * channels * features


def test_products_spare_what_meets_padding():
    x = jax.ShapeDtypeStruct((1, 64, 64, 16), jnp.float32)
    modules = [deeplab.ASPP(8, (12, 24, 36), f, layers.Conv, layers.BatchNorm) for f in FORMS]
    direct, products = (
        flops(partial(module.apply, train=False), shapes(module, x), x) for module in modules
    )
    assert direct - products == pytest.approx(spared(64, 16, 8))


@pytest.mark.soak
def test_products_spare_nine_percent_of_a_forward_pass():
    """The paper's: ResNet-101, stride 8, images of 512 x 512, ASPP on a 64 x 64 map."""
    x = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    found = {}
    for form in FORMS:
        module = models.build(CONFIG | {'backbone': 'resnet101', 'width': 1.0, 'atrous': form}, 21)
        found[form] = flops(module.apply, shapes(module, x), x)
    direct, products = found['dilated'], found['space_to_batch']
    assert direct - products == pytest.approx(spared(64, 2048, 256))
    assert 1 - products / direct == pytest.approx(0.094, abs=5e-4)
