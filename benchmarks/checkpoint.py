"""What a checkpoint costs: the pause of the loop, the whole save, opening, restoring, the disk.

    python -m benchmarks.checkpoint --size real

'real' is the state of the paper's VOC setting (ResNet-101: student, teacher and momentum, 0.7 GB),
'small' the quickstart's; the numbers in it are random, which do not compress. It lies whole on
every device, as in a run. The pause is what `save` keeps the loop waiting. Opening reads all of
the newest checkpoint and compares it to its checksums. The files are in the system's temporary
folder (TMPDIR) and stay in the page cache, so opening and restoring from a disk take longer.
"""

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.step import configuration
from css_jax import methods, parallel, state
from css_jax.run import checkpoint

SAVES = 4
CAPTION = {'real': "ResNet-101's state", 'small': "The quickstart's state"}


def shapes(size: str) -> state.TrainState:
    """Gives the shapes of a run's state."""
    config = configuration(size)
    method, ctx = methods.METHODS[config.method], methods.context(config)
    return jax.eval_shape(lambda: state.create(method, method.optimizer(config)[0], ctx))


def filled(like: state.TrainState, layout: parallel.Layout) -> state.TrainState:
    """Makes a state of random numbers on all devices of a layout."""
    rng = np.random.default_rng(0)

    def array(x: Any) -> Any:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jax.dtypes.issubdtype(x.dtype, np.floating):
            return rng.standard_normal(x.shape, np.float32).astype(x.dtype)
        return np.zeros(x.shape, x.dtype)

    return jax.tree.map(lambda x: jax.device_put(array(x), layout.replicated), like)


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Calls a function: the milliseconds it took, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return 1e3 * (time.perf_counter() - start), result


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row for one device and, where there are more, one for all of them."""
    like = shapes(size)
    devices = parallel.Layout().devices
    for count in sorted({1, len(devices)}):
        layout = parallel.Layout('jit', devices[:count])
        current = filled(like, layout)
        arrays = [x for x in jax.tree.leaves(current) if x is not current.key]
        with tempfile.TemporaryDirectory() as folder:
            pauses, totals = [], []
            with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
                for step in range(1, SAVES + 1):
                    pause, _ = timed(checkpoints.save, step, current, {})
                    rest, _ = timed(checkpoints.best)  # it waits for the save
                    pauses.append(pause)
                    totals.append(pause + rest)
            opening, checkpoints = timed(checkpoint.Checkpoints, folder)
            with contextlib.closing(checkpoints):
                restoring, restored = timed(checkpoints.restore, current)
                waiting, _ = timed(jax.block_until_ready, restored)
            newest = pathlib.Path(folder, checkpoint.FOLDER, str(SAVES))
            disk = sum(path.stat().st_size for path in newest.rglob('*') if path.is_file())
        yield (
            CAPTION[size],
            {
                'devices': count,
                'MiB': sum(x.nbytes for x in arrays) / timing.MIB,
                'arrays': len(arrays),
                'first pause ms': pauses[0],
                'pause ms': statistics.median(pauses[1:]),
                'save ms': statistics.median(totals[1:]),
                'open ms': opening,
                'restore ms': restoring + waiting,
                'disk MiB': disk / timing.MIB,
            },
        )


if __name__ == '__main__':
    timing.main('Checkpoints', rows)
