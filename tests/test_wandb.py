"""Weights & Biases: what it gets, once each, and that training never depends on it."""

import importlib.metadata
import json
import logging
import struct
import sys
import types

import pytest

from css_jax import models, train
from css_jax.run import metrics, wandb_run
from tests import tiny
from tests.small import small


class Fake(types.ModuleType):
    """Stands for the library; keeps what it gets, by run."""

    Settings = dict

    def __init__(self, fails=()):
        super().__init__('wandb')
        self.runs, self.given, self.fails = {}, [], fails

    def init(self, **given):
        self.given.append(given)
        if 'init' in self.fails:
            raise RuntimeError('no login\nand more')
        return self.runs.setdefault(given['id'], FakeRun(self.fails))


class FakeRun:
    def __init__(self, fails):
        self.logged, self.summary, self.finished, self.fails = [], {}, 0, fails

    @property
    def step(self):
        return self.logged[-1][0] + 1 if self.logged else 0

    def log(self, numbers, step):
        if 'log' in self.fails:
            raise OSError('no network')
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', Fake())
    return sys.modules['wandb']


def write(workdir, start, steps):
    """Open the record at `start` and write steps, each with a score in a second call."""
    tracker = wandb_run.WandbRun('pets', workdir, {'seed': 3, 'model': {'width': 0.5}})
    writer = metrics.Writer(workdir, start, tracker=tracker)
    for step in steps:
        writer.write(step, {'loss': step / 2, 'gone': float('nan')})
        writer.write(step, {'eval_miou': 0.1 * step})
    writer.close()
    tracker.results({'miou': 0.5, 'iou': {'cat': 0.25}, 'eval': {'scales': (1.0,)}, 'best': None})
    tracker.close()


def sent(run):
    """Step -> numbers: a step's numbers come in one call or more, and steps never decrease."""
    steps = [step for step, _ in run.logged]
    assert steps == sorted(steps)
    found = {}
    for step, numbers in run.logged:
        assert not found.get(step, {}).keys() & numbers.keys()
        found.setdefault(step, {}).update(numbers)
    return found


def test_it_gets_every_number_the_configuration_and_the_results(fake, tmp_path):
    write(tmp_path, 0, (1, 2))
    (run,) = fake.runs.values()
    assert sent(run) == {s: {'loss': s / 2, 'eval_miou': 0.1 * s} for s in (1, 2)}
    assert fake.given[0]['project'] == 'pets' and fake.given[0]['resume'] == 'allow'
    assert fake.given[0]['config'] == {'seed': 3, 'model': {'width': 0.5}}
    assert run.summary == {
        'results/miou': 0.5, 'results/iou/cat': 0.25, 'results/best': None
    }  # fmt: skip
    assert run.finished == 1


def test_a_killed_run_that_resumes_continues_it_and_sends_no_step_twice(fake, tmp_path):
    write(tmp_path, 0, (1, 2, 3))
    write(tmp_path, 2, (3, 4))  # killed after step 3, restored at step 2
    (run,) = fake.runs.values()
    assert list(sent(run)) == [1, 2, 3, 4]
    assert json.loads((tmp_path / wandb_run.FILE).read_text())['id'] in fake.runs

    (tmp_path / 'other').mkdir()
    write(tmp_path / 'other', 0, ())
    assert len(fake.runs) == 2


def test_what_it_has_missed_is_sent_when_the_run_resumes(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', Fake(fails=('init',)))
    write(tmp_path, 0, (1, 2))
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    write(tmp_path, 2, (3,))
    (run,) = fake.runs.values()
    assert sent(run) == {s: {'loss': s / 2, 'eval_miou': 0.1 * s} for s in (1, 2, 3)}


@pytest.mark.parametrize(('fails', 'reason'), [('init', 'no login'), ('log', 'no network')])
def test_a_failure_is_one_warning_and_the_record_is_whole(fails, reason, fake, tmp_path, caplog):
    fake.fails = (fails,)
    with caplog.at_level(logging.WARNING, 'css_jax'):
        write(tmp_path, 0, (1, 2))
    (line,) = caplog.messages
    assert reason in line and '\n' not in line and 'metrics.jsonl has every number' in line
    assert [record['step'] for record in metrics.read(tmp_path)] == [1, 2]


def test_without_the_library_it_is_refused_before_anything_is_written(
    monkeypatch, tmp_path, data_dir
):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wandb_run.importlib.metadata, 'version', version)
    config = tiny.get_config('supervised')
    config.data.dir, config.wandb = data_dir, 'pets'
    with pytest.raises(ValueError, match=r"^wandb: got 'pets', .*not installed: pip install 'w"):
        train.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_no_other_process_sends_anything(fake, tmp_path):
    tracker = wandb_run.WandbRun('pets', tmp_path, {}, active=False)
    tracker.open([{'step': 1, 'loss': 1.0}])
    tracker.write(2, {'loss': 1.0})
    tracker.results({'miou': 1.0})
    tracker.close()
    assert not fake.given and not list(tmp_path.iterdir())


def entries(path):
    """The entries of a file of W&B, a log as LevelDB has it: blocks of 32 KiB, 7 bytes before."""
    data, place, entry = path.read_bytes(), 7, b''
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # too few for another part in this block
            place += left
            continue
        length, kind = struct.unpack('<HB', data[place + 4 : place + 7])
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield entry
            entry = b''


def history(folder):
    """What an offline run has: step -> numbers, and its summary."""
    from wandb.proto import wandb_internal_pb2 as protocol

    (file,) = folder.glob('run-*.wandb')
    steps, summary = {}, {}
    for entry in entries(file):
        record = protocol.Record.FromString(entry)
        items = [*record.history.item, *record.summary.update]
        named = {'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        if record.history.item:
            steps[named['_step']] = named
        else:
            summary |= named
    return steps, summary


def test_offline_it_writes_whole_runs_of_one_id(tmp_path, data_dir, monkeypatch):
    pytest.importorskip('wandb', reason='Weights & Biases is optional: pip install wandb')
    monkeypatch.setattr(models, 'build', small)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    config = tiny.get_config('supervised')
    config.data.dir, config.steps, config.wandb = data_dir, 3, 'pets'
    results = train.train(config, tmp_path)
    records = metrics.read(tmp_path)
    (first,) = (tmp_path / 'wandb').glob('offline-run-*')
    steps, summary = history(first)
    assert list(steps) == [record['step'] for record in records]
    for record in records:
        for name, value in record.items():
            assert name in ('step', 'time') or steps[record['step']][name] == pytest.approx(value)
    assert summary['results/miou'] == pytest.approx(results['miou'])
    assert summary['results/iou/disc'] == pytest.approx(results['iou']['disc'])

    train.train(config, tmp_path)  # it is trained already: the run as a whole once more
    second = max(set((tmp_path / 'wandb').glob('offline-run-*')) - {first}, default=first)
    (identity,) = json.loads((tmp_path / wandb_run.FILE).read_text()).values()
    assert first.name.endswith(identity) and second.name.endswith(identity)
    assert list(history(second)[0]) == list(steps)
