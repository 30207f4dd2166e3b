"""The runner of the benchmarks: what it writes, and that it loses nothing where a part breaks."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from benchmarks import bars, kernels, machine, parts, run, step, tables, timing
from tests.conftest import ROOT

WHERE = {
    'platform': 'cpu',
    'chip': 'AMD EPYC',
    'devices': 1,
    'cores': 2,
    'versions': {'Python': '3.11', 'jax': '0.10.2'},
}
# Parts that are none: each adds a row, then ends in its own way.
HEAD = """
    import argparse, json, os, pathlib, signal, sys, time
    parser = argparse.ArgumentParser()
    for flag in ('size', 'seconds', 'lines'):
        parser.add_argument('--' + flag)
    flags = parser.parse_args()
    lines = open(flags.lines, 'a', buffering=1)
    lines.write(json.dumps({'title': 'A part'}) + '\\n')
    lines.write(json.dumps({'caption': 'of', 'row': {'name': 'first', 'ms': 1.5}}) + '\\n')
"""
PARTS = {
    'good': "lines.write(json.dumps({'caption': 'of', 'row': {'name': 'b', 'ms': None}}) + '\\n')",
    'bad': 'raise ValueError',
    'killed': 'lines.write(\'{"caption": "of", "ro\'); os.kill(os.getpid(), signal.SIGKILL)',
    'slow': "open(__file__ + '.pid', 'w').write(str(os.getpid())); time.sleep(60)",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Replaces the parts; gives the folder of their scripts."""
    folder = tmp_path / 'parts'
    folder.mkdir()
    for name, end in PARTS.items():
        (folder / f'{name}.py').write_text(textwrap.dedent(HEAD) + end + '\n')
    monkeypatch.setattr(run, 'SECONDS', dict.fromkeys(PARTS, (5, 5)))
    monkeypatch.setattr(run, 'command', lambda part: [sys.executable, str(folder / f'{part}.py')])
    monkeypatch.setattr(timing, 'isolated', lambda function: WHERE)
    return folder


def written(folder):
    """What a run has written: the results, and the lines of the tables."""
    (path,) = folder.glob('*.json')
    return json.loads(path.read_text()), path.with_suffix('.md').read_text().splitlines()


