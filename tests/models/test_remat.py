"""Rematerialisation: same names, same gradients, same statistics, less kept, less memory."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import quickstart
from css_jax import config as configs
from css_jax import models
from css_jax.models import mobilenet, remat, resnet
from tests.small import drawn

CONFIG = {
    'backbone': 'tiny',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 0.125,
    'representation_dim': 8,
    'dtype': 'float32',
}
BACKBONES = {  # and widths
    'resnet18': 0.125,
    'resnet50': 0.0625,
    'mobilenet_v1': 0.25,
    'efficientnet_lite0': 0.25,
    'drn_d_22': 0.0625,
}
VALUES = [*((stage,) for stage in remat.STAGES), ('all',)]
# Without it XLA's CPU compiler takes recomputation out again, see docs/memory.md.
KEEP = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """Layers of one block, and one of four, which is two runs."""
    models.BACKBONES['tiny'] = partial(resnet.build, resnet.BasicBlock, (1, 1, 4, 1))
    yield
    del models.BACKBONES['tiny']


def build(value, backbone='tiny', axis_name=None):
    width = BACKBONES.get(backbone, 0.125)
    config = CONFIG | {'backbone': backbone, 'width': width, 'remat': value}
    return models.build(config, outputs={'logits': 5}, axis_name=axis_name)


def alone(config, outputs, axis_name):
    """Stands for `models.build`: the backbone is the network."""
    return models.BACKBONES[config['backbone']](SimpleNamespace(**config), axis_name)


def images():
    r = np.random.default_rng(1)
    return jnp.asarray(r.standard_normal((2, 32, 32, 3)), jnp.float32)


def shapes(value, *backbone):
    init = partial(build(value, *backbone).init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images())


def variables(*backbone):
    return drawn(shapes((), *backbone))


def forward(module, given, x):
    """Params -> (loss, batch_stats)."""

    def loss(params):
        outputs, updates = module.apply(
            given | {'params': params}, x, train=True, mutable=['batch_stats']
        )
        return sum(jnp.mean(y**2) for y in outputs.values()), updates['batch_stats']

    return loss


def gradient(module, given, x):
    """Gives (gradients, batch_stats)."""
    return jax.grad(forward(module, given, x), has_aux=True)(given['params'])


def assert_equal(results, expected):
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(results), jax.tree.leaves(expected), strict=True
    ):
        name, largest = jax.tree_util.keystr(path), float(np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest, err_msg=name)


def assert_same_gradients(values, backbone):
    """Compares each of the values with () in one program, on two devices, that does recompute."""
    axis, given, x = 'data', variables(backbone), images()
    modules = [build(value, backbone, axis) for value in [(), *values]]

    def local(given, x):
        varying = jax.tree.map(lambda p: jax.lax.pcast(p, axis, to='varying'), given['params'])
        pairs = [gradient(m, given | {'params': varying}, x) for m in modules]
        return [(jax.lax.psum(grads, axis), stats) for grads, stats in pairs]

    mesh, spec = Mesh(np.array(jax.devices()[:2]), (axis,)), PartitionSpec
    over = jax.shard_map(local, mesh=mesh, in_specs=(spec(), spec(axis)), out_specs=spec())
    shardings = NamedSharding(mesh, spec()), NamedSharding(mesh, spec(axis))
    lowered = jax.jit(over, in_shardings=shardings).lower(given, x)
    program = lowered.compile(compiler_options=KEEP)
    expected, *results = jax.device_get(program(*jax.device_put((given, x), shardings)))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(expected[0]))
    for result in results:
        assert_equal(result, expected)


def temporary(value):
    """Bytes of the program's temporaries."""
    lowered = jax.jit(partial(gradient, build(value))).lower(shapes(()), images())
    return lowered.compile(compiler_options=KEEP).memory_analysis().temp_size_in_bytes


def kept(value, given):
    """Bytes of the arrays with an axis of images that the forward pass leaves to the backward."""
    module, x = build(value), images()

    def backward(given):
        return jax.vjp(forward(module, given, x), given['params'], has_aux=True)[1]

    arrays = jax.tree.leaves(jax.eval_shape(backward, given))
    return sum(a.size * a.dtype.itemsize for a in arrays if a.shape[:1] == x.shape[:1])


