"""iMAS's network as values of DeepLab's keys: its authors' outputs, and what each key changes."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from css_jax import keys, models
from css_jax.models import resnet
from css_jax.ops import resize
from css_jax.weights import imas, reference
from tests.small import drawn, stored

GOLDEN = Path(__file__).parents[1] / 'fixtures' / 'imas_network.npz'
IMAS = {
    'backbone': 'resnet50',
    'stem': 'deep',
    'stem_ceil_mode': True,
    'first_dilation': 'previous',
    'head_convs': 2,
    'low_level_bias': True,
    'output_stride': 16,
    'width': 1.0,
    'dtype': 'float32',
}
TINY = {
    'backbone': 'tiny',
    'stem': 'deep',
    'output_stride': 16,
    'width': 0.125,
    'dtype': 'float32',
}
DEFAULTS = {'first_dilation': 'auto', 'multi_grid': (), 'head_convs': 1, 'low_level_bias': False}
LOGITS = {'logits': 5}
BOTH = LOGITS | {'auxiliary': 3}


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """Two blocks in layer4 and one in each other layer."""
    with pytest.MonkeyPatch.context() as patch:
        build = partial(resnet.build, resnet.Bottleneck, (1, 1, 1, 2))
        patch.setitem(models.BACKBONES, 'tiny', build)
        yield


def images(*size, batch=1):
    r = np.random.default_rng(1)
    return jnp.asarray(r.standard_normal((batch, *(size or (48, 33)), 3)), jnp.float32)


def shapes(config, outputs=LOGITS, x=None):
    module = models.build(config, outputs=outputs)
    return jax.eval_shape(module.init, jax.random.key(0), images() if x is None else x)


def paths(config, outputs=LOGITS):
    return set(flatten_dict(shapes(config, outputs)['params'], sep='/'))


def torch_names(config, outputs):
    """Name in the authors' state dict -> shape, of the network of `config`."""
    found = flatten_dict(shapes(config, outputs), sep='/')
    modules = imas.MODULES | reference.blocks(found, 'encoder.') | imas.AUXILIARY
    table = reference.entries(modules, biased=('low_level_conv',))
    found = {name: found[path].shape for name, path in table.items() if path in found}
    return {k: (s[3], s[2], *s[:2]) if len(s) == 4 else s for k, s in found.items()}


def zeros(config, outputs=LOGITS):
    return {name: np.zeros(s, np.float32) for name, s in torch_names(config, outputs).items()}


@pytest.fixture(scope='module')
def golden():
    """The authors' outputs, and a state dict by the rule of fixtures/README.md."""
    names = torch_names(IMAS, BOTH | {'auxiliary': 5})
    return np.load(GOLDEN), {name: stored(name, shape) for name, shape in names.items()}


