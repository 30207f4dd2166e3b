"""One step, however it is compiled and spread: modes, devices and processes end in one state."""

import numpy as np
import pytest

from tests import program, spread

TOLERANCE = 1e-5  # of the largest value of each array; what is measured is 1e-6
# (processes, devices of each): what they run. All are compared with the first.
RUNS = {
    (1, 8): ['jit:1', 'jit:8', 'jit:8:again', 'pmap:8'],
    (2, 4): ['jit:8'],
}
# The long ones: layouts with less to add up, and mistakes, to see that the above would show them.
LONG = {
    (1, 8): [
        'jit:1',
        'plain',
        'pmap:1',
        *(f'pmap:8:{mistake}' for mistake in spread.MISTAKES),
        'jit:1:draws',
        'jit:8:draws',
    ],
    (2, 4): ['jit:2', 'pmap:2', 'pmap:8'],
}


def same(runs):
    """(processes, devices of each, name) of all that has to end in the state of the first."""
    cases = [(*sizes, name) for sizes, names in runs.items() for name in names]
    return [case for case in cases[1:] if case[2].count(':') < 2]


def run(runs, folder):
    """(processes, devices of each, name, process) -> what that process ended with."""
    folders, started = {sizes: folder / f'{sizes[0]}x{sizes[1]}' for sizes in runs}, []
    for (count, devices), names in runs.items():
        folders[count, devices].mkdir()
        started += program.start(
            None,
            *names,
            count=count,
            devices=devices,
            env=lambda index, count, port: {'PLACE': f'{port} {count} {index}'},
            before=f'from tests import spread\nspread.main({str(folders[count, devices])!r})',
        )
    for code, *told in program.finish(started, timeout=600):
        assert code == 0, told

    def load(processes, devices, name, index=0):
        return dict(np.load(folders[processes, devices] / f'{name}.{index}.npz'))

    return load


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    return run(RUNS, tmp_path_factory.mktemp('ended'))


@pytest.fixture(scope='module')
def long_ended(tmp_path_factory):
    return run(LONG, tmp_path_factory.mktemp('long'))


def differences(ours, theirs):
    """Path -> largest difference, in units of the array's largest value."""
    assert ours.keys() == theirs.keys()
    found = {}
    for path, expected in theirs.items():
        assert ours[path].shape == expected.shape and ours[path].dtype == expected.dtype
        expected, got = expected.astype(np.float64), ours[path].astype(np.float64)
        # Where all is 0, an array of an unused weight, any difference counts.
        found[path] = np.abs(got - expected).max() / (np.abs(expected).max() or 1e-30)
    return found


def test_the_batch_is_uneven():
    blocks = [batch['labelled']['label'].reshape(8, 2, 32, 32) for batch in spread.batches()]
    for labels in blocks:
        pixels = (labels != 255).sum((1, 2, 3))
        assert pixels[0] == 0 and 0 < pixels[1] < pixels[4] < pixels[2]
        assert [d for d in range(8) if (labels[d] == 4).any()] == [3]
        assert not np.isin([5, 6], labels).any()
        assert (labels == 255).all((2, 3)).sum() == 3  # images without any label


def test_every_part_of_the_step_is_alive(ended):
    state = ended(1, 8, 'jit:1')
    assert state['step'] == spread.STEPS
    for term in ('supervised', 'unsupervised', 'contrastive'):
        assert state[f'metrics/loss_{term}'] > 0
    assert 0 < state['metrics/agreement'] < 1 and 0 < state['metrics/confident'] < 1
    np.testing.assert_array_equal(state['memory/seen'][4:], [True, False, False])


def check_same(ended, processes, devices, name):
    expected = ended(1, 8, 'jit:1')
    for index in range(processes):
        found = differences(ended(processes, devices, name, index), expected)
        assert max(found.values()) <= TOLERANCE, {k: v for k, v in found.items() if v > TOLERANCE}


@pytest.mark.parametrize(('processes', 'devices', 'name'), same(RUNS))
def test_three_steps_end_in_one_state(ended, processes, devices, name):
    check_same(ended, processes, devices, name)


def test_the_same_devices_give_the_same_bits(ended):
    once, again = ended(1, 8, 'jit:8'), ended(1, 8, 'jit:8:again')
    assert once.keys() == again.keys()
    for path, value in once.items():
        np.testing.assert_array_equal(value, again[path], err_msg=path)


@pytest.mark.soak
@pytest.mark.parametrize(('processes', 'devices', 'name'), same(LONG))
def test_so_they_do_on_fewer_devices_than_there_are(long_ended, processes, devices, name):
    check_same(long_ended, processes, devices, name)


@pytest.mark.soak
@pytest.mark.parametrize(
    ('mistake', 'feels'),
    [
        ('mean_of_means', 'student/params/Conv_0/kernel'),
        ('own_neighbours', 'student/params/logits/kernel'),
        ('own_statistics', 'student/batch_stats/BatchNorm_0/mean'),
    ],
)
def test_a_mistake_would_be_seen(long_ended, mistake, feels):
    found = differences(long_ended(1, 8, f'pmap:8:{mistake}'), long_ended(1, 8, 'jit:1'))
    assert found[feels] > 100 * TOLERANCE


@pytest.mark.soak
def test_eight_devices_draw_for_l_c_what_one_does(long_ended):
    """Key by key, so that L_c and its gradient have one mean as well."""
    one, eight = long_ended(1, 8, 'jit:1:draws'), long_ended(1, 8, 'jit:8:draws')
    assert len(one['loss']) == spread.KEYS and one['loss'].std() > 0
    for name, expected in one.items():
        assert np.abs(eight[name] - expected).max() <= TOLERANCE * np.abs(expected).max()
