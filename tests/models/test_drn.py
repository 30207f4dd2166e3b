"""DRN-D held to the outputs of USSS's authors, its weights by their names, and what is refused."""

import logging
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from css_jax import config as configs
from css_jax import methods, models
from css_jax.models import backbones, drn, resnet
from css_jax.models.layers import he_normal
from css_jax.ops import losses, resize
from css_jax.weights import drn as drn_weights
from css_jax.weights import files, initial, layouts, reference
from tests import tiny
from tests.small import drawn, stored

GOLDEN = Path(__file__).parents[1] / 'fixtures' / 'usss_network.npz'
NAMES = ('drn_d_22', 'drn_d_38', 'drn_d_54', 'drn_d_105')
CONFIG = {
    'family': 'fcn',
    'backbone': 'drn_d_22',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 1.0,
    'dtype': 'float32',
}
HEADS = {'logits_a': 6, 'logits_b': 4, 'embedding': 10}


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN)


def shapes(golden, name):
    """Entry of the authors' state dict -> shape."""
    pairs = zip(golden[f'{name}_names'], golden[f'{name}_shapes'], strict=True)
    return {entry.decode(): tuple(shape[shape > 0].tolist()) for entry, shape in pairs}


def zeros(golden, name):
    return {entry: np.zeros(s, np.float32) for entry, s in shapes(golden, name).items()}


def weights(golden, name):
    """Variables by the rule of fixtures/README.md."""
    rule = {entry: stored(entry, shape) for entry, shape in shapes(golden, name).items()}
    return drn_weights.from_torch(rule)


def pixels(images):
    return images.astype(np.float32) / 255


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope='module')
def network(golden):
    return models.build(CONFIG, outputs=HEADS), weights(golden, 'drn_d_22')


def test_levels_and_outputs_are_the_authors(golden, network):
    module, variables = network

    @jax.jit
    def run(variables, images, odd):
        outputs, kept = module.apply(
            variables, images, capture_intermediates=lambda m, _: (m.name or '')[:5] == 'level'
        )
        return outputs, kept['intermediates']['backbone'], module.apply(variables, odd)

    arguments = [pixels(golden[name]) for name in ('images', 'odd_images')]
    with jax.default_matmul_precision('highest'):
        outputs, kept, odd = jax.device_get(run(variables, *arguments))
    for level in range(9):
        last = kept[f'level{level}_1' if level in drn.RESIDUAL else f'level{level}']
        (maps,) = last['__call__']
        assert_close(maps.mean((0, 1, 2)), golden[f'level{level}_mean'])
        assert_close(maps.std((0, 1, 2)), golden[f'level{level}_std'])
    assert_close(maps[:1, ..., ::4], golden['features_every4'])
    assert_close(outputs['embedding'][:1], golden['projected'])
    for letter in 'ab':
        logits = resize.upsample_zero(outputs[f'logits_{letter}'][:1], 8)
        assert_close(logits[:, ::3, ::3], golden[f'logits_{letter}_every3'])
    assert odd['logits_b'].shape == (1, 5, 7, 4)  # of 37 x 51 pixels
    logits = resize.upsample_zero(odd['logits_b'], 8)
    assert_close(logits[:, ::3, ::3], golden['odd_logits_b_every3'])


def test_training_is_the_authors(golden, network):
    module, variables = network
    images, labels = pixels(golden['images']), golden['train_labels_a'].astype(np.int32)
    labels = np.where(labels == HEADS['logits_a'] - 1, -1, labels)  # void's channel is the last

    @jax.jit
    def run(variables, images, labels):
        def loss(params):
            given = variables | {'params': params}
            outputs, moved = module.apply(given, images, train=True, mutable=['batch_stats'])
            logits = resize.upsample_zero(outputs['logits_a'], 8)
            total, count = losses.cross_entropy(logits, labels)
            return total / count, (logits, moved)

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(variables['params'])
        return value, *rest, gradients

    with jax.default_matmul_precision('highest'):
        value, logits, moved, gradients = jax.device_get(run(variables, images, labels))
    assert_close(value, golden['train_loss_a'])
    assert_close(logits[:, ::6, ::6], golden['train_logits_a_every6'])

    found = flatten_dict({'params': gradients} | moved, sep='/')
    table = {f'base.{entry}': path for entry, path in drn_weights.names(found).items()}
    heads = drn_weights.HEADS
    table |= reference.entries(heads, biased=tuple(heads.values()))
    names = [name.decode() for name in golden['train_gradient_names']]
    norms = np.array([np.linalg.norm(found[table[name]]) for name in names])
    np.testing.assert_allclose(norms, golden['train_gradient_norms'], rtol=1e-3)
    unused = {path for path in table.values() if path.startswith('params/')}
    unused -= {table[name] for name in names}
    assert unused and all(not np.any(found[path]) for path in unused)
    compared = 0
    for name in golden.files:
        if name.startswith(('train_gradient/', 'train_statistics/')):
            expected, array = golden[name], found[table[name.split('/')[1]]]
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            assert_close(array.reshape(expected.shape), expected, 1e-3)
            compared += 1
    assert compared == 12