@pytest.mark.parametrize(
    ('name', 'changes', 'outputs'),
    [
        ('r50_os16', {'multi_grid': (2, 2, 4)}, {'logits': 5, 'auxiliary': 5}),
        ('r50_os8', {'multi_grid': (2, 2, 4), 'output_stride': 8}, LOGITS),
        ('r50_os16_plain', {}, LOGITS),
    ],
)
def test_outputs_are_the_authors(golden, name, changes, outputs):
    arrays, state_dict = golden
    if 'auxiliary' not in outputs:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith('auxor')}
    variables, x = imas.from_torch(state_dict), arrays['network_images']
    with jax.default_matmul_precision('highest'):
        found = jax.jit(models.build(IMAS | changes, outputs=outputs).apply)(variables, x)
    assert found.keys() == outputs.keys()
    for head, prefix in {'logits': '', 'auxiliary': 'aux_'}.items():
        if head not in outputs:
            continue
        upsampled = resize.bilinear(found[head], x.shape[1:3])[:, ::7, ::7]
        for ours, stem in ((found[head], 'logits'), (upsampled, 'upsampled_every7')):
            theirs = arrays[f'network_{name}_{prefix}{stem}']
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize('outputs', [LOGITS, BOTH])
def test_a_state_dict_becomes_the_networks_variables(outputs):
    config = IMAS | {'width': 0.125}
    state_dict = {f'module.{name}': array for name, array in zeros(config, outputs).items()}
    state_dict['module.encoder.bn1.num_batches_tracked'] = np.array(0)
    project = np.arange(5.0).repeat(32)  # in their order: the mean first
    state_dict['module.decoder.head.0.weight'] += project[:, None, None].astype(np.float32)
    variables = imas.from_torch(state_dict)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes(config, outputs))
    kernel = variables['params']['aspp']['project_conv']['kernel']
    np.testing.assert_array_equal(kernel[0, 0, :, 0], np.arange(1.0, 6).repeat(32) % 5)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('encoder.layer4.2.bn3.running_var', 'missing in the state dict: .*layer4.2.bn3'),
        ('decoder.low_conv.0.bias', 'missing in the state dict: decoder.low_conv.0.bias$'),
        ('decoder.classifier.4.weight', 'missing in the state dict: decoder.classifier.4.weight$'),
        ('auxor.aux.3.bias', 'missing in the state dict: auxor.aux.3.bias$'),
        ('decoder.classifier.7.bias', 'not known in the state dict: decoder.classifier.7.bias$'),
    ],
)
def test_a_state_dict_of_another_network_is_refused(name, message):
    state_dict = zeros(IMAS | {'width': 0.125}, BOTH)
    if name in state_dict:
        del state_dict[name]
    else:
        state_dict[name] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=f'^{message}'):
        imas.from_torch(state_dict)


@pytest.mark.parametrize(
    'changes', [{}, {'stem': 'conv7', 'output_stride': 8}, {'backbone': 'mobilenet_v1'}]
)
def test_the_defaults_are_the_network_without_the_keys(changes):
    config = TINY | changes
    if config['backbone'] != 'tiny':
        config |= {'stem': 'conv7'}
    build = partial(models.build, outputs=LOGITS)
    assert build(config | DEFAULTS) == build(config) != build(config | {'width': 0.5})
    assert {key: models.KEYS[f'model.{key}'].default for key in DEFAULTS} == DEFAULTS


def test_initial_values_and_outputs_of_the_defaults_are_these():
    """As the network's that had none of the keys."""
    module = models.build(TINY | {'output_stride': 8}, outputs=LOGITS)
    x = images()

    @jax.jit
    def run(x):
        params = module.init(jax.random.key(3), x)['params']
        head, layer = params['head_logits'], params['backbone']['layer4_1']
        low = params['low_level_conv']
        first = [head['conv'], head['out'], low, layer['conv2']]
        given = drawn(jax.eval_shape(module.init, jax.random.key(0), x))
        return [tree['kernel'].ravel()[1] for tree in first], module.apply(given, x)['logits']

    first, logits = jax.device_get(run(x))
    np.testing.assert_allclose(first, [-0.04027095, 0.04996833, 0.07012582, 0.005161635], rtol=1e-5)
    assert logits.shape == (1, 12, 9, 5)
    centre = [-11.5057, 2.93772, -7.8387, 23.9183, 8.14583]
    np.testing.assert_allclose(logits[0, 5, 4], centre, atol=1e-4 * 24)


def dilations(config, layer):
    """Dilations of a layer's 3x3 convolutions, in their order."""
    found = []

    def record(call, args, kwargs, context):
        module = context.module
        taps = module.kernel_size if type(module).__name__ == 'Conv' else 1
        if taps == 3 and module.path[0].startswith(f'layer{layer}_'):
            found.append(module.dilation)
        return call(*args, **kwargs)

    module = models.BACKBONES[config['backbone']](ConfigDict(config), None)
    with nn.intercept_methods(record):
        jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images())
    return found


