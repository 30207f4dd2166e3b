"""Backbones in files by torchvision's and others' names: all is found, or it says why not."""

import zlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from css_jax import models
from css_jax.weights import layouts, reference

CONFIG = {
    'backbone': 'resnet50',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 1.0,
    'representation_dim': 256,
    'dtype': 'float32',
}


def torchvision_shapes(depths, bottleneck, deep=False):
    """Names and shapes of torchvision's ResNets, written down from its definition."""
    shapes = {}

    def conv(name, out, inputs, size):
        shapes[f'{name}.weight'] = (out, inputs, size, size)

    def norm(name, features):
        for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'{name}.{leaf}'] = (features,)
        shapes[f'{name}.num_batches_tracked'] = ()

    inputs = 64
    if deep:
        conv('conv1.0', 64, 3, 3)
        norm('conv1.1', 64)
        conv('conv1.3', 64, 64, 3)
        norm('conv1.4', 64)
        conv('conv1.6', 128, 64, 3)
        inputs = 128
    else:
        conv('conv1', 64, 3, 7)
    norm('bn1', inputs)
    for layer, depth in enumerate(depths, start=1):
        planes = 64 * 2 ** (layer - 1)
        out = 4 * planes if bottleneck else planes
        for i in range(depth):
            block = f'layer{layer}.{i}'
            sizes = (1, 3, 1) if bottleneck else (3, 3)
            outs = (planes, planes, out) if bottleneck else (planes, planes)
            before = inputs
            for k, (size, features) in enumerate(zip(sizes, outs, strict=True), start=1):
                conv(f'{block}.conv{k}', features, before, size)
                norm(f'{block}.bn{k}', features)
                before = features
            if i == 0 and (layer > 1 or inputs != out):
                conv(f'{block}.downsample.0', out, inputs, 1)
                norm(f'{block}.downsample.1', out)
            inputs = out
    shapes['fc.weight'], shapes['fc.bias'] = (1000, inputs), (1000,)
    return shapes


def filled(shapes, prefix=''):
    """One value an array, its own: of where it came from, cheap to make."""
    return {
        prefix + name: np.full(shape, zlib.crc32(name.encode()) % 65_536, np.float32)
        for name, shape in shapes.items()
    }


def backbone_shapes(**change):
    module = models.build(CONFIG | change, 5)
    variables = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32))
    return {p: a for p, a in flatten_dict(variables, sep='/').items() if '/backbone/' in p}


RESNET50 = torchvision_shapes((3, 4, 6, 3), True)


def test_shapes_of_this_test_have_torchvisions_published_sizes():
    def size(shapes):
        trained = {k: s for k, s in shapes.items() if 'running' not in k and 'tracked' not in k}
        return sum(int(np.prod(shape)) for shape in trained.values())

    assert size(RESNET50) == 25_557_032
    assert size(torchvision_shapes((3, 4, 23, 3), True)) == 44_549_160
    assert size(torchvision_shapes((2, 2, 2, 2), False)) == 11_689_512
    assert size(torchvision_shapes((3, 4, 6, 3), False)) == 21_797_672


@pytest.mark.parametrize(
    ('backbone', 'depths', 'bottleneck', 'stem'),
    [
        ('resnet18', (2, 2, 2, 2), False, 'conv7'),
        ('resnet34', (3, 4, 6, 3), False, 'conv7'),
        ('resnet50', (3, 4, 6, 3), True, 'conv7'),
        ('resnet101', (3, 4, 23, 3), True, 'deep'),
    ],
)
def test_every_array_of_the_backbone_is_found(backbone, depths, bottleneck, stem):
    shapes = backbone_shapes(backbone=backbone, stem=stem)
    file = filled(torchvision_shapes(depths, bottleneck, deep=stem == 'deep'))
    taken, prefix, ignored = layouts.backbone(file, shapes, layouts.of(backbone))
    assert taken.keys() == shapes.keys()
    assert (prefix, ignored) == ('', ['fc.weight', 'fc.bias'])
    values = [array.flat[0] for array in taken.values()]
    tracked = sum(name.endswith('tracked') for name in file)
    assert len(taken) == len(file) - tracked - 2
    assert sorted(values) == sorted(
        a.flat[0] for k, a in file.items() if 'tracked' not in k and not k.startswith('fc')
    )


