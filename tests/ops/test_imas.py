"""What iMAS does to views, against the authors' program."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import imas

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'imas_ops.npz')

# Jitted: a compiled whole costs less than dozens of small programs.
blend = jax.jit(imas.blend)
mixes = jax.jit(imas.mixes, static_argnums=2)
pair_by_easiness = jax.jit(imas.pair_by_easiness, static_argnums=1)
boxes = jax.jit(imas.boxes, static_argnums=(3, 4))
paste = jax.jit(imas.paste)


def close(ours, theirs):
    assert np.max(np.abs(ours - theirs)) <= 1e-5 * np.max(np.abs(theirs))


def golden_boxes(prefix, uniform, size):
    scale_range = tuple(GOLDEN[f'{prefix}_scale_range'].tolist())
    row, column = GOLDEN[f'{prefix}_centre_row'], GOLDEN[f'{prefix}_centre_column']
    return boxes(uniform, row.ravel(), column.ravel(), size, scale_range)


def test_blend_is_the_authors():
    strong, weak, easiness, blended = (
        GOLDEN[f'blend_random_{name}'] for name in ('strong', 'weak', 'easiness', 'blended')
    )
    close(blend(strong, weak, easiness), blended)
    np.testing.assert_allclose(imas.blend(strong, weak, easiness), blended, atol=1e-5)


def test_easiest_is_strong_and_hardest_is_weak():
    strong, weak = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 3)).astype(np.float32)
    blended = blend(strong, weak, jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(blended, [strong[0], weak[1]])


def test_trigger_is_the_authors():
    easiness, uniform = GOLDEN['trigger_random_easiness'], GOLDEN['trigger_random_uniform']
    mixed = mixes(easiness.ravel(), uniform, easiness.shape[1])
    assert mixed.dtype == bool
    expected = np.repeat(GOLDEN['trigger_random_mixed'], easiness.shape[1])
    np.testing.assert_array_equal(mixed, expected)
    np.testing.assert_array_equal(
        imas.mixes(easiness.ravel(), uniform, easiness.shape[1]), expected
    )


def test_trigger_is_strict():
    easiness, uniform = np.float32([0, 1, 0.25, 0.25, 0, 0]), np.float32([0.5, 0.125, 0])
    expected = [False, False, True, True, False, False]
    np.testing.assert_array_equal(mixes(easiness, uniform, 2), expected)


@pytest.mark.parametrize('images', [2, 4, 5, 16])
def test_pairs_are_the_authors(images):
    easiness, partner = GOLDEN[f'pairing_{images}_easiness'], GOLDEN[f'pairing_{images}_partner']
    expected = (partner + images * np.arange(len(partner))[:, None]).ravel()
    for pair in (pair_by_easiness, imas.pair_by_easiness):
        ours = pair(easiness.ravel(), images)
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, expected)


def test_equal_easiness_pairs_by_place_and_an_odd_middle_with_itself():
    easiness = np.float32([0.5, 0.5, 0.5, 0.5, 0.5, 0, 1, 0, 1, 0])
    partner = pair_by_easiness(easiness, 5)
    np.testing.assert_array_equal(partner, [4, 3, 2, 1, 0, 8, 7, 6, 5, 9])
    np.testing.assert_array_equal(pair_by_easiness(easiness, 1), np.arange(10))


@pytest.mark.parametrize(
    'function', [lambda h: mixes(h, h[:1], 4), lambda h: pair_by_easiness(h, 4)]
)
def test_a_group_must_divide_the_batch(function):
    with pytest.raises(ValueError, match='group is 4; expected a divisor of the 6 images'):
        function(np.zeros(6, np.float32))


@pytest.mark.parametrize('case', ['513', '769', 'oblong'])
def test_boxes_are_the_authors(case):
    prefix = f'boxes_{case}'
    expected = GOLDEN[f'{prefix}_top_left_bottom_right']
    uniform = np.repeat(GOLDEN[f'{prefix}_uniform'], expected.shape[1])
    ours = golden_boxes(prefix, uniform, tuple(GOLDEN[f'{prefix}_size'].tolist()))
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, expected.reshape(-1, 4))


def test_boxes_have_even_sides_and_are_clipped():
    uniform, row, column = np.float32([0.5, 0.5, 0.55]), np.int32([10, 0, 9]), np.int32([8, 15, 8])
    found = boxes(uniform, row, column, (20, 16), (0, 1))  # int(0.55 * 20) // 2 = 5
    np.testing.assert_array_equal(found, [[5, 4, 15, 12], [0, 11, 5, 16], [4, 4, 14, 12]])


@pytest.mark.parametrize('case', ['two', 'four', 'five'])
def test_mixing_is_the_authors(case):
    prefix = f'cutmix_{case}'
    names = 'images', 'label', 'confidence', 'easiness', 'uniform'
    images, label, confidence, easiness, uniform = (GOLDEN[f'{prefix}_{name}'] for name in names)
    partner = pair_by_easiness(easiness, len(easiness))
    np.testing.assert_array_equal(partner, GOLDEN[f'{prefix}_partner'])
    places = golden_boxes(prefix, np.full(len(easiness), uniform), images.shape[1:3])
    mixed, maps = paste(places, partner, images, {'label': label, 'confidence': confidence})
    np.testing.assert_array_equal(mixed, GOLDEN[f'{prefix}_mixed_images'])
    np.testing.assert_array_equal(maps['label'], GOLDEN[f'{prefix}_mixed_label'])
    np.testing.assert_array_equal(maps['confidence'], GOLDEN[f'{prefix}_mixed_confidence'])


def test_empty_boxes_change_nothing():
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    centre = np.int32([3, 5])
    places = boxes(np.zeros(2, np.float32), centre, centre, (6, 6), (0.1, 0.9))  # int(0.6) // 2 = 0
    assert (np.asarray(places)[:, :2] == np.asarray(places)[:, 2:]).all()
    for mix in (paste, imas.paste):
        mixed, maps = mix(places, jnp.array([1, 0]), images, {'label': images[..., 0]})
        np.testing.assert_array_equal(mixed, images)
        np.testing.assert_array_equal(maps['label'], images[..., 0])