@pytest.mark.parametrize(
    ('changes', 'layer3', 'layer4'),
    [
        ({'output_stride': 8}, [2, 2], [4, 4, 4]),
        ({'output_stride': 8, 'first_dilation': 'previous'}, [1, 2], [2, 4, 4]),
        ({'stem': 'conv7', 'first_dilation': 'own'}, [1, 1], [2, 2, 2]),
        ({'first_dilation': 'previous', 'multi_grid': (2, 2, 4)}, [1, 1], [2, 4, 8]),
        ({'output_stride': 8, 'multi_grid': (1, 2, 4)}, [2, 2], [4, 8, 16]),
        (
            {'output_stride': 8, 'first_dilation': 'previous', 'multi_grid': (2, 2, 4)},
            [1, 2],
            [4, 8, 16],
        ),
    ],
)
def test_dilations_of_blocks(monkeypatch, changes, layer3, layer4):
    build = partial(resnet.build, resnet.Bottleneck, (1, 1, 2, 3))
    monkeypatch.setitem(models.BACKBONES, 'three', build)
    config = TINY | {'backbone': 'three'} | changes
    assert (dilations(config, 3), dilations(config, 4)) == (layer3, layer4)


def test_a_grid_multiplies_both_convolutions_of_a_basic_block():
    config = TINY | {'backbone': 'resnet18', 'first_dilation': 'previous', 'multi_grid': (3, 2)}
    assert dilations(config, 4) == [3, 6, 4, 4]


def test_heads_have_two_convolutions_and_the_low_level_a_bias():
    outputs = BOTH | {'representation': 4}
    before, after = paths(TINY, outputs), paths(TINY | {'head_convs': 2}, outputs)
    assert after - before == {
        f'head_{head}/{leaf}'
        for head in ('logits', 'representation')
        for leaf in ('conv2/kernel', 'bn2/scale', 'bn2/bias')
    }
    assert before < after
    assert paths(TINY | {'low_level_bias': True}, outputs) - before == {'low_level_conv/bias'}


def test_the_auxiliary_head_reads_layer3_and_changes_no_other():
    x = images(batch=2)
    module, without = (models.build(TINY, outputs=outputs) for outputs in (BOTH, LOGITS))
    given = drawn(shapes(TINY, BOTH, x))

    @jax.jit
    def run(given, x):
        def loss(params):
            outputs = module.apply(given | {'params': params}, x)
            return jnp.sum(outputs['auxiliary'] ** 2), outputs

        gradient, outputs = jax.grad(loss, has_aux=True)(given['params'])
        return gradient, outputs, without.apply(given, x)

    gradient, outputs, alone = jax.device_get(run(given, x))
    assert outputs['auxiliary'].shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(outputs['logits'], alone['logits'])
    backbone = gradient.pop('backbone')
    reached = {k for k, v in gradient.items() if any(np.any(a) for a in jax.tree.leaves(v))}
    reached |= {k for k, v in backbone.items() if any(np.any(a) for a in jax.tree.leaves(v))}
    assert reached >= {'head_auxiliary', 'layer3_0', 'layer1_0'}
    assert not {'layer4_0', 'layer4_1', 'aspp', 'head_logits', 'low_level_conv'} & reached


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_stages_computed_anew_give_the_same():
    config = TINY | {
        'first_dilation': 'previous',
        'multi_grid': (2, 4),
        'head_convs': 2,
        'low_level_bias': True,
    }
    given, x = drawn(shapes(config, BOTH)), images()
    # Of ASPP and the decoder; tests/models/test_remat.py has the backbone's.
    late = {k: v for k, v in given['params'].items() if k != 'backbone'}
    modules = [models.build(config | {'remat': value}, outputs=BOTH) for value in ((), ('all',))]

    def gradient(module):
        def loss(late):
            outputs = module.apply(given | {'params': given['params'] | late}, x)
            return sum(jnp.mean(y) for y in outputs.values())

        return jax.grad(loss)

    texts = [str(jax.make_jaxpr(gradient(module))(late)) for module in modules]
    assert ['policy=None' in text for text in texts] == [False, True]
    with jax.default_matmul_precision('highest'):
        expected, anew = jax.jit(lambda p: [gradient(m)(p) for m in modules])(late)
    assert np.abs(expected['head_auxiliary']['conv']['kernel']).max() > 0
    assert_equal(anew, expected)


