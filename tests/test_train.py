"""Whole runs: killed and gone on with, stopped by NaN, evaluated again from what is stored."""

import collections
import json
import logging
import pathlib
import re
import shutil
import signal
import time
from unittest import mock

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from css_jax import config as configs
from css_jax import evaluate, methods, models, predict, state, train
from css_jax import step as steps
from css_jax.config import file as stored
from css_jax.data import streams
from css_jax.evaluation import evaluator, results
from css_jax.ops import inference
from css_jax.run import checkpoint, metrics, progress
from css_jax.run import folder as run_folder
from tests import program, tiny
from tests.conftest import ROOT
from tests.small import small

# The program kills itself as soon as the save of a step has been started.
KILLED = """
import os, signal
from css_jax.run import checkpoint
save = checkpoint.Checkpoints.save
def killed(self, step, *args):
    save(self, step, *args)
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Checkpoints.save = killed
"""


BUILD = models.build


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(models, 'build', small)


def restore(workdir):
    """The whole state of the latest checkpoint."""
    config = stored.read(workdir)
    method = methods.METHODS[config.method]
    like = state.create(method, method.optimizer(config)[0], methods.context(config))
    checkpoints = checkpoint.Checkpoints(workdir)
    restored = checkpoints.restore(like)
    checkpoints.close()
    return restored.replace(key=jax.random.key_data(restored.key))


@pytest.mark.parametrize('network', ['small', pytest.param('real', marks=pytest.mark.soak)])
def test_a_killed_run_ends_with_the_same_bits(network, tmp_path, data_dir, monkeypatch):
    if network == 'real':
        monkeypatch.setattr(models, 'build', BUILD)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    train_on = [f'--config={ROOT}/tests/tiny.py', f'--config.data.dir={data_dir}']
    program.run(whole, *train_on, network=network)

    processes = program.start(broken, *train_on, hold=5, network=network)
    program.wait_for(processes, lambda: program.steps(broken)[-1:] == [5])
    program.wait_for(processes, lambda: checkpoint.exists(broken))
    processes[0].kill()
    program.finish(processes)
    assert checkpoint.find(broken, 'last') == 3
    (broken / metrics.METRICS).open('a').write('{"step": 6, "lo')  # as a kill cuts a line off

    ends = program.finish(program.start(broken, *train_on, before=KILLED, network=network))
    ((code, output, _),) = ends
    assert code == -signal.SIGKILL, ends
    assert 'resuming from step 3' in output
    assert list((broken / checkpoint.FOLDER).glob('6.*tmp*')), 'the save was over before the kill'

    (output,) = program.run(broken, *train_on, network=network)
    assert 'resuming from step 3' in output
    jax.tree.map(np.testing.assert_array_equal, restore(whole), restore(broken))

    for folder in (whole, broken):
        assert [r['step'] for r in metrics.read(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]
        events = [
            event.step
            for path in sorted(folder.glob('events.*'))
            for event in EventFileLoader(str(path)).Load()
            for value in event.summary.value
            if value.tag == 'loss'
        ]
        assert events == [1, 2, 3, 4, 5, 6, 7, 8]
    losses = [[r['loss'] for r in metrics.read(folder)] for folder in (whole, broken)]
    assert losses[0] == losses[1]

    program.run(whole, '--mode=evaluate', network=network)  # computes the same again
    scores = json.loads((whole / results.RESULTS).read_text())
    assert scores['miou'] == json.loads((broken / results.RESULTS).read_text())['miou']
    # Single keys can be set without --config: they go over the configuration in the folder.
    program.run(whole, '--mode=evaluate', '--config.eval.split=fresh', network=network)
    other = json.loads((whole / 'results_split=fresh.json').read_text())
    assert other['split'] == 'shapes/64:fresh' and other['loss'] != scores['loss']


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data_dir):
    """Folder of a short supervised run."""
    workdir = tmp_path_factory.mktemp('trained')
    config = tiny.get_config('supervised')
    config.data.dir = data_dir
    config.steps = 4
    with mock.patch.object(models, 'build', small):
        train.train(config, workdir)
    return workdir


