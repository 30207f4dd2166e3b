"""The optimiser and schedules against the reference program's numbers."""

import functools
import itertools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from benchmarks import count
from css_jax import config as configs
from css_jax import methods, models, optimizer, parallel, state
from css_jax import step as steps
from css_jax.data import streams
from css_jax.methods import teacher
from css_jax.models import dinov2
from css_jax.models.layers import Conv
from css_jax.ops import schedules
from tests import dinov2_small, tiny

FIXTURES = Path(__file__).parent / 'fixtures'
GOLDEN = np.load(FIXTURES / 'reference_small.npz')
UNIMATCH = np.load(FIXTURES / 'unimatch_ops.npz')


def test_sgd_walks_as_torch_does():
    config = configuration(  # the trajectory has a constant rate
        learning_rate=0.0064, floor=1e-4, weight_decay=5e-4, nesterov=True
    )
    tx, rates = optimizer.sgd(config)
    assert float(rates['learning_rate'](7)) == pytest.approx(0.0064)
    params = {'w': jnp.asarray(GOLDEN['sgd_w0'])}
    state = tx.init(params)
    for grads, expected in zip(GOLDEN['sgd_grads'], GOLDEN['sgd_trajectory'], strict=True):
        updates, state = tx.update({'w': jnp.asarray(grads)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params['w'], expected, rtol=1e-5, atol=1e-6)


def test_poly_is_the_reference_s():
    rate = schedules.poly(0.0064, 40_000, 0.9, 1e-4)
    ours = [float(rate(step)) for step in range(0, 40_000, 1000)]
    np.testing.assert_allclose(ours, GOLDEN['poly_lr_every_1000'], rtol=1e-4)


def test_poly_ends_at_its_floor_and_starts_from_its_warm_up():
    rate = schedules.poly(1.0, 100, 0.9, 0.05, warmup_steps=10)
    assert float(rate(100)) == pytest.approx(0.05)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(9)) == pytest.approx((1 - 0.09) ** 0.9)


def test_the_first_update_of_the_teacher_copies():
    assert float(schedules.ema_decay(0, 0.99)) == 0
    assert float(schedules.ema_decay(1, 0.99)) == 0.5
    assert float(schedules.ema_decay(10_000, 0.99)) == pytest.approx(0.99)


def test_lambda_falls_over_the_whole_run():
    assert float(schedules.rampdown(0, 1000)) == 1
    assert float(schedules.rampdown(500, 1000)) == pytest.approx(np.exp(-1.25))


def configuration(**changes):
    config = configs.default()
    values = {'steps': 100, 'power': 0.0, 'floor': 0.0, 'warmup_steps': 0, 'momentum': 0.9}
    values |= {'nesterov': False, 'learning_rate': 0.1, 'weight_decay': 0.01} | changes
    config.steps = values.pop('steps')
    config.optimizer.update(values)
    return config


PARAMS = {'backbone': {'w': np.float32([1.0, -2.0])}, 'head_a': {'w': np.float32([3.0, 4.0])}}
GRADS = {'backbone': {'w': np.float32([0.5, 0.25])}, 'head_a': {'w': np.float32([-1.0, 2.0])}}


def walk(tx, steps=3):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_groups_have_rates_and_decays_of_their_own():
    config = configuration()
    groups = [optimizer.Group('head', '^head_', rate=10.0, weight_decay=0.0)]
    for make in (optimizer.sgd, optimizer.adamw):
        tx, rates = make(config, groups)
        assert {name: round(float(rate(0)), 6) for name, rate in rates.items()} == {
            'learning_rate': 0.1,
            'learning_rate_head': 1.0,
        }
        alone = walk(make(config)[0])
        np.testing.assert_allclose(walk(tx)['backbone']['w'], alone['backbone']['w'], rtol=1e-6)
        other = walk(make(configuration(learning_rate=1.0, weight_decay=0.0))[0])
        np.testing.assert_allclose(walk(tx)['head_a']['w'], other['head_a']['w'], rtol=1e-6)


