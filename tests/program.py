"""The program in processes of its own, on the network of tests/small.py.

A process of these is not a new interpreter but a fork of one that has imported the program: most
of a short run is importing jax. tests/test_main.py starts `python -m css_jax.main` itself.
"""

import atexit
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from multiprocessing import connection

import jax
import numpy as np

from css_jax import evaluate, main, models, state, train  # noqa: F401 (what a run imports)
from css_jax.run import checkpoint, metrics
from tests.small import small

ROOT = pathlib.Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload([__name__])


class Process:
    """A process of the program, with as much of `subprocess.Popen` as tests need."""

    def __init__(self, *given):
        """Starts it; `given` is for `_child`, without its files."""
        self._folder = tempfile.TemporaryDirectory()
        self.files = [pathlib.Path(self._folder.name, name) for name in ('output', 'errors')]
        for file in self.files:
            file.touch()
        self._process = _CONTEXT.Process(target=_child, args=(self.files, *given), daemon=True)
        self._process.start()

    @property
    def pid(self):
        """Its number."""
        return self._process.pid

    def poll(self):
        """Gives the exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        """Sends it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kills it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout):
        """Waits for its end and gives its exit code.

        Raises:
            TimeoutError: it did not end in so many seconds.
        """
        if not connection.wait([self._process.sentinel], timeout):
            raise TimeoutError(f'no end after {timeout} s: {self.read()}')
        self._process.join()
        return self.poll()

    def read(self):
        """Gives what it has printed so far: output and errors."""
        return [file.read_text(errors='replace') for file in self.files]


def _child(files, arguments, environment, before, ignored):
    """Runs the program, or what stands in its place, in a process that is a fork.

    Args:
        files: for output and errors.
        arguments: of the command line.
        environment: all of it.
        before: Python that is run first; it may end the process by `sys.exit`.
        ignored: signals that are so from the start, as in the background of a script.
    """
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    jax.config.update('jax_num_cpu_devices', int(environment['JAX_NUM_CPU_DEVICES']))
    sys.argv = ['main', *arguments]
    try:
        exec(before, {'__name__': '__main__'})
        main.app.run(main.main, flags_parser=main.parse)
    finally:  # a fork ends without these
        atexit._run_exitfuncs()
        sys.stdout.flush()


def start(
    workdir, *flags, count=1, devices=1, hold=0, env=None, before='', network='small', ignored=()
):
    """Starts `count` processes of one run, with so many devices each.

    Args:
        workdir: of the run; None: the flags alone.
        *flags: for all of them; a tuple has one for each.
        count: of processes; with `env` these find each other by it, else by flags.
        devices: of each process.
        hold: after this step they wait, until `release` or a signal that ends them.
        env: of process i, see `slurm`.
        before: see `_child`.
        network: 'small', or 'real' for that of the configuration.
        ignored: see `_child`.
    """
    flags = flags if workdir is None else (f'--workdir={workdir}', *flags)
    if network == 'small':
        before = f'tests.program._small()\n{before}'
    if hold:
        _gate(workdir).unlink(missing_ok=True)
        before = f'tests.program._hold({hold}, {str(_gate(workdir))!r})\n{before}'
    port = free_port()
    processes = []
    for i in range(count):
        own = [flag[i] if isinstance(flag, tuple) else flag for flag in flags]
        if count > 1 and env is None:
            own += [f'--coordinator=localhost:{port}']
            own += [f'--process_count={count}', f'--process_id={i}']
        environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)}
        environment |= env(i, count, port) if env else {}
        processes.append(Process(own, environment, f'import tests.program\n{before}', ignored))
    return processes


def _small():
    models.build = small


def _gate(workdir):
    """The file that lets a run go on that was started with `hold`."""
    return pathlib.Path(f'{workdir}.go')


def release(workdir):
    """Lets a run go on that was started with `hold`."""
    _gate(workdir).touch()


def _hold(step, gate):
    """Makes this process wait after a step; what it has saved by then is complete."""
    write = metrics.Writer.write

    def held(self, done, values):
        write(self, done, values)
        while done == step and not os.path.exists(gate):
            time.sleep(0.02)

    metrics.Writer.write = held


def finish(processes, timeout=120):
    """Waits for all processes; gives (exit code, output, errors) of each."""
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, *process.read()) for code, process in zip(codes, processes, strict=True)]


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
            raise AssertionError([(process.poll(), *process.read()) for process in processes])
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
