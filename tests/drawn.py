"""Random batches of pixels, for properties that hold whatever the contents are.

Shapes are always the same, so that an op is compiled once; hypothesis draws what is in them.
"""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

B, H, W = 2, 3, 4
# What a batch may be like beside random; each occurs alone.
SPECIAL = (
    'nothing',
    'all ignored',
    'one class',
    'zero confidence',
    'none valid',
    'no box',
    'constant image',
    'one value',
    'zeros',
)
# Arrays [B, H, W, ...], those of which an axis of classes is the last, and those of foreground.
MAPS = ('logits', 'labels', 'confidence', 'valid', 'weights', 'soft', 'images')
OF_CLASSES = ('logits', 'soft')
CONFIDENCE = np.float32([0, 0.2, 0.5, 0.97, 1])  # among them the thresholds of the tests


def batch(seed, classes, scale=1.0, void=0.3, special='nothing'):
    """Gives a batch by name: arrays of `MAPS`, and 'easiness', 'image_labels' and 'box' an image.

    Args:
        seed: of the contents.
        classes: C; 'image_labels' are of the C - 1 of foreground.
        scale: of the logits.
        void: share of the labels that are -1.
        special: one of `SPECIAL`.
    """
    r = np.random.default_rng(seed)
    pixels = B, H, W
    top, left = r.integers(0, 2, (2, B))
    given = {
        'logits': scale * r.standard_normal((*pixels, classes)),
        'labels': np.where(r.random(pixels) < void, -1, r.integers(0, classes, pixels)),
        'confidence': np.where(r.random(pixels) < 0.5, r.random(pixels), r.choice(CONFIDENCE)),
        'valid': r.random(pixels) < 0.7,
        'weights': r.uniform(0.1, 2, pixels),
        'soft': r.dirichlet(np.ones(classes), pixels),
        'images': r.integers(0, 256, (*pixels, 3)),
        'easiness': r.random(B),
        'image_labels': r.random((B, classes - 1)) < 0.5,
        'box': np.stack([top, r.integers(2, H + 1, B), left, r.integers(2, W + 1, B)], 1),
    }
    match special:
        case 'all ignored':
            given['labels'][:] = -1
        case 'one class':
            given['labels'][:] = seed % classes
        case 'zero confidence':
            given['confidence'][:] = given['easiness'][:] = given['soft'][:] = 0
        case 'none valid':
            given['valid'][:] = False
            given['image_labels'][:] = False
        case 'no box':
            given['box'][:] = 0
        case 'constant image':
            given['images'][:] = seed % 256
            given['logits'][:] = given['logits'][:, :1, :1]
        case 'one value':
            given['logits'][:] = given['logits'].ravel()[0]
        case 'zeros':
            given['logits'][:] = 0
    types = {'labels': np.int32, 'box': np.int32, 'valid': bool}
    return {name: x.astype(types.get(name, np.float32)) for name, x in given.items()}


def batches(classes=5, scales=(0.1, 1.0), special=('nothing',)):
    """Batches of so many classes."""
    return st.builds(
        batch,
        st.integers(0, 2**32 - 1),
        st.just(classes),
        st.sampled_from(scales),
        st.sampled_from((0.0, 0.3, 0.9)),
        st.sampled_from(special),
    )


# For many classes, whose batches are large: a quarter of the examples.
few = settings(max_examples=settings().max_examples // 4)

orders = st.integers(0, 2**32 - 1)  # of permutations


def order_of(seed, count):
    """Gives a permutation of `count` things."""
    return np.random.default_rng(seed).permutation(count)


def with_pixels(given, order):
    """Gives the batch with the pixels of each image in another order."""
    return {name: pixels(x, order) if name in MAPS else x for name, x in given.items()}


def pixels(x, order):
    """Gives maps [B, H, W, ...] with the pixels of each image in another order."""
    return x.reshape(len(x), H * W, -1)[:, order].reshape(x.shape)


def with_classes(given, order):
    """Gives the batch with class order[i] in place i; `order` may move background, which is 0."""
    places = np.argsort(order)
    changed = {name: given[name][..., order] for name in OF_CLASSES}
    changed['labels'] = np.where(given['labels'] < 0, -1, places[given['labels']]).astype(np.int32)
    if order[0] == 0:
        changed['image_labels'] = given['image_labels'][:, order[1:] - 1]
    return given | changed
