"""What every loss of pixels promises, for drawn batches: see `LOSSES` for which there are.

Each is held to its definition in float64, value and gradient; neither the order of images, pixels
or classes nor what is in a void pixel changes it; and it is finite for whatever comes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from css_jax.ops import cosa, crf, entropy, losses, weak
from tests import drawn
from tests.drawn import B, H, W

THRESHOLD = np.float32(0.5)
HARD, KEPT = np.float32(0.4), 7


# Definitions in float64: (logits, batch) -> (sum, gradient by the logits, count), or None.


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropies(x, labels):
    """Of each pixel, and the gradients; what is said of a pixel without a class means nothing."""
    values, gradients = np.zeros(labels.shape), softmax(x)
    for place, label in np.ndenumerate(labels):
        row = x[place] - x[place].max()
        values[place] = np.log(np.exp(row).sum()) - row[label]
        gradients[(*place, label)] -= 1
    return values, gradients


def by_weights(weights_and_count):
    """A definition by the weight [B, H, W] of each pixel's cross-entropy, and the count."""

    def definition(x, b):
        values, gradients = cross_entropies(x, b['labels'])
        found = weights_and_count(b, values)
        if found is None:
            return None
        weights, count = found
        return (weights * values).sum(), weights[..., None] * gradients, count

    return definition


def known(b):
    return b['labels'] >= 0


def confident(b):
    return known(b) & (b['confidence'] >= THRESHOLD)


def hard(b, values):
    """None where rounding decides which pixels are kept."""
    probabilities = np.sort(np.exp(-values[known(b)]))
    limit = HARD
    if len(probabilities) >= KEPT:
        limit = max(HARD, probabilities[KEPT - 1])
    elif len(probabilities):
        limit = 1.0
    near = (np.abs(probabilities - limit) < 1e-4).sum()
    if near > (HARD < limit < 1):
        return None
    kept = known(b) & (np.exp(-values) <= limit + 1e-5)
    return kept, kept.sum()


def share_of_confident(b, values):
    weights = np.zeros((B, H, W))
    for i in range(B):
        sure = (b['confidence'][i] >= THRESHOLD).sum()
        weights[i] = known(b)[i] * sure / max(known(b)[i].sum(), 1)
    return weights, known(b).sum()  # a cross-entropy is above 0


def soft_margin(x, b):
    y = b['soft'].astype(float)
    values = np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - x * y
    return values.sum(), 1 / (1 + np.exp(-x)) - y, x.size


def swapped(x, b):
    cam, y = np.maximum(x[..., 1:], 0), b['soft'][..., 1:]
    gradient = np.zeros_like(x)
    gradient[..., 1:] = (1 / (1 + np.exp(-cam)) - y) * (cam > 0)
    return (np.log1p(np.exp(cam)) - cam * y).sum(), gradient, cam.size


def doubt(x, b):
    q = softmax(x)
    h = -(q * np.log(q)).sum(-1)
    return h.sum(), -q * (np.log(q) + h[..., None]), h.size


def energy(x, b):
    """Of each pair of pixels; the gate and the other pixel's probability count as given."""
    total, gradient = 0.0, np.zeros_like(x)
    for i in range(B):
        top, bottom, left, right = b['box'][i]
        inside = np.zeros((H, W))
        inside[top:bottom, left:right] = 1
        q = softmax(x[i])
        for p, label in np.ndenumerate(b['labels'][i]):
            gate = 1.0 if label < 0 else max(inside[p] - q[p].max(), 0)
            near = np.zeros(q.shape[-1])
            for o in np.ndindex(H, W):
                colour = (b['images'][i][p] - b['images'][i][o]).astype(float) / 100
                place = np.subtract(p, o) / 2
                kernel = np.exp(-((colour**2).sum() + (place**2).sum()) / 2)
                near += kernel * inside[o] * q[o]
            total -= gate * inside[p] * (q[p] * near).sum()
            by_q = -2 * gate * inside[p] * near
            gradient[i][p] = q[p] * (by_q - (q[p] * by_q).sum())
    return total, gradient, B


class Loss(NamedTuple):
    """A loss of the logits of a batch, and what it promises.

    Attributes:
        function: (logits, batch) -> (sum, count).
        definition: the same and the gradient, in float64; None: it is tested with the op.
        unseen: batch -> [B, H, W], pixels whose contents it must not see; None: it sees all.
        background: whether class 0 is another than the others.
        places: whether it matters where in an image a pixel is.
    """

    function: Callable
    definition: Callable | None = None
    unseen: Callable | None = None
    background: bool = False
    places: bool = False


