"""Measures this machine and writes what it finds as it goes: python -m benchmarks.run.

    python -m benchmarks.run --seconds 420      # what matters most, within seven minutes
    python -m benchmarks.run                    # everything

FOLDER/CHIP.json and .md have the results of one machine. A run replaces the rows of the parts that
it measures and keeps those of the others; every part carries its own date, commit, command and
state. Every part is a process of its own, the important ones first; they share one folder of
compiled programs, JAX_COMPILATION_CACHE_DIR or .cache/jax. A part that fails or hangs is named, the
others go on, and the exit code is 1; what an earlier run has measured of it stays.
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
from collections.abc import Sequence
from typing import Any

from benchmarks import machine, tables

ROOT = pathlib.Path(__file__).parents[1]
# (part, module and arguments, seconds after which it is stopped), in the order in which they run:
# at the paper's sizes on an accelerator, at small ones on a CPU. --seconds and --quick run these.
FIRST = (
    ('step', 'step --cases bfloat16', 240),  # with its kernels
    ('atrous', 'step --cases dilated,space_to_batch', 150),
    ('contrastive', 'contrastive', 40),
    ('data', 'data', 40),
    ('float32', 'step --cases float32', 120),
    ('evaluation', 'evaluation', 60),
    ('quickstart', 'step --size small --cases float32,bfloat16', 90),
    ('intensity', 'intensity', 90),
)
# A run without them has these as well, and four times as long for each part.
MORE = (
    ('settings', 'step --cases teacher_on_unlabelled,joint_pass,cityscapes,output_stride_16', 300),
    ('memory', 'step --cases remat_layer3,remat_all', 200),
    ('classes', 'step --cases classes_2,classes_21,classes_150', 200),
    ('batch', 'step --cases batch_quarter,batch_half,batch_double', 200),
    ('crop', 'step --cases crop_half,crop_double', 200),
    ('methods', 'step --cases cutmix,supervised', 200),
    ('dinov2', 'step --cases dinov2_small,dinov2_base,dinov2_base_xla', 300),
    ('dinov2_memory', 'step --cases dinov2_base_remat,dinov2_base_frozen', 200),
    ('unimatch', 'step --cases unimatch_small,unimatch_base_remat', 300),
    ('deterministic', 'step --cases deterministic', 150),
    ('parts', 'parts', 300),
    ('convolutions', 'convolutions', 300),
    ('startup', 'startup', 200),
    ('checkpoint', 'checkpoint', 60),
    ('energy', 'energy', 300),
)
NAMES = [name for name, _, _ in (*FIRST, *MORE)]
QUICK = 420  # seconds of --quick
LEAST = 10  # seconds that a part is begun for
ENDING = 8  # seconds that are kept for stopping what runs and for writing
PATIENCE = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that the arguments, by default those of the command line, ask for."""
    began = time.perf_counter()
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = _flags(arguments)
    seconds = flags.seconds or (QUICK if flags.quick else float('inf'))
    limited = seconds < float('inf') and not flags.only
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    where = describe(min(90, seconds))
    results = Results(flags.out, where, shlex.join(['python', '-m', 'benchmarks.run', *arguments]))
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, given, own in FIRST if limited else (*FIRST, *MORE):
                if flags.only and name not in flags.only:
                    continue
                if '--size' not in given:
                    given += ' --size ' + ('small' if where['platform'] == 'cpu' else 'real')
                given = given.split()
                if name == 'step' and flags.profile:
                    given += ['--profile', os.path.abspath(flags.profile)]
                left = seconds - ENDING - (time.perf_counter() - began)
                measure(results, name, given, own * (1 if limited else PATIENCE), left, folder)
        results.last['state'] = results.summary()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        results.write()
        state, spent = results.last['state'], time.perf_counter() - began
        print(f'\n{state} after {spent:.0f} s; written: {results.stem}.json and .md')
    if 'failed' in state or 'cut off' in state:
        sys.exit(1)


def describe(seconds: float) -> dict[str, Any]:
    """Ask another process for the device, as whoever asks takes it."""
    command = [sys.executable, '-m', 'benchmarks.machine']
    try:
        return json.loads(subprocess.check_output(command, cwd=ROOT, timeout=seconds))
    except (subprocess.SubprocessError, ValueError) as error:
        sys.exit(f'no device was found: {error}')


