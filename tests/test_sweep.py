"""Sweeps: which runs a table is, what is skipped, what a failure leaves, one from end to end."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from configs import tables
from css_jax import models
from css_jax.config import command_line
from css_jax.data import splits
from css_jax.evaluation import results
from css_jax.modes import sweep
from css_jax.run import folder as run_folder
from tests.conftest import ROOT

QUICKSTART = str(ROOT / 'configs' / 'quickstart.py')
SCORES = {0: 0.50, 1: 0.54, 2: 0.61}  # of the seeds of a run that is only pretended


def plan(tmp_path, table, config=None, seeds=(0,), labels=(), changes=None):
    return sweep.plan(
        tmp_path, table, config=config, seeds=seeds, labels=labels, changes=changes or {}
    )


def pretend(calls, fail=()):
    """A process that trains nothing and writes what a run leaves."""

    def execute(run):
        calls.append(f'{run.folder.parent.name}/{run.folder.name}')
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / sweep.OUTPUT).write_text('step 1\nerror: no luck\n(--help lists the flags)\n')
        if calls[-1] in fail:
            return 1
        run_folder.save(run.config, run.folder)
        left = {
            'miou': SCORES[run.config.seed],
            'step': run.config.steps,
            'split': 'shapes/64:val',
            'protocol': 'EMA teacher',
            'iou': {},
            'eval': {key: run.config.eval[key] for key in ('split', 'pad_to', 'flip', 'scales')},
        }
        (run.folder / results.RESULTS).write_text(json.dumps(left))
        return 0

    return execute


@pytest.fixture(autouse=True)
def _images_are_there(request, monkeypatch):
    """No test prepares a dataset where the user's lie, but those that ask for one of their own."""
    if not {'data_dir', 'nowhere'} & set(request.fixturenames):
        monkeypatch.setattr(sweep, '_check_images', lambda runs: None)


@pytest.fixture
def nowhere(tmp_path):
    """Changes: a folder of datasets without any."""
    return {'data.dir': str(tmp_path / 'prepared')}


def test_the_paper_s_table_is_the_paper_s_commands(tmp_path):
    runs = plan(tmp_path, 6, seeds=(0, 1), changes={'model.pretrained': 'resnet101.npz'})
    assert len(runs) == 2 * len(tables.get(6).cells)
    first = runs[0]
    assert first.folder == tmp_path / 'baseline_92' / 'seed0'
    assert list(first.command[1:]) == [
        '-m', 'css_jax.main', '--config', f'{ROOT}/configs/voc.py:classic,92,baseline,seed=0',
        '--config.model.pretrained=resnet101.npz', '--workdir', str(first.folder),
    ]  # fmt: skip
    assert first.config.model.pretrained == 'resnet101.npz'
    assert {run.column for run in runs} == {
        f'{count} labels, {label}' for count in (92, 183) for label in ('seg label', 'mix label')
    }
    assert [run.config.seed for run in runs] == [0] * 12 + [1] * 12


def test_a_run_has_a_folder_of_its_own_and_tables_share_what_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which has no lists of one layout alone
    folders = {}
    for number in tables.TABLES:
        runs = plan(tmp_path, number, seeds=(0, 1) if number == 1 else (0,))
        assert len({run.folder for run in runs}) == len(runs)
        for run in runs:
            assert folders.setdefault(run.folder, run.command) == run.command
    # 18 of Tables 5-7, 6 of these in Table 1; every row of iMAS's and UniMatch's has all columns.
    paper, imas = 24 + 4 + 4 + 18 - 6, 2 * 5 + 6 * 3 + 3 * 4
    unimatch = (9 + 5 + 3 + 3) * 5 + (3 + 4) * 4 + 3
    assert len(folders) == 24 + paper + imas + unimatch
    lengths = [len(folder.parent.name) for folder in folders]
    assert max(lengths) < 40


