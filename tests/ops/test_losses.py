"""Losses against the reference program's numbers, and where it would divide by zero."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import losses, pseudo_labels, resize

FIXTURES = Path(__file__).parents[1] / 'fixtures'
GOLDEN = np.load(FIXTURES / 'reference_small.npz')
IMAS = np.load(FIXTURES / 'imas_ops.npz')
USSS = np.load(FIXTURES / 'usss_ops.npz')


def nhwc(name):
    return np.moveaxis(GOLDEN[name], 1, -1)


def close(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.max(np.abs(np.asarray(ours) - theirs)) <= 1e-4 * np.max(np.abs(theirs))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


CASES = {
    'ce': lambda x: losses.cross_entropy(x, GOLDEN['label']),
    'ohem_thresh0p7_kept300': lambda x: losses.ohem_cross_entropy(x, GOLDEN['label'], 0.7, 300),
    'ohem_thresh0p7_kept400': lambda x: losses.ohem_cross_entropy(x, GOLDEN['label'], 0.7, 400),
    'unsup_weighted_0p97': lambda x: losses.weighted_unsupervised(
        x, GOLDEN['label'], GOLDEN['indicator'], 0.97
    ),
    'unsup_weighted_sparse_0p95': lambda x: losses.weighted_unsupervised(
        x, GOLDEN['label_sparse'], GOLDEN['indicator_high'], 0.95
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_value_and_gradient_are_the_reference_s(name):
    loss = jax.jit(jax.value_and_grad(lambda x: losses.mean(*CASES[name](x))))
    value, grad = loss(nhwc('logits'))
    close(value, GOLDEN[name])
    close(np.moveaxis(grad, -1, 1), GOLDEN[f'{name}_grad'])


def test_value_and_gradient_with_a_channel_of_void_are_usss_s():
    """Void has a logit in the softmax, and is never a target."""
    labels = USSS['ce/labels'].astype(np.int32)
    labels[labels == 5] = -1
    loss = jax.jit(jax.value_and_grad(lambda x: losses.mean(*losses.cross_entropy(x, labels))))
    value, grad = loss(USSS['ce/logits'])
    close(value, USSS['ce/loss'])
    close(grad, USSS['ce/grad'])
    assert np.all(grad[..., 5][labels >= 0] > 0)


@pytest.mark.parametrize(
    'loss',
    [
        losses.cross_entropy,
        lambda x, y: losses.ohem_cross_entropy(x, y, 0.7, 10),
        lambda x, y: losses.weighted_unsupervised(x, y, jnp.ones(y.shape)),
        lambda x, y: losses.thresholded_unsupervised(x, y, jnp.ones(y.shape)),
    ],
)
def test_all_ignored_gives_zero_and_a_finite_gradient(loss):
    labels = np.full((2, 4, 4), -1)
    mean = jax.jit(jax.value_and_grad(lambda x: losses.mean(*loss(x, labels))))
    value, grad = mean(np.full((2, 4, 4, 3), 1e4, np.float32))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_ohem_keeps_all_when_fewer_are_valid_than_kept():
    logits = np.zeros((1, 4, 4, 3), np.float32)
    logits[..., 0] = 9  # every pixel is easy
    labels = np.zeros((1, 4, 4), np.int32)
    labels[0, 0] = -1
    ohem = jax.jit(losses.ohem_cross_entropy, static_argnums=3)
    assert ohem(logits, labels, 0.7, 13)[1] == 12
    assert ohem(logits, labels, 0.7, 100)[1] == 12


def test_ohem_keeps_the_hardest():
    margins = np.arange(16, dtype=np.float32).reshape(1, 4, 4) / 2
    logits, labels = np.stack([margins, 0 * margins], -1), np.zeros((1, 4, 4), np.int32)
    total, count = jax.jit(losses.ohem_cross_entropy, static_argnums=3)(logits, labels, 0.5, 5)
    assert count == 5
    expected = np.log1p(np.exp(-np.arange(5) / 2)).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_an_image_without_pseudo_labels_adds_nothing_to_the_others():
    logits = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    labels = np.stack([np.zeros((4, 4), int), np.full((4, 4), -1)])
    indicator = np.full((2, 4, 4), 0.99, np.float32)
    weighted = jax.jit(losses.weighted_unsupervised)
    both = weighted(logits, labels, indicator)
    alone = weighted(logits[:1], labels[:1], indicator[:1])
    np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_thresholded_counts_confident_labelled_pixels_only():
    labels = np.array([[[0, 1, -1, 1]]])
    indicator = np.float32([[[0.97, 0.5, 1.0, 0.98]]])
    logits = np.random.default_rng(1).normal(size=(1, 1, 4, 2)).astype(np.float32)
    total, count = jax.jit(losses.thresholded_unsupervised)(logits, labels, indicator, 0.97)
    assert count == 2
    log_p = np.log(softmax(logits))[0, 0]
    np.testing.assert_allclose(total, -(log_p[0, 0] + log_p[3, 1]), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = np.zeros((1, 64, 64, 2), jnp.bfloat16)
    total, count = jax.jit(losses.cross_entropy)(logits, np.zeros((1, 64, 64), int))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(np.float64(total) / count, np.log(2), rtol=1e-6)


@pytest.mark.parametrize('shape', [(3, 4, 4), (2, 4, 3), (2, 4), (2, 4, 4, 1)])
def test_shapes_that_do_not_fit_are_named(shape):
    expected = rf'labels: got shape {re.escape(str(shape))}, expected \(2, 4, 4\)'
    with pytest.raises(ValueError, match=expected):
        losses.cross_entropy(np.zeros((2, 4, 4, 3), np.float32), np.zeros(shape, int))


def test_a_label_that_is_no_class_stops_a_run():
    labels = np.array([[0, 1, -1, 2]])
    found = jax.jit(losses.pixel_cross_entropy)(np.zeros((1, 4, 2), np.float32), labels)
    np.testing.assert_array_equal(np.isnan(found), labels == 2)


# Logits of a smaller map: resized a few images at a time.


def at_once(logits, labels):
    """The cross-entropy of each pixel with all of the resized logits there at once."""
    log_p = jax.nn.log_softmax(resize.bilinear(logits, labels.shape[1:]))
    own = jnp.take_along_axis(log_p, labels.clip(0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels >= 0, -own, 0.0)


LOSSES = {
    'ce': lambda x, y, j: losses.cross_entropy(x, y),
    'ohem': lambda x, y, j: losses.ohem_cross_entropy(x, y, 0.3, 700),
    'weighted': lambda x, y, j: losses.weighted_unsupervised(x, y, j, 0.5),
    'thresholded': lambda x, y, j: losses.thresholded_unsupervised(x, y, j, 0.5),
}


def example(batch, num_classes, size=(21, 18)):
    """Logits [B, 6, 5, C], and labels and indicators of `size`; the last image has no label."""
    rng = np.random.default_rng(batch)
    logits = rng.normal(0, 3, (batch, 6, 5, num_classes)).astype(np.float32)
    labels = rng.integers(-1, num_classes, (batch, *size), np.int32)
    labels[-1] = -1
    return logits, labels, rng.random(labels.shape, np.float32)


def value_and_pullback(function, logits, labels):
    weights = np.cos(np.arange(labels.size, dtype=np.float32)).reshape(labels.shape)
    value, pullback = jax.vjp(lambda x: function(x, labels), logits)
    return value, pullback(weights)[0]


@functools.cache
def expected_at_once(batch, num_classes):
    return jax.jit(lambda x, y: value_and_pullback(at_once, x, y))(*example(batch, num_classes)[:2])


@pytest.mark.parametrize(
    ('batch', 'num_classes', 'images', 'turns'),
    [
        (1, 5, 1, 1),
        (4, 1, 4, 1),  # one class
        (4, 1, 2, 2),
        (6, 5, 4, 2),  # three at a time, so that no turn is another's size
        (6, 5, 1, 6),
        (5, 5, 2, 5),  # a prime number of images: one at a time
    ],
)
def test_a_few_images_at_a_time_are_the_same_pixels(monkeypatch, batch, num_classes, images, turns):
    logits, labels, _ = example(batch, num_classes)
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', images * 4 * 21 * 18 * num_classes)
    own = jax.jit(lambda x, y: value_and_pullback(losses.pixel_cross_entropy, x, y))
    traced = own.trace(logits, labels)
    assert re.findall(r'length=(\d+)', str(traced.jaxpr)) == [str(turns)] * 2 * (turns > 1)
    ours = traced.lower().compile()(logits, labels)
    for mine, expected in zip(ours, expected_at_once(batch, num_classes), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)
    assert not np.any(ours[1][-1])  # of the image without labels


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_of_a_smaller_map_is_that_of_the_resized_one(monkeypatch, name):
    logits, labels, indicator = example(5, 4)
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 1)

    def both(x):
        def loss(x, logits_of):
            return losses.mean(*LOSSES[name](logits_of(x), labels, indicator))

        of = jax.value_and_grad(loss)
        return of(x, lambda x: x), of(x, lambda x: resize.bilinear(x, labels.shape[1:]))

    (value, gradient), (expected, expected_gradient) = jax.jit(both)(logits)
    assert expected > 0
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_the_loop_runs_on_each_of_two_devices(monkeypatch):
    if jax.device_count() < 2:
        pytest.skip('one device')
    logits, labels, _ = example(4, 5)
    seen, rho = np.arange(5) != 2, np.eye(5, dtype=np.float32)

    def local(logits, labels):
        def loss(x):
            y, _ = pseudo_labels.from_prototypes(x, rho, labels.shape[1:], 0.1, seen)
            return losses.cross_entropy(x, jnp.where(labels < 0, y, labels))[0]

        return jax.value_and_grad(loss)(logits)

    def summed(logits, labels):
        value, gradient = local(logits, labels)
        return jax.lax.psum(value, 'd'), gradient

    mesh, data = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('d',)), jax.P('d')
    specs = {'in_specs': (data, data), 'out_specs': (jax.P(), data)}
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 1)
    value, gradient = jax.jit(jax.shard_map(summed, mesh=mesh, **specs))(logits, labels)
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 2**30)
    whole, expected = jax.jit(lambda *given: local(*given))(logits, labels)
    np.testing.assert_allclose(value, whole, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_memory_grows_by_the_small_maps_alone(monkeypatch):
    """With 150 classes and more images, no map of theirs at full resolution."""
    side, small, num_classes = 64, 16, 150
    one_image = 4 * side * side * num_classes
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', one_image)

    def temporary(batch):
        logits = jax.ShapeDtypeStruct((batch, small, small, num_classes), jnp.float32)
        labels = jax.ShapeDtypeStruct((batch, side, side), jnp.int32)

        @jax.jit
        def all_of_them(logits, labels):
            def loss(x):
                label, indicator = pseudo_labels.from_logits(jax.lax.stop_gradient(x), (side, side))
                supervised = losses.ohem_cross_entropy(x, labels, 0.7, 100)
                return losses.mean(*supervised) + losses.mean(
                    *losses.weighted_unsupervised(x, label, indicator)
                )

            return jax.value_and_grad(loss)(logits)

        program = all_of_them.lower(logits, labels).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(12)
    low_resolution = 4 * small * small * num_classes  # bytes of one image
    pixels = 4 * side * side
    # One image's resized map and what is made of it, forward and backward.
    assert few <= 5 * one_image + 4 * (4 * low_resolution + 12 * pixels)
    # Every further image: its logits, their gradients, and maps without an axis of classes.
    assert many - few <= 8 * (4 * low_resolution + 12 * pixels) < 8 * one_image / 2


def test_a_soft_count_below_one_divides_as_it_should():
    mean = jax.jit(losses.mean)
    assert float(mean(0.2, 0.4)) == pytest.approx(0.5)
    assert float(mean(0.0, 0.0)) == 0
    # Nothing to count has no gradient either, and none that is not a number.
    gradient = jax.jit(jax.grad(lambda x: losses.mean(x, 0 * x)))(3.0)
    assert float(gradient) == 0


easiness_weighted = jax.jit(losses.easiness_weighted)


def imas_close(ours, theirs):
    assert np.max(np.abs(ours - theirs)) <= 1e-5 * np.max(np.abs(theirs))


@pytest.mark.parametrize(
    'case', ['random', 'ignored_and_none_confident', 'confidence_equals_threshold']
)
def test_easiness_weighs_images_as_in_the_program_of_imas(case):
    logits, label, confidence, easiness, threshold = (
        IMAS[f'unsup_{case}_{name}']
        for name in ('logits', 'label', 'confidence', 'easiness', 'threshold')
    )

    def mean(logits, easiness):
        return losses.mean(*easiness_weighted(logits, label, confidence, easiness, threshold))

    loss = jax.jit(jax.value_and_grad(mean))
    value, grad = loss(logits, easiness)
    imas_close(value, IMAS[f'unsup_{case}_loss'])
    imas_close(grad, IMAS[f'unsup_{case}_grad'])
    images = len(easiness)
    imas_close(loss(logits, np.ones(images, np.float32))[0], IMAS[f'unsup_{case}_loss_unweighted'])
    each = [images * loss(logits, one)[0] for one in np.eye(images, dtype=np.float32)]
    imas_close(np.array(each), IMAS[f'unsup_{case}_loss_of_image'])
    assert losses.easiness_weighted(logits, label, confidence, easiness, threshold)[1] == images


def test_two_views_are_averaged_where_the_group_is_mixed():
    views = {
        view: [IMAS[f'unsup_views_{view}_{name}'] for name in ('logits', 'label', 'confidence')]
        for view in ('strong', 'mixed')
    }
    easiness, threshold, weight = (
        IMAS[f'unsup_views_{name}'] for name in ('easiness', 'threshold', 'weight')
    )

    def total(logits, mixed):
        means = {
            view: losses.mean(*easiness_weighted(x, *views[view][1:], easiness, threshold))
            for view, x in logits.items()
        }
        both = (means['strong'] + means['mixed']) / 2
        return weight * jnp.where(mixed, both, means['strong'])

    both = jax.jit(jax.value_and_grad(total))
    logits = {view: arrays[0] for view, arrays in views.items()}
    value, grads = both(logits, True)
    imas_close(value, IMAS['unsup_views_total_mixed'])
    imas_close(grads['strong'], IMAS['unsup_views_total_mixed_grad_strong'])
    imas_close(grads['mixed'], IMAS['unsup_views_total_mixed_grad_mixed'])
    value, grads = both(logits, False)
    imas_close(value, IMAS['unsup_views_total_unmixed'])
    imas_close(grads['strong'], IMAS['unsup_views_total_unmixed_grad_strong'])
    np.testing.assert_array_equal(grads['mixed'], 0)


def test_no_confident_pixel_gives_zero_and_a_finite_gradient():
    labels = np.full((2, 4, 4), 1)

    def mean(x):
        confidence, easiness = np.full(labels.shape, 0.9, np.float32), np.ones(2, np.float32)
        return losses.mean(*losses.easiness_weighted(x, labels, confidence, easiness, 0.95))

    value, grad = jax.jit(jax.value_and_grad(mean))(np.full((2, 4, 4, 3), 1e4, np.float32))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_easiness_weighted_resizes_smaller_logits():
    rng = np.random.default_rng(0)
    logits, labels = (
        rng.normal(size=(2, 3, 4, 5)).astype(np.float32),
        rng.integers(-1, 5, (2, 9, 8)),
    )
    rest = labels, rng.random((2, 9, 8), np.float32), rng.random(2, np.float32), 0.3
    large = resize.bilinear(logits, (9, 8))
    np.testing.assert_allclose(
        easiness_weighted(logits, *rest)[0], easiness_weighted(large, *rest)[0], rtol=1e-6
    )


@pytest.mark.parametrize('case', ['aux_few_kept', 'aux_many_kept', 'more_than_valid'])
def test_ohem_with_an_auxiliary_head_is_that_of_imas(case):
    label = IMAS['supervised_label']
    threshold, min_kept, aux_weight = (
        IMAS[f'supervised_ohem_{case}_{name}'].item()
        for name in ('threshold', 'min_kept', 'aux_weight')
    )

    def loss(logits, aux_logits):
        main, aux = (
            losses.ohem_cross_entropy(x, label, threshold, min_kept) for x in (logits, aux_logits)
        )
        return losses.mean(*main) + aux_weight * losses.mean(*aux), (main[1], aux[1])

    heads = IMAS['supervised_logits'], IMAS['supervised_aux_logits']
    (value, kept), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*heads)
    imas_close(value, IMAS[f'supervised_ohem_{case}_loss'])
    for grad, count, head in zip(grads, kept, ('', 'aux_'), strict=True):
        imas_close(grad, IMAS[f'supervised_ohem_{case}_{head}grad'])
        assert count == IMAS[f'supervised_ohem_{case}_{head}kept'].sum()


def test_cross_entropy_is_that_of_imas():
    label = IMAS['supervised_label']
    loss = jax.jit(jax.value_and_grad(lambda x: losses.mean(*losses.cross_entropy(x, label))))
    value, grad = loss(IMAS['supervised_logits'])
    imas_close(value, IMAS['supervised_ce_loss'])
    imas_close(grad, IMAS['supervised_ce_grad'])
