"""Networks of one convolution, and random variables, for tests that need no more."""

import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from css_jax.models import resnet, scaled
from css_jax.models.layers import BatchNorm, Conv

# `resnet18` of one block a layer.
shallow = functools.partial(resnet.build, resnet.BasicBlock, (1, 1, 1, 1))


FEATURES = ('stride4', 'last', 'tap1', 'tap2', 'tap3', 'tap4')


class Named(nn.Module):
    """Stands for the backbone of `Small` where its channels are counted."""

    @nn.compact
    def __call__(self, x, train):
        return {name: jnp.zeros((len(x), 1, 1, 8)) for name in FEATURES}


class Small(nn.Module):
    """Stands for DeepLab where the network does not matter: the step is traced in no time."""

    outputs: tuple
    axis_name: str | None
    backbone = property(lambda self: Named())

    @nn.compact
    def __call__(self, x, train=False, image_weights=None, channel_scale=None):
        train = image_weights if train and image_weights is not None else train
        x = nn.relu(BatchNorm(self.axis_name)(Conv(8, 3, 4)(x), train))
        for factors in jax.tree.leaves(channel_scale):
            x = scaled.scale({'x': x[: len(factors)]}, {'x': factors})['x']
        return {name: Conv(channels, 1, name=name)(x) for name, channels in self.outputs}


class Plain(nn.Module):
    """A network without BatchNorm."""

    outputs: tuple

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(Conv(8, 3, 4)(x))
        return {name: Conv(channels, 1, name=name)(x) for name, channels in self.outputs}


def drawn(shapes, low=0.5, high=1.5):
    """Random variables: with the initial ones every residual branch is zero.

    Scales and variances are uniform from `low` to `high`.
    """
    r = np.random.default_rng(2)

    def draw(path, s):
        if len(s.shape) == 4:
            values = r.standard_normal(s.shape) * (2 / np.prod(s.shape[:3])) ** 0.5
        else:
            values = r.uniform(low, high, s.shape) * (path[-1].key in ('scale', 'var'))
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def stored(name, shape):
    """The array of this name by the rule of fixtures/README.md."""
    r = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('running_mean') or name.endswith('.bias'):
        array = 0.1 * r.standard_normal(shape)
    elif name.endswith('running_var'):
        array = r.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        array = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        array = r.uniform(*((0.1, 0.3) if 'bn3' in name else (0.5, 1.5)), shape)
    return array.astype(np.float32)


def small(config, num_classes, outputs, axis_name):
    return Small(tuple(outputs.items()), axis_name)