def backbone(config, x, given=None):
    """Gives the features of a configuration's backbone in evaluation."""
    module = models.BACKBONES['tiny'](ConfigDict(config), None)
    init = partial(module.init, train=False)
    given = given or drawn(jax.eval_shape(init, jax.random.key(0), x))
    return given, partial(module.apply, train=False)


@pytest.mark.parametrize(
    ('grid', 'size'),
    [
        ((2, 2), (64, 128)),
        ((3, 2), (192, 192)),  # dilations 3 and 4: neither grid is made of the other's
    ],
)
def test_space_to_batch_gives_the_same_with_a_grid(grid, size):
    config = TINY | {'first_dilation': 'previous', 'multi_grid': grid, 'width': 0.0625}
    forms, x = ('dilated', 'space_to_batch'), images(*size)
    given, _ = backbone(config, x)
    applied = [backbone(config | {'atrous': form}, x, given)[1] for form in forms]
    programs = [str(jax.make_jaxpr(apply)(given, x)) for apply in applied]
    assert 'rhs_dilation=(4, 4)' in programs[0] and 'rhs_dilation=(4, 4)' not in programs[1]
    with jax.default_matmul_precision('highest'):
        expected, found = jax.jit(lambda v, x: [apply(v, x) for apply in applied])(given, x)
    assert_equal(found, expected)


def test_space_to_batch_stays_dilated_where_a_grids_dilations_do_not_divide():
    config, x = TINY | {'first_dilation': 'previous', 'multi_grid': (2, 4)}, images(64, 64)
    given, _ = backbone(config, x)  # a map of 4 x 4, dilations 2 and 8
    direct, rearranged = (
        str(jax.make_jaxpr(backbone(config | {'atrous': form}, x, given)[1])(given, x))
        for form in ('dilated', 'space_to_batch')
    )
    assert direct == rearranged


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'multi_grid': (2, 2, 4)}, r'multi_grid is \(2, 2, 4\); expected 2 numbers, one for each'),
        ({'first_dilation': 'prev'}, "first_dilation is 'prev'; expected one of 'auto', 'previous"),
        (
            {'backbone': 'mobilenet_v1', 'stem': 'conv7', 'multi_grid': (2, 2, 4)},
            r'multi_grid is \(2, 2, 4\); expected \(\), the default: MobileNet has no residual',
        ),
        (
            {'backbone': 'efficientnet_lite0', 'stem': 'conv7', 'multi_grid': (1, 1, 1)},
            r'multi_grid is \(1, 1, 1\); expected \(\), the default: EfficientNet-Lite has no',
        ),
        (
            {'backbone': 'mobilenet_v1', 'stem': 'conv7', 'first_dilation': 'own'},
            "first_dilation is 'own'; expected one of 'auto', 'previous'",
        ),
    ],
)
def test_what_a_backbone_does_not_have_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(TINY | changes, outputs=LOGITS)
    assert '\n' not in str(caught.value)


def test_a_head_that_reads_what_is_not_there_is_refused(monkeypatch):
    class Patches(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(8, (8, 8), (8, 8))(x)
            return {'stride4': x, 'last': x}

    monkeypatch.setitem(models.BACKBONES, 'patches', lambda config, axis_name: Patches())
    message = "head 'auxiliary' reads 'layer3'; expected a feature .*, one of stride4, last"
    with pytest.raises(ValueError, match=message):
        shapes(TINY | {'backbone': 'patches'}, BOTH)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('multi_grid', (2, 0, 4), r'got \(2, 0, 4\), expected numbers of at least 1'),
        ('multi_grid', 2, 'got 2, expected any number of whole numbers such as 2,2,4'),
        ('head_convs', 3, r'got 3, expected one of \[1, 2\]'),
        ('first_dilation', 'owm', "expected one of .*; did you mean 'own'"),
    ],
)
def test_impossible_values_are_named(key, value, message):
    with pytest.raises(ValueError, match=rf'^model\.{key}: .*{message}'):
        keys.check(f'model.{key}', models.KEYS[f'model.{key}'], value)
    assert keys.read('m', models.KEYS['model.multi_grid'], '2,2,4') == (2, 2, 4)
    assert keys.read('m', models.KEYS['model.multi_grid'], '()') == ()
