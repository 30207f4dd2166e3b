"""ResNet-18/34/50/101 (He et al., arXiv 1512.03385) with dilation in place of late strides."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.models import atrous, remat
from css_jax.models.layers import (
    BatchNorm,
    Conv,
    Train,
    channels,
    check_choice,
    he_normal,
    max_pool,
)

FIRST_DILATIONS = ('auto', 'previous', 'own')


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; [B, H, W, C] -> [B, H/stride, W/stride, planes].

    `dilations` are that of the convolution that has the stride and that of the one after it,
    `last_scale` is what the last BatchNorm's scale starts with.
    """

    planes: int
    stride: int
    dilations: tuple[int, int]
    conv: Any
    norm: Any
    last_scale: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Apply the block."""
        y = self.conv(self.planes, 3, self.stride, self.dilations[0], name='conv1')(x)
        y = nn.relu(self.norm(name='bn1')(y, train))
        y = self.conv(self.planes, 3, 1, self.dilations[1], name='conv2')(y)
        y = self.norm(name='bn2', scale_init=self.last_scale)(y, train)
        return nn.relu(y + _shortcut(self, x, y.shape, train))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a shortcut; [B, H, W, C] -> [B, H/stride, W/stride, 4 planes].

    `dilations` and `last_scale` as for BasicBlock; of the dilations only the first is used: no 3x3
    follows the one with the stride.
    """

    planes: int
    stride: int
    dilations: tuple[int, int]
    conv: Any
    norm: Any
    last_scale: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Apply the block."""
        y = nn.relu(self.norm(name='bn1')(self.conv(self.planes, 1, name='conv1')(x), train))
        y = self.conv(self.planes, 3, self.stride, self.dilations[0], name='conv2')(y)
        y = nn.relu(self.norm(name='bn2')(y, train))
        y = self.conv(4 * self.planes, 1, name='conv3')(y)
        y = self.norm(name='bn3', scale_init=self.last_scale)(y, train)
        return nn.relu(y + _shortcut(self, x, y.shape, train))


def _shortcut(block: nn.Module, x: jax.Array, shape: Sequence[int], train: Train) -> jax.Array:
    """Return x itself or, where channels or stride change, its 1x1 projection to `shape`."""
    if x.shape[-1] == shape[-1] and block.stride == 1:
        return x
    x = block.conv(shape[-1], 1, block.stride, name='downsample_conv')(x)
    return block.norm(name='downsample_bn')(x, train)


class ResNet(nn.Module):
    """The backbone; images [B, H, W, 3] -> features by name.

    Attributes:
        block: BasicBlock or Bottleneck.
        depths: number of blocks of the four layers.
        stem: 'conv7', torchvision's 7x7; 'deep', three 3x3.
        output_stride: 8 or 16, of the last two layers.
        width: multiplies every channel count.
        stem_ceil_mode: the deep stem's max-pool rounds its output's size up.
        first_dilation: of a layer that gives up its stride, the dilation of its first block:
            'previous', that of the layer before; 'own', that of its other blocks; 'auto', 'own'
            with the deep stem.
        multi_grid: multiplies the dilations of layer4's blocks, one number a block; (): none.
        atrous: form of the dilated layers, see `css_jax.models.atrous.forms`.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`.
        dtype: of the computation.
        axis_name: of the devices whose BatchNorm statistics are shared.
    """

    block: Any
    depths: tuple[int, int, int, int]
    stem: str = 'conv7'
    output_stride: int = 8
    width: float = 1.0
    stem_ceil_mode: bool = False
    first_dilation: str = 'auto'
    multi_grid: tuple[int, ...] = ()
    atrous: str = 'auto'
    remat: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> dict[str, jax.Array]:
        """Apply the backbone.

        Returns:
            'stride4': layer1's output [B, h, w, c]; 'layer3' and 'last': layer3's and layer4's, at
            the output stride [B, h', w', C].
        """
        conv = partial(Conv, kernel_init=he_normal, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        images = x.shape[1:3]

        def stem(module, x):
            return module._stem(x, train, conv, norm)

        x = remat.run(self, 'stem', stem, x)
        strides, dilated = self._strides_and_dilations()
        size = [-(-side // math.prod(strides)) for side in x.shape[1:3]]
        multiple = math.lcm(*(d for layer in dilated for pair in layer for d in pair))
        regrids = atrous.regrids(atrous.forms(self.atrous).layers, size, multiple, images)
        layout = 1
        for k, layer in enumerate(dilated):
            blocks = []
            for i, dilations in enumerate(layer):
                # A second convolution of another dilation stays dilated within the first's layout.
                before, layout = layout, dilations[0] if regrids else 1
                block = partial(
                    self.block,
                    planes=channels(64 * 2**k, self.width),
                    stride=strides[k] if i == 0 else 1,
                    dilations=tuple(dilation // layout for dilation in dilations),
                    conv=conv,
                    norm=norm,
                    name=f'layer{k + 1}_{i}',
                )
                blocks.append(atrous.within(block, before, layout))
            x = remat.chain(self, f'layer{k + 1}', blocks, x, train)
            if k == 0:
                features = {'stride4': x}
            if k == 2:
                features['layer3'] = atrous.regrid(x, layout, 1)
        return features | {'last': atrous.regrid(x, layout, 1)}

    def _stem(self, x: jax.Array, train: Train, conv: Any, norm: Any) -> jax.Array:
        """[B, H, W, 3] -> [B, H/4, W/4, 64 (conv7) or 128 (deep)]."""
        if self.stem == 'conv7':
            x = conv(channels(64, self.width), 7, 2, name='conv1')(x)
        else:
            x = conv(channels(64, self.width), 3, 2, name='conv1_0')(x)
            x = nn.relu(norm(name='bn1_1')(x, train))
            x = conv(channels(64, self.width), 3, name='conv1_3')(x)
            x = nn.relu(norm(name='bn1_4')(x, train))
            x = conv(channels(128, self.width), 3, name='conv1_6')(x)
        x = nn.relu(norm(name='bn1')(x, train))
        # Rounding up is one more row of padding below where the size is even (512 -> 256 -> 129).
        ceil = self.stem == 'deep' and self.stem_ceil_mode
        padding = [(1, 1 + (ceil and size % 2 == 0)) for size in x.shape[1:3]]
        return max_pool(x, padding)

    def _strides_and_dilations(self) -> tuple[list[int], list[list[tuple[int, int]]]]:
        """Return per layer the stride, and of each of its blocks the pair of dilations.

        A layer that gives up its stride dilates instead, from behind the convolution that had it:
        that one keeps the dilation of the layer before (torchvision; thus the features at stride 8,
        every second row and column taken, are those at stride 16). The reference's deep-stem
        network dilates that one too. Multi-grid (Chen et al., arXiv 1706.05587) multiplies what
        layer4's blocks then have.
        """
        strides = [1, 2, 2, 1] if self.output_stride == 16 else [1, 2, 1, 1]
        others = [1, 1, 1, 2] if self.output_stride == 16 else [1, 1, 2, 4]
        own = self.first_dilation == 'own' or (self.first_dilation, self.stem) == ('auto', 'deep')
        firsts = others if own else [1, 1, 1, others[2]]
        pairs = [
            [(first if i == 0 else other, other) for i in range(depth)]
            for first, other, depth in zip(firsts, others, self.depths, strict=True)
        ]
        if self.multi_grid:
            pairs[3] = [
                (first * grid, other * grid)
                for (first, other), grid in zip(pairs[3], self.multi_grid, strict=True)
            ]
        return strides, pairs


def build(
    block: Any, depths: tuple[int, int, int, int], config: Any, axis_name: str | None
) -> ResNet:
    """Make the ResNet of these blocks that `config` (config.model) describes.

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks of the four layers.
        config: has stem, output_stride, width, dtype; may have stem_ceil_mode, first_dilation,
            multi_grid, atrous, remat.
        axis_name: of the devices whose BatchNorm statistics are shared, or None.

    Raises:
        ValueError: a stem, an output stride, a first dilation or a stage of remat that there is
            not; a multi-grid of another number of blocks than layer4's.
    """
    check_choice('stem', config.stem, ('conv7', 'deep'))
    check_choice('output_stride', config.output_stride, (8, 16))
    first_dilation = getattr(config, 'first_dilation', 'auto')
    check_choice('first_dilation', first_dilation, FIRST_DILATIONS)
    multi_grid = tuple(getattr(config, 'multi_grid', ()))
    if multi_grid and len(multi_grid) != depths[3]:
        raise ValueError(
            f'multi_grid is {multi_grid}; expected {depths[3]} numbers, one for each block of '
            'layer4, or ()'
        )
    return ResNet(
        block=block,
        depths=depths,
        stem=config.stem,
        output_stride=config.output_stride,
        width=config.width,
        stem_ceil_mode=getattr(config, 'stem_ceil_mode', False),
        first_dilation=first_dilation,
        multi_grid=multi_grid,
        atrous=getattr(config, 'atrous', 'auto'),
        remat=remat.stages(getattr(config, 'remat', ())),
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
