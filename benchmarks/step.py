"""The train step by setting: time, images, arithmetic, memory, compile time.

    python -m benchmarks.step --size real

'real' is the paper's VOC setting (ResNet-101, output stride 8, 512 crop, 16 + 16 images, 21
classes), 'small' the quickstart's. Images and labels are random and stay on the device. Each case
is measured in a process of its own, so that its memory and its compile time are its own.

- img/s count labelled and unlabelled images, pairs/s the labelled ones.
- TFLOP are those of convolutions and products with anything but padding, recomputation included;
  'with padding' adds the taps of 3x3 convolutions that meet padding alone (`benchmarks.count`).
- 'of the peak' is TFLOP/s over those of large products of the case's type, 'of the roofline' the
  bound of all its kernels over its time (`benchmarks.roofline`), both by peaks measured here.
- 'memory MiB' is the compiler's account of arguments, results and temporaries together. 'peak MiB'
  is the highest mark of the device's allocator, to which the search for the fastest convolutions
  may have added; on a CPU it is what the process grew by while the step ran.

Where a case does not fit into the device's memory, its row says so and the next one has half the
batch. On a GPU one row is a case with operations that give the same bits in every run.
"""

import functools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from ml_collections import ConfigDict

from benchmarks import count, peaks, timing
from configs import quickstart
from css_jax import config as configs
from css_jax import methods, state
from css_jax import step as steps
from css_jax.methods import css

METHOD = 'css_mix'
BFLOAT16 = 'bfloat16, teacher on unlabelled images'
BOTH = 'bfloat16, teacher on both'
FLOAT32 = 'float32, teacher on both'
CITYSCAPES = 'Cityscapes, bfloat16, teacher on both'
HEADLINES = (BFLOAT16, BOTH)
_BF16 = {'model.dtype': 'bfloat16'}
# What a case changes; first those that `benchmarks.bars` asks for. It is CSS(mix) unless it says
# otherwise.
CASES: dict[str, dict[str, Any]] = {
    BFLOAT16: {**_BF16, 'teacher.labelled_pass': False},
    BOTH: _BF16,
    'bfloat16, remat=layer3': {**_BF16, 'model.remat': ('layer3',)},
    'bfloat16, remat=all': {**_BF16, 'model.remat': ('all',)},
    CITYSCAPES: _BF16,
    FLOAT32: {},
    'float32, teacher on unlabelled images': {'teacher.labelled_pass': False},
    'bfloat16, dilated': {**_BF16, 'model.atrous': 'dilated'},
    'bfloat16, space_to_batch': {**_BF16, 'model.atrous': 'space_to_batch'},
    'bfloat16, joint_pass': {**_BF16, 'joint_pass': True},
    'float32, deterministic operations': {},
    'float32, output stride 16': {'model.output_stride': 16},
    'float32, cutmix': {'method': 'cutmix'},
    'float32, supervised': {'method': 'supervised'},
}
DETERMINISTIC = {'float32, deterministic operations': {'xla_gpu_deterministic_ops': True}}
PRECISION = {'float32': 'default', 'bfloat16': 'bfloat16'}  # of products, by type
BATCH = {'real': 16, 'small': 8}
CAPTION = {
    'real': 'The whole step: ResNet-101, crop 512 x 512, 21 classes',
    'small': "The whole step: the quickstart's network and crop",
}
OUT_OF_MEMORY, REFUSED = 'out of memory', 'refused by XLA'


def configuration(
    size: str,
    method: str = METHOD,
    dtype: str = 'float32',
    stride: int = 8,
    batch: int | None = None,
    **changes: Any,
) -> ConfigDict:
    """Gives the configuration of a step; the dataset only lends its class names.

    Args:
        size: 'real' or 'small'.
        method: name in `css_jax.methods.METHODS`.
        dtype: of the network.
        stride: of the network's output.
        batch: images of each stream; None: as many as the size has.
        **changes: key -> value of any other key of the table.
    """
    if size == 'small':
        c = quickstart.get_config(method)
    else:
        c = configs.default()
        c.method, c.num_classes, c.eval.dataset = method, 21, 'shapes'
        c.data.streams.labelled = configs.stream('shapes')
        c.data.streams.unlabelled = configs.stream('shapes')
    c.model.dtype, c.model.output_stride = dtype, stride
    for stream in c.data.streams.values():
        stream.batch_size = batch or BATCH[size]
    c.update_from_flattened_dict(changes)
    return configs.finalise(c)


def case_configuration(
    size: str, case: str, batch: int | None = None, **changes: Any
) -> ConfigDict:
    """Gives the configuration of one of CASES; the other arguments as of `configuration`."""
    changes = {**CASES[case], **changes}
    if case == CITYSCAPES:
        batch = batch or batch_of(size, case)
        changes |= {'model.stem': 'deep', 'supervised.loss': 'ohem'}
        if size == 'real':
            changes |= {f'data.streams.{s}.crop': (768, 768) for s in ('labelled', 'unlabelled')}
            changes |= {'num_classes': 19}
    return configuration(size, changes.pop('method', METHOD), batch=batch, **changes)


def batch_of(size: str, case: str) -> int:
    """Gives the images of each stream."""
    return BATCH[size] // 2 if case == CITYSCAPES else BATCH[size]


