"""Losses against the reference program's numbers, and where it would divide by zero."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import losses, pseudo_labels, resize

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'reference_small.npz')


def nhwc(name):
    return jnp.asarray(np.moveaxis(GOLDEN[name], 1, -1))


def close(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.max(np.abs(np.asarray(ours) - theirs)) <= 1e-4 * np.max(np.abs(theirs))


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
    value, grad = jax.value_and_grad(lambda x: losses.mean(*CASES[name](x)))(nhwc('logits'))
    close(value, GOLDEN[name])
    close(np.moveaxis(grad, -1, 1), GOLDEN[f'{name}_grad'])


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
    labels = jnp.full((2, 4, 4), -1)
    value, grad = jax.value_and_grad(lambda x: losses.mean(*loss(x, labels)))(
        1e4 * jnp.ones((2, 4, 4, 3))
    )
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_ohem_keeps_all_when_fewer_are_valid_than_kept():
    logits = 9.0 * jax.nn.one_hot(jnp.zeros((1, 4, 4), int), 3)  # every pixel is easy
    labels = jnp.zeros((1, 4, 4), int).at[0, 0].set(-1)
    assert losses.ohem_cross_entropy(logits, labels, 0.7, 13)[1] == 12
    assert losses.ohem_cross_entropy(logits, labels, 0.7, 100)[1] == 12


def test_ohem_keeps_the_hardest():
    margins = jnp.arange(16.0).reshape(1, 4, 4) / 2
    logits = jnp.stack([margins, jnp.zeros_like(margins)], -1)
    total, count = losses.ohem_cross_entropy(logits, jnp.zeros((1, 4, 4), int), 0.5, 5)
    assert count == 5
    expected = jax.nn.softplus(-jnp.arange(5) / 2).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_an_image_without_pseudo_labels_adds_nothing_to_the_others():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (2, 4, 4, 3))
    labels = jnp.stack([jnp.zeros((4, 4), int), jnp.full((4, 4), -1)])
    indicator = jnp.full((2, 4, 4), 0.99)
    both = losses.weighted_unsupervised(logits, labels, indicator)
    alone = losses.weighted_unsupervised(logits[:1], labels[:1], indicator[:1])
    np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_thresholded_counts_confident_labelled_pixels_only():
    labels = jnp.array([[[0, 1, -1, 1]]])
    indicator = jnp.array([[[0.97, 0.5, 1.0, 0.98]]])
    logits = jax.random.normal(jax.random.key(1), (1, 1, 4, 2))
    total, count = losses.thresholded_unsupervised(logits, labels, indicator, 0.97)
    assert count == 2
    log_p = jax.nn.log_softmax(logits)[0, 0]
    np.testing.assert_allclose(total, -(log_p[0, 0] + log_p[3, 1]), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 64, 64, 2), jnp.bfloat16)
    total, count = losses.cross_entropy(logits, jnp.zeros((1, 64, 64), int))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total / count, np.log(2), rtol=1e-6)


@pytest.mark.parametrize('shape', [(3, 4, 4), (2, 4, 3), (2, 4), (2, 4, 4, 1)])
def test_shapes_that_do_not_fit_are_named(shape):
    expected = rf'labels: got shape {re.escape(str(shape))}, expected \(2, 4, 4\)'
    with pytest.raises(ValueError, match=expected):
        losses.cross_entropy(jnp.zeros((2, 4, 4, 3)), jnp.zeros(shape, int))


def test_a_label_that_is_no_class_stops_a_run():
    labels = jnp.array([[0, 1, -1, 2]])
    found = losses.pixel_cross_entropy(jnp.zeros((1, 4, 2)), labels)
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
    keys = jax.random.split(jax.random.key(batch), 3)
    logits = 3 * jax.random.normal(keys[0], (batch, 6, 5, num_classes))
    labels = jax.random.randint(keys[1], (batch, *size), -1, num_classes).at[-1].set(-1)
    return logits, labels, jax.random.uniform(keys[2], labels.shape)


@pytest.mark.parametrize('images', [1, 2, 4])
@pytest.mark.parametrize(('batch', 'num_classes'), [(1, 5), (5, 5), (6, 5), (4, 1)])
def test_a_few_images_at_a_time_are_the_same_pixels(monkeypatch, images, batch, num_classes):
    logits, labels, _ = example(batch, num_classes)

    def both(function):
        weights = jnp.cos(jnp.arange(labels.size)).reshape(labels.shape)
        value, pullback = jax.vjp(lambda x: function(x, labels), logits)
        return value, pullback(weights)[0]

    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', images * 4 * 21 * 18 * num_classes)
    traced = jax.jit(lambda: both(losses.pixel_cross_entropy)).trace()
    assert ('scan' in str(traced.jaxpr)) == (batch > images)  # no loop where all fit
    ours, theirs = traced.lower().compile()(), jax.jit(lambda: both(at_once))()
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)
    assert not ours[1][-1].any()  # of the image without labels


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_of_a_smaller_map_is_that_of_the_resized_one(monkeypatch, name):
    logits, labels, indicator = example(5, 4)
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 1)

    def both(logits_of):
        def loss(x):
            return losses.mean(*LOSSES[name](logits_of(x), labels, indicator))

        return jax.jit(jax.value_and_grad(loss))(logits)

    value, gradient = both(lambda x: x)
    expected, expected_gradient = both(lambda x: resize.bilinear(x, labels.shape[1:]))
    assert expected > 0
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_the_loop_runs_on_each_of_two_devices(monkeypatch):
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', 1)
    logits, labels, _ = example(4, 5)
    seen, rho = jnp.arange(5) != 2, jnp.eye(5)

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
    assert float(losses.mean(jnp.float32(0.2), jnp.float32(0.4))) == pytest.approx(0.5)
    assert float(losses.mean(jnp.float32(0.0), jnp.float32(0.0))) == 0
    # Nothing to count has no gradient either, and none that is not a number.
    gradient = jax.grad(lambda x: losses.mean(x, 0 * x))(jnp.float32(3.0))
    assert float(gradient) == 0
