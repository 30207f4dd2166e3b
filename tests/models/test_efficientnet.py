"""EfficientNet-Lite against the package its weights are from: outputs, names, sizes and strides."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from css_jax import models
from css_jax.models import backbones, efficientnet
from css_jax.weights import layouts
from tests.small import drawn, stored

# Written by `store` with torch 2.13 and efficientnet-lite-pytorch 0.1.0.
FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures' / 'efficientnet_lite.json'
CONFIG = {
    'backbone': 'efficientnet_lite0',
    'stem': 'conv7',
    'output_stride': 16,
    'width': 1.0,
    'representation_dim': 16,
    'dtype': 'float32',
}
# Blocks and channels of the seven stages, and the last blocks at stride 4 and at stride 16.
VARIANTS = {
    'lite0': ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), (2, 10)),
    'lite1': ((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320), (3, 14)),
    'lite2': ((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352), (3, 14)),
}
TAPS = (3, 3, 5, 3, 5, 5, 3)


def file_shapes(variant):
    """Names and shapes of a published file, written down from the package's definition."""
    shapes = {}

    def conv(name, norm, out, inputs, size):
        shapes[f'{name}.weight'] = (out, inputs, size, size)
        for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'{norm}.{leaf}'] = (out,)
        shapes[f'{norm}.num_batches_tracked'] = ()

    conv('_conv_stem', '_bn0', 32, 3, 3)
    inputs, number = 32, 0
    repeats, channels, _ = VARIANTS[variant]
    for k, (count, out) in enumerate(zip(repeats, channels, strict=True)):
        for _ in range(count):
            block, inner = f'_blocks.{number}', inputs * (6 if k else 1)
            if k:
                conv(f'{block}._expand_conv', f'{block}._bn0', inner, inputs, 1)
            conv(f'{block}._depthwise_conv', f'{block}._bn1', inner, 1, TAPS[k])
            conv(f'{block}._project_conv', f'{block}._bn2', out, inner, 1)
            inputs, number = out, number + 1
    conv('_conv_head', '_bn1', 1280, inputs, 1)
    shapes['_fc.weight'], shapes['_fc.bias'] = (1000, 1280), (1000,)
    return shapes


def file_arrays(variant):
    """Random arrays by those names, by the rule of fixtures/README.md.

    But for half of the scales before a shortcut, so that ReLU6 cuts less than the half of what it
    is given and float32 is good for six digits.
    """
    arrays = {name: stored(name, shape) for name, shape in file_shapes(variant).items()}
    return {k: a / 2 if k.endswith('_bn2.weight') else a for k, a in arrays.items()}


def zeros(variant, prefix=''):
    """Arrays of a file's shapes that take no memory."""
    shapes = file_shapes(variant)
    return {prefix + k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}


def images():
    """Sides of which some halves are odd and some even."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 72, 49, 3)).astype(np.float32)


def summary(features):
    """What is stored of features by name."""
    found = {}
    for name, array in features.items():
        places = np.linspace(0, array.size - 1, 12).astype(int)
        numbers = {'largest': np.abs(array).max(), 'mean': array.mean(), 'std': array.std()}
        found[name] = {
            'shape': list(array.shape),
            **{key: float(f'{value:.8g}') for key, value in numbers.items()},
            'values': [float(f'{value:.8g}') for value in array.ravel()[places]],
        }
    return found


def assert_near(found, expected, relative):
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = found[name]
        assert ours['shape'] == theirs['shape']
        for key in ('largest', 'mean', 'std', 'values'):
            tolerance = relative * theirs['largest']
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=tolerance, err_msg=name)


def package_features(variant):
    """The package's own forward pass."""
    torch = pytest.importorskip('torch')
    package = pytest.importorskip('efficientnet_lite_pytorch')
    # Without a size of images it pads by that of its input.
    network = package.EfficientNet.from_name(f'efficientnet-{variant}', image_size=None).eval()
    arrays = {name: torch.from_numpy(np.array(a)) for name, a in file_arrays(variant).items()}
    network.load_state_dict(arrays)
    outputs = []
    for block in network._blocks:
        block.register_forward_hook(lambda module, given, y: outputs.append(y))
    with torch.no_grad():
        network.extract_features(torch.from_numpy(images().transpose(0, 3, 1, 2).copy()))
    outputs = [y.numpy().transpose(0, 2, 3, 1) for y in outputs]
    stride4, stride16 = VARIANTS[variant][2]
    return {'stride4': outputs[stride4], 'layer3': outputs[stride16], 'last': outputs[-1]}


def store():
    """Writes the fixture."""
    found = {variant: summary(package_features(variant)) for variant in VARIANTS}
    FIXTURE.write_text(json.dumps(found, indent=1) + '\n')


def backbone(variant='lite0', **changes):
    config = ConfigDict(CONFIG | changes)
    return models.BACKBONES[f'efficientnet_{variant}'](config, None)


def shapes_of(module):
    """Shapes of features, of two images of odd sides, and of variables."""
    x = np.zeros((2, 65, 48, 3), np.float32)
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, False))


