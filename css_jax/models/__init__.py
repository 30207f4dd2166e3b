"""Networks: `build` makes the one that a configuration describes."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from css_jax.models import atrous, deeplab, mobilenet, remat, resnet
from css_jax.models.layers import check_choice

# Name -> constructor: (config.model, axis_name) -> module, (images [B, H, W, 3], train) ->
# (low-level features [B, h, w, c], features [B, h', w', C]); the heads work at h x w.
BACKBONES = {
    'resnet18': partial(resnet.build, resnet.BasicBlock, (2, 2, 2, 2)),
    'resnet34': partial(resnet.build, resnet.BasicBlock, (3, 4, 6, 3)),
    'resnet50': partial(resnet.build, resnet.Bottleneck, (3, 4, 6, 3)),
    'resnet101': partial(resnet.build, resnet.Bottleneck, (3, 4, 23, 3)),
    'mobilenet_v1': mobilenet.build,
}


def build(
    config: Any,
    num_classes: int | None = None,
    outputs: dict[str, int] | None = None,
    axis_name: str | None = None,
) -> nn.Module:
    """Makes DeepLabV3+ (spec section 2) as `config` describes it.

    `module.apply(variables, images [B, H, W, 3] float32 normalised, train=False)` gives head name
    -> [B, h, w, channels] float32, at the stride of the backbone's low-level features (4). With
    train=True apply with mutable=['batch_stats'].

    Args:
        config: config.model, or a dict or object with its keys: backbone, stem, output_stride,
            width, representation_dim, dtype; may have stem_ceil_mode (False), atrous ('auto'),
            remat (()).
        num_classes: channels of the 'logits' head, if `outputs` does not say.
        outputs: head name -> channels; by default logits: num_classes, representation:
            representation_dim. Heads that are not in it are not built.
        axis_name: of the devices whose BatchNorm statistics are shared; None: each its own.

    Returns:
        The module; its variables are {'params', 'batch_stats'}.

    Raises:
        ValueError: a value that there is not, with what was expected; no head or no channels.
    """
    if isinstance(config, dict):
        config = ConfigDict(config)
    check_choice('backbone', config.backbone, BACKBONES)
    check_choice('dtype', config.dtype, ('float32', 'bfloat16'))
    form = getattr(config, 'atrous', 'auto')
    check_choice('atrous', form, ('auto', *atrous.FORMS))
    if not config.width > 0:
        raise ValueError(f'width is {config.width!r}; expected a number above 0')
    if outputs is None:
        outputs = {'logits': num_classes, 'representation': config.representation_dim}
    for name, count in outputs.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f'head {name!r} has {count!r} channels; expected a positive integer')
    if not outputs:
        raise ValueError('outputs is empty; expected head name -> channels, one head or more')

    rate = round(96 / config.output_stride)  # ASPP: 12, 24, 36 at stride 8; 6, 12, 18 at 16
    return deeplab.DeepLab(
        backbone=BACKBONES[config.backbone](config, axis_name),
        outputs=tuple(outputs.items()),
        rates=(rate, 2 * rate, 3 * rate),
        atrous=form,
        width=config.width,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
        remat=remat.stages(getattr(config, 'remat', ())),
    )
