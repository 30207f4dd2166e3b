"""Our network gives what PyTorch's twin gives; needs torch (requirements-bench.txt)."""

import numpy as np
import pytest

pytest.importorskip('torch')
from benchmarks import against_torch

pytestmark = pytest.mark.soak


@pytest.fixture(scope='module', params=['resnet18', 'mobilenet_v1', 'efficientnet_lite0'])
def network(request):
    changes = {'model.width': 0.125, 'model.representation_dim': 16}
    changes['model.backbone'] = request.param
    return against_torch.programs(against_torch.configuration(**changes), batch=4, size=(32, 48))


@pytest.mark.parametrize('layout', against_torch.LAYOUTS)
def test_the_network_equals_torch(layout, network):
    ours, theirs = network
    got = against_torch.torch_named(theirs(layout)())
    errors = against_torch.differences(against_torch.ours_named(ours()), got)
    for name, error in errors.items():
        assert error < against_torch.LOOSE.get(name, against_torch.TOLERANCE), name
    gradients = [name for name in got if name.startswith('gradient/')]
    assert len(gradients) > 60 and all(np.abs(got[name]).max() > 0 for name in gradients)


def test_differences_are_relative_to_the_largest_value_of_array_or_gradients():
    ours = {'a': np.float32([1, 200]), 'gradient/a': np.float32([9.9]), 'gradient/b': np.zeros(1)}
    assert against_torch.differences(ours, ours) == dict.fromkeys(ours, 0)
    theirs = ours | {'a': np.float32([2, 200]), 'gradient/b': np.float32([0.099])}
    errors = against_torch.differences(ours, theirs)
    # The last by a hundredth of the largest gradient.
    assert errors == pytest.approx({'a': 1 / 200, 'gradient/a': 0, 'gradient/b': 1}, rel=1e-6)


@pytest.mark.parametrize('wrong', [{}, {'a': np.zeros(3)}, {'a': np.float64([0, np.nan])}])
def test_missing_misshapen_and_undefined_results_are_not_equal(wrong):
    assert against_torch.differences({'a': np.zeros(2)}, wrong) == {'a': np.inf}
