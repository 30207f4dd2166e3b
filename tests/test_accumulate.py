"""Micro-batches: without BatchNorm they are the large batch, but for L_c and OHEM's k."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from css_jax.ops import losses, resize
from css_jax.parallel import cost
from tests import spread, tiny
from tests.small import Plain

BATCH = next(spread.batches())  # 16 images; the first two, a micro-batch, have no label at all
EARLY, LATE = 1, 10_000  # steps, of 8: lambda_c, which falls as a Gaussian does, is 0 at the second
WEIGHTED = (('unsupervised.loss', 'weighted'), ('contrastive.prototype_source', 'teacher'))
OHEM = (
    ('method', 'supervised'),
    ('supervised.loss', 'ohem'),
    ('supervised.ohem_threshold', 0.1),  # below chance, so that the number of kept pixels decides
    ('supervised.ohem_kept', 200),
)


@pytest.fixture(autouse=True)
def plain_network(monkeypatch):
    monkeypatch.setattr(
        models, 'build', lambda c, n, outputs, axis_name: Plain((*outputs.items(),))
    )


def setup(changes=(), axis=None):
    """Method, context, and a state that has prototypes."""
    config = tiny.get_config()
    config.augment.jitter_prob = config.augment.blur_prob = 0.0  # less to compile
    config.contrastive.weight = 1.0
    for stream in config.data.streams.values():
        stream.batch_size = spread.BATCH
    config.update_from_flattened_dict(dict(changes))
    config = configs.finalise(config)
    method = methods.METHODS[config.method]
    current = state.create(method, method.optimizer(config)[0], methods.context(config))
    rng = np.random.default_rng(1)
    memory = {'prototypes': rng.normal(size=(7, 16)), 'seen': np.ones(7, bool)}
    memory = {name: jnp.asarray(memory[name], old.dtype) for name, old in current.memory.items()}
    return method, methods.context(config, axis, spread.IMAGES), current.replace(memory=memory)


def prepare(method, ctx, current):
    """The keys of a step, and what it is trained on."""
    batch = {name: BATCH[name] for name in method.streams}
    keys = parallel.step_keys(current.key, 1, batch, ctx.axis)
    return keys, jax.jit(lambda s: method.targets(s, batch, keys, ctx)[0])(current)


@functools.cache
def objective(changes, count, devices=1):
    """Step -> metrics, memory and gradient that `objective` gives in so many micro-batches."""
    method, ctx, start = setup((*changes, ('accumulate_steps', count)), parallel.AXIS)
    layout = parallel.Layout('jit', jax.devices()[:devices])

    def measure(current, batch):
        keys = parallel.step_keys(current.key, 1, batch, ctx.axis)
        prepared, _ = method.targets(current, batch, keys, ctx)
        loss = functools.partial(steps.objective, method=method, ctx=ctx)
        (_, (_, memory, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            parallel.varying(current.student.params, ctx.axis), current, prepared, keys
        )
        return current, (metrics, memory, parallel.psum(gradient, ctx.axis))

    def place(step):
        current = start.replace(step=jnp.int32(step))
        return jax.device_put(jax.tree.map(jnp.copy, current), layout.replicated)

    batch = layout.place({name: BATCH[name] for name in method.streams})
    run = layout.compile_step(measure, place(EARLY), batch)
    return lambda step: jax.device_get(run(place(step), batch)[1])


def close(ours, theirs):
    """Every array to 1e-5 of its largest value."""
    for path, expected in state.flat(theirs).items():
        difference = np.abs(state.flat(ours)[path] - np.asarray(expected, np.float64)).max()
        assert difference <= 1e-5 * np.abs(expected).max(), path


@pytest.mark.parametrize(
    ('changes', 'count', 'devices'),
    [((), 8, 1), (WEIGHTED, 8, 1), ((), 4, 2)],
    ids=['thresholded', 'weighted, prototypes of the teacher', 'two devices'],
)
def test_two_images_at_a_time_are_the_batch_of_sixteen(changes, count, devices):
    expected, memory, gradient = objective(changes, 1)(LATE)
    metrics, moved, accumulated = objective(changes, count, devices)(LATE)
    assert expected['weight_contrastive'] == 0 and 0 < expected['confident'] < 0.9
    for name in ('loss_supervised', 'loss_unsupervised', 'loss', 'agreement', 'confident'):
        assert expected[name] > 0
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    assert all(np.abs(gradient[name]['kernel']).max() > 0 for name in ('Conv_0', 'logits'))
    close(accumulated, gradient)
    # The prototypes have moved, once: by the sums over all of the batch.
    assert np.abs(memory['prototypes'] - setup(changes)[2].memory['prototypes']).max() > 1e-3
    close(moved, memory)


def test_l_c_is_the_mean_over_micro_batches():
    method, ctx, current = setup()
    current = current.replace(step=jnp.int32(EARLY))
    keys, prepared = prepare(method, ctx, current)
    cut = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), prepared)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def part(params, i):
        examples = jax.tree.map(lambda x: x[i], cut)
        terms, _ = method.loss(params, current, examples, keys.part(i, 8), ctx)
        return terms['contrastive'].total, method.weights(current, ctx)['contrastive']

    parts = [part(current.student.params, i) for i in range(8)]
    values = np.array([value for (value, _), _ in parts])
    weight = parts[0][0][1]
    assert weight > 0.1 and values.std() > 0.01
    metrics, _, gradient = objective((), 8)(EARLY)
    np.testing.assert_allclose(metrics['loss_contrastive'], values.mean(), rtol=1e-5)
    mean = jax.tree.map(lambda *x: weight * sum(x) / 8, *[gradient for _, gradient in parts])
    alone = jax.tree.map(
        lambda with_, without: with_ - without, gradient, objective((), 8)(LATE)[2]
    )
    np.testing.assert_allclose(
        alone['representation']['kernel'], mean['representation']['kernel'], rtol=1e-4, atol=1e-6
    )
    # Each part draws from its own pixels, so this is not the large batch's L_c.
    large = objective((), 1)(EARLY)[0]
    assert not np.isclose(metrics['loss_contrastive'], large['loss_contrastive'], rtol=1e-3)


def test_the_log_has_sums_over_micro_batches():
    one, eight = objective((), 1)(EARLY)[0], objective((), 8)(EARLY)[0]
    assert eight['anchors'] > 2 * one['anchors'] > 0  # each draws for its own classes
    for share in ('confident', 'confident_foreground', 'agreement', 'valid'):
        np.testing.assert_allclose(eight[share], one[share], rtol=1e-6)


def test_ohem_keeps_so_many_pixels_of_each_device_and_of_each_micro_batch():
    method, ctx, current = setup(OHEM)
    _, prepared = prepare(method, ctx, current)
    logits = ctx.module.apply({'params': current.student.params}, prepared.images)['logits']
    logits = resize.bilinear(logits, (32, 32)).reshape(2, 8, 32, 32, 7)
    labels = prepared.labels.reshape(2, 8, 32, 32)
    halves = [
        losses.ohem_cross_entropy(*half, 0.1, 200 * 8) for half in zip(logits, labels, strict=True)
    ]
    (sums, counts) = np.array(halves).T
    assert (counts == 1600).all() and ((labels >= 0).sum((1, 2, 3)) > 1600).all()
    halved = sums.sum() / counts.sum()
    for count, devices in ((2, 1), (1, 2)):
        metrics, _, _ = objective(OHEM, count, devices)(EARLY)
        np.testing.assert_allclose(metrics['loss_supervised'], halved, rtol=1e-5)
    whole, _, _ = objective(OHEM, 1)(EARLY)
    assert not np.isclose(whole['loss_supervised'], halved, rtol=1e-3)


def test_memory_falls_with_the_size_of_a_micro_batch():
    def temporary(count):
        method, ctx, current = setup((('method', 'supervised'), ('accumulate_steps', count)))
        keys, prepared = prepare(method, ctx, current)

        @jax.jit
        def gradient(params, prepared):
            loss = functools.partial(steps.objective, method=method, ctx=ctx)
            return jax.grad(loss, has_aux=True)(params, current, prepared, keys)

        program = gradient.lower(current.student.params, prepared).compile()
        return cost.cost(program)['bytes_temporary']

    assert 0 < temporary(8) < 0.5 * temporary(1)
