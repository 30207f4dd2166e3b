"""The train step by setting: time, arithmetic, memory, compile time, and its kernels.

    python -m benchmarks.step --size real --cases bfloat16,float32

'real' is the paper's VOC setting (ResNet-101, output stride 8, 512 crop, 16 + 16 images, 21
classes), 'small' the quickstart's. Weights, images and labels are random and stay on the device.

- pairs/s count the labelled images.
- TFLOP are those of convolutions and products with anything but padding, recomputation included
  (`benchmarks.count`).
- 'of the peak' is TFLOP/s over those of large products of the case's type, 'of the roofline' the
  bound of all its kernels over its time (`benchmarks.roofline`), both by peaks measured here.
- 'memory MiB' is the compiler's account of arguments, results and temporaries together. 'peak MiB'
  is the highest mark of the device's allocator, to which the search for the fastest convolutions
  may have added; '-' where a case before had a higher one, and on a CPU.

Each case is compiled once. The program of `HEADLINE` is then traced, see `benchmarks.kernels`;
`--profile FOLDER` keeps that trace, which Perfetto and TensorBoard open. Where a case does not fit
into the device's memory, its row says so and the next one has half the batch.
"""

import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from benchmarks import kernels, roofline, timing
from configs import quickstart
from css_jax import config as configs
from css_jax import methods, state
from css_jax import step as steps
from css_jax.data import streams
from css_jax.models import atrous

HEADLINE = 'bfloat16'
# DINOv2 and DPT take sides that are multiples of 14: 518, and 70 where the size is 'small'.
_DINOV2 = {'method': 'supervised', 'model.family': 'dpt', 'multiple': 14}
_UNIMATCH = _DINOV2 | {'method': 'unimatch'}  # V2, as published: 16 + 16 images
_BLOCKS = ('layer1', 'layer2', 'layer3', 'layer4')
_CITYSCAPES = {'model.stem': 'deep', 'supervised.loss': 'ohem', 'classes': 19, 'crop': 1.5}
# What a case changes of CSS(mix) in bfloat16 with the teacher on labelled and unlabelled images:
# keys of the configuration, and arguments of `configuration`.
CASES: dict[str, dict[str, Any]] = {
    HEADLINE: {},
    'float32': {'model.dtype': 'float32'},
    'dilated': {'model.atrous': 'dilated'},
    'space_to_batch': {'model.atrous': 'space_to_batch'},
    'teacher_on_unlabelled': {'teacher.labelled_pass': False},
    'joint_pass': {'joint_pass': True},
    'cutmix': {'method': 'cutmix'},
    'supervised': {'method': 'supervised'},
    'output_stride_16': {'model.output_stride': 16},
    'cityscapes': {**_CITYSCAPES, 'batch': 0.5},
    'remat_layer3': {'model.remat': ('layer3',)},
    'remat_all': {'model.remat': ('all',)},
    'classes_2': {'classes': 2},
    'classes_21': {'classes': 21},
    'classes_150': {'classes': 150},
    'batch_quarter': {'batch': 0.25},
    'batch_half': {'batch': 0.5},
    'batch_double': {'batch': 2},
    'crop_half': {'crop': 0.5},
    'crop_double': {'crop': 2, 'batch': 0.25},
    'deterministic': {},
    'dinov2_small': {**_DINOV2, 'model.backbone': 'dinov2_small'},
    'dinov2_base': {**_DINOV2, 'model.backbone': 'dinov2_base'},
    'dinov2_base_xla': {**_DINOV2, 'model.backbone': 'dinov2_base', 'model.attention': 'xla'},
    'dinov2_base_remat': {**_DINOV2, 'model.backbone': 'dinov2_base', 'model.remat': _BLOCKS},
    'dinov2_base_frozen': {
        **_DINOV2,
        'model.backbone': 'dinov2_base',
        'model.frozen_backbone': True,
    },
    'unimatch_small': {**_UNIMATCH, 'model.backbone': 'dinov2_small'},
    'unimatch_base_remat': {
        **_UNIMATCH,
        'model.backbone': 'dinov2_base',
        'model.remat': _BLOCKS,
    },
}
# Case and platform -> options of XLA. A CPU's compiler would find that remat computes twice.
_REMAT = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
OPTIONS = {
    ('deterministic', 'gpu'): {'xla_gpu_deterministic_ops': True},
    ('remat_layer3', 'cpu'): _REMAT,
    ('remat_all', 'cpu'): _REMAT,
    ('dinov2_base_remat', 'cpu'): _REMAT,
    ('unimatch_base_remat', 'cpu'): _REMAT,
}
BATCH, SIDE = {'real': 16, 'small': 8}, {'real': 512, 'small': 64}
CAPTION = {
    'real': 'The whole step: CSS(mix) on ResNet-101',
    'small': "The whole step: CSS(mix) on the quickstart's network",
}


