"""MobileNet v1 against Keras's arithmetic in numpy, its published sizes, and its own strides."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from css_jax import models
from css_jax.models import mobile, mobilenet
from css_jax.models.backbones import PIXELS
from css_jax.models.layers import BatchNorm
from css_jax.weights import layouts
from tests.small import drawn

SHARED = pathlib.Path(__file__).parents[3] / 'shared'
FILE = SHARED / 'weights' / 'mobilenet_v1_0.75_224.npz'
FRAME = SHARED / 'data' / 'camvid' / 'test' / 'images' / 'Seq05VD_f02340.jpg'
CONFIG = {
    'backbone': 'mobilenet_v1',
    'stem': 'conv7',
    'output_stride': 8,
    'width': 0.25,
    'representation_dim': 16,
    'dtype': 'float32',
}
# Keras's own table of the network: filters and strides of the 13 blocks.
FILTERS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def keras_arrays(width, seed=0):
    """Arrays by Keras's names and shapes."""
    r = np.random.default_rng(seed)
    arrays = {}

    def conv(name, kernel, shape, fan_in, out):
        arrays[f'{name}/{kernel}'] = r.normal(0, (2 / fan_in) ** 0.5, shape)
        arrays[f'{name}_bn/gamma'] = r.uniform(0.8, 1.5, out)
        arrays[f'{name}_bn/beta'] = r.normal(0.5, 0.3, out)
        arrays[f'{name}_bn/moving_mean'] = r.normal(0, 0.2, out)
        arrays[f'{name}_bn/moving_variance'] = r.uniform(0.01, 1.5, out)

    channels = int(32 * width)
    conv('conv1', 'kernel', (3, 3, 3, channels), 27, channels)
    for i, filters in enumerate(FILTERS, start=1):
        out = int(filters * width)
        conv(f'conv_dw_{i}', 'depthwise_kernel', (3, 3, channels, 1), 9, channels)
        conv(f'conv_pw_{i}', 'kernel', (1, 1, channels, out), channels, out)
        channels = out
    arrays['conv_preds/kernel'] = r.normal(size=(1, 1, channels, 10))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def keras_forward(arrays, x):
    """Features after every block, in float64; strides pad as Keras's ZeroPadding2D does."""

    def norm(name, x):
        gamma, beta, mean, var = (
            arrays[f'{name}_bn/{k}'] for k in ('gamma', 'beta', 'moving_mean', 'moving_variance')
        )
        return np.clip((x - mean) / np.sqrt(var + 1e-3) * gamma + beta, 0, 6)

    def windows(x, stride):
        before = 1 if stride == 1 else 0
        x = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
        views = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        return views[:, ::stride, ::stride]  # [B, h, w, C, 3, 3]

    kernel = arrays['conv1/kernel'].astype(np.float64)
    x = norm('conv1', np.einsum('bhwcij,ijcf->bhwf', windows(x, 2), kernel))
    outputs = []
    for i, stride in enumerate(STRIDES, start=1):
        kernel = arrays[f'conv_dw_{i}/depthwise_kernel'][..., 0].astype(np.float64)
        x = norm(f'conv_dw_{i}', np.einsum('bhwcij,ijc->bhwc', windows(x, stride), kernel))
        x = norm(f'conv_pw_{i}', x @ arrays[f'conv_pw_{i}/kernel'][0, 0])
        outputs.append(x)
    return outputs


def backbone_shapes(module):
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)
    )
    flat = flatten_dict(variables, sep='/')
    return {path.replace('/', '/backbone/', 1): leaf for path, leaf in flat.items()}


def imported(module, arrays):
    taken, prefix, ignored = layouts.backbone(arrays, backbone_shapes(module), layouts.KERAS)
    assert prefix == ''
    flat = {path.replace('/backbone', '', 1): array for path, array in taken.items()}
    return unflatten_dict(flat, sep='/'), ignored


def test_features_are_kerass():
    arrays = keras_arrays(0.25)
    module = mobilenet.MobileNetV1(output_stride=32, width=0.25)
    variables, ignored = imported(module, arrays)
    assert ignored == ['conv_preds/kernel']
    x = np.random.default_rng(1).uniform(-1, 1, (2, 64, 32, 3))
    expected = keras_forward(arrays, x)
    with jax.default_matmul_precision('highest'):
        found = jax.jit(module.apply, static_argnums=2)(variables, x.astype(np.float32), False)
    low_level, features = found['stride4'], found['last']
    # Block 3 is the last at stride 4.
    assert low_level.shape == (2, 16, 8, 32) and expected[3].shape == (2, 8, 4, 64)
    np.testing.assert_allclose(low_level, expected[2], atol=1e-4)
    assert features.shape == (2, 2, 1, 256)
    assert features.std() > 0.5  # alive: neither all cut at 0 nor all at 6
    np.testing.assert_allclose(features, expected[12], atol=1e-3)  # 27 layers in float32


@pytest.fixture
def few(monkeypatch):
    """A block of each stride, and one more where strides are given up."""
    blocks = mobilenet.BLOCKS
    monkeypatch.setattr(mobilenet, 'BLOCKS', (*blocks[1:2], blocks[3], *blocks[5:7], *blocks[11:]))


