"""The command line as a user meets it: modes, and mistakes answered in one line."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver

from css_jax import evaluate, main, models, parallel, train
from css_jax.config import file as stored
from css_jax.data import sources
from css_jax.evaluation import pictures, results
from css_jax.modes import preview, report
from css_jax.run import checkpoint, metrics
from data_prep import records
from data_prep.camvid.builder import Builder as CamVid
from tests import program, tiny
from tests.conftest import ROOT
from tests.small import small


@pytest.mark.parametrize(
    ('arguments', 'answer'),
    [
        (('--mode=train',), '--workdir'),
        (('--workdir=X', '--mode=trian'), 'trian'),
        (('--workdir=X', '--config=configs/nowhere.py'), 'configs/nowhere.py'),
        (('--workdir=X', '--config=configs/quickstart.py:css_mxi'), 'css_mix'),
        (('--workdir=X', '--config=configs/quickstart.py', '--config.method=css_mxi'), 'css_mix'),
        (('--workdir=X', '--mode=evaluate'), 'config.json is missing'),
        (('--workdir=X', '--config.stpes=3'), "no key 'stpes'; did you mean 'steps'?"),
        (('--workdir=X', '--config.steps', '1e3'), "steps: got '1e3', expected a whole number"),
        (('--workdir=X', '--stpes=3'), "Unknown command line flag 'stpes'"),
        (('--workdir=',), '--workdir is empty'),
        (('--workdir=X', '--config.eval.pad_to=32,32'), 'eval.pad_to: got (32, 32)'),
        (('--workdir=X', '--checkpoint=best'), '--checkpoint: expected with --mode=evaluate'),
        (('--workdir=X', '--table=5'), '--table: expected with --mode=sweep, got train'),
        (('--workdir=/dev/null/x',), '--workdir=/dev/null/x: /dev/null is no folder'),
        (
            ('--workdir=X', '--config=configs/stored.py'),
            "missing a required argument: 'workdir'",
        ),
        (('--workdir=X', '--mode=report'), 'expected folders of runs'),
        (('--workdir=X', '--config=configs/camvid.py'), 'python -m data_prep.camvid --source'),
    ],
)
def test_mistakes_are_one_line_and_build_nothing(arguments, answer, tmp_path):
    arguments = [a.replace('=X', f'={tmp_path}/x') for a in arguments]
    if 'camvid' in arguments[-1]:
        arguments.append(f'--config.data.dir={tmp_path}')
    ((code, _, errors),) = program.finish(program.start(None, *arguments))
    assert code != 0
    assert answer in errors
    assert 'Traceback' not in errors
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('arguments', 'answer'),
    [
        ('report --config.seed=3', '--config.seed=3: expected with --mode=train, evaluate'),
        ('report --config=configs/voc.py', '--config: expected with --mode=train, evaluate'),
        ('report --source=a.npz', '--source: expected with --mode=convert, predict, got'),
        ('sweep --table=5 --checkpoint=best', '--checkpoint: expected with --mode=evaluate'),
        (
            'sweep --table=5 --target=a.npz',
            '--target: expected with --mode=convert, embeddings, predict, export, got',
        ),
        ('export', '--mode=export: expected --target=FILE'),
        ('export --target=a.onnx --config.seed=3', '--config.seed=3: expected with --mode=train'),
        ('train --format=onnx', '--format: expected with --mode=export, got train'),
        ('evaluate --export_size=8,8', '--export_size: expected with --mode=export, got evalu'),
        ('preview --evaluation=voc', '--evaluation: expected with --mode=predict, export, got pre'),
        ('evaluate --confidence', '--confidence: expected with --mode=predict, got evaluate'),
        ('train --for_labelling', '--for_labelling: expected with --mode=predict, got train'),
        ('report --max_side=64', '--max_side: expected with --mode=predict, got report'),
        ('convert --source=a.npz --source=b.npz', '--source: got a.npz, b.npz, expected one file'),
        ('preview --checkpoint=last', '--checkpoint: expected with --mode=evaluate'),
        ('convert', 'expected either --source=FILE'),
        ('convert --source=a.npz --target=b.npz', 'expected either --source=FILE'),
        ('convert --target=a.npz --config.model.width=2.0', 'width=2.0: expected with --source'),
        ('convert --target=a.npz --config=configs/voc.py', '--config: expected with --source'),
        ('convert --source=a.npz --checkpoint=best', '--checkpoint: expected with --target'),
    ],
)
def test_flags_that_nothing_reads_are_refused(arguments, answer, tmp_path, capsys):
    """In this process, which is quicker: the flags are put back as they were."""
    assert answer in refused(f'--mode={arguments}', tmp_path, capsys)


@pytest.mark.parametrize(
    ('arguments', 'answer'),
    [
        ('--coordinator=a:1', 'got a:1, None, None; expected all three, or none'),
        ('--mode=evaluate --process_count=2', 'got None, 2, None; expected all three, or none'),
        ('--mode=sweep --table=5 --process_count=2', 'got None, 2, None; expected all three'),
        ('--coordinator=a:1 --process_count=2 --process_id=2', '--process_id: got 2, expected 0'),
        ('--coordinator=a --process_count=2 --process_id=0', "--coordinator: got 'a', expected ho"),
        ('--mode=preview --process_id=0', '--process_id: expected with --mode=train, evaluate'),
    ],
)
def test_processes_that_cannot_meet_are_refused(arguments, answer, tmp_path, capsys):
    assert answer in refused(arguments, tmp_path, capsys)


def test_other_modes_run_in_one_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parallel, 'start', lambda *given: None)
    monkeypatch.setattr(parallel, 'process', lambda: (0, 2))  # as a cluster may have it
    said = refused('--mode=preview', tmp_path, capsys)
    assert '--mode=preview runs in one process, got 2: several are for train, evaluate' in said
    assert '--process_count=1 keeps a process alone' in said


def refused(arguments, workdir, capsys):
    """What the program says to flags that it refuses."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        main.main(main.parse(['main', f'--workdir={workdir}', *arguments.split()]))
    assert stopped.value.code == 1 and not list(workdir.iterdir())
    return capsys.readouterr().err


