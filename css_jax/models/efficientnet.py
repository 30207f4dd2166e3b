"""EfficientNet-Lite (Tan and Le, arXiv 1905.11946) with dilation in place of late strides."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from css_jax.models import attributes, mobile
from css_jax.models.layers import Train

# (repeats, kernel size, stride of the first, expansion, features) of lite0's seven stages.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Variant -> what its channels and its repeats are multiplied by.
SCALES = {'lite0': (1.0, 1.0), 'lite1': (1.0, 1.1), 'lite2': (1.1, 1.2)}


class Block(nn.Module):
    """A 1x1 that expands, a depthwise one, a 1x1 without activation, around a shortcut or none.

    [B, H, W, C] -> [B, H/stride, W/stride, features].
    """

    features: int
    kernel_size: int
    expansion: int
    shortcut: bool
    stride: int
    dilation: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Apply the block."""
        y = x
        if self.expansion > 1:
            y = self.conv(self.expansion * x.shape[-1], 1, 1, 1, name='expand')(y, train)
        y = self.conv(0, self.kernel_size, self.stride, self.dilation, name='depthwise')(y, train)
        y = self.conv(self.features, 1, 1, 1, activation=False, name='project')(y, train)
        return x + y if self.shortcut else y


class EfficientNetLite(mobile.Backbone):
    """The backbone, see `mobile.Backbone`; its width rounds to multiples of 8, see `channels`.

    Of lite0 layer1 is blocks 1-2, layer2 3-4, layer3 5-10, layer4 11-15.

    Attributes:
        variant: a key of SCALES.
    """

    variant: str = 'lite0'

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> dict[str, jax.Array]:
        """Return 'stride4', 'layer3' and 'last', of lite0 the outputs of blocks 2, 10 and 15."""
        conv = self._conv()
        wide, deep = SCALES[self.variant]
        inputs = channels(32, self.width)  # no variant has a wider stem
        stem = partial(conv, inputs, 3, 2, 1, name='conv_stem')
        blocks = []
        for k, (repeats, kernel_size, first, expansion, count) in enumerate(STAGES):
            if 0 < k < len(STAGES) - 1:  # nor more blocks in the first stage and the last
                repeats = math.ceil(repeats * deep)
            features = channels(count, wide * self.width)
            for stride in (first, *(1,) * (repeats - 1)):
                block = partial(
                    Block,
                    features=features,
                    kernel_size=kernel_size,
                    expansion=expansion,
                    # A stride given up leaves the block without one, as the weights were trained.
                    shortcut=stride == 1 and inputs == features,
                    conv=conv,
                    name=f'block{len(blocks)}',
                )
                blocks.append((block, stride))
                inputs = features
        return self._features(stem, blocks, x, train)


def channels(count: int, width: float) -> int:
    """Return `count` times `width` as a multiple of 8: the nearest, not below 90% of it."""
    wanted = count * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def build(variant: str, config: Any, axis_name: str | None) -> EfficientNetLite:
    """Make the network that `config` (config.model) describes; see `attributes.fixed`.

    Args:
        variant: a key of SCALES.
        config: config.model.
        axis_name: of the devices whose BatchNorm statistics are shared, or None.
    """
    found = attributes.fixed(config, axis_name, 'EfficientNet-Lite', (8, 16, 32))
    return EfficientNetLite(variant=variant, output_stride=config.output_stride, **found)