class Results:
    """What the files of a machine have.

    Attributes:
        stem: path of both files without suffix.
        last: about this run.
        measured: name of a part -> what this run has of it.
    """

    def __init__(self, folder: pathlib.Path, where: dict[str, Any], command: str):
        """Read what is there; `where` is of `benchmarks.machine.describe`."""
        self.stem, self.where = folder / machine.slug(where), where
        self.last = {'command': command, **machine.moment(), 'state': 'broken off'}  # until its end
        self.measured: dict[str, dict[str, Any]] = {}
        path = pathlib.Path(f'{self.stem}.json')
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.earlier = json.loads(path.read_text())['parts'] if path.exists() else {}
            self.write()
        except OSError as error:
            sys.exit(f'--out {folder}: {error}; expected a folder that can be written to')

    def write(self) -> None:
        """Write the files; what did not come to its end wipes nothing that did."""
        parts = dict(self.earlier)
        for name, now in self.measured.items():
            before = parts.get(name, now)
            keep = before['state'] == 'done' and now['state'] != 'done'
            parts[name] = {**before, 'later': now} if keep else now
        parts = {name: parts[name] for name in (*NAMES, *parts) if name in parts}
        tables.write(self.stem, {'chip': self.where['chip'], 'last_run': self.last, 'parts': parts})

    def summary(self) -> str:
        """Say how a run has ended that came to its end, by the states of its parts."""
        told = []
        for word in ('failed', 'cut off', 'stopped', 'not reached'):
            found = [name for name, now in self.measured.items() if now['state'].startswith(word)]
            told += [f'{word}: {", ".join(found)}'] if found else []
        return '; '.join(told) or 'complete'


def measure(
    results: Results, name: str, given: list[str], own: float, left: float, folder: str
) -> None:
    """Run one part, a module with arguments, and add its rows to the results as they come.

    It is stopped `own` seconds after its start, by when it is taken to hang, or after the seconds
    that are left of the run. Its temporary files are in a folder.
    """
    entry = {'command': shlex.join(['python', '-m', f'benchmarks.{given[0]}', *given[1:]])}
    entry |= {**machine.moment(), 'where': results.where, 'seconds': 0.0, 'rows': []}
    results.measured[name] = entry
    entry['state'] = 'broken off' if left >= LEAST else 'not reached'
    if left < LEAST:
        return
    print(f'\n== {name}', flush=True)
    lines, start = pathlib.Path(folder, f'{name}.lines'), time.perf_counter()
    environment = {'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache' / 'jax'), **os.environ}
    process = subprocess.Popen(
        [*command(given[0]), *given[1:], '--lines', str(lines)],
        env={**environment, 'TMPDIR': folder},
        cwd=ROOT,
        start_new_session=True,
    )

    def gather() -> None:
        text = lines.read_text() if lines.exists() else ''
        whole = [line for line in text.splitlines(keepends=True) if line.endswith('\n')]
        entry['rows'] = [json.loads(line) for line in whole]
        entry['seconds'] = time.perf_counter() - start

    try:
        while process.poll() is None and entry['seconds'] < min(own, left):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            known = len(entry['rows'])
            gather()
            if len(entry['rows']) > known:
                results.write()
        code = process.poll()
        entry['state'] = 'done' if code == 0 else f'failed with code {code}'
        if code is None:
            entry['state'] = f'cut off after {own:.0f} s' if own < left else 'stopped at the end'
    finally:
        _stop(process)
        gather()
        results.write()
    print(f'== {name}: {entry["state"]}, {entry["seconds"]:.0f} s', flush=True)


def command(module: str) -> list[str]:
    """Return the command of a part, without its arguments."""
    return [sys.executable, '-m', f'benchmarks.{module}']


def _stop(process: subprocess.Popen) -> None:
    """End a part with all the processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)  # its children may outlive it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        if unknown := set(text.split(',')) - set(NAMES):
            raise argparse.ArgumentTypeError(
                f'got {", ".join(sorted(unknown))}, expected some of {", ".join(NAMES)}'
            )
        return text.split(',')

    parser = argparse.ArgumentParser(prog='python -m benchmarks.run', description=__doc__)
    parser.add_argument('--seconds', type=float, help='ends within these; the first parts alone')
    parser.add_argument('--quick', action='store_true', help=f'--seconds {QUICK}')
    parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results')
    parser.add_argument('--only', type=names, help='parts to run, as in step,data')
    parser.add_argument('--profile', help="folder that keeps the trace of the step's kernels")
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