def outside(b):
    rows, columns = np.arange(H)[:, None], np.arange(W)
    top, bottom, left, right = b['box'].T[:, :, None, None]
    return ~((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))


LOSSES = {
    'cross-entropy': Loss(
        lambda x, b: losses.cross_entropy(x, b['labels']),
        by_weights(lambda b, _: (known(b), known(b).sum())),
        lambda b: ~known(b),
    ),
    'hard examples': Loss(
        lambda x, b: losses.ohem_cross_entropy(x, b['labels'], HARD, KEPT),
        by_weights(hard),
        lambda b: ~known(b),
    ),
    'weighted': Loss(
        lambda x, b: losses.weighted_unsupervised(x, b['labels'], b['confidence'], THRESHOLD),
        by_weights(share_of_confident),
        lambda b: ~known(b),
    ),
    'thresholded': Loss(
        lambda x, b: losses.thresholded_unsupervised(x, b['labels'], b['confidence'], THRESHOLD),
        by_weights(lambda b, _: (confident(b), confident(b).sum())),
        lambda b: ~confident(b),
    ),
    'by easiness': Loss(
        lambda x, b: losses.easiness_weighted(
            x, b['labels'], b['confidence'], b['easiness'], THRESHOLD
        ),
        by_weights(lambda b, _: (confident(b) * b['easiness'][:, None, None] / (H * W), B)),
        lambda b: ~confident(b),
    ),
    'confident over valid': Loss(
        lambda x, b: losses.confident_over_valid(
            x, b['labels'], b['confidence'], b['valid'], THRESHOLD
        ),
        by_weights(lambda b, _: (confident(b) & b['valid'], b['valid'].sum())),
        lambda b: ~(confident(b) & b['valid']),
    ),
    'background': Loss(
        lambda x, b: cosa.cam2seg_loss(x, b['labels'], b['weights'])[0],
        by_weights(lambda b, _: ((b['labels'] == 0) * b['weights'], (b['labels'] == 0).sum())),
        lambda b: b['labels'] != 0,
        background=True,
    ),
    'foreground': Loss(
        lambda x, b: cosa.cam2seg_loss(x, b['labels'], b['weights'], by_weight=True)[1],
        by_weights(
            lambda b, _: ((b['labels'] > 0) * b['weights'], b['weights'][b['labels'] > 0].sum())
        ),
        lambda b: b['labels'] <= 0,
        background=True,
    ),
    'soft margin': Loss(lambda x, b: weak.multilabel_soft_margin(x, b['soft']), soft_margin),
    'swapped': Loss(
        lambda x, b: cosa.seg2cam_loss(x[..., 1:], b['soft']), swapped, background=True
    ),
    'separation': Loss(
        lambda x, b: cosa.separation(x[..., 1:], b['labels'], b['image_labels']),
        unseen=lambda b: ~known(b),
        background=True,
    ),
    'entropy': Loss(lambda x, b: (entropy.entropy(x).sum(), np.float32(B * H * W)), doubt),
    'energy': Loss(
        lambda x, b: crf.dense_energy(
            b['images'],
            jax.nn.softmax(x.astype(np.float32)),
            b['labels'],
            b['box'],
            sigma_rgb=100.0,
            sigma_xy=2.0,
            side=(H, W),
        ),
        energy,
        outside,
        places=True,
    ),
}


@jax.jit
def run(b):
    """Name -> (sum, gradient by the logits, count); one program is compiled for all losses."""
    found = {}
    for name, loss in LOSSES.items():
        of_logits = jax.value_and_grad(lambda x, loss=loss: loss.function(x, b), has_aux=True)
        (total, count), gradient = of_logits(b['logits'])
        found[name] = total, gradient, count
    return found


def every(b):
    return jax.device_get(run(b))


def assert_close(name, found, expected, relative=2e-5):
    """The sum to so much of it, each number of the gradient to so much of the largest."""
    np.testing.assert_allclose(found[0], expected[0], rtol=relative, atol=1e-6, err_msg=name)
    atol = relative * np.abs(expected[1]).max() + 1e-7
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('classes', [5, 150, 255])
def test_values_and_gradients_are_those_of_the_definitions(classes):
    @given(drawn.batches(classes, special=drawn.SPECIAL))
    def check(b):
        found = every(b)
        for name, loss in LOSSES.items():
            expected = loss.definition and loss.definition(b['logits'].astype(float), b)
            if expected:
                assert_close(name, found[name], expected)

    (check if classes == 5 else drawn.few(check))()


