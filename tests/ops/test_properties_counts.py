"""What is counted and scored, for drawn batches: by loops, in any order, and without void."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from css_jax.ops import embeddings, hardness, metrics, mixture, prototypes
from tests import drawn
from tests.drawn import B, H, W

THRESHOLD = np.float32(0.5)


@functools.cache
def compiled(classes):
    @jax.jit
    def run(b):
        predictions = b['logits'].argmax(-1).astype(np.int32)
        maps = predictions, b['weights'] / 2, b['labels'], b['confidence']
        return {
            'confusion': metrics.confusion(b['labels'], predictions, classes),
            'of images': hardness.confusion(predictions, b['labels'], classes),
            'sums': prototypes.class_sums(b['logits'], b['labels'], classes),
            'easiness': hardness.easiness_of_maps(*maps, classes, THRESHOLD, False),
        }

    return lambda b: jax.device_get(run(b))


def easiness(labels, sure, predictions, also_sure, classes):
    """Of one image, class by class."""
    by_teacher = by_student = 0.0
    for c in range(classes):
        teacher, student = (labels == c), (predictions == c) & (labels >= 0)
        if (teacher | student).any():
            iou = (teacher & student).sum() / (teacher | student).sum()
            by_teacher += iou * teacher.sum() / (labels >= 0).sum()
            by_student += iou * student.sum() / (labels >= 0).sum()
    return (sure.mean() * by_teacher + also_sure.mean() * by_student) / 2


def check_counts(classes, b):
    predictions, labels = b['logits'].argmax(-1), b['labels']
    matrices, sums = np.zeros((B, classes, classes), int), np.zeros((classes, classes))
    for place, label in np.ndenumerate(labels):
        if label >= 0:
            matrices[place[0], label, predictions[place]] += 1
            sums[label] += b['logits'][place]
    found = compiled(classes)(b)
    np.testing.assert_array_equal(found['of images'], matrices)
    np.testing.assert_array_equal(found['confusion'], matrices.sum(0))
    on_host = embeddings.class_sums(b['logits'].reshape(-1, classes), labels.ravel(), classes)
    for total, count in (found['sums'], on_host):
        np.testing.assert_allclose(total, sums, atol=1e-5 * np.abs(sums).max())
        np.testing.assert_array_equal(count, matrices.sum((0, 2)))
    sure, also = b['confidence'] >= THRESHOLD, b['weights'] / 2 >= THRESHOLD
    maps = labels, sure, predictions, also
    expected = [easiness(*(x[i] for x in maps), classes) for i in range(B)]
    np.testing.assert_allclose(found['easiness'], expected, atol=1e-6)


@given(drawn.batches(special=drawn.SPECIAL))
def test_counts_sums_and_easiness_are_those_of_loops(b):
    check_counts(5, b)


@pytest.mark.parametrize('classes', [150, 255])
def test_many_classes_are_counted(classes):
    @drawn.few
    @given(drawn.batches(classes))
    def check(b):
        check_counts(classes, b)

    check()


@given(b=drawn.batches(special=drawn.SPECIAL), seed=drawn.orders)
def test_the_order_of_images_pixels_and_classes_does_not_matter(b, seed):
    first = compiled(5)(b)
    again = compiled(5)(drawn.with_pixels(b, drawn.order_of(seed, H * W)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), first, again)

    images = drawn.order_of(seed, B)
    again = compiled(5)({name: x[images] for name, x in b.items()})
    for name in ('of images', 'easiness'):
        np.testing.assert_allclose(again[name], first[name][images], rtol=1e-6)

    order = drawn.order_of(seed, 5)
    again = compiled(5)(drawn.with_classes(b, order))
    if not (np.diff(np.sort(b['logits'])) == 0).any():  # of equal logits the first class wins
        np.testing.assert_array_equal(again['confusion'], first['confusion'][order][:, order])
        np.testing.assert_allclose(again['easiness'], first['easiness'], atol=1e-6)
    moved = metrics.scores(first['confusion'][order][:, order])
    scores = metrics.scores(first['confusion'])
    assert moved['iou'] == [scores['iou'][c] for c in order]
    assert (
        moved['miou'] == pytest.approx(scores['miou']) and moved['accuracy'] == scores['accuracy']
    )


@given(b=drawn.batches(), other=drawn.batches(scales=(1.0, 1e30)))
def test_what_is_in_a_void_pixel_does_not_matter(b, other):
    void = (b['labels'] < 0)[..., None]
    hidden = b | {'logits': np.where(void, other['logits'], b['logits'])}
    first, second = compiled(5)(b), compiled(5)(hidden)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    on_host = [
        embeddings.class_sums(x['logits'].reshape(-1, 5), x['labels'].ravel(), 5)
        for x in (b, hidden)
    ]
    jax.tree.map(np.testing.assert_array_equal, *on_host)


@pytest.mark.parametrize('ignore', [-1, 255])
def test_labels_of_one_byte_are_counted_too(ignore):
    """As files have them: a cell's number is beyond 255."""
    labels = np.array([[0, 20, ignore, 20]], np.int32 if ignore < 0 else np.uint8)
    predictions = np.uint8([[0, 20, 20, 3]])
    confusion = jax.jit(metrics.confusion, static_argnums=(2, 3))
    matrix = confusion(labels, predictions, 21, ignore)
    assert matrix.sum() == 3 and matrix[0, 0] == matrix[20, 20] == matrix[20, 3] == 1


