"""What is kept: the latest two and the best; a step is never saved twice; what save leaves free."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import parallel, state
from css_jax.run import checkpoint, checksums


def fake(step):
    student = state.Variables({'w': jnp.full(3, -float(step))}, {})
    teacher = state.Variables({'w': jnp.full(3, float(step))}, {})
    return state.TrainState(jnp.int32(step), student, teacher, {}, {}, jnp.zeros(2, jnp.uint32))


def test_latest_two_and_best_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest_step is None and checkpoints.best() is None
    for step in range(1, 7):
        checkpoints.save(step, fake(step), {'split_hash': 'x'})
        assert checkpoints.lacks_score(step)
        if step in (2, 4):
            checkpoints.score(step, {2: 0.7, 4: 0.5}[step])
    assert checkpoints.best() == (2, 0.7)
    assert checkpoints.steps == [2, 5, 6]
    assert checkpoints.latest_step == 6
    assert checkpoints.restore(fake(0)).teacher.params['w'][0] == 6
    with pytest.raises(RuntimeError, match='step 6 was not saved'):
        checkpoints.save(6, fake(6), {})
    checkpoints.close()

    assert checkpoint.find(tmp_path, 'best') == 2
    assert checkpoint.find(tmp_path, '5') == 5
    teacher = checkpoint.restore_network(tmp_path, 2, fake(0).teacher)
    assert teacher.params['w'][0] == 2
    student = checkpoint.restore_network(tmp_path, 2, fake(0).student, 'student')
    assert student.params['w'][0] == -2


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = checkpoint.Checkpoints('run')
    checkpoints.save(1, fake(1), {'split_hash': 'x'})
    checkpoints.close()
    assert checkpoint.find('run', 'last') == 1
    (tmp_path / 'run' / checkpoint.FOLDER / '1' / checksums.SUMS).unlink()  # Orbax reads it then
    assert checkpoint.find('run', 'last') == 1


def test_a_folder_that_has_moved_works(tmp_path):
    """Nothing that is read names the place or the machine."""
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / 'there')) as checkpoints:
        checkpoints.save(1, fake(1), {'split_hash': 'x'})
    (tmp_path / 'there').rename(tmp_path / 'here')
    for path in (tmp_path / 'here').rglob('*'):
        if path.is_file() and path.name != 'commit_success.txt':  # Orbax writes it for people
            assert str(tmp_path / 'there').encode() not in path.read_bytes(), path
    assert checkpoint.find(tmp_path / 'here', 'last') == 1
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / 'here')) as checkpoints:
        assert checkpoints.restore(fake(0)).teacher.params['w'][0] == 1
        checkpoints.save(2, fake(2), {})
        assert checkpoints.steps == [1, 2]


def test_reading_beside_a_run_that_trains(tmp_path, monkeypatch, caplog):
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, fake(step), {})
            checkpoints.score(step, 0.3 / step)
    folder = tmp_path / checkpoint.FOLDER
    # The next step as it is under way: some of its files, under another name.
    shutil.copytree(folder / '2' / 'meta', folder / '3.orbax-checkpoint-tmp-7' / 'meta')
    # And one that is removed once it was listed.
    monkeypatch.setattr(checksums, 'steps', lambda at: [1, 2, 3] if at == folder else [])
    assert checkpoint.find(tmp_path, 'last') == 2
    assert checkpoint.find(tmp_path, 'best') == 1
    assert not [r for r in caplog.records if r.name == 'css_jax']
    assert (folder / '3.orbax-checkpoint-tmp-7').exists()
    with pytest.raises(FileNotFoundError, match=r'checkpoints/3 is gone: a run that trains keeps'):
        checkpoint.restore_network(tmp_path, 3, fake(0).teacher)
    with pytest.raises(FileNotFoundError, match=r'checkpoints/3 is gone'):
        checkpoint.restore_arrays(tmp_path, 3, ['memory'])


def test_the_newest_of_equals_is_the_best(tmp_path):
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        for step, miou in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6)):
            checkpoints.save(step, fake(step), {})
            checkpoints.score(step, miou)
        assert checkpoints.best() == (3, 0.7)
        assert checkpoints.steps == [3, 4]  # the one before was removed when 4 was scored
    assert checkpoint.find(tmp_path, 'best') == 3


def test_scores_that_orbax_has_written_are_read(tmp_path):
    """As runs of older versions have them."""
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, fake(1), {})
    folder = tmp_path / checkpoint.FOLDER / '1' / 'metrics'
    folder.mkdir()
    (folder / 'metrics').write_text('{"miou": 0.4}')
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.best() == (1, 0.4) and not checkpoints.lacks_score(1)
        for step in (2, 3, 4):
            checkpoints.save(step, fake(step), {})
        assert checkpoints.steps == [1, 3, 4]


@pytest.mark.parametrize('mode', ['one device', 'jit', 'pmap'])
def test_a_step_may_overwrite_the_state_as_soon_as_save_returns(mode, tmp_path):
    layout = parallel.Layout('jit' if mode == 'jit' else 'pmap', jax.devices()[:2])
    where = jax.devices()[0] if mode == 'one device' else layout.replicated
    # Large enough that writing goes on while the next step runs.
    values = np.random.default_rng(0).normal(size=(2, 2**21)).astype(np.float32)
    current = fake(1).replace(memory={'m': values}, key=jax.random.key(1))
    current = jax.device_put(current, where)

    def negate(current, batch):
        del batch
        negated = jax.tree.map(lambda x: -x, current.replace(key=()))
        return negated.replace(key=current.key), ()

    batch = {'x': np.zeros(2, np.float32)}
    if mode == 'one device':
        step = jax.jit(negate, donate_argnums=0).lower(current, batch).compile()
    else:
        batch = layout.place(batch)
        step = layout.compile_step(negate, current, batch)
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        current, _ = step(current, batch)
        checkpoints.save(1, current, {})
        current, _ = step(current, batch)
        np.testing.assert_array_equal(current.memory['m'], values)
    saved = checkpoint.restore_arrays(tmp_path, 1, ['memory'])['memory']['m']
    np.testing.assert_array_equal(saved, -values)
