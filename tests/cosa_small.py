"""A small CoSA: its configuration, network, batch and step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cosa as file
from css_jax import config as configs
from css_jax import methods, models, parallel, state, step
from css_jax.methods import (
    METHODS,
    cosa_thresholds,
)
from css_jax.models import largefov
from css_jax.models.layers import BatchNorm, Conv
from css_jax.state import TrainState

METHOD = METHODS['cosa']
HEADS = {'logits': 6, 'cam': 5, 'cam_aux': 5, 'class': 5, 'class_aux': 5}


class Backbone(nn.Module):
    """One convolution of stride 8, and one of single pixels."""

    axis_name: str | None
    norm: bool

    @nn.compact
    def __call__(self, x, train):
        x = Conv(6, 9, 8, use_bias=True, name='conv')(x)
        if self.norm:
            x = BatchNorm(self.axis_name, name='bn')(x, train)
        x = nn.relu(x)
        return {'layer3': x, 'last': nn.relu(Conv(8, 1, use_bias=True, name='out')(x))}


class Five(nn.Module):
    """Stands for family largefov: the five heads on that backbone."""

    outputs: tuple
    axis_name: str | None
    norm: bool

    @nn.compact
    def __call__(self, x, train=False, image_weights=None):
        features = Backbone(self.axis_name, self.norm, name='backbone')(x, train)
        count = dict(self.outputs)
        found = {'logits': Conv(count['logits'], 1, name='head_logits')(features['last'])}
        for name, (feature, *pair) in largefov.CLASSIFIERS.items():
            classifier = largefov.Classifier(count[pair[0]], 'mean', name=name)
            found |= dict(zip(pair, classifier(features[feature]), strict=True))
        return found


def five(norm=True):
    """Stands for `models.build`."""

    def build(config, num_classes, outputs, axis_name):
        return Five(tuple(outputs.items()), axis_name, norm)

    return build


def tiny(argument='quickstart', data_dir='', **changes):
    config = file.get_config(argument)
    for stream in config.data.streams.values():
        stream.update(crop=(32, 32), batch_size=4)
    config.update_from_flattened_dict(
        {'steps': 40, 'data.dir': data_dir, 'eval.batch_size': 4, 'log_every': 1,
         'checkpoint_every': 100, 'optimizer.warmup_steps': 0}
    )  # fmt: skip
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def images(rng, count=4, side=32):
    """Patches of colour with some noise, so that pixels are alike here and not there."""
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def batch(seed=0):
    """Four images, two of a device: of one class, two, all and none, two of them padded."""
    rng = np.random.default_rng(seed)
    classes = np.zeros((4, 7), bool)
    classes[:, 0] = True
    classes[0, 2] = classes[1, 1] = classes[1, 3] = True
    classes[2] = True
    box = np.int32([[0, 32, 0, 32], [3, 30, 2, 32], [0, 32, 0, 20], [0, 32, 0, 32]])
    return {'images': {'image': images(rng), 'classes': classes, 'box': box}}


def filled(tree, seed):
    """Random arrays of these shapes; what a BatchNorm divides by is positive."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = rng.normal(size=leaf.shape) * (0.5 if leaf.ndim > 1 else 0.1)
        return np.float32(1 + abs(values) if path[-1].key in ('scale', 'var') else values)

    return jax.tree_util.tree_map_with_path(fill, tree)


class Steps:
    """Steps of the method itself, of the small network, from a state that has seen some.

    Adam's moments are not 0, so that its update is no sign, which rounding could turn.
    """

    def __init__(self, mode, devices, norm, changes):
        self.config = configs.finalise(tiny(optimizer__learning_rate=0.02, **changes))
        self.layout = parallel.Layout(mode, jax.devices()[:devices])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, 'build', five(norm))
            self.ctx = methods.context(self.config)
            inside = methods.context(self.config, parallel.AXIS)
        tx, _ = METHOD.optimizer(self.config)
        self._step = functools.partial(step.train_step, method=METHOD, optimizer=tx, ctx=inside)
        self._program = None
        like = state.shapes(self.ctx)
        memory = cosa_thresholds.init_memory(self.config)
        for queue, value in zip(memory, (0.35, 0.55), strict=False):
            around = [value - 0.1, value + 0.1] if len(memory[queue].thresholds) == 2 else [value]
            memory[queue] = memory[queue]._replace(thresholds=jnp.array(around))
        student = filled(like, 1)
        moments = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, 1e-5) if '.nu' in jax.tree_util.keystr(path) else x,
            tx.init(student.params),
        )
        start = TrainState(jnp.int32(30), student, filled(like, 2), memory, moments, None)
        self.start = jax.device_get(start)  # a step takes the arrays that it gets

    def __call__(self, current, batch):
        """The state after a step, and its metrics."""
        current = current.replace(key=jax.random.key(3))
        current = jax.device_put(current, self.layout.replicated)
        batch = self.layout.place(batch)
        self._program = self._program or self.layout.compile_step(self._step, current, batch)
        current, seen = self._program(current, batch)
        return jax.device_get((current.replace(key=None), seen))


@functools.cache
def steps(mode, devices, norm=False, **changes):
    return Steps(mode, devices, norm, changes)


@functools.cache
def walked(mode, devices, **changes):
    """The states and the metrics after each of two steps."""
    one = steps(mode, devices, **changes)
    current, found = one.start, []
    for seed in (0, 1):
        current, seen = one(current, batch(seed))
        found.append((current, seen))
    return found


FIXED = {'norm': True, 'cosa__separation': 0.1, 'cosa__low': 0.3, 'cosa__high': 0.6}
# What more there is to sum up over devices, and a view less to compile.
BOTH = {
    'cosa__thresholds': 'two',
    'cosa__weighting': 'perplexity',
    'cosa__scales': (0.5, 1.0),
}
THREE = {'cosa__thresholds': 'three', 'cosa__separation': 0.1, 'cosa__scales': (1.0,)}
