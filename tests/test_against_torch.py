"""Our network and the step's parts give what PyTorch gives; the benchmark's own comparison."""

import numpy as np
import pytest

from benchmarks import against_torch


def test_differences_are_relative_to_the_largest_value_of_array_or_group():
    found = {'a': np.float32([1, 200]), 'gradient/a': np.float32([9.9]), 'n': np.arange(4)}
    assert against_torch.differences(found, found) == dict.fromkeys(found, 0)
    other = found | {'a': np.float32([2, 200]), 'n': np.array([0, 1, 2, 9])}
    errors = against_torch.differences(found, other)
    assert errors == pytest.approx({'a': 1 / 200, 'gradient/a': 0, 'n': 1 / 4})
    more = {'gradient/b': np.float32([0])}, {'gradient/b': np.float32([0.099])}
    errors = against_torch.differences(found | more[0], found | more[1])
    assert errors['gradient/b'] == pytest.approx(1, rel=1e-6)  # a hundredth of the largest gradient


@pytest.mark.parametrize('wrong', [{}, {'a': np.zeros(3)}, {'a': np.float64([0, np.nan])}])
def test_missing_misshapen_and_undefined_results_are_not_equal(wrong):
    assert against_torch.differences({'a': np.zeros(2)}, wrong) == {'a': np.inf}
    assert against_torch.differences({}, {'b': np.zeros(2)}) == {'b': np.inf}


def test_without_torch_a_row_says_so(monkeypatch):
    monkeypatch.setattr(against_torch.importlib.util, 'find_spec', lambda name: None)
    ((_, row),) = against_torch.rows('small')
    assert row == {'what': 'torch is not installed: pip install -r requirements-bench.txt'}


def test_an_inequality_is_said_and_fails(monkeypatch):
    torch = pytest.importorskip('torch')
    from benchmarks.torch_pairs import Pair

    pair = Pair('x', lambda: {'y': np.ones(2)}, lambda layout: lambda: {'y': torch.zeros(2)})
    row = against_torch.compare(pair, seconds=0.0)
    assert row['torch ms'] == row['jax ms'] == 'not equal'
    monkeypatch.setattr(against_torch.timing, 'streamed', lambda *_: [{'what': 'x', **row}])
    with pytest.raises(SystemExit, match='not equal: x, 1 thread'):
        list(against_torch.rows('small'))


def test_an_array_may_have_a_tolerance_of_its_own():
    torch = pytest.importorskip('torch')
    from benchmarks.torch_pairs import Pair

    def row(a, b):
        theirs = {'a': torch.tensor([1.0, a]), 'b': torch.tensor([1.0, b])}
        ours = {'a': np.ones(2, np.float32), 'b': np.ones(2, np.float32)}
        pair = Pair('x', lambda: ours, lambda _: lambda: theirs, 1e-3, loose={'b': 0.1})
        return against_torch.compare(pair, seconds=0.0)

    found = row(1.0, 0.95)
    assert (found['difference'], found['tolerance']) == ('0e+00 (5e-02)', '1e-03 (1e-01)')
    low, high = map(float, found['quartiles'].split('-'))
    assert low - 0.01 <= found['jax / torch'] <= high + 0.01
    assert row(0.95, 1.0)['jax ms'] == row(1.0, 0.8)['jax ms'] == 'not equal'


def test_both_run_five_times_at_least():
    calls = []
    times = against_torch.in_turns([lambda: calls.append(0), lambda: calls.append(1)], 0.0)
    assert [len(spent) for spent in times] == [5, 5] and calls == 6 * [0, 1]


def assert_close(pair, expected, got):
    for name, error in against_torch.differences(expected, got).items():
        assert error < pair.loose.get(name, pair.tolerance), (pair.name, name)


@pytest.mark.parametrize('layout', against_torch.LAYOUTS)
def test_network_equals_torch(layout, network):
    expected = network.named(network.ours())
    got = network.torch_named(network.theirs(layout)())
    assert_close(network, expected, got)
    gradients = [name for name in got if name.startswith('gradient/')]
    assert len(gradients) > 60 and all(np.abs(got[name]).max() > 0 for name in gradients)


@pytest.fixture(scope='module')
def network():
    pytest.importorskip('torch')
    from benchmarks import torch_pairs

    config = torch_pairs.configuration('small', width=0.125, representation_dim=16)
    return torch_pairs.network_pair('tiny', config, batch=4, crop=32)


def test_parts_equal_torch(monkeypatch):
    pytest.importorskip('torch')
    from benchmarks import torch_pairs, torch_step

    monkeypatch.setitem(torch_pairs.SHAPES, 'small', (4, 32, 7, 16))
    names = []
    for pair in torch_step.parts('small'):
        expected = pair.named(pair.ours())
        got = pair.torch_named(pair.theirs('contiguous')())
        assert_close(pair, expected, got)
        assert all(np.abs(array).max() > 0 for array in got.values()), pair.name
        names.append(pair.name)
    assert len(names) == 6
