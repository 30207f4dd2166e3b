"""The package as pip installs it: both of its names, in a folder without the checkout."""

import os
import subprocess
import sys

import pytest

from css_jax import __version__, cli
from css_jax.config import command_line
from css_jax.modes import MODES
from tests.conftest import OFFLINE, ROOT

TINY = (
    '--config.steps=2', '--config.eval.batch_size=50', '--config.model.width=0.125',
    '--config.data.streams.labelled.batch_size=2', '--config.data.streams.labelled.crop=32,32',
)  # fmt: skip
FILES = ('pyproject.toml', 'requirements.txt', 'LICENSE')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Where the package is installed, without what it depends on, which is there."""
    source, folder = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    for name in (
        'css_jax',
        'configs',
        'data_prep',
        'pyproject.toml',
        'requirements.txt',
        'LICENSE',
    ):
        (source / name).symlink_to(ROOT / name)
    pip = (sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps')
    command = [*pip, '--no-build-isolation', '--target', folder, source]
    subprocess.run(command, check=True, timeout=300)
    return folder


def finding(site):
    """An environment whose Python finds the package there, and has no network."""
    return {**os.environ, 'PYTHONPATH': f'{site}{os.pathsep}{OFFLINE}'}


def run(site, cwd, *arguments):
    """What the command prints, and its exit status, in a folder that is not the checkout."""
    command = [sys.executable, site / 'bin' / 'css-jax', *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=finding(site), capture_output=True, text=True, timeout=300
    )
    return done.stdout + done.stderr, done.returncode


def test_two_steps_in_an_empty_folder(site, tmp_path, data_dir):
    data = f'--config.data.dir={data_dir}'
    out, status = run(
        site, tmp_path, 'train', '--config=quickstart:supervised', '--workdir=run', data, *TINY
    )
    assert status == 0, out
    assert 'written: run/results.json' in out
    assert not [path for path in tmp_path.iterdir() if path.name != 'run']
    # By the installed files, not by those of the checkout.
    code = 'import css_jax, configs, data_prep; print(css_jax.__file__, configs.__file__)'
    command = [sys.executable, '-c', code]
    there = subprocess.run(
        command, cwd=tmp_path, env=finding(site), capture_output=True, text=True, check=True
    )
    assert there.stdout.count(str(site)) == 2


def test_the_command_names_what_there_is(capsys, monkeypatch):
    def said(*arguments):
        monkeypatch.setattr(sys, 'argv', ['css-jax', *arguments])
        try:
            cli.main()
        except SystemExit as end:
            print(end.code)
        return capsys.readouterr().out

    assert said('--version') == f'css_jax {__version__}\n'
    for arguments in ((), ('--help',)):
        text = said(*arguments)
        assert all(f'{mode} ' in text for mode in MODES) and 'voc' in text
    assert said('trian').startswith("error: css-jax: got 'trian', expected one of train, evaluate")
    assert 'expected one of ade20k, camvid' in said('prepare')
    assert "got 'shpes', expected one of ade20k, camvid" in said('prepare', 'shpes')
    assert 'usage: python -m data_prep.camvid' in said('prepare', 'camvid', '--help')


def test_a_configuration_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = command_line.names()
    assert {'voc', 'quickstart', 'folder'} <= set(names) and not {'tables', 'stored'} & set(names)
    expected = command_line.load(str(ROOT / 'configs/voc.py') + ':classic,92,css_mix')
    for path in ('voc:classic,92,css_mix', 'configs/voc.py:classic,92,css_mix'):
        assert command_line.load(path) == expected
    with pytest.raises(FileNotFoundError, match="no file 'vok'; did you mean 'voc'"):
        command_line.load('vok')
    (tmp_path / 'voc').write_text('x = 1')  # what is there comes first
    with pytest.raises(ValueError, match='expected a file of Python'):
        command_line.load('voc')


@pytest.mark.soak
def test_an_empty_environment_gets_all_it_needs(tmp_path):
    """From the package index, which has to be reachable: of all tests, this one has a network."""
    environment = {**os.environ, 'TFDS_DATA_DIR': str(tmp_path / 'data')}
    environment.pop('PYTHONPATH')
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True, timeout=300)
    python = tmp_path / 'env' / 'bin' / 'python'
    install = [python, '-m', 'pip', 'install', '-q', ROOT]
    subprocess.run(install, env=environment, check=True, timeout=900)
    command = [
        tmp_path / 'env' / 'bin' / 'css-jax', 'train', '--config=quickstart:supervised',
        '--workdir=run', *TINY,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'written: run/results.json' in done.stdout
