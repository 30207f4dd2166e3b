"""Weights from the names of timm's vision transformers, which DeiT, DINO and CoSA have too."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from css_jax.weights import reference

LANDMARK = 'patch_embed.proj.weight'
PREFIX = 'encoder.'  # of the backbone, in the network of CoSA's authors
# Entry of the network of CoSA's authors -> path here, in family largefov.
HEADS = {
    'decoder.conv6.weight': 'head_logits/conv1/kernel',
    'decoder.conv7.weight': 'head_logits/conv2/kernel',
    'decoder.conv8.weight': 'head_logits/out/kernel',
    'classifier.weight': 'head_class/conv/kernel',
    'aux_classifier.weight': 'head_class_aux/conv/kernel',
}
# Module of a block -> its leaf beside the bias.
_BLOCK = {
    'norm1': 'scale',
    'attn/qkv': 'kernel',
    'attn/proj': 'kernel',
    'norm2': 'scale',
    'mlp/fc1': 'kernel',
    'mlp/fc2': 'kernel',
}
# Classifiers for ImageNet, a projection before one, and the token of distillation.
LEFT_OUT = re.compile(r'(head|head_dist|pre_logits|fc)\.|dist_token$')


def to_params(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of a vision transformer to the parameters of `models.vit.ViT`.

    That is a file of timm, of DeiT (whose token of distillation is left out, with its place) or of
    DINO (of a checkpoint of its training, the teacher's). What stands in front of the names is
    found; entries with other words there, and classifiers, are left out. The depth is read from the
    names.

    Args:
        state_dict: name -> array as torch has it: linear layers [out, in], the patches' convolution
            [out, in, h, w].

    Returns:
        Parameters, float32: linear layers [in, out], the patches' kernel [h, w, in, out], the table
        of positions at its own grid [1, 1 + g g, D].

    Raises:
        ValueError: there is no such network, or an entry is missing, not known or of the wrong
            rank; it is named.
    """
    prefix = reference.prefix(state_dict, LANDMARK)
    arrays = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    arrays = {name: value for name, value in arrays.items() if not LEFT_OUT.match(name)}
    return unflatten_dict(converted(arrays, _entries(arrays)), sep='/')


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of CoSA's authors to the variables of `models.build`'s network.

    That is the network of family largefov; its heads are 'logits', 'class' and 'cam', 'class_aux'
    and 'cam_aux', where the state dict has them.

    Args:
        state_dict: name -> array as torch has it; every name may start with 'module.'.

    Returns:
        {'params'}: 'backbone' and the heads.

    Raises:
        ValueError: as `to_params`.
    """
    arrays = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    modules = {name.split('.')[0] for name in arrays}
    table = {name: path for name, path in HEADS.items() if name.split('.')[0] in modules}
    heads = {k: v for k, v in arrays.items() if k.split('.')[0] in {n.split('.')[0] for n in HEADS}}
    params = unflatten_dict(converted(heads, table), sep='/')
    return {'params': {'backbone': to_params(arrays), **params}}


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables of family largefov on a ViT to the names of CoSA's authors.

    The inverse of `from_torch`.

    Args:
        variables: {'params'}: 'backbone' and the heads.

    Returns:
        Name -> array as torch has it.

    Raises:
        ValueError: an entry that has no name there.
    """
    paths = flatten_dict(variables, sep='/')
    backbone = names(path for path in paths if '/backbone/' in path)
    table = {f'{PREFIX}{name}': path for name, path in backbone.items()}
    table |= {name: f'params/{path}' for name, path in HEADS.items()}
    return reference.named(variables, table)


def names(paths: Iterable[str]) -> dict[str, str]:
    """Return entry of a file -> path here.

    Args:
        paths: of the backbone, 'params/backbone/block3/attn/qkv/kernel' and so on.
    """
    return {entry(path.split('/backbone/')[1]): path for path in paths}


def to_ours(path: str, array: np.ndarray) -> np.ndarray:
    """Return an array of a file in our order of axes, without the place of DeiT's second token."""
    if path.endswith('pos_embed') and array.ndim == 3:
        return _without_distillation(array)
    if path.endswith('/kernel'):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


def _without_distillation(table: np.ndarray) -> np.ndarray:
    """Drop the second row of [1, 2 + g g, D]; a table [1, 1 + g g, D] stays."""
    places = table.shape[1] - 2
    return np.delete(table, 1, axis=1) if places > 0 and _square(places) else table


def _square(count: int) -> bool:
    return round(count**0.5) ** 2 == count


def entry(path: str) -> str:
    """Return the entry of a path of the backbone: of block3/mlp/fc1/bias blocks.3.mlp.fc1.bias."""
    name = re.sub(r'^block(\d+)/', r'blocks.\1.', path)
    name = re.sub(r'(kernel|scale)$', 'weight', name.replace('/', '.'))
    return name.replace('patch_embed.', 'patch_embed.proj.')


def _entries(names: Iterable[str]) -> dict[str, str]:
    """Return entry -> path here, of a network with as many blocks as the names have."""
    paths = ['cls_token', 'pos_embed', 'patch_embed/kernel', 'patch_embed/bias']
    for i in range(depth(names)):
        for module, leaf in _BLOCK.items():
            paths += [f'block{i}/{module}/{leaf}', f'block{i}/{module}/bias']
    return {entry(path): path for path in (*paths, 'norm/scale', 'norm/bias')}


def depth(names: Iterable[str]) -> int:
    """Return how many blocks the entries of a state dict have, at least one."""
    return 1 + max(
        (int(m[1]) for name in names if (m := re.match(r'blocks\.(\d+)\.', name))), default=0
    )


def converted(arrays: Mapping[str, np.ndarray], table: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Convert the entries of a state dict: path -> array, float32, in our order of axes.

    Args:
        arrays: name -> array as torch has it.
        table: name -> path here, of all entries.

    Raises:
        ValueError: an entry is missing, not known or of the wrong rank; it is named.
    """
    if missing := [name for name in table if name not in arrays]:
        raise ValueError(f'missing in the state dict: {reference.listed(missing)}')
    if unknown := [name for name in arrays if name not in table]:
        raise ValueError(f'not known in the state dict: {reference.listed(unknown)}')
    found = {}
    for name, path in table.items():
        array, rank = np.asarray(arrays[name], np.float32), _rank(path)
        if array.ndim != rank:
            raise ValueError(f'{name} has shape {array.shape}; expected {rank} axes')
        found[path] = to_ours(path, array)
    return found


def _rank(path: str) -> int:
    if path in ('cls_token', 'pos_embed', 'register_tokens'):
        return 3
    if not path.endswith('/kernel'):
        return 1
    return 2 if path.startswith('block') else 4
