"""DeepLabV3+ in PyTorch as a function of its arrays, to hold ours against.

The networks of css_jax/models, written as a PyTorch user would: NCHW, native operations, ReLU in
place. Arrays have our paths ('params/aspp/conv0/kernel'), kernels torch's order of axes. Depths,
kinds of block, kernel sizes and widths are read from them; strides and rates are written down here.
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Entries = dict[str, Tensor]  # path -> parameter or running statistic
HEADS = ('logits', 'representation')
MOMENTUM = 0.1
# Blocks (the first has the number that its name has) at which a network for classification strides.
STRIDED = {'mobilenet_v1': (2, 4, 6, 12), 'efficientnet_lite0': (1, 3, 5, 11)}


def forward(entries: Entries, images: Tensor, backbone: str, output_stride: int) -> dict:
    """Apply the network (ResNets: 7x7 stem) in training mode; running statistics move in place.

    Args:
        entries: of the network.
        images: [B, 3, H, W] float32, normalised.
        backbone: a key of STRIDED, or a ResNet.
        output_stride: 8 or 16.

    Returns:
        Head -> [B, channels, h, w] at a quarter of the images' size, rounded up.
    """
    run = _mobile if backbone in STRIDED else _resnet
    low_level, x = run(entries, images, backbone, output_stride)
    x = _aspp(entries, x, 96 // output_stride)
    x = F.interpolate(x, low_level.shape[2:], mode='bilinear', align_corners=True)
    low_level = _conv(entries, 'low_level_conv', low_level)
    x = torch.cat([F.relu_(_norm(entries, 'low_level_bn', low_level)), x], 1)
    return {head: _head(entries, f'head_{head}', x) for head in HEADS}


def parameters(entries: Entries) -> Entries:
    """Return the entries that are trained."""
    return {path: value for path, value in entries.items() if path.startswith('params/')}


def _conv(entries: Entries, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    kernel = entries[f'params/{name}/kernel']
    padding = dilation * (kernel.shape[-1] // 2)
    return F.conv2d(x, kernel, entries.get(f'params/{name}/bias'), stride, padding, dilation)


def _norm(entries: Entries, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, var = (entries[f'batch_stats/{name}/{part}'] for part in ('mean', 'var'))
    scale, bias = (entries[f'params/{name}/{part}'] for part in ('scale', 'bias'))
    return F.batch_norm(x, mean, var, scale, bias, training=True, momentum=MOMENTUM, eps=eps)


def _resnet(
    entries: Entries, images: Tensor, backbone: str, output_stride: int
) -> tuple[Tensor, Tensor]:
    """Return layer1's and layer4's outputs."""
    del backbone  # the blocks' names say all
    x = _conv(entries, 'backbone/conv1', images, stride=2)
    x = F.max_pool2d(F.relu_(_norm(entries, 'backbone/bn1', x)), 3, 2, 1)
    strides, firsts, others = {
        8: ((1, 2, 1, 1), (1, 1, 1, 2), (1, 1, 2, 4)),
        16: ((1, 2, 2, 1), (1, 1, 1, 1), (1, 1, 1, 2)),
    }[output_stride]
    low_level = x
    for k in range(4):
        for i in range(_count(entries, rf'/layer{k + 1}_(\d+)/')):
            stride, first = (strides[k], firsts[k]) if i == 0 else (1, others[k])
            name = f'backbone/layer{k + 1}_{i}'
            x = _residual(entries, name, x, stride, (first, others[k]))
        low_level = x if k == 0 else low_level
    return low_level, x


def _count(entries: Entries, pattern: str) -> int:
    return len({found[1] for path in entries if (found := re.search(pattern, path))})


def _residual(
    entries: Entries, name: str, x: Tensor, stride: int, dilations: tuple[int, int]
) -> Tensor:
    """Bottleneck where there is a conv3, else basic block; see `css_jax.models.resnet`."""

    def part(n: int, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        return _norm(
            entries, f'{name}/bn{n}', _conv(entries, f'{name}/conv{n}', x, stride, dilation)
        )

    if f'params/{name}/conv3/kernel' in entries:
        y = F.relu_(part(1, x))
        y = part(3, F.relu_(part(2, y, stride, dilations[0])))
    else:
        y = part(2, F.relu_(part(1, x, stride, dilations[0])), 1, dilations[1])
    if f'params/{name}/downsample_conv/kernel' in entries:
        x = _conv(entries, f'{name}/downsample_conv', x, stride)
        x = _norm(entries, f'{name}/downsample_bn', x)
    return F.relu_(y + x)


def _relu6(x: Tensor) -> Tensor:
    return F.hardtanh_(x, 0.0, 6.0)


def _mobile(
    entries: Entries, images: Tensor, backbone: str, output_stride: int
) -> tuple[Tensor, Tensor]:
    """Return the outputs at stride 4 and of the last block."""
    strided = STRIDED[backbone]
    first = 1 if backbone == 'mobilenet_v1' else 0
    x = _same(entries, 'backbone/conv1' if first else 'backbone/conv_stem', images, 2, 1)
    reached, dilation, low_level = 2, 1, x
    for i in range(first, first + _count(entries, r'/block(\d+)/')):
        stride = 2 if i in strided else 1
        keeps = reached < output_stride
        if stride == 2 and reached == 4:
            low_level = x  # what comes before the next stride, kept or given up
        x = _block(entries, f'backbone/block{i}', x, stride, keeps, dilation)
        reached, dilation = (reached * stride, 1) if keeps else (reached, dilation * stride)
    return low_level, x


def _block(
    entries: Entries, name: str, x: Tensor, stride: int, keeps: bool, dilation: int
) -> Tensor:
    """MobileNet v1's block, or EfficientNet-Lite's where there is a 'project'."""
    y = x
    if f'params/{name}/expand/kernel' in entries:
        y = _same(entries, f'{name}/expand', y, 1, 1)
    y = _same(entries, f'{name}/depthwise', y, stride if keeps else 1, dilation)
    if f'params/{name}/pointwise/kernel' in entries:
        return _same(entries, f'{name}/pointwise', y, 1, 1)
    y = _same(entries, f'{name}/project', y, 1, 1, activation=lambda y: y)
    return x + y if stride == 1 and x.shape == y.shape else y


def _same(
    entries: Entries,
    name: str,
    x: Tensor,
    stride: int,
    dilation: int,
    activation: Callable[[Tensor], Tensor] = _relu6,
) -> Tensor:
    """Convolve with TensorFlow's padding, which is torch's unless there is a stride; normalise."""
    kernel = entries[f'params/{name}/kernel']
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
    return activation(_norm(entries, f'{name}/bn', x, eps=1e-3))


def _aspp(entries: Entries, x: Tensor, rate: int) -> Tensor:
    def branch(conv: str, norm: str, x: Tensor, dilation: int = 1) -> Tensor:
        y = _conv(entries, f'aspp/{conv}', x, dilation=dilation)
        return F.relu_(_norm(entries, f'aspp/{norm}', y))

    branches = [branch(f'conv{i}', f'bn{i}', x, max(1, i * rate)) for i in range(4)]
    pooled = branch('pool_conv', 'pool_bn', x.mean((2, 3), keepdim=True))
    branches.append(pooled.expand_as(branches[0]))
    return branch('project_conv', 'project_bn', torch.cat(branches, 1))


def _head(entries: Entries, name: str, x: Tensor) -> Tensor:
    x = F.relu_(_norm(entries, f'{name}/bn', _conv(entries, f'{name}/conv', x)))
    return _conv(entries, f'{name}/out', x)
