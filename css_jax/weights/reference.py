"""Weights from and to the names of the reference's checkpoints."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# Module of the reference -> module here; BatchNorms are those whose last name says bn.
DEEP_STEM = {
    'resnet_conv1.0': 'backbone/conv1_0',
    'resnet_conv1.1': 'backbone/bn1_1',
    'resnet_conv1.3': 'backbone/conv1_3',
    'resnet_conv1.4': 'backbone/bn1_4',
    'resnet_conv1.6': 'backbone/conv1_6',
}
DECODER = {
    **{f'ASPP.convs.{i}.0': f'aspp/conv{i}' for i in range(4)},
    **{f'ASPP.convs.{i}.1': f'aspp/bn{i}' for i in range(4)},
    'ASPP.convs.4.1': 'aspp/pool_conv',
    'ASPP.convs.4.2': 'aspp/pool_bn',
    'ASPP.project.0': 'aspp/project_conv',
    'ASPP.project.1': 'aspp/project_bn',
    'project.0': 'low_level_conv',
    'project.1': 'low_level_bn',
}
HEADS = {'classifier': 'head_logits', 'representation': 'head_representation'}


def plain(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict without the prefix 'module.' and entries `num_batches_tracked`."""
    arrays = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    return {k: v for k, v in arrays.items() if not k.endswith('num_batches_tracked')}


