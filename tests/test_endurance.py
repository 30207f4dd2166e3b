"""Long and disturbed runs: memory, SIGKILL, full disks, clocks, folders and processes that stop.

`make soak` runs them; docs/reliability.md has their figures.
"""

import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import time

import pytest

from css_jax.run import checkpoint, metrics
from data_prep import records
from data_prep.figures import builder as figures
from data_prep.shapes import builder as shapes
from tests import program

pytestmark = pytest.mark.soak
KILLS = 20
# Method -> what its run is started with, beside `data.dir`.
METHODS = {
    'css_mix': ('--config=tests/tiny.py:css_mix',),
    'imas': ('--config=tests/tiny.py:imas', '--config.teacher.decay=0.9'),
    'unimatch': ('--config=tests/tiny.py:unimatch',),
    'usss_full': (
        '--config=configs/usss.py:quickstart,4,usss_full',
        '--config.model.width=0.125',
        '--config.usss.embedding_dim=6',
        '--config.usss.centroids=2',
    ),
    'cosa': (
        '--config=configs/cosa.py:quickstart',
        '--config.model.width=0.125',
        '--config.cosa.warmup_steps=20',
        '--config.data.streams.images.batch_size=4',
    ),
}
SHORT = ('--config.log_every=1', '--config.checkpoint_every=3', '--config.eval.batch_size=4')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder with a few images of both drawn datasets."""
    folder = tmp_path_factory.mktemp('prepared')
    for module in (shapes, figures):
        splits = {'train': 16, 'val': 8}
        records.prepare(module.Builder(data_dir=folder, splits=splits, config='64'))
    return str(folder)


def flags(method, data_dir, steps, *more):
    return (*METHODS[method], *SHORT, f'--config.data.dir={data_dir}', f'--config.steps={steps}',
            *more)  # fmt: skip


def assert_same(one, other):
    """Both folders' last checkpoints have the same bits, and their records the same losses."""
    worst, where = program.difference(program.arrays(one), program.arrays(other))
    assert worst == 0, where
    first, second = ([(r['step'], r.get('loss')) for r in metrics.read(d)] for d in (one, other))
    assert first == second


def reaches(workdir, step):
    return lambda: (program.steps(workdir) or [0])[-1] >= step


def test_memory_and_handles_stay_flat(prepared, tmp_path, capsys):
    given = flags(
        'css_mix', prepared, 2000, '--config.log_every=10', '--config.checkpoint_every=50',
        '--config.eval.every=100',
    )  # fmt: skip
    (process,) = program.start(tmp_path, *given, network='real')
    seen = []  # (step, KiB in memory, handles, threads)
    while process.poll() is None:
        place = pathlib.Path('/proc', str(process.pid))
        try:
            status = dict(
                line.split(':', 1) for line in (place / 'status').read_text().splitlines()
            )
            handles = len(list((place / 'fd').iterdir()))
            seen.append(
                ((program.steps(tmp_path) or [0])[-1], int(status['VmRSS'].split()[0]), handles,
                 int(status['Threads']))
            )  # fmt: skip
        except (FileNotFoundError, KeyError):
            break  # it has just ended
        time.sleep(0.2)
    assert program.finish([process])[0][0] == 0
    early = [one for one in seen if 500 <= one[0] < 1000]
    late = [one for one in seen if one[0] >= 1500]
    for place, (name, most) in enumerate((('KiB', 16 * 1024), ('handles', 0), ('threads', 0)), 1):
        before, after = (statistics.median(one[place] for one in part) for part in (early, late))
        with capsys.disabled():
            print(f'\n{name}: {before:.0f} at steps 500 to 1,000, {after:.0f} from 1,500 on')
        assert after - before <= most, name


@pytest.mark.parametrize('method', METHODS)
def test_killed_twenty_times(method, prepared, tmp_path):
    """Half of the times while it starts, half within some steps after a new one."""
    given = flags(method, prepared, 150)
    began = time.perf_counter()
    program.run(tmp_path / 'whole', *given, network='real')
    took = time.perf_counter() - began
    rng, workdir = random.Random(0), tmp_path / 'run'
    for kill in range(KILLS):
        (process,) = program.start(workdir, *given, network='real')
        if kill % 2:
            program.wait_for([process], reaches(workdir, (program.steps(workdir) or [0])[-1] + 1))
            time.sleep(rng.uniform(0, 0.1))
        else:
            time.sleep(rng.uniform(0, took / 4))
        process.kill()
        assert program.finish([process])[0][0] == -signal.SIGKILL
    (output,) = program.run(workdir, *given, network='real')
    assert 'resuming from step' in output
    assert_same(tmp_path / 'whole', workdir)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that gives it so many MiB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f'no file system can be mounted here: {made.stderr.strip()}')

    def resize(mib):
        again = ['mount', '-o', f'remount,size={mib}m', str(disk)]
        subprocess.run(again, check=True, capture_output=True)

    yield disk, resize
    subprocess.run(['umount', str(disk)], check=True)


