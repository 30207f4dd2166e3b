"""DINOv2's transformers held to the outputs of UniMatch V2's authors; their weights by any name."""

import functools
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, PartitionSpec

from css_jax.models import backbones, dinov2, vit
from css_jax.weights import dinov2 as weights
from css_jax.weights import layouts, timm
from tests.dinov2_small import GOLDEN, TINY, VIT, assert_close, drawn, state_dict

MODULES = {
    'vit': dinov2.ViT(**VIT),
    'vit_native': dinov2.ViT(**TINY),
    'vit_registers': dinov2.ViT(**TINY, registers=4, offset=0.0, antialias=True),
    'vit_swiglu': dinov2.ViT(**TINY | {'grid': 2}, ffn='swiglu'),
}
CONFIG = {'stem': 'conv7', 'output_stride': 8, 'width': 0.125, 'dtype': 'float32'}


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN)


@pytest.mark.parametrize(
    'name', ['37to57x57', '37to36x24', '37to24x36', '37to37x36', 'exact_37to45x30',
             'antialias_37to24x36'],
)  # fmt: skip
def test_positions_are_the_authors(golden, name):
    grid = tuple(int(side) for side in name.rpartition('to')[2].split('x'))
    offset = 0.0 if '_' in name else 0.1
    table = jnp.asarray(drawn('pos_embed', (1, 1 + 37 * 37, 2)))
    found = dinov2.positions(table, grid, offset, antialias=name.startswith('antialias'))
    assert_close(np.asarray(found[0]), golden[f'pos_{name}'])
    np.testing.assert_array_equal(dinov2.positions(table, (37, 37), offset), table)


def test_antialiased_an_axis_of_the_same_length_stays():
    """As torch 2.13 does it, whatever the scale: three rows of what it gives."""
    table = jnp.asarray(drawn('pos_embed', (1, 1 + 37 * 37, 2)))
    found = dinov2.positions(table, (37, 30), 0.1, antialias=True)[0, jnp.array([1, 700, 1110])]
    theirs = [[0.2754794, -0.3794391], [0.7644659, -0.4467491], [-0.0324713, -0.4968311]]
    np.testing.assert_allclose(found, theirs, atol=1e-6)


def test_a_table_without_a_square_grid_is_refused():
    for shape in ((26, 4), (1, 27, 4), (1, 1, 4), (2, 26, 4)):
        with pytest.raises(ValueError, match=r'^pos_embed has shape .*; expected \[1, 1 \+ G \* G'):
            dinov2.positions(jnp.zeros(shape), (2, 2))


class Tokens(dinov2.ViT):
    """What goes into the first block."""

    def __call__(self, x, train=False):
        super().__call__(x, train)
        return self._tokens(x)


