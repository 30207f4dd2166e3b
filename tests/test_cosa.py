"""CoSA: a step held to plain numpy, on one device and two, and where nothing is to learn."""

import numpy as np
import pytest

from css_jax import state
from css_jax.ops import mixture
from tests.cosa_numpy import assembled, resized
from tests.cosa_small import BOTH, FIXED, THREE, batch, steps, walked


def test_a_step_is_the_sum_of_its_terms_in_numpy():
    """BatchNorm is by the batch in the online network, by running statistics in the other."""
    one, given = steps('jit', 1, **FIXED), batch()
    end, found = one(one.start, given)
    limits = {'cam': (0.3, 0.6), 'cam_aux': (0.25, 0.7)}
    expected, _ = assembled(one, given, one.start, limits)
    assert found.keys() == expected.keys() | {'gradient_norm', 'update_norm'}
    assert 0.2 < expected['labelled'] < 0.9 and 0.1 < expected['foreground'] < 0.9
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
    before, after, ours = (
        state.flat(tree) for tree in (one.start.teacher, end.student, end.teacher)
    )
    decay = one.config.teacher.decay  # the same at step 30 as at any other
    for path, theirs in before.items():
        mean = decay * theirs + (1 - decay) * after[path]
        np.testing.assert_allclose(ours[path], mean, rtol=1e-5, atol=1e-7, err_msg=path)
    assert any('batch_stats' in path for path in before)


def test_weighted_means_and_one_threshold_in_numpy():
    one, given = steps('jit', 1, **BOTH), batch()
    end, found = walked('jit', 1, **BOTH)[0]
    limits = {'cam': (0.35, 0.35), 'cam_aux': (0.55, 0.55)}
    expected, cams = assembled(one, given, one.start, limits)
    thresholds = {'threshold_low': 0.35, 'threshold_aux_low': 0.55}
    assert found.keys() == expected.keys() | {'gradient_norm', 'update_norm', *thresholds}
    for name, value in {**expected, **thresholds}.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
    # The largest values on the network's grid go into the queue's next place.
    present = given['images']['classes'][:, 1:]
    for name, queue in end.memory.items():
        values = (resized(cams[name], (4, 4)) * present[:, None, None]).max(-1)
        counted = values[values > mixture.FLOOR]
        expected, _ = np.histogram(counted, mixture.BINS, (0, 1))
        assert np.abs(queue.counts[0] - expected).sum() <= 2 < expected.sum()  # at an edge of a bin
        np.testing.assert_array_equal(queue.counts[1:], one.start.memory[name].counts[1:])
        assert queue.place == 1


@pytest.mark.parametrize(
    ('mode', 'changes', 'more'),
    [('jit', BOTH, {}), ('pmap', BOTH, {'accumulate_steps': 2}), ('jit', THREE, {})],
    ids=['jit', 'pmap', 'three'],
)
def test_two_devices_and_micro_batches_leave_the_state_of_one(mode, changes, more):
    """The queues, weighted means and pairs are of all images, wherever they are."""
    one, two = walked('jit', 1, **changes), walked(mode, 2, **changes, **more)
    for (expected, their_metrics), (found, our_metrics) in zip(one, two, strict=True):
        for name, value in their_metrics.items():
            np.testing.assert_allclose(our_metrics[name], value, rtol=1e-4, err_msg=name)
        ours, theirs = state.flat(found), state.flat(expected)
        for path, value in theirs.items():
            if path.endswith('counts'):  # rounding moves a value at an edge of a bin to the next
                assert np.abs(ours[path] - value).sum() <= 4, path
                continue
            np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=2e-6, err_msg=path)
    moved = state.flat(expected.student)
    for path, before in state.flat(steps('jit', 1, **changes).start.student).items():
        assert np.abs(moved[path] - before).max() > 1e-4, path


@pytest.mark.parametrize('changes', [FIXED, BOTH], ids=['fixed', 'two'])
@pytest.mark.parametrize('case', ['no classes', 'boxes of one pixel', 'constant images', 'all'])
def test_what_leaves_nothing_to_learn_is_finite(case, changes):
    given = batch()['images']
    if case in ('no classes', 'all'):
        given['classes'][:, 1:] = False
    if case in ('boxes of one pixel', 'all'):
        given['box'] = np.int32([[5, 6, 7, 8]] * 4)
    if case in ('constant images', 'all'):
        given['image'][:] = 77
    one = steps('jit', 1, **changes)
    end, found = one(one.start, {'images': given})
    assert all(np.isfinite(value) for value in found.values()), found
    for path, array in state.flat(end).items():
        assert np.isfinite(array).all(), path
    if case == 'no classes':
        assert found['foreground'] == 0 == found['loss_cam2seg_foreground']
        assert found['loss_cam2seg_background'] > 0
