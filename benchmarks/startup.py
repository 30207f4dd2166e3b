"""Seconds from the start of a process to its first step, with an empty and a filled cache.

    python -m benchmarks.startup --size real

`python -m css_jax.main` is started as a user would, in a folder of its own, with a folder for
compiled programs that is empty at first ('cold') and has the first run's at the second ('warm').
The moments are those of the lines of its log; it is ended once its first step is logged. 'real' is
ResNet-101 with the paper's crops and batches on `shapes`, scaled up; 'small' the quickstart. Files
are in the page cache by then, so that the imports are not those of a machine just booted.
"""

import os
import pathlib
import signal
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
CONFIG = {
    'small': 'configs/quickstart.py:css_mix',
    'real': 'configs/quickstart.py:css_mix,model.backbone=resnet101,model.width=1.0,'
    'model.representation_dim=256,model.dtype=bfloat16,data.streams.labelled.batch_size=16,'
    'data.streams.unlabelled.batch_size=16',
}
REAL = {
    'num_classes': '21',
    'data.streams.labelled.dataset': 'shapes/128',
    'data.streams.unlabelled.dataset': 'shapes/128',
    'data.streams.labelled.crop': '512,512',
    'data.streams.unlabelled.crop': '512,512',
    'data.streams.labelled.resize': '2.0,6.0',
}
# Phase -> how the line of the log begins that ends it.
PHASES = {
    'imports, data, devices, tracing s': 'split hash',
    'first weights s': 'batch of',
    'compiling s': 'compiled the step',
    'first step s': 'step 1/',
}
LIMIT = 900  # seconds for one start


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row for the cold start and one for the warm one."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        tfds.disable_progress_bar()
        for config in ('64', '128') if size == 'real' else ('64',):
            records.prepare(Builder(config=config, data_dir=path / 'data', splits=IMAGES))
        (path / 'cache').mkdir()
        for cache in ('cold', 'warm'):
            moments = start(size, path, cache)
            yield (
                f'From the start of the process to the first step: {CONFIG[size]}',
                {'cache': cache, 'first step done after s': sum(moments.values()), **moments},
            )


def start(size: str, folder: pathlib.Path, name: str) -> dict[str, float]:
    """Starts a run, ends it after its first step, and gives the seconds of each of PHASES.

    Raises:
        RuntimeError: it ended before.
    """
    changes = {'burn_in_steps': '0', 'log_every': '1', 'data.dir': str(folder / 'data')}
    changes |= REAL if size == 'real' else {}
    command = [sys.executable, '-m', 'css_jax.main', '--config', CONFIG[size]]
    command += ['--workdir', str(folder / name)]
    command += [f'--config.{key}={value}' for key, value in changes.items()]
    # The defaults of a user's shell, but for the cache's folder.
    environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_PERSISTENT_CACHE')}
    environment |= {'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'), 'PYTHONUNBUFFERED': '1'}
    moments: dict[str, float] = {}
    last = began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            now = time.perf_counter()
            for phase, beginning in PHASES.items():
                if phase not in moments and line.startswith(beginning):
                    moments[phase], last = now - last, now
            if len(moments) == len(PHASES) or now - began > LIMIT:
                break
    finally:
        process.send_signal(signal.SIGKILL)  # nothing of it is to be kept
        process.wait()
        process.stdout.close()
    if len(moments) < len(PHASES):
        raise RuntimeError(f'no first step of {" ".join(command)}:\n{"".join(said[-20:])}')
    return moments


if __name__ == '__main__':
    timing.main('Start-up', rows)
