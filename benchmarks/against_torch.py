"""Ours and PyTorch side by side on a CPU: the network, the step's parts, single operations.

    pip install -r requirements-bench.txt
    python -m benchmarks.against_torch --size real

Each row is one piece of work, done by our function under `jax.jit` and by PyTorch 2.13 in eager
mode (benchmarks/torch_network.py, torch_parts.py), with the same numbers, shapes and type
(float32). Both programs run on the same cores, chosen before they start their threads: `threads` is
how many, for XLA's pool and for `torch.set_num_threads`. Ours draws its random numbers inside the
timed program, as the step does; PyTorch is given the same ones ready made, which favours it.

The results are compared first. Where they are not equal, the row says so instead of a time, and the
exit code is 1. Then the two are timed in turns. PyTorch gets its maps in whichever layout of memory
it is faster with; `layout` says which.

- `difference`: the largest of all results. Of an array of numbers it is the largest difference over
  the array's largest value; of a parameter's gradient, over at least a hundredth of the network's
  largest gradient, as a gradient that is zero but for rounding has no correct digits. Of an array
  of labels it is the share that differs. It has to be at most `tolerance`. In brackets, for a
  network: the gradient of the kernel after image pooling, which has a tolerance of its own.
- `jax / torch`: the median, and the `quartiles`, of the ratios of single turns.

'small' has the shapes of the quickstart; 'real' ResNet-101 at 129 x 129 and, with parts, the
paper's 512 x 512 crops, 21 classes and 256 channels.
"""

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import timing

THREADS = (1, 2)
SECONDS = {'small': 1.0, 'real': 6.0}  # of timing, a row; at least `LEAST` turns each
LEAST, TURNS = 5, 40  # of a row
PAUSE = 0.02  # s; threads that wait for work spin for a while, on the other program's cores
LAYOUTS = ('contiguous', 'channels_last')
CAPTIONS = {
    'network': 'Network in training mode, forward + backward',
    'parts': "The step's parts",
    'operations': 'Single operations on one thread, to find reasons',
}
SMALL = 0.01  # of the largest array of a group: GROUP/NAME
UNEQUAL = 'not equal'
MISSING = 'torch is not installed: pip install -r requirements-bench.txt'


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a piece of work and number of threads; without torch one that says so.

    Raises:
        SystemExit: with the names of the rows whose results are not equal.
    """
    if importlib.util.find_spec('torch') is None:
        yield CAPTIONS['network'], {'what': MISSING}
        return
    unequal = []
    for threads in sorted({min(n, len(os.sched_getaffinity(0))) for n in THREADS}):
        for group in CAPTIONS:
            if group == 'operations' and threads > 1:
                continue
            for row in timing.streamed(measure, group, size, threads):
                if row['torch ms'] == UNEQUAL:
                    unequal.append(f'{row["what"]}, {threads} threads')
                yield CAPTIONS[group], row
    if unequal:
        sys.exit(f'not equal: {"; ".join(unequal)}')


def measure(group: str, size: str, threads: int) -> Iterator[timing.Row]:
    """Measures a group, row by row; in a process of its own, as it stays pinned to its cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    jax.config.update('jax_platforms', 'cpu')
    import torch  # makes its threads for the cores of now

    torch.set_num_threads(threads)
    from benchmarks import torch_operations, torch_pairs, torch_step

    groups = {
        'network': torch_pairs.network,
        'parts': torch_step.parts,
        'operations': torch_operations.operations,
    }
    for pair in groups[group](size):
        yield {'what': pair.name, 'threads': threads, **compare(pair, SECONDS[size])}


def compare(pair: Any, seconds: float) -> timing.Row:
    """Compares results, then times both in turns.

    Args:
        pair: see `benchmarks.torch_pairs.Pair`.
        seconds: of timing, at most; but `LEAST` turns are made.

    Returns:
        The row, without its name and threads.
    """
    expected, runs = pair.named(pair.ours()), {}
    errors: dict[str, float] = {}
    for layout in LAYOUTS:
        runs[layout] = pair.theirs(layout)
        found = differences(expected, pair.torch_named(runs[layout]()))
        errors = {name: max(error, errors.get(name, 0.0)) for name, error in found.items()}
    loose = {name: errors.pop(name) for name in pair.loose}
    errors = {'others': max(errors.values()), **loose}
    tolerances = {'others': pair.tolerance, **pair.loose}
    row = {
        'torch ms': UNEQUAL,
        'jax ms': UNEQUAL,
        'jax / torch': float('nan'),
        'quartiles': '-',
        'layout': '-',
        'difference': _bracketed(errors),
        'tolerance': _bracketed(tolerances),
    }
    if any(errors[name] > tolerances[name] for name in errors):
        return row
    first = in_turns(list(runs.values()), seconds / 4)
    layout = min(zip(map(statistics.median, first), runs, strict=True))[1]
    times = in_turns([runs[layout], lambda: jax.block_until_ready(pair.ours())], seconds)
    torch_ms, jax_ms = map(statistics.median, times)
    ratios = [ours / theirs for theirs, ours in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return row | {
        'torch ms': torch_ms,
        'jax ms': jax_ms,
        'jax / torch': statistics.median(ratios),
        'quartiles': f'{low:.2f}-{high:.2f}',
        'layout': layout,
    }


def _bracketed(numbers: Mapping[str, float]) -> str:
    first, *others = (f'{value:.0e}' for value in numbers.values())
    return ' '.join([first, *(f'({value})' for value in others)])


def in_turns(runs: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Times functions one after the other, again and again: for each its milliseconds."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    end = time.perf_counter() + seconds
    while len(times[0]) < LEAST or (len(times[0]) < TURNS and time.perf_counter() < end):
        for run, spent in zip(runs, times, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            spent.append(1e3 * (time.perf_counter() - start))
    return times


def differences(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Gives the differences of two dicts of arrays by name, see the module's text.

    Returns:
        Name -> a number; infinite where either has no such array, or one of another shape, or where
        a value is not finite.
    """
    largest: dict[str, float] = {}  # of a group
    for name, array in got.items():
        group = name.split('/')[0]
        largest[group] = max(largest.get(group, 0.0), float(np.abs(array).max()))
    found = dict.fromkeys([*expected, *got], float('inf'))
    for name in expected.keys() & got.keys():
        least = SMALL * largest[name.split('/')[0]]
        error = _difference(expected[name], got[name], least)
        found[name] = error if np.isfinite(error) else float('inf')
    return found


def _difference(ours: np.ndarray, theirs: np.ndarray, least: float) -> float:
    if ours.shape != theirs.shape:
        return float('inf')
    if not np.issubdtype(ours.dtype, np.floating):
        return float((ours != theirs).mean())
    scale = max(np.abs(theirs).max(), least, np.finfo(np.float32).tiny)
    return float(np.abs(ours - theirs).max() / scale)


if __name__ == '__main__':
    timing.main('Against PyTorch', rows)