@functools.cache
def traced(variant, output_stride):
    return shapes_of(backbone(variant, output_stride=output_stride))


def paths(variant):
    flat = flatten_dict(traced(variant, 32)[1], sep='/')
    return {path.replace('/', '/backbone/', 1): leaf for path, leaf in flat.items()}


@functools.cache
def features(variant):
    module = backbone(variant, output_stride=32)
    taken, _, _ = layouts.backbone(file_arrays(variant), paths(variant), layouts.LITE)
    flat = {path.replace('/backbone', '', 1): array for path, array in taken.items()}
    with jax.default_matmul_precision('highest'):
        apply = jax.jit(module.apply, static_argnums=2)
        return jax.device_get(apply(unflatten_dict(flat, sep='/'), images(), False))


@pytest.mark.parametrize('variant', VARIANTS)
def test_outputs_are_the_packages(variant):
    theirs = package_features(variant)
    for name, ours in features(variant).items():
        largest = np.abs(theirs[name]).max()
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-5 * largest, err_msg=name)
    assert_near(summary(theirs), json.loads(FIXTURE.read_text())[variant], 1e-6)


@pytest.mark.parametrize('variant', VARIANTS)
def test_outputs_are_those_stored(variant):
    expected = json.loads(FIXTURE.read_text())[variant]
    assert all(one['std'] > 0.1 * one['largest'] for one in expected.values())  # alive
    assert_near(summary(features(variant)), expected, 1e-5)


@pytest.mark.parametrize('variant', VARIANTS)
def test_features_by_name(variant):
    _, channels, _ = VARIANTS[variant]
    for stride in (8, 32) if variant == 'lite0' else (32,):
        found, _ = traced(variant, stride)
        assert {name: y.shape for name, y in found.items()} == {
            name: (2, math.ceil(65 / s), math.ceil(48 / s), count)
            for name, s, count in (
                ('stride4', 4, channels[1]),
                ('layer3', min(stride, 16), channels[4]),
                ('last', stride, channels[6]),
            )
        }


@pytest.fixture
def few(monkeypatch):
    """A block of each stride, and one more around a shortcut."""
    blocks = ((3, 2, 1, 24), (3, 2, 1, 40), (3, 2, 6, 80), (5, 2, 6, 192), (5, 1, 6, 192))
    monkeypatch.setattr(efficientnet, 'STAGES', tuple((1, *block) for block in blocks))


def test_dilation_in_place_of_a_stride_keeps_the_features(few):
    x = np.random.default_rng(3).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    # So narrow that channels stay the same where a stride is given up: no shortcut comes of it.
    modules = {s: backbone(output_stride=s, width=0.0625) for s in (8, 16, 32)}
    modules[0] = backbone(output_stride=8, width=0.0625, atrous='space_to_batch')
    variables = drawn(shapes_of(modules[32])[1], 1, 2)
    assert variables['params']['block2']['project']['kernel'].shape[-1] == 8
    assert variables['params']['block2']['expand']['kernel'].shape[2] == 8

    @jax.jit
    def features(variables, x):
        return {stride: m.apply(variables, x, False) for stride, m in modules.items()}

    with jax.default_matmul_precision('highest'):
        out = jax.device_get(features(variables, x))
    last = {s: y['last'] for s, y in out.items()}
    shapes = {s: y.shape[1:3] for s, y in last.items()}
    assert shapes == {0: (8, 12), 8: (8, 12), 16: (4, 6), 32: (2, 3)}
    assert last[32].std() > 0.3  # alive
    # A strided 'SAME' window of an even size is centred on the second of each pair.
    for fine, coarse in (
        (last[8][:, 1::2, 1::2], last[16]),
        (last[16][:, 1::2, 1::2], last[32]),
        (out[8]['layer3'][:, 1::2, 1::2], out[16]['layer3']),
        (out[0]['layer3'], out[8]['layer3']),
        (last[0], last[8]),
    ):
        np.testing.assert_allclose(fine, coarse, atol=1e-4)


def test_gradients_are_finite_and_reach_every_array(few):
    module = backbone(width=0.125)
    x = np.random.default_rng(4).uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)

    @jax.jit
    def gradients(variables):
        def loss(params):
            y, updates = module.apply(
                variables | {'params': params}, x, True, mutable=['batch_stats']
            )
            return sum(jnp.mean(one**3) for one in y.values()), updates

        return jax.grad(loss, has_aux=True)(variables['params'])

    found, updates = jax.device_get(gradients(drawn(shapes_of(module)[1], 1, 2)))
    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ('variant', 'published', 'here'),
    [
        ('lite0', 4_652_008, 2_958_848),
        ('lite1', 5_416_680, 3_723_520),
        ('lite2', 6_092_072, 4_357_952),
    ],
)
def test_every_array_of_the_backbone_is_found(variant, published, here):
    shapes = file_shapes(variant)
    trained = {k: s for k, s in shapes.items() if 'running' not in k and 'tracked' not in k}
    assert sum(math.prod(shape) for shape in trained.values()) == published
    expected, layout = paths(variant), layouts.of(f'efficientnet_{variant}')
    taken, prefix, ignored = layouts.backbone(zeros(variant, 'module.'), expected, layout)
    assert taken.keys() == expected.keys() and prefix == 'module.'
    assert sum(array.size for path, array in taken.items() if path.startswith('params/')) == here
    assert {name.split('.')[1] for name in ignored} == {'_conv_head', '_bn1', '_fc'}
    assert len(taken) + len(ignored) == sum('tracked' not in name for name in shapes)


