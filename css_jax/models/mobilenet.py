"""MobileNet v1 (Howard et al., arXiv 1704.04861) with dilation in place of late strides."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from css_jax.models import attributes, mobile
from css_jax.models.layers import Train

# (features, stride) of the 13 depthwise separable blocks (Table 1).
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)


class Block(nn.Module):
    """A depthwise 3x3 and a 1x1; [B, H, W, C] -> [B, H/stride, W/stride, features]."""

    features: int
    stride: int
    dilation: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Apply the block."""
        x = self.conv(0, 3, self.stride, self.dilation, name='depthwise')(x, train)
        return self.conv(self.features, 1, 1, 1, name='pointwise')(x, train)


class MobileNetV1(mobile.Backbone):
    """The backbone, see `mobile.Backbone`; its width rounds down as Keras does, to at least 8.

    layer1 is blocks 2-3, layer2 4-5, layer3 6-11, layer4 12-13.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> dict[str, jax.Array]:
        """Return 'stride4', 'layer3' and 'last', the outputs of blocks 3, 11 and 13."""
        conv = self._conv()
        stem = partial(conv, self._channels(32), 3, 2, 1, name='conv1')
        blocks = [
            (partial(Block, features=self._channels(count), conv=conv, name=f'block{i}'), stride)
            for i, (count, stride) in enumerate(BLOCKS, start=1)
        ]
        return self._features(stem, blocks, x, train)

    def _channels(self, count: int) -> int:
        return max(8, int(count * self.width))


def build(config: Any, axis_name: str | None) -> MobileNetV1:
    """Make the network that `config` (config.model) describes; see `attributes.fixed`."""
    found = attributes.fixed(config, axis_name, 'MobileNet', (8, 16))
    return MobileNetV1(output_stride=config.output_stride, **found)
