"""The step's flags over two devices: the state is that of one device with the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from css_jax import config as configs
from css_jax import methods, models, state
from css_jax import step as steps
from tests import tiny
from tests.small import small
from tests.test_step import BATCH, leaves

IMAGES = {'labelled': 8, 'unlabelled': 16}
CASES = {
    'paper': {
        'follow': 'paper',
        'unsupervised.loss': 'thresholded',
        'optimizer.floor': 0.0,
    },
    'reference but for its slips': {
        'follow': 'reference',
        'unsupervised.loss': 'weighted',
        'augment.partner': 'next',
        'contrastive.scope': 'global',
    },
    'cross, eight bits': {
        'method': 'css_cross',
        'eight_bit_indicators': True,
        'unsupervised.warmup_passes': 0,
        'augment.mixing': 'classmix',
    },
    'baseline, ema': {'method': 'baseline', 'teacher.batch_norm': 'ema'},
}


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(models, 'build', small)


def stepped(changes, axis=None):
    """State and metrics after one step, from a state that has prototypes."""
    config = tiny.get_config()
    config.optimizer.learning_rate = 0.02
    config.update_from_flattened_dict(changes)
    config = configs.finalise(config)
    method, ctx = methods.get(config.method), methods.context(config, axis, IMAGES)
    tx = method.optimizer(config)
    current = state.create(method, tx, methods.context(config))
    rng = np.random.default_rng(0)
    memory = {'prototypes': rng.normal(size=(7, 16)), 'seen': np.ones(7, bool)}
    memory = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), memory, current.memory)
    current = current.replace(step=current.step + 1, memory=memory)
    step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    if axis:
        whole, part = PartitionSpec(), PartitionSpec(axis)
        mesh = Mesh(np.array(jax.devices()[:2]), (axis,))
        specs = {'in_specs': (whole, part), 'out_specs': (whole, whole)}
        step = jax.shard_map(step, mesh=mesh, **specs)
    return jax.device_get(jax.jit(step)(current, BATCH))


@pytest.mark.parametrize('name', CASES)
def test_two_devices_leave_the_state_of_one(name):
    (one, expected), (two, metrics) = stepped(CASES[name]), stepped(CASES[name], 'data')
    for key in expected:
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-4, err_msg=key)
    assert expected['loss_unsupervised'] > 0 and expected['loss_contrastive'] > 0
    ours, theirs = ((s.student, s.teacher, s.memory, s.opt_state) for s in (two, one))
    ours, theirs = leaves(ours), leaves(theirs)
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=2e-6, err_msg=key)


@pytest.mark.parametrize(
    ('key', 'value', 'term'),
    [
        ('augment.partner', 'first_device', 'loss_unsupervised'),
        ('contrastive.scope', 'device', 'loss_contrastive'),
    ],
)
def test_the_reference_s_slips_depend_on_the_devices(key, value, term):
    (_, expected), (_, metrics) = stepped({key: value}), stepped({key: value}, 'data')
    assert not np.isclose(metrics[term], expected[term], rtol=1e-3)
    np.testing.assert_allclose(metrics['loss_supervised'], expected['loss_supervised'], rtol=1e-5)