def test_evaluation_computes_from_the_weights(trained, tmp_path):
    workdir = tmp_path / 'copy'
    shutil.copytree(trained, workdir)
    path = workdir / results.RESULTS
    before = json.loads(path.read_text())

    path.write_text(json.dumps({**before, 'miou': 0.999}))
    again = evaluate.evaluate(stored.read(workdir), workdir)
    assert again['miou'] == before['miou'] and again['iou'] == before['iou']
    assert json.loads(path.read_text())['miou'] == before['miou']

    config = configs.finalise(stored.read(workdir))
    method = methods.METHODS[config.method]
    like = state.create(method, method.optimizer(config)[0], methods.context(config))
    checkpoints = checkpoint.Checkpoints(workdir)
    current = checkpoints.restore(like)
    meta = checkpoints.meta(4)
    checkpoints.close()
    shutil.rmtree(workdir / checkpoint.FOLDER)
    head = current.teacher.params['logits']
    head['kernel'] = head['kernel'].at[..., 2].add(100.0)  # of features that are not negative
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(4, current, meta)
    checkpoints.close()
    changed = evaluate.evaluate(stored.read(workdir), workdir)
    assert changed['miou'] != before['miou']
    assert sum(v > 0 for v in changed['iou'].values()) == 1  # all pixels are of class 2 now


def test_a_finished_run_is_evaluated_again_not_trained(trained):
    before = (trained / metrics.METRICS).read_text()
    scores = json.loads((trained / results.RESULTS).read_text())
    again = train.train(stored.read(trained), trained)
    assert again['miou'] == scores['miou']
    assert (trained / metrics.METRICS).read_text() == before


def test_another_configuration_does_not_overwrite_a_run(trained):
    config = stored.read(trained)
    config.optimizer.learning_rate = 0.2
    before = {p: p.stat().st_mtime_ns for p in pathlib.Path(trained).rglob('*')}
    with pytest.raises(ValueError, match=r'optimizer\.learning_rate: 0\.05 there, 0\.2 now'):
        train.train(config, trained)
    assert before == {p: p.stat().st_mtime_ns for p in pathlib.Path(trained).rglob('*')}


def test_evaluation_refuses_another_network(trained):
    config = stored.read(trained)
    config.model.width = 0.25
    with pytest.raises(ValueError, match=r'configuration \(model\.width: 0\.125 there, 0\.25 now'):
        evaluate.evaluate(config, trained)
    config = stored.read(trained)
    config.seed = 7  # would be written to results.json as the run's
    with pytest.raises(ValueError, match='seed: 0 there, 7 now'):
        evaluate.evaluate(config, trained)


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(trained):
    with pytest.raises(FileNotFoundError, match=r"checkpoint '7' .* steps \[3, 4\]"):
        evaluate.evaluate(stored.read(trained), trained, '7')
    with pytest.raises(FileNotFoundError, match='no checkpoint in'):
        checkpoint.find(trained / 'nowhere', 'last')


def test_loaded_run_predicts(trained):
    predictor = predict.load(trained)
    labels = predictor.predict(np.zeros((2, 40, 48, 3), np.uint8))
    assert labels.shape == (2, 40, 48) and labels.dtype == np.int32
    with pytest.raises(ValueError, match=r'images: got float64 \(2, 40, 48\)'):
        predictor.predict(np.zeros((2, 40, 48)))


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, data_dir):
    # A process of its own: one that ends must not cut off a save under way.
    flags = [f'--config={ROOT}/tests/tiny.py', f'--config.data.dir={data_dir}']
    flags += ['--config.method=supervised', '--config.steps=40']
    flags += ['--config.optimizer.learning_rate=1000', '--config.optimizer.weight_decay=10']
    # The weights grow 10^4-fold a step.
    ((code, output, errors),) = program.finish(program.start(tmp_path, *flags))
    assert code == 1
    assert 'Traceback' not in output + errors
    assert re.search(r'error: step \d+: loss, gradient or update is not finite \(', errors)
    kept = restore(tmp_path)
    assert kept.step > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept.student.params))
    # The step's numbers are in the record, after the last good one.
    assert metrics.read(tmp_path)[-1]['step'] > kept.step


def test_a_run_of_an_older_version_gets_the_defaults_it_does_not_know(trained, tmp_path):
    values = json.loads((trained / run_folder.FILE).read_text())
    del values['model']['remat'], values['data']['streams']['labelled']['pad']
    (tmp_path / run_folder.FILE).write_text(json.dumps(values))
    assert run_folder.diff(run_folder.load(trained), run_folder.load(tmp_path)) == []


@pytest.fixture
def older(tmp_path, data_dir, monkeypatch):
    """A run of six steps whose folder an older version and another one have written."""
    config = tiny.get_config()
    config.data.dir, config.steps = data_dir, 6
    train.train(config, tmp_path)
    values = json.loads((tmp_path / run_folder.FILE).read_text())
    del values['contrastive']['scope'], values['model']['family'], values['data']['threads']
    for stream in values['data']['streams'].values():
        del stream['reads']
        stream['labels'] = True
    values['augment']['partner'] = 'next'
    values['contrastive']['more'] = 3
    (tmp_path / run_folder.FILE).write_text(json.dumps(values))
    return config, tmp_path


