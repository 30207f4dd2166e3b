"""One process trains in a folder: who comes second is told, and a killed one is no obstacle."""

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from css_jax import config as configs
from css_jax import models, train
from css_jax.data import streams
from css_jax.run import folder as run_folder
from tests import tiny
from tests.conftest import ROOT
from tests.small import small

HOLDER = """
import sys, time
from css_jax.run import folder
with folder.lock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def config(data_dir, monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    config = tiny.get_config('supervised')
    config.data.dir = data_dir
    return config


def test_the_second_writes_nothing(tmp_path, config):
    refused = pytest.raises(BlockingIOError, match=f'another process is training in {tmp_path}')
    with run_folder.lock(tmp_path), refused:
        train.train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.LOCK]
    run_folder.claim(configs.finalise(config), tmp_path)  # free again, and still as good as empty


def test_a_run_has_its_folder_while_it_trains(tmp_path, config, monkeypatch):
    def look(*args, **kwargs):
        with pytest.raises(BlockingIOError), run_folder.lock(tmp_path):
            pass
        raise InterruptedError('looked')

    monkeypatch.setattr(streams, 'train_batches', look)
    with pytest.raises(InterruptedError, match='looked'):
        train.train(config, tmp_path)
    with run_folder.lock(tmp_path):
        pass


def test_a_killed_process_leaves_its_folder_free(tmp_path):
    command = [sys.executable, '-c', HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'held\n'
        with pytest.raises(BlockingIOError), run_folder.lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with run_folder.lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def none(*args):
        raise OSError(errno.ENOTSUP, 'Operation not supported')

    monkeypatch.setattr(fcntl, 'flock', none)
    with run_folder.lock(tmp_path):
        assert 'cannot be locked' in caplog.text


def test_a_folder_that_is_refused_stays_as_it_is(tmp_path, config):
    (tmp_path / 'results.json').write_text('{}')
    with pytest.raises(ValueError, match=r'has results\.json but no config\.json'):
        run_folder.claim(configs.finalise(config), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['results.json']