@pytest.mark.parametrize('backbone', ['tiny', *BACKBONES])
def test_names_are_the_same(backbone):
    expected = shapes((), backbone)
    for value in VALUES if backbone == 'tiny' else VALUES[-1:]:
        assert shapes(value, backbone) == expected


def test_gradients_and_statistics_are_the_same():
    assert_same_gradients([('all',)], 'tiny')


@pytest.mark.soak
def test_mobilenet_s_gradients_and_statistics_are_the_same(monkeypatch):
    """Of a few of its blocks, without a decoder."""
    blocks = mobilenet.BLOCKS
    monkeypatch.setattr(mobilenet, 'BLOCKS', (*blocks[1:2], blocks[3], *blocks[5:7], blocks[11]))
    monkeypatch.setattr(models, 'build', alone)
    assert_same_gradients(VALUES[-1:], 'mobilenet_v1')


@pytest.mark.soak
@pytest.mark.parametrize('value', VALUES)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_gradients_of_every_stage_alone_in_every_backbone(backbone, value):
    assert_same_gradients([value], backbone)


def test_a_compiled_program_needs_less_memory(monkeypatch):
    monkeypatch.setattr(models, 'build', alone)
    assert temporary(('all',)) < 0.6 * temporary(())


def test_less_is_kept_with_every_stage():
    given = shapes(())
    values = [remat.STAGES[:i] for i in range(len(remat.STAGES))] + [('all',)]
    sizes = [kept(value, given) for value in values]
    assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize(
    ('backbone', 'stem', 'first', 'after'),
    [
        ('mobilenet_v1', 'conv1', 1, (2, 4, 6, 12, 14)),
        ('efficientnet_lite0', 'conv_stem', 0, (1, 3, 5, 11, 16)),
    ],
)
def test_stages_of_blocks_begin_with_their_strides(monkeypatch, backbone, stem, first, after):
    found, chain = {}, remat.chain

    def record(module, stage, blocks, *rest):
        found[stage] = [block.keywords['name'] for block in blocks]
        return chain(module, stage, blocks, *rest)

    monkeypatch.setattr(remat, 'chain', record)
    shapes((), backbone)
    assert found.pop('stem') == [stem, f'block{first}']
    for k in range(4):  # layer1: to stride 4
        assert found.pop(f'layer{k + 1}') == [f'block{i}' for i in range(after[k], after[k + 1])]
    assert found == {'aspp': ['aspp']}


def test_a_layer_keeps_the_inputs_of_its_runs(monkeypatch):
    # Four blocks, of 32 channels at 4 x 4, two images, float32: in runs of two it is the third
    # block's input that is kept beside the first's.
    one, given = 4 * 2 * 4 * 4 * 32, shapes(())
    two_runs = kept(('layer3',), given)
    monkeypatch.setattr(remat.math, 'isqrt', lambda n: 1)
    assert kept(('layer3',), given) - two_runs == 2 * one
    monkeypatch.setattr(remat.math, 'isqrt', lambda n: n)
    assert two_runs - kept(('layer3',), given) == one


@pytest.mark.parametrize('backbone', ['tiny', 'mobilenet_v1'])
@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (
            True,
            "remat is True; expected a tuple of stages, out of stem, layer1, .* or \\('all',\\)",
        ),
        (False, 'remat is False; expected a tuple of stages'),
        ('layer3', "remat is 'layer3'; expected a tuple of stages"),
        (('layer3', 'layer5'), "remat is 'layer5'; expected one of 'stem', 'layer1', .*'all'"),
        (('block3',), "remat is 'block3'"),
        (('decodr',), 'did you mean decoder'),
    ],
)
def test_what_is_no_tuple_of_stages_is_refused(backbone, value, message):
    with pytest.raises(ValueError, match=message):
        build(value, backbone)


@pytest.mark.parametrize('value', [True, 'layer3', ('layer5',)])
def test_a_configuration_is_refused_before_anything_is_built(value):
    table = quickstart.get_config().to_dict()
    table['model']['remat'] = value
    with pytest.raises(ValueError, match=r'^model\.remat: got .* expected'):
        configs.finalise(ConfigDict(table))