@jax.jit
def fitted(values, counts):
    mixtures, low_high = mixture.fit(counts, 3), mixture.thresholds(counts, 3)
    return mixture.histogram(values), mixtures[0], low_high


@given(
    seed=st.integers(0, 2**32 - 1),
    bins=st.sampled_from([0, 1, 2, 3, 30, 256]),
    most=st.sampled_from([1, 1000, 10**7]),
)
def test_a_mixture_is_finite_and_in_range_for_any_histogram(seed, bins, most):
    r = np.random.default_rng(seed)
    counts = np.zeros(mixture.BINS, np.float32)
    counts[r.permutation(mixture.BINS)[:bins]] = r.integers(0, most + 1, bins)
    values = np.where(r.random(60) < 0.3, r.integers(0, 257, 60) / 256, r.random(60))
    histogram, found, thresholds = jax.device_get(fitted(values.astype(np.float32), counts))
    assert all(np.isfinite(x).all() for x in found)
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)
    assert (found.weights >= 0).all() and (found.variances > 0).all()
    assert (found.means >= 0).all() and (found.means <= 1 + 1e-5).all()
    assert ((thresholds >= 0) & (thresholds <= 1)).all()
    seen = values[values.astype(np.float32) > np.float32(mixture.FLOOR)].astype(np.float32)
    expected = np.histogram(seen, mixture.BINS, (0, 1))[0]
    np.testing.assert_array_equal(histogram, expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    k=st.integers(1, 4),
)
def test_centroids_keep_the_mean_and_components_are_orthonormal(seed, spread, k):
    r = np.random.default_rng(seed)
    features = (r.normal(size=4) + spread * r.normal(size=(12, 4))).astype(np.float32)
    labels = r.integers(-1, 3, 12)
    centroids, counts = embeddings.centroids(features, labels, 3, k, jax.random.key(0))
    assert np.isfinite(centroids).all()
    for c in range(3):
        own = features[labels == c]
        if not len(own):
            assert not centroids[c].any() and not counts[c].any()
            continue
        assert (counts[c] > 0).all()
        mean = np.average(centroids[c], axis=0, weights=counts[c])
        np.testing.assert_allclose(mean, own.mean(0), atol=1e-5 * (1 + spread))
    _, components = embeddings.pca(features, (labels >= 0) + 0.1, 4)
    np.testing.assert_allclose(components.T @ components, np.eye(4), atol=1e-5)
