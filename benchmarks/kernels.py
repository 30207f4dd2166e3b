"""Where the time of a step goes, kernel by kernel, from a trace of five steps.

On a GPU the kernels are those of its streams. On a CPU they are the operations of XLA's threads;
several run at once, so that their times add up to more than the step's. 'covered by kernels' is the
share of the time in which at least one ran. Tracing itself slows small steps down.
"""

import gzip
import json
import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from benchmarks.tables import Row

STEPS = 5
NAMED = 0.95  # of the kernels' time that the table has by name; the rest is one row
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
SUM, COVERED, OTHER = 'sum of all', 'covered by kernels', 'elementwise and fusions'
_LOOPS = re.compile(r'(while|cond|conditional|call)(\.|$)')  # on a CPU, beside what runs in them


class Event(NamedTuple):
    """A kernel that ran: its name, the operation it is of, start and length in microseconds."""

    name: str
    operation: str
    start: float
    length: float


def trace(once: Callable[[], Any], folder: str) -> tuple[list[Event], float]:
    """Trace some calls of a program into a folder: the kernels, and the microseconds of a call."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        start = time.perf_counter()
        for _ in range(STEPS):
            result = once()
        jax.block_until_ready(result)
        spent = time.perf_counter() - start
    found = pathlib.Path(folder).rglob('perfetto_trace.json.gz')
    with gzip.open(max(found, key=lambda path: path.stat().st_mtime), 'rt') as file:
        return events(json.load(file)), 1e6 * spent / STEPS


def events(trace: dict[str, Any]) -> list[Event]:
    """Return the kernels of a trace in Chrome's format, as jax writes it.

    Those on the streams of a device where it has any (the other lines of a device say the same
    again by other names), else those of the host's threads.
    """
    names = {}  # of processes and threads
    for e in trace['traceEvents']:
        if e.get('ph') == 'M' and e['name'] in ('process_name', 'thread_name'):
            names[e['pid'], e['tid'] if e['name'] == 'thread_name' else ''] = e['args']['name']
    found = {'Stream': [], 'XLA Ops': [], '': []}  # the streams of a GPU, of a TPU, of the host
    for e in trace['traceEvents']:
        if e.get('ph') != 'X':
            continue
        operation = e.get('args', {}).get('hlo_op', '')
        event = Event(e['name'], operation, e['ts'], e.get('dur', 0.0))
        if '/device:' in names.get((e['pid'], ''), ''):
            thread = names.get((e['pid'], e.get('tid')), '')
            for kind in ('Stream', 'XLA Ops'):
                found[kind] += [event] if thread.startswith(kind) else []
        elif operation and not _LOOPS.match(operation):
            found[''].append(event)
    return next((some for some in found.values() if some), [])


def group(event: Event) -> str:
    """Return the one of GROUPS that a kernel belongs to, by its name, else by its operation's."""
    for text in (event.name.lower(), event.operation.lower()):
        for name, pattern in GROUPS.items():
            if re.search(pattern, text):
                return name
    return OTHER


def covered(found: Iterable[Event]) -> float:
    """Return the microseconds in which at least one kernel ran."""
    total, end = 0.0, float('-inf')
    for event in sorted(found, key=lambda event: event.start):
        total += max(0.0, event.start + event.length - max(end, event.start))
        end = max(end, event.start + event.length)
    return total


def table(found: list[Event], step_us: float) -> Iterator[Row]:
    """Give a row a group of kernels of STEPS steps, their sums, and a row a name, longest first.

    A name has the kernels of all its numbers: 'fusion' is of fusion.3 and fusion.14, too.
    """

    def row(name: str, own: list[Event], us: float) -> Row:
        return {
            'kernels': name.replace('|', r'\|'),
            'calls a step': len(own) / STEPS,
            'ms a step': us / STEPS / 1e3,
            'share': us / STEPS / step_us,
            'longest call ms': max((event.length for event in own), default=0.0) / 1e3,
        }

    def sorted_by(key: Callable[[Event], str]) -> list[tuple[str, list[Event]]]:
        by = defaultdict(list)
        for event in found:
            by[key(event)].append(event)
        return sorted(by.items(), key=lambda pair: -_sum(pair[1]))

    for name, own in sorted_by(group):
        yield row(f'all: {name}', own, _sum(own))
    yield row(SUM, found, _sum(found))
    yield row(COVERED, found, covered(found))
    rest, left = list(found), sorted_by(_name)
    while left and _sum(rest) > (1 - NAMED) * _sum(found):
        name, own = left.pop(0)
        yield row(name, own, _sum(own))
        rest = [event for _, some in left for event in some]
    if left:
        yield row(f'{len(left)} others', rest, _sum(rest))


def _sum(found: list[Event]) -> float:
    return sum(event.length for event in found)


def _name(event: Event) -> str:
    name, operation = (re.sub(r'([._]\d+)+$', '', text) for text in (event.name, event.operation))
    return name if operation in ('', name) else f'{name} ({operation})'
