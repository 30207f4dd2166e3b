"""What an evaluation leaves in a run's folder, and what is made of it: predictions and reports."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import evaluate, methods, predict, state, train
from css_jax.config import file as stored
from css_jax.data import geometry, sources
from css_jax.evaluation import tables
from css_jax.evaluation.results import RESULTS
from css_jax.modes import report
from css_jax.ops import metrics
from css_jax.report import runs as found
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from tests import tiny
from tests.test_evaluate import mixed_source

pytestmark = pytest.mark.usefixtures('shallow')


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data_dir, shallow):
    """Two untrained runs, whose students say the contrary of their teachers."""
    folder = tmp_path_factory.mktemp('runs')
    for seed in (0, 1):
        config = tiny.get_config('supervised')
        config.data.dir, config.seed = data_dir, seed
        config = configs.finalise(config)
        method = methods.METHODS[config.method]
        current = state.create(method, method.optimizer(config)[0], methods.context(config))
        head = current.student.params['head_logits']
        head['out'] = jax.tree.map(jnp.negative, head['out'])
        workdir = folder / f'seed{seed}'
        workdir.mkdir()
        run_folder.save(config, workdir)
        checkpoints = checkpoint.Checkpoints(workdir)
        checkpoints.save(2, current, {'split_hash': 'x'})
        checkpoints.score(2, 0.1)
        checkpoints.close()
        evaluate.evaluate(stored.read(workdir), workdir)
    return folder


def test_the_run_s_result_is_not_overwritten_by_another(runs, capsys):
    workdir = runs / 'seed0'
    own = (workdir / RESULTS).read_text()
    config = stored.read(workdir)
    config.eval.network = 'student'
    results = evaluate.evaluate(config, workdir)
    path = workdir / 'results_network=student.json'
    assert f'written: {path}' in capsys.readouterr().out
    assert json.loads(path.read_text())['miou'] == results['miou']
    assert results['protocol'].startswith('student, running statistics, whole image')
    assert results['loss'] != json.loads(own)['loss']
    assert json.loads(own)['best'] == {'step': 2, 'miou': 0.1}
    assert results['best'] is None  # that was of the teacher

    config.eval.network = 'teacher'
    best = evaluate.evaluate(config, workdir, 'best')
    assert best['loss'] == json.loads(own)['loss'] and (workdir / 'results_best.json').exists()
    assert (workdir / RESULTS).read_text() == own
    assert json.loads(own)['eval'] == {
        'dataset': 'shapes', 'split': 'val', 'protocol': 'whole', 'pad_to': [0, 0],
        'window': [0, 0], 'multiple': 1, 'flip': False, 'scales': [1.0], 'network': 'teacher',
    }  # fmt: skip


def test_every_view_at_once_on_the_real_network(runs):
    config = stored.read(runs / 'seed0')
    config.eval.update({'protocol': 'sliding', 'window': (40, 48), 'flip': True})
    config.eval.scales = (0.5, 1.0)
    results = evaluate.evaluate(config, runs / 'seed0')
    assert results['protocol'] == (
        'EMA teacher, running statistics, sliding windows of 40x48 at stride 27x32, mean '
        'probability where they overlap, mean probability over scales 0.5, 1.0 and the mirror '
        'image, void pixels left out'
    )
    own = json.loads((runs / 'seed0' / RESULTS).read_text())
    assert np.isfinite(results['loss']) and abs(results['loss'] - own['loss']) < 0.5
    name = 'results_protocol=sliding_window=40,48_flip=True_scales=0.5,1.0.json'
    assert (runs / 'seed0' / name).exists()


def test_predictions_are_of_the_network_asked_for_at_any_size(runs, data_dir):
    teacher = predict.load(runs / 'seed0')
    student = predict.load(runs / 'seed0', 'best', 'student')
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3), np.uint8)
    labels = teacher.predict(images)
    assert labels.shape == (1, 40, 50) and (student.predict(images) != labels).all()

    source = sources.load('shapes', 'val', data_dir)
    total = np.zeros((7, 7), np.int64)
    for record in source.records:  # what predict gives is what was scored
        truth = geometry.decode_label(record['label'])
        predicted = teacher.predict(geometry.decode_image(record['image'])[None])[0]
        np.add.at(total, (truth[truth != 255], predicted[truth != 255]), 1)
    scored = json.loads((runs / 'seed0' / RESULTS).read_text())
    np.testing.assert_allclose(metrics.scores(total)['miou'], scored['miou'], atol=1e-3)


def test_report_compares_runs_of_one_protocol(runs):
    report.report(runs, examples=2, html=False)
    assert 'EMA teacher, running statistics, whole image' in (runs / report.TABLE).read_text()
    height, width = cv2.imread(str(runs / report.PICTURE)).shape[:2]
    assert (height, width) == (18 + 2 * (128 + 3), 4 * (128 + 3))

    config = stored.read(runs / 'seed1')
    config.eval.protocol = 'whole_exact'
    other = evaluate.evaluate(config, runs / 'seed1')
    name = 'results_protocol=whole_exact.json'
    report.report(runs, 2, name, html=False)  # one run has it
    assert other['protocol'] in (runs / report.TABLE).read_text()

    results = runs / 'seed1' / RESULTS
    own = results.read_text()
    results.write_text((runs / 'seed1' / name).read_text())
    with pytest.raises(ValueError, match=r'different protocols: .*own size'):
        report.report(runs)
    # A baseline without a teacher is no other protocol; the table says which network it is of.
    results.write_text(own.replace('EMA teacher', 'student'))
    report.report(runs, examples=2, html=False)
    text = (runs / report.TABLE).read_text()
    assert 'seed0: EMA teacher, running' in text and 'seed1: student, running' in text
    results.write_text(own)


def test_the_picture_shows_images_of_several_sizes(runs, monkeypatch):
    """Nothing is enlarged or cut: each image stands in the corner of a cell for the largest."""
    results = {
        'step': 2,
        'split': 'mixed:val',
        'iou': dict.fromkeys(map(str, range(7))),
        'eval': {'protocol': 'whole_exact', 'network': 'student'},
    }
    run = found.find([runs / 'seed0'])[0]._replace(results=results)
    source, drawn = mixed_source(), {}
    monkeypatch.setattr(sources, 'load', lambda *_: source)
    monkeypatch.setattr(sources, 'palette', lambda *_: np.arange(21, dtype=np.uint8).reshape(7, 3))
    monkeypatch.setattr(report.pictures, 'write_grid', lambda path, columns: drawn.update(columns))
    monkeypatch.setattr(predict.Predictor, 'predict', lambda self, x: x[..., 0] % 7)
    report._pictures(runs, {'seed0': run}, examples=2)  # 20x33 and 17x40
    assert list(drawn) == ['image', 'truth', 'seed0']
    assert {x.shape for x in drawn.values()} == {(2, 20, 40, 3)}
    first = geometry.decode_image(source.records[0]['image'])
    np.testing.assert_array_equal(drawn['image'][0, :, :33], first)
    assert (drawn['image'][0, :, 33:] == 255).all()
    assert (drawn['seed0'][:, :5, :5] == 255).all()  # void


def test_training_goes_on_under_one_protocol_alone(runs):
    config = stored.read(runs / 'seed1')
    config.eval.flip = True
    before = (runs / 'seed1' / run_folder.FILE).read_text()
    with pytest.raises(ValueError, match=r'eval\.flip: False there.*--mode evaluate scores it'):
        train.train(config, runs / 'seed1')
    assert (runs / 'seed1' / run_folder.FILE).read_text() == before


def test_weights_from_elsewhere_are_not_trained_in_place(data_dir, tmp_path):
    config = tiny.get_config('supervised')
    config.data.dir = data_dir
    config = configs.finalise(config)
    method = methods.METHODS[config.method]
    run_folder.save(config, tmp_path)
    current = state.create(method, method.optimizer(config)[0], methods.context(config))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(10_000, current, {'split_hash': None})
    checkpoints.close()
    with pytest.raises(ValueError, match=r'trained elsewhere: expected --mode evaluate, or .*init'):
        train.train(config, tmp_path)


def test_a_name_with_a_bar_stays_in_its_cell():
    lines = tables.markdown([['class', 'a|b\nc'], ['x', '1']]).splitlines()
    assert lines == ['| class | a\\|b c |', '|-------|-------:|', '| x     |      1 |']
