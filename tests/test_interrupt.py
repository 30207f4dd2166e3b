"""SIGTERM and Ctrl-C at any time of a run: what is saved, what is said, and how it goes on."""

import contextlib
import signal
import threading

import pytest

from css_jax import models, train
from css_jax.evaluation import evaluator, results
from css_jax.run import checkpoint, metrics, signals
from tests import program, tiny
from tests.conftest import ROOT
from tests.small import small


def test_the_first_signal_is_a_wish_and_the_second_ctrl_c_an_order(capfd):
    handler = signal.getsignal(signal.SIGINT)
    with signals.caught() as asked:
        assert asked() == 0
        signal.raise_signal(signal.SIGTERM)
        assert asked() == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # as a scheduler that repeats itself
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    said = capfd.readouterr().err
    assert said.count('\n') == 1
    assert 'SIGTERM: saving after this step' in said and 'Ctrl-C stops at once' in said
    assert signal.getsignal(signal.SIGINT) == handler


def test_what_is_ignored_stays_so_and_other_threads_catch_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.caught() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked() == 0
    finally:
        signal.signal(signal.SIGINT, before)

    def enter():
        with signals.caught() as asked:
            found.append(asked())

    found = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.fixture
def config(data_dir, monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    config = tiny.get_config('supervised')
    config.data.dir = data_dir
    return config


def interrupted(function, when):
    """The function, with a SIGTERM before a call of it for which `when` is so."""

    def wrapped(*args, **kwargs):
        if when(*args, **kwargs):
            signal.raise_signal(signal.SIGTERM)
        return function(*args, **kwargs)

    return wrapped


def test_an_evaluation_under_way_is_broken_off(config, tmp_path, monkeypatch, capfd):
    config.eval.every = 4
    call = interrupted(evaluator.Evaluator.__call__, lambda *args: True)
    monkeypatch.setattr(evaluator.Evaluator, '__call__', call)
    with pytest.raises(signals.Stopped, match='SIGTERM after step 4, which is saved') as stopped:
        train.train(config, tmp_path)
    assert stopped.value.number == signal.SIGTERM
    assert 'saving after this step, not evaluated' in capfd.readouterr().err
    assert metrics.read(tmp_path)[-1]['step'] == 4 and checkpoint.find(tmp_path, 'last') == 4
    with contextlib.closing(checkpoint.Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.best() is None


def test_the_last_step_is_evaluated_when_the_run_goes_on(config, tmp_path, monkeypatch):
    call = interrupted(evaluator.Evaluator.__call__, lambda *args: True)
    with monkeypatch.context() as patch:
        patch.setattr(evaluator.Evaluator, '__call__', call)
        with pytest.raises(signals.Stopped, match=f'after step {config.steps}'):
            train.train(config, tmp_path)
    assert not (tmp_path / results.RESULTS).exists()
    assert train.train(config, tmp_path)['step'] == config.steps
    assert (tmp_path / results.RESULTS).exists()


def test_a_signal_while_a_last_step_is_scored_later(config, tmp_path, monkeypatch):
    """An evaluation of the last step was broken off; so is the one that makes up for it."""
    config.steps = 2
    patched = interrupted(evaluator.evaluate, lambda *args: True)
    monkeypatch.setattr(evaluator, 'evaluate', patched)
    for _ in range(2):
        with pytest.raises(signals.Stopped, match='after step 2'):
            train.train(config, tmp_path)
        assert 'eval_miou' not in metrics.read(tmp_path)[-1]
    monkeypatch.undo()
    monkeypatch.setattr(models, 'build', small)
    assert train.train(config, tmp_path)['best']['step'] == 2
    assert 'eval_miou' in metrics.read(tmp_path)[-1]


def test_a_signal_while_the_step_is_compiled_costs_one_step(config, tmp_path, monkeypatch):
    monkeypatch.setattr(train, '_compile', interrupted(train._compile, lambda *args: True))
    with pytest.raises(signals.Stopped, match='after step 1'):
        train.train(config, tmp_path)
    assert checkpoint.find(tmp_path, 'last') == 1


def test_a_profile_ends_with_its_run(config, tmp_path, monkeypatch):
    config.profile = (1, 100)
    write = interrupted(metrics.Writer.write, lambda self, step, values: step == 2)
    monkeypatch.setattr(metrics.Writer, 'write', write)
    with pytest.raises(signals.Stopped, match='after step 2'):
        train.train(config, tmp_path)
    (trace,) = (tmp_path / 'profile').glob('**/perfetto_trace.json.gz')
    assert trace.stat().st_size > 0


def test_the_last_step_is_the_end_whatever_comes(config, tmp_path, monkeypatch):
    config.steps = 2
    write = interrupted(metrics.Writer.write, lambda self, step, values: 'eval_miou' in values)
    monkeypatch.setattr(metrics.Writer, 'write', write)
    assert train.train(config, tmp_path)['step'] == 2


def test_a_stopped_run_ends_with_the_same_bits(tmp_path, data_dir):
    """Begun in the background of a script, where Ctrl-C does not come through."""
    flags = [f'--config={ROOT}/tests/tiny.py', f'--config.data.dir={data_dir}']
    whole = program.start(tmp_path / 'whole', *flags)
    workdir = tmp_path / 'run'
    processes = program.start(workdir, *flags, hold=4, ignored=(signal.SIGINT,))
    program.wait_for(processes, lambda: program.steps(workdir)[-1:] == [4])
    processes[0].send_signal(signal.SIGINT)
    processes[0].send_signal(signal.SIGTERM)
    program.release(workdir)
    ((code, _, errors),) = program.finish(processes)
    assert code == 128 + signal.SIGTERM and 'SIGINT' not in errors
    assert checkpoint.find(workdir, 'last') == 4
    assert 'stopped by SIGTERM after step 4, which is saved; the same command' in errors

    (output,) = program.run(workdir, *flags)
    assert 'resuming from step 4' in output
    assert [code for code, *_ in program.finish(whole)] == [0]
    assert program.steps(workdir) == list(range(1, 9))
    worst, where = program.difference(program.arrays(tmp_path / 'whole'), program.arrays(workdir))
    assert worst == 0, where


def test_ctrl_c_saves_and_says_so(tmp_path, data_dir):
    flags = [f'--config={ROOT}/tests/tiny.py', f'--config.data.dir={data_dir}']
    processes = program.start(tmp_path / 'run', *flags, '--config.method=supervised', hold=4)
    program.wait_for(processes, lambda: program.steps(tmp_path / 'run')[-1:] == [4])
    processes[0].send_signal(signal.SIGINT)
    program.release(tmp_path / 'run')
    ((code, _, errors),) = program.finish(processes)
    assert code == 128 + signal.SIGINT and 'Traceback' not in errors
    assert 'stopped by SIGINT after step 4, which is saved' in errors
    assert checkpoint.find(tmp_path / 'run', 'last') == 4
