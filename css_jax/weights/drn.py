"""Weights from the names of DRN's published files, and of the files of USSS's authors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from css_jax.models import drn
from css_jax.weights import reference

# Module of USSS's network -> head of family fcn here.
HEADS = {'seg.0': 'head_logits_a', 'seg.1': 'head_logits_b', 'en_map': 'head_embedding'}


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of a DRN-D to the variables of `models.build`'s network.

    That is the backbone of the files for ImageNet (`layer3.0.conv1.weight`), whose classifier `fc`
    is left out, or the network of family fcn of USSS's authors (`base.3.0.conv1.weight`): `seg.0`
    becomes the head 'logits_a', `seg.1` 'logits_b', `en_map` 'embedding', each where it is there,
    and the fixed kernels `up` and `en_up` are left out. Depths and kind of block are read from the
    names. Entries `num_batches_tracked` are ignored.

    Args:
        state_dict: name -> array as torch has it (convolutions [out, in, h, w]); every name may
            start with 'module.'.

    Returns:
        {'params', 'batch_stats'}, float32, convolutions [h, w, in, out]: 'backbone' and the heads.

    Raises:
        ValueError: an entry is missing, not known or of the wrong rank; it is named.
    """
    arrays = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    left_out = re.compile(r'(fc|up\.\d+|en_up)\.\w+$|.*\.num_batches_tracked$')
    arrays = {name: value for name, value in arrays.items() if not left_out.match(name)}
    prefix = 'base.' if any(name.startswith('base.') for name in arrays) else 'layer'
    heads = {
        module: path
        for module, path in HEADS.items()
        if any(name.startswith(f'{module}.') for name in arrays)
    }
    modules = {f'{prefix}{name}': path for name, path in _modules(arrays).items()} | heads
    return reference.renamed(arrays, reference.entries(modules, biased=tuple(heads.values())))


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables of a network of family fcn on a DRN-D to the names of USSS's authors.

    The inverse of `from_torch`; the fixed kernels `up` and `en_up` are not in it.

    Args:
        variables: {'params', 'batch_stats'}.

    Returns:
        Name -> array, convolutions [out, in, h, w]; without `num_batches_tracked`.

    Raises:
        ValueError: an entry, such as a third dataset's head, that has no name there.
    """
    modules = _modules(flatten_dict(variables, sep='/'))
    modules = {f'base.{name}': path for name, path in modules.items()} | HEADS
    return reference.named(variables, reference.entries(modules, biased=tuple(HEADS.values())))


def names(paths: Iterable[str]) -> dict[str, str]:
    """Return entry of a file, without what stands before a level's number -> path here.

    Args:
        paths: of the backbone, 'params/backbone/level3_0/conv1/kernel' and so on.
    """
    return reference.entries(_modules(paths))


def _modules(names: Iterable[str]) -> dict[str, str]:
    """Return module of a file -> module here; 3.0.conv1 is backbone/level3_0/conv1.

    Args:
        names: all entries of a state dict, or all paths here.
    """
    found = [re.search(r'(?:layer|base\.|level)(\d)[._](\d+)[./](\w+)', name) for name in names]
    found = [(int(m[1]), int(m[2]), m[3]) for m in found if m]
    bottleneck = any(part == 'conv3' for _, _, part in found)
    modules = {}
    for level in range(len(drn.LEVELS)):
        if level not in drn.RESIDUAL:
            modules[f'{level}.0'] = f'backbone/level{level}/conv'
            modules[f'{level}.1'] = f'backbone/level{level}/bn'
            continue
        for i in range(1 + max((i for k, i, _ in found if k == level), default=0)):
            block, ours = f'{level}.{i}', f'backbone/level{level}_{i}'
            for part in (1, 2, 3) if bottleneck else (1, 2):
                modules[f'{block}.conv{part}'] = f'{ours}/conv{part}'
                modules[f'{block}.bn{part}'] = f'{ours}/bn{part}'
            if i == 0:
                modules[f'{block}.downsample.0'] = f'{ours}/downsample_conv'
                modules[f'{block}.downsample.1'] = f'{ours}/downsample_bn'
    return modules
