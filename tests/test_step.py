"""One iteration: the state it leaves, degenerate batches, and the same state over two devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from tests import tiny
from tests.small import small

RNG = np.random.default_rng(0)
LABELS = np.kron(RNG.integers(0, 7, (4, 4, 4)), np.ones((1, 8, 8))).astype(np.uint8)
LABELS[3, :20] = 255  # so that devices hold different numbers of labelled pixels
BATCH = {
    'labelled': {'image': RNG.integers(0, 256, (4, 32, 32, 3), np.uint8), 'label': LABELS},
    'unlabelled': {'image': RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)},
}
LEARNING_RATE = 0.02  # small, so that rounding does not grow over the steps
TERMS = ('loss_supervised', 'loss_unsupervised', 'loss_contrastive')


def setup(axis=None):
    config = tiny.get_config()
    config.optimizer.learning_rate = LEARNING_RATE
    config.augment.jitter_prob, config.augment.blur_prob = 0.8, 0.5  # drawn alike on any devices
    config = configs.finalise(config)
    method = methods.METHODS[config.method]
    tx = method.optimizer(config)[0]
    ctx = methods.context(config, axis)
    return (
        method,
        tx,
        ctx,
        functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx),
    )


@pytest.fixture(scope='module', autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', small)
        yield


@pytest.fixture(scope='module')
def run():
    """(first state, step): a compiled step that leaves its state as it was."""
    method, tx, ctx, step = setup()
    return state.create(method, tx, ctx), jax.jit(step)


@pytest.fixture(scope='module')
def walk(run):
    """States and metrics of the first three steps on one batch, on the host."""
    current, step = run
    states, metrics = [current], []
    for _ in range(3):
        current, values = step(current, BATCH)
        states.append(current)
        metrics.append(values)
    return [on_host(x) for x in states], jax.device_get(metrics)


def on_host(current):
    """A state of numpy arrays, but for a copy of the key: a layout's step gives buffers away."""
    key = jax.random.wrap_key_data(np.array(jax.random.key_data(current.key)))
    return jax.device_get(current.replace(key=None)).replace(key=key)


def leaves(tree):
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


def test_the_teacher_starts_as_the_student_and_the_first_update_copies_it(walk):
    states, _ = walk
    jax.tree.map(np.testing.assert_array_equal, states[0].student, states[0].teacher)
    jax.tree.map(np.testing.assert_array_equal, states[1].student.params, states[1].teacher.params)
    before, student, moved = (
        variables.params['logits']['kernel']
        for variables in (states[1].teacher, states[2].student, states[2].teacher)
    )
    np.testing.assert_allclose(moved, (student + before) / 2, rtol=1e-5, atol=1e-7)


def test_the_teacher_has_statistics_of_its_own(walk):
    student, teacher = (leaves(v.batch_stats) for v in (walk[0][1].student, walk[0][1].teacher))
    first = leaves(walk[0][0].teacher.batch_stats)
    assert all((teacher[k] != first[k]).any() for k in first)
    assert any(not np.allclose(teacher[k], student[k], rtol=1e-3) for k in first)


def test_prototypes_are_seen_after_one_step_and_move_slowly(walk):
    states, metrics = walk
    assert not states[0].memory['seen'].any()
    assert states[1].memory['seen'].all()  # every class is labelled in the batch
    before, after = states[1].memory['prototypes'], states[2].memory['prototypes']
    assert 0 < np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before)
    # Without prototypes there is no second space, so nothing agrees and L_u is 0.
    assert metrics[0]['agreement'] == 0 and metrics[0]['loss_unsupervised'] == 0
    assert metrics[1]['agreement'] > 0


def test_every_term_of_the_loss_is_alive_and_adds_up(walk):
    values = walk[1][2]
    assert all(values[term] > 0 for term in TERMS)
    total = (
        values['loss_supervised']
        + values['loss_unsupervised']
        + values['weight_contrastive'] * values['loss_contrastive']
    )
    np.testing.assert_allclose(values['loss'], total, rtol=1e-6)


