"""What bringing the batches to the device costs a step: python -m benchmarks.transfer.

The loop of `css_jax.train` without the reading of files: a batch of host arrays is placed, the step
is issued, and the host waits for the step before it, so that a batch travels while the device works
on the one before. It runs in turns with a loop over a batch that stays on the device. What placing
a batch takes alone is hidden where the step does not feel it: where the difference is near 0.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import step, timing
from css_jax import methods, parallel, state
from css_jax import step as steps

STEPS = 5  # of a loop; the first batch of each is waited for


def measure(size: str, case: str) -> timing.Row | None:
    """Times the loops: a row, None out of memory."""
    return timing.attempt(_measure, size, case)


def _measure(size: str, case: str) -> timing.Row:
    config = step.case_configuration(size, case)
    layout = parallel.Layout(devices=jax.devices()[:1])
    method, ctx = methods.METHODS[config.method], methods.context(config, parallel.AXIS)
    tx = method.optimizer(config)[0]
    train_step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    rng = np.random.default_rng(0)
    host = jax.tree.map(
        lambda x: rng.integers(0, config.num_classes, x.shape, np.uint8), step.shapes(config)
    )
    resident = layout.place(host)
    current = [state.create(method, tx, ctx, sharding=layout.replicated)]
    program = layout.compile_step(train_step, current[0], resident)

    def loop(batch_of: Callable[[], Any]) -> Any:
        before = None
        for _ in range(STEPS):
            batch = batch_of()
            current[0], metrics = program(current[0], batch)
            jax.block_until_ready(before)
            before = metrics
        return before

    spent = timing.interleaved(
        {
            'resident': lambda: loop(lambda: resident),
            'placed': lambda: loop(lambda: layout.place(host)),
            'alone': lambda: layout.place(host),
        }
    )
    stays, placed = spent['resident'] / STEPS, spent['placed'] / STEPS
    megabytes = sum(x.nbytes for x in jax.tree.leaves(host)) / 1e6
    return {
        'step': case,
        'batch MB': megabytes,
        'placing ms': spent['alone'],
        'GB/s': megabytes / spent['alone'],
        'ms a step, batch on the device': stays,
        'ms a step, batch placed': placed,
        'felt by the step ms': placed - stays,
    }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a case."""
    for case in step.HEADLINES if size == 'real' else (step.FLOAT32,):
        row = timing.isolated(measure, size, case)
        yield (
            'Batches from the host, one ahead of the step',
            row or {'step': f'{case}: {step.OUT_OF_MEMORY}'},
        )


if __name__ == '__main__':
    timing.main('Host to device', rows)
