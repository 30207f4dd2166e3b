"""The network of CoSA (arXiv 2402.17891): LargeFOV, and classifiers whose weights give CAMs.

LargeFOV (Chen et al., arXiv 1412.7062) is two dilated 3x3 convolutions and a 1x1. A classifier is a
1x1 convolution behind the pooled features; the same one on the features as they are gives the class
activation maps (CAMs).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.keys import Key
from css_jax.models import atrous, backbones, heads, remat
from css_jax.models.layers import Conv, Train, channels, check_choice, check_images

KEYS = {
    'model.fov_dilation': Key(
        0, "of LargeFOV's two 3x3 convolutions; 0: 5 at stride 16, 10 at stride 8", range=(0, 64),
        only=lambda c: c.model.family == 'largefov',
    ),
    'model.pool': Key(
        'max', 'max | mean, of the features over the image, before the classifiers',
        choices=('max', 'mean'), only=lambda c: c.model.family == 'largefov',
    ),
}  # fmt: skip
# Classifier -> the feature that it reads, its head of classes, its head of CAMs.
CLASSIFIERS = {
    'head_class': ('last', 'class', 'cam'),
    'head_class_aux': ('layer3', 'class_aux', 'cam_aux'),
}


def _largest(x: jax.Array) -> jax.Array:
    """Return the largest value of each channel, [B, h, w, D] -> [B, 1, 1, D].

    Its gradient goes to the first place that has it, as in torch. That of `jnp.max` looks for the
    maximum among values that may be computed anew, with other rounding, and divides by their count:
    where none is equal it is NaN.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    place = jax.lax.stop_gradient(flat).argmax(1, keepdims=True)
    return jnp.take_along_axis(flat, place, axis=1)[:, None]


def moved(images: jax.Array, shift: int) -> jax.Array:
    """Return images [B, H, W, C] moved so many pixels to the right and down, or, negative, back.

    What comes in at the border is the image's reflection.
    """
    if not shift:
        return images
    size, d = images.shape[1:3], abs(shift)
    margin = (d, 0) if shift > 0 else (0, d)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode='reflect')
    return padded[:, : size[0], : size[1]] if shift > 0 else padded[:, d:, d:]


def _mean(x: jax.Array) -> jax.Array:
    return x.mean((1, 2), keepdims=True)


_POOL = {'max': _largest, 'mean': _mean}


class Head(nn.Module):
    """LargeFOV, without BatchNorm and biases; [B, h, w, D] -> [B, h, w, outputs] float32.

    Attributes:
        outputs: channels that come out.
        features: channels of the two 3x3 convolutions.
        dilation: of these.
        atrous: form of these, see `css_jax.models.atrous.forms`; that of ASPP, as this dilation
            divides no map either.
        dtype: of the computation.
    """

    outputs: int
    features: int = 512
    dilation: int = 5
    atrous: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the head."""
        products = atrous.forms(self.atrous).pyramid == 'products'
        conv = partial(Conv, dtype=self.dtype, atrous=atrous.products if products else None)
        for number in (1, 2):
            x = nn.relu(conv(self.features, 3, 1, self.dilation, name=f'conv{number}')(x))
        return conv(self.outputs, 1, name='out')(x).astype(jnp.float32)


class Classifier(nn.Module):
    """A classifier of images, and its weights at every place.

    Attributes:
        outputs: number of classes, K.
        pool: 'max' | 'mean', of the features over an image.
        dtype: of the computation.
    """

    outputs: int
    pool: str = 'max'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, h, w, D] -> logits of the classes [B, K] and CAMs [B, h, w, K], float32."""
        conv = Conv(self.outputs, 1, dtype=self.dtype, name='conv')
        # In float32: a mean of many places loses digits in bfloat16.
        pooled = _POOL[self.pool](x.astype(jnp.float32))
        scores, cam = conv(pooled)[:, 0, 0], conv(x)
        return scores.astype(jnp.float32), cam.astype(jnp.float32)