def test_steps_draw_anew_and_repeat_exactly(run, walk):
    current, step = run
    again = step(current, BATCH)[0]
    jax.tree.map(np.testing.assert_array_equal, again.student, walk[0][1].student)
    other = step(current.replace(step=jnp.int32(1)), BATCH)[1]
    assert other['loss_supervised'] != walk[1][0]['loss_supervised']


def test_a_batch_without_any_label_changes_weights_by_decay_alone(run):
    current, step = run
    void = {**BATCH, 'labelled': {**BATCH['labelled'], 'label': np.full_like(LABELS, 255)}}
    after, values = step(current, void)
    assert values['loss'] == 0 and values['gradient_norm'] == 0
    assert not after.memory['seen'].any()
    for old, new in zip(
        jax.tree.leaves(current.student.params), jax.tree.leaves(after.student.params), strict=True
    ):
        np.testing.assert_allclose(
            new, np.asarray(old) * (1 - LEARNING_RATE * 1.9 * 5e-4), rtol=1e-5, atol=1e-8
        )


def test_one_class_only_has_no_contrast_and_stays_finite(run):
    current, step = run
    one = {**BATCH, 'labelled': {**BATCH['labelled'], 'label': np.full_like(LABELS, 3)}}
    after, values = step(current, one)
    assert values['loss_contrastive'] == 0 and values['classes_present'] == 1
    np.testing.assert_array_equal(np.flatnonzero(after.memory['seen']), [3])
    assert all(np.isfinite(v).all() for v in leaves(after.student).values())


def test_two_devices_leave_the_same_state_as_one(walk):
    # From a state with prototypes, one step: over several, one flipped pseudo-label changes all.
    layout = parallel.Layout('jit', jax.devices()[:2])
    *_, step = setup(parallel.AXIS)
    before, batch = jax.device_put(walk[0][2], layout.replicated), layout.place(BATCH)
    current, values = layout.compile_step(step, before, batch)(before, batch)
    expected, metrics = walk[0][3], walk[1][2]
    assert metrics['agreement'] > 0 and metrics['loss_contrastive'] > 0
    for name in metrics:
        np.testing.assert_allclose(values[name], metrics[name], rtol=1e-4, err_msg=name)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5),
        (current.student, current.teacher, current.memory),
        (expected.student, expected.teacher, expected.memory),
    )


def test_keys_do_not_depend_on_how_the_batch_is_laid_out():
    @jax.jit
    def drawn(key, step):
        def whole(stream, purpose):
            return parallel.step_keys(key, step, {'a': {'x': np.zeros(4)}}, None)(stream, purpose)

        def part(x):
            return parallel.step_keys(key, step, {'a': {'x': x}}, 'data')('a', 'flip')

        parts = jax.vmap(part, axis_name='data')(jnp.zeros((2, 2)))
        # Micro-batches cut each device's examples: two devices, two parts each, one example a part.
        cut = [
            parallel.Keys(key, {'a': 2}, rank).part(index, 2)('a', 'flip')
            for rank in range(2)
            for index in range(2)
        ]
        uncut = parallel.Keys(key, {'a': 4}, 0)('a', 'flip')
        keys = whole('a', 'flip'), whole('a', 'mix'), parts.ravel(), jnp.concatenate(cut), uncut
        return [jax.random.key_data(k) for k in keys]

    whole, other, parts, cut, uncut = jax.device_get(drawn(jax.random.key(0), 3))
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(cut, uncut)
    assert len(np.unique(np.concatenate([whole, other]), axis=0)) == 8


def test_the_partner_is_the_next_image_of_the_global_batch():
    x = np.arange(6)

    @jax.jit
    def partners(x):
        def of(partner):
            parts = jax.vmap(lambda x: partner(x, 'data'), axis_name='data')(x.reshape(3, 2))
            return partner({'x': x}, None)['x'], parts

        return of(parallel.next_example), of(parallel.next_of_first_device)

    (whole, parts), (alone, first) = partners(x)
    np.testing.assert_array_equal(whole, [1, 2, 3, 4, 5, 0])
    np.testing.assert_array_equal(np.ravel(parts), whole)
    # The reference's partner is of the first device; alone: the next, as ever.
    np.testing.assert_array_equal(alone, [1, 2, 3, 4, 5, 0])
    np.testing.assert_array_equal(first, [[1, 0], [1, 0], [1, 0]])
