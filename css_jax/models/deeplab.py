"""DeepLabV3+ (Chen et al., arXiv 1802.02611) as the reference has it, with any number of heads."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.keys import Key
from css_jax.models import atrous, backbones, heads, remat, scaled
from css_jax.models.layers import BatchNorm, Conv, Train, channels, check_images
from css_jax.ops import resize

SCALED = ('stride4', 'last')  # features that a method may multiply
# The paper's values are the defaults.
KEYS = {
    'model.head_convs': Key(
        1, "3x3 convolutions of each of the decoder's heads", choices=(1, 2),
        only=lambda c: c.model.family == 'deeplab',
    ),
    'model.low_level_bias': Key(
        False, "a bias in the decoder's 1x1 convolution of layer1's features",
        only=lambda c: c.model.family == 'deeplab',
    ),
}  # fmt: skip


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling; [B, h, w, C] -> [B, h, w, features]."""

    features: int
    rates: tuple[int, int, int]
    atrous: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Concatenate 1x1, three atrous 3x3 and the image's mean; projects by 1x1."""
        products = atrous.forms(self.atrous).pyramid == 'products'
        conv = partial(self.conv, atrous=atrous.products if products else None)
        branches = []
        for i, rate in enumerate((1, *self.rates)):
            y = conv(self.features, 1 if i == 0 else 3, 1, rate, name=f'conv{i}')(x)
            branches.append(nn.relu(self.norm(name=f'bn{i}')(y, train)))
        y = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        y = self.conv(self.features, 1, name='pool_conv')(y)
        y = nn.relu(self.norm(name='pool_bn')(y, train))
        branches.append(jnp.broadcast_to(y, branches[0].shape))
        y = self.conv(self.features, 1, name='project_conv')(jnp.concatenate(branches, axis=-1))
        return nn.relu(self.norm(name='project_bn')(y, train))


class Head(nn.Module):
    """3x3 convolution, BatchNorm, ReLU, 1x1 with bias; [B, h, w, C] -> [B, h, w, outputs].

    `convs` is the number of times that the first three are there.
    """

    features: int
    outputs: int
    conv: Any
    norm: Any
    convs: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Apply the head; float32 comes out."""
        for number in ('', *range(2, self.convs + 1)):  # conv, conv2
            x = self.conv(self.features, 3, name=f'conv{number}')(x)
            x = nn.relu(self.norm(name=f'bn{number}')(x, train))
        return self.conv(self.outputs, 1, use_bias=True, name='out')(x).astype(jnp.float32)


class DeepLab(nn.Module):
    """The network; images [B, H, W, 3] -> head name -> [B, h, w, channels].

    h, w are whatever the backbone's 'stride4' features have: H/4, W/4, rounded up, for a ResNet. A
    head of `heads.READS` has those of the feature that it reads.

    Attributes:
        backbone: module, (images, train) -> 'stride4' [B, h, w, c] and 'last' [B, h', w', C], and
            what else heads read.
        outputs: pairs (head name, channels).
        rates: ASPP's dilations.
        head_convs: 3x3 convolutions of each of the decoder's heads; those of `heads.READS` have
            one.
        low_level_bias: a bias in the 1x1 convolution of the 'stride4' features.
        atrous: form of ASPP's convolutions, see `css_jax.models.atrous.forms`; the backbone has its
            own attribute.
        width: multiplies every channel count but the heads' outputs.
        dtype: of the computation.
        axis_name: of the devices whose BatchNorm statistics are shared.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`; the backbone
            has its own attribute.
    """

    backbone: nn.Module
    outputs: tuple[tuple[str, int], ...]
    rates: tuple[int, int, int] = (12, 24, 36)
    head_convs: int = 1
    low_level_bias: bool = False
    atrous: str = 'auto'
    width: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        image_weights: jax.Array | None = None,
        channel_scale: Mapping[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:
        """Apply the network.

        Args:
            images: [B, H, W, 3] float, normalised.
            train: BatchNorm normalises by the batch and moves its running statistics; apply with
                mutable=['batch_stats'].
            image_weights: [B] of the images in these statistics, of which 0 leaves one out; None:
                all count alike.
            channel_scale: feature of the backbone -> factors of its channels, [k B, C]: the heads
                run on k B images, see `css_jax.models.scaled.scale`; None: none.

        Returns:
            Head name -> [B, h, w, channels] float32, or [k B, ...].

        Raises:
            ValueError: images of another rank, or of integers; a head that reads a feature that the
                backbone does not have; factors of such a one, or of another shape.
        """
        check_images(images)
        if train and image_weights is not None:
            train = image_weights
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        features = channels(256, self.width)

        def decode(module, low_level, x, read):
            return module._decode(low_level, x, read, train, conv, norm)

        found = scaled.scale(self.backbone(images, train), channel_scale)
        # An exported network has a batch of any size, which has no length.
        copies = 1 if channel_scale is None else len(found['last']) // len(images)
        if copies > 1 and isinstance(train, jax.Array):
            train = jnp.tile(train, copies)
        read = heads.read(self.outputs, found)
        aspp = partial(ASPP, features, self.rates, self.atrous, conv, norm, name='aspp')
        x = remat.chain(self, 'aspp', [aspp], found['last'], train)
        return remat.run(self, 'decoder', decode, found['stride4'], x, read)

    def _decode(
        self,
        low_level: jax.Array,
        x: jax.Array,
        read: dict[str, jax.Array],
        train: Train,
        conv: Any,
        norm: Any,
    ) -> dict[str, jax.Array]:
        """([B, h, w, c], [B, h', w', C], head of READS -> feature) -> head name -> its output."""
        features = channels(256, self.width)
        x = resize.bilinear(x, low_level.shape[1:3]).astype(self.dtype)
        low_level = conv(
            channels(48, self.width), 1, use_bias=self.low_level_bias, name='low_level_conv'
        )(low_level)
        low_level = nn.relu(norm(name='low_level_bn')(low_level, train))
        x = jnp.concatenate([low_level, x], axis=-1)  # [B, h, w, 48 + 256], in this order
        head = partial(Head, features, conv=conv, norm=norm)
        return {
            name: head(count, convs=1, name=f'head_{name}')(read[name], train)
            if name in read
            else head(count, convs=self.head_convs, name=f'head_{name}')(x, train)
            for name, count in self.outputs
        }


def build(config: Any, outputs: Mapping[str, int], axis_name: str | None) -> DeepLab:
    """Make the DeepLabV3+ that `config` (config.model) describes; see `css_jax.models.build`.

    Raises:
        ValueError: a value that there is not, with what was expected.
    """
    backbone = backbones.build(config, axis_name)
    rate = round(96 / config.output_stride)  # ASPP: 12, 24, 36 at stride 8; 3, 6, 9 at 32
    return DeepLab(
        backbone=backbone,
        outputs=tuple(outputs.items()),
        rates=(rate, 2 * rate, 3 * rate),
        head_convs=getattr(config, 'head_convs', 1),
        low_level_bias=getattr(config, 'low_level_bias', False),
        atrous=getattr(config, 'atrous', 'auto'),
        width=config.width,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
        remat=remat.stages(getattr(config, 'remat', ())),
    )