@given(b=drawn.batches(special=drawn.SPECIAL), seed=drawn.orders)
def test_the_order_of_images_and_pixels_does_not_matter(b, seed):
    first, images, pixels = every(b), drawn.order_of(seed, B), drawn.order_of(seed, H * W)
    again = every({key: x[images] for key, x in b.items()})
    for name, (total, gradient, count) in first.items():
        assert_close(name, again[name], (total, gradient[images], count))
    again = every(drawn.with_pixels(b, pixels))
    for name, (total, gradient, count) in first.items():
        if not LOSSES[name].places:
            assert_close(name, again[name], (total, drawn.pixels(gradient, pixels), count))


@given(b=drawn.batches(special=drawn.SPECIAL), seed=drawn.orders)
def test_the_order_of_classes_does_not_matter(b, seed):
    first = every(b)
    orders = {False: drawn.order_of(seed, 5), True: np.r_[0, 1 + drawn.order_of(seed, 4)]}
    again = {
        background: every(drawn.with_classes(b, order)) for background, order in orders.items()
    }
    for name, (total, gradient, count) in first.items():
        background = LOSSES[name].background
        moved = total, gradient[..., orders[background]], count
        assert_close(name, again[background][name], moved)


@given(
    b=drawn.batches(special=('nothing', 'all ignored', 'none valid', 'no box')),
    other=drawn.batches(scales=(1.0, 1e4, 1e30), special=('nothing', 'zeros')),
    name=st.sampled_from([name for name in LOSSES if LOSSES[name].unseen]),
)
def test_what_is_in_a_void_pixel_does_not_matter(b, other, name):
    """Not to a bit, nor to any other pixel's gradient; its own is 0."""
    unseen = LOSSES[name].unseen(b)[..., None]
    hidden = {key: np.where(unseen, other[key], b[key]) for key in ('logits', 'images')}
    first, second = every(b)[name], every(b | hidden)[name]
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not first[1][np.broadcast_to(unseen, first[1].shape)].any()


@given(b=drawn.batches(scales=(1e-30, 1.0, 1e4, 1e30), special=drawn.SPECIAL))
def test_they_are_finite_and_so_are_their_gradients(b):
    for name, (total, gradient, count) in every(b).items():
        assert np.isfinite(total) and np.isfinite(gradient).all() and np.isfinite(count), name
        if LOSSES[name].unseen and LOSSES[name].unseen(b).all():
            assert total == 0 and not gradient.any(), name


mean = jax.jit(losses.mean)


@given(
    total=st.floats(0, 2.0**60, width=32, allow_subnormal=False),
    count=st.floats(2.0**-60, 2.0**60, width=32),
)
def test_a_mean_is_the_quotient_or_nothing(total, count):
    # What is below the smallest normal number of float32, 1.2e-38, may become 0.
    np.testing.assert_allclose(mean(total, count), total / count, rtol=1e-6, atol=1.2e-38)
    assert mean(total, 0.0) == 0


@given(drawn.batches(scales=(0.1, 1.0)))
def test_bfloat16_moves_a_pixel_s_loss_by_2_to_the_minus_6_of_the_largest_logit(b):
    """It rounds a logit by 2^-8 of it; what is made of it is computed in float32."""
    half = jnp.asarray(b['logits'], jnp.bfloat16)
    exact, found = every(b), every(b | {'logits': half})
    same = every(b | {'logits': np.asarray(half, np.float32)})
    for name, (total, gradient, _) in found.items():
        assert total.dtype == np.float32 and gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(total, same[name][0], rtol=1e-5, atol=1e-6, err_msg=name)
        atol = 2**-7 * np.abs(same[name][1]).max()
        given_back = gradient.astype(np.float32)
        np.testing.assert_allclose(given_back, same[name][1], rtol=0, atol=atol, err_msg=name)
        if name != 'hard examples':  # of which others may be kept
            bound = B * H * W * 2**-6 * np.abs(b['logits']).max()
            assert abs(total - exact[name][0]) <= bound, name
