"""Vision transformers held to the outputs of CoSA's authors; their weights by timm's names."""

import json
import logging
import re
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from css_jax import config as configs
from css_jax import methods, models, state
from css_jax.models import backbones, vit
from css_jax.weights import files, initial, layouts, timm
from tests import tiny

GOLDEN = Path(__file__).parents[1] / 'fixtures' / 'cosa_network.npz'
CONFIG = {
    'family': 'largefov',
    'backbone': 'vit_tiny',
    'stem': 'conv7',
    'output_stride': 16,
    'width': 0.125,  # 24 channels, 8 a head
    'dtype': 'float32',
}


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN)


def drawn(name, shape, salt=''):
    """The array of this name by the rule of fixtures/README.md."""
    a = np.random.default_rng(zlib.crc32((salt + name).encode())).standard_normal(shape)
    if name.endswith('.bias'):
        a = 0.1 * a
    elif 'norm' in name:
        a = 1 + 0.1 * a
    elif name.endswith(('cls_token', 'pos_embed')):
        a = 0.5 * a
    else:
        a = a / np.sqrt(np.prod(shape[1:]))
    return a.astype(np.float32)


def state_dict(golden):
    """The whole network of the authors."""
    salt = json.loads(golden['vit_config'].item())['salt']
    shapes = json.loads(golden['vit_parameters'].item())
    return {name: drawn(name, tuple(shape), salt) for name, shape in shapes}


def authors(golden):
    """The authors' small backbone: its table is for images of 32 pixels."""
    c = json.loads(golden['vit_config'].item())
    grid = c['img_size'] // c['patch']
    return vit.ViT(c['dim'], c['depth'], c['heads'], c['patch'], grid, c['aux'])


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize('number', [0, 1, 2])
def test_features_are_the_authors(golden, number):
    """On a grid as the table's, a larger one and a smaller one."""
    module, params = authors(golden), timm.to_params(state_dict(golden))
    images = golden[f'vit{number}_images']
    with jax.default_matmul_precision('highest'):
        found = jax.device_get(jax.jit(module.apply)({'params': params}, images))
    assert found.keys() == {'layer3', 'last'}
    assert_close(found['last'], golden[f'vit{number}_features'])
    assert_close(found['layer3'], golden[f'vit{number}_features_aux'])
    table = vit.resize_table(params['pos_embed'][0], found['last'].shape[1:3])
    np.testing.assert_allclose(table, golden[f'vit{number}_pos_embed'], atol=1e-6)


def test_a_table_stays_on_its_own_grid_and_a_constant_one_on_any():
    table = jnp.asarray(drawn('pos_embed', (17, 5)))
    np.testing.assert_array_equal(vit.resize_table(table, (4, 4)), table)
    same = jnp.ones((10, 2)).at[0].set(3)  # the class token's row has no place
    found = np.asarray(vit.resize_table(same, (5, 2)))
    assert found.shape == (11, 2) and (found[0] == 3).all()
    np.testing.assert_allclose(found[1:], 1, atol=1e-6)
    for shape in ((16, 5), (1, 5), (18, 5)):
        with pytest.raises(ValueError, match=r'^table has shape \(\d+, 5\); expected \[1 \+ g'):
            vit.resize_table(jnp.zeros(shape), (2, 2))


def test_pixels_beyond_the_last_patch_are_cut_off(golden):
    module, params = authors(golden), timm.to_params(state_dict(golden))
    images = np.pad(golden['vit1_images'], ((0, 0), (0, 7), (0, 3), (0, 0)), constant_values=9)
    run = jax.jit(lambda x: module.apply({'params': params}, x)['last'])
    np.testing.assert_array_equal(run(images), run(golden['vit1_images']))
    with pytest.raises(ValueError, match=r'^images are 7x40; expected 8 pixels or more on each'):
        jax.eval_shape(run, jnp.zeros((1, 7, 40, 3)))


def build(**change):
    return backbones.build(SimpleNamespace(**CONFIG | change), None)


def shapes(module):
    """Path -> shape, of the backbone."""
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return {f'params/backbone/{k}': v for k, v in flatten_dict(tree['params'], sep='/').items()}