@pytest.mark.parametrize('name', ['drn_d_38', 'drn_d_54'])
def test_deeper_features_are_the_authors(golden, name):
    module = backbones.build(SimpleNamespace(**CONFIG | {'backbone': name}), None)
    variables = {kind: tree['backbone'] for kind, tree in weights(golden, name).items()}
    with jax.default_matmul_precision('highest'):
        run = jax.jit(lambda variables, x: module.apply(variables, x, train=False)['last'])
        features = run(variables, pixels(golden[f'{name}_images']))
    assert_close(features[..., ::8], golden[f'{name}_features_every8'])
    assert features.shape == (1, 4, 4, 512) and features.min() == 0


def ours(name, **change):
    """Path -> shape, of the backbone."""
    module = backbones.build(SimpleNamespace(**CONFIG | {'backbone': name} | change), None)
    init = partial(module.init, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    flat = flatten_dict(tree, sep='/')
    return {path.replace('/', '/backbone/', 1): leaf for path, leaf in flat.items()}


@pytest.mark.parametrize('name', NAMES)
def test_names_shapes_and_counts(golden, name):
    """Of the backbone, and of a file for ImageNet, whose names begin with 'layer'."""
    expected = ours(name)
    count = sum(np.prod(a.shape) for path, a in expected.items() if path.startswith('params'))
    assert count == golden[f'{name}_parameters']
    entries = {entry: a for entry, a in zeros(golden, name).items() if entry.startswith('base.')}
    file = {entry.replace('base.', 'layer'): array for entry, array in entries.items()}
    file |= {'fc.weight': np.zeros((1000, 512, 1, 1)), 'fc.bias': np.zeros(1000)}
    file['layer8.1.num_batches_tracked'] = np.zeros(())
    for state_dict in (file, {f'module.{entry}': array for entry, array in entries.items()}):
        variables = flatten_dict(drn_weights.from_torch(state_dict), sep='/')
        assert {path: a.shape for path, a in variables.items()} == {
            path: a.shape for path, a in expected.items()
        }
    taken, prefix, ignored = layouts.backbone(file, expected, layouts.of(name))
    assert taken.keys() == expected.keys() and (prefix, ignored) == ('layer', [])


def test_the_authors_heads_and_fixed_kernels(golden):
    state_dict = zeros(golden, 'drn_d_22')
    fixed = dict.fromkeys(('up.0.weight', 'up.1.weight', 'en_up.weight'), np.zeros((6, 1, 16, 16)))
    params = drn_weights.from_torch(state_dict | fixed)['params']
    found = {name: jax.tree.map(np.shape, params[f'head_{name}']) for name in HEADS}
    assert found == {n: {'kernel': (1, 1, 512, c), 'bias': (c,)} for n, c in HEADS.items()}
    without = {k: v for k, v in state_dict.items() if not k.startswith(('seg.1', 'en_map'))}
    assert drn_weights.from_torch(without)['params'].keys() == {'backbone', 'head_logits_a'}


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('base.3.1.bn2.running_var', 'missing in the state dict: base.3.1.bn2.running_var$'),
        ('base.5.0.downsample.0.weight', 'missing in the state dict: base.5.0.downsample.0.weight'),
        ('seg.1.bias', 'missing in the state dict: seg.1.bias$'),
        ('base.7.3.weight', 'not known in the state dict: base.7.3.weight$'),
        ('seg.2.bias', 'not known in the state dict: seg.2.bias$'),
    ],
)
def test_a_state_dict_of_another_network_is_refused(golden, name, message):
    state_dict = zeros(golden, 'drn_d_22')
    if state_dict.pop(name, None) is None:
        state_dict[name] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=f'^{message}'):
        drn_weights.from_torch(state_dict)


@pytest.mark.parametrize(
    ('there', 'here', 'message'),
    [
        ('drn_d_22', 'drn_d_38', 'missing: 3.2.conv1.weight, .*another depth: see model.backbone'),
        ('drn_d_38', 'drn_d_22', 'more than here: 3.2.conv1.weight, .*another depth'),
        ('drn_d_54', 'drn_d_38', 'more than here: 3.0.conv3.weight, .*another depth'),
    ],
)
def test_a_file_of_another_depth_is_refused(golden, there, here, message):
    expected = flatten_dict(drn_weights.from_torch(zeros(golden, here)), sep='/')
    expected = {path: array for path, array in expected.items() if '/backbone/' in path}
    with pytest.raises(ValueError, match=message):
        layouts.backbone(zeros(golden, there), expected, layouts.of(here))


@pytest.fixture
def short(monkeypatch):
    """One block a level."""
    build = partial(drn.build, resnet.BasicBlock, (1, 1, 1, 1))
    monkeypatch.setitem(models.BACKBONES, 'drn_d_22', build)


