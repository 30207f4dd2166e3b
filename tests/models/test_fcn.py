"""Family fcn: 1x1 heads on any backbone at stride 8."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import models
from css_jax.config import warnings
from css_jax.models import efficientnet, fcn, mobilenet, resnet
from css_jax.models.backbones import KEYS
from tests import tiny
from tests.small import drawn, shallow

CONFIG = {
    'family': 'fcn',
    'backbone': 'resnet18',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 0.125,
    'dtype': 'float32',
}
HEADS = {'logits': 5, 'representation': 7, 'auxiliary': 3}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A block or two a stage."""
    monkeypatch.setitem(models.BACKBONES, 'resnet18', shallow)
    bottleneck = partial(resnet.build, resnet.Bottleneck, (1, 1, 1, 1))
    monkeypatch.setitem(models.BACKBONES, 'resnet50', bottleneck)
    blocks = mobilenet.BLOCKS
    monkeypatch.setattr(mobilenet, 'BLOCKS', (*blocks[1:2], blocks[3], *blocks[5:7], *blocks[11:]))
    stages = tuple((min(repeats, 2), *rest) for repeats, *rest in efficientnet.STAGES)
    monkeypatch.setattr(efficientnet, 'STAGES', stages)


def images(batch=2, height=32, width=32):
    r = np.random.default_rng(1)
    return jnp.asarray(r.standard_normal((batch, height, width, 3)), jnp.float32)


@pytest.mark.parametrize(
    ('change', 'channels', 'auxiliary'),
    [
        ({}, 64, 32),
        ({'backbone': 'resnet50'}, 256, 128),
        ({'backbone': 'resnet18', 'stem': 'deep'}, 64, 32),
        ({'backbone': 'mobilenet_v1'}, 128, 64),
        ({'backbone': 'efficientnet_lite0'}, 40, 16),
        ({'degrid': True}, 64, 32),
        ({'backbone': 'mobilenet_v1', 'degrid': True, 'remat': ('all',)}, 64, 64),
    ],
)
def test_heads_are_1x1_at_stride_8(change, channels, auxiliary):
    """Of sides that 8 does not divide, too; 'auxiliary' reads layer3."""
    module = models.build(CONFIG | change, outputs=HEADS)
    x = images(2, 37, 51)
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert {name: (y.shape, y.dtype) for name, y in outputs.items()} == {
        name: ((2, 5, 7, count), jnp.float32) for name, count in HEADS.items()
    }
    params = variables['params']
    degrid = {'degrid0', 'degrid1'} if change.get('degrid') else set()
    assert params.keys() == {'backbone', *degrid, *(f'head_{name}' for name in HEADS)}
    read = dict.fromkeys(HEADS, channels) | {'auxiliary': auxiliary}
    for name, count in HEADS.items():
        assert params[f'head_{name}']['kernel'].shape == (1, 1, read[name], count)
        assert params[f'head_{name}']['bias'].shape == (count,)
    if degrid:
        assert params['degrid0']['conv']['kernel'].shape[:2] == (3, 3)
        assert params['degrid1']['conv']['kernel'].shape == (3, 3, 64, 64)  # 512 / 8


def test_heads_start_with_the_authors_spread_and_no_bias():
    module = models.build(CONFIG | {'width': 1.0}, outputs={'logits': 50})

    @jax.jit
    def head(key):
        return module.init(key, images(1, 16, 16))['params']['head_logits']

    found = head(jax.random.key(0))
    np.testing.assert_allclose(found['kernel'].std(), (2 / 50) ** 0.5, rtol=0.03)
    assert not np.any(found['bias'])


def test_an_image_of_weight_0_counts_in_no_statistics():
    module = models.build(CONFIG | {'degrid': True}, outputs={'logits': 5})
    x = images(3)
    given = drawn(jax.eval_shape(module.init, jax.random.key(0), x))

    @jax.jit
    def run(given, x):
        apply = partial(module.apply, given, train=True, mutable=['batch_stats'])
        return apply(x, image_weights=jnp.array([1.0, 1.0, 0.0])), apply(x[:2]), apply(x)

    with jax.default_matmul_precision('highest'):
        weighed, two, three = jax.device_get(run(given, x))
    np.testing.assert_allclose(weighed[0]['logits'][:2], two[0]['logits'], atol=1e-4)
    assert np.abs(three[0]['logits'][:2] - two[0]['logits']).max() > 1e-2
    for a, b in zip(jax.tree.leaves(weighed[1]), jax.tree.leaves(two[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_degrid_is_dilated_by_two_and_by_one():
    texts = []
    for change in ({}, {'degrid': True}):
        module = models.build(CONFIG | change, outputs={'logits': 5})
        tree = jax.eval_shape(module.init, jax.random.key(0), images())
        texts.append(str(jax.make_jaxpr(module.apply)(tree, images())))
    counts = [[text.count(f'rhs_dilation=({d}, {d})') for d in (1, 2)] for text in texts]
    assert np.subtract(*counts[::-1]).tolist() == [1, 1]
    assert fcn.DEGRID == ((512, 2), (512, 1))


def test_another_stride_and_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r'^output_stride is 16; expected one of 8$'):
        models.build(CONFIG | {'output_stride': 16}, outputs=HEADS)
    module = models.build(CONFIG, outputs=HEADS)
    with pytest.raises(ValueError, match='expected float'):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))


def test_a_key_belongs_to_its_family_or_to_all():
    own = [family.keys.keys() for family in models.FAMILIES.values()]
    every = [key for keys in (KEYS, *own) for key in keys]
    assert len(set(every)) == len(every)
    assert models.KEYS.keys() == {'model.family', *every}
    wrongs = [('fcn', {'head_convs': 2}), ('deeplab', {'degrid': True})]
    for family, wrong in [*wrongs, ('fcn', {'pool': 'mean'}), ('deeplab', {'aux_layer': -4})]:
        given = tiny.get_config('supervised')
        given.model.update(family=family, **wrong)
        told = warnings.warnings(given, configs.finalise(given), {'labelled': 8})
        (key,) = wrong
        assert f'model.{key}={wrong[key]} has no effect in this configuration' in told
