"""The backbones by name, and the keys that every family of networks has."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn

from css_jax.keys import Key
from css_jax.models import atrous, dinov2, drn, efficientnet, mobilenet, remat, resnet, vit
from css_jax.models.layers import check_choice

# Name -> constructor: (config.model, axis_name) -> module, (images [B, H, W, 3], train) -> name of
# a feature map -> [B, h, w, C]. Every backbone but those of PLAIN has 'stride4', which the decoder
# works at, and all have 'last'; a head says what else it reads.
BACKBONES = {
    'resnet18': partial(resnet.build, resnet.BasicBlock, (2, 2, 2, 2)),
    'resnet34': partial(resnet.build, resnet.BasicBlock, (3, 4, 6, 3)),
    'resnet50': partial(resnet.build, resnet.Bottleneck, (3, 4, 6, 3)),
    'resnet101': partial(resnet.build, resnet.Bottleneck, (3, 4, 23, 3)),
    'mobilenet_v1': mobilenet.build,
    **{
        f'efficientnet_{variant}': partial(efficientnet.build, variant)
        for variant in efficientnet.SCALES
    },
    'drn_d_22': partial(drn.build, resnet.BasicBlock, (2, 2, 2, 2)),
    'drn_d_38': partial(drn.build, resnet.BasicBlock, (3, 4, 6, 3)),
    'drn_d_54': partial(drn.build, resnet.Bottleneck, (3, 4, 6, 3)),
    'drn_d_105': partial(drn.build, resnet.Bottleneck, (3, 4, 23, 3)),
    **{name: partial(vit.build, heads) for name, heads in vit.SIZES.items()},
    **{name: partial(dinov2.build, name) for name in dinov2.SIZES},
}
# Those whose features are all on one grid.
PLAIN = frozenset((*vit.SIZES, *dinov2.SIZES))
# Backbone -> the number that both sides of an image have to be a multiple of, where there is one.
MULTIPLES = dict.fromkeys(dinov2.SIZES, dinov2.PATCH)
ATTENTIONS = ('auto', 'xla', 'cudnn')


def _expected_stages(names: Any) -> str:
    known = (*remat.STAGES, remat.ALL)
    return '' if set(names) <= set(known) else f'stages out of {", ".join(known)}'


def _expected_grid(numbers: Any) -> str:
    return '' if all(number >= 1 for number in numbers) else 'numbers of at least 1'


# The paper's values are the defaults.
KEYS = {
    'model.backbone': Key(
        'resnet101', 'resnet18 | 34 | 50 | 101 | mobilenet_v1 | efficientnet_lite0 | 1 | 2 | '
        'drn_d_22 | 38 | 54 | 105 | vit_tiny | small | base (family largefov or dpt) | '
        'dinov2_small | base | large | giant (family dpt)', choices=BACKBONES,
    ),
    'model.stem': Key('conv7', "conv7 (torchvision's) | deep (three 3x3)",
                      choices=('conv7', 'deep')),
    'model.output_stride': Key(
        8, '8 | 16 (not DRN) | 32 (EfficientNet-Lite); family fcn: 8; largefov: 8 | 16; ViT: 16',
        choices=(8, 16, 32), only=lambda c: c.model.backbone not in dinov2.SIZES,
    ),
    'model.width': Key(1.0, 'multiplies every channel count', range=(1e-3, 1e3)),
    'model.dtype': Key(
        'float32', 'of the computation; parameters and statistics are always float32',
        choices=('float32', 'bfloat16'),
    ),
    'model.stem_ceil_mode': Key(
        False, "deep stem: the reference's max-pool, which rounds up",
        only=lambda c: c.model.stem == 'deep',
    ),
    'model.first_dilation': Key(
        'auto', 'ResNet: of the first block of a layer that gives up its stride: previous (that of '
        "the layer before) | own (that of the layer's other blocks); auto: own with the deep stem",
        choices=resnet.FIRST_DILATIONS,
    ),
    'model.multi_grid': Key(
        (), "ResNet: multiplies the dilations of layer4's blocks, one number a block; (): none",
        like=(2, 2, 4), any_length=True, expected=_expected_grid,
    ),
    'model.aux_layer': Key(
        -3, 'ViT: the block of the early features, from the end: -3 is the tenth of twelve',
        range=(-12, -1), only=lambda c: c.model.backbone in vit.SIZES,
    ),
    **dinov2.KEYS,
    'model.attention': Key(
        'auto', 'ViT and DINOv2: xla | cudnn (GPU, bfloat16, an even number of tokens), which does '
        'not hold the attention of all pairs of tokens; auto: cudnn where it can be had',
        choices=ATTENTIONS, only=lambda c: c.model.backbone in PLAIN,
    ),
    'model.frozen_backbone': Key(
        False, 'the backbone keeps its first weights: no gradient, no moments of the optimiser; '
        'statistics of BatchNorm, which have no gradient, are not frozen',
    ),
    'model.atrous': Key(
        'auto', 'dilated | space_to_batch, the same sums; auto: see docs/speed.md',
        choices=('auto', *atrous.FORMS),
    ),
    'model.remat': Key(
        (), 'stages computed anew in the backward pass, or all: see docs/memory.md',
        like=('layer3', 'layer4'), any_length=True, expected=_expected_stages,
    ),
}  # fmt: skip


def build(config: Any, axis_name: str | None) -> nn.Module:
    """Make the backbone that `config` (config.model) describes.

    Args:
        config: has backbone, stem, output_stride, width, dtype; may have the rest of KEYS.
        axis_name: of the devices whose BatchNorm statistics are shared, or None.

    Raises:
        ValueError: a value that there is not, with what was expected.
    """
    check_choice('backbone', config.backbone, BACKBONES)
    check_choice('dtype', config.dtype, ('float32', 'bfloat16'))
    check_choice('atrous', getattr(config, 'atrous', 'auto'), ('auto', *atrous.FORMS))
    attention = getattr(config, 'attention', 'auto')
    check_choice('attention', attention, ATTENTIONS)
    if attention == 'cudnn' and config.dtype != 'bfloat16':
        raise ValueError(
            f"attention is 'cudnn'; expected 'xla' or 'auto' with dtype {config.dtype!r}"
        )
    if not config.width > 0:
        raise ValueError(f'width is {config.width!r}; expected a number above 0')
    return BACKBONES[config.backbone](config, axis_name)


def cell_shift(config: Any) -> int:
    """Return by how many pixels a backbone's cells lie beside the middle of what they stand for.

    Cell i of a map at stride s stands for the pixels from s i on, with (s i + (s - 1) / 2) as their
    middle, where a ViT has its patches. Torch's symmetric padding puts it at s i, half a stride
    before, and TensorFlow's 'SAME' at s i + s - 1, half a stride behind, in images of even sides.

    Args:
        config: config.model.

    Returns:
        Pixels to the right and down, rounded away from zero; negative: to the left and up.
    """
    if config.backbone in PLAIN:
        return 0
    same = config.backbone.startswith(('efficientnet', 'mobilenet'))
    return config.output_stride // 2 if same else -(config.output_stride // 2)


class Pixels(NamedTuple):
    """What the published weights of a backbone expect of RGB in [0, 1].

    Attributes:
        mean: of each channel, subtracted.
        std: of each channel, divided by.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Backbone -> its pixels, where they are not ImageNet's: of 8-bit x Keras's MobileNet takes
# x / 127.5 - 1, EfficientNet-Lite (x - 127) / 128.
PIXELS = {
    'mobilenet_v1': Pixels((0.5,) * 3, (0.5,) * 3),
    **{
        f'efficientnet_{variant}': Pixels((127 / 255,) * 3, (128 / 255,) * 3)
        for variant in efficientnet.SCALES
    },
}


def pixels(config: Any) -> Pixels:
    """Return what a network's first weights expect: those of `pretrained`, else ImageNet's.

    Args:
        config: config.model; no file of weights is opened.
    """
    return PIXELS.get(config.backbone, IMAGENET) if config.pretrained else IMAGENET