@pytest.mark.parametrize('mode', ['train', 'sweep', 'evaluate', 'preview'])
def test_ctrl_c_promises_what_is_true(mode, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, '_run', interrupted)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        main.main(main.parse(['main', f'--workdir={tmp_path}', f'--mode={mode}']))
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert 'stopped' in said and ('resumes' in said) == (mode in ('train', 'sweep'))


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(models, 'build', small)


def test_preview_trains_nothing_and_shows_the_batch(tmp_path, data_dir, network):
    config = tiny.get_config()
    config.data.dir = data_dir
    preview.preview(config, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {preview.PICTURE, preview.TEXT}
    text = (tmp_path / preview.TEXT).read_text()
    assert 'unsupervised.threshold = 0.2  (given)' in text and 'GFLOP' in text
    assert 'optimizer.floor = 0.0001  (method css_mix)' in text
    assert '| representation/kernel ' in text
    assert '\n  all-reduce 0.01' in text  # MiB, of two devices: gradients, statistics, the bank
    picture = cv2.imread(str(tmp_path / preview.PICTURE))
    assert picture.shape == (18 + 4 * (128 + 3), 10 * (128 + 3), 3)
    assert picture.std() > 20


def test_report_puts_runs_side_by_side(tmp_path, data_dir, capsys, network):
    for seed in (0, 1):
        config = tiny.get_config('supervised')
        config.data.dir, config.seed, config.steps = data_dir, seed, 1
        train.train(config, tmp_path / f'seed{seed}')
    table = report.report(tmp_path, examples=3, html=False)
    assert table in capsys.readouterr().out
    mious = [
        json.loads((tmp_path / run / results.RESULTS).read_text())['miou']
        for run in ('seed0', 'seed1')
    ]
    row = next(line for line in table.splitlines() if line.startswith('| mIoU'))
    assert [float(v) for v in row.split('|')[2:4]] == [round(100 * m, 2) for m in mious]
    picture = cv2.imread(str(tmp_path / report.PICTURE))
    assert picture.shape == (18 + 3 * (128 + 3), 4 * (128 + 3), 3)

    for run in ('seed0', 'seed1'):  # the picture is of the images that the table is about
        config = stored.read(tmp_path / run)
        config.eval.split = 'fresh'
        evaluate.evaluate(config, tmp_path / run)
    report.report(tmp_path, examples=3, file='results_split=fresh.json', html=False)
    assert 'shapes/64:fresh' in (tmp_path / report.TABLE).read_text()
    fresh = cv2.imread(str(tmp_path / report.PICTURE))
    assert (fresh[:, :131] != picture[:, :131]).any()

    path = tmp_path / 'seed1' / results.RESULTS
    path.write_text(path.read_text().replace('shapes/64:val', 'shapes/64:fresh'))
    with pytest.raises(ValueError, match='different splits'):
        report.report(tmp_path)
    path.write_text('{"miou": 0.5')
    with pytest.raises(ValueError, match=r'seed1/results\.json is not the results of a run'):
        report.report(tmp_path)


def test_training_reads_prepared_records_alone(tmp_path, network):
    source, data_dir = tmp_path / 'source', tmp_path / 'prepared'
    rng = np.random.default_rng(0)
    counts = {'train': 6, 'val': 1, 'test': 3}
    for split, count in counts.items():
        for kind in ('images', 'labels'):
            (source / split / kind).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (36, 48, 3), np.uint8)
            label = np.kron(rng.integers(0, 11, (3, 4)), np.ones((12, 12))).astype(np.uint8)
            cv2.imwrite(str(source / split / 'images' / f'{i}.png'), image)
            cv2.imwrite(str(source / split / 'labels' / f'{i}.png'), label)
    records.prepare(CamVid(source=str(source), splits=counts, config='full', data_dir=data_dir))
    shutil.rmtree(source)

    config = tiny.get_config('supervised')
    config.data.dir, config.steps = str(data_dir), 2
    config.data.streams.labelled.update({'dataset': 'camvid', 'count': 4})
    config.data.streams.unlabelled.dataset = 'camvid'
    config.eval.update({'dataset': 'camvid', 'split': 'test', 'batch_size': 2})
    results = train.train(config, tmp_path / 'run')
    assert len(results['iou']) == 11 and 'bicyclist' in results['iou']
    assert [r['step'] for r in metrics.read(tmp_path / 'run')] == [1, 2]
    assert checkpoint.find(tmp_path / 'run', 'best') == 2
    assert 'tensorflow' not in sys.modules


def test_colours_are_pascal_s_and_void_is_white():
    palette = sources.palette('voc')
    assert (pictures.palette(palette[:3], 21) == palette).all()
    assert sources.palette('cityscapes')[[0, 18]].tolist() == [[128, 64, 128], [119, 11, 32]]
    for name, module in sources.DATASETS.items():
        if name != 'folder':
            assert sources.palette(name).shape == (len(module.CLASS_NAMES), 3)
    assert palette[[0, 1, 2, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    np.testing.assert_array_equal(pictures.colourise(np.array([-1, 255, 1]), palette)[:2], 255)


def test_help_lists_every_mode():
    """By the command itself; the other tests' processes are forks of one that has imported it."""
    command = [sys.executable, '-m', 'css_jax.main', '--help']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    words = ' '.join(done.stdout.split())
    assert done.returncode == 1 and all(f'{mode}: ' in words for mode in main.MODES)
