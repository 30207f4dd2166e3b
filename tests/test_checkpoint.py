"""What is kept: the latest two and the best; a step is never saved twice."""

import jax.numpy as jnp
import pytest

from css_jax import checkpoint, state


def fake(step):
    student = state.Variables({'w': jnp.full(3, -float(step))}, {})
    teacher = state.Variables({'w': jnp.full(3, float(step))}, {})
    return state.TrainState(jnp.int32(step), student, teacher, {}, {}, jnp.zeros(2, jnp.uint32))


def test_latest_two_and_best_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest_step is None and checkpoints.best() is None
    scores = {2: {'miou': 0.7}, 4: {'miou': 0.5}}
    for step in range(1, 7):
        checkpoints.save(step, fake(step), {'split_hash': 'x'}, scores.get(step))
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