def test_a_run_starts_from_a_file(short, tmp_path, caplog):
    c = tiny.get_config('supervised')
    c.model.update(family='fcn', backbone='drn_d_22', pretrained=str(tmp_path / 'drn.npz'))
    expected = ours('drn_d_22', width=c.model.width)
    r = np.random.default_rng(0)
    arrays = {}
    for entry, path in drn_weights.names(expected).items():
        array = r.standard_normal(expected[path].shape).astype(np.float32)
        arrays[f'base.{entry}'] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    files.write(c.model.pretrained, arrays | {'seg.0.weight': np.ones((2, 64, 1, 1))})
    final = configs.finalise(c)
    assert (final.data.mean, final.data.std) == backbones.IMAGENET
    method = methods.METHODS['supervised']
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = initial.load(final, method, methods.context(final))['student']
    assert given.keys() == expected.keys()
    kernel = given['params/backbone/level4_0/downsample_conv/kernel']
    np.testing.assert_array_equal(
        kernel, arrays['base.4.0.downsample.0.weight'].transpose(2, 3, 1, 0)
    )
    assert 'found there as base.*' in caplog.text and 'so fresh: head_logits\n' in caplog.text


def test_first_values_and_dilations():
    module = backbones.build(SimpleNamespace(**CONFIG), None)
    scales, kernels, dilations = set(), set(), {}

    def note(call, args, kwargs, context):
        found, kind = context.module, type(context.module).__name__
        if kind == 'BatchNorm':
            scales.add(found.scale_init)
        if kind == 'Conv':
            kernels.add(found.kernel_init)
            if found.name != 'downsample_conv':
                dilations.setdefault(int(found.path[0][5]), set()).add(found.dilation)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        init = partial(module.init, train=False)
        jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    # No scale of 0, as a ResNet's blocks have here.
    assert scales == {nn.initializers.ones} and kernels == {he_normal}
    assert dilations == {level: {{5: 2, 6: 4, 7: 2}.get(level, 1)} for level in range(9)}
    kernel = jax.jit(lambda key: he_normal(key, (3, 3, 8, 512)))(jax.random.key(0))
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 512)) ** 0.5, rtol=0.02)


def test_space_to_batch_gives_the_same_and_widths_scale(short):
    config = CONFIG | {'width': 1 / 16}
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 32, 3)), jnp.float32)
    forms = ('dilated', 'space_to_batch')
    modules = [
        backbones.build(SimpleNamespace(**config | {'atrous': form}), None) for form in forms
    ]
    given = drawn(jax.eval_shape(partial(modules[0].init, train=False), jax.random.key(0), images))
    weights = jnp.array([0.0, 1.0])  # of images, in training

    def run(given, images):
        return [m.apply(given, images, train=weights, mutable=['batch_stats'])[0] for m in modules]

    text = str(jax.make_jaxpr(lambda *a: run(*a)[1])(given, images))
    assert len(re.findall(r'rhs_dilation=\(4, 4\)', text)) == 2  # of the dilated form
    with jax.default_matmul_precision('highest'):
        dilated, rearranged = jax.device_get(jax.jit(run)(given, images))
    sizes = {name: array.shape for name, array in dilated.items()}
    assert sizes == {'stride4': (2, 16, 8, 8), 'layer3': (2, 8, 4, 16), 'last': (2, 8, 4, 32)}
    for name, array in dilated.items():
        assert_close(rearranged[name], array)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'family': 'deeplab', 'output_stride': 16}, '^output_stride is 16; expected one of 8$'),
        ({'stem': 'deep'}, "stem is 'deep'; expected 'conv7', the default: DRN has its own stem$"),
        ({'multi_grid': (2, 2)}, r'multi_grid is \(2, 2\); expected \(\), the default: DRN has no'),
        ({'first_dilation': 'previous'}, "is 'previous'; expected one of 'auto', 'own'$"),
        ({'remat': ('level3',)}, "remat is 'level3'; expected one of 'stem', 'layer1'"),
        ({'backbone': 'drn_d_24'}, "backbone is 'drn_d_24'.*did you mean drn_d_"),
        (
            {'degrid': True},
            '^degrid is True; expected False, the default: drn_d_22 ends in such convolutions$',
        ),
    ],
)
def test_what_it_does_not_have_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(CONFIG | change, outputs=HEADS)
    assert '\n' not in str(caught.value)


def test_deeplab_works_on_it(short):
    config = CONFIG | {'family': 'deeplab', 'width': 1 / 8}
    module = models.build(config, outputs={'logits': 5, 'auxiliary': 3})
    images = jnp.zeros((2, 37, 51, 3))
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert {name: y.shape for name, y in outputs.items()} == {
        'logits': (2, 10, 13, 5),
        'auxiliary': (2, 5, 7, 3),  # reads level 5
    }
    params = variables['params']
    assert params['low_level_conv']['kernel'].shape == (1, 1, 8, 8)  # at least 8
    assert params['aspp']['conv0']['kernel'].shape == (1, 1, 64, 32)
    assert params['head_auxiliary']['conv']['kernel'].shape == (3, 3, 32, 32)
