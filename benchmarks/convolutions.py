"""DeepLab's dilated 3x3 convolutions in all their forms, and the whole network by form.

    python -m benchmarks.convolutions --size real

The whole network (the student, in training mode) decides what `css_jax.models.atrous.AUTO` has for
a platform; 'layers' and 'ASPP' are its two entries. The single convolutions say why:

- dilated: XLA's, by `css_jax.models.layers.convolve`.
- space to batch: undilated on the interleaved grids, the rearrangements there and back included,
  which the network has once a layer and not once a convolution.
- products: `css_jax.models.atrous.products`, the map cut into zones.
- crops: the crop of the map that a tap meets times that tap, added to its window of the output.
- one product: the whole map times all nine taps, then nine shifted results are added up.
- torch: cuDNN or oneDNN, channels last, where torch is installed and sees the same device.

An estimate for the three rates of the paper's ASPP (16 x 64 x 64 x 2048 to 256, bfloat16): every
product has its operands and its result in memory, what is between products is one pass, and the
time is that of the arithmetic at 790 TFLOP/s plus that of the bytes at 4.8 TB/s.

|                 | dilated | products | crops | one product |
|-----------------|--------:|---------:|------:|------------:|
| TFLOP, forward  |    1.86 |     1.06 |  1.06 |        1.86 |
| GB, forward     |     0.9 |      4.6 |  14.7 |         4.5 |
| ms, forward     |     2.5 |      2.3 |   4.4 |         3.3 |
| TFLOP, backward |    3.71 |     2.13 |  2.13 |        3.71 |
| GB, backward    |     2.6 |      6.9 |  27.9 |         5.3 |
| ms, backward    |     5.2 |      4.1 |   8.5 |         5.8 |

Crops copy the wide side, 2048 channels, once a tap, products once a rate, one product not at all;
what is shifted by the latter two is the narrow side. The first column is a convolution that gets as
much out of the chip as a matrix product.

All forms of one convolution are timed in turns, of the network each pair of forms with the dilated
one; 'to dilated' and 'to undilated' are ratios of one such run. TFLOP/s count all nine taps
everywhere, so that they compare as the times do. 'difference' is the largest one of the output to
the dilated form's, by its largest value.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from css_jax import models
from css_jax.models import atrous, layers

try:
    import torch
except ImportError:
    torch = None

# Batch, side of the map; layer -> (channels in, channels out, dilations).
SHAPES = {'real': (16, 64), 'small': (2, 16)}
LAYERS = {
    'real': {
        'aspp': (2048, 256, (12, 24, 36)),
        'layer4': (512, 512, (2, 4)),
        'layer3': (256, 256, (2,)),
    },
    # The rates are the paper's share of the map.
    'small': {'aspp': (64, 16, (3, 6, 9)), 'layer4': (16, 16, (2, 4))},
}
# Backbone, width, channels of the representation, type, batch, side of the images. The small ones
# are the quickstart's and one of the paper's width, which comes last.
NETWORKS = {
    'real': [('resnet101', 1.0, 256, 'bfloat16', 16, 512)],
    'small': [
        ('resnet18', 0.25, 64, 'float32', 8, 64),
        ('resnet50', 1.0, 256, 'float32', 2, 128),
    ],
}
SECONDS = {'real': 5, 'small': 1}  # that a set of forms is timed for
UNKNOWN = {  # of a network that did not fit
    'forward ms': 'out of memory',
    'to dilated': float('nan'),
    'with backward ms': float('nan'),
    'to dilated with backward': float('nan'),
    'compile s': float('nan'),
    'difference': '-',
}


def space_to_batch(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The dilated convolution of x [B, H, W, C] on its grids, there and back."""
    x = atrous.regrid(x, 1, dilation)
    return atrous.regrid(layers.convolve(x, kernel), dilation, 1)