@pytest.mark.parametrize('key', MODULES)
def test_tokens_of_every_step_are_the_authors(golden, key):
    module, images = MODULES[key], golden[f'{key}_x_nchw'].transpose(0, 2, 3, 1)
    params = {'params': weights.from_torch(state_dict(module))}

    @jax.jit
    def run(x):
        with jax.default_matmul_precision('highest'):
            return module.apply(params, x, capture_intermediates=True, mutable=['intermediates'])

    taps, sown = jax.device_get(run(images))
    found = {
        name: part['__call__'] for name, part in sown['intermediates'].items() if '_c' not in name
    }
    assert_close(found['block0'][0], golden[f'{key}_block0'])
    assert_close(found[f'block{module.depth - 1}'][0], golden[f'{key}_prenorm'])
    height, width = (side // 14 for side in images.shape[1:3])
    for tap, number, normalised in zip(taps, module.taps, found['norm'], strict=True):
        assert tap.shape == (len(images), height, width, module.embed_dim)
        assert_close(tap.reshape(len(images), height * width, -1), golden[f'{key}_layer{number}'])
        assert_close(normalised[:, 0], golden[f'{key}_cls{number}'])
    patches = found['patch_embed'][0].reshape(len(images), height * width, -1)
    places = dinov2.positions(
        params['params']['pos_embed'], (height, width), module.offset, module.antialias
    )
    first = np.asarray(params['params']['cls_token'] + places[:, :1]).repeat(len(images), 0)
    more = [params['params']['register_tokens']] if module.registers else []
    tokens = np.concatenate([first, *more, patches + places[:, 1:]], axis=1)
    assert_close(tokens, golden[f'{key}_tokens'])


def test_gradients_are_the_authors(golden):
    module, images = MODULES['vit'], golden['vit_x_nchw'].transpose(0, 2, 3, 1)
    params = weights.from_torch(state_dict(module))
    cotangent = golden['vit_cotangent'].reshape(2, 3, 4, 32)

    def gradient(params, x, stages=()):
        def loss(params, x):
            with jax.default_matmul_precision('highest'):
                *_, last = module.clone(remat=stages).apply({'params': params}, x, True)
            return (last * cotangent).sum()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    by_params, by_images = jax.device_get(jax.jit(gradient)(params, images))
    first = by_images[:1].transpose(0, 3, 1, 2)
    assert_close(first, golden['vit_grad_x_nchw_first'])
    found = flatten_dict(by_params, sep='/')
    names = timm.names(f'params/backbone/{path}' for path in found)
    checked = 0
    for name, path in names.items():
        if f'vit_grad/{name}' in golden.files:
            array = found[path.removeprefix('params/backbone/')]
            assert_close(array.T if array.ndim == 2 else array, golden[f'vit_grad/{name}'])
            checked += 1
    assert checked == sum(name.startswith('vit_grad/') for name in golden.files) == 7
    # The mask token has none: it is no parameter here.
    assert not golden['vit_mask_token_has_gradient'] and 'mask_token' not in found

    # Of what is computed anew every block is a run of its own; test_dpt.py has the gradients.
    for stages, count in ((('stem', 'layer1', 'layer4'), 3), (('aspp',), 0)):
        text = str(jax.make_jaxpr(partial(gradient, stages=stages))(params, images))
        assert len(re.findall(r'\b(?:remat2?|checkpoint)\[', text)) == count


def build(name='dinov2_small', **change):
    return backbones.build(SimpleNamespace(**CONFIG | {'backbone': name} | change), None)


@functools.cache
def shapes(module):
    """Path -> shape, of the backbone."""
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))
    return {f'params/backbone/{k}': v for k, v in flatten_dict(tree['params'], sep='/').items()}


@pytest.mark.parametrize(
    ('name', 'dim', 'parameters'),
    [
        ('dinov2_small', 384, 22_056_576),
        ('dinov2_base', 768, 86_580_480),
        ('dinov2_large', 1024, 304_368_640),
        ('dinov2_giant', 1536, 1_136_480_768),
    ],
)
def test_sizes(name, dim, parameters):
    module = build(name, width=1.0)
    assert module.embed_dim == dim and module.embed_dim == 64 * module.heads
    assert module.taps[-1] == module.depth - 1
    found = shapes(module)
    # The authors count the mask token too.
    assert sum(int(np.prod(a.shape)) for a in found.values()) == parameters - dim
    narrow = build(name, registers=4)
    assert (narrow.embed_dim, narrow.heads) == (dim // 8, module.heads)
    assert (narrow.registers, narrow.offset, narrow.antialias) == (4, 0.0, True)


def test_features_have_names_and_a_size_that_the_patch_divides():
    module = build()
    x = jnp.zeros((2, 28, 42, 3))
    found = jax.eval_shape(module.init_with_output, jax.random.key(0), x)[0]
    assert {name: y.shape for name, y in found.items()} == dict.fromkeys(
        ('tap1', 'tap2', 'tap3', 'tap4'), (2, 2, 3, 48)
    )
    for size, near in (((30, 42), '28x42'), ((28, 49), '28x56'), ((6, 14), '14x14')):
        message = rf'^images are {size[0]}x{size[1]}; expected sides that .* such as {near}\n'
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stem': 'deep'}, "stem is 'deep'; expected 'conv7', the default: DINOv2 has its own"),
        ({'registers': 3}, '^registers is 3; expected one of 0, 4$'),
        ({'attention': 'flash'}, "^attention is 'flash'; expected one of 'auto', 'xla', 'cudnn'"),
        (
            {'attention': 'cudnn'},
            "^attention is 'cudnn'; expected .* with dtype 'float32'",
        ),
        ({'multi_grid': (2, 2)}, r'multi_grid is \(2, 2\); expected \(\), the default'),
    ],
)
def test_what_there_is_not_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


