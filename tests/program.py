"""The program in processes of its own, on the network of tests/small.py.

`python -m tests.program FLAGS` is `python -m css_jax.main FLAGS`, but for that network, and a step
takes at least SLOW seconds, so that signals come in the middle of a run.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from css_jax import main, models, state
from css_jax.run import checkpoint, metrics
from tests.small import small

ROOT = pathlib.Path(__file__).parents[1]


def start(workdir, *flags, count=1, devices=1, slow=0.0, env=None, script=None):
    """Starts `count` processes of one run, with so many devices each.

    Args:
        workdir: of the run.
        *flags: for all of them; a tuple has one for each.
        count: of processes; with `env` these find each other by it, else by flags.
        devices: of each process.
        slow: seconds that a step takes at least.
        env: of process i, see `slurm`.
        script: what runs in the program's place.
    """
    program = ['-c', script] if script else ['-m', 'tests.program']
    port = free_port()
    processes = []
    for i in range(count):
        own = [flag[i] if isinstance(flag, tuple) else flag for flag in flags]
        if count > 1 and env is None:
            own += [f'--coordinator=localhost:{port}']
            own += [f'--process_count={count}', f'--process_id={i}']
        environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices), 'SLOW': str(slow)}
        processes.append(
            subprocess.Popen(
                [sys.executable, *program, f'--workdir={workdir}', *own],
                env={**environment, **(env(i, count, port) if env else {})},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes, timeout=120):
    """Waits for all processes; gives (exit code, output, errors) of each."""
    try:
        ends = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return [(code, *end) for code, end in zip(codes, ends, strict=True)]


def run(workdir, *flags, **kwargs):
    """Runs processes to their end, which has to be a good one; gives what they print."""
    ends = finish(start(workdir, *flags, **kwargs))
    assert [code for code, _, _ in ends] == [0] * len(ends), ends
    return [output for _, output, _ in ends]


def wait_for(processes, is_it):
    """Waits until something is so; fails if a process ends before."""
    began = time.perf_counter()
    while not is_it():
        ended = [process for process in processes if process.poll() is not None]
        if ended or time.perf_counter() - began > 100:
            raise AssertionError(finish(processes, 5))
        time.sleep(0.02)


def steps(workdir):
    """The steps in the record of a run."""
    return [record['step'] for record in metrics.read(workdir)]


def arrays(workdir):
    """Path -> array of the whole state of the last checkpoint."""
    parts = list(state.TrainState.__dataclass_fields__)
    saved = checkpoint.restore_arrays(workdir, checkpoint.find(str(workdir), 'last'), parts)
    return {f'{part}/{path}': x for part, leaves in saved.items() for path, x in leaves.items()}


def difference(one, other):
    """The largest difference of two states, relative to each array's largest value, and where."""
    assert one.keys() == other.keys()
    worst = {
        path: np.abs(x.astype(np.float64) - other[path]).max() / max(np.abs(x).max(), 1e-30)
        for path, x in one.items()
    }
    path = max(worst, key=worst.get)
    return worst[path], path


def free_port():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def slurm(index, count, port):
    """What SLURM tells task `index` of a job of `count` tasks on this machine."""
    return {
        'SLURM_JOB_ID': '1',
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': str(count),
        'SLURM_PROCID': str(index),
        'SLURM_LOCALID': str(index),
        'JAX_COORDINATOR_PORT': str(port),  # else it follows from the job's id
    }


def _slow(write):
    def wrapped(self, done, values):
        write(self, done, values)
        time.sleep(float(os.environ['SLOW']))

    return wrapped


if __name__ == '__main__':
    models.build = small
    metrics.Writer.write = _slow(metrics.Writer.write)
    main.app.run(main.main, flags_parser=main.parse)