def test_a_part_that_fails_is_named_and_the_others_go_on(fakes, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(['--out', str(tmp_path / 'out'), '--only', 'bad,killed,good'])
    assert stopped.value.code == 1
    results, lines = written(tmp_path / 'out')
    states = {part: about['state'] for part, about in results['parts'].items()}
    assert states == {'bad': 'failed with code 1', 'killed': 'failed with code -9', 'good': 'done'}
    assert [(r['part'], r['row']['name']) for r in results['rows']] == [
        ('bad', 'first'),
        ('killed', 'first'),
        ('good', 'first'),
        ('good', 'b'),
    ]
    assert (
        results['state']
        == 'failed: bad, killed'
        == capsys.readouterr().out.split('\n')[-2].split(' after')[0]
    )
    assert results['where'] == WHERE and results['size'] == 'small'
    assert results['command'].endswith('--only bad,killed,good')
    assert lines.count('| first | 1.500 |') == 3 and '| b | - |' in lines
    assert (
        '## A part' in lines
        and '`python -m benchmarks.killed --size small`: failed with code -9.' in lines
    )


def test_a_part_that_hangs_is_stopped_and_nothing_else_begun_late(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'LEAST', 1)
    monkeypatch.setattr(run, 'QUICK', 2)
    run.main(['--out', str(tmp_path / 'out'), '--quick', '--only', 'slow,good'])
    results, _ = written(tmp_path / 'out')
    assert results['parts']['slow']['state'].startswith('cut off after ')
    assert results['parts']['good']['state'] == 'not begun'
    assert [r['row']['name'] for r in results['rows']] == ['first']
    assert gone(int((fakes / 'slow.py.pid').read_text()))


def gone(pid, seconds=10):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_what_is_measured_stays_where_the_runner_is_killed(fakes, tmp_path, number):
    out = tmp_path / 'out'
    program = f"""
        import sys
        from benchmarks import run, timing
        run.SECONDS = {{'slow': (9, 9)}}
        run.command = lambda part: [sys.executable, {str(fakes / 'slow.py')!r}]
        timing.isolated = lambda function: {WHERE!r}
        run.main(['--out', {str(out)!r}])
    """
    command = [sys.executable, '-c', textwrap.dedent(program)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.perf_counter() + 60
    while time.perf_counter() < end and not (
        any('| first |' in path.read_text() for path in out.glob('*.md'))
        and (fakes / 'slow.py.pid').exists()
    ):
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait(timeout=20)
    pid = int((fakes / 'slow.py.pid').read_text())
    if number == signal.SIGTERM:
        assert code == 128 + number and gone(pid)
    else:
        os.kill(pid, signal.SIGKILL)
    results, lines = written(out)
    assert [r['row'] for r in results['rows']] == [{'name': 'first', 'ms': 1.5}]
    assert results['state'] == 'broken off' and '| first | 1.500 |' in lines


def test_results_of_an_earlier_run_stay(fakes, tmp_path):
    for _ in range(3):
        run.main(['--out', str(tmp_path), '--only', 'good'])
    date = time.strftime('%Y-%m-%d', time.gmtime())
    names = sorted(path.name for path in tmp_path.glob('*.json'))
    assert names == [f'{date}_cpu-amd-epyc_small{n}.json' for n in ('', '_2', '_3')]


def test_a_part_that_there_is_not_is_named(fakes, capsys):
    with pytest.raises(SystemExit):
        run.main(['--only', 'good,better'])
    assert 'got better, expected some of good, bad, killed, slow' in capsys.readouterr().err


def test_a_part_named_twice_runs_once(fakes, tmp_path):
    run.main(['--out', str(tmp_path / 'out'), '--only', 'good,good'])
    results, _ = written(tmp_path / 'out')
    assert [r['row']['name'] for r in results['rows']] == ['first', 'b']


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_runs(fakes, tmp_path, capsys):
    taken = tmp_path / 'file'
    taken.write_text('')
    with pytest.raises(SystemExit) as stopped:
        run.main(['--out', str(taken), '--only', 'slow'])
    assert str(stopped.value).startswith(f'--out {taken}: ') and '\n' not in str(stopped.value)
    assert not (fakes / 'slow.py.pid').exists() and capsys.readouterr().out == ''


def test_every_part_is_a_benchmark():
    for part in run.SECONDS:
        path = pathlib.Path(ROOT, 'benchmarks', f'{part}.py')
        assert 'timing.main(' in path.read_text(), part


def test_quick_leaves_time_to_start_and_to_end():
    quick = sum(seconds for seconds, _ in run.SECONDS.values())
    assert quick <= 400 < run.QUICK <= 470


def test_names_for_files():
    assert machine.slug(WHERE) == 'cpu-amd-epyc'
    assert machine.slug({**WHERE, 'platform': 'gpu', 'chip': 'NVIDIA H200'}) == 'gpu-nvidia-h200'


def test_tables_begin_anew_where_caption_or_columns_change():
    pairs = [('a', {'x': 1}), ('a', {'x': 123.4}), ('a', {'y': 'z'}), ('b', {'y': float('nan')})]
    assert list(tables.lines(pairs)) == [
        *['', 'a', '', '| x |', '|---:|', '| 1 |', '| 123 |'],
        *['', 'a', '', '| y |', '|---|', '| z |', '', 'b', '', '| y |', '|---:|', '| - |'],
    ]


# The figures to reach.


def results(chip='NVIDIA H200', platform='gpu', size='real', rows=()):
    rows = [{'part': part, 'caption': caption, 'row': row} for part, caption, row in rows]
    return {'where': {**WHERE, 'chip': chip, 'platform': platform}, 'size': size, 'rows': rows}


STEP = {'step': step.BFLOAT16, 'images': '16 + 16', 'ms': 160.0, 'pairs/s': 100.0, 'peak MiB': 9e4}
REST = {'part': parts.REST, 'of the step': 0.13}


def figures(given):
    return {(r['what'], r['bar']): (r['measured'], r['reached']) for _, r in bars.rows(given)}


def test_bars_say_what_was_reached():
    out = {**STEP, 'images': '8 + 8', 'ms': 1.0}
    table = figures(
        results(
            rows=[
                ('step', 'c', {**STEP, 'step': step.BOTH, 'pairs/s': None}),
                ('step', 'c', out),
                ('step', 'c', STEP),
                ('parts', f'parts of {step.BFLOAT16}, 16', REST),
                ('startup', 'c', {'cache': 'cold', 'first step done after s': 119.0}),
            ]
        )
    )
    assert table['a step, teacher on unlabelled', '<= 168 ms'] == ('160', 'yes')
    assert table['a step, teacher on both', '>= 86 pairs/s'] == ('not measured', '-')
    assert table[parts.REST, '<= 12 % of the step'] == ('13', 'no')
    assert table['first step, empty cache', '<= 120 s'] == ('119', 'yes')
    assert table['first step, filled cache', '<= 20 s'] == ('not measured', '-')
    assert table['memory, VOC 16 + 16', '<= 80 GB'] == ('94.4', 'no')


def test_what_ran_out_of_memory_is_not_reached():
    lost = {'ms': step.OUT_OF_MEMORY, 'pairs/s': None, 'img/s': None, 'peak MiB': None}
    one, other = bars.REMAT
    given = [
        ('step', 'c', {**STEP, **lost}),
        ('step', 'c', {**STEP, 'images': '8 + 8'}),
        ('step', 'c', {**STEP, **lost, 'step': one}),
        ('step', 'c', {**STEP, 'step': other, 'peak MiB': 2e4}),
        ('parts', f'parts of {step.BFLOAT16}, 16', {'part': step.OUT_OF_MEMORY}),
        ('data', 'crops of 512', {'images/s': 900.0, 'images/s a core pair': 300.0}),
    ]
    table = figures(results(rows=given))
    for bar in (
        ('a step, teacher on unlabelled', '<= 168 ms'),
        ('the same', '>= 95 pairs/s'),
        ('memory, VOC 16 + 16', '<= 80 GB'),
        (parts.REST, '<= 12 % of the step'),
        ('the same, ahead on 2 cores', '>= 1 times the step'),
    ):
        assert table[bar] == ('out of memory', 'no')
    assert table['memory, VOC 16 + 16, remat', '<= 24 GB'] == ('21', 'yes')  # of the one that ran
    assert table['memory, Cityscapes 8 + 8', '<= 80 GB'] == ('not measured', '-')


def test_the_input_is_read_from_its_own_columns():
    row = {'images/s': 800.0, 'images/s a core pair': 240.0, 'other images/s': 9e9}
    rows = [('step', 'c', {**STEP, 'img/s': 200.0}), ('data', 'crops of 512', row)]
    table = figures(results(rows=rows))
    assert table['host input, crops of 512', '>= 250 img/s a core pair'] == ('240', 'no')
    assert table['the same, ahead on 2 cores', '>= 1 times the step'] == ('4', 'yes')


def test_the_cases_of_bars_come_first():
    needed = {*step.HEADLINES, *bars.REMAT, step.CITYSCAPES}
    assert set(list(step.CASES)[: len(needed)]) == needed


@pytest.mark.parametrize(
    'given', [{'platform': 'cpu', 'chip': 'AMD'}, {'size': 'small'}, {'chip': 'NVIDIA A100'}]
)
def test_a_bar_of_another_chip_is_not_measured(given):
    table = figures(results(**given, rows=[('step', 'c', STEP)]))
    assert table['a step, teacher on unlabelled', '<= 168 ms'] == ('not measured', '-')


def test_parts_are_added_up():
    spent = {'teacher': 10.0, 'student': 70.0, 'views': 15.0, parts.EMA: 2.0, parts.WHOLE: 100.0}
    account = {'bound ms': 5.0, 'GFLOP': 100.0, 'compile s': 1.0, 'temporary MiB': 3.0}
    found = parts.table(spent, dict.fromkeys(spent, account), ('teacher', 'student'))
    shares = {row['part']: row['of the step'] for row in found}
    assert shares[parts.SUM] == pytest.approx(0.95)
    assert shares[parts.NETWORKS] == pytest.approx(0.8)
    assert shares[parts.REST] == pytest.approx(0.15)
    assert shares[parts.EMA] == pytest.approx(0.02)
    (whole,) = (row for row in found if row['part'] == parts.SUM)
    assert whole['of the bound'] == pytest.approx(15 / 95) and whole['TFLOP/s'] == pytest.approx(
        300 / 95
    )


# Traces.


def trace(*lines):
    """A trace of (process, thread, name, operation, start, length)."""
    events = []
    for process, thread, name, operation, start, length in lines:
        pid, tid = f'{process}', f'{thread}'
        events += [
            {'ph': 'M', 'name': 'process_name', 'pid': pid, 'args': {'name': process}},
            {'ph': 'M', 'name': 'thread_name', 'pid': pid, 'tid': tid, 'args': {'name': thread}},
            {'ph': 'X', 'pid': pid, 'tid': tid, 'name': name, 'ts': start, 'dur': length}
            | ({'args': {'hlo_op': operation}} if operation else {}),
        ]
    return {'traceEvents': events}


GPU = ('/device:GPU:0', 'Stream #16(Compute)')


def test_kernels_are_those_of_streams():
    found = kernels.events(
        trace(
            (*GPU, 'sm90_xmma_fprop_implicit_gemm', 'custom-call.3', 0, 6),
            (*GPU, 'loop_add_fusion', 'loop_add_fusion', 5, 3),
            (*GPU, 'nvjet_tst_128x256_64x4_2x1_v_bz_NNT', 'custom-call.4', 8, 2),
            ('/device:GPU:0', 'XLA Ops', 'custom-call.3', 'custom-call.3', 0, 6),
            ('/host:CPU', 'python', 'dispatch', 'jit_step', 0, 50),
        )
    )
    assert [kernels.group(event) for event in found] == ['convolution', kernels.OTHER, 'product']
    assert kernels.covered(found) == 10


def test_on_a_cpu_loops_do_not_count_beside_what_runs_in_them():
    found = kernels.events(
        trace(
            ('/host:CPU', 'tf_XLAEigen/1', 'while.3', 'while.3', 0, 10),
            ('/host:CPU', 'tf_XLAEigen/1', 'sort.1', 'sort.1', 2, 4),
            ('/host:CPU', 'tf_XLAEigen/2', 'ThunkExecutor', '', 0, 10),
        )
    )
    assert [(event.name, kernels.group(event)) for event in found] == [('sort.1', 'sort')]


def test_the_table_of_kernels_adds_up():
    found = [kernels.Event(f'fusion.{i}', f'fusion.{i}', 10 * i, 5) for i in range(50)]
    rows = kernels.table(found, 100.0, 5)
    shares = {row['kernels']: row['share'] for row in rows[:3]}
    assert shares == {f'all: {kernels.OTHER}': 0.5, kernels.SUM: 0.5, kernels.COVERED: 0.5}
    assert sum(row['share'] for row in rows[3:]) == pytest.approx(0.5)
    assert rows[-1]['kernels'] == '10 others' and len(rows) == 3 + 40 + 1


# The settings of the step.


@pytest.mark.parametrize('size', ['real', 'small'])
@pytest.mark.parametrize('case', step.CASES)
def test_every_case_is_a_configuration(size, case):
    config = step.case_configuration(size, case)
    dtype = 'float32' if case.startswith('float32') else 'bfloat16'
    assert config.model.dtype == dtype
    batches = {stream.batch_size for stream in config.data.streams.values()}
    assert batches == {step.batch_of(size, case)}


def test_the_papers_settings():
    voc, both, city = (
        step.case_configuration('real', case) for case in (*step.HEADLINES, step.CITYSCAPES)
    )
    assert (voc.teacher.labelled_pass, both.teacher.labelled_pass) == (False, True)
    for config, stem, classes, crop, batch in (
        (voc, 'conv7', 21, (512, 512), 16),
        (city, 'deep', 19, (768, 768), 8),
    ):
        assert config.model.backbone == 'resnet101' and config.model.output_stride == 8
        assert (config.model.stem, config.num_classes) == (stem, classes)
        for stream in config.data.streams.values():
            assert (tuple(stream.crop), stream.batch_size) == (crop, batch)


def counted(last):
    yield from range(last)
    if last > 1:
        raise ValueError('on purpose')


def test_a_process_gives_its_rows_one_by_one():
    assert list(timing.streamed(counted, 1)) == [0]
    found = timing.streamed(counted, 2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(RuntimeError, match='counted: failed with code 1'):
        next(found)


def test_functions_are_timed_in_turns():
    calls = []
    runs = {'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}
    spent = timing.interleaved(runs, seconds=0)
    assert list(spent) == ['a', 'b'] and min(spent.values()) >= 0
    assert calls == ['a', 'b'] * 5