@pytest.mark.parametrize(
    ('name', 'dim', 'heads', 'parameters'),
    # timm's and DeiT's counts without the classifier of 1000 classes.
    [
        ('vit_tiny', 192, 3, 5_524_416),
        ('vit_small', 384, 6, 21_665_664),
        ('vit_base', 768, 12, 85_798_656),
    ],
)
def test_sizes(name, dim, heads, parameters):
    module = build(backbone=name, width=1.0)
    assert (module.dim, module.heads, module.depth, module.patch) == (dim, heads, 12, 16)
    assert sum(np.prod(a.shape) for a in shapes(module).values()) == parameters
    half = build(backbone=name, width=0.5)
    assert (half.dim, half.heads) == (dim // 2, heads)


def file_of(module, places=None):
    """A file by timm's names with random arrays, of a table of so many places."""
    found = {}
    for path, like in shapes(module).items():
        (name,) = timm.names([path])
        shape = like.shape
        if name == 'pos_embed' and places:
            shape = (1, places, shape[2])
        if len(shape) == 4:
            shape = tuple(shape[i] for i in (3, 2, 0, 1))
        elif len(shape) == 2:
            shape = shape[::-1]
        found[name] = drawn(name, shape)
    return found


@pytest.fixture(scope='module')
def file():
    return file_of(build())


def test_names_are_timms(file):
    assert len(file) == 4 + 12 * 12 + 2
    block = {name.removeprefix('blocks.11.') for name in file if name.startswith('blocks.11.')}
    modules = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
    assert block == {f'{m}.{leaf}' for m in modules for leaf in ('weight', 'bias')}
    rest = {name for name in file if not name.startswith('blocks.')}
    patches = {'patch_embed.proj.weight', 'patch_embed.proj.bias'}
    assert rest == {'cls_token', 'pos_embed', 'norm.weight', 'norm.bias', *patches}
    assert file['blocks.0.attn.qkv.weight'].shape == (72, 24)
    assert file['patch_embed.proj.weight'].shape == (24, 3, 16, 16)


def taken(arrays, module):
    """What both readers take, which is the same."""
    found, prefix, ignored = layouts.backbone(arrays, shapes(module), layouts.of('vit_tiny'))
    params = flatten_dict(timm.to_params(arrays), sep='/')
    assert {f'params/backbone/{path}' for path in params} == found.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(array, found[f'params/backbone/{path}'])
    return params, prefix, ignored


def test_files_of_timm_deit_and_dino(file):
    module = build()
    params, prefix, ignored = taken(file | {'head.weight': np.ones((5, 24))}, module)
    assert (prefix, ignored) == ('', ['head.weight'])
    weight = file['blocks.3.mlp.fc1.weight']
    np.testing.assert_array_equal(params['block3/mlp/fc1/kernel'], weight.T)
    kernel = file['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params['patch_embed/kernel'], kernel)

    # DeiT's are within 'model'; a distilled one has a second token.
    distilled = {f'model.{name}': a for name, a in file.items()}
    table = file['pos_embed']
    distilled['model.pos_embed'] = np.insert(table, 1, 7.0, axis=1)
    distilled |= {'model.dist_token': np.ones((1, 1, 24)), 'model.head_dist.bias': np.ones(5)}
    params, prefix, ignored = taken(distilled, module)
    assert (prefix, ignored) == ('model.', ['model.dist_token', 'model.head_dist.bias'])
    np.testing.assert_array_equal(params['pos_embed'], table)

    # A checkpoint of DINO's training has student and teacher, each with a head of its own.
    dino = {f'student.module.backbone.{name}': a + 1 for name, a in file.items()}
    dino |= {f'teacher.backbone.{name}': a for name, a in file.items()}
    dino |= {'teacher.head.mlp.0.weight': np.ones((5, 24))}
    params, prefix, ignored = taken(dino, module)
    assert (prefix, ignored) == ('teacher.backbone.', [])
    np.testing.assert_array_equal(params['cls_token'], file['cls_token'])


@pytest.mark.parametrize('places', [26, 27])
def test_a_table_keeps_its_own_grid(places):
    """One of 5x5 patches, with and without the place of a second token."""
    params = timm.to_params(file_of(build(), places))
    assert params['pos_embed'].shape == (1, 26, 24)
    module = build().clone(grid=5)
    found = jax.eval_shape(module.apply, {'params': params}, jnp.zeros((1, 48, 33, 3)))
    assert found['last'].shape == (1, 3, 2, 24)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'blocks.2.norm1.bias': None}, 'missing in the state dict: blocks.2.norm1.bias$'),
        ({'norm.weight': None}, 'missing in the state dict: norm.weight$'),
        ({'blocks.2.ls1.gamma': np.ones(24)}, 'not known in the state dict: blocks.2.ls1.gamma$'),
        ({'cls_token': np.ones(24)}, r'cls_token has shape \(24,\); expected 3 axes$'),
        ({'patch_embed.proj.weight': None}, "no name ends in 'patch_embed.proj.weight'; there are"),
    ],
)
def test_another_state_dict_is_refused(file, change, message):
    arrays = {k: v for k, v in (file | change).items() if v is not None}
    with pytest.raises(ValueError, match=f'^{message}'):
        timm.to_params(arrays)


@pytest.mark.parametrize(
    ('there', 'message'),
    [
        (lambda: build(width=0.25), r'weight has \(48, 48\), expected \(24, 24\).*another width'),
        (lambda: build().clone(patch=8), r'has \(8, 8, 3, 24\), .*Likely patches of another size'),
        (lambda: build().clone(grid=24), r'pos_embed has \(1, 577, 24\), exp.* another size: its'),
        (lambda: build().clone(depth=14), 'more than here: blocks.12.*another depth'),
        (lambda: build().clone(depth=8), 'missing: blocks.10.*another depth'),
    ],
)
def test_a_file_of_another_network_is_refused_with_the_likely_cause(there, message):
    with pytest.raises(ValueError, match=message) as caught:
        layouts.backbone(file_of(there()), shapes(build()), layouts.VIT)
    assert '\n' not in str(caught.value)


