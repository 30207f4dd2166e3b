"""Small networks of DINOv2 and DPT as their authors' outputs are of, with the drawn weights."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from css_jax.models import dinov2, dpt
from css_jax.weights import dinov2 as weights
from css_jax.weights import timm

GOLDEN = Path(__file__).parent / 'fixtures' / 'unimatch_network.npz'
VIT = {'embed_dim': 32, 'depth': 4, 'heads': 4, 'grid': 5, 'taps': (0, 1, 2, 3)}
TINY = {'embed_dim': 24, 'depth': 2, 'heads': 3, 'grid': 3, 'taps': (1,)}
# Stands for dinov2_small where its depth does not matter.
SHALLOW = dinov2.Size(6, 2, (0, 0, 1, 1))
SIZE = dpt.Size(16, (8, 12, 16, 20))


def drawn(name, shape):
    """The array of this name by the rule of fixtures/README.md."""
    r = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('.gamma'):
        a = r.uniform(0.2, 1.0, shape)
    elif name.endswith(('pos_embed', 'cls_token', 'mask_token', 'register_tokens')):
        a = 0.5 * r.standard_normal(shape)
    elif name.endswith('.bias'):
        a = 0.1 * r.standard_normal(shape)
    elif len(shape) == 1:
        a = r.uniform(0.5, 1.5, shape)
    else:
        a = r.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    return a.astype(np.float32)


def entries(module, size, front=''):
    """Entry of a state dict -> shape there, of a ViT or a DPT."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *size, 3)))['params']
    axes, found = {2: (1, 0), 4: (3, 2, 0, 1)}, {}
    for path, leaf in flatten_dict(shapes, sep='/').items():
        if path.startswith('head/'):
            name = next(n for n, p in weights._ENTRIES.items() if p == f'params/{path}')
        else:
            name = front + timm.entry(path.removeprefix('backbone/'))
        shape = tuple(leaf.shape[i] for i in axes.get(len(leaf.shape), range(len(leaf.shape))))
        if name in weights._TRANSPOSED:
            shape = (shape[1], shape[0], *shape[2:])
        found[name] = shape
    return found


def state_dict(module, size=(14, 14), front=''):
    """All arrays of a network, by its authors' names."""
    return {name: drawn(name, shape) for name, shape in entries(module, size, front).items()}


def network(outputs=(('logits', 5),), **change):
    """The authors' small DPT, perhaps on another transformer, and its parameters."""
    module = dpt.DPT(dinov2.Backbone(**VIT | change), outputs, SIZE)
    given = weights.from_torch(state_dict(module, front='backbone.'))
    return module, {'params': given}


def assert_close(found, expected, tolerance=1e-4):
    """Compare within 1e-4 of the largest value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