class LargeFOV(nn.Module):
    """The network; images [B, H, W, 3] -> head name -> array, on the grid [h, w] of the backbone.

    The heads 'class' [B, K] and 'cam' [B, h, w, K] are one classifier, on the last features;
    'class_aux' and 'cam_aux' another one, on the earlier ones. Every other head is a LargeFOV of
    its own, of the last features or of those that `heads.READS` says.

    Attributes:
        backbone: module, (images, train) -> 'last' [B, h, w, D] and 'layer3' [B, h, w, D'], and
            what else heads read.
        outputs: pairs (head name, channels).
        dilation: of LargeFOV.
        pool: see `Classifier`.
        width: multiplies LargeFOV's channels but its outputs.
        shift: pixels by which the backbone's cells lie to the right of, and below, the middle of
            what they stand for; images are moved likewise, and reflected at the border.
        atrous: form of LargeFOV, see `Head`; the backbone has its own attribute.
        dtype: of the computation.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`: all behind the
            backbone is 'decoder'; the backbone has its own attribute.
    """

    backbone: nn.Module
    outputs: tuple[tuple[str, int], ...]
    dilation: int = 5
    pool: str = 'max'
    width: float = 1.0
    shift: int = 0
    atrous: str = 'auto'
    dtype: Any = jnp.float32
    remat: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, image_weights: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Apply the network.

        Args:
            images: [B, H, W, 3] float, normalised.
            train: the backbone's BatchNorm, if it has any, normalises by the batch and moves its
                running statistics; apply with mutable=['batch_stats'].
            image_weights: [B] of the images in these statistics, of which 0 leaves one out; None:
                all count alike. Without BatchNorm they have no effect.

        Returns:
            Head name -> [B, h, w, channels] float32, of 'class' and 'class_aux' [B, channels].

        Raises:
            ValueError: images of another rank, or of integers; a head that reads a feature that the
                backbone does not have.
        """
        check_images(images)
        given: Train = image_weights if train and image_weights is not None else train

        def decode(
            module: nn.Module, features: dict[str, jax.Array], read: dict[str, jax.Array]
        ) -> dict[str, jax.Array]:
            return module._decode(features, read)

        found = self.backbone(moved(images, self.shift), given)
        read = heads.read(self.outputs, found)
        features = {name: found[name] for name, _, _ in CLASSIFIERS.values()}
        return remat.run(self, 'decoder', decode, features, read)

    def _decode(
        self, features: dict[str, jax.Array], read: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """(features by name, head of READS -> feature) -> head name -> its output."""
        outputs, found = dict(self.outputs), {}
        for name, (feature, *pair) in CLASSIFIERS.items():
            if counts := {outputs[head] for head in pair if head in outputs}:
                classifier = Classifier(*counts, self.pool, self.dtype, name=name)
                found |= dict(zip(pair, classifier(features[feature]), strict=True))
        for name, count in outputs.items():
            if name not in found:
                wide = channels(512, self.width)
                head = partial(Head, count, wide, self.dilation, self.atrous, self.dtype)
                found[name] = head(name=f'head_{name}')(read.get(name, features['last']))
        return {name: found[name] for name in outputs}


def build(config: Any, outputs: Mapping[str, int], axis_name: str | None) -> LargeFOV:
    """Make the network that `config` (config.model) describes; see `css_jax.models.build`.

    Raises:
        ValueError: a value that there is not, with what was expected; a classifier whose classes
            and CAMs differ in number.
    """
    backbone = backbones.build(config, axis_name)
    stride, dilation = config.output_stride, getattr(config, 'fov_dilation', 0)
    # At 32 the earlier features would have another grid than the last ones.
    check_choice('output_stride', stride, (8, 16))
    pool = getattr(config, 'pool', 'max')
    check_choice('pool', pool, _POOL)
    for _, *pair in CLASSIFIERS.values():
        counts = [outputs[head] for head in pair if head in outputs]
        if len(set(counts)) > 1:
            raise ValueError(
                f'head {pair[0]!r} has {counts[0]} channels and {pair[1]!r} {counts[1]}; expected '
                'the same, as they share their weights'
            )
    return LargeFOV(
        backbone=backbone,
        outputs=tuple(outputs.items()),
        dilation=dilation or 80 // stride,
        pool=pool,
        width=config.width,
        shift=backbones.cell_shift(config),
        atrous=getattr(config, 'atrous', 'auto'),
        dtype=jnp.dtype(config.dtype),
        remat=remat.stages(getattr(config, 'remat', ())),
    )