def test_imas_s_tables_are_its_authors_runs(tmp_path, monkeypatch):
    """A weights file for each backbone is named once."""
    monkeypatch.chdir(tmp_path)
    config = f'{ROOT}/configs/voc.py:pretrained=deep/{{backbone}}.npz'
    runs = plan(tmp_path, 'imas:blended', config)
    assert [run.folder.parent.name for run in runs[::3]] == [
        'imas_supervised_resnet50_16_662', 'imas_resnet50_8_662', 'imas_resnet50_16_662',
        'imas_supervised_resnet101_16_662', 'imas_resnet101_8_662', 'imas_resnet101_16_662',
    ]  # fmt: skip
    assert runs[0].config.model.pretrained == 'deep/resnet50.npz'
    assert runs[-1].config.model.pretrained == 'deep/resnet101.npz'
    runs = plan(tmp_path, 'imas:cityscapes')
    names = {run.folder.parent.name for run in runs}
    assert {'imas_resnet50_8_2_186', 'imas_supervised_resnet50_16_1488'} < names
    argument = '186,imas,backbone=resnet50,model.output_stride=8,imas.group=2,seed=0'
    assert f'{ROOT}/configs/cityscapes.py:{argument}' in runs[4].command


def test_imas_s_table_says_whose_numbers_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, '_execute', pretend([]))
    text = sweep.sweep(tmp_path, 'imas:classic', seeds=(0, 1), labels=(732, 1464))
    assert (tmp_path / 'table_imas_classic.md').read_text() == text
    assert text.startswith('# iMAS, classic VOC\n')
    assert "The published numbers are the authors' best epoch on val, of one run or, with ±" in text
    assert [line for line in text.splitlines() if line.startswith('|')] == [
        '|  | 732 labels | 1464 labels | authors, 732 labels | authors, 1464 labels |',
        '|---|---:|---:|---:|---:|',
        '| SupOnly, R101, stride 16 (log) | 52.00 ± 2.83 (2) | 52.00 ± 2.83 (2) | 70.40 | - |',
        '| iMAS, R101, stride 16 (log) | 52.00 ± 2.83 (2) | 52.00 ± 2.83 (2) | 79.74 | '
        '81.06 ± 0.13 |',
    ]


def test_rows_that_differ_in_the_network_are_one_run_on_another_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    text = sweep.sweep(tmp_path, 'imas:blended', config=QUICKSTART, seeds=(0,))
    assert calls == ['imas_supervised/seed0', 'imas/seed0']
    assert text.count('\n| ') == 3 and '| iMAS, R50, stride 8 (README) | 50.00 (1) | 75.90' in text


def test_another_dataset_has_the_table_s_methods(tmp_path):
    runs = plan(tmp_path, 7, f'{QUICKSTART}:steps=300')
    assert [run.folder.parent.name for run in runs] == [
        'baseline', 'css_mix_confidence', 'css_cross_confidence', 'css_logit_both', 'css_mix',
        'css_cross',
    ]  # fmt: skip
    assert {run.column for run in runs} == {'8 labels'}
    assert f'{QUICKSTART}:css_mix,indicator=confidence,seed=0,steps=300' in runs[1].command
    assert all(run.config.steps == 300 for run in runs)

    runs = plan(tmp_path, 7, QUICKSTART, labels=['4', '16'])
    assert [run.config.data.streams.labelled.count for run in runs] == [4, 16] * 6
    assert runs[1].folder.parent.name == 'baseline_16'


