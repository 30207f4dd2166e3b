"""Measures everything on whatever device there is: python -m benchmarks.run [--quick].

Every part runs in a process of its own, the important ones first, and no part begins a new row once
its time is up. FOLDER/DATE_CHIP_SIZE.json and .md have every row as soon as it is there, so that
nothing is lost where the run is broken off. A part that fails is named, the others go on, and the
exit code is 1. Without --size an accelerator gets the paper's sizes and a CPU small ones. --quick
ends within 8 minutes, whatever is left to do then.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import bars, machine, tables, timing

# Seconds after which a part begins no new row, with --quick and without; 0: left out.
SECONDS = {
    'step': (75, 1500),
    'parts': (100, 400),
    'roofline': (15, 60),
    'startup': (45, 600),
    'kernels': (30, 200),  # with --profile only
    'data': (25, 120),
    'transfer': (10, 120),
    'evaluation': (20, 200),
    'convolutions': (20, 200),
    'contrastive': (15, 60),
    'checkpoint': (10, 60),
    'growth': (15, 900),
    'against_torch': (15, 400),
    'augment': (5, 60),
    'memory': (0, 400),
    'tries': (0, 200),
}
LEAST = 10  # seconds that a part is begun for
QUICK = 460  # seconds in all; what is left of 8 minutes is for ending and writing


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the parts that the arguments, by default those of the command line, ask for."""
    began = time.perf_counter()
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = _flags(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parts = flags.only or [name for name in SECONDS if name != 'kernels' or flags.profile]
    if flags.quick:
        parts = [part for part in parts if SECONDS[part][0] or flags.only]
    where = timing.isolated(machine.describe)  # elsewhere, as it takes the accelerator
    size = {'auto': 'small' if where['platform'] == 'cpu' else 'real'}.get(flags.size, flags.size)
    results: dict[str, Any] = {
        **machine.moment(),
        'size': size,
        'quick': flags.quick,
        'command': shlex.join(['python', '-m', 'benchmarks.run', *arguments]),
        'where': where,
        'state': 'broken off',  # until it comes to its end
        'parts': {},
        'rows': [],
    }

    def write() -> None:
        tables.write(stem, results, bars.rows(results))

    try:
        stem = _stem(flags.out, results)
        write()
    except OSError as error:
        sys.exit(f'--out {flags.out}: {error}; expected a folder that can be written to')
    try:
        for part in parts:
            soft = SECONDS[part][0 if flags.quick else 1] or SECONDS[part][1]
            hard = 2 * soft + 120
            if flags.quick:
                hard = min(hard, QUICK - (time.perf_counter() - began))
            options = {'profile': flags.profile} if part == 'kernels' and flags.profile else {}
            measure(results, part, soft, hard, write, options)
        results['state'] = _summary(results['parts'])
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        write()
        minutes = (time.perf_counter() - began) / 60
        print(f'\n{results["state"]} after {minutes:.1f} minutes; written: {stem}.json, {stem}.md')
    if 'failed' in results['state']:
        sys.exit(1)


def _summary(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Says how a run has ended that came to its end, by the states of its parts."""
    states = {'failed': [], 'cut off': [], 'not begun': []}
    for part, about in parts.items():
        for name, found in states.items():
            found += [part] if about['state'].startswith(name) else []
    found = [f'{name}: {", ".join(some)}' for name, some in states.items() if some]
    return '; '.join(found) or 'complete'


def measure(
    results: dict[str, Any],
    part: str,
    soft: float,
    hard: float,
    write: Callable[[], None],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Runs one part and adds its rows to the results as they come.

    Args:
        results: 'rows' grow, and 'parts' by 'title', 'seconds' and 'state': 'done', 'cut off after
            N s', 'not begun' or 'failed with code N'; 'size' is read.
        part: a module of benchmarks/.
        soft: seconds after which it begins no new row.
        hard: seconds after which it is stopped.
        write: called whenever the results have changed.
        options: further flags of the part.
    """
    about = results['parts'][part] = {'title': '', 'state': 'not begun', 'seconds': 0.0}
    known = len(results['rows'])
    if hard < LEAST:
        write()
        return
    print(f'\n== {part}', flush=True)
    about['state'], start = 'running', time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder, 'lines')
        arguments = ['--size', results['size'], '--seconds', str(soft), '--lines', str(lines)]
        for name, value in (options or {}).items():
            arguments += [f'--{name}', str(value)]
        process = subprocess.Popen([*command(part), *arguments], start_new_session=True)

        def gather() -> None:
            records = _read(lines)
            rows = [{'part': part, **r} for r in records if 'row' in r]
            about['title'] = next((r['title'] for r in records if 'title' in r), '')
            about['seconds'] = round(time.perf_counter() - start, 1)
            if rows != results['rows'][known:]:
                results['rows'][known:] = rows
                write()

        try:
            while process.poll() is None and time.perf_counter() - start < hard:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                gather()
            code = process.poll()
            about['state'] = f'cut off after {hard:.0f} s' if code is None else 'done'
            if code:
                about['state'] = f'failed with code {code}'
        except BaseException:  # Ctrl-C, SIGTERM: the part is another process group
            about['state'] = 'broken off'
            raise
        finally:
            _stop(process)
            gather()
            write()
    print(f'== {part}: {about["state"]}, {about["seconds"]:.0f} s', flush=True)


def command(part: str) -> list[str]:
    """Gives the command of a part, without its arguments."""
    return [sys.executable, '-m', f'benchmarks.{part}']


def _read(lines: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a file of JSON lines, without a last one that is not complete."""
    text = lines.read_text() if lines.exists() else ''
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]


def _stop(process: subprocess.Popen) -> None:
    """Ends a part with all the processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)  # its children may outlive it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def _stem(folder: pathlib.Path, results: Mapping[str, Any]) -> pathlib.Path:
    """Gives the files' path without suffix; an earlier run's of that day stay."""
    name = f'{results["date"][:10]}_{machine.slug(results["where"])}_{results["size"]}'
    name += '_quick' if results['quick'] else ''
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.glob('*.json')}
    names = [name, *(f'{name}_{n}' for n in range(2, len(taken) + 3))]
    return folder / next(name for name in names if name not in taken)


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        chosen = list(dict.fromkeys(text.split(',')))  # each once
        if unknown := set(chosen) - set(SECONDS):
            raise argparse.ArgumentTypeError(
                f'got {", ".join(sorted(unknown))}, expected some of {", ".join(SECONDS)}'
            )
        return chosen

    parser = argparse.ArgumentParser(prog='python -m benchmarks.run', description=__doc__)
    parser.add_argument('--size', choices=('auto', 'real', 'small'), default='auto')
    parser.add_argument('--quick', action='store_true', help='the first rows of each part')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('benchmarks/results'))
    parser.add_argument('--only', type=names, help='parts to run, as in step,parts')
    parser.add_argument('--profile', help='folder for a trace of five steps; adds its table')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