# Attention.


def test_attention_is_cudnns_where_it_can_be(monkeypatch):
    found = partial(vit.implementation, 'auto')
    assert found(jnp.bfloat16, 1370, 64) == 'xla'  # on a CPU
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert found(jnp.bfloat16, 1370, 64) == 'cudnn'
    others = (jnp.float32, 1370, 64), (jnp.bfloat16, 1369, 64), (jnp.bfloat16, 1370, 36)
    assert {found(*given) for given in (*others, (jnp.bfloat16, 1370, 256))} == {'xla'}
    assert vit.implementation('xla', jnp.bfloat16, 1370, 64) == 'xla'


def attention(choice):
    """Loss and gradients of an attention in bfloat16, of 38 tokens, and its arguments."""
    x = jnp.asarray(drawn('x', (2, 38, 128)), jnp.bfloat16)
    module = vit.Attention(2, jnp.bfloat16, choice)
    params = vit.Attention(2, jnp.bfloat16, 'xla').init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.square(module.apply(params, x).astype(jnp.float32)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1)), (params, x)


def test_cudnns_attention_is_lowered_for_a_gpu_on_devices_too(monkeypatch):
    """Without one: jax's questions to the driver are answered; nothing runs."""
    cudnn = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
    monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
    for name in ('check_compute_capability', 'is_cuda_compute_capability_equal'):
        monkeypatch.setattr(cudnn, name, lambda *given, name=name: name.startswith('check'))
    function, given = attention('cudnn')

    def share(params, x):
        params = jax.tree.map(lambda p: jax.lax.pcast(p, 'data', to='varying'), params)
        value, (by_params, by_x) = function(params, x)
        return jax.lax.psum((value, by_params), 'data'), by_x

    mesh, spec = Mesh(np.array(jax.devices()[:2]), ('data',)), PartitionSpec
    over = jax.shard_map(
        share, mesh=mesh, in_specs=(spec(), spec('data')), out_specs=(spec(), spec('data'))
    )
    text = jax.jit(over).trace(*given).lower(lowering_platforms=('cuda',)).as_text()
    assert {'fmhaSoftmax', 'fmhaSoftmaxBackward'} <= set(re.findall(r'cudnn\$(\w+)', text))


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='cuDNN needs a GPU (JAX_PLATFORMS=cuda)')
def test_both_attentions_agree():
    found, expected = (
        jax.jit(function)(*given) for function, given in map(attention, ('cudnn', 'xla'))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.05, atol=0.05), found, expected)


# Files.


def by_hugging_face(arrays):
    """The same arrays by the names of transformers' Dinov2Model."""
    found = {}
    for name, array in arrays.items():
        name = re.sub(r'^(cls_token|mask_token|register_tokens)$', r'embeddings.\1', name)
        name = name.replace('pos_embed', 'embeddings.position_embeddings')
        name = name.replace('patch_embed.proj', 'embeddings.patch_embeddings.projection')
        name = re.sub(r'^norm\.', 'layernorm.', name)
        name = re.sub(r'^blocks\.', 'encoder.layer.', name)
        name = re.sub(r'ls(\d)\.gamma', r'layer_scale\1.lambda1', name)
        name = name.replace('attn.proj', 'attention.output.dense')
        name = name.replace('w12', 'weights_in').replace('w3', 'weights_out')
        if '.attn.qkv.' in name:
            for part, own in zip(('query', 'key', 'value'), np.split(array, 3), strict=True):
                found[name.replace('attn.qkv', f'attention.attention.{part}')] = own
        else:
            found[name] = array
    return found


def by_timm(arrays):
    """The same arrays by timm's names; with registers the class token's place is added to it."""
    found = {name.replace('w12', 'fc1').replace('w3', 'fc2'): a for name, a in arrays.items()}
    found.pop('mask_token', None)
    if 'register_tokens' in found:
        found['reg_token'] = found.pop('register_tokens')
        found['cls_token'] = found['cls_token'] + found['pos_embed'][:, :1]
        found['pos_embed'] = found['pos_embed'][:, 1:]
    return found