def test_values_and_axes():
    r = np.random.default_rng(0)
    file = {k: r.standard_normal(s).astype(np.float32) for k, s in RESNET50.items() if s != ()}
    taken, _, _ = layouts.backbone(file, backbone_shapes(), layouts.TORCH)
    for path, name in (
        ('params/backbone/conv1/kernel', 'conv1.weight'),
        ('params/backbone/layer3_5/conv2/kernel', 'layer3.5.conv2.weight'),
        ('params/backbone/layer2_0/downsample_conv/kernel', 'layer2.0.downsample.0.weight'),
    ):
        out, inputs, size, _ = file[name].shape
        assert taken[path].shape == (size, size, inputs, out)
        assert taken[path][-1, 0, 2, 5] == file[name][5, 2, -1, 0]
    for path, name in (
        ('params/backbone/bn1/scale', 'bn1.weight'),
        ('params/backbone/layer4_2/bn3/bias', 'layer4.2.bn3.bias'),
        ('batch_stats/backbone/layer1_0/downsample_bn/mean', 'layer1.0.downsample.1.running_mean'),
        ('batch_stats/backbone/bn1/var', 'bn1.running_var'),
    ):
        np.testing.assert_array_equal(taken[path], file[name])


@pytest.fixture(scope='module')
def small():
    """A resnet18 of few channels: its shapes here, and a file of it."""
    shapes = backbone_shapes(backbone='resnet18', width=0.125)
    names = {
        name: path for name, path in reference.reference_table(shapes).items() if path in shapes
    }
    file = {
        name.removeprefix('resnet_'): np.zeros(np.array(shapes[path].shape)[_order(shapes[path])])
        for name, path in names.items()
    }
    return shapes, file


def _order(like):
    return [3, 2, 0, 1] if like.ndim == 4 else [0]


@pytest.mark.parametrize(
    'prefix', ['module.', 'resnet_', 'model.module.resnet_', 'state_dict.backbone.', 'encoder.']
)
def test_what_stands_in_front_of_the_names_is_found(small, prefix):
    shapes, file = small
    file = {prefix + name: array for name, array in file.items()}
    others = {f'{prefix}fc.weight': np.zeros(3), 'elsewhere.weight': np.zeros(3)}
    taken, found, ignored = layouts.backbone(file | others, shapes, layouts.TORCH)
    assert taken.keys() == shapes.keys() and found == prefix
    assert ignored == [f'{prefix}fc.weight']


def test_of_two_networks_the_teacher_is_taken(small):
    shapes, file = small
    both = {f'model.resnet_{k}': v for k, v in file.items()}
    both |= {f'ema_model.resnet_{k}': v + 1 for k, v in file.items()}
    taken, prefix, _ = layouts.backbone(both, shapes, layouts.TORCH)
    assert prefix == 'ema_model.resnet_'
    assert all((array == 1).all() for array in taken.values())


def test_a_file_of_something_else_is_refused(small):
    shapes, _ = small
    with pytest.raises(
        ValueError, match=r"no name ends in 'layer1.0.conv1.weight'; there are a, b"
    ):
        layouts.backbone({'a': np.zeros(3), 'b': np.zeros(3)}, shapes, layouts.TORCH)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone': 'resnet101'}, 'missing: layer3.6.conv1.weight.*another depth'),
        ({'backbone': 'resnet34'}, r'layer1.0.conv1.weight has \(1, 1, 64, 64\), expected '),
        ({'stem': 'deep'}, 'missing: conv1.0.weight.*another stem: see model.stem'),
        ({'width': 0.5}, r'conv1.weight has \(7, 7, 3, 64\), expected \(7, 7, 3, 32\).*width'),
    ],
)
def test_another_network_is_refused_with_the_likely_cause(change, message):
    with pytest.raises(ValueError, match=message):
        layouts.backbone(filled(RESNET50), backbone_shapes(**change), layouts.TORCH)


def test_a_deeper_file_is_refused_too():
    deeper = {name: np.zeros((1,) * len(shape)) for name, shape in RESNET50.items()}
    deeper['layer3.6.conv1.weight'] = np.zeros((1, 1, 1, 1))
    with pytest.raises(ValueError, match=r'more than here: layer3.6.conv1.weight.*another depth'):
        layouts.backbone(deeper, backbone_shapes(), layouts.TORCH)


def test_one_missing_array_refuses_the_file(small):
    shapes, file = small
    file = {k: v for k, v in file.items() if k != 'layer2.1.bn2.running_var'}
    with pytest.raises(ValueError, match=r'missing: layer2.1.bn2.running_var'):
        layouts.backbone(file, shapes, layouts.TORCH)