def test_values_and_axes():
    file = file_arrays('lite0')
    taken, _, _ = layouts.backbone(file, paths('lite0'), layouts.LITE)
    for path, name in (
        ('params/backbone/conv_stem/kernel', '_conv_stem.weight'),
        ('params/backbone/block0/depthwise/kernel', '_blocks.0._depthwise_conv.weight'),
        ('params/backbone/block11/depthwise/kernel', '_blocks.11._depthwise_conv.weight'),
        ('params/backbone/block2/expand/kernel', '_blocks.2._expand_conv.weight'),
        ('params/backbone/block15/project/kernel', '_blocks.15._project_conv.weight'),
    ):
        assert taken[path].shape == tuple(file[name].shape[axis] for axis in (2, 3, 1, 0))
        assert taken[path][-1, 0, 0, 5] == file[name][5, 0, -1, 0]
    for path, name in (
        ('params/backbone/conv_stem/bn/scale', '_bn0.weight'),
        ('params/backbone/block3/expand/bn/bias', '_blocks.3._bn0.bias'),
        ('batch_stats/backbone/block0/depthwise/bn/mean', '_blocks.0._bn1.running_mean'),
        ('batch_stats/backbone/block12/project/bn/var', '_blocks.12._bn2.running_var'),
    ):
        np.testing.assert_array_equal(taken[path], file[name])


@pytest.mark.parametrize(
    ('variant', 'file', 'message'),
    [
        ('lite0', 'lite1', 'more than here: _blocks.16._expand_conv.weight.*another depth'),
        ('lite1', 'lite0', r'missing: _blocks.16.*another depth: see model.backbone'),
        ('lite1', 'lite2', r'_blocks.10._bn1.* has \(528,\), expected \(480,\).*another width'),
    ],
)
def test_another_variant_is_refused_with_the_likely_cause(variant, file, message):
    with pytest.raises(ValueError, match=message):
        layouts.backbone(zeros(file), paths(variant), layouts.LITE)


def test_one_block_more_is_refused():
    deeper = zeros('lite0') | {'_blocks.16._project_conv.weight': np.zeros((1, 1, 1, 1))}
    with pytest.raises(ValueError, match=r'^more than here: _blocks.16._project_conv.weight. Like'):
        layouts.backbone(deeper, paths('lite0'), layouts.LITE)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"no name ends in '_blocks.0._depthwise_conv.weight'"):
        layouts.backbone({'conv1.weight': np.zeros(3)}, paths('lite0'), layouts.LITE)


def test_widths_are_multiples_of_eight_not_below_nine_tenths():
    found = [efficientnet.channels(n, w) for n, w in ((24, 1.1), (40, 1.1), (16, 0.25), (10, 1.0))]
    assert found == [24, 48, 8, 16]


def test_a_network_on_it(few):
    assert models.build(CONFIG | {'output_stride': 8}, 5).rates == (12, 24, 36)
    module = models.build(CONFIG | {'output_stride': 32}, 5)
    assert module.rates == (3, 6, 9)
    x = jnp.zeros((2, 33, 47, 3))
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert {k: v.shape for k, v in outputs.items()} == {
        'logits': (2, 9, 12, 5),
        'representation': (2, 9, 12, 16),
    }
    params = variables['params']
    assert params['low_level_conv']['kernel'].shape == (1, 1, 24, 48)
    assert params['aspp']['conv0']['kernel'].shape == (1, 1, 192, 256)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stem': 'deep'}, "stem is 'deep'; expected 'conv7'.*EfficientNet-Lite has its own stem"),
        ({'output_stride': 4}, 'output_stride is 4; expected one of 8, 16, 32'),
        (
            {'backbone': 'resnet18', 'output_stride': 32},
            'output_stride is 32; expected one of 8, 16',
        ),
        (
            {'backbone': 'efficientnet_lite3'},
            "'efficientnet_lite3'.*did you mean efficientnet_lite",
        ),
    ],
)
def test_impossible_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        models.build(CONFIG | change, 5)


def test_pixels_of_the_published_weights():
    for variant in VARIANTS:
        config = ConfigDict({'backbone': f'efficientnet_{variant}', 'pretrained': 'a file'})
        mean, std = backbones.pixels(config)
        x = np.arange(256)
        for i in range(3):
            np.testing.assert_allclose((x / 255 - mean[i]) / std[i], (x - 127) / 128, atol=1e-12)