@pytest.mark.parametrize('key', ['vit_native', 'vit_registers', 'vit_swiglu'])
def test_files_of_meta_timm_and_hugging_face_are_the_same(key):
    module = MODULES[key]
    meta = state_dict(module)
    given = meta | {'mask_token': drawn('mask_token', (1, 24))}
    expected = flatten_dict(weights.from_torch(given), sep='/')
    np.testing.assert_array_equal(
        expected['block1/attn/qkv/kernel'], meta['blocks.1.attn.qkv.weight'].T
    )
    kernel = meta['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(expected['patch_embed/kernel'], kernel)
    dinos = {f'dinov2.{name}': a for name, a in by_hugging_face(given).items()}
    for arrays in (by_hugging_face(given), dinos | {'classifier.weight': np.ones((2, 48))}):
        found = flatten_dict(weights.from_torch(arrays), sep='/')
        assert found.keys() == expected.keys()
        for path, array in found.items():
            np.testing.assert_array_equal(array, expected[path])
    found = flatten_dict(weights.from_torch(by_timm(given)), sep='/')
    assert found.keys() == expected.keys()
    for table in (found, expected):  # the sum of both is what the network sees
        table['cls_token'] = table['cls_token'] + table['pos_embed'][:, :1]
        table['pos_embed'] = table['pos_embed'][:, 1:]
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])


@pytest.fixture(scope='module')
def file():
    return state_dict(build())


def taken(arrays, **change):
    """Of the backbone that a run builds."""
    return layouts.backbone(arrays, shapes(build(**change)), layouts.of('dinov2_small'))


def test_a_run_takes_files_by_any_names(file):
    assert len(file) == 174  # Meta's have the mask token too
    expected, prefix, ignored = taken(file | {'mask_token': np.ones((1, 48))})
    assert (prefix, ignored) == ('', ['mask_token'])
    for arrays in (by_hugging_face(file), by_timm(file)):
        found, _, ignored = taken(arrays)
        assert not ignored and found.keys() == expected.keys()
        for path, array in found.items():
            np.testing.assert_array_equal(array, expected[path])
    # A checkpoint of UniMatch V2: of both networks the EMA teacher's backbone.
    both = {f'model.module.backbone.{name}': a + 1 for name, a in file.items()}
    both |= {f'model_ema.module.backbone.{name}': a for name, a in file.items()}
    found, prefix, _ = taken(both)
    assert prefix == 'model_ema.module.backbone.'
    np.testing.assert_array_equal(found['params/backbone/cls_token'], file['cls_token'])


@pytest.mark.parametrize(
    ('there', 'message'),
    [
        ({'width': 0.25}, r'has \(96, 96\), expected \(48, 48\).*Likely another width'),
        ({'name': 'dinov2_base'}, 'expected .*Likely another width'),
        ({'name': 'dinov2_large', 'width': 0.0469}, 'more than here: blocks.12.*another depth'),
        (
            {'registers': 4},
            r'more than here: register_tokens. Likely of a network with registers: ',
        ),
    ],
)
def test_a_file_of_another_network_is_refused_with_the_likely_cause(there, message):
    with pytest.raises(ValueError, match=message) as caught:
        taken(state_dict(build(**there)))
    assert '\n' not in str(caught.value)


def test_a_table_of_another_grid_and_missing_registers_are_refused(file):
    small = file | {'pos_embed': drawn('pos_embed', (1, 257, 48))}
    with pytest.raises(ValueError, match=r'has \(1, 257, 48\), exp.* another size: .* here 37x37$'):
        taken(small)
    with pytest.raises(
        ValueError, match=r'missing: register_tokens. Likely of a network without re'
    ):
        taken(file, registers=4)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'blocks.1.ls1.gamma': None}, 'missing in the state dict: blocks.1.ls1.gamma$'),
        ({'blocks.0.attn.bias': np.ones(24)}, 'not known in the state dict: blocks.0.attn.bias$'),
        ({'cls_token': np.ones(24)}, r'cls_token has shape \(24,\); expected 3 axes$'),
        ({'patch_embed.proj.weight': None}, "no name ends in 'patch_embed.proj.weight'; there are"),
    ],
)
def test_another_state_dict_is_refused(change, message):
    arrays = state_dict(MODULES['vit_native']) | change
    with pytest.raises(ValueError, match=f'^{message}'):
        weights.from_torch({k: v for k, v in arrays.items() if v is not None})
