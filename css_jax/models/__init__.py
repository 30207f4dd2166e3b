"""Networks: `build` makes the one that a configuration describes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

from css_jax.keys import Key
from css_jax.models import backbones, deeplab, dinov2, dpt, fcn, largefov
from css_jax.models.backbones import BACKBONES
from css_jax.models.layers import check_choice
from css_jax.models.scaled import channels as scaled_channels

__all__ = ['BACKBONES', 'FAMILIES', 'KEYS', 'Family', 'build', 'scaled_channels']


class Family(NamedTuple):
    """Networks of one design.

    Attributes:
        keys: what `config.model` has of them beside `backbones.KEYS`: path -> its declaration.
        build: (config.model, outputs, axis_name) -> module, (images [B, H, W, 3] float32
            normalised, train) -> head name -> [B, h, w, channels] float32.
        takes: backbone -> whether the family works on it; by default on all but `PLAIN`.
        scaled: features of the backbone that a method may multiply: the module takes
            channel_scale, name -> [B, C].
    """

    keys: Mapping[str, Key]
    build: Callable[[Any, Mapping[str, int], str | None], nn.Module]
    takes: Callable[[str], bool] = lambda name: name not in backbones.PLAIN
    scaled: tuple[str, ...] = ()


FAMILIES = {
    'deeplab': Family(deeplab.KEYS, deeplab.build, scaled=deeplab.SCALED),
    'fcn': Family(fcn.KEYS, fcn.build),
    'largefov': Family(largefov.KEYS, largefov.build, lambda name: name not in dinov2.SIZES),
    'dpt': Family({}, dpt.build, dpt.SIZES.__contains__, scaled=dpt.TAPS),
}
KEYS = {
    'model.family': Key(
        'deeplab',
        'deeplab (DeepLabV3+) | fcn (1x1 heads at stride 8) | largefov (with classifiers and '
        'CAMs) | dpt (on ViT and DINOv2)',
        choices=FAMILIES,
    ),
    **backbones.KEYS,
    **{name: key for family in FAMILIES.values() for name, key in family.keys.items()},
}


def build(
    config: Any,
    num_classes: int | None = None,
    outputs: dict[str, int] | None = None,
    axis_name: str | None = None,
) -> nn.Module:
    """Make the network that `config` describes.

    `module.apply(variables, images [B, H, W, 3] float32 normalised, train=False)` gives head name
    -> [B, h, w, channels] float32: of 'deeplab' at the stride of the backbone's 'stride4' features
    ('auxiliary' at that of 'layer3', which it reads), of 'fcn' at stride 8, of 'largefov' at the
    backbone's last one ('class' and 'class_aux' [B, channels]), of 'dpt' at an eighth of a patch.
    With train=True apply with mutable=['batch_stats'].

    Args:
        config: config.model, or a dict or object with the keys of its family (`FAMILIES`;
            'deeplab' if it names none). It needs backbone, stem, output_stride, width, dtype, and
            may have the rest of the keys.
        num_classes: channels of the 'logits' head, if `outputs` does not say.
        outputs: head name -> channels; by default logits: num_classes, representation:
            config.representation_dim. Heads that are not in it are not built.
        axis_name: of the devices whose BatchNorm statistics are shared; None: each its own.

    Returns:
        The module; its variables are {'params', 'batch_stats'}, without BatchNorm {'params'}.

    Raises:
        ValueError: a value that there is not, with what was expected; no head or no channels.
    """
    if isinstance(config, dict):
        config = ConfigDict(config)
    family = getattr(config, 'family', 'deeplab')
    check_choice('family', family, FAMILIES)
    check_choice('backbone', config.backbone, BACKBONES)
    if not FAMILIES[family].takes(config.backbone):
        those = [repr(name) for name, found in FAMILIES.items() if found.takes(config.backbone)]
        raise ValueError(
            f'family is {family!r}; expected {" or ".join(those)} with backbone {config.backbone!r}'
        )
    if outputs is None:
        outputs = {'logits': num_classes, 'representation': config.representation_dim}
    for name, count in outputs.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f'head {name!r} has {count!r} channels; expected a positive integer')
    if not outputs:
        raise ValueError('outputs is empty; expected head name -> channels, one head or more')
    return FAMILIES[family].build(config, outputs, axis_name)
