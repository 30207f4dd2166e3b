"""DeepLabV3+ in PyTorch as a function of a state dict, to hold ours against.

The network of css_jax/models, written as a PyTorch user would: NCHW, native operations, ReLU in
place. Depths, kind of block and widths are read from the entries, which have the names of the
reference program's checkpoints, see `css_jax.weights.reference.to_reference`.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

Entries = dict[str, Tensor]  # name -> parameter or running statistic
HEADS = {'logits': 'classifier', 'representation': 'representation'}


def forward(entries: Entries, images: Tensor, output_stride: int = 8) -> dict[str, Tensor]:
    """Applies the network (7x7 stem) in training mode; the running statistics move in place.

    Args:
        entries: of the network.
        images: [B, 3, H, W] float32, normalised.
        output_stride: 8 or 16.

    Returns:
        Head -> [B, channels, h, w] at a quarter of the images' size, rounded up.
    """
    x = _conv(entries, 'resnet_conv1', images, stride=2)
    x = F.max_pool2d(_norm_relu(entries, 'resnet_bn1', x), 3, 2, 1)
    strides, firsts, others = {
        8: ((1, 2, 1, 1), (1, 1, 1, 2), (1, 1, 2, 4)),
        16: ((1, 2, 2, 1), (1, 1, 1, 1), (1, 1, 1, 2)),
    }[output_stride]
    for k, depth in enumerate(_depths(entries)):
        for i in range(depth):
            stride, first = (strides[k], firsts[k]) if i == 0 else (1, others[k])
            x = _block(entries, f'resnet_layer{k + 1}.{i}', x, stride, (first, others[k]))
        if k == 0:
            low_level = x

    x = _aspp(entries, x, 96 // output_stride)
    x = F.interpolate(x, low_level.shape[2:], mode='bilinear', align_corners=True)
    low_level = _norm_relu(entries, 'project.1', _conv(entries, 'project.0', low_level))
    x = torch.cat([low_level, x], 1)
    return {head: _head(entries, name, x) for head, name in HEADS.items()}


def parameters(entries: Entries) -> Entries:
    """Gives the entries that are trained: all but the running statistics."""
    return {name: value for name, value in entries.items() if '.running_' not in name}


def _depths(entries: Entries) -> list[int]:
    found = {m.groups() for m in (re.match(r'resnet_layer(\d)\.(\d+)\.', n) for n in entries) if m}
    return [sum(layer == str(k) for layer, _ in found) for k in (1, 2, 3, 4)]


def _conv(entries: Entries, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    kernel = entries[f'{name}.weight']
    padding = dilation * (kernel.shape[-1] // 2)
    return F.conv2d(x, kernel, entries.get(f'{name}.bias'), stride, padding, dilation)


def _norm(entries: Entries, name: str, x: Tensor) -> Tensor:
    mean, var = entries[f'{name}.running_mean'], entries[f'{name}.running_var']
    scale, bias = entries[f'{name}.weight'], entries[f'{name}.bias']
    return F.batch_norm(x, mean, var, scale, bias, training=True, momentum=0.1, eps=1e-5)


def _norm_relu(entries: Entries, name: str, x: Tensor) -> Tensor:
    return F.relu_(_norm(entries, name, x))


def _block(
    entries: Entries, name: str, x: Tensor, stride: int, dilations: tuple[int, int]
) -> Tensor:
    """Bottleneck where there is a conv3, else basic block; see `css_jax.models.resnet`."""

    def conv(part: int, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        return _conv(entries, f'{name}.conv{part}', x, stride, dilation)

    if f'{name}.conv3.weight' in entries:
        y = _norm_relu(entries, f'{name}.bn1', conv(1, x))
        y = _norm_relu(entries, f'{name}.bn2', conv(2, y, stride, dilations[0]))
        y = _norm(entries, f'{name}.bn3', conv(3, y))
    else:
        y = _norm_relu(entries, f'{name}.bn1', conv(1, x, stride, dilations[0]))
        y = _norm(entries, f'{name}.bn2', conv(2, y, 1, dilations[1]))
    if f'{name}.downsample.0.weight' in entries:
        x = _norm(
            entries, f'{name}.downsample.1', _conv(entries, f'{name}.downsample.0', x, stride)
        )
    return F.relu_(y + x)


def _aspp(entries: Entries, x: Tensor, rate: int) -> Tensor:
    branches = [
        _norm_relu(
            entries,
            f'ASPP.convs.{i}.1',
            _conv(entries, f'ASPP.convs.{i}.0', x, dilation=max(1, i * rate)),
        )
        for i in range(4)
    ]
    pooled = _conv(entries, 'ASPP.convs.4.1', x.mean((2, 3), keepdim=True))
    pooled = _norm_relu(entries, 'ASPP.convs.4.2', pooled)
    branches.append(pooled.expand_as(branches[0]))
    return _norm_relu(
        entries, 'ASPP.project.1', _conv(entries, 'ASPP.project.0', torch.cat(branches, 1))
    )


def _head(entries: Entries, name: str, x: Tensor) -> Tensor:
    x = _norm_relu(entries, f'{name}.1', _conv(entries, f'{name}.0', x))
    return _conv(entries, f'{name}.3', x)