@pytest.mark.parametrize(
    ('changed', 'answer'),
    [
        ({'table': 4}, 'expected one of 1, 2, 3, 5, 6, 7'),
        ({'seeds': []}, '--seeds: got none'),
        ({'seeds': ['0', 'x']}, "--seeds: got 'x', expected whole numbers from 0"),
        ({'seeds': ['1', '1']}, '--seeds: got 1,1, expected each number once'),
        ({'labels': ['0']}, "--labels: got '0', expected whole numbers from 1"),
        ({'config': f'{QUICKSTART}:seed=3'}, 'seed is given twice'),
        ({'config': f'{QUICKSTART}:css_mix'}, 'method is given twice'),
        ({'config': 'configs/quickstrat.py'}, 'quickstrat.py'),
        ({'changes': {'stpes': '3'}}, "no key 'stpes'"),
        ({'changes': {'steps': '3'}}, r'quickstart.py:baseline,seed=0: burn_in_steps: got 200'),
    ],
)
def test_mistakes_are_answered_before_anything_runs(changed, answer, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    given = {'table': 5, 'config': QUICKSTART, **changed}
    with pytest.raises((ValueError, OSError), match=answer):
        sweep.sweep(tmp_path / 'x', **given)
    assert not calls and not (tmp_path / 'x').exists()


def test_images_that_are_missing_are_told_of_before_anything_runs(tmp_path, nowhere, monkeypatch):
    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    workdir = tmp_path / 'x'
    with pytest.raises(FileNotFoundError, match=r'python -m data_prep\.voc --source FOLDER'):
        sweep.sweep(workdir, 2, seeds=(0,), changes=nowhere)
    assert not calls and not workdir.exists()
    assert sweep.sweep(workdir, 2, seeds=(0,), changes=nowhere, print_commands=True) == ''


def test_every_setting_s_images_are_looked_for_once(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    looked, subsets = [], splits.subsets
    monkeypatch.setattr(splits, 'subsets', lambda data: looked.append(data) or subsets(data))
    here = {'data.dir': data_dir}
    sweep.sweep(tmp_path / 'x', 5, config=QUICKSTART, seeds=(0, 1), changes=here)
    assert len(looked) == 2 and len(calls) == 8  # four methods on the same images

    with pytest.raises(ValueError, match=r'count: got 25, expected at most 24 images'):
        sweep.sweep(tmp_path / 'y', 5, config=QUICKSTART, labels=(8, 25), changes=here)
    with pytest.raises(ValueError, match=r"has no split 'test'"):
        sweep.sweep(tmp_path / 'y', 5, config=QUICKSTART, changes={**here, 'eval.split': 'test'})
    assert len(calls) == 8 and not (tmp_path / 'y').exists()


def test_damaged_results_are_named(tmp_path):
    run = plan(tmp_path, 5, QUICKSTART)[0]
    pretend([])(run)
    assert sweep.finished(run)
    path = run.folder / results.RESULTS
    for text in ('', '{"step": 900', '{"step": 900}', '[]'):
        path.write_text(text)
        with pytest.raises(ValueError, match=f'{path} is not the results of a run'):
            sweep.finished(run)


def test_the_table_has_means_beside_the_paper_s_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    # Mean 55, sample standard deviation sqrt((25 + 1 + 36) / 2).
    text = sweep.sweep(tmp_path, 5, config=QUICKSTART, changes={'log_every': '100'})
    assert len(calls) == 12 and calls[:2] == ['baseline/seed0', 'css_representation_both/seed0']
    rows = [line for line in text.splitlines() if line.startswith('|')]
    assert rows == [
        '|  | 8 labels | paper, 92 labels | paper, 183 labels |',
        '|---|---:|---:|---:|',
        '| logit space | 55.00 ± 5.57 (3) | 67.11 | 70.32 |',
        '| representation space | 55.00 ± 5.57 (3) | 64.20 | 67.52 |',
        '| mix pseudo-labeling | 55.00 ± 5.57 (3) | 68.41 | 72.74 |',
        '| cross pseudo-labeling | 55.00 ± 5.57 (3) | 67.85 | 71.98 |',
    ]
    assert 'quickstart.py --config.log_every=100` on shapes/64:val: EMA teacher.' in text
    assert (tmp_path / 'table5.md').read_text() == text and text in capsys.readouterr().out

    sweep.sweep(tmp_path, 5, config=QUICKSTART, changes={'log_every': '100'})
    assert len(calls) == 12  # all are finished
    sweep.sweep(tmp_path, 7, config=QUICKSTART, seeds=(0,), changes={'log_every': '100'})
    names = ('mix_confidence', 'cross_confidence', 'logit_both')  # the others are Table 5's
    assert calls[12:] == [f'css_{name}/seed0' for name in names]

    # Trained or scored otherwise they are in the way.
    for key, text, answer in (('steps', '800', '900 there, 800'), ('eval.flip', None, 'False th')):
        with pytest.raises(ValueError, match=f'{key}: {answer}'):
            sweep.sweep(tmp_path, 5, config=QUICKSTART, changes={key: text})
    assert len(calls) == 15


def test_columns_are_the_paper_s_own_where_the_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, '_execute', pretend([]))
    text = sweep.sweep(tmp_path, 1, seeds=(2,), labels=(183,))
    assert '| CSS(mix) | 61.00 (1) | 71.93 ± 1.88 |' in text
    assert '|  | 183 labels | paper, 183 labels |' in text


def test_a_failing_run_is_told_and_the_others_run(tmp_path, monkeypatch, caplog):
    fail = ['css_representation_both/seed1', 'css_mix/seed0', 'css_mix/seed1']
    monkeypatch.setattr(sweep, '_execute', pretend(calls := [], fail))
    given = {'table': 5, 'config': QUICKSTART, 'seeds': (0, 1)}
    with pytest.raises(ChildProcessError, match=r'3 of 8 runs failed: css_mix/seed0, css_repr'):
        sweep.sweep(tmp_path, **given)
    assert len(calls) == 8
    text = (tmp_path / 'table5.md').read_text()
    assert '| logit space | 52.00 ± 2.83 (2) |' in text
    assert '| representation space | 50.00 (1) |' in text
    assert '| mix pseudo-labeling | - |' in text
    told = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert len(told) == 3 and 'css_mix/seed0/log.txt\n  error: no luck' in told[0]

    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    assert ' - ' not in sweep.sweep(tmp_path, **given)
    assert sorted(calls) == sorted(fail)


def test_commands_are_for_what_is_left_and_start_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, '_execute', pretend(calls := []))
    given = {'table': 5, 'config': f'{QUICKSTART}:pretrained=a b.npz', 'seeds': (0,)}
    assert sweep.sweep(tmp_path / 'x', **given, print_commands=True) == ''
    lines = capsys.readouterr().out.splitlines()
    runs = plan(tmp_path / 'x', 5, given['config'])
    here = ('cd', os.getcwd(), '&&')
    assert [tuple(shlex.split(line)) for line in lines] == [here + run.command for run in runs]
    assert not calls and not (tmp_path / 'x').exists()
    sweep._execute(runs[0])
    sweep.sweep(tmp_path / 'x', **given, print_commands=True)
    assert capsys.readouterr().out.splitlines() == lines[1:]


