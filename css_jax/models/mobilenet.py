"""MobileNet v1 (Howard et al., arXiv 1704.04861) with dilation in place of late strides."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import variance_scaling
from jax import lax

from css_jax.models import atrous, remat
from css_jax.models.layers import BatchNorm, check_choice, convolve, he_normal

# (features, stride) of the 13 depthwise separable blocks (Table 1).
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolve each channel on its own, with TensorFlow's 'SAME' padding.

    As a sum of shifted products, in float32: on a CPU its gradients took a half to a twentieth of
    the time of `feature_group_count`'s.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, 1, C].
        stride: of the output, both axes.
        dilation: of the kernel, both axes.

    Returns:
        [B, ceil(H/stride), ceil(W/stride), C] float32.
    """
    taps = kernel.shape[0]
    reach = (taps - 1) * dilation + 1
    pads = lax.padtype_to_pads(x.shape[1:3], (reach, reach), (stride, stride), 'SAME')
    height, width = (-(-size // stride) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    y = jnp.zeros((), jnp.float32)
    for i in range(taps):
        for j in range(taps):
            rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            y += x[:, rows, columns] * kernel[i, j, 0]
    return y


class Conv(nn.Module):
    """A 3x3 or 1x1 convolution with TensorFlow's 'SAME' padding, BatchNorm and ReLU6.

    With stride 2 'SAME' pads an even size below and to the right only, where torch pads all round.

    Attributes:
        features: output channels; 0: depthwise, as many as come in, each from its own.
        kernel_size: of both axes.
        stride: of both axes.
        dilation: of the kernel.
        norm: makes the BatchNorm.
        dtype: of the computation; parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int
    dilation: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H/stride), ceil(W/stride), features or C]."""
        inputs, features = (x.shape[-1], self.features) if self.features else (1, x.shape[-1])
        # A depthwise output has the k x k inputs of its fan-in; its "fan-out" would count channels.
        init = he_normal if self.features else variance_scaling(2.0, 'fan_in', 'normal')
        kernel = self.param('kernel', init, (self.kernel_size, self.kernel_size, inputs, features))
        x = x.astype(self.dtype)
        if self.kernel_size == 1:  # nothing to pad
            x = convolve(x, kernel.astype(self.dtype), self.stride)
        elif self.features:
            x = lax.conv_general_dilated(
                x,
                kernel.astype(self.dtype),
                (self.stride, self.stride),
                'SAME',
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )
        else:
            x = depthwise(x, kernel, self.stride, self.dilation)
        return nn.relu6(self.norm(name='bn')(x, train))


class Block(nn.Module):
    """A depthwise 3x3 and a 1x1; [B, H, W, C] -> [B, H/stride, W/stride, features]."""

    features: int
    stride: int
    dilation: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the block."""
        x = self.conv(0, 3, self.stride, self.dilation, name='depthwise')(x, train)
        return self.conv(self.features, 1, 1, 1, name='pointwise')(x, train)


class MobileNetV1(nn.Module):
    """The backbone; images [B, H, W, 3] -> (block 3's output, block 13's output).

    Its stages have a ResNet's names: layer1 is blocks 2-3, layer2 4-5, layer3 6-11, layer4 12-13.

    Attributes:
        output_stride: 8, 16, or 32 as for classification, of the last block.
        width: multiplies every channel count, rounded down as Keras does, at least 8.
        atrous: form of the dilated blocks, see `css_jax.models.atrous.forms`; here 'auto' is always
            'dilated': `depthwise` is slices and products, which dilation makes no slower.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`.
        dtype: of the computation.
        axis_name: of the devices whose BatchNorm statistics are shared.
    """

    output_stride: int = 8
    width: float = 1.0
    atrous: str = 'auto'
    remat: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Apply the backbone.

        Returns:
            'stride4' [B, h, w, c]; 'last', at the output stride [B, h', w', C].
        """
        # Keras's eps for these weights; momentum stays that of the other networks here.
        norm = partial(BatchNorm, axis_name=self.axis_name, eps=1e-3, dtype=self.dtype)
        conv = partial(Conv, norm=norm, dtype=self.dtype)

        form = 'dilated' if self.atrous == 'auto' else atrous.forms(self.atrous).layers
        size = [-(-side // self.output_stride) for side in x.shape[1:3]]
        regrids = atrous.regrids(form, size, 32 // self.output_stride, x.shape[1:3])

        stage, reached, dilation, layout = 'stem', 2, 1, 1
        stages = {stage: [partial(conv, self._channels(32), 3, 2, 1, name='conv1')]}
        for i, (features, stride) in enumerate(BLOCKS, start=1):
            keeps = reached < self.output_stride
            before, layout = layout, dilation if regrids else 1
            block = partial(
                Block,
                features=self._channels(features),
                stride=stride if keeps else 1,
                dilation=dilation // layout,
                conv=conv,
                name=f'block{i}',
            )
            stage = f'layer{len(stages)}' if stride == 2 else stage
            stages.setdefault(stage, []).append(atrous.within(block, before, layout))
            # A stride given up is dilation from the next block on: what is then taken at every
            # second place equals the network with that stride.
            reached, dilation = (reached * stride, 1) if keeps else (reached, dilation * stride)

        for stage, blocks in stages.items():
            x = remat.chain(self, stage, blocks, x, train)
            if stage == 'layer1':
                stride4 = x
        return {'stride4': stride4, 'last': atrous.regrid(x, layout, 1)}

    def _channels(self, count: int) -> int:
        return max(8, int(count * self.width))


def build(config: Any, axis_name: str | None) -> MobileNetV1:
    """Make the network that `config` (config.model) describes.

    Args:
        config: has stem, output_stride, width, dtype; may have atrous, remat.
        axis_name: of the devices whose BatchNorm statistics are shared, or None.

    Raises:
        ValueError: an output stride, a stem or a stage of remat that there is not.
    """
    check_choice('output_stride', config.output_stride, (8, 16))
    if config.stem != 'conv7':
        raise ValueError(
            f"stem is {config.stem!r}; expected 'conv7', the default: MobileNet has its own stem"
        )
    return MobileNetV1(
        output_stride=config.output_stride,
        width=config.width,
        atrous=getattr(config, 'atrous', 'auto'),
        remat=remat.stages(getattr(config, 'remat', ())),
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
