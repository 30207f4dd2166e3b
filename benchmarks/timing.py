"""What the benchmarks share: the clock, the compiler's account, the chip's name, tables.

A benchmark is a function of the size, 'real' or 'small', that gives pairs (caption, row) one after
the other; rows of one caption are one table. `main` runs it.
"""

import argparse
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

# Before anything compiles, as jax asks only once: a compile time is not to be that of a look-up.
jax.config.update('jax_enable_compilation_cache', False)

REPEATS = 9
MIB = 2**20
Row = dict[str, str | float]


def milliseconds(run: Callable[[], Any], wait: Callable = jax.block_until_ready) -> float:
    """Times one call of `run`: the median over repeats, the first call left out.

    Short calls are issued up to ten in a row before the wait, as in a training loop; a repeat is
    their mean. Slow ones are repeated for three seconds, but three times at least.
    """
    wait(run())
    start = time.perf_counter()
    wait(run())
    calls = min(10, max(1, int(0.02 / (time.perf_counter() - start))))
    times, end = [], time.perf_counter() + 3
    while len(times) < REPEATS and (len(times) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        times.append(1e3 * (time.perf_counter() - start) / calls)
    return statistics.median(times)


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, Row]:
    """Compiles a jitted function and says what that took and what a call takes.

    Returns:
        The program, and {'compile s', 'GFLOP', 'memory MiB', 'temporary MiB'}. The operations are
        counted before optimisation and once for the body of a loop; the memory is all of it,
        arguments and results included, NaN where the backend does not tell.
    """
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    program = lowered.compile()
    seconds = time.perf_counter() - start
    costs = lowered.cost_analysis() or program.cost_analysis() or {}
    memory = program.memory_analysis()
    total = temporary = float('nan')
    if memory is not None:
        temporary = memory.temp_size_in_bytes
        total = temporary + memory.argument_size_in_bytes
        total += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return program, {
        'compile s': seconds,
        'GFLOP': costs.get('flops', float('nan')) / 1e9,
        'memory MiB': total / MIB,
        'temporary MiB': temporary / MIB,
    }


def measured(function: Callable, *arguments: Any) -> tuple[Any, Row]:
    """Compiles and times a function: its result, and 'ms', 'TFLOP/s' and what `compiled` says."""
    return timed(*compiled(jax.jit(function), *arguments), *arguments)


def timed(program: Callable, account: Row, *arguments: Any) -> tuple[Any, Row]:
    """Times what `compiled` gave; as `measured`."""
    spent = milliseconds(lambda: program(*arguments))
    return program(*arguments), {'ms': spent, 'TFLOP/s': account['GFLOP'] / spent, **account}


def attempt(function: Callable, *arguments: Any) -> Any:
    """Calls a function and gives its result, None where the device's memory does not suffice."""
    try:
        return function(*arguments)
    except RuntimeError as error:  # jax's and torch's alike
        if 'RESOURCE_EXHAUSTED' in str(error) or 'out of memory' in str(error).lower():
            return None
        raise


def isolated(function: Callable, *arguments: Any) -> Any:
    """Calls a function in a process of its own and gives its result."""
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def machine() -> tuple[str, str]:
    """Gives the platform, such as 'gpu', and the chip and the versions in one line."""
    device = jax.devices()[0]
    chip = device.device_kind
    if device.platform == 'cpu':
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        chip = f'{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores'
    versions = f'jax {jax.__version__}, Python {platform.python_version()}'
    if device.platform != 'cpu':
        versions += ', ' + device.client.platform_version.splitlines()[0]
    return device.platform, f'{chip}; {versions}'


def main(title: str, benchmark: Callable[[str], Iterator[tuple[str, Row]]]) -> None:
    """Runs one benchmark from the command line: prints its rows as they come, then writes them.

    The file is written anew with every row, so that what is measured stays if the run breaks off.

    Args:
        title: of the Markdown file.
        benchmark: see the module's text.
    """
    name = pathlib.Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=f'python -m benchmarks.{name}', description=title)
    parser.add_argument('--size', choices=('auto', 'real', 'small'), default='auto')
    parser.add_argument('--out', type=pathlib.Path, help='Markdown file to write the tables to')
    parser.add_argument('--seconds', type=float, default=600, help='no row is begun after these')
    flags = parser.parse_args()

    end = time.perf_counter() + flags.seconds
    load = os.getloadavg()[0]
    # Asked elsewhere: a process that has seen the accelerator keeps its memory from its children.
    kind, where = isolated(machine)
    size = {'auto': 'small' if kind == 'cpu' else 'real'}.get(flags.size, flags.size)
    lines: list[str] = []

    def add(*new: str) -> None:
        print('\n'.join(new), flush=True)
        lines.extend(new)
        if flags.out:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            flags.out.write_text('\n'.join(lines) + '\n')

    add(
        f'# {title}',
        '',
        f'{time.strftime("%Y-%m-%d")}; {where}; load average at the start {load:.1f}.',
        f'`{parser.prog} --size {size}`',
    )
    last = None
    for caption, row in benchmark(size):
        if caption != last:
            add('', caption, '', *_head(row))
        last = caption
        add(_line([_cell(value) for value in row.values()]))
        if time.perf_counter() > end:
            add('', f'No row was begun after {flags.seconds:.0f} s.')
            break


def _head(row: Row) -> list[str]:
    numbers = [not isinstance(value, str) for value in row.values()]
    return [_line(list(row)), '|' + '|'.join('---:' if n else '---' for n in numbers) + '|']


def _line(cells: list[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return '-'
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f'{value:,.{digits}f}'