def crops(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The dilated convolution of x [B, H, W, C] as one product a tap with the crop it meets."""
    zero, y = jnp.zeros((), jnp.float32), 0.0
    for tap, shift in _shifts(x.shape, dilation):
        crop = jax.lax.pad(x, jnp.zeros((), x.dtype), [(min(0, n), min(0, -n), 0) for n in shift])
        part = jnp.einsum('bhwc,cf->bhwf', crop, kernel[tap], preferred_element_type=zero.dtype)
        y += jax.lax.pad(part, zero, [(max(0, n), max(0, -n), 0) for n in shift])
    return y.astype(x.dtype)


def one_product(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The dilated convolution of x [B, H, W, C] as one matrix product and nine additions."""
    zero, y = jnp.zeros((), jnp.float32), 0.0
    taps = jnp.einsum('bhwc,ijcf->bhwijf', x, kernel, preferred_element_type=zero.dtype)
    for (i, j), shift in _shifts(x.shape, dilation):
        y += jax.lax.pad(taps[:, :, :, i, j], zero, [(n, -n, 0) for n in shift])
    return y.astype(x.dtype)


def _shifts(shape: tuple[int, ...], dilation: int) -> Iterator[tuple[tuple, tuple]]:
    """Gives for each tap that meets the map its place, and how far each axis's pixels move."""
    for i in range(3):
        for j in range(3):
            down, right = (1 - i) * dilation, (1 - j) * dilation
            if abs(down) < shape[1] and abs(right) < shape[2]:
                yield (i, j), (0, down, right, 0)


WAYS = {
    'dilated': lambda x, kernel, dilation: layers.convolve(x, kernel, 1, dilation),
    'undilated': lambda x, kernel, dilation: layers.convolve(x, kernel),
    'space to batch': space_to_batch,
    'products': atrous.products,
    'crops': crops,
    'one product': one_product,
}


def forward_backward(function: Callable) -> Callable:
    """Gives (cotangent, *arrays) -> (output, gradients)."""

    def f(cotangent, *arrays):
        y, backward = jax.vjp(function, *arrays)
        return y, backward(cotangent)

    return f


def difference(y: Any, expected: Any) -> float:
    """Gives the largest difference of two trees of arrays, relative to each array's largest."""

    def one(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        return float(np.abs(a - b).max() / np.abs(b).max())

    return max(jax.tree.leaves(jax.tree.map(one, y, expected)))


def in_turns(runs: Mapping[str, Callable], seconds: float) -> dict[str, float]:
    """Times what the device's memory suffices for, see `timing.interleaved`."""

    def fits(run: Callable) -> bool:
        return timing.attempt(lambda: (jax.block_until_ready(run()), True)) is not None

    fitting = {name: run for name, run in runs.items() if fits(run)}
    return timing.interleaved(fitting, seconds)


def networks(
    size: str, backbone: str, width: float, dim: int, dtype: str, batch: int, side: int
) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row for each pair of forms, of the backbone's layers and of ASPP."""
    images = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    config = {'backbone': backbone, 'width': width, 'representation_dim': dim, 'dtype': dtype}
    direct = models.build(
        config | {'stem': 'conv7', 'output_stride': 8, 'atrous': 'dilated'}, num_classes=21
    )
    variables = jax.jit(direct.init)(jax.random.key(1), images)

    def programs(layers_form: str, aspp_form: str) -> tuple[Callable, Callable, float]:
        inner = direct.backbone.clone(atrous=layers_form)
        module = direct.clone(backbone=inner, atrous=aspp_form)

        def apply(params):
            given = variables | {'params': params}
            return module.apply(given, images, True, mutable=['batch_stats'])[0]

        forward, account = timing.compiled(jax.jit(apply), variables['params'])
        both = jax.jit(forward_backward(apply))
        both, more = timing.compiled(both, forward(variables['params']), variables['params'])
        return forward, both, account['compile s'] + more['compile s']

    params = variables['params']
    caption = f'{backbone}, width {width:g}, output stride 8, {batch} x {side} x {side}, {dtype}'
    seconds = 3 * SECONDS[size]
    pairs = [(a, b) for a in atrous.FORMS for b in atrous.FORMS]
    reference = pairs[0]  # dilated throughout
    first, expected = None, None
    for pair in pairs:
        found = timing.attempt(programs, *pair)
        row = {'layers': pair[0], 'ASPP': atrous.FORMS[pair[1]].pyramid}
        if found is None:
            yield f'The network: {caption}', row | UNKNOWN
            continue
        first = found if pair == reference else first
        forms = {pair: found} | ({reference: first} if first else {})
        forward = {name: partial(f, params) for name, (f, _, _) in forms.items()}
        output = jax.device_get(forward[pair]())
        expected = output if pair == reference else expected
        cotangent = jax.tree.map(jnp.asarray, output)
        both = {name: partial(f, cotangent, params) for name, (_, f, _) in forms.items()}
        times = [in_turns(runs, seconds) for runs in (forward, both)]
        to_forward, to_both = (timing_of(spent, pair, reference) for spent in times)
        row |= {
            'forward ms': to_forward[0],
            'to dilated': to_forward[1],
            'with backward ms': to_both[0],
            'to dilated with backward': to_both[1],
            'compile s': found[2],
            'difference': f'{difference(output, expected):.0e}' if first else '-',
        }
        yield f'The network: {caption}', row


def timing_of(times: Mapping[Any, float], name: Any, reference: Any) -> tuple[float, float]:
    """Gives milliseconds and their ratio to the reference's, NaN for what did not run."""
    spent = times.get(name, float('nan'))
    return spent, spent / times.get(reference, float('nan'))


def same_device() -> str | None:
    """Gives torch's name for the device that jax runs on, None where torch does not see it."""
    platform = jax.devices()[0].platform
    if torch is None or platform not in ('cpu', 'gpu'):
        return None
    return 'cpu' if platform == 'cpu' else 'cuda' if torch.cuda.is_available() else None


def torch_runs(
    device: str, dilation: int, x: jax.Array, kernel: jax.Array
) -> tuple[Callable, Callable, np.ndarray]:
    """The convolution by torch, TF32 for float32 as jax's default: forward, both, the output."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True

    def tensor(array: jax.Array, axes: tuple[int, ...]) -> 'torch.Tensor':
        values = torch.from_numpy(np.array(array, np.float32).transpose(axes))
        values = values.to(device, getattr(torch, array.dtype.name))
        return values.contiguous(memory_format=torch.channels_last).requires_grad_()

    images, weights = tensor(x, (0, 3, 1, 2)), tensor(kernel, (3, 2, 0, 1))

    def convolved():
        return torch.nn.functional.conv2d(images, weights, padding=dilation, dilation=dilation)

    y = convolved().detach()

    def wait():
        if device == 'cuda':
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            convolved()
        wait()

    def both():
        torch.autograd.grad(convolved(), (images, weights), y)
        wait()

    return forward, both, y.float().cpu().numpy().transpose(0, 2, 3, 1)


def convolution(
    size: str, layer: str, channels: int, features: int, dilation: int, dtype: str
) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row for each way to compute one convolution."""
    batch, side = SHAPES[size]
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, channels, features), dtype)
    kernel /= (9 * channels) ** 0.5
    expected = layers.convolve(x, kernel, 1, dilation)

    forward, both, outputs = {}, {}, {}
    for way, function in WAYS.items():
        if way == 'space to batch' and side % dilation:
            continue
        function = partial(function, dilation=dilation)
        forward[way] = partial(jax.jit(function), x, kernel)
        both[way] = partial(jax.jit(forward_backward(function)), expected, x, kernel)
        outputs[way] = jax.device_get(timing.attempt(forward[way]))
    if device := same_device():
        forward['torch'], both['torch'], outputs['torch'] = torch_runs(device, dilation, x, kernel)
    times = [in_turns(runs, SECONDS[size]) for runs in (forward, both)]

    tflop = 2 * 9 * batch * side**2 * channels * features / 1e12
    for way in forward:
        row = {
            'layer': f'{layer}, {channels} to {features}, {dtype}',
            'dilation': dilation if way != 'undilated' else 1,
            'way': way,
        }
        for part, spent, passes in zip(('', ' with backward'), times, (1, 3), strict=True):
            ms, ratio = timing_of(spent, way, 'dilated')
            row |= {
                f'ms{part}': ms,
                f'TFLOP/s{part}': passes * tflop / ms * 1e3,
                f'to dilated{part}': ratio,
                f'to undilated{part}': timing_of(spent, way, 'undilated')[1],
            }
        wrong = outputs[way] is None or way == 'undilated'
        row['difference'] = '-' if wrong else f'{difference(outputs[way], expected):.0e}'
        caption = f'Maps of {batch} x {side} x {side}, kernels 3x3'
        if torch is not None:
            caption += f'; torch {torch.__version__}'
            caption += '' if device else ' does not see the device'
        yield caption, row


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives the rows of the first network, of all convolutions, of further networks."""
    first, *others = NETWORKS[size]
    yield from networks(size, *first)
    for dtype in ('float32', 'bfloat16'):
        for layer, (channels, features, dilations) in LAYERS[size].items():
            for dilation in dilations:
                yield from convolution(size, layer, channels, features, dilation, dtype)
    for network in others:
        yield from networks(size, *network)


if __name__ == '__main__':
    timing.main('Dilated convolutions', rows)
