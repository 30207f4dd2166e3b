"""A fully convolutional network: a backbone at stride 8 and one 1x1 convolution a head."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.keys import Key
from css_jax.models import backbones, drn, heads, remat
from css_jax.models.layers import (
    BatchNorm,
    Conv,
    Train,
    channels,
    check_choice,
    check_images,
    he_normal,
)

KEYS = {
    'model.degrid': Key(
        False, "two 3x3 convolutions before the heads, dilated by 2 and by 1, as a DRN's last ones",
        only=lambda c: c.model.family == 'fcn',
    ),
}  # fmt: skip
# (channels, dilation) of what `degrid` adds.
DEGRID = tuple((count, dilation) for count, _, dilation in drn.LEVELS[7:])


class FCN(nn.Module):
    """The network; images [B, H, W, 3] -> head name -> [B, ceil(H/8), ceil(W/8), channels].

    Attributes:
        backbone: module, (images, train) -> 'last' [B, ceil(H/8), ceil(W/8), C], and what else
            heads read.
        outputs: pairs (head name, channels).
        degrid: two convolutions between the backbone and the heads but those of `heads.READS`.
        width: multiplies every channel count but the heads' outputs.
        dtype: of the computation.
        axis_name: of the devices whose BatchNorm statistics are shared.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`: all behind the
            backbone is 'decoder'; the backbone has its own attribute.
    """

    backbone: nn.Module
    outputs: tuple[tuple[str, int], ...]
    degrid: bool = False
    width: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, image_weights: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Apply the network.

        Args:
            images: [B, H, W, 3] float, normalised.
            train: BatchNorm normalises by the batch and moves its running statistics; apply with
                mutable=['batch_stats'].
            image_weights: [B] of the images in these statistics, of which 0 leaves one out; None:
                all count alike.

        Returns:
            Head name -> [B, ceil(H/8), ceil(W/8), channels] float32.

        Raises:
            ValueError: images of another rank, or of integers; a head that reads a feature that the
                backbone does not have.
        """
        check_images(images)
        if train and image_weights is not None:
            train = image_weights

        def decode(module, x, read):
            return module._decode(x, read, train)

        found = self.backbone(images, train)
        read = heads.read(self.outputs, found)
        return remat.run(self, 'decoder', decode, found['last'], read)

    def _decode(
        self, x: jax.Array, read: dict[str, jax.Array], train: Train
    ) -> dict[str, jax.Array]:
        """([B, h, w, C], head of READS -> feature) -> head name -> its output."""
        conv = partial(Conv, kernel_init=he_normal, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        for i, (count, dilation) in enumerate(DEGRID if self.degrid else ()):
            features, name = channels(count, self.width), f'degrid{i}'
            x = drn.Level(features, 3, 1, dilation, conv, norm, name=name)(x, train)
        self.sow('intermediates', 'features', x)  # kept where asked for, see `modes.embeddings`
        head = partial(conv, kernel_size=1, use_bias=True, bias_init=nn.initializers.zeros)
        return {
            name: head(count, name=f'head_{name}')(read.get(name, x)).astype(jnp.float32)
            for name, count in self.outputs
        }


def build(config: Any, outputs: Mapping[str, int], axis_name: str | None) -> FCN:
    """Make the network that `config` (config.model) describes; see `css_jax.models.build`.

    Raises:
        ValueError: a value that there is not, with what was expected.
    """
    check_choice('output_stride', config.output_stride, (8,))
    degrid = getattr(config, 'degrid', False)
    backbone = backbones.build(config, axis_name)
    if degrid and isinstance(backbone, drn.DRN):
        raise ValueError(
            f'degrid is True; expected False, the default: {config.backbone} ends in such '
            'convolutions'
        )
    return FCN(
        backbone=backbone,
        outputs=tuple(outputs.items()),
        degrid=degrid,
        width=config.width,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
        remat=remat.stages(getattr(config, 'remat', ())),
    )
