"""DPT held to the outputs of UniMatch V2's authors; its heads, its backbones, its weights."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from css_jax import models
from css_jax.models import dpt, remat
from css_jax.ops import resize
from css_jax.weights import dinov2 as weights
from tests.dinov2_small import GOLDEN, assert_close, network, state_dict

CONFIG = {
    'family': 'dpt',
    'backbone': 'dinov2_small',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 0.125,
    'dtype': 'float32',
}


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN)


def nchw(x):
    return x.transpose(0, 3, 1, 2)


def test_every_level_is_the_authors(golden):
    """The whole network, and the same with complementary dropout, in one program."""
    module, variables = network()
    images = golden['dpt_x_nchw'].transpose(0, 2, 3, 1)
    keep = golden['dpt_bernoulli']
    scale = np.concatenate([2 * keep, 2 - 2 * keep])
    spared = golden['dpt_kept']
    scale[[*spared, *(spared + len(keep))]] = 1

    @jax.jit
    def run(x):
        with jax.default_matmul_precision('highest'):
            given = {'capture_intermediates': True, 'mutable': ['intermediates']}
            dropped = module.apply(variables, x, True, channel_scale=jnp.asarray(scale))
            return *module.apply(variables, x, **given), dropped

    found, sown, dropped = jax.device_get(run(images))
    sown = sown['intermediates']
    assert found.keys() == {'logits'} and found['logits'].dtype == np.float32
    assert_close(nchw(found['logits']), golden['dpt_head'])
    assert_close(nchw(dropped['logits']), golden['dpt_head_drop'])
    features = sown['backbone']['__call__'][-1]
    for number, name in enumerate(dpt.TAPS):
        assert_close(features[name].reshape(4, 6, 32), golden[f'dpt_feature{number}'])
    for number, name in enumerate(('resize1', 'resize2', 'project3', 'resize4'), start=1):
        (level,) = sown['head'][name]['__call__']
        assert_close(nchw(level[:1]), golden[f'dpt_reassembled{number}'])
    (path,) = sown['head']['fusion4']['__call__']
    assert_close(nchw(path[:1]), golden['dpt_path4'])
    whole = np.asarray(resize.bilinear(found['logits'][:1], (28, 42)))
    assert_close(nchw(whole), golden['dpt_logits_first'])


def test_the_head_alone(golden):
    """By the names that outside programs call, without a backbone."""
    module, variables = network()
    taps = [golden[f'dpt_feature{i}'].reshape(4, 2, 3, 32) for i in range(4)]
    given = {k: v for k, v in state_dict(module).items() if k.startswith('head.')}
    params = weights.from_torch(given)
    assert params.keys() == {'head'}
    head = dpt.Head(features=16, reassembled=(8, 12, 16, 20), outputs={'logits': 5})
    found = jax.jit(head.apply)({'params': params['head']}, taps)
    assert_close(nchw(np.asarray(found['logits'])), golden['dpt_head'], 1e-3)
    like = jax.eval_shape(head.init, jax.random.key(0), taps)
    assert like.keys() == {'params'}  # no statistics
    assert jax.tree.structure(like['params']) == jax.tree.structure(variables['params']['head'])


@functools.cache
def shapes(backbone='dinov2_small', outputs=(('logits', 21),), size=(28, 42), **change):
    """Head name -> shape, and path -> shape of the parameters."""
    module = models.build(CONFIG | {'backbone': backbone} | change, outputs=dict(outputs))
    x = jnp.zeros((2, *size, 3))
    found, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert variables.keys() == {'params'}
    params = flatten_dict(variables['params'], sep='/')
    return {name: y.shape for name, y in found.items()}, {k: v.shape for k, v in params.items()}


@pytest.mark.parametrize(
    ('backbone', 'dim', 'parameters'),
    [
        ('dinov2_small', 384, 2_739_061),
        ('dinov2_base', 768, 10_948_309),
        ('dinov2_large', 1024, 31_210_517),
        ('dinov2_giant', 1536, 122_267_925),
    ],
)
def test_sizes_of_the_head(backbone, dim, parameters):
    size = dpt.SIZES[backbone]
    taps = 4 * [jnp.zeros((1, 2, 2, dim))]
    found = jax.eval_shape(dpt.Head(*size, {'logits': 21}).init, jax.random.key(0), taps)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(found))
    # The authors count a unit of the coarsest level that is never used.
    assert count == parameters - 2 * (9 * size.features**2 + size.features)


def test_every_head_is_at_an_eighth_of_a_patch():
    found, params = shapes(outputs=(('logits', 5), ('representation', 16)), size=(42, 70))
    assert found == {'logits': (2, 24, 40, 5), 'representation': (2, 24, 40, 16)}
    assert params['head/head_representation/out/kernel'] == (1, 1, 8, 16)
    assert {path.split('/')[0] for path in params} == {'backbone', 'head'}


def test_a_vit_of_16_pixels_is_a_backbone_too():
    found, params = shapes('vit_tiny', size=(64, 48), output_stride=16)
    assert found == {'logits': (2, 32, 24, 21)}
    assert params['head/project1/kernel'] == (1, 1, 24, 8)
    assert 'backbone/norm/scale' in params


def test_first_values_are_torchs():
    """Of a transposed convolution torch takes the outputs for the inputs."""
    x = jnp.zeros((1, 2, 2, 32))
    enlarge = jax.jit(dpt.Enlarge(8, 2).init)(jax.random.key(0), x)['params']
    output = jax.jit(dpt.Output(5).init)(jax.random.key(0), x)['params']
    for params, count in ((enlarge, 4 * 8), (output['conv'], 9 * 32), (output['out'], 32)):
        for leaf in params.values():
            assert 0.6 * count**-0.5 < np.abs(leaf).max() <= count**-0.5 * (1 + 1e-6)


def test_remat_and_bfloat16():
    module, variables = network(depth=1, taps=(0, 0, 0, 0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 28, 28, 3)), jnp.float32)

    def gradient(names):
        def loss(params):
            backbone = module.backbone.clone(remat=names)
            again = module.clone(remat=names, backbone=backbone)
            logits = again.apply({'params': params}, x, True)['logits']
            return jnp.square(logits).mean(), logits

        return jax.grad(loss, has_aux=True)(variables['params'])

    half = module.clone(dtype=jnp.bfloat16, backbone=module.backbone.clone(dtype=jnp.bfloat16))

    @jax.jit
    def run():
        return gradient(()), gradient(remat.STAGES), half.apply(variables, x)['logits']

    (plain, exact), (again, _), rounded = jax.device_get(run())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), again, plain)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(plain))
    text = str(jax.make_jaxpr(partial(gradient, ('decoder',)))())
    assert len(re.findall(r'\b(?:remat2?|checkpoint)\[', text)) == 1
    assert rounded.dtype == np.float32
    difference = np.sqrt(np.mean((exact - rounded) ** 2))
    assert 0 < difference < 0.05 * exact.std()


@pytest.mark.parametrize(
    ('change', 'outputs', 'message'),
    [
        ({}, 'class', "^family is dpt, which has no head 'class': expected heads of its fused"),
        ({}, 'cam_aux', "which has no head 'cam_aux'"),
        ({}, 'auxiliary', "which has no head 'auxiliary'"),
        (
            {'backbone': 'resnet18'},
            'logits',
            "^family is 'dpt'; expected 'deeplab' or 'fcn' or 'largefov' with backbone 'resnet18'$",
        ),
        (
            {'family': 'deeplab'},
            'logits',
            "^family is 'deeplab'; expected 'dpt' with backbone 'din",
        ),
        (
            {'family': 'largefov'},
            'logits',
            "^family is 'largefov'; expected 'dpt' with backbone 'd",
        ),
        ({'backbone': 'dinov2_smal'}, 'logits', "^backbone is 'dinov2_smal'; .*mean dinov2_small"),
    ],
)
def test_what_it_does_not_have_is_refused_in_one_line(change, outputs, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(CONFIG | change, outputs={outputs: 3})
    assert '\n' not in str(caught.value)


def test_factors_of_another_feature_are_refused():
    module, variables = network()
    run = partial(module.apply, variables, jnp.zeros((1, 14, 14, 3)))
    message = r"^channel_scale: got \['last'\], expected features out of tap1, tap2, tap3, tap4"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: run(channel_scale={'last': jnp.ones((1, 32))}))


# Files.


def test_a_checkpoint_of_the_authors_there_and_back():
    module, variables = network()
    arrays = state_dict(module, front='backbone.')
    found = weights.to_torch(variables)
    idle = {name for name in found if 'refinenet4.resConfUnit1' in name}
    assert len(idle) == 4 and found.keys() == arrays.keys() | idle | {'backbone.mask_token'}
    for name in idle | {'backbone.mask_token'}:
        assert not found[name].any()
    assert found['backbone.mask_token'].shape == (1, 32)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    # Of a training checkpoint, which has both networks, it is the EMA teacher's.
    both = {f'model.module.{name}': a + 1 for name, a in found.items()}
    both |= {f'model_ema.module.{name}': a for name, a in found.items()}
    again = weights.from_torch(both)
    jax.tree.map(np.testing.assert_array_equal, again, variables['params'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'head.projects.2.bias': None}, '^missing in the state dict: head.projects.2.bias$'),
        ({'head.scratch.new.weight': np.ones(3)}, '^not known in the state dict: head.scratch.new'),
        ({'head.projects.1.weight': np.ones(3)}, r'^head.projects.1.weight has shape \(3,\); exp'),
    ],
)
def test_another_head_is_refused(change, message):
    arrays = state_dict(network()[0], front='backbone.') | change
    with pytest.raises(ValueError, match=message):
        weights.from_torch({k: v for k, v in arrays.items() if v is not None})


def test_a_network_with_another_head_has_no_names_there():
    _, variables = network()
    variables['params']['head']['head_representation'] = variables['params']['head']['head_logits']
    with pytest.raises(ValueError, match='no name in the reference for: params/head/head_repres'):
        weights.to_torch(variables)
