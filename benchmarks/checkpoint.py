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

from benchmarks import step, timing
from css_jax import parallel
from css_jax.run import checkpoint

SAVES = 4


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Call a function: the milliseconds it took, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return 1e3 * (time.perf_counter() - start), result


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give one row."""
    like, _ = step.Run(step.configuration(size)).shapes
    current = jax.device_put(step.filled(like, classes=7), parallel.Layout().replicated)
    arrays = [x for x in jax.tree.leaves(current) if x is not current.key]
    with tempfile.TemporaryDirectory() as folder:
        pauses, totals = [], []
        with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
            for number in range(1, SAVES + 1):
                pause, _ = timed(checkpoints.save, number, current, {})
                rest, _ = timed(checkpoints.best)  # it waits for the save
                pauses.append(pause)
                totals.append(pause + rest)
        opening, checkpoints = timed(checkpoint.Checkpoints, folder)
        with contextlib.closing(checkpoints):
            restoring, restored = timed(checkpoints.restore, current)
            waiting, _ = timed(jax.block_until_ready, restored)
        newest = pathlib.Path(folder, checkpoint.FOLDER, str(SAVES))
        disk = sum(path.stat().st_size for path in newest.rglob('*') if path.is_file())
    row = {
        'devices': jax.device_count(),
        'MiB': sum(x.nbytes for x in arrays) / timing.MIB,
        'arrays': len(arrays),
        'first pause ms': pauses[0],
        'pause ms': statistics.median(pauses[1:]),
        'save ms': statistics.median(totals[1:]),
        'open ms': opening,
        'restore ms': restoring + waiting,
        'disk MiB': disk / timing.MIB,
    }
    yield {'real': "ResNet-101's state", 'small': "The quickstart's state"}[size], row


if __name__ == '__main__':
    timing.main('Checkpoints', rows)