def shapes(config: ConfigDict) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Gives the shapes of a batch, stream -> name -> [B, H, W, ...] uint8."""
    batch = {}
    for name, stream in config.data.streams.items():
        shape = (stream.batch_size, *stream.crop)
        batch[name] = {'image': jax.ShapeDtypeStruct((*shape, 3), 'uint8')}
        if stream.reads == 'mask':
            batch[name]['label'] = jax.ShapeDtypeStruct(shape, 'uint8')
    return batch


def program(config: ConfigDict) -> SimpleNamespace:
    """Gives what a step is made from: method, tx, ctx, and `step`, the pure function."""
    method = methods.METHODS[config.method]
    tx, ctx = method.optimizer(config)[0], methods.context(config)
    step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    return SimpleNamespace(method=method, tx=tx, ctx=ctx, step=step)


def targets(images: Any, strong: Any, maps: dict[str, Any]) -> css.Targets:
    """Gives what the loss of CSS(mix) takes; L_c has the pseudo-labels and indicator of L_u.

    Args:
        images: the labelled view, or what a stand-in for the network takes in its place.
        strong: the strong view, likewise.
        maps: 'labels', 'label', 'indicator', 'agreement', as of `css.Targets`.
    """
    return css.Targets(
        images=images,
        strong=strong,
        **maps,
        label_c=maps['label'],
        indicator_c=maps['indicator'],
        weak_label=None,
        weak_label_rep=None,
        class_sums=(),
    )


def traced(config: ConfigDict) -> ClosedJaxpr:
    """Traces the step from shapes alone."""
    run = program(config)
    start = jax.eval_shape(lambda: state.create(run.method, run.tx, run.ctx))
    return jax.make_jaxpr(run.step)(start, shapes(config))


def setup(config: ConfigDict) -> SimpleNamespace:
    """Makes what a step takes: as `program`, with a state and a batch of random pixels."""
    run = program(config)
    run.batch = {}
    for i, (name, arrays) in enumerate(shapes(config).items()):
        image, label = jax.random.split(jax.random.key(i))
        run.batch[name] = {'image': jax.random.bits(image, arrays['image'].shape, 'uint8')}
        if 'label' in arrays:
            run.batch[name]['label'] = jax.random.randint(
                label, arrays['label'].shape, 0, config.num_classes, 'uint8'
            )
    run.state = state.create(run.method, run.tx, run.ctx)
    return run


def whole(run: SimpleNamespace, options: dict[str, bool] | None = None) -> timing.Row:
    """Times the whole step as the training loop runs it; `run.state` moves on.

    Args:
        run: as `setup` gives it.
        options: of XLA.

    Returns:
        'ms', 'img/s', 'TFLOP/s', what `timing.compiled` says, and 'peak MiB'.
    """
    jitted = jax.jit(run.step, donate_argnums=0, compiler_options=options)
    program, account = timing.compiled(jitted, run.state, run.batch)
    timing.forget_peak()
    before = timing.memory_in_use()[0] if jax.default_backend() == 'cpu' else 0

    def once():
        run.state, metrics = program(run.state, run.batch)
        return run.state, metrics

    spent = timing.milliseconds(once)
    images = sum(len(stream['image']) for stream in run.batch.values())
    return {
        'ms': spent,
        'img/s': 1e3 * images / spent,
        'TFLOP/s': account['GFLOP'] / spent,
        **account,
        'peak MiB': (timing.memory_in_use()[1] - before) / timing.MIB,
    }


def measure(size: str, case: str, batch: int, best: dict[str, float]) -> timing.Row:
    """Times a case: a row of the table; its 'ms' are words where it does not run.

    Args:
        size: 'real' or 'small'.
        case: one of CASES.
        batch: images of each stream.
        best: as of `benchmarks.peaks.measure`.
    """
    config = case_configuration(size, case, batch)
    images = ' + '.join([str(batch)] * len(config.data.streams))
    shown = {'step': case, 'images': images}
    try:
        row = timing.attempt(lambda: whole(setup(config), DETERMINISTIC.get(case)))
    except RuntimeError as error:
        if 'determinis' not in str(error):
            raise
        print(error, file=sys.stderr)
        return {**shown, 'ms': REFUSED, **dict.fromkeys(COLUMNS, float('nan'))}
    if row is None:
        return {**shown, 'ms': OUT_OF_MEMORY, **dict.fromkeys(COLUMNS, float('nan'))}
    kernels = count.kernels(traced(config))
    sums = count.totals(kernels)
    row |= {
        'pairs/s': 1e3 * batch / row['ms'],
        'of the peak': row['TFLOP/s'] / peaks.rate(best, PRECISION[config.model.dtype]),
        'of the roofline': peaks.bound(kernels, best) / row['ms'],
        'TFLOP': sums['flops'] / 1e12,
        'with padding': (sums['flops'] + sums['padding']) / 1e12,
    }
    return {**shown, 'ms': row['ms'], **{column: row[column] for column in COLUMNS}}


COLUMNS = (
    'pairs/s',
    'img/s',
    'TFLOP/s',
    'of the peak',
    'of the roofline',
    'TFLOP',
    'with padding',
    'compile s',
    'memory MiB',
    'temporary MiB',
    'peak MiB',
)


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a case, and one more where it did not fit."""
    best, platform = timing.isolated(peaks.measure, size), timing.isolated(jax.default_backend)
    for case in CASES:
        if case in DETERMINISTIC and platform != 'gpu':
            continue
        batch = batch_of(size, case)
        for images in (batch, batch // 2):
            row = timing.isolated(measure, size, case, images, best)
            yield CAPTION[size], row
            if row['ms'] != OUT_OF_MEMORY:
                break


if __name__ == '__main__':
    timing.main('Train step', rows)
