"""DeepLab's 3x3 convolutions at stride 8 by dilation, and exact rewrites of the dilated ones.

    python -m benchmarks.convolutions --size real --out benchmarks/results/convolutions.md

- xla: `css_jax.models.layers.convolve`, as the networks call it.
- space to batch: the map's d x d interleaved grids are images of their own, convolved undilated.
- matmul: one product with all nine taps of the kernel, then nine shifted maps are added up.
- torch: cuDNN or oneDNN, channels last, where torch is installed and sees the same device.

TFLOP/s count all nine taps everywhere, so that they compare as the times do; 'to undilated' is the
time over that of xla's undilated convolution of the same layer and type, in the same run.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from css_jax.models import layers

try:
    import torch
except ImportError:
    torch = None

# Batch, side of the map; layer -> (channels in, channels out, dilations).
SHAPES = {'real': (16, 64), 'small': (2, 16)}
LAYERS = {
    'real': {
        'aspp': (2048, 256, (1, 12, 24, 36)),
        'layer4': (512, 512, (1, 2, 4)),
        'layer3': (256, 256, (1, 2)),
    },
    'small': {'aspp': (64, 16, (1, 12, 24, 36)), 'layer4': (16, 16, (1, 2, 4))},
}


def space_to_batch(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The dilated convolution of x [B, H, W, C] as an undilated one of [B d d, H/d, W/d, C]."""
    batch, height, width, channels = x.shape
    d, rows, columns = dilation, -(-height // dilation), -(-width // dilation)
    x = jnp.pad(x, ((0, 0), (0, rows * d - height), (0, columns * d - width), (0, 0)))
    x = x.reshape(batch, rows, d, columns, d, channels).transpose(0, 2, 4, 1, 3, 5)
    y = layers.convolve(x.reshape(-1, rows, columns, channels), kernel)
    y = y.reshape(batch, d, d, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(batch, rows * d, columns * d, -1)[:, :height, :width]


def matmul(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The dilated convolution of x [B, H, W, C] as one matrix product and nine additions."""
    _, height, width, _ = x.shape
    taps = jnp.einsum('bhwc,ijcf->bhwijf', x, kernel)  # [B, H, W, 3, 3, features]
    zero = jnp.zeros((), x.dtype)
    total = 0.0
    for i in range(3):
        for j in range(3):
            down, right = (i - 1) * dilation, (j - 1) * dilation
            if abs(down) < height and abs(right) < width:
                # Pixel (y, x) takes the product at (y + down, x + right), beyond the edge 0.
                shift = ((0, 0, 0), (-down, down, 0), (-right, right, 0), (0, 0, 0))
                total += jax.lax.pad(taps[:, :, :, i, j], zero, shift)
    return total


WAYS = {
    'xla': lambda x, kernel, dilation: layers.convolve(x, kernel, 1, dilation),
    'space to batch': space_to_batch,
    'matmul': matmul,
}


def forward_backward(convolution: Callable) -> Callable:
    """Gives (x, kernel, cotangent) -> (output, gradients)."""

    def f(x, kernel, cotangent):
        y, backward = jax.vjp(convolution, x, kernel)
        return y, backward(cotangent)

    return f


def error(y: np.ndarray, x: jax.Array, kernel: jax.Array, dilation: int) -> float:
    """Gives the relative difference of an output to that of the 'xla' way."""
    wanted = np.asarray(layers.convolve(x, kernel, 1, dilation), np.float32)
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))


def jax_ms(way: str, dilation: int, x: jax.Array, kernel: jax.Array) -> tuple[float, float, float]:
    """Times one of WAYS: ms forward, ms forward and backward, `error`."""
    forward = jax.jit(partial(WAYS[way], dilation=dilation))
    both = jax.jit(forward_backward(forward))
    y = forward(x, kernel)
    return (
        timing.milliseconds(lambda: forward(x, kernel)),
        timing.milliseconds(lambda: both(x, kernel, y)),
        error(np.asarray(y, np.float32), x, kernel, dilation),
    )


def same_device() -> str | None:
    """Gives torch's name for the device that jax runs on, None where torch does not see it."""
    platform = jax.devices()[0].platform
    if torch is None or platform not in ('cpu', 'gpu'):
        return None
    return 'cpu' if platform == 'cpu' else 'cuda' if torch.cuda.is_available() else None


def torch_ms(
    device: str, dilation: int, x: jax.Array, kernel: jax.Array
) -> tuple[float, float, float]:
    """The same as `jax_ms` by torch, with TF32 for float32 as jax's default has it."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True

    def tensor(array: jax.Array, axes: tuple[int, ...]) -> 'torch.Tensor':
        values = torch.from_numpy(np.array(array, np.float32).transpose(axes))
        values = values.to(device, getattr(torch, array.dtype.name))
        return values.contiguous(memory_format=torch.channels_last).requires_grad_()

    images, weights = tensor(x, (0, 3, 1, 2)), tensor(kernel, (3, 2, 0, 1))

    def forward():
        return torch.nn.functional.conv2d(images, weights, padding=dilation, dilation=dilation)

    y = forward().detach()

    def wait(_):
        if device == 'cuda':
            torch.cuda.synchronize()

    with torch.no_grad():
        forward_ms = timing.milliseconds(forward, wait)
    return (
        forward_ms,
        timing.milliseconds(lambda: torch.autograd.grad(forward(), (images, weights), y), wait),
        error(y.float().cpu().numpy().transpose(0, 2, 3, 1), x, kernel, dilation),
    )


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a type, layer, dilation and way."""
    batch, side = SHAPES[size]
    ways = {way: partial(jax_ms, way) for way in WAYS}
    if device := same_device():
        ways['torch'] = partial(torch_ms, device)
    caption = f'Maps of {batch} x {side} x {side}, kernels 3x3'
    if torch is not None:
        caption += f'; torch {torch.__version__}{"" if device else " does not see the device"}'

    for dtype in ('float32', 'bfloat16'):
        for layer, (channels, features, dilations) in LAYERS[size].items():
            keys = jax.random.split(jax.random.key(0))
            x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
            kernel = jax.random.normal(keys[1], (3, 3, channels, features), dtype)
            kernel /= (9 * channels) ** 0.5
            tflop = 2 * 9 * batch * side**2 * channels * features / 1e12
            undilated = None
            for dilation in dilations:
                for way, measure in ways.items():
                    if dilation == 1 and way == 'space to batch':
                        continue
                    failed = (float('nan'),) * 3
                    times = timing.attempt(measure, dilation, x, kernel) or failed
                    undilated = undilated or times
                    forward, both, difference = times
                    yield (
                        caption,
                        {
                            'layer': f'{layer}, {channels} to {features}, {dtype}',
                            'dilation': dilation,
                            'way': way + (' (out of memory)' if times is failed else ''),
                            'forward ms': forward,
                            'TFLOP/s': tflop / forward * 1e3,
                            'to undilated': forward / undilated[0],
                            'with backward ms': both,
                            'TFLOP/s with backward': 3 * tflop / both * 1e3,
                            'to undilated with backward': both / undilated[1],
                            'difference': f'{difference:.0e}',
                        },
                    )


if __name__ == '__main__':
    timing.main('Dilated convolutions', rows)
