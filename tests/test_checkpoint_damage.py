"""Damaged checkpoints: named, and the one before is used; never a crash, never wrong numbers."""

import contextlib
import json
import logging
import os
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import state
from css_jax.run import checkpoint, checksums

MOVED = checkpoint.FOLDER + checksums.SUFFIX
# What a read that fails leaves behind in the threads of the array format.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def example(step):
    """A state of a few thousand numbers that zstd cannot make smaller."""
    rng = np.random.default_rng(step)
    params = {
        'kernel': jnp.asarray(rng.normal(size=(64, 64)).astype(np.float32)),
        'bias': jnp.ones(5),
    }
    student = state.Variables(params, {'mean': jnp.zeros(5)})
    teacher = jax.tree.map(lambda x: x + step, student)
    return state.TrainState(jnp.int32(step), student, teacher, {}, {}, jax.random.key(step))


def save(workdir, steps=(1, 2)):
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        for step in steps:
            checkpoints.save(step, example(step), {'of': step})
            checkpoints.score(step, step / 10)


def restore(workdir, read_only=True):
    """The step taken and whether it has the bits that were saved."""
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only)) as checkpoints:
        step = checkpoints.latest_step
        assert checkpoints.meta(step) == {'of': step}
        restored = checkpoints.restore(example(0))
    assert int(restored.step) == step
    ours, theirs = (x.replace(key=jax.random.key_data(x.key)) for x in (restored, example(step)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    return step


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('saved')
    save(workdir)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, 'css_jax')
    return lambda: [r.getMessage() for r in caplog.records if r.name == 'css_jax']


def delete(path):
    path.unlink()


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def zero_in_the_middle(path):
    data = path.read_bytes()
    start = len(data) // 2
    path.write_bytes(data[:start] + bytes(min(16, len(data) - start)) + data[start + 16 :])


def garbage(path):
    path.write_text('{"a": [1, 2')


DAMAGES = (delete, halve, empty, zero, zero_in_the_middle, garbage)


@pytest.mark.parametrize('harm', DAMAGES)
def test_any_one_file(harm, saved, tmp_path, warnings, caplog):
    files = sorted(p for p in (saved / checkpoint.FOLDER / '2').rglob('*') if p.is_file())
    names = [str(path.relative_to(saved)) for path in files]
    assert len(names) > 10 and f'{checkpoint.FOLDER}/2/{checksums.SUMS}' in names
    taken = {}
    for name in names:
        caplog.clear()
        workdir = tmp_path / name.replace('/', '_')
        shutil.copytree(saved, workdir)
        harm(workdir / name)
        taken[name] = restore(workdir)
        if taken[name] == 1:
            (warning,) = warnings()
            assert f'{checkpoint.FOLDER}/2 is damaged: ' in warning and 'step 1 is used' in warning
        else:
            assert not warnings()
        assert restore(workdir, read_only=False) == taken[name]
        shutil.rmtree(workdir)
    # What is not noticed is not needed.
    spared = {name.split('/')[-1] for name, step in taken.items() if step == 2}
    needless = {'_CHECKPOINT_METADATA', 'commit_success.txt', checksums.SUMS, checkpoint.SCORES}
    assert spared <= needless
    assert harm is delete or checksums.SUMS not in spared


@pytest.mark.parametrize('whole', [True, False], ids=['state', 'everything'])
def test_folders_that_are_gone(whole, workdir, warnings):
    folder = workdir / checkpoint.FOLDER / '2'
    shutil.rmtree(folder / 'state' if whole else folder)
    if not whole:
        folder.mkdir()
    assert restore(workdir) == 1
    assert len(warnings()) == 1 and 'checkpoints/2 is damaged' in warnings()[0]
    assert folder.exists()
    assert restore(workdir, read_only=False) == 1
    assert not folder.exists() and (workdir / MOVED / '2').is_dir()


def test_training_goes_on_past_a_damaged_step(workdir, warnings):
    folder = workdir / checkpoint.FOLDER
    for count in range(2):
        halve(folder / '2' / 'state' / '_METADATA')
        names = sorted(p.name for p in (folder / '2').iterdir())
        with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
            assert checkpoints.latest_step == 1 and checkpoints.steps == [1]
            assert checkpoints.best() == (1, 0.1)
            assert int(checkpoints.restore(example(0)).step) == 1
            checkpoints.save(2, example(2), {'of': 2})
            checkpoints.score(2, 0.2)
        moved = workdir / MOVED / ('2.1' if count else '2')
        assert sorted(p.name for p in moved.iterdir()) == names
        assert len(warnings()) == count + 1
        assert f'{folder / "2"} is damaged: state/_METADATA has ' in warnings()[-1]
        assert f'moved to {moved}; the newest is step 1' in warnings()[-1]
        assert restore(workdir) == 2


def test_what_is_older_than_the_newest_is_not_in_the_way_either(workdir, warnings):
    folder = workdir / checkpoint.FOLDER
    garbage(folder / '1' / checkpoint.SCORES)
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        assert checkpoints.best() == (2, 0.2)
    assert 'it does not count as the best' in warnings()[-1]
    garbage(folder / '1' / 'meta' / 'metadata')
    assert restore(workdir, read_only=False) == 2
    assert any('checkpoints/1 is damaged: meta/metadata' in warning for warning in warnings())
    assert (workdir / MOVED / '1').is_dir() and not (folder / '1').exists()


@pytest.mark.parametrize('read_only', [True, False])
def test_without_a_readable_one_nothing_starts_anew(read_only, workdir):
    folder = workdir / checkpoint.FOLDER
    delete(folder / '1' / 'state' / 'manifest.ocdbt')
    empty(folder / '2' / 'meta' / 'metadata')
    assert checkpoint.exists(workdir)
    named = (
        r'none of .*checkpoints is readable: step 2: meta/metadata has 0 bytes, .*; step 1: state'
    )
    with pytest.raises(ValueError, match=named):
        restore(workdir, read_only)
    with pytest.raises(ValueError, match=named):
        checkpoint.find(workdir, 'last')
    assert sorted(path.name for path in folder.iterdir()) == ['1', '2']


def test_evaluation_asks_for_a_readable_one(workdir, warnings):
    folder = workdir / checkpoint.FOLDER
    halve(max((folder / '2' / 'state').rglob('*'), key=lambda path: path.stat().st_size))
    assert checkpoint.find(workdir, 'last') == 1
    assert 'checkpoints/2 is damaged: state/' in warnings()[0] and 'step 1 is used' in warnings()[0]
    for which in ('2', 'best'):
        with pytest.raises(ValueError, match=rf"'{which}' of .*, step 2, is damaged: .* are \[1\]"):
            checkpoint.find(workdir, which)
    assert checkpoint.find(workdir, '1') == 1


def test_the_checkpoints_of_an_older_version_are_read(workdir, warnings):
    folder = workdir / checkpoint.FOLDER
    for step in ('1', '2'):
        (folder / step / checksums.SUMS).unlink()
    assert restore(workdir) == restore(workdir, read_only=False) == 2
    assert checkpoint.find(workdir, 'best') == 2 and not warnings()
    halve(max((folder / '2' / 'state').rglob('*'), key=lambda path: path.stat().st_size))
    assert restore(workdir) == 1
    assert 'checkpoints/2 is damaged' in warnings()[0]


class Trap:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ('touch planted',)


def test_planted_code_is_not_run(saved, tmp_path, monkeypatch):
    """In every file of a checkpoint, and without checksums that tell it."""
    monkeypatch.chdir(tmp_path)
    files = [p for p in (saved / checkpoint.FOLDER / '2').rglob('*') if p.is_file()]
    for file in [file for file in files if file.name != checksums.SUMS]:
        shutil.copytree(saved, tmp_path / 'run')
        for sums in (tmp_path / 'run').rglob(checksums.SUMS):
            sums.unlink()
        (tmp_path / 'run' / file.relative_to(saved)).write_bytes(pickle.dumps(Trap()))
        try:
            assert restore(tmp_path / 'run') in (1, 2)
        except ValueError as error:
            assert re.match(r'checkpoint .*/2 cannot be read: .', str(error))
        shutil.rmtree(tmp_path / 'run')
    assert not (tmp_path / 'planted').exists()


def test_another_shape_is_no_damage(workdir, warnings):
    other = example(0)
    other.student.params['bias'] = jnp.ones(6)
    other.student.params['extra'] = jnp.ones(2)
    del other.teacher.params['bias']
    for read_only in (True, False):
        with contextlib.closing(checkpoint.Checkpoints(workdir, read_only)) as checkpoints:
            with pytest.raises(ValueError) as error:
                checkpoints.restore(other)
            assert 'checkpoints/2 is of another state: ' in str(error.value)
            for difference in (
                'student/params/bias: (5,) there, (6,) here',
                'student/params/extra: nothing there, (2,) here',
                'teacher/params/bias: (5,) there, nothing here',
            ):
                assert difference in str(error.value)
    with pytest.raises(ValueError, match=r'student/params/bias: \(5,\) there, \(6,\) here'):
        checkpoint.restore_network(workdir, 2, other.student, 'student')
    assert not warnings() and not (workdir / MOVED).exists()


def test_zeros_that_the_array_format_does_not_notice(tmp_path, warnings):
    """Why there are checksums: somewhere in a file a page of zeros reads as numbers."""
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(512, 512)).astype(np.float32))
    large = example(2)
    large.student.params['kernel'] = kernel
    save(tmp_path, [1])
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(2, large, {'of': 2})
    folder = tmp_path / checkpoint.FOLDER / '2'
    largest = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    data = largest.read_bytes()
    silent = 0
    for tenth in range(1, 10):
        start = len(data) * tenth // 10
        largest.write_bytes(data[:start] + bytes(4096) + data[start + 4096 :])
        with contextlib.suppress(Exception):
            read = checkpoint.restore_arrays(tmp_path, 2, ['student'])['student']
            silent += not np.array_equal(read['params/kernel'], kernel)
        assert restore(tmp_path) == 1
    assert silent and len([line for line in warnings() if 'is damaged' in line]) == 9


def test_checksums_say_what_differs(tmp_path):
    (tmp_path / 'a').write_text('one')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'c').write_bytes(bytes(2**16 + 1))
    (tmp_path / 'free').write_text('x')
    checksums.sum_up(tmp_path, ['free'])
    assert json.loads((tmp_path / checksums.SUMS).read_text())['a'] == [3, 0x7A6C86F1]
    (tmp_path / 'free').write_text('y')
    assert checksums.difference(tmp_path) is None
    (tmp_path / 'b' / 'c').write_bytes(bytes(2**16) + b'1')
    assert checksums.difference(tmp_path, whole=False) is None
    assert checksums.difference(tmp_path) == 'b/c does not have the bytes that were written'
    (tmp_path / 'a').write_text('two')
    assert checksums.difference(tmp_path, whole=False).startswith('a does not have')
    (tmp_path / 'a').write_text('three')
    assert checksums.difference(tmp_path) == 'a has 5 bytes, expected 3'
