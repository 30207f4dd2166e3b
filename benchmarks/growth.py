"""How time, memory and compile time of the train step grow: by classes, batch, crop and devices.

    python -m benchmarks.growth --size real --out growth.md

One number of the step changes at a time. 'to linear' is a row's time over the first one's, divided
by the growth of that number (of the pixels, for the crop; for devices, which share one global
batch, of nothing): above 1 the step grows faster than what it is given. 'to FLOP' divides by the
growth of the arithmetic that `timing.compiled` counts instead, and 'memory to linear' is 'to
linear' of the temporary memory. Labels and images are random, so that every class is in every
batch: the worst case. A row that did not run says why, and the first one is the first that ran.

'real' is CSS(mix) on ResNet-101 in bfloat16. Its image pooling gives BatchNorm one value an image,
so that it refuses a batch of one. At size 'small' the network is a single convolution: what a
network takes is its arithmetic, which is linear, and what is left of the step is what could be
otherwise. Devices are fake there, and share the cores of one CPU: what their rows show is what
it costs to divide a step, not what is gained.

What grows faster than linearly, by intent:

- L_c takes 4 C² A K D operations (C classes, A anchors and K pixels of the bank a class, D
  channels; forward and backward): quadratic in the classes that have anchors, as each of them
  meets the bank of all.
- Interpolation is a product with matrices [H, h] and [W, w], also in the strong view's resize
  ([H, H], three channels): as the crop's side cubed, and counted in FLOP.
- The pixels of L_c are sorted once: N log N.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import count, step, timing
from css_jax import methods, parallel, state
from css_jax import step as steps
from css_jax.models.layers import BatchNorm, Conv
from css_jax.parallel import cost

# Number that changes: its values, and what all rows of its table have beside. Compiling is most of
# the time of 'small', so it takes fewer of them.
VALUES = {
    'real': {
        'classes': (2, 7, 21, 60, 150),
        'batch': (1, 2, 4, 8, 16, 32),
        'crop': (256, 512, 768, 1024),
        'devices': (1, 2, 4, 8),
    },
    'small': {
        'classes': (2, 21, 150),
        'batch': (1, 2, 8, 32),
        'crop': (256, 512, 1024),
        'devices': (1, 8),
    },
}
BESIDE = {
    'real': {
        'classes': {'batch': 16, 'crop': 512},
        'batch': {'classes': 21, 'crop': 512},
        'crop': {'classes': 21, 'batch': 4},
        'devices': {'classes': 21, 'crop': 512, 'batch': 16},
    },
    'small': {
        'classes': {'batch': 2, 'crop': 256},
        'batch': {'classes': 7, 'crop': 64},
        'crop': {'classes': 7, 'batch': 1},
        'devices': {'classes': 7, 'crop': 64, 'batch': 16},
    },
}
CHANGES = {
    'real': {'model.dtype': 'bfloat16'},
    'small': {
        'model.representation_dim': 32,
        'contrastive.anchors': 64,
        'contrastive.negatives': 128,
        'contrastive.bank': 64,
    },
}
# What should grow with a number, in proportion to it.
GROWTH = {
    'classes': lambda classes: classes,
    'batch': lambda batch: batch,
    'crop': lambda side: side**2,
    'devices': lambda devices: 1,  # the same work
}
NAMES = {'real': 'ResNet-101, bfloat16', 'small': 'One convolution for a network'}
TEXT = {
    'classes': 'by classes: {batch} + {batch} images of {crop} x {crop}, all classes in the batch',
    'batch': 'by images of each stream: {crop} x {crop}, {classes} classes',
    'crop': "by the crop's side: {batch} + {batch} images, {classes} classes",
    'devices': 'by devices: {batch} + {batch} images of {crop} x {crop} in all',
}
COLUMNS = (
    'ms',
    'img/s',
    'to linear',
    'to FLOP',
    'GFLOP',
    'temporary MiB',
    'memory to linear',
    'compile s',
)
REFUSED = 'refused: BatchNorm needs 2 values a channel'


class OneConvolution(nn.Module):
    """Stands for the network: a convolution at stride 4, BatchNorm, and the heads.

    Attributes:
        outputs: pairs of a head's name and its channels.
        axis_name: of the devices.
    """

    outputs: tuple[tuple[str, int], ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Gives head name -> [B, h, w, channels] of images [B, H, W, 3]."""
        x = nn.relu(BatchNorm(self.axis_name)(Conv(8, 3, 4)(x), train))
        return {name: Conv(channels, 1, name=name)(x) for name, channels in self.outputs}


