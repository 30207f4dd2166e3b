"""What has no room: memory, disks, folders that are only to be read, and a folder taken over."""

import errno
import io
import json
import logging
import types

import jax
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import train
from css_jax.evaluation import evaluator, results
from css_jax.run import checkpoint, files, memory, metrics
from css_jax.run import folder as run_folder
from tests import tiny

GIB = 2**30


def config_of(data_dir, **changes):
    config = tiny.get_config()
    config.data.dir, config.method = data_dir, 'supervised'
    config.update_from_flattened_dict(changes)
    return config


# Memory.


def exhausted():
    raise jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.\nmore'
    )


def test_a_step_without_room_names_what_it_takes_and_which_keys_need_less(data_dir, monkeypatch):
    config = configs.finalise(config_of(data_dir))
    monkeypatch.setattr(memory, 'limit_of', lambda device: 8 * GIB)
    needs = {'bytes_total': 17 * GIB, 'bytes_temporary': 16 * GIB, 'bytes_arguments': GIB}
    size = config.data.streams.labelled.batch_size
    fits = int((0.9 * 8 - 1) / 16 * size)
    message = r'^out of memory for 4\.0 GiB: '
    with pytest.raises(ValueError, match=message) as caught, memory.training(config, needs):
        exhausted()
    line = str(caught.value)
    assert '\n' not in line
    assert 'a step takes 17.0 GiB by the compiler, the device has 8.0 GiB' in line
    assert f'batch_size (labelled {size})' in line and 'accumulate_steps (1)' in line
    assert line.endswith(f'; about labelled {fits} would fit') and fits
    step = pytest.raises(ValueError, match=r'^out of memory: the device has')
    with step, memory.training(config, {}):
        raise MemoryError
    scoring = pytest.raises(ValueError, match=r'memory.*: in the evaluation; .* eval\.batch_size')
    with scoring, memory.evaluation(config):
        exhausted()
    config = configs.finalise(config_of(data_dir, **{'eval.protocol': 'sliding'}))
    windows = pytest.raises(ValueError, match=r'has 8\.0 GiB; less is needed with .* eval\.window$')
    with windows, memory.evaluation(config):
        exhausted()
    state = pytest.raises(ValueError, match=r'weights and optimiser; .* model\.backbone')
    with state, memory.start():
        exhausted()
    other = pytest.raises(ValueError, match=r'in --mode predict; the .*8\.0 GiB; .* --max_side$')
    with other, memory.mode('predict'):
        exhausted()
    numpys = pytest.raises(ValueError, match=r'^out of memory for 2\.5 GiB: in --mode report; the')
    with numpys, memory.mode('report'):
        raise MemoryError('Unable to allocate 2.5 GiB for an array')
    # What is no lack of room stays what it is.
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.evaluation(config):
        raise jax.errors.JaxRuntimeError('INTERNAL: other')


def test_what_a_cpu_has_is_what_a_process_may_take(monkeypatch):
    device = types.SimpleNamespace(platform='cpu')
    there = memory.limit_of(device)
    assert there > GIB / 4
    monkeypatch.setattr(memory.resource, 'getrlimit', lambda kind: (1000, 2000))
    assert memory.limit_of(device) == 1000
    device = types.SimpleNamespace(platform='gpu', memory_stats=lambda: {'bytes_limit': 7})
    assert memory.limit_of(device) == 7


# Disks.


def test_a_full_disk_ends_a_run_at_its_checkpoint_and_the_same_command_resumes(
    data_dir, tmp_path, monkeypatch
):
    config = config_of(data_dir, steps=6, checkpoint_every=2)
    free, real = [10**12, 10**12, 1000], checkpoint.shutil.disk_usage

    def usage(path):
        return real(path)._replace(free=free.pop(0) if free else 10**12)

    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', usage)
    message = r'run/checkpoints: 0\.0 MiB are free, expected \d+\.\d MiB for step 6, which is not'
    with pytest.raises(OSError, match=message) as caught:
        train.train(config, tmp_path / 'run')
    assert '\n' not in str(caught.value)
    assert checkpoint.find(tmp_path / 'run', 'last') == 4
    train.train(config, tmp_path / 'run')
    assert checkpoint.find(tmp_path / 'run', 'last') == 6


