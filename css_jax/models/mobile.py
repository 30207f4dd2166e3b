"""What the backbones of depthwise convolutions share, with dilation in place of late strides."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import variance_scaling
from jax import lax

from css_jax.models import atrous, remat
from css_jax.models.layers import BatchNorm, Train, convolve, he_normal


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
    for n, weight in enumerate(jnp.unstack(kernel.reshape(taps**2, -1))):
        top, left = (place * dilation for place in divmod(n, taps))
        ends = [start + (size - 1) * stride + 1 for start, size in ((top, height), (left, width))]
        # Not x[...], which takes twice as long to trace; a network has hundreds of taps.
        part = lax.slice(
            x, (0, top, left, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1)
        )
        y += part * weight
    return y


class Conv(nn.Module):
    """A convolution with TensorFlow's 'SAME' padding, BatchNorm and ReLU6.

    With stride 2 'SAME' pads an even size below and to the right only, where torch pads all round.

    Attributes:
        features: output channels; 0: depthwise, as many as come in, each from its own.
        kernel_size: of both axes.
        stride: of both axes.
        dilation: of the kernel.
        norm: makes the BatchNorm.
        dtype: of the computation; parameters are float32.
        activation: whether ReLU6 is applied.
    """

    features: int
    kernel_size: int
    stride: int
    dilation: int
    norm: Any
    dtype: Any
    activation: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
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
        x = self.norm(name='bn')(x, train)
        return nn.relu6(x) if self.activation else x


class Backbone(nn.Module):
    """A stem and blocks; images [B, H, W, 3] -> features by name.

    Its stages have a ResNet's names: the stem ends at stride 2, and each layer begins where the
    network for classification has its next stride.

    Attributes:
        output_stride: 8, 16, or 32 as for classification, of the last block.
        width: multiplies every channel count.
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

    def _conv(self) -> Callable[..., Conv]:
        """Return what makes a Conv of this network."""
        # TensorFlow's eps for these weights; momentum stays that of the other networks here.
        norm = partial(BatchNorm, axis_name=self.axis_name, eps=1e-3, dtype=self.dtype)
        return partial(Conv, norm=norm, dtype=self.dtype)

    def _features(
        self,
        stem: Callable[[], nn.Module],
        blocks: Iterable[tuple[Callable[..., nn.Module], int]],
        x: jax.Array,
        train: Train,
    ) -> dict[str, jax.Array]:
        """Apply the network.

        Args:
            stem: makes the first module, of stride 2.
            blocks: pairs (stride and dilation -> module, stride that it has for classification).
            x: images [B, H, W, 3].
            train: given to every module.

        Returns:
            'stride4': layer1's output [B, h, w, c]; 'layer3' and 'last': layer3's and layer4's, at
            the output stride [B, h', w', C], layer3's at 16 at most.
        """
        form = 'dilated' if self.atrous == 'auto' else atrous.forms(self.atrous).layers
        size = [-(-side // self.output_stride) for side in x.shape[1:3]]
        regrids = atrous.regrids(form, size, 32 // self.output_stride, x.shape[1:3])

        stage, reached, dilation, layout = 'stem', 2, 1, 1
        stages, layouts = {stage: [stem]}, {}
        for make, stride in blocks:
            keeps = reached < self.output_stride
            before, layout = layout, dilation if regrids else 1
            block = partial(make, stride=stride if keeps else 1, dilation=dilation // layout)
            stage = f'layer{len(stages)}' if stride == 2 else stage
            stages.setdefault(stage, []).append(atrous.within(block, before, layout))
            layouts[stage] = layout
            # A stride given up is dilation from the next block on: what is then taken at every
            # second place equals the network with that stride.
            reached, dilation = (reached * stride, 1) if keeps else (reached, dilation * stride)

        found = {}
        for stage, modules in stages.items():
            x = found[stage] = remat.chain(self, stage, modules, x, train)
        return {
            name: atrous.regrid(found[stage], layouts[stage], 1)
            for name, stage in {'stride4': 'layer1', 'layer3': 'layer3', 'last': 'layer4'}.items()
        }
