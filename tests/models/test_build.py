"""The whole network: shapes, strides, heads, precision, what is refused."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import models
from css_jax.models import resnet
from css_jax.models.layers import he_normal, torch_uniform
from tests import filled
from tests.small import drawn

SMALL = {
    'backbone': 'resnet18',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 0.125,
    'representation_dim': 16,
    'dtype': 'float32',
}
TINY = SMALL | {'backbone': 'tiny'}


def images(height=32, width=32, batch=2):
    r = np.random.default_rng(1)
    return jnp.asarray(r.standard_normal((batch, height, width, 3)), jnp.float32)


def output_shapes(config, x, **arguments):
    """Head name -> shape, without computing."""
    module = models.build(config, **({'num_classes': 5} | arguments))
    outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    return {name: y.shape for name, y in outputs.items()}


def backbone_shapes(config, x):
    backbone = models.BACKBONES[config['backbone']](SimpleNamespace(**config), None)
    outputs, _ = jax.eval_shape(
        lambda key: backbone.init_with_output(key, x, train=False), jax.random.key(0)
    )
    return [outputs[name].shape[1:] for name in ('stride4', 'last')]


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """One block a layer, where compiling is what takes the time."""
    models.BACKBONES['tiny'] = partial(resnet.build, resnet.BasicBlock, (1, 1, 1, 1))
    yield
    del models.BACKBONES['tiny']


@pytest.fixture(scope='module')
def variables(tiny):
    """Random variables of TINY."""
    return drawn(jax.eval_shape(models.build(TINY, 5).init, jax.random.key(0), images()))


def test_outputs_have_the_stride_of_layer1():
    for (height, width), expected in {
        (32, 32): (8, 8),
        (33, 47): (9, 12),
        (65, 97): (17, 25),
    }.items():
        for config in (TINY, TINY | {'output_stride': 16}, TINY | {'stem': 'deep'}):
            assert output_shapes(config, images(height, width)) == {
                'logits': (2, *expected, 5),
                'representation': (2, *expected, 16),
            }


def test_defaults_of_the_table_build_the_papers_network():
    module = models.build(filled.model(), 21)
    x = jnp.zeros((1, 64, 64, 3))
    outputs, shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert outputs['representation'].shape == (1, 16, 16, 256)
    params = shapes['params']
    assert params['aspp']['project_conv']['kernel'].shape == (1, 1, 1280, 256)
    assert params['head_logits']['conv']['kernel'].shape == (3, 3, 304, 256)
    assert params['backbone']['layer4_2']['conv3']['kernel'].shape == (1, 1, 512, 2048)
    # torchvision's ResNet-101 without its classifier has 42,500,160 parameters.
    assert sum(p.size for p in jax.tree.leaves(params['backbone'])) == 42_500_160


def test_backbone_strides_stems_and_channels():
    x = jnp.zeros((1, 64, 49, 3))
    assert backbone_shapes(SMALL, x) == [(16, 13, 8), (8, 7, 64)]
    assert backbone_shapes(SMALL | {'output_stride': 16}, x) == [(16, 13, 8), (4, 4, 64)]
    deep = SMALL | {'stem': 'deep', 'backbone': 'resnet50', 'width': 0.25}
    assert backbone_shapes(deep, x) == [(16, 13, 64), (8, 7, 512)]
    ceil = deep | {'stem_ceil_mode': True}  # 32 -> 17, and 25 -> 13 either way
    assert backbone_shapes(ceil, x) == [(17, 13, 64), (9, 7, 512)]
    backbone = models.BACKBONES['resnet50'](SimpleNamespace(**(deep | {'width': 1.0})), None)
    params = jax.eval_shape(lambda k: backbone.init(k, x, False), jax.random.key(0))['params']
    assert params['conv1_6']['kernel'].shape == (3, 3, 64, 128)
    assert params['layer1_0']['conv1']['kernel'].shape == (1, 1, 128, 64)


def test_dilation_stands_in_for_the_stride(variables):
    # torchvision's dilations leave the receptive fields as they were.
    x = images(45, 64)
    backbone_variables = {name: variables[name]['backbone'] for name in variables}

    def features(output_stride):
        config = SimpleNamespace(**(TINY | {'output_stride': output_stride}))
        backbone = models.BACKBONES['tiny'](config, None)
        return backbone.apply(backbone_variables, x, train=False)['last']

    fine, coarse = jax.device_get(jax.jit(lambda: (features(8), features(16)))())
    assert coarse.shape[1:3] == (3, 4)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-4 * float(coarse.max()))


@pytest.mark.parametrize(
    ('stem', 'expected'),
    [('conv7', {3: (1, 2), 4: (2, 4)}), ('deep', {3: (2, 2), 4: (4, 4)})],
)
def test_dilations_of_first_and_other_blocks(stem, expected):
    config = SMALL | {'backbone': 'resnet50', 'stem': stem}
    backbone = models.BACKBONES['resnet50'](SimpleNamespace(**config), None)
    found = {}

    def record(call, args, kwargs, context):
        if type(context.module).__name__ == 'Conv' and context.module.kernel_size == 3:
            found['/'.join(context.module.path)] = context.module.dilation
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda k: backbone.init(k, images(), False), jax.random.key(0))
    for layer, (first, others) in expected.items():
        assert found[f'layer{layer}_0/conv2'] == first
        assert found[f'layer{layer}_1/conv2'] == found[f'layer{layer}_2/conv2'] == others
    assert found['layer1_0/conv2'] == found['layer2_0/conv2'] == found['layer2_1/conv2'] == 1


def test_training_moves_the_running_statistics_and_bfloat16_agrees(variables):
    x = images()
    modules = {d: models.build(TINY | {'dtype': d}, 5) for d in ('float32', 'bfloat16')}

    @jax.jit
    def trained(v, x):
        return {
            dtype: module.apply(v, x, train=True, mutable=['batch_stats'])
            for dtype, module in modules.items()
        }

    results = jax.device_get(trained(variables, x))
    for dtype, module in modules.items():
        outputs, updates = results[dtype]
        tree = jax.eval_shape(module.init, jax.random.key(0), x)
        assert {a.dtype for a in jax.tree.leaves([outputs, updates, tree])} == {
            jnp.dtype('float32')
        }
        moved = jax.tree.map(
            lambda a, b: (a != b).any(), updates['batch_stats'], dict(variables['batch_stats'])
        )
        assert all(jax.tree.leaves(moved))
    exact, rounded = (results[dtype][0]['logits'] for dtype in modules)
    difference = np.sqrt(np.mean((exact - rounded) ** 2))
    assert 0 < difference < 0.1 * exact.std()


def test_initialisers_of_backbone_and_decoder():
    module = models.build(TINY, 5)
    initialisers = {}

    def record(call, args, kwargs, context):
        if type(context.module).__name__ == 'Conv':
            initialisers.setdefault(context.module.path[0], set()).add(context.module.kernel_init)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(module.init, jax.random.key(0), images())
    assert initialisers.pop('backbone') == {he_normal}
    assert all(found == {torch_uniform} for found in initialisers.values())

    @jax.jit
    def scales(key):  # nothing random among them is left to compile
        params = module.init(key, images())['params']
        return jax.tree_util.tree_map_with_path(
            lambda path, p: p if path[-1].key == 'scale' else None, params
        )

    found = jax.device_get(scales(jax.random.key(0)))
    for path, scale in jax.tree_util.tree_leaves_with_path(found):
        zero = path[1].key.startswith('layer') and path[2].key == 'bn2'
        assert (scale == (0 if zero else 1)).all(), path


def test_only_the_heads_asked_for_are_built():
    module = models.build(SMALL, outputs={'tags': 3})
    tree = jax.eval_shape(module.init, jax.random.key(0), images())
    assert [name for name in tree['params'] if name.startswith('head')] == ['head_tags']
    assert output_shapes(SMALL, images(), outputs={'tags': 3}) == {'tags': (2, 8, 8, 3)}


def test_backbone_of_any_stride(monkeypatch):
    class Patches(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(12, (14, 14), (14, 14), padding='VALID')(x)
            return {'stride4': x, 'last': x}

    monkeypatch.setitem(models.BACKBONES, 'patches', lambda config, axis_name: Patches())
    config = SMALL | {'backbone': 'patches', 'output_stride': 14}
    assert output_shapes(config, images(42, 56))['logits'] == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone': 'resnet10'}, "backbone is 'resnet10'.*did you mean resnet101"),
        ({'stem': 'depe'}, "stem is 'depe'.*'conv7', 'deep'; did you mean deep"),
        ({'output_stride': 4}, 'output_stride is 4; expected one of 8, 16'),
        ({'dtype': 'float16'}, "dtype is 'float16'.*'float32', 'bfloat16'"),
        ({'width': 0}, 'width is 0; expected a number above 0'),
        ({'representation_dim': 0}, "head 'representation' has 0 channels"),
    ],
)
def test_impossible_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        models.build(SMALL | change, 5)


def test_missing_classes_and_wrong_images_are_named():
    with pytest.raises(ValueError, match="head 'logits' has None channels"):
        models.build(SMALL)
    with pytest.raises(ValueError, match='outputs is empty'):
        models.build(SMALL, outputs={})
    module = models.build(SMALL, 5)
    for wrong in (jnp.zeros((32, 32, 3)), jnp.zeros((1, 32, 32, 3), jnp.uint8)):
        with pytest.raises(ValueError, match='expected float'):
            jax.eval_shape(module.init, jax.random.key(0), wrong)