def test_a_run_of_another_version_resumes_and_is_evaluated(older, caplog):
    config, workdir = older
    scores = json.loads((workdir / results.RESULTS).read_text())
    with caplog.at_level(logging.INFO, 'css_jax'):
        again = evaluate.evaluate(stored.read(workdir), workdir)
    (told,) = {line for line in caplog.messages if 'nothing reads' in line}
    gone = ['augment.partner', 'contrastive.more', 'labelled.labels', 'unlabelled.labels']
    assert all(name in told for name in gone) and told.count(', ') == 3
    assert again['miou'] == scores['miou']

    shutil.rmtree(workdir / checkpoint.FOLDER / '6')
    assert train.train(config, workdir)['miou'] == scores['miou']  # resumes, by its own file
    values = json.loads((workdir / run_folder.FILE).read_text())
    assert values['contrastive']['scope'] == 'global' and 'more' not in values['contrastive']
    config.contrastive.scope = 'device'
    with pytest.raises(ValueError, match=r"contrastive\.scope: 'global' there, 'device' now"):
        train.train(config, workdir)


def test_an_evaluation_that_fails_loses_no_step(tmp_path, data_dir, monkeypatch):
    config = tiny.get_config('supervised')
    config.data.dir, config.steps, config.checkpoint_every = data_dir, 6, 100
    config.eval.every = 2
    expected = train.train(config, tmp_path / 'whole')

    score = evaluator.Evaluator.__call__
    with monkeypatch.context() as patch:

        def failing(self, *given):
            patch.setattr(evaluator.Evaluator, '__call__', fails)
            return score(self, *given)

        def fails(self, *given):
            raise RuntimeError('out of memory')

        patch.setattr(evaluator.Evaluator, '__call__', failing)
        for _ in range(2):  # at step 4, and again where it resumes
            with pytest.raises(RuntimeError, match='out of memory'):
                train.train(config, tmp_path / 'run')
            assert checkpoint.find(tmp_path / 'run', 'last') == 4
            assert [r['step'] for r in metrics.read(tmp_path / 'run')] == [1, 2, 3, 4]
            assert 'eval_miou' not in metrics.read(tmp_path / 'run')[-1]
    assert train.train(config, tmp_path / 'run') == expected
    whole, run = (
        [{k: v for k, v in r.items() if k in ('step', 'loss', 'eval_miou')} for r in records]
        for records in (metrics.read(tmp_path / 'whole'), metrics.read(tmp_path / 'run'))
    )
    assert whole == run and [r['step'] for r in run if 'eval_miou' in r] == [2, 4, 6]


def test_progress_leaves_out_compilation_and_its_step():
    clock = progress.Progress(0, 100)
    with clock.pause(steps=1):
        time.sleep(0.2)
    time.sleep(0.1)
    values = clock.update(11, images_per_step=8)
    assert 8 * 10 / 0.2 < values['images_per_second'] <= 8 * 10 / 0.1


def test_a_burn_in_reads_and_counts_the_labelled_images_alone(tmp_path, data_dir, monkeypatch):
    """And nothing is traced twice: what start-up has traced is compiled."""
    asked, update, open_ = [], progress.Progress.update, streams.train_batches
    traced = collections.Counter()

    def opened(data, seed, step, *processes, names, **given):
        asked.append((step, sorted(names)))
        return open_(data, seed, step, *processes, names=names, **given)

    def counted(clock, step, images_per_step):
        asked.append((step, images_per_step))
        return update(clock, step, images_per_step)

    def traces(function):
        def wrapped(*args, **kwargs):
            traced[function.__name__] += 1
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(streams, 'train_batches', opened)
    monkeypatch.setattr(progress.Progress, 'update', counted)
    monkeypatch.setattr(steps, 'train_step', traces(steps.train_step))
    monkeypatch.setattr(inference, 'multi_scale', traces(inference.multi_scale))
    config = tiny.get_config('cutmix')
    config.update_from_flattened_dict({'steps': 3, 'burn_in_steps': 2, 'data.dir': data_dir})
    train.train(config, tmp_path)
    sizes = [s.batch_size for s in config.data.streams.values()]
    assert asked == [
        (0, ['labelled']),
        (1, sizes[0]),
        (2, sizes[0]),
        (2, ['labelled', 'unlabelled']),
        (3, sum(sizes)),
    ]
    assert traced == {'train_step': 2, 'multi_scale': 1}  # of two phases, of one evaluation