# The room that is asked for before a save is there, and gone when it is written.
LIED_TO = """
from css_jax.run import checkpoint
checkpoint.shutil.disk_usage = lambda path, real=checkpoint.shutil.disk_usage: real('/')
"""


def test_a_disk_that_fills_during_a_save(prepared, tmp_path, small_disk):
    disk, resize = small_disk
    given = flags('css_mix', prepared, 12)
    program.run(tmp_path / 'whole', *given, network='real')
    one = sum(p.stat().st_size for p in (tmp_path / 'whole' / 'checkpoints').rglob('*')) / 2**20
    workdir = disk / 'run'
    resize(int(0.9 * one) + 1)  # of what is kept at the end, a good half
    ((code, _, errors),) = program.finish(
        program.start(workdir, *given, network='real', before=LIED_TO)
    )
    assert code not in (0, None) and 'Traceback' not in errors, errors
    assert len(errors.splitlines()) == 2, errors  # the second one says what flags there are
    assert 'No space left' in errors and 'those before it are kept' in errors, errors
    saved = checkpoint.find(workdir, 'last')
    assert 0 < saved < 12, errors
    program.arrays(workdir)  # it is whole
    resize(64 + int(8 * one))
    (output,) = program.run(workdir, *given, network='real')
    assert f'resuming from step {saved}' in output
    worst, where = program.difference(program.arrays(tmp_path / 'whole'), program.arrays(workdir))
    assert worst == 0, where


# An hour forwards, two back, a day forwards; not while a checkpoint is written, after steps 3, 6
# and 9, as Orbax counts its patience of minutes by this clock.
JUMPS = """
import time
from css_jax.run import metrics
_jumps, _real, _write = {2: 3600, 5: -3600, 8: 86400}, time.time, metrics.Writer.write
_offset = [0]
time.time = lambda: _real() + _offset[0]
def jumping(self, step, values):
    _write(self, step, values)
    if step in _jumps:
        time.sleep(1)
        _offset[0] = _jumps[step]
metrics.Writer.write = jumping
"""


def test_a_clock_that_jumps(prepared, tmp_path):
    given = flags('css_mix', prepared, 12)
    program.run(tmp_path / 'whole', *given)
    processes = program.start(tmp_path / 'run', *given, before=JUMPS, hold=7)
    program.wait_for(processes, reaches(tmp_path / 'run', 7))
    processes[0].kill()
    program.finish(processes)
    program.run(tmp_path / 'run', *given, before=JUMPS)
    assert_same(tmp_path / 'whole', tmp_path / 'run')


def test_event_files_that_vanish(prepared, tmp_path):
    given = flags('css_mix', prepared, 12)
    program.run(tmp_path / 'whole', *given)
    processes = program.start(tmp_path / 'run', *given, hold=5)
    program.wait_for(processes, reaches(tmp_path / 'run', 5))
    for events in (tmp_path / 'run').glob('events.*'):
        events.unlink()
    program.release(tmp_path / 'run')
    assert [code for code, *_ in program.finish(processes)] == [0]
    assert_same(tmp_path / 'whole', tmp_path / 'run')


def test_a_run_whose_folder_vanishes_says_so(prepared, tmp_path):
    given = flags('css_mix', prepared, 12)
    processes = program.start(tmp_path / 'run', *given, hold=5)
    program.wait_for(processes, reaches(tmp_path / 'run', 5))
    time.sleep(2)  # what was saved after step 3 is written
    shutil.rmtree(tmp_path / 'run')
    program.release(tmp_path / 'run')
    ((code, _, errors),) = program.finish(processes)
    assert code not in (0, None) and 'Traceback' not in errors, errors
    assert f"No such file or directory: '{tmp_path / 'run'}" in errors, errors


def test_a_process_that_stands_still_for_half_a_minute(prepared, tmp_path):
    given = flags('css_mix', prepared, 12)
    program.run(tmp_path / 'whole', *given, devices=2)
    processes = program.start(tmp_path / 'run', *given, count=2, hold=5)
    program.wait_for(processes, reaches(tmp_path / 'run', 5))
    processes[1].send_signal(signal.SIGSTOP)
    program.release(tmp_path / 'run')
    time.sleep(30)
    assert all(process.poll() is None for process in processes)
    processes[1].send_signal(signal.SIGCONT)
    assert [code for code, *_ in program.finish(processes)] == [0, 0]
    worst, where = program.difference(
        program.arrays(tmp_path / 'whole'), program.arrays(tmp_path / 'run')
    )
    assert worst < 1e-5, where
