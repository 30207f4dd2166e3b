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
from tests.test_step import on_host

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


def configured(changes=()):
    config = tiny.get_config()
    config.contrastive.weight = 1.0
    for stream in config.data.streams.values():
        stream.batch_size = spread.BATCH
    config.update_from_flattened_dict(dict(changes))
    config = configs.finalise(config)
    return methods.METHODS[config.method], config


@functools.cache
def first(changes):
    """A state that has prototypes, on the host but for its key."""
    method, config = configured(changes)
    current = state.create(method, method.optimizer(config)[0], methods.context(config))
    rng = np.random.default_rng(1)
    memory = {'prototypes': rng.normal(size=(7, 16)), 'seen': np.ones(7, bool)}
    memory = {name: memory[name].astype(old.dtype) for name, old in current.memory.items()}
    return on_host(current.replace(memory=memory))


def setup(changes=(), count=1, axis=None):
    """Method, context, the state, and the batch of the method's streams."""
    method, config = configured((*changes, ('accumulate_steps', count)))
    batch = {name: BATCH[name] for name in method.streams}
    return method, methods.context(config, axis, spread.IMAGES), first(changes), batch


def prepare(method, ctx, current, batch):
    """The keys of a step, and what it is trained on."""
    keys = parallel.step_keys(current.key, 1, batch, ctx.axis)
    return keys, method.targets(current, batch, keys, ctx)[0]


@functools.cache
def objective(changes, count, devices=1):
    """Step -> metrics, memory and gradient that `objective` gives in so many micro-batches."""
    method, ctx, start, batch = setup(changes, count, parallel.AXIS)
    layout = parallel.Layout('jit', jax.devices()[:devices])

    def measure(current, batch):
        keys, prepared = prepare(method, ctx, current, batch)
        loss = functools.partial(steps.objective, method=method, ctx=ctx)
        (_, (_, memory, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            parallel.varying(current.student.params, ctx.axis), current, prepared, keys
        )
        return current, (metrics, memory, parallel.psum(gradient, ctx.axis))

    def place(step):
        return jax.device_put(on_host(start.replace(step=np.int32(step))), layout.replicated)

    batch = layout.place(batch)
    run = layout.compile_step(measure, place(EARLY), batch)
    return functools.cache(lambda step: jax.device_get(run(place(step), batch)[1]))


def close(ours, theirs):
    """Every array to 1e-5 of its largest value."""
    for path, expected in state.flat(theirs).items():
        difference = np.abs(state.flat(ours)[path] - np.asarray(expected, np.float64)).max()
        assert difference <= 1e-5 * np.abs(expected).max(), path


@pytest.mark.parametrize(
    ('changes', 'count', 'devices'),
    [((), 8, 1), (WEIGHTED, 4, 2)],
    ids=['thresholded', 'two devices, weighted, prototypes of the teacher'],
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
    assert np.abs(memory['prototypes'] - first(changes).memory['prototypes']).max() > 1e-3
    close(moved, memory)


def test_l_c_is_the_mean_over_micro_batches():
    method, ctx, current, batch = setup()
    current = current.replace(step=np.int32(EARLY))

    @jax.jit
    def all_parts(current, batch):
        keys, prepared = prepare(method, ctx, current, batch)
        cut = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), prepared)
        params = current.student.params

        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(head, given):
            index, examples = given
            terms, _ = method.loss(
                params | {'representation': head}, current, examples, keys.part(index, 8), ctx
            )
            return terms['contrastive'].total, method.weights(current, ctx)['contrastive']

        part = functools.partial(loss, params['representation'])
        return jax.lax.map(part, (jnp.arange(8), cut))

    (values, weights), parts = jax.device_get(all_parts(current, batch))
    weight = weights[0]
    assert weight > 0.1 and values.std() > 0.01
    metrics, _, gradient = objective((), 8)(EARLY)
    np.testing.assert_allclose(metrics['loss_contrastive'], values.mean(), rtol=1e-5)
    with_, without = (
        run['representation']['kernel'] for run in (gradient, objective((), 8)(LATE)[2])
    )
    np.testing.assert_allclose(
        with_ - without, weight * parts['kernel'].mean(0), rtol=1e-4, atol=1e-6
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
    method, ctx, current, batch = setup(OHEM)

    @jax.jit
    def by_hand(current, batch):
        _, prepared = prepare(method, ctx, current, batch)
        logits = ctx.module.apply({'params': current.student.params}, prepared.images)['logits']
        logits, labels = resize.bilinear(logits, (32, 32)), prepared.labels
        quarters = [
            losses.ohem_cross_entropy(logits[i : i + 4], labels[i : i + 4], 0.1, 200 * 4)
            for i in range(0, 16, 4)
        ]
        return quarters, losses.ohem_cross_entropy(logits, labels, 0.1, 200 * 16)

    quarters, whole = jax.device_get(by_hand(current, batch))
    sums, counts = np.array(quarters).T
    assert 0 < counts[0] < 800 and (counts[1:] == 800).all()  # the first has too few labels
    expected = sums.sum() / counts.sum()
    metrics, _, _ = objective(OHEM, 2, 2)(EARLY)
    np.testing.assert_allclose(metrics['loss_supervised'], expected, rtol=1e-5)
    assert not np.isclose(expected, whole[0] / whole[1], rtol=1e-3)


def test_memory_falls_with_the_size_of_a_micro_batch():
    def temporary(count):
        method, ctx, current, batch = setup((('method', 'supervised'),), count)
        prepared = jax.eval_shape(lambda: prepare(method, ctx, current, batch)[1])

        @jax.jit
        def gradient(params, prepared):
            keys = parallel.step_keys(current.key, 1, batch, ctx.axis)
            loss = functools.partial(steps.objective, method=method, ctx=ctx)
            return jax.grad(loss, has_aux=True)(params, current, prepared, keys)

        program = gradient.lower(current.student.params, prepared).compile()
        return cost.cost(program)['bytes_temporary']

    assert 0 < temporary(8) < 0.5 * temporary(1)