def test_dilation_in_place_of_a_stride_keeps_the_features(few):
    x = np.random.default_rng(3).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    modules = {s: mobilenet.MobileNetV1(output_stride=s, width=0.25) for s in (8, 16, 32)}
    variables = drawn(jax.eval_shape(lambda: modules[32].init(jax.random.key(0), x, False)))

    @jax.jit
    def features(variables, x):
        return {stride: m.apply(variables, x, False)['last'] for stride, m in modules.items()}

    with jax.default_matmul_precision('highest'):
        out = jax.device_get(features(variables, x))
    assert {s: y.shape[1:3] for s, y in out.items()} == {8: (8, 12), 16: (4, 6), 32: (2, 3)}
    assert out[32].std() > 0.3  # alive
    # A strided 'SAME' window of an even size is centred on the second of each pair.
    np.testing.assert_allclose(out[8][:, 1::2, 1::2], out[16], atol=1e-4)
    np.testing.assert_allclose(out[16][:, 1::2, 1::2], out[32], atol=1e-4)


@pytest.mark.parametrize(
    ('width', 'count'), [(1.0, 3_228_864), (0.75, 1_832_976), (0.5, 829_536), (0.25, 218_544)]
)
def test_sizes_are_the_published_ones(width, count):
    """The counts that Keras prints for MobileNet without its top."""
    shapes = backbone_shapes(mobilenet.MobileNetV1(width=width))
    assert sum(np.prod(leaf.shape) for leaf in shapes.values()) == count


def test_widths_are_rounded_down_and_at_least_eight(few):
    def first(width):
        return backbone_shapes(mobilenet.MobileNetV1(width=width))[
            'params/backbone/conv1/kernel'
        ].shape[-1]

    assert [first(w) for w in (0.125, 0.35, 0.99)] == [8, 11, 31]


def test_a_network_on_it():
    module = models.build(CONFIG | {'width': 0.75}, 5)
    images = jnp.zeros((2, 33, 47, 3))
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert {k: v.shape for k, v in outputs.items()} == {
        'logits': (2, 9, 12, 5),
        'representation': (2, 9, 12, 16),
    }
    params = variables['params']
    assert params['low_level_conv']['kernel'].shape == (1, 1, 96, 36)  # 48 x 0.75 of 128 x 0.75
    assert params['aspp']['conv0']['kernel'].shape == (1, 1, 768, 192)


@pytest.mark.parametrize(
    ('taps', 'stride', 'dilation'), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (5, 2, 1), (5, 1, 2)]
)
def test_depthwise_is_a_grouped_convolution(taps, stride, dilation):
    r = np.random.default_rng(4)
    x = jnp.asarray(r.standard_normal((2, 9, 6, 5)), jnp.float32)
    kernel = jnp.asarray(r.standard_normal((taps, taps, 1, 5)), jnp.float32)

    def grouped(x, kernel, stride, dilation):
        return jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), 'SAME'),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=5,
            precision='highest',
        )

    @jax.jit
    def both(x):
        half = x.astype(jnp.bfloat16)
        return [
            (
                mobile.depthwise(given, kernel, stride, dilation),
                grouped(given.astype(jnp.float32), kernel, stride, dilation),
            )
            for given in (x, half)
        ]

    for found, expected in both(x):
        assert found.dtype == jnp.float32  # in bfloat16 the products are added in float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_depthwise_kernels_start_with_the_variance_of_their_nine_inputs():
    conv = mobile.Conv(0, 3, 1, 1, BatchNorm, jnp.float32)
    init = jax.jit(lambda key: conv.init(key, jnp.zeros((1, 8, 8, 1024)), False)['params'])
    kernel = np.asarray(init(jax.random.key(0))['kernel'])
    assert kernel.shape == (3, 3, 1, 1024)
    np.testing.assert_allclose(kernel.std(), (2 / 9) ** 0.5, rtol=0.05)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stem': 'deep'}, "stem is 'deep'; expected 'conv7'.*its own stem"),
        ({'output_stride': 32}, 'output_stride is 32; expected one of 8, 16'),
    ],
)
def test_impossible_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        models.build(CONFIG | change, 5)


@pytest.mark.skipif(not FILE.exists(), reason='no ../shared/weights')
@pytest.mark.skipif(not FRAME.exists(), reason='no ../shared/data/camvid')
def test_published_weights_see_a_traffic_light():
    cv2 = pytest.importorskip('cv2')
    arrays = dict(np.load(FILE))
    module = mobilenet.MobileNetV1(output_stride=32, width=0.75)
    variables, ignored = imported(module, arrays)
    assert ignored == ['conv_preds/kernel', 'conv_preds/bias']
    image = cv2.imread(str(FRAME))[:, 60:420, ::-1]
    image = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    x = (image / 255 - PIXELS['mobilenet_v1'].mean) / PIXELS['mobilenet_v1'].std
    x = x[None].astype(np.float32)
    features = np.asarray(jax.jit(module.apply, static_argnums=2)(variables, x, False)['last'])
    scores = (
        features.mean((0, 1, 2)) @ arrays['conv_preds/kernel'][0, 0] + arrays['conv_preds/bias']
    )
    assert scores.argmax() == 920  # ImageNet's 'traffic light'
    assert 1 / np.exp(scores - scores.max()).sum() > 0.8  # the softmax