def test_commands_hold_whole_paths(monkeypatch):
    monkeypatch.chdir(ROOT / 'configs')
    run = plan(pathlib.Path('runs'), 5, 'quickstart.py')[0]
    assert run.command[4] == f'{QUICKSTART}:baseline,seed=0'
    assert run.command[-1] == str(ROOT / 'configs' / 'runs' / 'baseline' / 'seed0')


def command(*arguments):
    return [sys.executable, '-m', 'css_jax.main', '--mode=sweep', *map(str, arguments)]


def test_a_sweep_leaves_the_accelerator_to_its_runs(tmp_path):
    """With a platform that there is not, whoever asks for a device fails."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'nowhere'}
    arguments = ('--table=2', '--seeds=0', '--print_commands', f'--workdir={tmp_path}')
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'configs/voc.py:blender,5291,css_mix,seed=0' in done.stdout
    assert len(done.stdout.splitlines()) == 4


CHILD = """
import signal, sys, time
if sys.argv.pop(1) == 'told':
    signal.signal(signal.SIGINT, signal.default_int_handler)
print('up', sys.argv[2], flush=True)  # alone, also where the sweep is one task of a cluster
try:
    time.sleep(float(sys.argv[1]))
except KeyboardInterrupt:
    print('told')
"""
UP = ['up', '--process_count=1']


def execute(run, number, handlers):
    """Runs a process as a sweep does, and sends the sweep a signal; gives what the run said."""
    log = run.folder / sweep.OUTPUT
    log.unlink(missing_ok=True)

    def send():
        while not (log.exists() and 'up' in log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    before = {known: signal.signal(known, handler) for known, handler in handlers.items()}
    sender.start()
    try:
        code = sweep._execute(run)
    except KeyboardInterrupt:
        code = 'stopped'
    finally:
        sender.join()
        after = {known: signal.signal(known, handler) for known, handler in before.items()}
    assert after == handlers
    return code, log.read_text().split()


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGTERM])
def test_a_run_ends_with_its_sweep(number, tmp_path):
    """Also where the terminal is closed, unless nohup has it ignored."""
    run = plan(tmp_path, 5, QUICKSTART)[0]
    run = run._replace(command=(sys.executable, '-c', CHILD, 'told', '20'))
    said = execute(run, number, {number: lambda *_: None})  # which would go on
    assert said == ('stopped', [*UP, 'told'])
    run = run._replace(command=(*run.command[:-1], '0.5'))
    assert execute(run, number, {number: signal.SIG_IGN}) == (0, UP)


def test_a_run_that_ignores_ctrl_c_is_stopped_at_once(tmp_path):
    run = plan(tmp_path, 5, QUICKSTART)[0]
    run = run._replace(command=(sys.executable, '-c', CHILD, 'not', '20'))
    start = time.perf_counter()
    ignored = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: None}
    assert execute(run, signal.SIGTERM, ignored) == ('stopped', UP)
    assert time.perf_counter() - start < 10


def test_a_sweep_that_was_stopped_goes_on(tmp_path, data_dir, monkeypatch):
    """With real runs: Ctrl-C at the sweep stops the run, and the same command ends it."""
    monkeypatch.setattr(models, 'build', models.build)  # put back, as the file is read here too
    family = tmp_path / 'family.py'
    # The cheapest method and network there are, whatever the table asks for.
    family.write_text(
        'from css_jax import models\nfrom tests import small, tiny\n\n'
        'models.build = small.small\n\n\ndef get_config(argument):\n'
        "    assert argument == 'css_mix,seed=0'\n    return tiny.get_config('supervised')\n"
    )
    changes = {'data.dir': data_dir, 'steps': '60'}
    given = command('--table=3', f'--config={family}', '--seeds=0', f'--workdir={tmp_path}')
    given += command_line.arguments(changes)
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
    monkeypatch.chdir(ROOT)
    metrics = tmp_path / 'css_mix' / 'seed0' / 'metrics.jsonl'

    pipe = subprocess.PIPE
    first = subprocess.Popen(given, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    while first.poll() is None and not (metrics.exists() and '"step": 7,' in metrics.read_text()):
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate()
    assert first.returncode == 130, said
    assert 'run 1 of 1: css_mix/seed0 · elapsed 00:00' in said
    assert 'the same command resumes' in said
    log = metrics.with_name(sweep.OUTPUT)
    assert '  the run saves its step; Ctrl-C again' in said
    step = re.search(r'stopped by SIGINT after step (\d+), which is saved', log.read_text())[1]
    assert '| CSS (mix) | - |' in (tmp_path / 'table3.md').read_text()

    text = sweep.sweep(tmp_path, 3, config=str(family), seeds=(0,), changes=changes)
    assert f'resuming from step {step}\n' in log.read_text()
    results = json.loads(metrics.with_name('results.json').read_text())
    assert results['step'] == 60
    row = f'| CSS (mix) | {100 * results["miou"]:.2f} (1) | 74.02 | 76.93 | 77.94 | 79.62 |'
    assert row in text
