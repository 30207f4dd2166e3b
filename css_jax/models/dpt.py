"""DPT (Ranftl et al., arXiv 2103.13413) on a vision transformer, as UniMatch V2 has it.

The tokens of four blocks are brought to strides of a quarter, a half, one and two patches, and
fused from the coarsest to the finest. There is no BatchNorm.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.models import backbones, dinov2, heads, largefov, remat, scaled
from css_jax.models.layers import Conv, Train, channels, check_images
from css_jax.ops import resize

TAPS = dinov2.NAMES  # the features that the head reads


class Size(NamedTuple):
    """Channels of the head on one backbone.

    Attributes:
        features: of all that is fused, F.
        reassembled: of the four levels before that.
    """

    features: int
    reassembled: tuple[int, int, int, int]


_SMALL, _BASE = Size(64, (48, 96, 192, 384)), Size(128, (96, 192, 384, 768))
SIZES = {
    'dinov2_small': _SMALL,
    'dinov2_base': _BASE,
    'dinov2_large': Size(256, (256, 512, 1024, 1024)),
    'dinov2_giant': Size(384, (1536, 1536, 1536, 1536)),
    'vit_tiny': Size(32, (24, 48, 96, 192)),
    'vit_small': _SMALL,
    'vit_base': _BASE,
}
# Heads of images, and those that share weights with one: DPT has none.
OF_IMAGES = frozenset(name for _, *pair in largefov.CLASSIFIERS.values() for name in pair)


class Enlarge(nn.Module):
    """A transposed convolution whose stride is its kernel; [B, h, w, C] -> [B, f h, f w, features].

    out[b, f y + i, f x + j] = in[b, y, x] @ kernel[i, j] + bias: nothing overlaps.

    Attributes:
        features: channels that come out.
        factor: f.
        dtype: of the computation; parameters are float32.
    """

    features: int
    factor: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Enlarge."""
        f, (batch, height, width, inputs) = self.factor, x.shape
        bound = (f * f * self.features) ** -0.5  # torch's: it takes the outputs for the inputs
        uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
        kernel = self.param('kernel', uniform, (f, f, inputs, self.features))
        bias = self.param('bias', uniform, (self.features,))
        x = jnp.einsum('bhwc,ijco->bhiwjo', x.astype(self.dtype), kernel.astype(self.dtype))
        return x.reshape(batch, f * height, f * width, -1) + bias.astype(self.dtype)


class Residual(nn.Module):
    """Two 3x3 convolutions, each behind a ReLU, around a shortcut; the shape stays."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the unit; what is added is x as it came."""
        conv = partial(Conv, x.shape[-1], 3, use_bias=True, dtype=self.dtype)
        y = conv(name='conv1')(nn.relu(x))
        return x + conv(name='conv2')(nn.relu(y))


