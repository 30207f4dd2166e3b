"""Whole runs of several processes: the same as of one, stopped, killed, gone on with, refused."""

import collections
import gzip
import json
import re
import shutil
import signal
import time

import pytest

from css_jax.evaluation import results
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from tests import program
from tests.conftest import ROOT

STEPS = 12
EVERY = 3  # steps between checkpoints, in tests/tiny.py
HEARD = 2  # seconds; jax looks once a second whether a process has got a signal


@pytest.fixture(scope='module')
def flags(data_dir):
    return [
        f'--config={ROOT}/tests/tiny.py',
        # Compiled sooner than CSS, whose step of several processes test_spread.py has.
        '--config.method=cutmix',
        f'--config.data.dir={data_dir}',
        f'--config.steps={STEPS}',
    ]


@pytest.fixture(scope='module')
def runs(tmp_path_factory, flags):
    """The same run on 1 device, on 4, and in 2 processes of 2, and what each of them prints."""
    folder = tmp_path_factory.mktemp('runs')
    # A single task of a cluster is alone.
    alone = program.start(folder / 'alone', *flags, env=program.slurm)
    four = program.start(folder / 'four', *flags, devices=4)
    two = program.run(
        folder / 'two', *flags, '--config.profile=2,4', count=2, devices=2, env=program.slurm
    )
    ends = [program.finish(processes)[0] for processes in (alone, four)]
    assert [code for code, *_ in ends] == [0, 0], ends
    return folder, {'alone': ends[0][1], 'four': ends[1][1], 'two': two}


def scores(workdir, file=results.RESULTS):
    """The results, and apart from them what is a sum of floats."""
    results = json.loads((workdir / file).read_text())
    return results, results.pop('loss')


def test_two_processes_train_as_one(runs):
    folder, output = runs
    states = {name: program.arrays(folder / name) for name in output}
    for other in ('four', 'two'):
        worst, where = program.difference(states['alone'], states[other])
        assert worst < 1e-5, (other, where)
        assert program.steps(folder / other) == list(range(1, STEPS + 1))
        results, loss = scores(folder / other)
        expected, expected_loss = scores(folder / 'alone')
        assert results == expected and loss == pytest.approx(expected_loss, rel=1e-5)

    first, second = output['two']
    # By process 0 alone, but for Gloo's lines, whose threads break into one another.
    told = [line for line in second.splitlines() if not re.search('Gloo|peer ranks|^$', line)]
    assert told == []
    assert '4 x cpu in all, 2 x process, learning rate 0.05' in first
    assert 'batch of labelled: 4 images in all, 2 a process, 1 a device' in first
    assert 'batch of unlabelled: 4 images in all, 4 a process, 4 a device' in output['alone']
    memory = re.search(
        r'memory of a step, by the compiler: ([\d.]+) GiB a device, of which', output['alone']
    )
    assert 0 < float(memory[1]) < 0.1
    assert {path.name for path in (folder / 'two').iterdir() if 'events' not in path.name} == {
        *('.lock', 'checkpoints', 'config.json', 'metrics.jsonl', 'profile', 'results.json'),
        *('run.json', 'samples'),
    }


def test_evaluation_by_two_processes_is_that_of_one(runs, tmp_path):
    folder, _ = runs
    workdir = tmp_path / 'run'
    shutil.copytree(folder / 'alone', workdir)
    (workdir / results.RESULTS).unlink()
    first, second = program.run(workdir, '--mode=evaluate', count=2, devices=2)
    assert scores(workdir)[0] == scores(folder / 'alone')[0]
    assert '| mIoU ' in first and '| mIoU ' not in second


def test_a_profile_has_its_steps(runs):
    """Of process 0 alone; Perfetto opens the JSON, TensorBoard the other."""
    folder, output = runs
    assert 'profile written' in output['two'][0]
    (trace,) = (folder / 'two').glob('profile/**/perfetto_trace.json.gz')
    assert len(list(trace.parent.glob('*.xplane.pb'))) == 1
    events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
    of_steps = [event for event in events if event.get('name') == 'train']
    assert [event['args']['step_num'] for event in of_steps] == ['2', '3']
    assert all(event['dur'] > 0 for event in of_steps)
    kinds = collections.Counter(re.sub(r'[.\d]+$', '', e.get('name', '')) for e in events)
    assert kinds['fusion'] + kinds['convolution'] > 0  # what the device did


def test_a_signal_to_one_process_stops_all_and_the_bits_stay(runs, tmp_path, flags):
    folder, _ = runs
    workdir = tmp_path / 'run'
    processes = program.start(workdir, *flags, count=2, devices=2, hold=4)
    program.wait_for(processes, lambda: program.steps(workdir)[-1:] == [4])
    processes[1].send_signal(signal.SIGINT)
    time.sleep(HEARD)
    program.release(workdir)
    (code, _, errors), (other_code, _, other_errors) = program.finish(processes)
    assert (code, other_code) == (128 + signal.SIGTERM, 128 + signal.SIGINT), (errors, other_errors)
    step = checkpoint.find(workdir, 'last')
    assert 4 <= step < STEPS
    assert f'stopped by SIGTERM after step {step}, which is saved; the same com' in errors
    assert f'stopped by SIGINT after step {step}, which is saved; the same' in other_errors

    first, _ = program.run(workdir, *flags, count=2, devices=2)
    assert f'resuming from step {step}' in first
    assert program.steps(workdir) == list(range(1, STEPS + 1))
    assert program.difference(program.arrays(folder / 'two'), program.arrays(workdir))[0] == 0


