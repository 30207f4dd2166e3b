"""How files of backbone weights name and order their arrays.

A file is a dict name -> array. What stands in front of the names ('module.', 'ema_model.resnet_';
'layer' or 'base.' of a DRN's levels) is found, not listed: it is whatever precedes the layout's
landmark.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from css_jax import models
from css_jax.models import vit
from css_jax.weights import dinov2, drn, reference, timm

_BACKBONE = 'params/backbone/'


class Layout(NamedTuple):
    """One family of files.

    Attributes:
        landmark: a name that every file of the family has.
        names: paths of our backbone -> {name in the file: path}.
        to_ours: (path, array of the file) -> array in our order of axes.
        renamed: name -> array of a file to the same by the layout's names, where several programs
            have names of their own.
    """

    landmark: str
    names: Callable[[Iterable[str]], dict[str, str]]
    to_ours: Callable[[str, np.ndarray], np.ndarray]
    renamed: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda arrays: arrays


def of(backbone: str) -> Layout:
    """Return the layout of the files for `config.model.backbone`; torchvision's where none is."""
    return LAYOUTS.get(backbone, TORCH)


def backbone(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any], layout: Layout
) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """Find a backbone in the arrays of a file.

    Args:
        arrays: name -> array.
        shapes: path ('params/backbone/...', 'batch_stats/backbone/...') -> what has a shape: all
            of the backbone's arrays.
        layout: see `of`.

    Returns:
        Path -> float32 array, one for each of `shapes`; what stands in front of the names; names of
        the same network that were not taken ('fc.weight').

    Raises:
        ValueError: the file has no such network, or not one of these shapes. All of the backbone is
            taken or nothing: half of one would train, and badly.
    """
    arrays = layout.renamed(arrays)
    prefix = reference.prefix(arrays, layout.landmark)
    own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    own = {k: v for k, v in own.items() if not k.endswith('num_batches_tracked')}
    table = layout.names(shapes)
    ignored = [name for name in own if name not in table]
    missing = [name for name in table if name not in own]
    unknown = [
        name
        for name in ignored
        if re.match(r'((conv|bn|layer|stem)\w*[./]|_?blocks\.|\d+\.|register_tokens)', name)
    ]
    unknown = [name for name in unknown if not name.startswith('conv_preds')]  # Keras's classifier
    taken, wrong = {}, []
    for name, path in table.items():
        if name in own:
            array = layout.to_ours(path, np.asarray(own[name], np.float32))
            taken[path] = array
            if array.shape != shapes[path].shape:
                wrong.append(f'{name} has {array.shape}, expected {shapes[path].shape}')
    if missing or unknown or wrong:
        axes = ' (as [h, w, in, out])' if layout not in (VIT, DINOV2) else ''
        told = [f'{reference.listed(wrong)}{axes}'] if wrong else []
        told += [f'missing: {reference.listed(missing)}'] if missing else []
        told += [f'more than here: {reference.listed(unknown)}'] if unknown else []
        raise ValueError(f'{"; ".join(told)}. Likely {_cause(missing, unknown, wrong, shapes)}')
    return taken, prefix, [prefix + name for name in ignored]


def _cause(
    missing: list[str], unknown: list[str], wrong: list[str], shapes: Mapping[str, Any]
) -> str:
    """Guess from the names why a file does not fit a backbone of these shapes."""
    names = missing + unknown
    shaped = {told.split()[0] for told in wrong}
    if not names and shaped == {'pos_embed'}:
        side = round((shapes[f'{_BACKBONE}pos_embed'].shape[1] - 1) ** 0.5)
        return (
            'trained on images of another size: its table has a row for each patch, here '
            f'{side}x{side}'
        )
    if not names and timm.LANDMARK in shaped <= {timm.LANDMARK, 'pos_embed'}:
        patch = shapes[f'{_BACKBONE}patch_embed/kernel'].shape[0]
        return f'patches of another size, here {patch}x{patch}'
    if names == ['register_tokens']:
        return f'of a network with{"out" * bool(missing)} registers: see model.registers (0 or 4)'
    if any(re.match(r'conv1\.', name) for name in missing):
        return 'another stem: see model.stem (conv7: conv1.weight; deep: conv1.0.weight to 6)'
    if any(re.match(r'layer\d|_?blocks\.|\d+\.', name) for name in names):
        return 'another depth: see model.backbone'
    return 'another width, see model.width (1.0 for the published ResNets), or backbone'