class Fusion(nn.Module):
    """Adds a finer level to what is fused so far, and enlarges that to the next one's size."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None, size: tuple[int, int]) -> jax.Array:
        """Fuse.

        Args:
            x: [B, h, w, F], fused so far; the coarsest level by itself.
            level: [B, h, w, F]; None of the coarsest.
            size: (h', w').

        Returns:
            [B, h', w', F].
        """
        if level is not None:
            x = x + Residual(self.dtype, name='unit1')(level)
        x = Residual(self.dtype, name='unit2')(x)
        # The authors resize before this convolution. Of one pixel each, it may come first: the
        # weights of a bilinear resize add up to 1. So it is at a quarter of the pixels.
        x = Conv(x.shape[-1], 1, use_bias=True, dtype=self.dtype, name='out')(x)
        return resize.bilinear(x, size).astype(self.dtype)


class Output(nn.Module):
    """3x3 convolution, ReLU, 1x1; [B, h, w, F] -> [B, h, w, outputs] float32."""

    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        x = nn.relu(conv(x.shape[-1], 3, name='conv')(x))
        return conv(self.outputs, 1, name='out')(x).astype(jnp.float32)


class Head(nn.Module):
    """The head; four arrays [B, h, w, D] -> head name -> [B, 8 h, 8 w, channels] float32.

    Attributes:
        features: channels of all that is fused, F.
        reassembled: channels of the four levels before that, the finest first.
        outputs: head name -> channels, or pairs of these. Each has an `Output` of its own.
        dtype: of the computation; parameters are float32.
    """

    features: int
    reassembled: tuple[int, int, int, int]
    outputs: Mapping[str, int] | tuple[tuple[str, int], ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Sequence[jax.Array], train: Train = False) -> dict[str, jax.Array]:
        """Apply the head, which is the same in training.

        Args:
            taps: tokens of the four blocks, the first block's first.
            train: has no effect.
        """
        del train
        levels = self._levels(taps)
        x = None
        for number in (4, 3, 2, 1):
            level = levels[number - 1]
            x, level = (level, None) if x is None else (x, level)
            height, width = x.shape[1:3]
            size = levels[number - 2].shape[1:3] if number > 1 else (2 * height, 2 * width)
            x = Fusion(self.dtype, name=f'fusion{number}')(x, level, size)
        return {
            name: Output(count, self.dtype, name=f'head_{name}')(x)
            for name, count in dict(self.outputs).items()
        }

    def _levels(self, taps: Sequence[jax.Array]) -> list[jax.Array]:
        """Four [B, h, w, D] -> [B, h', w', F], of 4, 2, 1 and a half as many rows, rounded up."""
        found = []
        for number, (x, count) in enumerate(zip(taps, self.reassembled, strict=True), start=1):
            conv = partial(Conv, dtype=self.dtype)
            x = conv(count, 1, use_bias=True, name=f'project{number}')(x)
            if number < 3:
                x = Enlarge(count, 4 // number, self.dtype, name=f'resize{number}')(x)
            elif number == 4:
                x = conv(count, 3, 2, use_bias=True, name=f'resize{number}')(x)
            found.append(conv(self.features, 3, name=f'level{number}')(x))
        return found


class DPT(nn.Module):
    """The network; images [B, H, W, 3] -> head name -> [B, 8 h, 8 w, channels].

    h and w are H and W divided by the patch: of patches of 14 a pixel that comes out stands for
    1.75 x 1.75.

    Attributes:
        backbone: module, (images, train) -> name of `TAPS` -> [B, h, w, D].
        outputs: pairs (head name, channels).
        size: channels of the head.
        dtype: of the computation.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`: the head is
            'decoder'; the backbone has its own attribute.
    """

    backbone: nn.Module
    outputs: tuple[tuple[str, int], ...]
    size: Size
    dtype: Any = jnp.float32
    remat: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        image_weights: jax.Array | None = None,
        channel_scale: Mapping[str, jax.Array] | jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Apply the network.

        Args:
            images: [B, H, W, 3] float, normalised.
            train: has no effect, as there is neither BatchNorm nor dropout.
            image_weights: likewise.
            channel_scale: name of `TAPS` -> factors of the feature's channels, [k B, D], or one
                array for all: the head runs on k B images, see `css_jax.models.scaled.scale`;
                None: none.

        Returns:
            Head name -> [B, 8 h, 8 w, channels] float32, or [k B, ...].

        Raises:
            ValueError: images of another rank, of integers, or of a size that the backbone does not
                take; factors of a feature that the head does not read, or of another shape.
        """
        del image_weights
        check_images(images)
        found = self.backbone(images, train)
        found = scaled.scale({name: found[name] for name in TAPS}, channel_scale)

        def decode(module: nn.Module, taps: Sequence[jax.Array]) -> dict[str, jax.Array]:
            return Head(*module.size, module.outputs, module.dtype, name='head')(taps)

        return remat.run(self, 'decoder', decode, [found[name] for name in TAPS])


def build(config: Any, outputs: Mapping[str, int], axis_name: str | None) -> DPT:
    """Make the network that `config` (config.model) describes; see `css_jax.models.build`.

    Raises:
        ValueError: a value that there is not, with what was expected; a head that DPT has not.
    """
    backbone = backbones.build(config, axis_name)
    for name in outputs:
        if name in OF_IMAGES or name in heads.READS:
            raise ValueError(
                f'family is dpt, which has no head {name!r}: expected heads of its fused features, '
                'such as logits and representation'
            )
    size = SIZES[config.backbone]
    return DPT(
        backbone=backbone,
        outputs=tuple(outputs.items()),
        size=Size(
            channels(size.features, config.width),
            tuple(channels(count, config.width) for count in size.reassembled),
        ),
        dtype=jnp.dtype(config.dtype),
        remat=remat.stages(getattr(config, 'remat', ())),
    )