def test_a_run_goes_on_on_any_number_of_processes(runs, tmp_path, flags):
    folder, _ = runs
    workdir = tmp_path / 'run'
    processes = program.start(workdir, *flags, hold=4)
    program.wait_for(processes, lambda: checkpoint.exists(workdir))
    processes[0].kill()
    program.finish(processes)
    assert checkpoint.find(workdir, 'last') == EVERY

    # The other process is told where it exchanges data, or by jax where it does not.
    processes = program.start(workdir, *flags, '--config.parallel=pmap', count=2, devices=2, hold=5)
    program.wait_for(processes, lambda: program.steps(workdir)[-1] == 5)
    processes[1].kill()
    killed = time.perf_counter()
    program.release(workdir)
    (code, output, errors), _ = program.finish(processes)
    assert time.perf_counter() - killed < 30
    assert code == 1 and f'resuming from step {EVERY}' in output
    assert 'another process has ended, it says why; the same command resumes' in errors
    last = checkpoint.find(workdir, 'last')
    assert last >= EVERY and last >= program.steps(workdir)[-1] - EVERY

    (output,) = program.run(workdir, *flags, devices=4)
    assert f'resuming from step {last}' in output
    assert program.steps(workdir) == list(range(1, STEPS + 1))
    worst, where = program.difference(program.arrays(folder / 'alone'), program.arrays(workdir))
    assert worst < 1e-5, where


# One process of two: what training answers to mistakes. A tuple has a value for each process.
MISTAKES = """
import os, sys
from css_jax import parallel, train
from tests import tiny
given = dict(argument.lstrip('-').split('=', 1) for argument in sys.argv[1:])
index = int(given['process_id'])
parallel.start(given['coordinator'], 2, index)
free, taken = os.path.join(given['workdir'], 'free'), os.path.join(given['workdir'], 'taken')
for name, workdir, changes in [
    ('batch', free, {'data.streams.labelled.batch_size': 6}),
    ('other run', given['trained'], {'seed': 1}),
    ('configuration', free, {'seed': (0, 1), 'data.threads': (1, 2)}),
    ('dataset', free, {'data.dir': (given['data'], os.path.join(taken, '.lock'))}),
    ('images', free, {'data.dir': (given['data'], os.path.join(given['workdir'], 'data'))}),
    ('weights', free, {'model.pretrained': 'nowhere.npz'}),
    ('locked', taken, {}),
]:
    config = tiny.get_config()
    config.method, config.data.dir, config.steps = 'cutmix', given['data'], 12
    own = {key: v[index] if isinstance(v, tuple) else v for key, v in changes.items()}
    config.update_from_flattened_dict(own)
    try:
        train.train(config, workdir)
    except (ValueError, OSError) as error:
        print(f'{name} -> {type(error).__name__}: {error}')
sys.exit()
"""


def test_what_is_wrong_is_told_in_both_processes(tmp_path, data_dir, runs):
    folder, taken = runs[0] / 'alone', tmp_path / 'taken'
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    given = (f'--data={data_dir}', f'--trained={folder}')
    with run_folder.lock(taken):
        processes = program.start(tmp_path, *given, count=2, devices=2, before=MISTAKES)
        ends = program.finish(processes)
    assert [code for code, *_ in ends] == [0, 0], ends
    told = [dict(re.findall('^(.*?) -> (.*)$', output, re.M)) for _, output, _ in ends]
    for answers in told:
        assert 'batch_size: got 6, expected a multiple of 4 devices; JAX_NUM' in answers['batch']
        assert 'seed: 0 there, 1 now' in answers['other run']
        assert 'got seed=0 in process 0, seed=1 in process 1; exp' in answers['configuration']
        assert f"Not a directory: '{taken}/.lock/" in answers['dataset']
        assert 'training images: got d82009cad41b in process 0, ' in answers['images']
        assert 'nowhere.npz' in answers['weights']
        assert f'another process is training in {taken}' in answers['locked']
    # Its own error where it happens, and elsewhere whose it is.
    assert told[1]['dataset'].startswith('NotADirectoryError: ')
    assert told[0]['dataset'].startswith('ValueError: process 1: ')
    assert told[0]['locked'].startswith('BlockingIOError: ')
    assert told[1]['locked'].startswith('ValueError: process 0: ')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'taken']
    assert [path.name for path in taken.iterdir()] == ['.lock']
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_a_process_that_fails_alone_does_not_keep_the_other(tmp_path, flags):
    """As a file of configs/ that is on one host only; through main, so that both come to an end."""
    began = time.perf_counter()
    other = (flags[0], f'--config={tmp_path}/nowhere.py')
    ends = program.finish(program.start(tmp_path / 'x', other, *flags[1:], count=2, devices=1))
    for code, _, errors in ends:
        assert code == 1
        assert 'nowhere.py' in errors and 'Traceback' not in errors
    assert 'error: process 1: ' in ends[0][2]
    assert time.perf_counter() - began < 60 and not (tmp_path / 'x').exists()


def test_a_process_says_what_it_waits_for(tmp_path):
    processes = program.start(tmp_path, '--process_count=2', '--process_id=1',
                              f'--coordinator=localhost:{program.free_port()}')  # fmt: skip
    program.wait_for(processes, lambda: 'waits' in processes[0].read()[0])
    processes[0].kill()
    ((_, line, _),) = program.finish(processes)
    assert re.search(
        r'process 1 of 2 waits at localhost:\d+ for the others; jax gives up aft', line
    )


def test_a_process_that_is_alone_asks_nobody(tmp_path):
    script = """
import sys, time
from css_jax import parallel
began = time.perf_counter()
parallel.start()
parallel.start(None, 1, None)
print(time.perf_counter() - began, parallel.process(), parallel.primary())
import jax
print(jax._src.xla_bridge.backends_are_initialized())
sys.exit()
"""
    took, *told = program.run(tmp_path, before=script)[0].split()
    assert float(took) < 0.2 and told == ['(0,', '1)', 'True', 'False']
