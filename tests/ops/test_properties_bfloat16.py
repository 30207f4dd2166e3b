"""Ops that take bfloat16 against the same in float32: what rounding the input alone makes of it.

bfloat16 rounds a number by 2^-8 of it at most. With L the largest of the input, each bound is what
that can become: an interpolated value moves by L 2^-8, a cosine by twice 2^-8, the logarithm of the
largest softmax value by twice L 2^-8. No op adds to it, as each computes in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from css_jax.ops import cam, contrastive, entropy, prototypes, pseudo_labels, resize
from tests import drawn
from tests.drawn import B, H, W

STEP = 2.0**-8
TAU = 0.5


@jax.jit
def run(x, b):
    """All ops of logits, CAMs or representations x [B, H, W, 5] of some dtype."""
    rows, labels, size = b['soft'].reshape(-1, 5)[:5], b['labels'], (5, 7)

    def contrast(x):
        draws = {'num_anchors': 4, 'num_negatives': 6, 'bank_size': 3}
        return contrastive.loss(jax.random.key(0), x, labels, b['valid'], rows, **draws)[0]

    _, of_logits = pseudo_labels.from_logits(x, size)
    _, of_rows = pseudo_labels.from_prototypes(x, rows, size, TAU)
    return {
        'bilinear': resize.bilinear(x, size),
        'half pixel': resize.half_pixel(x, size),
        'nearest': resize.nearest(x, size).astype(jnp.float32),
        'zero': resize.upsample_zero(x, 2),
        'part': resize.part_to(x, jnp.full((B, 2), 2), size),
        'merged': cam.merge([jnp.concatenate([x, x])], size),
        'bicubic': resize.bicubic(x, size),
        'cosine': prototypes.cosine(x, rows),
        'unit': prototypes.normalise(x),
        'sums': prototypes.class_sums(x, labels, 5)[0],
        'scores': entropy.similarity(x, rows),
        'entropy': entropy.entropy(x),
        'confidence': jnp.log(of_logits),
        'similarity': jnp.log(of_rows),
        'contrast': contrast(x),
    }


def bounds(largest):
    """Op -> how far its values may move."""
    interpolated = dict.fromkeys(('bilinear', 'half pixel', 'nearest', 'zero', 'part', 'merged'), 1)
    moved = {
        **interpolated,
        'bicubic': 1.9,  # the largest sum of the kernel's absolute weights, of both axes
        'sums': B * H * W,
        'scores': 5**0.5,
        'entropy': 2 * np.log(5),
        'confidence': 2,
    }
    found = {name: times * largest * STEP for name, times in moved.items()}
    of_directions = {'cosine': 2, 'unit': 2, 'similarity': 4 / TAU, 'contrast': 8 / TAU}
    return found | {name: times * STEP for name, times in of_directions.items()}


@given(drawn.batches(scales=(0.1, 1.0, 30.0), special=('nothing', 'constant image', 'zeros')))
def test_values_move_by_no_more_than_the_input(b):
    x = b['logits']
    half = jnp.asarray(x, jnp.bfloat16)
    exact, found = jax.device_get((run(x, b), run(half, b)))
    assert {y.dtype for y in jax.tree.leaves(found)} == {np.dtype('float32')}
    slack = 1e-5 * max(1.0, np.abs(x).max())
    for name, bound in bounds(np.abs(x).max()).items():
        difference = np.abs(exact[name] - found[name]).max()
        assert difference <= bound + slack, (name, difference, bound)
    same = jax.device_get(run(half.astype(jnp.float32), b))
    for name in found:
        np.testing.assert_allclose(found[name], same[name], rtol=1e-5, atol=slack, err_msg=name)
