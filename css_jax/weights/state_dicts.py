"""State dicts for torch: a network by the names of the program that has the same one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from css_jax.models.backbones import PLAIN
from css_jax.weights import dinov2, drn, imas, reference, timm, unimatch


def convert(
    model: Any, variables: Mapping[str, Any], step: int
) -> tuple[str, dict[str, np.ndarray]]:
    """Convert a network's variables to the state dict of the program that has the same network.

    Args:
        model: config.model, finalised.
        variables: {'params', 'batch_stats'}.
        step: value of BatchNorm's `num_batches_tracked`, which torch's strict loading asks for.

    Returns:
        Whose program it is, and name -> array as torch has it.

    Raises:
        ValueError: no program has such a network, or one of its arrays.
    """
    resnet = model.backbone.startswith('resnet')
    if model.family == 'fcn' and model.backbone.startswith('drn'):
        whose, arrays = "USSS's authors", drn.to_torch(variables)
    elif model.family == 'largefov' and model.backbone in PLAIN:
        whose, arrays = "CoSA's authors", timm.to_torch(variables)
    elif dinov2.named(model):
        whose, arrays = "UniMatch V2's authors", dinov2.to_torch(variables)
    elif (
        model.family == 'deeplab' and resnet and model.head_convs == 2 and not model.low_level_bias
    ):
        whose, arrays = "UniMatch's authors", unimatch.to_torch(variables)
    elif model.family == 'deeplab' and resnet and model.head_convs == 2:
        whose, arrays = "iMAS's authors", imas.to_torch(variables)
    elif model.family == 'deeplab' and resnet:
        whose, arrays = "CSS's authors", reference.to_reference(variables)
    else:
        raise ValueError(
            f'no program for torch has names for family {model.family} on {model.backbone}: '
            'expected deeplab on a ResNet, fcn on a DRN, largefov on a ViT or dpt on a DINOv2; '
            'onnx and stablehlo are for every network'
        )
    return whose, arrays | reference.counters(arrays, step)
