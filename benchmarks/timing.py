"""What the benchmarks share: the clock, the compiler's account, processes, the command line.

A benchmark is a function of the size, 'real' or 'small', that gives pairs (caption, row) one after
the other, the important ones first; rows of one caption are one table. Rows that are measured
together come as a list, (caption, rows). `main` runs it.
"""

import argparse
import contextlib
import json
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import jax

from benchmarks import count, machine, tables
from benchmarks.tables import Row

# Before anything compiles, as jax asks only once: a compile time is not to be that of a look-up.
jax.config.update('jax_enable_compilation_cache', False)

REPEATS = 9
MIB = 2**20


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


def interleaved(runs: Mapping[str, Callable[[], Any]], seconds: float = 10) -> dict[str, float]:
    """Times several functions in turns: each once, then each once again, and so on.

    What else the machine does then falls on all of them alike. Medians would not add up: a short
    function's is one that nothing disturbed, a long one is always disturbed. So whole rounds are
    left out, the slower half of them.

    Args:
        runs: name -> function; called once more before, untimed.
        seconds: no round is begun after these, but four are made.

    Returns:
        Name -> milliseconds of a call, waited for; the mean over the faster half of the rounds.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 4 or time.perf_counter() < end:
        times = {}
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name] = 1e3 * (time.perf_counter() - start)
        rounds.append(times)
    rounds.sort(key=lambda times: sum(times.values()))
    faster = rounds[: (len(rounds) + 1) // 2]
    return {name: statistics.mean(times[name] for times in faster) for name in runs}


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, Row]:
    """Compiles a jitted function and says what that took and what a call takes.

    Returns:
        The program, and {'compile s', 'GFLOP', 'memory MiB', 'temporary MiB'}. The operations are
        those of convolutions and products with anything but padding (`benchmarks.count`), not the
        compiler's estimate; the memory is all of it, arguments and results included, NaN where the
        backend does not tell.
    """
    start = time.perf_counter()
    traced = function.trace(*arguments)
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    total = temporary = float('nan')
    if memory is not None:
        temporary = memory.temp_size_in_bytes
        total = temporary + memory.argument_size_in_bytes
        total += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return program, {
        'compile s': seconds,
        'GFLOP': count.totals(count.kernels(traced.jaxpr))['flops'] / 1e9,
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


def streamed(function: Callable, *arguments: Any) -> Iterator[Any]:
    """Calls a generator function in a process of its own and gives what it yields as it comes.

    Raises:
        RuntimeError: the process has failed; its own error is on stderr.
    """
    spawn = multiprocessing.get_context('spawn')
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(sender, function, *arguments))
    process.start()
    sender.close()  # the process has its own, whose end is the end
    try:
        with contextlib.suppress(EOFError):
            while True:
                yield receiver.recv()
        process.join()
        if process.exitcode:
            raise RuntimeError(f'{function.__name__}: failed with code {process.exitcode}')
    finally:
        process.terminate()
        process.join()


def _send(sender: Connection, function: Callable, *arguments: Any) -> None:
    for item in function(*arguments):
        sender.send(item)


def memory_in_use() -> tuple[int, int]:
    """Gives the bytes in use now and at most so far, of the accelerator or else of the process."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats['bytes_in_use'], stats['peak_bytes_in_use']
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    kibibytes = {line.split(':')[0]: line.split()[1] for line in lines if line.startswith('Vm')}
    return int(kibibytes['VmRSS']) * 1024, int(kibibytes['VmHWM']) * 1024


def forget_peak() -> None:
    """Sets the process's highest mark to what is in use now, where the system allows it."""
    with contextlib.suppress(OSError):
        pathlib.Path('/proc/self/clear_refs').write_text('5')


def main(title: str, benchmark: Callable[..., Iterator[tuple]], **options: str) -> None:
    """Runs one benchmark from the command line: prints its rows as they come, and writes them.

    A file is written with every row, so that what is measured stays if the run breaks off.

    Args:
        title: of the tables.
        benchmark: see the module's text.
        **options: name -> what it is, of more flags; they are handed to the benchmark by name.
    """
    name = pathlib.Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=f'python -m benchmarks.{name}', description=title)
    parser.add_argument('--size', choices=('auto', 'real', 'small'), default='auto')
    parser.add_argument('--out', type=pathlib.Path, help='Markdown file to write the tables to')
    parser.add_argument('--lines', type=pathlib.Path, help='file to add the rows to, as JSON')
    parser.add_argument('--seconds', type=float, default=600, help='no row is begun after these')
    for option, text in options.items():
        parser.add_argument(f'--{option}', help=text)
    flags = parser.parse_args()

    end = time.perf_counter() + flags.seconds
    size, head = flags.size, ''
    if flags.lines is None or size == 'auto':
        when = machine.moment()
        # Asked elsewhere: a process that has seen the accelerator keeps its memory from its
        # children.
        where = isolated(machine.describe)
        size = {'auto': 'small' if where['platform'] == 'cpu' else 'real'}.get(size, size)
        head = f'{when["date"]}; {machine.line(where)}; load average {when["load_average"]}.'
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
    shown = [f'# {title}', '', head, f'`{parser.prog} --size {size}`']
    print('\n'.join(shown), flush=True)
    add_line(flags.lines, {'title': title})

    pairs: list[tuple[str, Row]] = []
    printed = 0
    for caption, found in benchmark(size, **{name: getattr(flags, name) for name in options}):
        new = [(caption, row) for row in (found if isinstance(found, list) else [found])]
        pairs += new
        text = list(tables.lines(pairs))
        print('\n'.join(text[printed:]), flush=True)
        printed = len(text)
        for _, row in new:
            add_line(flags.lines, {'caption': caption, 'row': tables.plain(row)})
        late = time.perf_counter() > end
        note = ['', f'No row was begun after {flags.seconds:.0f} s.'] if late else []
        if flags.out:
            flags.out.write_text('\n'.join([*shown, *text, *note, '']))
        if late:
            print('\n'.join(note), flush=True)
            break


def add_line(path: pathlib.Path | None, record: dict[str, Any]) -> None:
    """Adds a line of JSON to a file, if there is to be one."""
    if path is not None:
        with path.open('a') as file:
            file.write(json.dumps(record) + '\n')
