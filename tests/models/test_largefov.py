"""Family largefov held to the outputs of CoSA's authors; its classifiers, on any backbone."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from css_jax import models
from css_jax.models import backbones, largefov, resnet, vit
from css_jax.models.layers import BatchNorm, Conv
from css_jax.ops import cam, resize
from css_jax.weights import timm
from tests.models.test_vit import GOLDEN, assert_close, authors, state_dict

CONFIG = {
    'family': 'largefov',
    'backbone': 'resnet18',
    'stem': 'conv7',
    'output_stride': 16,
    'width': 0.125,
    'dtype': 'float32',
}
HEADS = {'logits': 6, 'cam': 5, 'cam_aux': 5, 'class': 5, 'class_aux': 5}
# Head -> its name among the authors' outputs.
THEIRS = {
    'logits': 'seg',
    'cam': 'cam',
    'cam_aux': 'cam_aux',
    'class': 'class_logits',
    'class_aux': 'class_logits_aux',
}


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope='module')
def network(golden):
    module = largefov.LargeFOV(authors(golden), tuple(HEADS.items()))
    apply = jax.jit(partial(module.apply, timm.from_torch(state_dict(golden))))

    def run(images):
        with jax.default_matmul_precision('highest'):
            return jax.device_get(apply(images))

    return run


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """One block a layer."""
    build = partial(resnet.build, resnet.BasicBlock, (1, 1, 1, 1))
    monkeypatch.setitem(models.BACKBONES, 'resnet18', build)
    monkeypatch.setitem(models.BACKBONES, 'vit_tiny', partial(vit.build, 3, depth=4))


@pytest.mark.parametrize('number', [0, 1, 2])
def test_heads_are_the_authors(golden, network, number):
    found = network(golden[f'vit{number}_images'])
    assert found.keys() == HEADS.keys()
    for name, theirs in THEIRS.items():
        assert_close(found[name], golden[f'vit{number}_{theirs}'])
        assert found[name].dtype == np.float32


def test_largefov_alone_is_the_authors(golden):
    params = timm.from_torch(state_dict(golden))['params']['head_logits']
    for form in ('dilated', 'space_to_batch'):
        head = largefov.Head(6, atrous=form)
        with jax.default_matmul_precision('highest'):
            found = jax.jit(head.apply)({'params': params}, golden['fov_in'])
        assert_close(found, golden['fov_out'])


def test_passes_at_several_scales_are_the_authors(golden, network):
    images, raws = golden['ms_images'], {name: [] for name in HEADS}
    size = images.shape[1:3]
    for scale in golden['ms_scales']:
        x = resize.half_pixel(images, tuple(int(scale * side) for side in size))
        found = network(np.concatenate([x, x[:, :, ::-1]]))
        for name, raw in found.items():
            raws[name].append(raw)
    assert_close(cam.normalise(cam.merge(raws['cam'], size)), golden['ms_cam'])
    # Of the early CAMs the last scale alone counts.
    assert_close(cam.normalise(cam.merge(raws['cam_aux'][-1:], size)), golden['ms_cam_aux'])
    assert_close(cam.merge_logits(raws['logits'], size), golden['ms_seg'])


def test_a_state_dict_without_some_heads(golden):
    arrays = state_dict(golden)
    few = {k: v for k, v in arrays.items() if not k.startswith(('decoder', 'aux_classifier'))}
    few = {f'module.{name}': array for name, array in few.items()}
    assert timm.from_torch(few)['params'].keys() == {'backbone', 'head_class'}
    del arrays['decoder.conv7.weight']
    with pytest.raises(ValueError, match=r'^missing in the state dict: decoder.conv7.weight$'):
        timm.from_torch(arrays)


def shapes(change, outputs=HEADS, size=(64, 80)):
    """Head name -> shape, and the parameters."""
    module = models.build(CONFIG | change, outputs=outputs)
    x = jnp.zeros((2, *size, 3))
    found, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    return {name: y.shape for name, y in found.items()}, variables['params']


@pytest.mark.parametrize(
    ('change', 'grid', 'last', 'early'),
    [
        ({}, (4, 5), 64, 32),
        ({'output_stride': 8}, (8, 10), 64, 32),
        ({'backbone': 'resnet50', 'width': 0.0625}, (4, 5), 128, 64),
        ({'backbone': 'mobilenet_v1'}, (4, 5), 128, 64),
        ({'backbone': 'mobilenet_v1', 'output_stride': 8}, (8, 10), 128, 64),
        ({'backbone': 'efficientnet_lite0', 'width': 1.0}, (4, 5), 320, 112),
        ({'backbone': 'drn_d_22', 'output_stride': 8}, (8, 10), 64, 32),
        ({'backbone': 'vit_small', 'remat': ('all',)}, (4, 5), 48, 48),
    ],
)
def test_heads_on_every_kind_of_backbone(change, grid, last, early):
    """The early features have the grid of the last ones, and channels of their own."""
    found, params = shapes(change)
    expected = {'logits': (2, *grid, 6), 'cam': (2, *grid, 5), 'class': (2, 5)}
    assert found == expected | {'cam_aux': (2, *grid, 5), 'class_aux': (2, 5)}
    assert params['head_class']['conv']['kernel'].shape == (1, 1, last, 5)
    assert params['head_class_aux']['conv']['kernel'].shape == (1, 1, early, 5)
    head = {name: p['kernel'].shape for name, p in params['head_logits'].items()}
    wide = round(512 * (CONFIG | change)['width'])
    assert head == {
        'conv1': (3, 3, last, wide),
        'conv2': (3, 3, wide, wide),
        'out': (1, 1, wide, 6),
    }


def test_only_the_heads_asked_for_are_built():
    found, params = shapes({}, {'class': 3, 'auxiliary': 4, 'representation': 7})
    assert found == {'class': (2, 3), 'auxiliary': (2, 4, 5, 4), 'representation': (2, 4, 5, 7)}
    heads = {'head_class', 'head_auxiliary', 'head_representation'}
    assert params.keys() == {'backbone', *heads}
    assert params['head_auxiliary']['conv1']['kernel'].shape[2] == 32  # reads layer3


def test_dilations():
    def dilations(**change):
        return models.build(CONFIG | change, outputs=HEADS).dilation

    assert (dilations(), dilations(output_stride=8), dilations(fov_dilation=2)) == (5, 10, 2)
    assert dilations(backbone='vit_base') == 5


@pytest.mark.parametrize('pool', ['max', 'mean'])
def test_classes_and_cams_share_their_weights(pool):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 8)), jnp.float32)
    module = largefov.Classifier(5, pool)
    kernel = np.random.default_rng(1).standard_normal((1, 1, 8, 5)).astype(np.float32)
    scores, found = module.apply({'params': {'conv': {'kernel': kernel}}}, x)
    pooled = getattr(np.asarray(x), pool)(axis=(1, 2))
    np.testing.assert_allclose(scores, pooled @ kernel[0, 0], atol=1e-5)
    np.testing.assert_allclose(found, x @ kernel[0, 0], atol=1e-5)


def test_keys_of_the_classifiers_change_the_program():
    base = CONFIG | {'backbone': 'vit_tiny'}

    def text(**change):
        module = models.build(base | change, outputs=HEADS)
        x = jnp.zeros((1, 32, 32, 3))
        return str(jax.make_jaxpr(module.apply)(jax.eval_shape(module.init, key, x), x))

    key = jax.random.key(0)
    assert len({text(), text(pool='mean'), text(aux_layer=-2), text(aux_layer=-1)}) == 4


class Noting(nn.Module):
    """A backbone that gives what its BatchNorm would be told."""

    @nn.compact
    def __call__(self, x, train):
        told = jnp.zeros((1, 1, 1, 1)) + (train if isinstance(train, bool) else train.sum())
        return {'last': told, 'layer3': told}


def test_the_backbone_s_batch_norm_is_told_the_weights_of_images():
    module = largefov.LargeFOV(Noting(), (('cam', 1),))
    x = jnp.zeros((3, 8, 8, 3))
    given = {'params': {'head_class': {'conv': {'kernel': jnp.ones((1, 1, 1, 1))}}}}

    def told(**more):
        return float(module.apply(given, x, **more)['cam'].squeeze())

    weights = jnp.array([2.0, 3.0, 0.0])
    assert [told(), told(train=True), told(image_weights=weights)] == [0, 1, 0]
    assert told(train=True, image_weights=weights) == 5


def test_training_and_weights_of_images_change_nothing_without_batch_norm():
    x = jnp.zeros((3, 32, 32, 3))
    module = models.build(CONFIG | {'backbone': 'vit_tiny'}, outputs=HEADS)
    given = jax.eval_shape(module.init, jax.random.key(0), x)
    assert given.keys() == {'params'}
    texts = {
        str(jax.make_jaxpr(partial(module.apply, **more))(given, x))
        for more in ({}, {'train': True, 'image_weights': np.zeros(3)})
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ('change', 'outputs', 'message'),
    [
        (
            {'backbone': 'efficientnet_lite0', 'output_stride': 32},
            HEADS,
            '^output_stride is 32; expected one of 8, 16$',
        ),
        ({'pool': 'min'}, HEADS, "^pool is 'min'; expected one of 'max', 'mean'"),
        (
            {},
            HEADS | {'cam_aux': 6},
            "^head 'class_aux' has 5 channels and 'cam_aux' 6; expected the same, as they share",
        ),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(change, outputs, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(CONFIG | change, outputs=outputs)
    assert '\n' not in str(caught.value)


def test_wrong_images_are_refused():
    module = models.build(CONFIG, outputs=HEADS)
    with pytest.raises(ValueError, match='expected float'):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))


def test_the_gradient_of_the_largest_value_is_that_of_its_first_place():
    x = np.random.default_rng(0).integers(0, 4, (2, 3, 4, 5)).astype(np.float32)  # with ties
    weights = np.arange(1.0, 11.0, dtype=np.float32).reshape(2, 1, 1, 5)
    value, gradient = jax.value_and_grad(lambda x: (weights * largefov._POOL['max'](x)).sum())(x)
    flat = x.reshape(2, 12, 5)
    expected = np.zeros_like(flat)
    rows, columns = np.indices((2, 5))
    expected[rows, flat.argmax(1), columns] = weights[:, 0, 0]
    np.testing.assert_array_equal(gradient.reshape(flat.shape), expected)
    np.testing.assert_allclose(value, (weights[:, 0, 0] * flat.max(1)).sum())


def test_the_gradient_of_the_largest_value_is_finite_behind_what_is_computed_anew():
    """Without optimisation XLA computes BatchNorm and ReLU twice, with two roundings."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(BatchNorm()(Conv(6, 9, 8, use_bias=True)(x), True))
            y = nn.relu(Conv(8, 1, use_bias=True)(x))
            return largefov.Classifier(5)(x)[0] + largefov.Classifier(5)(y)[0]

    rng, shape = np.random.default_rng(0), (4, 32, 32, 3)
    variables = Net().init(jax.random.key(0), jnp.zeros(shape))
    variables = jax.tree.map(
        lambda a: jnp.float32(a + 0.1 * rng.normal(size=a.shape)), variables
    )  # away from the start, at which nothing differs

    def loss(params, images):
        given = variables | {'params': params}
        return Net().apply(given, images, mutable=['batch_stats'])[0].sum()

    gradient = jax.jit(jax.grad(loss))
    for _ in range(3):
        found = gradient(variables['params'], jnp.float32(rng.standard_normal(shape)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize('backbone', ['resnet18', 'efficientnet_lite0', 'mobilenet_v1'])
def test_a_cell_sees_the_pixels_that_it_stands_for(backbone):
    """By where its gradient lies, of kernels of one value; without a shift it is 6 to 8 off."""
    stride, side = 16, 320
    config = ConfigDict(CONFIG | {'backbone': backbone})
    module, shift = backbones.build(config, None), backbones.cell_shift(config)
    place = side // stride // 2
    images = np.random.default_rng(0).uniform(0.009, 0.01, (1, side, side, 3)).astype(np.float32)
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images)

    def value(path, leaf):
        if leaf.ndim == 4:
            return jnp.full(leaf.shape, 1 / np.prod(leaf.shape[:3]))
        return jnp.full(leaf.shape, float(path[-1].key in ('scale', 'var')))

    variables = jax.tree_util.tree_map_with_path(value, shapes)

    @jax.jit
    @jax.grad
    def gradient(images):
        moved = largefov.moved(images, shift)
        return module.apply(variables, moved, train=False)['layer3'][0, place, place].sum()

    found = np.abs(gradient(images)).sum((0, 3))
    centres = [(found.sum(axis) * np.arange(side)).sum() / found.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centres, (place + 0.5) * stride - 0.5, atol=2.0)


def test_moved_images_are_reflected_at_the_border():
    x = jnp.arange(5.0)[None, :, None, None] + jnp.zeros((1, 5, 5, 1))
    assert largefov.moved(x, 2)[0, :, 0, 0].tolist() == [2, 1, 0, 1, 2]
    assert largefov.moved(x, -2)[0, :, 0, 0].tolist() == [2, 3, 4, 3, 2]
    assert largefov.moved(x, 0) is x
