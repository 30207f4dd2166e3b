"""The runner of the benchmarks: what it writes, and that it loses nothing where a part breaks.

The benchmarks themselves run in tests/benchmarks, by `make soak`.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from benchmarks import run

WHERE = {'platform': 'cpu', 'chip': 'AMD EPYC', 'devices': 1, 'cores': 2, 'versions': {'jax': '1'}}
# Parts that are none: each adds a row, then ends in its own way.
HEAD = """
    import json, os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(__file__ + '.pid', 'w').write(str(os.getpid()))
    lines = open(sys.argv[sys.argv.index('--lines') + 1], 'a', buffering=1)
    lines.write(json.dumps({'caption': 'of', 'row': {'name': 'first', 'ms': 1.5}}) + '\\n')
"""
PARTS = {
    'good': "lines.write(json.dumps({'caption': 'of', 'row': {'name': 'b', 'ms': None}}) + '\\n')",
    'bad': 'lines.write(\'{"caption": "of", "ro\'); raise ValueError',
    'slow': 'time.sleep(600)',
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Replaces the parts; gives the folder of their scripts."""
    for name, end in PARTS.items():
        (tmp_path / f'{name}.py').write_text(textwrap.dedent(HEAD) + end + '\n')
    plan = tuple((name, name, 3 if name == 'slow' else 100) for name in ('slow', 'bad', 'good'))
    monkeypatch.setattr(run, 'FIRST', plan)
    monkeypatch.setattr(run, 'MORE', ())
    monkeypatch.setattr(run, 'NAMES', [name for name, _, _ in plan])
    monkeypatch.setattr(run, 'LEAST', 1)
    monkeypatch.setattr(run, 'PATIENCE', 1)
    monkeypatch.setattr(run, 'command', lambda part: [sys.executable, str(tmp_path / f'{part}.py')])
    monkeypatch.setattr(run, 'describe', lambda seconds: WHERE)
    return tmp_path


def main(folder, *arguments):
    """Runs; gives the exit code, the parts of the file, and the state of the run."""
    code = 0
    try:
        run.main(['--out', str(folder / 'out'), *arguments])
    except SystemExit as stopped:
        code = stopped.code
    results = json.loads((folder / 'out' / 'cpu-amd-epyc.json').read_text())
    return code, results['parts'], results['last_run']['state']


def gone(pid, seconds=10):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_what_fails_or_hangs_is_named_and_the_others_go_on(fakes):
    code, parts, state = main(fakes)
    assert code == 1 and state == 'failed: bad; cut off: slow'
    states = {name: part['state'] for name, part in parts.items()}
    assert states == {'slow': 'cut off after 3 s', 'bad': 'failed with code 1', 'good': 'done'}
    assert gone(int((fakes / 'slow.py.pid').read_text()))  # though it does not hear SIGTERM
    names = {name: [line['row']['name'] for line in part['rows']] for name, part in parts.items()}
    assert names == {'slow': ['first'], 'bad': ['first'], 'good': ['first', 'b']}
    text = (fakes / 'out' / 'cpu-amd-epyc.md').read_text().splitlines()
    assert text.count('| first | 1.500 |') == 3 and '| b | - |' in text
    assert parts['good']['where'] == WHERE and '--size small' in parts['good']['command']


def test_a_later_run_replaces_what_it_measures_and_wipes_nothing(fakes, monkeypatch):
    _, first, _ = main(fakes, '--only', 'good')
    assert list(first) == ['good']
    (fakes / 'good.py').write_text('raise ValueError')
    (fakes / 'bad.py').write_text(textwrap.dedent(HEAD))
    code, second, _ = main(fakes, '--only', 'good,bad')
    assert code == 1 and list(second) == ['bad', 'good']  # in the plan's order
    assert second['bad']['state'] == 'done'
    assert second['good'].pop('later')['state'] == 'failed with code 1'
    assert second['good'] == first['good']
    (fakes / 'good.py').write_text(textwrap.dedent(HEAD))
    code, third, state = main(fakes, '--only', 'good')
    assert (code, state) == (0, 'complete') and third['bad'] == second['bad']
    assert [line['row']['name'] for line in third['good']['rows']] == ['first']
    assert 'later' not in third['good']


def test_at_the_end_of_the_seconds_what_runs_is_stopped_and_the_rest_not_begun(fakes, monkeypatch):
    monkeypatch.setattr(run, 'FIRST', [(name, name, 100) for name in ('good', 'slow', 'bad')])
    monkeypatch.setattr(run, 'ENDING', 1)
    code, parts, state = main(fakes, '--seconds', '4')
    assert code == 0 and state == 'stopped: slow; not reached: bad'
    assert parts['good']['state'] == 'done' and parts['bad']['rows'] == []
    assert gone(int((fakes / 'slow.py.pid').read_text()))


def test_what_is_measured_stays_where_the_runner_is_stopped(fakes):
    program = f"""
        import sys
        from benchmarks import run
        run.FIRST, run.MORE, run.NAMES = [('slow', 'slow', 100)], (), ['slow']
        run.command = lambda part: [sys.executable, {str(fakes / 'slow.py')!r}]
        run.describe = lambda seconds: {WHERE!r}
        run.main(['--out', {str(fakes / 'out')!r}])
    """
    process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(program)], cwd=run.ROOT)
    path, end = fakes / 'out' / 'cpu-amd-epyc.md', time.perf_counter() + 60
    while time.perf_counter() < end and not (path.exists() and '| first |' in path.read_text()):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert '| first | 1.500 |' in path.read_text() and 'broken off' in path.read_text()
    assert gone(int((fakes / 'slow.py.pid').read_text()))


def test_a_part_that_there_is_not_is_named(fakes, capsys):
    with pytest.raises(SystemExit):
        run.main(['--only', 'good,better'])
    assert 'got better, expected some of slow, bad, good' in capsys.readouterr().err