def configuration(
    size: str,
    method: str = 'css_mix',
    batch: float = 1,
    crop: float = 1,
    multiple: int = 1,
    classes: int | None = None,
    **changes: Any,
) -> ConfigDict:
    """Return the configuration of a step; the dataset only lends its class names.

    Args:
        size: 'real' or 'small'.
        method: name in `css_jax.methods.METHODS`.
        batch: images of each stream, as a multiple of what the size has.
        crop: side of the images, likewise.
        multiple: the side is the nearest multiple of it.
        classes: their number; None: the size's.
        **changes: key -> value of any other key of the table.
    """
    if size == 'small':
        c = quickstart.get_config(method)
    else:
        c = configs.default()
        c.method, c.num_classes, c.eval.dataset = method, 21, 'shapes'
        c.data.streams.labelled = configs.stream('shapes')
        c.data.streams.unlabelled = configs.stream('shapes')
    for stream in c.data.streams.values():
        stream.batch_size = round(batch * BATCH[size])
        stream.crop = 2 * (round(crop * SIDE[size] / multiple) * multiple,)
    c.update_from_flattened_dict({'model.dtype': 'bfloat16', **changes})
    if classes:
        c.num_classes = max(7, classes)  # the dataset that is named has 7
    table = configs.finalise(c).to_dict()
    return FrozenConfigDict({**table, 'num_classes': classes or table['num_classes']})


def shapes(config: ConfigDict) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of a batch, stream -> name -> [B, H, W, ...] uint8 or bool."""
    return streams.batch_shapes(config.data, config.data.streams)


def filled(like: Any, classes: int) -> Any:
    """Make arrays of these shapes from random numbers; nothing is compiled for it.

    Kernels are scaled by what goes into them, so that activations stay in range; an optimiser's
    momentum is small, Adam's mean of squares is positive, and what counts begins at 0. The uint8
    arrays are images and labels, and no pixel is padding.
    """
    rng = np.random.default_rng(0)

    def array(path: tuple, x: jax.ShapeDtypeStruct) -> Any:
        name = jax.tree_util.keystr(path)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if x.dtype == np.uint8:
            return rng.integers(0, classes if "label'" in name else 256, x.shape, np.uint8)
        if not np.issubdtype(x.dtype, np.floating):
            return np.full(x.shape, x.dtype == bool, x.dtype)
        scale = 0.01 if 'opt_state' in name else 1.0
        if len(x.shape) < 2:
            return (scale * rng.uniform(0.5, 1.5, x.shape)).astype(x.dtype)
        scale *= (2 / np.prod(x.shape[:-1])) ** 0.5
        values = (scale * rng.standard_normal(x.shape, np.float32)).astype(x.dtype)
        return np.abs(values) if '.nu' in name else values

    return jax.tree_util.tree_map_with_path(array, like)


class Run:
    """A step and what it is made from; nothing is compiled.

    Attributes:
        config: of it.
        jitted: the step, (state, batch) -> (state, metrics).
        shapes: of the state and the batch.
    """

    def __init__(self, config: ConfigDict, options: dict[str, Any] | None = None):
        """Make the step of a configuration, to be compiled with options of XLA."""
        self.config, self.method = config, methods.METHODS[config.method]
        self.tx, self.ctx = self.method.optimizer(config)[0], methods.context(config)
        given = {'method': self.method, 'optimizer': self.tx, 'ctx': self.ctx}
        self.step = functools.partial(steps.train_step, **given)
        self.jitted = jax.jit(self.step, donate_argnums=0, compiler_options=options)
        start = jax.eval_shape(lambda: state.create(self.method, self.tx, self.ctx))
        self.shapes = start, shapes(config)

    def arrays(self) -> tuple[state.TrainState, Any]:
        """Make a state and a batch on the device."""
        return jax.device_put(filled(self.shapes, self.config.num_classes))


def settings(size: str, case: str, share: float = 1) -> tuple[ConfigDict, dict[str, Any] | None]:
    """Return a case's configuration, with a share of its batch, and its options for this device."""
    changes = {**CASES[case], 'batch': share * CASES[case].get('batch', 1)}
    return configuration(size, **changes), OPTIONS.get((case, jax.default_backend()))


