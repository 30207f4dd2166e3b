"""Weights of DINOv2 by the names of Meta, timm and Hugging Face, and of UniMatch V2's checkpoints.

The names here are Meta's, in which timm's and Hugging Face's are turned first.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from css_jax.models.dinov2 import SIZES
from css_jax.weights import reference, timm

# Hugging Face's name, as the end of an entry or in front of one -> Meta's.
_HUGGING_FACE = (
    (r'\bembeddings\.(cls_token|mask_token|register_tokens)$', r'\1'),
    (r'\bembeddings\.position_embeddings$', 'pos_embed'),
    (r'\bembeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'\bencoder\.layer\.(\d+)\.', r'blocks.\1.'),
    (r'\battention\.attention\.(query|key|value)\.', r'attn.\1.'),
    (r'\battention\.output\.dense\.', 'attn.proj.'),
    (r'\blayer_scale(\d)\.lambda1$', r'ls\1.gamma'),
    (r'\bmlp\.weights_in\.', 'mlp.w12.'),
    (r'\bmlp\.weights_out\.', 'mlp.w3.'),
    (r'\blayernorm\.', 'norm.'),
)
_UNUSED = 'mask_token'  # of the training of DINOv2 alone
# Module of a block -> its leaves; of the MLP see `_paths`.
_BLOCK = {
    'norm1': ('scale', 'bias'),
    'attn/qkv': ('kernel', 'bias'),
    'attn/proj': ('kernel', 'bias'),
    'ls1': ('gamma',),
    'norm2': ('scale', 'bias'),
    'ls2': ('gamma',),
}
HEAD_LANDMARK = 'head.projects.0.weight'
# Module of the head of UniMatch V2 -> module of `models.dpt.DPT`.
HEAD = {
    **{f'head.projects.{i}': f'head/project{i + 1}' for i in range(4)},
    'head.resize_layers.0': 'head/resize1',
    'head.resize_layers.1': 'head/resize2',
    'head.resize_layers.3': 'head/resize4',
    **{f'head.scratch.layer{i}_rn': f'head/level{i}' for i in (1, 2, 3, 4)},
    **{f'head.scratch.refinenet{i}.out_conv': f'head/fusion{i}/out' for i in (1, 2, 3, 4)},
    **{
        f'head.scratch.refinenet{i}.resConfUnit{k}.conv{j}': f'head/fusion{i}/unit{k}/conv{j}'
        for i in (1, 2, 3, 4)
        for k in (1, 2)
        for j in (1, 2)
        if (i, k) != (4, 1)
    },
    'head.scratch.output_conv.0': 'head/head_logits/conv',
    'head.scratch.output_conv.2': 'head/head_logits/out',
}
_ENTRIES = reference.entries(HEAD, [path for path in HEAD.values() if 'level' not in path])
_TRANSPOSED = ('head.resize_layers.0.weight', 'head.resize_layers.1.weight')
# Of the coarsest level, which has nothing to add it to: there in checkpoints, and never used.
_IDLE = 'head.scratch.refinenet4.resConfUnit1.'


def by_meta(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the entries of a file by Meta's names, whatever stands in front of these.

    Of Hugging Face query, key and value become one layer. Of timm the SwiGLU's layers have the
    MLP's names. With registers its table has no row of the class token, as that is added to the
    token already: the row becomes zeros.

    Args:
        arrays: name -> array as torch has it, by the names of any of the three.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        for pattern, meta in _HUGGING_FACE:
            name = re.sub(pattern, meta, name)
        found[name] = array
    for name in list(found):
        if query := re.match(r'(.*attn\.)query(\.\w+)$', name):
            parts = [f'{query[1]}{part}{query[2]}' for part in ('query', 'key', 'value')]
            if all(part in found for part in parts):
                merged = np.concatenate([found.pop(part) for part in parts])
                found[f'{query[1]}qkv{query[2]}'] = merged
        elif first := re.match(r'(.*blocks\.\d+\.mlp\.)fc1\.weight$', name):
            last = found.get(f'{first[1]}fc2.weight')
            if last is not None and len(found[name]) == 2 * last.shape[-1]:
                for theirs, meta in (('fc1', 'w12'), ('fc2', 'w3')):
                    for leaf in ('weight', 'bias'):
                        if (old := f'{first[1]}{theirs}.{leaf}') in found:
                            found[f'{first[1]}{meta}.{leaf}'] = found.pop(old)
        elif tokens := re.match(r'(.*\b|)reg_token$', name):
            found[f'{tokens[1]}register_tokens'] = found.pop(name)
            if (table := found.get(f'{tokens[1]}pos_embed')) is not None:
                found[f'{tokens[1]}pos_embed'] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    return found


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict to parameters of `models.dinov2.ViT`, or of UniMatch V2's network.

    That is a file of Meta, timm or Hugging Face, with or without registers, with an MLP or a
    SwiGLU; or a state dict of the program of UniMatch V2, whose head is `models.dpt.Head`. What
    stands in front of the names is found: of a checkpoint of that program's training the EMA
    teacher's is taken. Depth, registers and FFN are read from the names. Classifiers, the mask
    token and the unit of the head that has no use are left out.

    Args:
        state_dict: name -> array as torch has it: linear layers [out, in], convolutions [out, in,
            h, w], transposed ones [in, out, h, w].

    Returns:
        Parameters, float32: of the transformer alone; with a head {'backbone': ..., 'head': ...};
        of a head alone {'head': ...}.

    Raises:
        ValueError: there is no such network, or an entry is missing, not known or of the wrong
            rank; it is named.
    """
    arrays, head = by_meta(state_dict), {}
    if any(name.endswith(HEAD_LANDMARK) for name in arrays):
        own = _behind(arrays, reference.prefix(arrays, HEAD_LANDMARK))
        own = {k: v for k, v in own.items() if k.startswith('head.') and not k.startswith(_IDLE)}
        for name in _TRANSPOSED:
            if name in own and own[name].ndim == 4:
                own[name] = own[name].swapaxes(0, 1)
        head = reference.renamed(own, _ENTRIES)['params']
        if not any(name.endswith(timm.LANDMARK) for name in arrays):
            return head
    arrays = _behind(arrays, reference.prefix(arrays, timm.LANDMARK))
    arrays = {k: v for k, v in arrays.items() if k != _UNUSED and not timm.LEFT_OUT.match(k)}
    table = {timm.entry(path): path for path in _paths(arrays)}
    backbone = unflatten_dict(timm.converted(arrays, table), sep='/')
    return {'backbone': backbone, **head} if head else backbone


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables of family dpt on a DINOv2 to the names of UniMatch V2's authors.

    The inverse of `from_torch`. What their network has and never uses is zeros: torch's strict
    loading asks for it.

    Args:
        variables: {'params'}: 'backbone' and 'head', with the head 'logits' alone.

    Returns:
        Name -> array as torch has it.

    Raises:
        ValueError: an entry that has no name there.
    """
    paths = flatten_dict(variables, sep='/')
    backbone = timm.names(path for path in paths if '/backbone/' in path)
    table = {f'backbone.{name}': path for name, path in backbone.items()}
    arrays = reference.named(variables, table | _ENTRIES)
    arrays |= {name: arrays[name].swapaxes(0, 1) for name in _TRANSPOSED}
    arrays[f'backbone.{_UNUSED}'] = np.zeros_like(arrays['backbone.cls_token'][0])
    used = _IDLE.replace('Unit1', 'Unit2')
    return arrays | {
        name.replace(used, _IDLE): np.zeros_like(array)
        for name, array in arrays.items()
        if name.startswith(used)
    }


def named(model: Any) -> bool:
    """Return whether `to_torch` has names for the network of `model`, which is config.model."""
    return model.family == 'dpt' and model.backbone in SIZES


def _behind(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _paths(names: Mapping[str, Any]) -> list[str]:
    """Return all paths of a network with the depth, FFN and registers that the names have."""
    paths = ['cls_token', 'pos_embed', 'patch_embed/kernel', 'patch_embed/bias']
    paths += ['register_tokens'] * ('register_tokens' in names)
    gated = any('.mlp.w12.' in name for name in names)
    layers = ('mlp/w12', 'mlp/w3') if gated else ('mlp/fc1', 'mlp/fc2')
    block = _BLOCK | dict.fromkeys(layers, ('kernel', 'bias'))
    for i in range(timm.depth(names)):
        paths += [
            f'block{i}/{module}/{leaf}' for module, leaves in block.items() for leaf in leaves
        ]
    return [*paths, 'norm/scale', 'norm/bias']
