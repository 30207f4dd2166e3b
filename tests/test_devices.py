"""The step's flags over two devices: the state of one, and nothing crosses that should not."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from css_jax.parallel import cost
from tests import tiny, traffic
from tests.small import small
from tests.test_step import BATCH, leaves

IMAGES = {'labelled': 8, 'unlabelled': 16}
REFERENCE = {
    'follow': 'reference',
    'unsupervised.loss': 'weighted',
    # And of the paper what more there is to add up over devices.
    'contrastive.prototype_source': 'teacher',
    'contrastive.valid_indicator': 'similarity',
    'optimizer.floor': 0.0,
}
CASES = {  # beside the default, which test_spread.py has
    'reference but for its slips': {**REFERENCE, 'slips': False, 'contrastive.scope': 'global'},
    'cross, similarity, ema': {
        'method': 'css_cross',
        'unsupervised.cross_indicator': 'similarity',
        'unsupervised.warmup_passes': 0,
        'augment.mixing': 'classmix',
        'teacher.batch_norm': 'ema',
    },
    'reference': REFERENCE,
    'real network': {},
}
SAME = [
    'reference but for its slips',
    'cross, similarity, ema',
    pytest.param('real network', marks=pytest.mark.soak),
]


@functools.cache
def stepped(name, devices):
    """After one step from a state that has prototypes: the state and the metrics.

    And the text of its program, and what by the formula it should send.
    """
    config = tiny.get_config()
    config.optimizer.learning_rate = 0.02
    config.update_from_flattened_dict(CASES[name])
    config = configs.finalise(config)
    build = models.build if name == 'real network' else small
    with mock.patch.object(models, 'build', build):
        method, ctx = methods.METHODS[config.method], methods.context(config, parallel.AXIS, IMAGES)
        layout = parallel.Layout('jit', jax.devices()[:devices])
        tx = method.optimizer(config)[0]
        current = state.create(method, tx, methods.context(config), {}, layout.replicated)
        rng = np.random.default_rng(0)
        memory = {'prototypes': rng.normal(size=(7, 16)).astype(np.float32)}
        memory['seen'] = np.ones(7, current.memory['seen'].dtype)
        placed = jax.device_put((np.int32(1), memory), layout.replicated)
        current = current.replace(step=placed[0], memory=placed[1])
        batch = layout.place(BATCH)
        step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
        program = layout.compile_step(step, current, batch)
        after, metrics = jax.device_get(program(current, batch))
        kinds = traffic.arrays(config, devices, (32, 32))
    return after, metrics, program.as_text(), kinds


@pytest.mark.parametrize('name', SAME)
def test_two_devices_leave_the_state_of_one(name):
    (one, expected, *_), (two, metrics, *_) = stepped(name, 1), stepped(name, 2)
    for key in expected:
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-4, err_msg=key)
    assert expected['loss_unsupervised'] > 0 and expected['loss_contrastive'] > 0
    ours, theirs = ((s.student, s.teacher, s.memory, s.opt_state) for s in (two, one))
    ours, theirs = leaves(ours), leaves(theirs)
    times = 10 if name == 'real network' else 1  # rounding grows with its depth
    for key in theirs:
        np.testing.assert_allclose(
            ours[key], theirs[key], rtol=1e-4 * times, atol=2e-6 * times, err_msg=key
        )


@pytest.mark.parametrize('name', SAME)
def test_what_crosses_is_what_the_formula_says(name):
    *_, text, kinds = stepped(name, 2)
    other, scalars = traffic.unaccounted(text, kinds)
    assert not other  # every array, with its shape and how often
    assert 8 <= scalars <= 24
    assert cost.crossing(text).keys() == {'collective-permute', 'all-reduce'}


@pytest.mark.soak
def test_of_a_real_network_each_parameter_crosses_once():
    *_, text, kinds = stepped('real network', 2)
    # Less the biases of the projections' BatchNorms, see tests/traffic.py.
    config = configs.finalise(tiny.get_config())
    shapes = state.shapes(methods.context(config))
    params = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    gradients = sum(np.prod(shape) * n for (_, _, shape), n in kinds['gradients'].items())
    assert params - gradients == sum(
        leaf.size for path, leaf in state.flat(shapes.params).items() if 'downsample_bn/b' in path
    )
    # One image of three floats a pixel, a label and an indicator: to a neighbour, and nothing else.
    assert cost.crossing(text)['collective-permute'] == 32 * 32 * 4 * 5
    assert len(cost.traffic(text)) >= traffic.chain(text) > 4 * 29  # two a BatchNorm, one way


def test_the_reference_s_slips_depend_on_the_devices():
    # On one device they are no slips: its neighbour is the next image, its pixels are all.
    _, expected, *_ = stepped('reference but for its slips', 1)
    _, metrics, *of_program = stepped('reference', 2)
    other, _ = traffic.unaccounted(*of_program)
    for term in ('loss_unsupervised', 'loss_contrastive'):
        assert not np.isclose(metrics[term], expected[term], rtol=1e-3)
    np.testing.assert_allclose(metrics['loss_supervised'], expected['loss_supervised'], rtol=1e-5)
    # Nobody passes an image on: all get the first device's, a sum as large as its block.
    assert other['all-reduce', 'f32', (2, 32, 32, 3)] == 1