def full(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_training_continues_without_a_record_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    writer = metrics.Writer(tmp_path, 0)
    writer.write(1, {'loss': 1.0})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, 'css_jax'):
        patch.setattr(writer._events, 'write_event', full)
        writer.write(2, {'loss': 2.0})
        writer.write(3, {'loss': 3.0})
        patch.setattr(files, 'write', full)
        writer.picture(3, 'val', np.zeros((4, 4, 3), np.uint8))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f'warning: {tmp_path / metrics.METRICS} cannot be written (No space left on device): '
        'training continues without it'
    ]
    writer.close()
    assert [record['step'] for record in metrics.read(tmp_path)] == [1, 2, 3]


def test_a_disk_that_stays_full_costs_its_lines_and_no_more(tmp_path, monkeypatch, caplog):
    writer = metrics.Writer(tmp_path, 0)
    writer.write(1, {'loss': 1.0})

    class Full(io.FileIO):
        room = 9

        def write(self, data):
            if not self.room:
                full()
            written, self.room = super().write(data[: self.room]), 0
            return written

    file, writer._file = writer._file, Full(tmp_path / metrics.METRICS, 'r+')
    for step in (2, 3):
        writer.write(step, {'loss': 1.0})
        writer.write(step, {'eval_miou': 1.0})
    assert [record.getMessage().count('No space left') for record in caplog.records] == [1]
    writer._file = file  # there is room again
    writer.write(4, {'loss': 1.0})
    writer.close()
    assert [record['step'] for record in metrics.read(tmp_path)] == [1, 4]


def test_scores_are_printed_where_they_cannot_be_written(data_dir, tmp_path, monkeypatch, capsys):
    config = configs.finalise(config_of(data_dir))
    every = evaluator.evaluators(config)
    (one,) = every.values()
    classes = len(one.class_names)
    found = {'miou': 0.5, 'accuracy': 0.5, 'loss': 1.0, 'iou': [0.5] * classes}
    scores = dict.fromkeys(every, found)
    monkeypatch.setattr(results.files, 'write', full)
    results.report(tmp_path, config, every, scores, 3, {'split_hash': 'x'}, None)
    out = capsys.readouterr().out
    assert '50.00' in out and 'written' not in out and not list(tmp_path.iterdir())


# A folder taken over.


def test_a_folder_without_a_checkpoint_is_taken_by_another_configuration(
    data_dir, tmp_path, caplog
):
    first = configs.finalise(config_of(data_dir, steps=6))
    run_folder.claim(first, tmp_path)
    metrics.Writer(tmp_path, 0).write(1, {'loss': 1.0})
    (tmp_path / 'wandb.json').write_text('{"id": "of the other"}')
    (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp-1').mkdir(parents=True)  # a broken save
    (tmp_path / 'notes.txt').write_text('mine')
    other = configs.finalise(config_of(data_dir, steps=8))
    with caplog.at_level(logging.INFO, 'css_jax'):
        run_folder.claim(other, tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f'{tmp_path} had another configuration (steps: 6 there, 8 now) and no checkpoint: it is '
        'replaced'
    )
    assert run_folder.load(tmp_path).steps == 8 and not metrics.read(tmp_path)
    assert (tmp_path / 'notes.txt').exists() and not list(tmp_path.glob('events*'))
    assert not (tmp_path / 'wandb.json').exists()
    # What is no run's stays.
    (tmp_path / run_folder.FILE).write_text(json.dumps({'model': 'of something else'}))
    with pytest.raises(ValueError, match='is not the configuration of a run'):
        run_folder.claim(other, tmp_path)
    # Neither does a run give way that has a checkpoint, or a score.
    run_folder.save(first, tmp_path)
    (tmp_path / 'results.json').write_text('{}')
    with pytest.raises(ValueError, match=r'another configuration .*init_from='):
        run_folder.claim(other, tmp_path)
    with pytest.raises(ValueError, match=r'another configuration .* the same values\.$'):
        run_folder.claim(configs.finalise(config_of(data_dir, steps=4)), tmp_path)
