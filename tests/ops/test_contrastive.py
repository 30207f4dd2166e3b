"""The contrastive loss against loops over pixels, against its law, and over several devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from css_jax.ops import contrastive

C, D, N = 4, 8, 512
SMALL = {'num_anchors': 64, 'num_negatives': 24, 'bank_size': 12}
ESTIMATORS = ['bank', 'sampled']


def case(num_classes=C, n=N, seed=0, absent=()):
    """Clustered representations [n, D], labels with ignore, a third of the pixels hard."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, num_classes, n)
    labels[np.isin(labels, absent)] = -1
    centres = rng.normal(size=(num_classes + 1, D))
    z = (centres[labels] + rng.normal(size=(n, D))).astype(np.float32)
    prototypes = (centres[:-1] + 0.2 * rng.normal(size=(num_classes, D))).astype(np.float32)
    return z, labels, rng.random(n) < 1 / 3, prototypes


@partial(jax.jit, static_argnames=('options',))
def compiled(key, z, labels, hard, prototypes, rank, options):
    def f(z, prototypes):
        return contrastive.loss(key, z, labels, hard, prototypes, rank=rank, **dict(options))

    return jax.value_and_grad(f, (0, 1), has_aux=True)(z, prototypes)


def value_and_grad(key, z, labels, hard, prototypes, rank=0, **options):
    """Value, information and gradient; each set of options is compiled once for all tests."""
    (value, info), (gradient, by_prototypes) = compiled(
        key, z, labels, hard, prototypes, rank, tuple(sorted(options.items()))
    )
    assert value.dtype == jnp.float32 and gradient.dtype == z.dtype
    assert (by_prototypes == 0).all()
    return float(value), {k: float(v) for k, v in info.items()}, np.asarray(gradient, np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@partial(jax.jit, static_argnames=('options',))
def drawn(key, log_p, hard_count, count, options):
    """The places [C, A] of the anchors, and [C, K] or [C, A, M] of the negatives, of one key."""
    options = dict(options)
    num_classes, a = len(count), options['num_anchors']
    if options['estimator'] == 'sampled':
        key = jax.random.fold_in(key, 0)
    anchor_key, negative_key = jax.random.split(key)
    anchors = contrastive.draw(anchor_key, hard_count[:, None], (num_classes, a))
    if options['estimator'] == 'bank':
        shape = num_classes, options['bank_size']
        return anchors, contrastive.draw(negative_key, count[:, None], shape)
    parts = -(-a // 32)
    keys = jax.random.split(negative_key, num_classes * parts).reshape(num_classes, parts)
    counts = jnp.stack([hard_count, count - hard_count], axis=1)

    def of_part(key, log_p):
        shape = a // parts, options['num_negatives']
        return contrastive.draw_negatives(key, log_p, counts, shape)

    positions = jax.vmap(jax.vmap(of_part, (0, None)))(keys, log_p)
    return anchors, positions.reshape(num_classes, a, -1)


def reference(key, anchors, negatives, labels, hard, prototypes, options, temperature=0.5):
    """L_c by loops in float64 over the pixels that the same key draws."""
    num_classes = len(prototypes)
    by_class = [
        np.concatenate(
            [np.flatnonzero((labels == c) & hard), np.flatnonzero((labels == c) & ~hard)]
        )
        for c in range(num_classes)
    ]
    order = np.concatenate([*by_class, np.flatnonzero((labels < 0) | (labels >= num_classes))])
    hard_count = np.array([((labels == c) & hard).sum() for c in range(num_classes)])
    count = np.array([len(p) for p in by_class])
    present = np.flatnonzero(count)
    cosines = unit(prototypes.astype(np.float64)) @ unit(prototypes.astype(np.float64)).T
    p = np.exp(cosines / temperature) * (count > 0) * ~np.eye(num_classes, dtype=bool)
    p /= p.sum(axis=1, keepdims=True)
    log_p = np.log(np.maximum(p, 1e-30))
    drawn_anchors, places = jax.device_get(
        drawn(key, log_p, hard_count, count, tuple(sorted(options.items())))
    )
    a = options['num_anchors']
    total = 0.0
    for c in present:
        for i in range(a if hard_count[c] else 0):
            z = unit(anchors[by_class[c][drawn_anchors[c, i]]].astype(np.float64))
            s = np.exp(z @ unit(prototypes[c].astype(np.float64)) / temperature)
            if options['estimator'] == 'sampled':
                others = unit(negatives[order[places[c, i]]].astype(np.float64))
                below = np.exp(others @ z / temperature).sum()
            else:
                below = 0.0
                for k in present[present != c]:
                    others = unit(negatives[by_class[k][places[k]]].astype(np.float64))
                    mean = np.exp(others @ z / temperature).mean()
                    below += options['num_negatives'] * p[c, k] * mean
            total += np.log((s + below) / s) / a
    return total / len(present)


@pytest.mark.parametrize('estimator', ESTIMATORS)
@pytest.mark.parametrize('absent', [(), (2,)])
def test_value_and_gradient_equal_loops(estimator, absent):
    key = jax.random.key(1)
    z, labels, hard, prototypes = case(absent=absent)
    hard[labels == 1] = False  # present, as negatives, but without anchors
    options = {**SMALL, 'estimator': estimator}
    value, info, gradient = value_and_grad(key, z, labels, hard, prototypes, **options)
    brute = partial(
        reference,
        key,
        labels=labels,
        hard=hard,
        prototypes=prototypes,
        options=options,
    )
    assert value == pytest.approx(brute(anchors=z, negatives=z), rel=1e-5)
    assert info['classes_present'] == C - len(absent)
    assert info['anchors'] == SMALL['num_anchors'] * (C - len(absent) - 1)

    # Only hard pixels of classes with anchors move, and as with constant negatives.
    assert (gradient[~hard | (labels < 0)] == 0).all()
    assert np.abs((gradient * z).sum(axis=1)).max() < 1e-7  # cosines do not depend on lengths
    direction = np.random.default_rng(3).normal(size=z.shape)
    ends = [brute(anchors=z + sign * 1e-4 * direction, negatives=z) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2e-4
    assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-3)


order_pixels = jax.jit(contrastive.order_pixels, static_argnums=2)


def test_order_is_stable_by_class_and_hardness():
    _, labels, hard, _ = case()
    labels[:3] = 255, C, -7
    hard[:3] = True
    invalid = (labels < 0) | (labels >= C)
    expected = np.lexsort((np.arange(N), ~hard & ~invalid, np.where(invalid, C, labels)))
    counts = [[((labels == c) & (hard == h)).sum() for h in (True, False)] for c in range(C)]
    order, found = order_pixels(labels, hard, C)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(found, counts)


def test_order_when_class_and_index_do_not_fit_one_word():
    pixels, many = 2**16, 2**15  # 16 bits of an index, 17 of a class, hard or easy, or none
    rng = np.random.default_rng(0)
    labels, hard = rng.integers(-1, many, pixels), rng.random(pixels) < 1 / 3
    order, counts = order_pixels(labels, hard, many)
    group = np.where(labels < 0, 2 * many, 2 * labels + ~hard)
    np.testing.assert_array_equal(order, np.argsort(group, kind='stable'))
    expected = np.bincount(group, minlength=2 * many)[: 2 * many]
    np.testing.assert_array_equal(np.asarray(counts).ravel(), expected)


def chi_square_bound(cells):
    """Mean of the statistic plus five standard deviations."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))


def test_anchors_are_uniform_over_the_hard_pixels_of_their_class():
    _, labels, hard, _ = case()

    @jax.jit
    def drawn_pixels(key):
        order, counts = contrastive.order_pixels(labels, hard, C)
        ranks = contrastive.draw(key, counts[:, :1], (C, 40_000))
        positions, owned = contrastive.locate(ranks, counts[None], 0)
        return order[positions], owned

    found, owned = jax.device_get(drawn_pixels(jax.random.key(0)))
    assert owned.all()
    for c in range(C):
        times = np.bincount(found[c], minlength=N)
        pixels = (labels == c) & hard
        assert (times[~pixels] == 0).all()
        expected = 40_000 / pixels.sum()
        statistic = ((times[pixels] - expected) ** 2 / expected).sum()
        assert statistic < chi_square_bound(pixels.sum())


def test_negatives_follow_the_softmax_and_are_uniform_in_their_class():
    num, temperature, absent = 200_000, 0.5, (0, 3, 5)
    _, labels, hard, prototypes = case(num_classes=6, absent=absent)
    present = np.isin(np.arange(6), absent, invert=True)
    cosines = unit(prototypes) @ unit(prototypes).T

    @jax.jit
    def drawn_pixels(keys):
        order, counts = contrastive.order_pixels(labels, hard, 6)
        table = contrastive.log_class_probabilities(prototypes, present, temperature)
        positions = jax.lax.map(
            lambda of_class: contrastive.draw_negatives(*of_class, counts, (num,)), (keys, table)
        )
        return table, order[positions]

    table, all_drawn = jax.device_get(drawn_pixels(jax.random.split(jax.random.key(0), 6)))
    for c in np.flatnonzero(present):
        probability = np.exp(cosines[c] / temperature) * present * (np.arange(6) != c)
        probability /= probability.sum()
        np.testing.assert_allclose(np.exp(table[c]), probability, atol=1e-6)
        drawn = all_drawn[c]
        found = np.bincount(labels[drawn], minlength=6)
        assert (found[probability == 0] == 0).all()
        error = np.sqrt(num * probability * (1 - probability))
        assert (np.abs(found - num * probability) <= 5 * error).all()
        for other in np.flatnonzero(probability):  # hard and easy alike
            pixels = np.bincount(drawn, minlength=N)[labels == other]
            expected = found[other] / len(pixels)
            statistic = ((pixels - expected) ** 2 / expected).sum()
            assert statistic < chi_square_bound(len(pixels))


def test_draws_stay_below_their_count():
    counts = np.int32([[0], [1], [2], [2**24 + 1], [2**31 - 1]])
    draw = jax.jit(contrastive.draw, static_argnums=2)
    drawn = np.asarray(draw(jax.random.key(0), counts, (5, 10_000)))
    assert (drawn >= 0).all() and (drawn[1:] < counts[1:]).all() and (drawn[0] == 0).all()


def test_estimators_agree_in_mean_and_mean_gradient():
    """Of the same keys, that is of the same anchors: what differs is the negatives alone."""
    z, labels, hard, prototypes = case(n=256)
    draws, chunk = 128, 32
    options = {'scope': 'device', 'num_anchors': 32, 'num_negatives': 256, 'bank_size': 128}

    def both(keys):
        def f(z, key, estimator):
            return contrastive.loss(
                key, z, labels, hard, prototypes, estimator=estimator, **options
            )[0]

        found = {}
        for name in ESTIMATORS:
            gradient = jax.value_and_grad(partial(f, estimator=name))
            values, gradients = jax.vmap(gradient, (None, 0))(z, keys)
            found[name] = values, gradients.mean(axis=0)
        return found

    keys = jax.random.split(jax.random.key(0), draws).reshape(-1, chunk)
    found = jax.device_get(jax.jit(partial(lax.map, both))(keys))
    values = {name: np.float64(found[name][0]).ravel() for name in ESTIMATORS}
    difference = values['bank'] - values['sampled']
    error = difference.std(ddof=1) / np.sqrt(draws)
    assert abs(difference.mean()) <= 4 * error
    # And that is little: one negative of a hundred too many would be log(1.01), twice as much.
    assert 4 * error < np.log(1.01) / 2
    bank, sampled = (unit(found[name][1].mean(axis=0).ravel()) for name in ESTIMATORS)
    assert np.vdot(bank, sampled) >= 0.9999


def degenerate(name):
    z, labels, hard, prototypes = case()
    if name == 'no valid pixel':
        labels[:] = -1
    elif name == 'one class, every pixel':
        labels[:] = C - 1
    elif name == 'no hard pixel':
        hard[:] = False
    elif name == 'all hard':
        hard[:] = True
    elif name == 'zero vectors':
        z[:], prototypes[:] = 0, 0
    elif name == 'two classes, one pixel each':
        labels[:] = -1
        labels[0], labels[-1], hard[:] = 0, C - 1, True
    return z, labels, hard, prototypes


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_degenerate_inputs_are_finite(estimator):
    def f(z, labels, hard, prototypes):
        key, options = jax.random.key(0), {**SMALL, 'estimator': estimator}
        return value_and_grad(key, z, labels, hard, prototypes, **options)

    for name in ('no valid pixel', 'one class, every pixel', 'no hard pixel'):
        value, _, gradient = f(*degenerate(name))
        assert value == 0 and (gradient == 0).all(), name
    for name in ('all hard', 'two classes, one pixel each'):
        value, _, gradient = f(*degenerate(name))
        assert value > 0 and np.isfinite(gradient).all() and (gradient != 0).any(), name
    value, _, gradient = f(*degenerate('zero vectors'))  # all similarities are 0
    assert value == pytest.approx(np.log(1 + SMALL['num_negatives']), rel=1e-6)
    assert (gradient == 0).all()


def test_small_temperature():
    key, (z, labels, hard, prototypes) = jax.random.key(4), case()
    options = {**SMALL, 'estimator': 'bank', 'temperature': 0.01}  # exponents up to 200
    value, _, gradient = value_and_grad(key, z, labels, hard, prototypes, **options)
    expected = reference(key, z, z, labels, hard, prototypes, options, temperature=0.01)
    assert value == pytest.approx(expected, rel=1e-4) and np.isfinite(gradient).all()


def test_bfloat16_is_computed_in_float32():
    key, (z, *rest) = jax.random.key(4), case()
    options = {**SMALL, 'estimator': 'bank'}
    low = jnp.asarray(z, jnp.bfloat16)
    value, _, gradient = value_and_grad(key, low, *rest, **options)
    exact, _, expected = value_and_grad(key, low.astype(jnp.float32), *rest, **options)
    assert value == pytest.approx(exact, rel=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=0.02 * expected.max())


def on_devices(devices, key, z, labels, hard, prototypes, psum=None, **options):
    """Value, information and gradient of each of several devices, which hold the batch in turn."""

    def local(z, labels, hard):
        return contrastive.loss(
            key,
            z,
            labels,
            hard,
            prototypes,
            gather=lambda x: lax.all_gather(x, 'd'),
            psum=psum,
            rank=lax.axis_index('d'),
            **options,
        )

    split = [x.reshape(devices, -1, *x.shape[1:]) for x in (z, labels, hard)]
    f = jax.vmap(jax.value_and_grad(local, has_aux=True), axis_name='d')
    (value, info), gradient = jax.device_get(jax.jit(f)(*split))
    return value, info, gradient.reshape(z.shape)


@pytest.mark.parametrize(('devices', 'psum'), [(2, None), (4, lambda x: lax.psum(x, 'd'))])
def test_bank_is_that_of_the_global_batch(devices, psum):
    key, (z, labels, hard, prototypes) = jax.random.key(5), case(absent=(2,))
    labels[: N // devices][labels[: N // devices] == 1] = -1  # the first device lacks a class
    labels[N - N // devices :] = -1  # the last has nothing
    options = {**SMALL, 'estimator': 'bank'}
    single, info, gradient = value_and_grad(key, z, labels, hard, prototypes, **options)
    value, parts, sharded = on_devices(
        devices, key, z, labels, hard, prototypes, psum=psum, **options
    )
    assert value.sum() == pytest.approx(single, rel=1e-6)
    np.testing.assert_allclose(sharded, gradient, atol=1e-7)
    assert {k: float(v.sum()) for k, v in parts.items()} == pytest.approx(info)


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_scope_device_is_the_mean_over_devices(estimator):
    key, (z, labels, hard, prototypes) = jax.random.key(6), case()
    options = {**SMALL, 'estimator': estimator, 'scope': 'device'}
    value, info, gradient = on_devices(2, key, z, labels, hard, prototypes, **options)
    if estimator == 'sampled':
        del options['scope']  # its default; without it the program is that of other tests
    for rank, part in enumerate((slice(0, N // 2), slice(N // 2, N))):
        own = np.full_like(labels, -1)  # for each device its own pixels are all that there are
        own[part] = labels[part]
        alone, _, expected = value_and_grad(key, z, own, hard, prototypes, rank=rank, **options)
        assert value[rank] == pytest.approx(alone / 2, rel=1e-6)
        other, _, _ = value_and_grad(key, z, own, hard, prototypes, rank=1 - rank, **options)
        assert other != pytest.approx(alone, rel=1e-5)  # each device draws for itself
        np.testing.assert_allclose(gradient[part], expected[part] / 2, atol=1e-7)
    assert info['classes_present'].sum() == C


def traced_in_shard_map(key, z, labels, hard, prototypes, options):
    """Value and gradient under shard_map, of a mesh of one device; traced."""

    def local(z, labels, hard):
        (value, _), gradient = jax.value_and_grad(
            lambda z: contrastive.loss(
                key,
                z,
                labels,
                hard,
                prototypes,
                gather=lambda x: lax.all_gather(x, 'd'),
                psum=lambda x: lax.psum(x, 'd'),
                rank=lax.axis_index('d'),
                **options,
            ),
            has_aux=True,
        )(z)
        return lax.psum(value, 'd'), gradient

    data, whole = jax.P('d'), jax.P()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('d',))
    f = jax.shard_map(local, mesh=mesh, in_specs=(data, data, data), out_specs=(whole, data))
    return jax.jit(f).trace(z, labels, hard)


@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_shard_map_accepts_it_and_of_many_classes_those_without_anchors_are_left_out(
    monkeypatch, estimator, many
):
    key, (z, labels, hard, prototypes) = jax.random.key(8), case(absent=(0, 2))
    hard = hard & (labels != 3)  # of which there are easy pixels alone
    options = {**SMALL, 'estimator': estimator}
    expected, _, expected_gradient = value_and_grad(key, z, labels, hard, prototypes, **options)
    monkeypatch.setattr(contrastive, '_CLASSES_ALWAYS', C - 1 if many else C)
    traced = traced_in_shard_map(key, z, labels, hard, prototypes, options)
    assert (' cond[' in str(traced.jaxpr)) == many
    value, gradient = traced.lower().compile()(z, labels, hard)
    assert float(value) == pytest.approx(expected, rel=1e-6) and expected > 0
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_memory_at_the_real_size(estimator):
    def f(key, z, labels, hard, prototypes):
        return contrastive.loss(key, z, labels, hard, prototypes, estimator=estimator)[0]

    map_shape = (16, 128, 128)
    shapes = [
        jax.ShapeDtypeStruct((*map_shape, 256), jnp.float32),
        jax.ShapeDtypeStruct(map_shape, jnp.int32),
        jax.ShapeDtypeStruct(map_shape, bool),
        jax.ShapeDtypeStruct((21, 256), jnp.float32),
    ]
    program = jax.jit(jax.grad(f, argnums=1)).lower(jax.random.key(0), *shapes).compile()
    memory = program.memory_analysis()
    gradient = np.prod(shapes[0].shape) * 4
    # Beside the gradient itself nothing of its size is held.
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 1.25 * gradient


def test_errors_name_the_argument():
    z, labels, hard, prototypes = case()
    loss = partial(contrastive.loss, jax.random.key(0))
    with pytest.raises(ValueError, match="estimator is 'banks'; expected 'bank' or 'sampled'"):
        loss(z, labels, hard, prototypes, estimator='banks')
    with pytest.raises(ValueError, match="scope is 'global'; expected 'device', or 'global' with"):
        loss(z, labels, hard, prototypes, estimator='sampled', scope='global')
    with pytest.raises(ValueError, match=r'hard has shape \(511,\); expected \(512,\)'):
        loss(z, labels, hard[1:], prototypes)
    with pytest.raises(ValueError, match=r'prototypes has shape \(4, 7\); expected \[C, 8\]'):
        loss(z, labels, hard, prototypes[:, 1:])
    with pytest.raises(ValueError, match='num_negatives is 0; expected more than 0'):
        loss(z, labels, hard, prototypes, num_negatives=0)


def test_segments_make_two_streams_draw_alike_on_one_device_and_on_two():
    """A batch is [stream a, stream b] on one device, and both halves of each on every of two."""
    key, (z, labels, hard, prototypes) = jax.random.key(7), case()
    options = {**SMALL, 'estimator': 'bank'}
    single, _, gradient = value_and_grad(key, z, labels, hard, prototypes, **options)
    half, quarter = N // 2, N // 4
    order = np.r_[0:quarter, half : half + quarter, quarter:half, half + quarter : N]
    split = {**options, 'segments': (quarter, half - quarter)}
    value, _, sharded = on_devices(
        2, key, z[order], labels[order], hard[order], prototypes, **split
    )
    assert value.sum() == pytest.approx(single, rel=1e-6)
    np.testing.assert_allclose(sharded, gradient[order], atol=1e-7)
    mixed, _, _ = on_devices(2, key, z[order], labels[order], hard[order], prototypes, **options)
    assert mixed.sum() != pytest.approx(single, rel=1e-6)  # without segments: other pixels
