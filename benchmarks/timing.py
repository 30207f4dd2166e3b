"""What the benchmarks share: the compiler's account, the clock, memory, the command line.

A benchmark is a function of the size, 'real' or 'small', that gives pairs (caption, row) one after
the other, the important ones first; rows of one caption are one table. `main` runs it.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from benchmarks import count, machine, tables
from benchmarks.tables import Row
from css_jax.parallel import cost

REPEATS = 9
MIB = 2**20
if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR
    cache = pathlib.Path(__file__).parents[1] / '.cache' / 'jax'
    jax.config.update('jax_compilation_cache_dir', str(cache))
_events: list[str] = []  # of jax, since the process began
jax.monitoring.register_event_listener(lambda event, **_: _events.append(event))


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        call: runs it.
        kernels: what it asks of a chip, see `benchmarks.count`.
        row: 'compile s' (tracing and lowering included), 'compiled' ('anew' or 'from the cache'),
            'GFLOP' (of convolutions and products with anything but padding) and, by the compiler's
            account, 'memory MiB' (arguments and results included) and 'temporary MiB'.
    """

    call: Callable
    kernels: list[count.Kernel]
    row: Row

    def milliseconds(self, *arguments: Any) -> float:
        """Time one call, see `milliseconds`."""
        return milliseconds(lambda: self.call(*arguments))


def compiled(function: Any, *arguments: Any) -> Program:
    """Compile a jitted function of arrays or of their shapes: one trace, one lowering."""
    known, start = len(_events), time.perf_counter()
    traced = function.trace(*arguments)
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    found = '/jax/compilation_cache/cache_hits' in _events[known:]
    kernels, account = count.kernels(traced.jaxpr), cost.cost(program)
    row = {
        'compile s': seconds,
        'compiled': 'from the cache' if found else 'anew',
        'GFLOP': count.totals(kernels)['flops'] / 1e9,
        'memory MiB': _mib(account['bytes_total']),
        'temporary MiB': _mib(account['bytes_temporary']),
    }
    return Program(program, kernels, row)


def _mib(bytes_: float | None) -> float:
    return float('nan') if bytes_ is None else bytes_ / MIB


def milliseconds(run: Callable[[], Any]) -> float:
    """Time one call of `run`: the median over repeats, the first call left out.

    Short calls are issued up to ten in a row before the wait, as in a training loop; a repeat is
    their mean. Slow ones are repeated for three seconds, but three times at least.
    """
    jax.block_until_ready(run())
    calls = min(10, max(1, int(20 / _once(run))))

    def several() -> Any:
        for _ in range(calls):
            result = run()
        return result

    times, end = [], time.perf_counter() + 3
    while len(times) < REPEATS and (len(times) < 3 or time.perf_counter() < end):
        times.append(_once(several) / calls)
    return statistics.median(times)


def interleaved(runs: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Time several functions in turns, four rounds or more, until the seconds are over.

    What else the machine does then falls on all of them alike. Medians would not add up: a short
    function's is one that nothing disturbed, a long one is always disturbed. So whole rounds are
    left out, the slower half of them.

    Returns:
        Name -> milliseconds of a call, waited for; the mean over the faster half of the rounds.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 4 or time.perf_counter() < end:
        rounds.append({name: _once(run) for name, run in runs.items()})
    rounds.sort(key=lambda times: sum(times.values()))
    faster = rounds[: (len(rounds) + 1) // 2]
    return {name: statistics.mean(times[name] for times in faster) for name in runs}


def _once(run: Callable[[], Any]) -> float:
    """Time one call: milliseconds."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - start)


def peak(run: Callable, *arguments: Any) -> tuple[Any, float]:
    """Call a function: what it gives, and the highest mark of the device's allocator in MiB.

    The mark is NaN where something before had set a higher one, and on a CPU, which has none.
    """
    device = jax.devices()[0]
    before = (device.memory_stats() or {}).get('peak_bytes_in_use', 0)
    result = run(*arguments)
    mark = (device.memory_stats() or {}).get('peak_bytes_in_use', 0)
    return result, mark / MIB if mark > before else float('nan')


def main(title: str, benchmark: Callable[..., Iterator[tuple]], **options: Any) -> None:
    """Run one benchmark from the command line: print its rows as they come.

    It is handed the size and, by name, what more flags say: `options` has their defaults.
    """
    name = pathlib.Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=f'python -m benchmarks.{name}', description=title)
    parser.add_argument('--size', choices=('auto', 'real', 'small'), default='auto')
    parser.add_argument('--lines', type=pathlib.Path, help='file to add the rows to, as JSON')
    for option, default in options.items():
        parser.add_argument(f'--{option}', default=default)
    flags = parser.parse_args()
    if flags.size == 'auto':
        flags.size = 'small' if machine.describe()['platform'] == 'cpu' else 'real'
    print(f'# {title}\n\n`{parser.prog} --size {flags.size}`', flush=True)
    pairs, printed = [], 0
    for caption, row in benchmark(flags.size, **{name: getattr(flags, name) for name in options}):
        pairs.append((caption, tables.plain(row)))
        if flags.lines:
            with flags.lines.open('a') as file:
                file.write(json.dumps({'caption': caption, 'row': pairs[-1][1]}) + '\n')
        text = list(tables.lines(pairs))
        print('\n'.join(text[printed:]), flush=True)
        printed = len(text)
