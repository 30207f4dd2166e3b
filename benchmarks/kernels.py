"""Where the time of a step goes, kernel by kernel, from a trace of five steps.

    python -m benchmarks.kernels --size real --profile FOLDER

FOLDER gets the trace, which Perfetto and TensorBoard open (docs/devices.md); without it nothing is
kept. On a GPU the kernels are those of its streams. On a CPU they are the operations of XLA's
threads; several run at once, so that their times add up to more than the step's. 'covered by
kernels' is the share of the time in which at least one ran. Tracing itself slows small steps down.
"""

import gzip
import json
import pathlib
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from benchmarks import step, timing

STEPS = 5
SHOWN = 40  # kernels in the table; the rest is one row
# Group -> what the name of a kernel of it, or of its operation, has; the first that fits.
GROUPS = {
    'YNNPACK: convolutions and products of a CPU': r'^ynn_',
    'collective': r'nccl|all-reduce|all-gather|reduce-scatter|collective',
    'convolution': r'conv(?!ert)|cudnn|fprop|dgrad|wgrad|winograd|implicit',
    'product': r'gemm|nvjet|cublas|cutlass|\bdot|matmul|_mma',
    'sort': r'sort|radix|top-?k',
    'copy': r'memcpy|memset|copy|transpose',
    'scatter, gather': r'scatter|gather|dynamic-(update-)?slice',
    'reduction': r'reduc',
}
SUM = 'sum of all'
COVERED = 'covered by kernels'
OTHER = 'elementwise and fusions'
_LOOPS = re.compile(r'(while|cond|conditional|call)(\.|$)')  # on a CPU, beside what runs in them


class Event(NamedTuple):
    """A kernel that ran: its name, the operation it is of, start and length in microseconds."""

    name: str
    operation: str
    start: float
    length: float


def events(trace: dict[str, Any]) -> list[Event]:
    """Gives the kernels of a trace in Chrome's format, as jax writes it.

    Those on the streams of a device where it has any (the other lines of a device say the same
    again by other names), else those of the host's threads.
    """
    processes, threads = {}, {}
    for e in trace['traceEvents']:
        if e.get('ph') == 'M' and e['name'] == 'process_name':
            processes[e['pid']] = e['args']['name']
        if e.get('ph') == 'M' and e['name'] == 'thread_name':
            threads[e['pid'], e['tid']] = e['args']['name']
    streams, host = [], []
    for e in trace['traceEvents']:
        if e.get('ph') != 'X':
            continue
        operation = e.get('args', {}).get('hlo_op', '')
        event = Event(e['name'], operation, e['ts'], e.get('dur', 0.0))
        device = '/device:' in processes.get(e['pid'], '')
        thread = threads.get((e['pid'], e.get('tid')), '')
        if device and thread.startswith(('Stream', 'XLA Ops')):
            streams.append((thread.startswith('Stream'), event))
        elif not device and operation and not _LOOPS.match(operation):
            host.append(event)
    if any(stream for stream, _ in streams):
        streams = [pair for pair in streams if pair[0]]
    return [event for _, event in streams] or host


def group(event: Event) -> str:
    """Gives the one of GROUPS that a kernel belongs to, by its name, else by its operation's."""
    for text in (event.name.lower(), event.operation.lower()):
        for name, pattern in GROUPS.items():
            if re.search(pattern, text):
                return name
    return OTHER


def covered(found: Iterable[Event]) -> float:
    """Gives the microseconds in which at least one kernel ran."""
    total, end = 0.0, float('-inf')
    for event in sorted(found, key=lambda event: event.start):
        total += max(0.0, event.start + event.length - max(end, event.start))
        end = max(end, event.start + event.length)
    return total


def table(found: list[Event], step_us: float, steps: int) -> list[timing.Row]:
    """Gives a row a group of kernels, their sums, and a row a kernel, the longest first.

    Args:
        found: as of `events`.
        step_us: microseconds of a step.
        steps: that were traced.
    """

    def row(name: str, own: list[Event], us: float) -> timing.Row:
        return {
            'kernels': name,
            'calls a step': len(own) / steps,
            'ms a step': us / steps / 1e3,
            'share': us / steps / step_us,
        }

    def sums(key: Callable[[Event], Any]) -> list[tuple[Any, list[Event], float]]:
        by = defaultdict(list)
        for event in found:
            by[key(event)].append(event)
        totals = [(name, own, sum(e.length for e in own)) for name, own in by.items()]
        return sorted(totals, key=lambda entry: -entry[2])

    rows = [row(f'all: {name}', own, us) for name, own, us in sums(group)]
    rows.append(row(SUM, found, sum(event.length for event in found)))
    rows.append(row(COVERED, found, covered(found)))
    by_name = sums(lambda event: (event.name, event.operation))
    for (name, operation), own, us in by_name[:SHOWN]:
        label = name if operation in ('', name) else f'{name} ({operation})'
        rows.append(row(label.replace('|', r'\|'), own, us))
    if rest := by_name[SHOWN:]:
        own = [event for _, some, _ in rest for event in some]
        rows.append(row(f'{len(rest)} others', own, sum(entry[2] for entry in rest)))
    return rows


def trace(size: str, case: str, folder: str) -> tuple[list[Event], float]:
    """Traces some steps of a case into a folder: the kernels, and the microseconds of a step."""
    run = step.setup(step.case_configuration(size, case))
    program, _ = timing.compiled(jax.jit(run.step, donate_argnums=0), run.state, run.batch)
    current, metrics = program(run.state, run.batch)
    jax.block_until_ready(metrics)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        start = time.perf_counter()
        for _ in range(STEPS):
            current, metrics = program(current, run.batch)
        jax.block_until_ready((current, metrics))
        spent = time.perf_counter() - start
    newest = max(
        pathlib.Path(folder).rglob('perfetto_trace.json.gz'), key=lambda p: p.stat().st_mtime
    )
    with gzip.open(newest, 'rt') as file:
        return events(json.load(file)), 1e6 * spent / STEPS


def rows(size: str, profile: str | None = None) -> Iterator[tuple[str, list[timing.Row]]]:
    """Gives the table of the headline's step."""
    with tempfile.TemporaryDirectory() as folder:
        found, spent = trace(size, step.BFLOAT16, profile or folder)
    caption = f'{step.CAPTION[size]}; {step.BFLOAT16}: {spent / 1e3:.1f} ms, {STEPS} steps traced'
    yield caption, table(found, spent, STEPS)


if __name__ == '__main__':
    timing.main('Kernels', rows, profile='folder that keeps the trace')
