"""Weights by the reference's names: its outputs, the round trip, and bad state dicts."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax import models
from css_jax.weights import reference
from tests.small import stored

FIXTURE = Path(__file__).parents[1] / 'fixtures' / 'reference_small.npz'
CONFIG = {
    'backbone': 'resnet50',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 1.0,
    'representation_dim': 256,
    'dtype': 'float32',
}


def state_dict_of(config, num_classes=5):
    """A state dict of the network's names and shapes, without initialising it."""
    module = models.build(config, num_classes)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    return {name: stored(name, a.shape) for name, a in reference.to_reference(zeros).items()}


def test_outputs_are_the_references():
    golden = np.load(FIXTURE)
    variables = reference.from_reference(state_dict_of(CONFIG, num_classes=21))
    images = golden['deeplab_x_nchw'].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision('highest'):
        outputs = jax.jit(models.build(CONFIG, 21).apply)(variables, images)
    outputs = {name: np.asarray(y).transpose(0, 3, 1, 2) for name, y in outputs.items()}
    for ours, theirs in (
        (outputs['logits'], golden['deeplab_r50_os8_logits']),
        (outputs['representation'][:, ::16], golden['deeplab_r50_os8_rep_every16']),
    ):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ('backbone', 'stem', 'blocks', 'first'),
    [
        ('resnet18', 'conv7', (2, 2, 2, 2), 'resnet_conv1.weight'),
        ('resnet34', 'deep', (3, 4, 6, 3), 'resnet_conv1.6.weight'),
        ('resnet101', 'deep', (3, 4, 23, 3), 'resnet_conv1.6.weight'),
    ],
)
def test_round_trip_is_exact(backbone, stem, blocks, first):
    config = CONFIG | {'backbone': backbone, 'stem': stem, 'width': 0.125}
    state_dict = state_dict_of(config)
    assert first in state_dict
    assert state_dict['classifier.3.bias'].shape == (5,)
    for layer, depth in enumerate(blocks, start=1):
        assert f'resnet_layer{layer}.{depth - 1}.conv2.weight' in state_dict
        assert f'resnet_layer{layer}.{depth}.conv2.weight' not in state_dict
    noise = {f'module.{name}': array for name, array in state_dict.items()}
    noise['module.resnet_bn1.num_batches_tracked'] = np.array(0)
    variables = reference.from_reference(noise)
    expected = jax.eval_shape(
        models.build(config, 5).init, jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32)
    )
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
    back = reference.to_reference(variables)
    assert back.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.fixture(scope='module')
def small():
    return state_dict_of(CONFIG | {'backbone': 'resnet18', 'width': 0.125})


@pytest.mark.parametrize(
    'name',
    [
        'resnet_conv1.weight',
        'resnet_bn1.running_var',
        'resnet_layer1.0.bn2.weight',
        'resnet_layer3.0.downsample.0.weight',
        'ASPP.convs.4.1.weight',
        'project.1.running_mean',
        'classifier.3.bias',
        'representation.0.weight',
    ],
)
def test_missing_entry_is_named(small, name):
    with pytest.raises(ValueError, match=f'missing.*{name}'):
        reference.from_reference({k: v for k, v in small.items() if k != name})


@pytest.mark.parametrize(
    'name', ['fc.weight', 'ASPP.convs.0.0.bias', 'resnet_layer1.0.conv9.weight']
)
def test_unknown_entry_is_named(small, name):
    with pytest.raises(ValueError, match=f'not known.*{name}'):
        reference.from_reference(small | {name: np.zeros(3, np.float32)})


def test_empty_and_misshapen_state_dicts_are_refused(small):
    with pytest.raises(ValueError, match='missing'):
        reference.from_reference({})
    with pytest.raises(ValueError, match=r'project.0.weight has shape \(3, 2\); expected 4'):
        reference.from_reference(small | {'project.0.weight': np.zeros((3, 2), np.float32)})


def test_representation_head_may_be_absent(small):
    without = {k: v for k, v in small.items() if not k.startswith('representation')}
    variables = reference.from_reference(without)
    assert 'head_representation' not in variables['params']
    assert reference.to_reference(variables).keys() == without.keys()


def test_other_heads_have_no_name(small):
    variables = reference.from_reference(small)
    variables['params']['head_depth'] = variables['params'].pop('head_logits')
    with pytest.raises(ValueError, match='head_depth'):
        reference.to_reference(variables)
