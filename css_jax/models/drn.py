"""DRN-D-22/38/54/105 (Yu et al., arXiv 1705.09914): stride 8 by dilation, without max-pool."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.models import atrous, attributes, remat
from css_jax.models.layers import BatchNorm, Conv, Train, channels, he_normal

# (channels, stride, dilation) of the levels; 3 to 6 are residual blocks, the others a convolution.
LEVELS = (
    *((16, 1, 1), (16, 1, 1), (32, 2, 1)),
    *((64, 2, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4)),
    *((512, 1, 2), (512, 1, 1)),
)
RESIDUAL = (3, 4, 5, 6)
# Stage of `css_jax.models.remat` -> its levels; the stem is those before.
STAGES = {'layer1': (3,), 'layer2': (4,), 'layer3': (5,), 'layer4': (6, 7, 8)}


class Level(nn.Module):
    """A convolution, BatchNorm and ReLU; [B, H, W, C] -> [B, H/stride, W/stride, features]."""

    features: int
    kernel_size: int
    stride: int
    dilation: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Apply the level."""
        x = self.conv(self.features, self.kernel_size, self.stride, self.dilation, name='conv')(x)
        return nn.relu(self.norm(name='bn')(x, train))


class DRN(nn.Module):
    """The backbone; images [B, H, W, 3] -> features by name.

    Levels 5 and 6 have dilation in place of a stride in all of their 3x3 convolutions, those of the
    first block too. Levels 7 and 8 take the grid out of what these give (degridding).

    Attributes:
        block: `resnet.BasicBlock` or `resnet.Bottleneck`.
        depths: number of blocks of the four residual levels.
        width: multiplies every channel count.
        atrous: form of the dilated levels, see `css_jax.models.atrous.forms`.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat` and STAGES.
        dtype: of the computation.
        axis_name: of the devices whose BatchNorm statistics are shared.
    """

    block: Any
    depths: tuple[int, int, int, int]
    width: float = 1.0
    atrous: str = 'auto'
    remat: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> dict[str, jax.Array]:
        """Apply the backbone.

        Returns:
            'stride4': level 3's output [B, h, w, c]; 'layer3' and 'last': those of levels 5 and 8,
            at stride 8 [B, h', w', C].
        """
        conv = partial(Conv, kernel_init=he_normal, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        images = x.shape[1:3]

        def stem(module, x):
            for number in range(RESIDUAL[0]):
                for block in module._blocks(number, conv, norm):
                    x = block(dilation=1)(x, train)
            return x

        x = remat.run(self, 'stem', stem, x)
        largest = max(dilation for _, _, dilation in LEVELS)
        size = [-(-side // 8) for side in images]
        regrids = atrous.regrids(atrous.forms(self.atrous).layers, size, largest, images)
        features, layout = {}, 1
        for stage, levels in STAGES.items():
            blocks = []
            for number in levels:
                dilation = LEVELS[number][2]
                for block in self._blocks(number, conv, norm):
                    before, layout = layout, dilation if regrids else 1
                    block = partial(block, dilation=dilation // layout)
                    blocks.append(atrous.within(block, before, layout))
            x = remat.chain(self, stage, blocks, x, train)
            features[stage] = atrous.regrid(x, layout, 1)
        names = {'stride4': 'layer1', 'layer3': 'layer3', 'last': 'layer4'}
        return {name: features[stage] for name, stage in names.items()}

    def _blocks(self, number: int, conv: Any, norm: Any) -> list[Callable[..., nn.Module]]:
        """Return what makes the modules of a level, each from its dilation."""
        count, stride, _ = LEVELS[number]
        features, made = channels(count, self.width), {'conv': conv, 'norm': norm}
        if number not in RESIDUAL:
            kernel_size = 3 if number else 7
            name = f'level{number}'
            return [partial(Level, features, kernel_size, stride, name=name, **made)]

        def block(i: int, dilation: int) -> nn.Module:
            return self.block(
                planes=features,
                stride=1 if i else stride,
                dilations=(dilation, dilation),
                last_scale=nn.initializers.ones,
                name=f'level{number}_{i}',
                **made,
            )

        return [partial(block, i) for i in range(self.depths[RESIDUAL.index(number)])]


def build(block: Any, depths: tuple[int, int, int, int], config: Any, axis_name: str | None) -> DRN:
    """Make the DRN-D of these blocks that `config` (config.model) describes.

    Args:
        block: `resnet.BasicBlock` or `resnet.Bottleneck`.
        depths: number of blocks of the four residual levels.
        config: see `attributes.fixed`; the output stride is 8.
        axis_name: of the devices whose BatchNorm statistics are shared, or None.
    """
    found = attributes.fixed(config, axis_name, 'DRN', (8,), first_dilation='own')
    return DRN(block=block, depths=depths, **found)
