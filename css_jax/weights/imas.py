"""Weights from the names of the checkpoints of iMAS's authors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from css_jax.weights import reference

# Module of their network -> module here; those of the residual blocks and the stem are added.
MODULES = {
    'encoder.bn1': 'backbone/bn1',
    **{name.replace('resnet_', 'encoder.'): p for name, p in reference.DEEP_STEM.items()},
    'decoder.low_conv.0': 'low_level_conv',
    'decoder.low_conv.1': 'low_level_bn',
    'decoder.aspp.conv1.1': 'aspp/pool_conv',
    'decoder.aspp.conv1.2': 'aspp/pool_bn',
    **{f'decoder.aspp.conv{i + 2}.0': f'aspp/conv{i}' for i in range(4)},
    **{f'decoder.aspp.conv{i + 2}.1': f'aspp/bn{i}' for i in range(4)},
    'decoder.head.0': 'aspp/project_conv',
    'decoder.head.1': 'aspp/project_bn',
    'decoder.classifier.0': 'head_logits/conv',
    'decoder.classifier.1': 'head_logits/bn',
    'decoder.classifier.3': 'head_logits/conv2',
    'decoder.classifier.4': 'head_logits/bn2',
    'decoder.classifier.6': 'head_logits/out',
}
AUXILIARY = {
    'auxor.aux.0': 'head_auxiliary/conv',
    'auxor.aux.1': 'head_auxiliary/bn',
    'auxor.aux.3': 'head_auxiliary/out',
}


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of the authors' network to the variables of `models.build`'s.

    That is the network of model.stem=deep, stem_ceil_mode=True, first_dilation=previous,
    head_convs=2 and low_level_bias=True, with the head 'auxiliary' where the state dict has one.
    Depths are read from the names. Entries `num_batches_tracked` are ignored.

    Args:
        state_dict: name -> array as torch has it (convolutions [out, in, h, w]); every name may
            start with 'module.'.

    Returns:
        {'params', 'batch_stats'}, float32, convolutions [h, w, in, out].

    Raises:
        ValueError: an entry is missing, not known or of the wrong rank; it is named.
    """
    arrays = reference.plain(state_dict)
    modules = MODULES | reference.blocks(arrays, 'encoder.')
    if any(name.startswith('auxor.') for name in arrays):
        modules |= AUXILIARY
    table = reference.entries(modules, biased=('low_level_conv',))
    variables = reference.renamed(arrays, table)
    # Of what ASPP's projection reads, theirs has the image's mean first, ours has it last.
    project = variables['params']['aspp']['project_conv']
    mean = variables['params']['aspp']['pool_conv']['kernel'].shape[-1]
    project['kernel'] = np.roll(project['kernel'], -mean, axis=2)
    return variables


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables of the network that `from_torch` makes to the authors' names.

    Args:
        variables: {'params', 'batch_stats'}.

    Returns:
        Name -> array, convolutions [out, in, h, w]; without `num_batches_tracked`.

    Raises:
        ValueError: an entry that has no name there.
    """
    modules = MODULES | AUXILIARY | reference.blocks(flatten_dict(variables, sep='/'), 'encoder.')
    arrays = reference.named(variables, reference.entries(modules, biased=('low_level_conv',)))
    mean = len(arrays['decoder.aspp.conv1.1.weight'])  # see `from_torch`
    project = arrays['decoder.head.0.weight']
    return arrays | {'decoder.head.0.weight': np.roll(project, mean, axis=1)}
