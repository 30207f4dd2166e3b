"""Pseudo-labels, CAMs, prototypes and L_c, for drawn batches: by definition, and in any order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from css_jax.ops import cam, contrastive, perplexity, prototypes, pseudo_labels
from tests import drawn
from tests.drawn import B, H, W

TAU = 0.5
THRESHOLD = np.float32(0.5)
DRAWS = {'num_anchors': 4, 'num_negatives': 6, 'bank_size': 3}


def unit(vectors):
    lengths = np.linalg.norm(vectors.astype(float), axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@st.composite
def spaces(draw, classes=5, scales=(0.1, 1.0, 1e4), special=drawn.SPECIAL):
    """A batch, and prototypes [C, C] of which some are not seen."""
    b = draw(drawn.batches(classes, scales, special))
    r = np.random.default_rng(draw(drawn.orders))
    rows = r.normal(size=(classes, classes)).astype(np.float32)
    kind = draw(st.sampled_from(['any', 'any', 'none seen', 'one value', 'zeros']))
    seen = (r.random(classes) < 0.7) & (kind != 'none seen')
    if kind == 'one value':
        rows[:] = rows[0]
    return b | {'rows': rows * (kind != 'zeros'), 'seen': seen}


@functools.cache
def labelled(classes):
    @jax.jit
    def run(b):
        return {
            'logits': pseudo_labels.from_logits(b['logits'], (H, W)),
            'prototypes': pseudo_labels.from_prototypes(
                b['logits'], b['rows'], (H, W), TAU, b['seen']
            ),
            'cosine': prototypes.cosine(b['logits'], b['rows']),
            'mean cosine': prototypes.mean_cosine(b['rows'], b['seen']),
            'probabilities': jnp.exp(
                contrastive.log_class_probabilities(b['rows'], b['seen'], TAU)
            ),
        }

    return lambda b: jax.device_get(run(b))


def check_labels(found, scores):
    """The largest softmax value to 1e-5, and a class that has it."""
    labels, indicator = found
    np.testing.assert_allclose(indicator, softmax(scores).max(-1), rtol=1e-4)
    chosen = np.take_along_axis(scores, labels[..., None], -1)[..., 0]
    assert (chosen >= scores.max(-1) - 1e-5 * np.maximum(1, np.abs(scores).max())).all()


def check_spaces(classes, b):
    found = labelled(classes)(b)
    check_labels(found['logits'], b['logits'].astype(float))
    cosine = unit(b['logits']) @ unit(b['rows']).T
    np.testing.assert_allclose(found['cosine'], cosine, atol=1e-5)
    if b['seen'].any():
        check_labels(found['prototypes'], np.where(b['seen'], cosine / TAU, -1e9))
        assert b['seen'][found['prototypes'][0]].all()
    else:
        assert (found['prototypes'][0] == -1).all() and not found['prototypes'][1].any()
    assert -1 - 1e-5 <= found['mean cosine'] <= 1 + 1e-5
    # Of the negatives' classes: p(c|c) is 0, and those of the others that are there sum up to 1.
    probabilities, others = found['probabilities'], b['seen'] & ~np.eye(classes, dtype=bool)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-4)
    usable = others.any(-1)
    assert not probabilities[usable][~others[usable]].any()


@given(spaces())
def test_labels_of_both_spaces_are_those_of_the_definition(b):
    check_spaces(5, b)


@pytest.mark.parametrize('classes', [150, 255])
def test_many_classes_are_told_apart(classes):
    @drawn.few
    @given(spaces(classes))
    def check(b):
        check_spaces(classes, b)

    check()


@given(b=spaces(scales=(1.0,), special=('nothing',)), seed=drawn.orders)
def test_the_order_of_images_pixels_and_classes_does_not_matter(b, seed):
    first = labelled(5)(b)
    images, pixels, order = (drawn.order_of(seed, count) for count in (B, H * W, 5))
    in_other_order = b | {'logits': drawn.pixels(b['logits'][images], pixels)}
    again = labelled(5)(in_other_order)
    apart = b['seen'].any() and np.ptp(b['rows'], 0).any()  # else all are equally near
    for name in ('logits', 'prototypes'):
        (labels, indicator), moved = first[name], again[name]
        expected = drawn.pixels(indicator[images], pixels)
        np.testing.assert_allclose(moved[1], expected, rtol=1e-5)
        if apart or name == 'logits':
            np.testing.assert_array_equal(moved[0], drawn.pixels(labels[images], pixels))

    again = labelled(5)(b | {'rows': b['rows'][order], 'seen': b['seen'][order]})
    np.testing.assert_allclose(again['mean cosine'], first['mean cosine'], atol=1e-5)
    moved = first['probabilities'][order][:, order]
    np.testing.assert_allclose(again['probabilities'], moved, atol=1e-5)
    np.testing.assert_allclose(again['prototypes'][1], first['prototypes'][1], rtol=1e-5)
    if apart:
        np.testing.assert_array_equal(order[again['prototypes'][0]], first['prototypes'][0])


# Class activation maps.


@jax.jit
def of_cams(b):
    maps = cam.normalise(b['logits'][..., 1:])
    box, has = b['box'], b['image_labels']
    return {
        'normalised': maps,
        'labels': cam.pseudo_labels(maps, has, 0.3, 0.6, box),
        'predicted': cam.from_cam(maps, has),
        'largest': cam.largest(maps, has),
        'probabilities': cam.segmentation_labels(b['logits'], has),
        'weights': perplexity.weights(b['confidence'], THRESHOLD, box),
    }


@given(drawn.batches(scales=(0.1, 1.0, 1e4), special=drawn.SPECIAL))
def test_cams_give_only_what_an_image_has(b):
    found = jax.device_get(of_cams(b))
    assert (found['normalised'] >= 0).all() and (found['normalised'] <= 1).all()
    constant = np.ptp(b['logits'][..., 1:], (1, 2)) == 0
    assert not np.moveaxis(found['normalised'], 3, 1)[constant].any()
    inside = np.asarray(cam.inside(b['box'], (H, W)))
    assert (found['labels'][~inside] == -1).all()
    for i in range(B):
        has = np.flatnonzero(np.r_[True, b['image_labels'][i] > 0])
        assert set(np.unique(found['labels'][i])) <= {-1, *has}
        assert set(np.unique(found['predicted'][i])) <= set(has)
        absent = np.setdiff1d(np.arange(5), has)
        assert not found['probabilities'][i][..., absent].any()
        values = np.pad(found['normalised'][i], ((0, 0), (0, 0), (1, 0)))[..., has]
        np.testing.assert_array_equal(found['largest'][i], values.max(-1))
    np.testing.assert_allclose(found['probabilities'].sum(-1), 1, rtol=1e-5)
    assert (found['weights'][~inside] == 0).all()
    foreground = b['confidence'] > THRESHOLD
    for region in (inside & foreground, inside & ~foreground):
        if region.any():
            np.testing.assert_allclose(found['weights'][region].mean(), 1, rtol=1e-5)


@given(b=drawn.batches(scales=(1.0,)), seed=drawn.orders)
def test_the_order_of_images_and_classes_does_not_matter_to_cams(b, seed):
    first = jax.device_get(of_cams(b))
    images, order = drawn.order_of(seed, B), np.r_[0, 1 + drawn.order_of(seed, 4)]
    again = jax.device_get(of_cams({name: x[images] for name, x in b.items()}))
    for name, x in first.items():
        np.testing.assert_allclose(again[name], x[images], rtol=1e-5, atol=1e-6)
    # Where two classes are largest at one place both are nearly 1 there; of equals the first wins.
    present = first['normalised'] * b['image_labels'][:, None, None]
    assume((np.diff(np.sort(present)[..., -2:]) > 1e-6)[present.max(-1) > 0.1].all())
    again = jax.device_get(of_cams(drawn.with_classes(b, order)))
    for name in ('labels', 'predicted'):
        back = np.where(again[name] < 0, -1, order[again[name]])
        np.testing.assert_array_equal(back, first[name])
    probabilities = first['probabilities'][..., order]
    np.testing.assert_allclose(again['probabilities'], probabilities, atol=1e-5)


# The contrastive loss: where all pixels of a class are alike its draws do not matter.


@functools.cache
def contrasted(classes, estimator):
    @jax.jit
    def run(z, labels, hard, rows):
        def loss(z):
            key = jax.random.key(0)
            return contrastive.loss(key, z, labels, hard, rows, estimator=estimator, **DRAWS)[0]

        return jax.value_and_grad(loss)(z)

    return lambda *given: jax.device_get(run(*given))


def check_contrast(classes, estimator, b, other):
    """The loss in closed form; pixels without a label hold anything and have no gradient."""
    r = np.random.default_rng(b['labels'].sum() + 100)
    centres, rows = r.normal(size=(2, classes, classes)).astype(np.float32)
    if estimator == 'sampled':  # it draws classes, too
        centres[:] = centres[0]
    labels, hard = b['labels'], b['valid']
    z = np.where((labels < 0)[..., None], other['logits'], centres[labels])
    value, gradient = contrasted(classes, estimator)(z, labels, hard, rows)
    present = np.array([(labels == c).any() for c in range(classes)])
    u, expected = unit(centres), 0.0
    for c in np.flatnonzero(present):
        others = present & (np.arange(classes) != c)
        if ((labels == c) & hard).any() and others.any():
            p = softmax(np.where(others, unit(rows) @ unit(rows[c]) / TAU, -np.inf))
            below = DRAWS['num_negatives'] * (p * np.exp(u @ u[c] / TAU)).sum()
            expected += np.log1p(below / np.exp(u[c] @ unit(rows[c]) / TAU))
    expected /= max(present.sum(), 1)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(gradient).all() and not gradient[(labels < 0) | ~hard].any()


@pytest.mark.parametrize('estimator', ['bank', 'sampled'])
@given(
    b=drawn.batches(special=('nothing', 'nothing', 'all ignored', 'one class', 'none valid')),
    other=drawn.batches(scales=(1.0, 1e30), special=('nothing', 'zeros')),
)
def test_contrast_of_equal_pixels_is_in_closed_form_whatever_is_in_void(estimator, b, other):
    check_contrast(5, estimator, b, other)


@pytest.mark.parametrize('classes', [150, 255])
def test_contrast_of_many_classes(classes):
    @drawn.few
    @given(drawn.batches(classes), drawn.batches(classes))
    def check(b, other):
        check_contrast(classes, 'bank', b, other)

    check()


@given(drawn.batches(255))
def test_the_order_of_pixels_is_by_class_and_hardness_of_many_classes(b):
    labels, hard = b['labels'].ravel(), b['valid'].ravel()
    order, counts = ordered(labels, hard)
    easy = ~hard & (labels >= 0)
    places = np.lexsort((np.arange(len(labels)), easy, np.where(labels < 0, 255, labels)))
    np.testing.assert_array_equal(order, places)
    known = labels >= 0
    expected = np.bincount(2 * labels[known] + easy[known], minlength=510).reshape(255, 2)
    np.testing.assert_array_equal(counts, expected)


ordered = jax.jit(functools.partial(contrastive.order_pixels, num_classes=255))