def _torch_names(paths: Iterable[str]) -> dict[str, str]:
    table = reference.reference_table(paths)
    return {name.removeprefix('resnet_'): p for name, p in table.items() if '/backbone/' in p}


def _torch_to_ours(path: str, array: np.ndarray) -> np.ndarray:
    del path
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


_LITE_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
}
_LITE_NORMS = {'expand': '_bn0', 'depthwise': '_bn1', 'project': '_bn2'}


def _lite_names(paths: Iterable[str]) -> dict[str, str]:
    """Block 3's expand/kernel is _blocks.3._expand_conv.weight, its bn/mean _bn0.running_mean."""
    table = {}
    for path in paths:
        module, leaf = path.split('/backbone/')[1].rsplit('/', 1)
        name = re.sub(
            r'block(\d+)/(\w+)/bn', lambda m: f'_blocks.{m[1]}.{_LITE_NORMS[m[2]]}', module
        )
        name = re.sub(r'block(\d+)/(\w+)', r'_blocks.\1._\2_conv', name)
        name = {'conv_stem': '_conv_stem', 'conv_stem/bn': '_bn0'}.get(name, name)
        table[f'{name}.{_LITE_LEAVES.get(leaf, leaf)}'] = path
    return table


_KERAS_LEAVES = {'scale': 'gamma', 'bias': 'beta', 'mean': 'moving_mean', 'var': 'moving_variance'}


def _keras_names(paths: Iterable[str]) -> dict[str, str]:
    """Block 3's depthwise/kernel is conv_dw_3/depthwise_kernel, its bn/scale conv_dw_3_bn/gamma."""
    table = {}
    for path in paths:
        module, leaf = path.split('/backbone/')[1].rsplit('/', 1)
        name = re.sub(r'block(\d+)/depthwise', r'conv_dw_\1', module)
        name = re.sub(r'block(\d+)/pointwise', r'conv_pw_\1', name).replace('/bn', '_bn')
        kernel = 'depthwise_kernel' if module.endswith('depthwise') else 'kernel'
        table[f'{name}/{_KERAS_LEAVES.get(leaf, kernel)}'] = path
    return table


def _keras_to_ours(path: str, array: np.ndarray) -> np.ndarray:
    """Depthwise kernels are [3, 3, C, 1] there, [3, 3, 1, C] in Flax."""
    return array.swapaxes(2, 3) if path.endswith('depthwise/kernel') else array


TORCH = Layout('layer1.0.conv1.weight', _torch_names, _torch_to_ours)
KERAS = Layout('conv_dw_1/depthwise_kernel', _keras_names, _keras_to_ours)
# A depthwise kernel [C, 1, k, k] becomes [k, k, 1, C] as any other.
LITE = Layout('_blocks.0._depthwise_conv.weight', _lite_names, _torch_to_ours)
# Its names are what stands behind 'layer' or 'base.'.
DRN = Layout('0.0.weight', drn.names, _torch_to_ours)
VIT = Layout(timm.LANDMARK, timm.names, timm.to_ours)
DINOV2 = Layout(timm.LANDMARK, timm.names, timm.to_ours, dinov2.by_meta)
LAYOUTS = {
    'mobilenet_v1': KERAS,
    **{f'efficientnet_lite{i}': LITE for i in range(3)},
    **{f'drn_d_{depth}': DRN for depth in (22, 38, 54, 105)},
    **dict.fromkeys(vit.SIZES, VIT),
    **dict.fromkeys(models.dinov2.SIZES, DINOV2),
}
