"""DeepLabV3+ in PyTorch as a function of its arrays, to hold ours against.

The networks of css_jax/models, written as a PyTorch user would: NCHW, native operations, ReLU in
place. Arrays have our paths ('params/aspp/conv0/kernel'), kernels torch's order of axes. Depths,
kinds of block, kernel sizes and widths are read from them; strides and rates are written down here.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Entries = dict[str, Tensor]  # path -> parameter or running statistic
HEADS = ('logits', 'representation')
MOMENTUM = 0.1
# Blocks (the first has the number that its name has) at which a network for classification strides.
STRIDED = {'mobilenet_v1': (2, 4, 6, 12), 'efficientnet_lite0': (1, 3, 5, 11)}


class Network(NamedTuple):
    """A network as its parts take it.

    Attributes:
        entries: its arrays.
        train: BatchNorm normalises by the batch and moves its running statistics, in place.
    """

    entries: Entries
    train: bool


def forward(
    entries: Entries, images: Tensor, backbone: str, output_stride: int, train: bool = True
) -> dict:
    """Apply the network (ResNets: 7x7 stem).

    Args:
        entries: of the network.
        images: [B, 3, H, W] float32, normalised.
        backbone: a key of STRIDED, or a ResNet.
        output_stride: 8 or 16.
        train: see `Network`.

    Returns:
        Head, of those that the entries have -> [B, channels, h, w] at a quarter of the images'
        size, rounded up.
    """
    net = Network(entries, train)
    run = _mobile if backbone in STRIDED else _resnet
    low_level, x = run(net, images, backbone, output_stride)
    x = _aspp(net, x, 96 // output_stride)
    x = F.interpolate(x, low_level.shape[2:], mode='bilinear', align_corners=True)
    low_level = _conv(net, 'low_level_conv', low_level)
    x = torch.cat([F.relu_(_norm(net, 'low_level_bn', low_level)), x], 1)
    return {
        head: _head(net, f'head_{head}', x)
        for head in HEADS
        if f'params/head_{head}/out/kernel' in entries
    }


def parameters(entries: Entries) -> Entries:
    """Return the entries that are trained."""
    return {path: value for path, value in entries.items() if path.startswith('params/')}


def _conv(net: Network, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    kernel = net.entries[f'params/{name}/kernel']
    padding = dilation * (kernel.shape[-1] // 2)
    return F.conv2d(x, kernel, net.entries.get(f'params/{name}/bias'), stride, padding, dilation)


def _norm(net: Network, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, var = (net.entries[f'batch_stats/{name}/{part}'] for part in ('mean', 'var'))
    scale, bias = (net.entries[f'params/{name}/{part}'] for part in ('scale', 'bias'))
    return F.batch_norm(x, mean, var, scale, bias, net.train, MOMENTUM, eps)


def _resnet(
    net: Network, images: Tensor, backbone: str, output_stride: int
) -> tuple[Tensor, Tensor]:
    """Return layer1's and layer4's outputs."""
    del backbone  # the blocks' names say all
    x = _conv(net, 'backbone/conv1', images, stride=2)
    x = F.max_pool2d(F.relu_(_norm(net, 'backbone/bn1', x)), 3, 2, 1)
    strides, firsts, others = {
        8: ((1, 2, 1, 1), (1, 1, 1, 2), (1, 1, 2, 4)),
        16: ((1, 2, 2, 1), (1, 1, 1, 1), (1, 1, 1, 2)),
    }[output_stride]
    low_level = x
    for k in range(4):
        for i in range(_count(net, rf'/layer{k + 1}_(\d+)/')):
            stride, first = (strides[k], firsts[k]) if i == 0 else (1, others[k])
            name = f'backbone/layer{k + 1}_{i}'
            x = _residual(net, name, x, stride, (first, others[k]))
        low_level = x if k == 0 else low_level
    return low_level, x


def _count(net: Network, pattern: str) -> int:
    return len({found[1] for path in net.entries if (found := re.search(pattern, path))})


def _residual(
    net: Network, name: str, x: Tensor, stride: int, dilations: tuple[int, int]
) -> Tensor:
    """Bottleneck where there is a conv3, else basic block; see `css_jax.models.resnet`."""

    def part(n: int, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        return _norm(net, f'{name}/bn{n}', _conv(net, f'{name}/conv{n}', x, stride, dilation))

    if f'params/{name}/conv3/kernel' in net.entries:
        y = F.relu_(part(1, x))
        y = part(3, F.relu_(part(2, y, stride, dilations[0])))
    else:
        y = part(2, F.relu_(part(1, x, stride, dilations[0])), 1, dilations[1])
    if f'params/{name}/downsample_conv/kernel' in net.entries:
        x = _conv(net, f'{name}/downsample_conv', x, stride)
        x = _norm(net, f'{name}/downsample_bn', x)
    return F.relu_(y + x)


def _relu6(x: Tensor) -> Tensor:
    return F.hardtanh_(x, 0.0, 6.0)


def _mobile(
    net: Network, images: Tensor, backbone: str, output_stride: int
) -> tuple[Tensor, Tensor]:
    """Return the outputs at stride 4 and of the last block."""
    strided = STRIDED[backbone]
    first = 1 if backbone == 'mobilenet_v1' else 0
    x = _same(net, 'backbone/conv1' if first else 'backbone/conv_stem', images, 2, 1)
    reached, dilation, low_level = 2, 1, x
    for i in range(first, first + _count(net, r'/block(\d+)/')):
        stride = 2 if i in strided else 1
        keeps = reached < output_stride
        if stride == 2 and reached == 4:
            low_level = x  # what comes before the next stride, kept or given up
        x = _block(net, f'backbone/block{i}', x, stride, keeps, dilation)
        reached, dilation = (reached * stride, 1) if keeps else (reached, dilation * stride)
    return low_level, x


def _block(net: Network, name: str, x: Tensor, stride: int, keeps: bool, dilation: int) -> Tensor:
    """MobileNet v1's block, or EfficientNet-Lite's where there is a 'project'."""
    y = x
    if f'params/{name}/expand/kernel' in net.entries:
        y = _same(net, f'{name}/expand', y, 1, 1)
    y = _same(net, f'{name}/depthwise', y, stride if keeps else 1, dilation)
    if f'params/{name}/pointwise/kernel' in net.entries:
        return _same(net, f'{name}/pointwise', y, 1, 1)
    y = _same(net, f'{name}/project', y, 1, 1, activation=lambda y: y)
    return x + y if stride == 1 and x.shape == y.shape else y


def _same(
    net: Network,
    name: str,
    x: Tensor,
    stride: int,
    dilation: int,
    activation: Callable[[Tensor], Tensor] = _relu6,
) -> Tensor:
    """Convolve with TensorFlow's padding, which is torch's unless there is a stride; normalise."""
    kernel = net.entries[f'params/{name}/kernel']
    groups = x.shape[1] // kernel.shape[1]
    reach, padding = (kernel.shape[-1] - 1) * dilation, (kernel.shape[-1] - 1) * dilation // 2
    if stride > 1:
        pads = [
            (total // 2, total - total // 2)
            for size in (x.shape[3], x.shape[2])
            for total in [max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)]
        ]
        x, padding = F.pad(x, (*pads[0], *pads[1])), 0
    x = F.conv2d(x, kernel, None, stride, padding, dilation, groups)
    return activation(_norm(net, f'{name}/bn', x, eps=1e-3))


def _aspp(net: Network, x: Tensor, rate: int) -> Tensor:
    def branch(conv: str, norm: str, x: Tensor, dilation: int = 1) -> Tensor:
        y = _conv(net, f'aspp/{conv}', x, dilation=dilation)
        return F.relu_(_norm(net, f'aspp/{norm}', y))

    branches = [branch(f'conv{i}', f'bn{i}', x, max(1, i * rate)) for i in range(4)]
    pooled = branch('pool_conv', 'pool_bn', x.mean((2, 3), keepdim=True))
    branches.append(pooled.expand_as(branches[0]))
    return branch('project_conv', 'project_bn', torch.cat(branches, 1))


def _head(net: Network, name: str, x: Tensor) -> Tensor:
    x = F.relu_(_norm(net, f'{name}/bn', _conv(net, f'{name}/conv', x)))
    return _conv(net, f'{name}/out', x)