def images(config: ConfigDict) -> str:
    """Return the images of each stream in words."""
    batches = ' + '.join(str(stream.batch_size) for stream in config.data.streams.values())
    side = config.data.streams.labelled.crop[0]
    return f'{batches} of {side} x {side}, {config.num_classes} classes'


def measure(
    size: str, case: str, run: Run, best: dict[str, float], profile: str | None
) -> Iterator[tuple[str, timing.Row]]:
    """Compile a case and time it; if it is the headline, trace it into a folder, `profile`."""
    program = timing.compiled(run.jitted, *run.shapes)
    named, found = {'step': case, 'images': images(run.config)}, program.row
    shown = ('compile s', 'compiled', 'memory MiB', 'temporary MiB')
    yield 'Compilation of the step', {**named, **{name: found[name] for name in shown}}
    current, batch = run.arrays()

    def once() -> Any:
        nonlocal current
        current, metrics = program.call(current, batch)
        return current, metrics

    ms, peak = timing.peak(timing.milliseconds, once)
    dtype = {'float32': 'default'}.get(run.config.model.dtype, 'bfloat16')
    values = {
        'ms': ms,
        'pairs/s': 1e3 * run.config.data.streams.labelled.batch_size / ms,
        'TFLOP/s': found['GFLOP'] / ms,
        'of the peak': found['GFLOP'] / ms / roofline.rate(best, dtype),
        'of the roofline': roofline.bound(program.kernels, best) / ms,
        'TFLOP': found['GFLOP'] / 1e3,
        'memory MiB': found['memory MiB'],
        'peak MiB': peak,
    }
    yield CAPTION[size], {**named, **values}
    if case != HEADLINE:
        return
    for row in roofline.kinds(program.kernels, best):
        yield f'What the step asks of the chip: {case}, {images(run.config)}', row
    with tempfile.TemporaryDirectory() as folder:
        events, us = kernels.trace(once, profile or folder)
    caption = f'Kernels: {case}, {images(run.config)}, {us / 1e3:.1f} ms a step while traced'
    for row in kernels.table(events, us):
        yield caption, row


def rows(size: str, cases: str, profile: str | None) -> Iterator[tuple[str, timing.Row]]:
    """Give the device's peaks, then the rows of each case; with half the batch if it has to be.

    Dilated convolutions in the form that the platform has anyway are the headline's.
    """
    best = roofline.measure(size)
    yield from roofline.peaks(best)
    for case in cases.split(','):
        if case in atrous.FORMS and atrous.forms(case) == atrous.forms('auto'):
            continue
        for share in (1, 0.5):
            config, options = settings(size, case, share)
            try:
                yield from measure(size, case, Run(config, options), best, profile)
                break
            except RuntimeError as error:
                if 'RESOURCE_EXHAUSTED' not in str(error):
                    raise
            lost = {'step': case, 'images': images(config), 'ms': 'out of memory'}
            yield CAPTION[size], lost


if __name__ == '__main__':
    timing.main('Train step', rows, cases=HEADLINE, profile=None)
