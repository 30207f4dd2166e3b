"""The backbones by name."""

from functools import partial
from typing import Any, NamedTuple

from css_jax.models import efficientnet, mobilenet, resnet

# Name -> constructor: (config.model, axis_name) -> module, (images [B, H, W, 3], train) -> name of
# a feature map -> [B, h, w, C]. Every backbone has 'stride4', which the decoder works at, and
# 'last'; a head says what else it reads.
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
}


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
