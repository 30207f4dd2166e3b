"""Weights from the names of the checkpoints of UniMatch's authors (CVPR 2023): DeepLabV3+."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from css_jax.weights import reference

# Module of their network -> module here; those of the residual blocks are added.
MODULES = {
    'backbone.bn1': 'backbone/bn1',
    **{name.replace('resnet_', 'backbone.'): p for name, p in reference.DEEP_STEM.items()},
    **{f'head.b{i}.0': f'aspp/conv{i}' for i in range(4)},
    **{f'head.b{i}.1': f'aspp/bn{i}' for i in range(4)},
    'head.b4.gap.1': 'aspp/pool_conv',
    'head.b4.gap.2': 'aspp/pool_bn',
    'head.project.0': 'aspp/project_conv',
    'head.project.1': 'aspp/project_bn',
    'reduce.0': 'low_level_conv',
    'reduce.1': 'low_level_bn',
    'fuse.0': 'head_logits/conv',
    'fuse.1': 'head_logits/bn',
    'fuse.3': 'head_logits/conv2',
    'fuse.4': 'head_logits/bn2',
    'classifier': 'head_logits/out',
}


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of the authors' network to the variables of `models.build`'s.

    That is the network of model.stem=deep, first_dilation=previous and head_convs=2. Depths are
    read from the names. Entries `num_batches_tracked` are ignored.

    Args:
        state_dict: name -> array as torch has it (convolutions [out, in, h, w]); every name may
            start with 'module.'.

    Returns:
        {'params', 'batch_stats'}, float32, convolutions [h, w, in, out].

    Raises:
        ValueError: an entry is missing, not known or of the wrong rank; it is named.
    """
    arrays = reference.plain(state_dict)
    table = reference.entries(MODULES | reference.blocks(arrays, 'backbone.'))
    return reference.renamed(arrays, table)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables of the network that `from_torch` makes to the authors' names.

    Args:
        variables: {'params', 'batch_stats'}.

    Returns:
        Name -> array, convolutions [out, in, h, w]; without `num_batches_tracked`.

    Raises:
        ValueError: an entry that has no name there.
    """
    modules = MODULES | reference.blocks(flatten_dict(variables, sep='/'), 'backbone.')
    return reference.named(variables, reference.entries(modules))
