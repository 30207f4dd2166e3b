"""UniMatch's network as values of DeepLab's keys, and features that a method multiplies."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from css_jax import models
from css_jax.models import resnet, scaled
from css_jax.ops import resize
from css_jax.weights import reference, unimatch
from tests.small import drawn, stored

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'unimatch_ops.npz')
UNIMATCH = {
    'backbone': 'resnet50',
    'stem': 'deep',
    'first_dilation': 'previous',
    'head_convs': 2,
    'output_stride': 16,
    'width': 1.0,
    'dtype': 'float32',
}
TINY = UNIMATCH | {'backbone': 'tiny', 'width': 0.125}
LOGITS = {'logits': 6}


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """One block a layer."""
    with pytest.MonkeyPatch.context() as patch:
        build = partial(resnet.build, resnet.Bottleneck, (1, 1, 1, 1))
        patch.setitem(models.BACKBONES, 'tiny', build)
        yield


def nhwc(name):
    return np.moveaxis(GOLDEN[name], 1, -1)


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_outputs_are_the_authors_with_and_without_dropped_channels():
    """One call: the heads run on the clean and on the perturbed features of one backbone's pass."""
    module, x = models.build(UNIMATCH, outputs=LOGITS), nhwc('v1net_x_nchw')
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), x), sep='/')
    table = reference.entries(unimatch.MODULES | reference.blocks(shapes, 'backbone.'))
    found = {name: shapes[path].shape for name, path in table.items()}
    assert len(found) == len(shapes)
    torch = {k: (s[3], s[2], *s[:2]) if len(s) == 4 else s for k, s in found.items()}
    counted = sum(np.prod(s.shape) for path, s in shapes.items() if path.startswith('params/'))
    assert counted == GOLDEN['v1net_parameter_count']
    variables = unimatch.from_torch({f'module.{k}': stored(k, s) for k, s in torch.items()})
    kept = {'stride4': 'v1net_kept_low', 'last': 'v1net_kept_high'}
    scale = {
        name: np.concatenate([np.ones_like(GOLDEN[key], np.float32), 2.0 * GOLDEN[key]])
        for name, key in kept.items()
    }

    @jax.jit
    def run(variables, x, scale):  # as constants the arrays would be folded while it compiles
        features = module.bind(variables).backbone(x, False)
        return features, module.apply(variables, x, channel_scale=scale)['logits']

    with jax.default_matmul_precision('highest'):
        features, logits = run(variables, x, scale)
    for name, key, every in (('stride4', 'low', 32), ('last', 'high', 64)):
        clean, theirs = features[name], nhwc(f'v1net_{key}_every{every}')
        close(clean[..., ::every], theirs[: len(x)])
    close(logits[:2], nhwc('v1net_logits'))
    close(logits[2:], nhwc('v1net_logits_perturbed'))
    resized = resize.bilinear(logits[:1], x.shape[1:3])[:, ::8, ::8]
    close(resized, nhwc('v1net_resized_first'))


@pytest.fixture(scope='module')
def network():
    module = models.build(TINY, outputs=LOGITS | {'auxiliary': 3})
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32, 48, 3)), jnp.float32)
    return module, drawn(jax.eval_shape(module.init, jax.random.key(0), x)), x


def test_factors_of_1_change_nothing_and_copies_are_copies(network):
    module, variables, x = network
    ones = {'stride4': np.ones((6, 32), np.float32), 'last': np.ones((6, 256), np.float32)}

    @partial(jax.jit, static_argnums=2)
    def run(x, weights, train, scale):
        return module.apply(
            variables, x, train, image_weights=weights, channel_scale=scale,
            mutable=['batch_stats'],
        )  # fmt: skip

    (plain, stats), (twice, other) = (
        run(x, jnp.float32([1, 1, 0]), True, scale) for scale in (None, ones)
    )
    for head in plain:  # BatchNorm leaves out the last image, and its copy
        close(twice[head], np.concatenate([plain[head], plain[head]]))
    # Of twice as many values the variance that is stored is nearly the same.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.2), stats, other)
    dropped = ones | {'last': np.zeros((6, 256), np.float32)}
    blind, _ = run(x, jnp.float32([1, 1, 1]), False, dropped)
    assert not np.allclose(blind['logits'][:3], run(x, None, False, None)[0]['logits'])
    close(blind['auxiliary'][:3], run(x, None, False, None)[0]['auxiliary'])  # reads layer3


def test_what_is_dropped_has_no_gradient_through_remat_either(network):
    _, variables, x = network
    module = models.build(TINY | {'remat': ('aspp', 'decoder')}, outputs=LOGITS)
    scale = {'stride4': np.float32(np.random.default_rng(1).integers(0, 2, (3, 32)) * 2)}
    given = {name: dict(tree) for name, tree in variables.items()}
    given['params'].pop('head_auxiliary'), given['batch_stats'].pop('head_auxiliary')

    @jax.jit
    @jax.grad
    def gradient(params):  # of the decoder alone: less to compile
        tree = given | {'params': given['params'] | params}
        return module.apply(tree, x, channel_scale=scale)['logits'].sum()

    found = gradient({'low_level_conv': given['params']['low_level_conv']})
    kernel = found['low_level_conv']['kernel'][0, 0]
    never = (scale['stride4'] == 0).all(0)
    assert never.any() and not kernel[never].any() and kernel[~never].any()


def test_channels_are_counted_without_computing(network):
    module, _, _ = network
    names = models.FAMILIES['deeplab'].scaled
    assert models.scaled_channels(module, names, (64, 64)) == {'stride4': 32, 'last': 256}
    for backbone, expected in (('efficientnet_lite0', (24, 320)), ('mobilenet_v1', (128, 1024))):
        config = TINY | {
            'backbone': backbone,
            'stem': 'conv7',
            'width': 1.0,
            'first_dilation': 'auto',
        }
        module = models.build(config, outputs=LOGITS)
        assert tuple(models.scaled_channels(module, names, (64, 64)).values()) == expected
    assert not models.FAMILIES['fcn'].scaled and not models.FAMILIES['largefov'].scaled


@pytest.mark.parametrize(
    ('factors', 'message'),
    [
        ({'layer2': np.ones((2, 8))}, r"channel_scale: got \['layer2'\], expected features out of"),
        ({'last': np.ones((2, 8))}, r"got \(2, 8\) for 'last', expected \(2, 5\)"),
        ({'last': np.ones((3, 5))}, r"got \(3, 5\) for 'last', expected \(2, 5\)"),
        (
            {'last': np.ones((4, 5)), 'stride4': np.ones((2, 3))},
            r"got \(2, 3\) for 'stride4', expected \(4, 3\)",
        ),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors, message):
    features = {'stride4': np.ones((2, 4, 4, 3)), 'last': np.ones((2, 2, 2, 5))}
    with pytest.raises(ValueError, match=message):
        scaled.scale(features, factors)
