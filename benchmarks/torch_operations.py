"""Pairs for `benchmarks.against_torch`: single operations of the network and the step."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import Array
from torch import Tensor

from benchmarks.torch_pairs import Pair, compiled, tensors
from css_jax.models import layers
from css_jax.ops import color, draws, resize

# Convolutions of ResNet-101 on 4 images of 129 x 129: map, channels in and out, kernel, dilation.
CONVOLUTIONS = {
    '1x1, 256 to 1,024': (17, 256, 1024, 1, 1),
    '3x3, 256 to 256': (17, 256, 256, 3, 1),
    '3x3, 512 to 512, dilation 4': (17, 512, 512, 3, 4),
    '3x3, 2,048 to 256, dilation 12': (17, 2048, 256, 3, 12),
}


def operations(size: str) -> Iterator[Pair]:
    """Gives convolutions with either gradient, and operations that move memory; one size."""
    del size
    rng = np.random.default_rng(0)
    for name, setting in CONVOLUTIONS.items():
        yield from convolution(name, rng, *setting)
    maps = rng.standard_normal((4, 33, 33, 256), np.float32)
    yield simple('BatchNorm of the batch, ReLU; [4, 33, 33, 256]', _norm, _torch_norm, maps)
    yield simple('the mean over all pixels; [4, 33, 33, 256]', _mean, _torch_mean, maps)
    logits = rng.standard_normal((4, 33, 33, 21), np.float32)
    yield simple('bilinear, 33 to 129; 21 channels', _enlarge, _torch_enlarge, logits)
    scores = rng.standard_normal((4, 129, 129, 21), np.float32)
    yield simple('log-softmax; [4, 129, 129, 21]', jax.nn.log_softmax, _torch_log_softmax, scores)
    words = rng.integers(0, 2**30, 2**17).astype(np.int32)
    yield simple('sort, 131,072 integers', jnp.sort, lambda x: torch.sort(x).values, words)
    yield blur(rng)


def convolution(
    name: str, rng: np.random.Generator, side: int, into: int, out: int, kernel: int, dilation: int
) -> Iterator[Pair]:
    """Gives a convolution's result and its gradient by either argument."""
    x = rng.standard_normal((4, side, side, into), np.float32)
    w = rng.standard_normal((kernel, kernel, into, out), np.float32) / math.sqrt(kernel**2 * into)
    g = rng.standard_normal((4, side, side, out), np.float32)
    padding = dilation * (kernel // 2)
    convolve = partial(layers.convolve, dilation=dilation)

    def gradient(argument: int) -> Callable[..., Array]:
        def f(x, w, g):
            return jax.vjp(convolve, x, w)[1](g)[argument]

        return f

    def theirs(part: int, layout: str) -> Callable[[], dict[str, Tensor]]:
        arrays = x, w.transpose(3, 0, 1, 2), g  # [out, k, k, in] becomes [out, in, k, k]
        image, weight, cotangent = (tensors(array, layout) for array in arrays)
        mask = [part == 1, part == 2, False]

        def run():
            if part == 0:
                return {'y': F.conv2d(image, weight, None, 1, padding, dilation)}
            found = torch.ops.aten.convolution_backward(
                cotangent, image, weight, None, [1, 1], [padding] * 2, [dilation] * 2, False,
                [0, 0], 1, mask,
            )  # fmt: skip
            y = found[part - 1]
            return {'y': y if part == 1 else y.permute(2, 3, 1, 0).flatten(0, 1)}

        return run

    functions = {
        'forward': lambda x, w, g: {'y': convolve(x, w)},
        "the input's gradient": lambda x, w, g: {'y': gradient(0)(x, w, g)},
        "the kernel's gradient": lambda x, w, g: {'y': gradient(1)(x, w, g).reshape(-1, into, out)},
    }
    for part, (what, function) in enumerate(functions.items()):
        yield Pair(f'{name}: {what}', compiled(function, x, w, g), partial(theirs, part))


def simple(name: str, ours: Callable, theirs: Callable, x: np.ndarray) -> Pair:
    """Gives a function of one array."""

    def run(layout: str) -> Callable[[], dict[str, Tensor]]:
        tensor = tensors(x, layout)
        return lambda: {'y': theirs(tensor)}

    return Pair(name, compiled(lambda x: {'y': ours(x)}, x), run)


def blur(rng: np.random.Generator) -> Pair:
    """Gives the blur of all images, each with its own width."""
    images = rng.uniform(0, 1, (4, 129, 129, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(images))
    sigma, radius = (0.15, 1.15), 5
    deviation = draws.between(draws.uniform(keys, 'blur', 2)[:, 1:], sigma)

    def ours(keys, images):
        return {'y': color.blur(keys, images, prob=1.0, sigma=sigma)}

    def theirs(layout: str) -> Callable[[], dict[str, Tensor]]:
        x, widths = tensors(images, layout), tensors(deviation)

        def run():
            taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / widths) ** 2)
            taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(3, 0)
            y = F.pad(x, (radius,) * 4, mode='reflect').flatten(0, 1)[None]
            y = F.conv2d(y, taps[:, None, :, None], groups=len(taps))
            y = F.conv2d(y, taps[:, None, None, :], groups=len(taps))
            return {'y': y.view(x.shape)}

        return run

    return Pair('blur, 11 taps; [4, 129, 129, 3]', compiled(ours, keys, images), theirs)


def _norm(x: Array) -> Array:
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5))


def _torch_norm(x: Tensor) -> Tensor:
    return F.relu_(F.batch_norm(x, None, None, training=True, eps=1e-5))


def _mean(x: Array) -> Array:
    return x.mean((0, 1, 2))


def _torch_mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3))


def _enlarge(x: Array) -> Array:
    return resize.bilinear(x, (129, 129))


def _torch_enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, (129, 129), mode='bilinear', align_corners=True)


def _torch_log_softmax(x: Tensor) -> Tensor:
    return x.log_softmax(1)