def test_a_run_starts_from_a_file(tmp_path, caplog):
    c = tiny.get_config('supervised')
    c.model.update(CONFIG | {'pretrained': str(tmp_path / 'vit.npz')})
    arrays = file_of(build())
    files.write(c.model.pretrained, arrays | {'head.bias': np.ones(5)})
    final = configs.finalise(c)
    assert (final.data.mean, final.data.std) == backbones.IMAGENET
    method, ctx = methods.METHODS['supervised'], methods.context(final)
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = initial.load(final, method, ctx)['student']
    backbone = [path for path in state.flat(state.shapes(ctx)) if '/backbone/' in path]
    assert given.keys() == set(backbone)
    assert 'so fresh: head_logits\n' in caplog.text and 'not used: head.bias' in caplog.text


@pytest.fixture(scope='module')
def short():
    """A network of two blocks, its parameters, and images of 2x3 patches."""
    module = build().clone(depth=2, aux=-2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 48, 3)), jnp.float32)
    return module, jax.device_get(jax.jit(module.init)(jax.random.key(0), x)), x


def test_remat_changes_no_gradient_and_every_block_is_a_run(short):
    module, params, x = short

    def gradient(names):
        def loss(params):
            found = module.clone(remat=names).apply(params, x, True)
            return sum(jnp.mean(y**2) for y in found.values())

        return jax.grad(loss)

    both = jax.jit(lambda p: (gradient(())(p), gradient(('stem', 'layer3'))(p)))
    plain, again = jax.device_get(both(params))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), plain, again)
    # A stage has a quarter of the blocks.
    module = module.clone(depth=8)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    for names, count in ((('layer2',), 2), (('stem', 'layer1', 'layer4'), 5), (('aspp',), 0)):
        text = str(jax.make_jaxpr(gradient(names))(params))
        assert len(re.findall(r'\b(?:remat2?|checkpoint)\[', text)) == count


def test_bfloat16_agrees_and_parameters_are_float32(short):
    module, params, x = short
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    half = module.clone(dtype=jnp.bfloat16)
    exact, rounded = jax.jit(lambda: (module.apply(params, x), half.apply(params, x)))()
    assert rounded['last'].dtype == jnp.bfloat16
    difference = np.sqrt(np.mean((exact['last'] - rounded['last'].astype(jnp.float32)) ** 2))
    assert 0 < difference < 0.05 * exact['last'].std()


def test_a_block_s_layer_scale_and_eps():
    """What a later backbone of the same blocks needs: factors of its branches, another eps."""
    x = jnp.asarray(drawn('x', (1, 5, 16)))
    block = vit.Block(heads=2, layer_scale=1e-5, eps=1.0)

    @jax.jit
    def run():
        given = block.init(jax.random.key(0), x)
        return given['params'], block.apply(given, x), vit.Block(2).apply(given, x)

    params, scaled, plain = run()
    assert params['ls1']['gamma'].shape == params['ls2']['gamma'].shape == (16,)
    assert 0 < np.abs(scaled - x).max() < 1e-4 < 1e-2 < np.abs(plain - x).max()
    paths = ['params/backbone/block0/ls1/gamma']
    assert timm.names(paths) == {'blocks.0.ls1.gamma': paths[0]}
    norm = vit.layer_norm('norm', 1.0, jnp.float32)
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    expected = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_first_values(short):
    params = short[1]['params']
    for name in ('qkv', 'proj'):
        np.testing.assert_allclose(params['block0']['attn'][name]['kernel'].std(), 0.02, rtol=0.1)
        assert not np.any(params['block0']['attn'][name]['bias'])
    bound = (16 * 16 * 3) ** -0.5
    for leaf in params['patch_embed'].values():
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    np.testing.assert_allclose(params['pos_embed'].std(), 0.02, rtol=0.05)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'output_stride': 8}, '^output_stride is 8; expected one of 16$'),
        ({'stem': 'deep'}, "stem is 'deep'; expected 'conv7', the default: ViT has its own stem$"),
        ({'multi_grid': (2, 2)}, r'multi_grid is \(2, 2\); expected \(\), the default: ViT has no'),
        ({'first_dilation': 'own'}, "first_dilation is 'own'; expected one of 'auto'$"),
        ({'remat': ('block3',)}, "remat is 'block3'; expected one of 'stem', 'layer1'"),
        ({'width': 0}, 'width is 0; expected a number above 0'),
        ({'aux_layer': -13}, '^aux_layer is -13; expected -12 to -1, of 12 blocks$'),
        ({'family': 'deeplab'}, "^family is 'deeplab'; expected 'largefov' or 'dpt' with backbone"),
        ({'family': 'fcn'}, "^family is 'fcn'; expected 'largefov' or 'dpt' with backbone 'vit"),
    ],
)
def test_what_it_does_not_have_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(CONFIG | change, outputs={'logits': 3})
    assert '\n' not in str(caught.value)
