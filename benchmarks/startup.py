"""Seconds from the start of a process to its first step, with an empty and a filled cache.

    python -m benchmarks.startup

`python -m css_jax.main` is started as a user would, in a folder of its own, with a folder for
compiled programs that is empty at first ('cold') and has the first run's at the second ('warm').
The moments are those of the lines of its log; it is ended once its first step is logged. It is the
quickstart, whatever the size. Files are in the page cache by then, so that the imports are not
those of a machine just booted.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import tensorflow_datasets as tfds

from benchmarks import timing
from data_prep import records
from data_prep.shapes.builder import Builder

IMAGES = {'train': 64, 'val': 8, 'fresh': 1}
# Phase -> how the line of the log begins that ends it.
PHASES = {
    'imports, data, devices, tracing s': 'split hash',
    'first weights s': 'batch of',
    'compiling s': 'compiled the step',
    'first step s': 'step 1/',
}


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give a row for the cold start and one for the warm one."""
    del size
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        tfds.disable_progress_bar()
        records.prepare(Builder(data_dir=path / 'data', splits=IMAGES))
        (path / 'cache').mkdir()
        for cache in ('cold', 'warm'):
            moments = start(path, cache)
            row = {'cache': cache, 'first step done after s': sum(moments.values()), **moments}
            yield 'From the start of the process to the first step of the quickstart', row


def start(folder: pathlib.Path, name: str) -> dict[str, float]:
    """Start a run, end it after its first step, and return the seconds of each of PHASES."""
    changes = {'burn_in_steps': 0, 'log_every': 1, 'data.dir': folder / 'data'}
    command = [sys.executable, '-m', 'css_jax.main', '--config', 'configs/quickstart.py:css_mix']
    command += [f'--workdir={folder / name}']
    command += [f'--config.{key}={value}' for key, value in changes.items()]
    # The defaults of a user's shell, but for the cache's folder.
    environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_PERSISTENT_CACHE')}
    environment |= {'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'), 'PYTHONUNBUFFERED': '1'}
    last, moments, said = time.perf_counter(), {}, []
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for line in process.stdout:
            said.append(line)
            now = time.perf_counter()
            for phase, beginning in PHASES.items():
                if phase not in moments and line.startswith(beginning):
                    moments[phase], last = now - last, now
            if len(moments) == len(PHASES):
                return moments
    finally:
        process.kill()  # nothing of it is to be kept
        process.wait()
        process.stdout.close()
    raise RuntimeError(f'no first step of {" ".join(command)}:\n{"".join(said[-20:])}')


if __name__ == '__main__':
    timing.main('Start-up', rows)