def test_a_frozen_group_stays():
    groups = [optimizer.Group('still', 'backbone', frozen=True)]
    tx, rates = optimizer.adamw(configuration(), groups)
    assert list(rates) == ['learning_rate']
    np.testing.assert_array_equal(walk(tx)['backbone']['w'], PARAMS['backbone']['w'])
    assert (walk(tx)['head_a']['w'] != PARAMS['head_a']['w']).all()


def test_adamw_is_torch_s():
    """By its documentation: the decay is lr times the weight, and the moments are unbiased."""
    w, m, v = np.float64([1.0, -2.0]), 0.0, 0.0
    g = np.float64([0.5, 0.25])
    for t in range(1, 4):
        w = w - 0.1 * 0.01 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    found = walk(optimizer.adamw(configuration())[0])['backbone']['w']
    np.testing.assert_allclose(found, w, rtol=1e-5)


def test_adamw_with_a_factor_of_the_heads_and_the_teacher_are_unimatch_s():
    """The decay is on all parameters; a head's is scaled by its own rate."""
    base, factor, epochs, per_epoch = UNIMATCH['adamw_settings'].tolist()
    steps = int(epochs * per_epoch)
    config = configuration(learning_rate=base, steps=steps, power=0.9)
    tx, rates = optimizer.adamw(
        config, head_factor=factor, rate=schedules.poly(base, steps, 0.9, lag=1)
    )
    assert list(rates) == ['learning_rate', 'learning_rate_heads']

    def tree(kind, *index):
        found = {name: {} for name in ('backbone', 'head')}
        for path in [n for n in UNIMATCH if n.startswith(f'adamw_{kind}/')]:
            module, leaf = path.partition('/')[2].split('.')
            found[module][leaf] = jnp.asarray(UNIMATCH[path][index])
        return found

    @jax.jit
    def moved(params, state, ema, grads, step):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, teacher.follow(ema, params, schedules.ema_decay(step, 0.996))

    params = ema = tree('before')
    state = tx.init(params)
    for t in range(steps):
        assert schedules.ema_decay(t, 0.996) == pytest.approx(UNIMATCH['adamw_ema_ratio'][t])
        params, state, ema = moved(params, state, ema, tree('grads', t), t)
        for ours, kind in ((params, 'after'), (ema, 'ema')):
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max()),
                ours,
                tree(kind, t),
            )


@pytest.mark.parametrize('names', [('a', 'a'), ('',)])
def test_groups_of_one_name_are_refused(names):
    groups = [optimizer.Group(name, 'w') for name in names]
    with pytest.raises(ValueError, match='optimiser groups: got the names'):
        optimizer.sgd(configuration(), groups)


def test_a_frozen_backbone_has_no_update_and_no_moments_whatever_the_groups():
    config = configuration()
    config.model.frozen_backbone = True
    groups = [optimizer.Group('backbone', '^backbone/', rate=0.1)]
    for make, given in itertools.product((optimizer.sgd, optimizer.adamw), ((), groups)):
        tx, _ = make(config, given)
        found = walk(tx)
        np.testing.assert_array_equal(found['backbone']['w'], PARAMS['backbone']['w'])
        config.model.frozen_backbone = False
        expected = walk(make(config, given)[0])
        config.model.frozen_backbone = True
        np.testing.assert_array_equal(found['head_a']['w'], expected['head_a']['w'])
        paths = [
            jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tx.init(PARAMS))
        ]
        assert any('head_a' in path for path in paths) and not any(
            'backbone' in p for p in paths if "'w'" in p
        )


class Halves(nn.Module):
    """A backbone of one convolution and a head of another."""

    outputs: tuple

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(Conv(8, 3, 4, use_bias=True, name='backbone')(x))
        return {name: Conv(count, 1, name=f'head_{name}')(x) for name, count in self.outputs}


