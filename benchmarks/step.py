"""The train step: whole, by method, type and output stride, and what each of its parts takes.

    python -m benchmarks.step --size real --out benchmarks/results/step.md

'real' is the paper's VOC setting (ResNet-101, 512 crop, 16 + 16 images, 21 classes), 'small' the
quickstart's. Images and labels are random. Where a setting does not fit into the device's memory,
its row says so and the next one has half the batch. A program compiled later may find convolutions
tuned by an earlier one, so only the first compile time is that of a fresh process. On a GPU the
first row is the first case with operations that give the same bits in every run (docs/devices.md).
"""

import functools
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import jax
from ml_collections import ConfigDict

from benchmarks import parts, timing
from configs import quickstart
from css_jax import config as configs
from css_jax import methods, state
from css_jax import step as steps

# Method, type, output stride, whether its parts are measured too; in order of importance.
CASES = (
    ('css_mix', 'float32', 8, True),
    ('css_mix', 'bfloat16', 8, True),
    ('css_mix', 'float32', 16, False),
    ('cutmix', 'float32', 8, False),
    ('supervised', 'float32', 8, False),
)
BATCH = {'real': 16, 'small': 8}
CAPTION = {
    'real': 'The whole step: ResNet-101, crop 512 x 512, 21 classes',
    'small': "The whole step: the quickstart's network and crop",
}
NUMBERS = ('img/s', 'TFLOP/s', 'compile s', 'GFLOP', 'memory MiB', 'temporary MiB')
OUT_OF_MEMORY = {'ms': 'out of memory', **dict.fromkeys(NUMBERS, float('nan'))}
REFUSED = {**OUT_OF_MEMORY, 'ms': 'refused by XLA'}
DETERMINISTIC = {'xla_gpu_deterministic_ops': True}


def configuration(size: str, method: str, dtype: str, stride: int, batch: int) -> ConfigDict:
    """Gives the configuration of one case; the dataset only lends its class names."""
    if size == 'small':
        c = quickstart.get_config(method)
    else:
        c = configs.default()
        c.method, c.num_classes, c.eval.dataset = method, 21, 'shapes'
        c.data.streams.labelled = configs.stream('shapes')
        c.data.streams.unlabelled = configs.stream('shapes', labels=False)
    c.model.dtype, c.model.output_stride = dtype, stride
    for stream in c.data.streams.values():
        stream.batch_size = batch
    return configs.finalise(c)


def setup(config: ConfigDict) -> SimpleNamespace:
    """Makes what a step takes: method, tx, ctx, state and a batch of random pixels."""
    method = methods.get(config.method)
    tx, ctx = method.optimizer(config), methods.context(config)
    batch = {}
    for i, (name, stream) in enumerate(config.data.streams.items()):
        image, label = jax.random.split(jax.random.key(i))
        shape = (stream.batch_size, *stream.crop)
        batch[name] = {'image': jax.random.bits(image, (*shape, 3), 'uint8')}
        if stream.labels:
            batch[name]['label'] = jax.random.randint(label, shape, 0, config.num_classes, 'uint8')
    current = state.create(method, tx, ctx)
    return SimpleNamespace(method=method, tx=tx, ctx=ctx, state=current, batch=batch)


def whole(run: SimpleNamespace, options: dict[str, bool] | None = None) -> timing.Row:
    """Times the whole step as the training loop runs it; `run.state` moves on.

    Args:
        run: as `setup` gives it.
        options: of XLA.
    """
    step = functools.partial(steps.train_step, method=run.method, optimizer=run.tx, ctx=run.ctx)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
    program, account = timing.compiled(jitted, run.state, run.batch)

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
    }


def attempts(
    size: str, method: str, dtype: str, stride: int, options: dict[str, bool] | None = None
) -> Iterator[tuple[int, timing.Row | None, SimpleNamespace | None]]:
    """Times a case, and where it does not fit one of half the batch: batch, row, what it ran."""
    for batch in (BATCH[size], BATCH[size] // 2):
        run = timing.attempt(setup, configuration(size, method, dtype, stride, batch))
        row = run and timing.attempt(whole, run, options)
        yield batch, row, run
        if row:
            return


def deterministic(size: str) -> list[tuple[int, timing.Row | None]]:
    """Times the first case with deterministic operations: batch and row; on GPUs only."""
    if jax.default_backend() != 'gpu':
        return []
    try:
        return [(batch, row) for batch, row, _ in attempts(size, *CASES[0][:3], DETERMINISTIC)]
    except RuntimeError as error:
        if 'determinis' not in str(error):
            raise
        print(error, file=sys.stderr)
        return [(BATCH[size], REFUSED)]


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a case and a batch and, as tables of their own, a row a part of some cases."""

    def line(case: tuple, batch: int, row: timing.Row | None, more: str = '') -> timing.Row:
        method, dtype, stride, _ = case
        images = ' + '.join([str(batch)] * len(methods.METHODS[method].STREAMS))
        name = f'{method}, {dtype}, output stride {stride}{more}'
        return {'step': name, 'images': images, **(row or OUT_OF_MEMORY)}

    # In a process of its own, as convolutions tuned here would be found again there; and first,
    # as this process keeps the accelerator's memory.
    for batch, row in timing.isolated(deterministic, size):
        yield CAPTION[size], line(CASES[0], batch, row, ', deterministic ops')
    for case in CASES:
        for batch, row, run in attempts(size, *case[:3]):
            shown = line(case, batch, row)
            yield CAPTION[size], shown
            if row and case[3]:
                yield from parts_of(shown, row['ms'], run)


def parts_of(shown: timing.Row, whole_ms: float, run: SimpleNamespace) -> Iterator:
    """Gives a row a part of a step, as long as they fit."""
    caption = f'Parts of {shown["step"]}, {shown["images"]} images, each compiled alone'
    measured = parts.measure(run.method, run.tx, run.ctx, run.state, run.batch)
    while pair := timing.attempt(next, measured, None):
        part, numbers = pair
        yield caption, {'part': part, 'of the step': numbers['ms'] / whole_ms, **numbers}


if __name__ == '__main__':
    timing.main('Train step', rows)