def configuration(size: str, classes: int, batch: int, crop: int) -> ConfigDict:
    """Gives the configuration of one row.

    Args:
        size: 'real' or 'small'.
        classes: C.
        batch: images of each stream; a single one, which training refuses for its BatchNorm, too.
        crop: height and width in pixels.
    """
    changes = {'num_classes': max(classes, 7), **CHANGES[size]}  # the dataset that is named has 7
    changes |= {f'data.streams.{name}.crop': (crop, crop) for name in ('labelled', 'unlabelled')}
    config = ConfigDict(step.configuration(size, batch=max(batch, 2), **changes).to_dict())
    config.num_classes = classes
    for stream in config.data.streams.values():
        stream.batch_size = batch
    return config


def program(size: str, config: ConfigDict, axis: str | None = None) -> SimpleNamespace:
    """Gives what a step is made from: method, tx, ctx and `step`, the pure function."""
    method = methods.METHODS[config.method]
    ctx, tx = methods.context(config, axis), method.optimizer(config)[0]
    if size == 'small':
        heads = tuple(method.outputs(config).items())
        ctx = dataclasses.replace(ctx, module=OneConvolution(heads, axis))
    taken = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    return SimpleNamespace(method=method, tx=tx, ctx=ctx, step=taken)


def pixels(config: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """Gives a batch of random images and labels on the host."""
    rng = np.random.default_rng(0)
    high = {'image': 256, 'label': config.num_classes}
    return {
        stream: {name: rng.integers(0, high[name], a.shape, np.uint8) for name, a in arrays.items()}
        for stream, arrays in step.shapes(config).items()
    }


def measure(size: str, setting: dict[str, int]) -> timing.Row | None:
    """Times the step of one setting, as the training loop runs it.

    Args:
        size: 'real' or 'small'.
        setting: 'classes', 'batch' and 'crop', of `configuration`, and 'devices'.

    Returns:
        A row, but for its ratios; 'ms' are words where it does not run. None where there are fewer
        devices.
    """
    given = dict(setting)
    number = given.pop('devices', 1)
    if jax.device_count() < number:
        return None

    def run() -> timing.Row:
        config = configuration(size, **given)
        layout = parallel.Layout('jit', jax.devices()[:number])
        alone = program(size, config)
        work = count.kernels(jax.make_jaxpr(alone.step)(*shapes(alone, config)))
        current = state.create(alone.method, alone.tx, alone.ctx, {}, layout.replicated)
        batch = layout.place(pixels(config))
        start = time.perf_counter()
        compiled = layout.compile_step(program(size, config, parallel.AXIS).step, current, batch)
        seconds = time.perf_counter() - start

        def once():
            nonlocal current
            current, metrics = compiled(current, batch)
            return current, metrics

        spent = timing.milliseconds(once)
        return {
            'ms': spent,
            'img/s': 2e3 * config.data.streams.labelled.batch_size / spent,
            'GFLOP': count.totals(work)['flops'] / 1e9,
            'temporary MiB': (cost.cost(compiled)['bytes_temporary'] or float('nan')) / timing.MIB,
            'compile s': seconds,
        }

    try:
        row, why = timing.attempt(run), step.OUT_OF_MEMORY
    except ValueError as error:
        if 'more than one value per channel' not in str(error):
            raise
        row, why = None, REFUSED
    return row or {**dict.fromkeys(COLUMNS, float('nan')), 'ms': why}


def shapes(run: SimpleNamespace, config: ConfigDict) -> tuple[Any, Any]:
    """Gives the shapes of a step's state and batch."""
    start = jax.eval_shape(lambda: state.create(run.method, run.tx, run.ctx))
    return start, step.shapes(config)


def ratios(first: timing.Row, row: timing.Row, growth: float) -> timing.Row:
    """Adds to a row what it is of the first one's, divided by what should have grown so much."""
    longer = row['ms'] / first['ms']
    return {
        **row,
        'to linear': longer / growth,
        'to FLOP': longer / (row['GFLOP'] / first['GFLOP']),
        'memory to linear': row['temporary MiB'] / first['temporary MiB'] / growth,
    }


def fake_devices(size: str, setting: dict[str, int]) -> timing.Row | None:
    """Measures a setting in a process of its own, which has as many devices if it is a CPU's."""
    with mock.patch.dict(os.environ, JAX_NUM_CPU_DEVICES=str(setting.get('devices', 1))):
        return timing.isolated(measure, size, setting)


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a value of each number, in a process of its own where memory may not suffice."""
    for number, values in VALUES[size].items():
        beside = BESIDE[size][number]
        caption = f'{NAMES[size]}; {TEXT[number].format(**beside)}'
        first = None  # value and row of the first that ran
        for value in values:
            alone = size == 'real' or number == 'devices'
            row = (fake_devices if alone else measure)(size, {**beside, number: value})
            if row is None:
                break
            if not isinstance(row['ms'], str):
                first = first or (value, row)
                row = ratios(first[1], row, GROWTH[number](value) / GROWTH[number](first[0]))
            yield caption, {number: value, **{column: row[column] for column in COLUMNS}}


if __name__ == '__main__':
    timing.main('Growth of the train step', rows)