def from_reference(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of the reference's network to the variables of `models.build`'s.

    Depths, kind of block and stem are read from the names. Entries `num_batches_tracked` are
    ignored; the representation head may be absent altogether.

    Args:
        state_dict: name -> array as torch has it (convolutions [out, in, h, w]); every name may
            start with 'module.'.

    Returns:
        {'params', 'batch_stats'}, float32, convolutions [h, w, in, out].

    Raises:
        ValueError: an entry is missing, not known or of the wrong rank; it is named.
    """
    arrays = plain(state_dict)
    return renamed(arrays, reference_table(arrays))


def renamed(arrays: Mapping[str, np.ndarray], table: Mapping[str, str]) -> dict[str, Any]:
    """Convert the entries of a state dict to variables of `models.build`'s network.

    Args:
        arrays: name -> array as torch has it.
        table: name -> path here, of all entries.

    Returns:
        As `from_reference`.

    Raises:
        ValueError: an entry is missing, not known or of the wrong rank; it is named.
    """
    if missing := [name for name in table if name not in arrays]:
        raise ValueError(f'missing in the state dict: {listed(missing)}')
    if unknown := [name for name in arrays if name not in table]:
        raise ValueError(f'not known in the state dict: {listed(unknown)}')

    variables = {}
    for name, path in table.items():
        array = np.asarray(arrays[name], np.float32)
        rank = 4 if path.endswith('/kernel') else 1
        if array.ndim != rank:
            raise ValueError(f'{name} has shape {array.shape}; expected {rank} axes')
        variables[path] = array.transpose(2, 3, 1, 0) if rank == 4 else array
    return unflatten_dict(variables, sep='/')


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables of `models.build`'s network to the reference's names.

    The inverse of `from_reference`, for backbones and heads that the reference's network has.

    Args:
        variables: {'params', 'batch_stats'}.

    Returns:
        Name -> array, convolutions [out, in, h, w]; without `num_batches_tracked`.

    Raises:
        ValueError: an entry that has no name in the reference.
    """
    return named(variables, reference_table(flatten_dict(variables, sep='/')))


def named(variables: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Convert variables of `models.build`'s network to a state dict: the inverse of `renamed`.

    Args:
        variables: {'params', 'batch_stats'}.
        table: name -> path here; paths that the network does not have are left out.

    Returns:
        Name -> array, convolutions [out, in, h, w], linear layers [out, in].

    Raises:
        ValueError: an entry that has no name in the table.
    """
    flat = flatten_dict(variables, sep='/')
    names = {path: name for name, path in table.items()}
    if unknown := [path for path in flat if path not in names]:
        raise ValueError(f'no name in the reference for: {listed(unknown)}')
    arrays = {names[path]: np.asarray(jax.device_get(value)) for path, value in flat.items()}
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}
    return {k: v.transpose(axes[v.ndim]) if v.ndim in axes else v for k, v in arrays.items()}


def counters(
    arrays: Mapping[str, np.ndarray], step: int, given: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Return BatchNorm's `num_batches_tracked`, which torch's strict loading asks for.

    Args:
        arrays: name -> array, a state dict without them.
        step: their value.
        given: name -> value, where it is another one.
    """
    norms = [name for name in arrays if name.endswith('running_mean')]
    tracked = [name.replace('running_mean', 'num_batches_tracked') for name in norms]
    return {name: np.asarray(np.int64((given or {}).get(name, step))) for name in tracked}


def reference_table(names: Iterable[str]) -> dict[str, str]:
    """Return entry of the reference -> path here, of the network that has (most of) these entries.

    Args:
        names: all entries of the reference's state dict or all paths here ('params/backbone/...').
    """
    names = list(names)
    modules = dict(DECODER)
    if any(re.search(r'conv1[._]0\b', name) for name in names):
        modules |= DEEP_STEM
    else:
        modules['resnet_conv1'] = 'backbone/conv1'
    modules['resnet_bn1'] = 'backbone/bn1'
    modules |= blocks(names, 'resnet_')
    for head, ours in HEADS.items():
        if head == 'classifier' or any(head in name for name in names):
            modules |= {f'{head}.0': f'{ours}/conv', f'{head}.1': f'{ours}/bn'}
            modules[f'{head}.3'] = f'{ours}/out'
    return entries(modules)


def entries(modules: Mapping[str, str], biased: Sequence[str] = ()) -> dict[str, str]:
    """Return entry of a state dict -> path here.

    Args:
        modules: module of the state dict -> module here.
        biased: modules here, other than a head's last one, whose convolution has a bias.
    """
    table = {}
    for module, path in modules.items():
        if re.search(r'bn[\d_]*$', path):
            table[f'{module}.weight'] = f'params/{path}/scale'
            table[f'{module}.bias'] = f'params/{path}/bias'
            table[f'{module}.running_mean'] = f'batch_stats/{path}/mean'
            table[f'{module}.running_var'] = f'batch_stats/{path}/var'
        else:
            table[f'{module}.weight'] = f'params/{path}/kernel'
        if path.endswith('/out') or path in biased:
            table[f'{module}.bias'] = f'params/{path}/bias'
    return table


def blocks(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Return module of a state dict -> module here, of the residual blocks that `names` have.

    Args:
        names: all entries of a state dict, or all paths here.
        prefix: of the backbone's modules in the state dict.
    """
    found = [re.search(r'layer(\d)[._](\d+)[./](\w+)', name) for name in names]
    found = [(int(m[1]), int(m[2]), m[3]) for m in found if m]
    bottleneck = any(part == 'conv3' for _, _, part in found)
    # Basic blocks of layer1 keep 64 channels, unless a deep stem gives them 128.
    projected = any(layer == 1 and part.startswith('downsample') for layer, _, part in found)
    modules = {}
    for layer in (1, 2, 3, 4):
        for i in range(1 + max((i for k, i, _ in found if k == layer), default=0)):
            block, ours = f'{prefix}layer{layer}.{i}', f'backbone/layer{layer}_{i}'
            for part in (1, 2, 3) if bottleneck else (1, 2):
                modules[f'{block}.conv{part}'] = f'{ours}/conv{part}'
                modules[f'{block}.bn{part}'] = f'{ours}/bn{part}'
            if i == 0 and (layer > 1 or bottleneck or projected):
                modules[f'{block}.downsample.0'] = f'{ours}/downsample_conv'
                modules[f'{block}.downsample.1'] = f'{ours}/downsample_bn'
    return modules


def listed(items: Sequence[str]) -> str:
    """Join the first three for a message, and says how many more there are."""
    more = f' and {len(items) - 3} more' if len(items) > 3 else ''
    return ', '.join(items[:3]) + more


def prefix(names: Iterable[str], landmark: str) -> str:
    """Return what precedes the names of a network: of several the EMA teacher's, else the first.

    Args:
        names: all entries of a file.
        landmark: a name that every file of the kind has, as the end of an entry.

    Raises:
        ValueError: no entry ends so.
    """
    names = list(names)
    found = [name.removesuffix(landmark) for name in names if name.endswith(landmark)]
    if not found:
        raise ValueError(f'no name ends in {landmark!r}; there are {listed(names)}')
    return next((p for p in found if re.match(r'(\w+_)?(ema|teacher)', p)), found[0])