def two_steps(mode, devices):
    """The first state and the one after two steps, without the keys."""
    config = tiny.get_config('supervised')
    config.model.frozen_backbone = True
    config.augment.jitter_prob = config.augment.blur_prob = 0.0
    config = configs.finalise(config)
    method, layout = methods.METHODS['supervised'], parallel.Layout(mode, jax.devices()[:devices])
    tx, _ = method.optimizer(config)
    ctx = methods.context(config, parallel.AXIS)
    first = state.create(method, tx, ctx, {}, layout.replicated)
    begin = jax.device_get(first.student.params)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 7, (2, 4, 32, 32)).astype(np.uint8)
    one = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    program, current = None, first
    for image, label in zip(images, labels, strict=True):
        batch = layout.place({'labelled': {'image': image, 'label': label}})
        program = program or layout.compile_step(one, current, batch)
        current, metrics = program(current, batch)
    return begin, jax.device_get((current.replace(key=None), metrics))


def test_a_frozen_backbone_in_every_mode(monkeypatch):
    """Equal on one device and on two; the backbone and its teacher stay, the head does not."""
    monkeypatch.setattr(
        models, 'build', lambda c, n, outputs, axis_name: Halves(tuple(outputs.items()))
    )
    begin, (after, metrics) = two_steps('jit', 1)
    for params in (after.student.params, after.teacher.params):
        for leaf in ('kernel', 'bias'):
            expected = begin['backbone'][leaf]
            np.testing.assert_allclose(params['backbone'][leaf], expected, rtol=1e-6)
        assert (params['head_logits']['kernel'] != begin['head_logits']['kernel']).all()
    np.testing.assert_array_equal(
        after.student.params['backbone']['kernel'], begin['backbone']['kernel']
    )
    for mode in parallel.MODES:
        _, found = two_steps(mode, 2)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            found,
            (after, metrics),
        )


def test_a_frozen_backbone_has_no_backward_pass(monkeypatch):
    """A step saves what is twice a forward pass of the backbone, but for its first layers.

    Of the images and of the places in the table there is no gradient anyway.
    """
    monkeypatch.setitem(dinov2.SIZES, 'dinov2_small', dinov2_small.SHALLOW)

    def step(frozen):
        config = tiny.get_config('supervised')
        config.model.update(family='dpt', backbone='dinov2_small', frozen_backbone=frozen)
        config.data.streams.labelled.crop = (28, 28)
        config.augment.jitter_prob = config.augment.blur_prob = 0.0
        config = configs.finalise(config)
        method, ctx = methods.METHODS['supervised'], methods.context(config, 'data')
        tx, _ = method.optimizer(config)
        start = jax.eval_shape(lambda: state.create(method, tx, methods.context(config)))
        batch = streams.batch_shapes(config.data, ['labelled'])
        run = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
        mesh, whole = Mesh(np.array(jax.devices()[:2]), ('data',)), PartitionSpec()
        specs = {'in_specs': (whole, PartitionSpec('data')), 'out_specs': (whole, whole)}
        run = jax.shard_map(run, mesh=mesh, **specs)
        traced = jax.make_jaxpr(run)(start, batch)
        return traced, ctx, start, batch

    whole, ctx, start, batch = step(False)
    less, _, frozen, _ = step(True)
    paths = state.flat(frozen.opt_state)
    assert paths and not any('backbone/' in path for path in paths)
    saved = count.totals(count.kernels(whole))['flops'] - count.totals(count.kernels(less))['flops']
    each = len(batch['labelled']['image']) // 2
    images = jax.ShapeDtypeStruct((each, 28, 28, 3), np.float32)
    params = {'params': start.student.params['backbone']}
    backbone = jax.make_jaxpr(ctx.module.backbone.apply)(params, images)
    once = count.totals(count.kernels(backbone))['flops']
    assert 1.5 * once < saved < 2 * once
