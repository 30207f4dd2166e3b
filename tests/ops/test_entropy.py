"""Entropy over label embeddings against the program of USSS's authors, and where it could fail."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax.ops import entropy, losses, resize
from css_jax.ops.entropy import LabelEmbeddings
from tests.small import stored

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'usss_ops.npz')
GROUPS = 'entropy', 'entropy_sharp', 'entropy_centroids'
WEIGHTS = ((1, 0), (0, 1), (1, 1))


def close(ours, theirs, bound=1e-5):
    assert np.shape(ours) == theirs.shape
    assert np.max(np.abs(np.asarray(ours) - theirs)) <= bound * np.max(np.abs(theirs))


@functools.cache
def computed(group):
    """All arrays of a group by their names, in one program."""
    features = GOLDEN[f'{group}/features']
    rows = {name: GOLDEN[f'{group}/embeddings_{name}'] for name in 'AB'}
    weights = np.float32(WEIGHTS)

    @jax.jit
    def program(features, rows):
        found = {}
        for name, other in ('AB', 'BA'):
            scores = entropy.similarity(features, rows[name])
            found[f'unit_rows_{name}'] = entropy.unit_rows(rows[name])
            found[f'similarity_{name}'] = scores
            found[f'entropy_map_{name}'] = entropy.entropy(scores)
            found[name] = jax.vmap(
                lambda w, own=rows[name], other=rows[other]: jax.value_and_grad(entropy.loss)(
                    features, own, other, w[0], w[1]
                )
            )(weights)
        return found

    found = jax.device_get(program(features, rows))
    for name in 'AB':
        for (alpha, beta), loss, gradient in zip(WEIGHTS, *found.pop(name), strict=True):
            found[f'loss_{name}_alpha{alpha}_beta{beta}'] = loss
            found[f'grad_{name}_alpha{alpha}_beta{beta}'] = gradient
    return found


@pytest.mark.parametrize(
    'name',
    [
        name
        for name in GOLDEN.files
        if name.split('/')[0] in GROUPS and not re.search('features|embeddings', name)
    ],
)
def test_rows_scores_entropies_and_gradients_are_the_authors(name):
    group, array = name.split('/')
    close(computed(group)[array], GOLDEN[name])


def test_the_branch_from_the_encoder_s_features_is_the_authors():
    """1x1 projection, x8, loss: of all pixels at full size, and of scores that are enlarged."""
    rows = {name: GOLDEN[f'branch/embeddings_{name}'] for name in 'AB'}
    sets = {name: LabelEmbeddings(x) for name, x in rows.items()}
    weight = stored('en_map.weight', (10, 512, 1, 1))[..., 0, 0]
    bias = stored('en_map.bias', (10,))

    def project(features, weight, bias):
        return jnp.einsum('bhwc,ec->bhwe', features, weight, precision='highest') + bias

    def whole(own, other, *given):
        return entropy.loss(resize.upsample_zero(project(*given)), own, other, 1.0, 1.0)

    def few(*given):
        measured = entropy.measure(project(*given), sets).entropy
        return losses.mean(*measured['A']) + losses.mean(*measured['B'])

    @jax.jit
    def program(*given):
        of = functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
        a, b = (functools.partial(whole, rows[own], rows[other]) for own, other in ('AB', 'BA'))
        return of(a)(*given), of(b)(*given), of(few)(*given)

    a, b, both = program(GOLDEN['branch/features'], weight, bias)
    for name, (value, gradients) in zip('ABAB', (a, b, both, both), strict=True):
        close(value, GOLDEN[f'branch/loss_{name}'])
        for of, gradient in zip(
            ('features', 'en_map_weight', 'en_map_bias'), gradients, strict=True
        ):
            close(gradient, GOLDEN[f'branch/grad_{of}_{name}'])


# Where it could fail.

SCORES = np.random.default_rng(0).normal(0, 3, (2, 3, 4, 5)).astype(np.float32)
VALID = np.array([True, False, True, True, False])


@jax.jit
def value_and_gradient(scores, valid):
    found, pullback = jax.vjp(lambda scores: entropy.entropy(scores, valid), scores)
    return found, pullback(jnp.ones_like(found))[0]


def test_a_row_that_is_not_valid_is_as_if_it_were_not_there():
    scores = np.where(VALID, SCORES, 1e30).astype(np.float32)  # whatever it scores
    value, gradient = value_and_gradient(scores, VALID)
    expected, expected_gradient = value_and_gradient(scores[..., VALID], np.ones(3, bool))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[..., VALID], expected_gradient, atol=1e-6)
    assert not np.any(gradient[..., ~VALID])


def test_the_gradient_is_that_of_the_formula():
    value, gradient = value_and_gradient(SCORES, np.ones(5, bool))
    log_q = SCORES - np.log(np.exp(SCORES).sum(-1, keepdims=True))
    expected = -np.exp(log_q) * (log_q + np.asarray(value)[..., None])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize('valid', [VALID, np.ones(5, bool), np.zeros(5, bool)])
@pytest.mark.parametrize('scale', [0, 1e9, 3e38, -3e38])
def test_huge_scores_and_no_valid_row_give_numbers(scale, valid):
    # The largest differences are no numbers any more.
    scores = np.float32(scale) * (SCORES / np.abs(SCORES).max())
    value, gradient = value_and_gradient(scores, valid)
    expected = np.log(max(valid.sum(), 1)) if scale == 0 else 0
    np.testing.assert_allclose(value, np.full(value.shape, expected), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_scores_that_are_no_numbers_stay_so():
    """A loss that is not finite stops a run: it must not pass for an entropy of 0."""
    scores = SCORES.copy()
    scores[0, 0, 0, 2], scores[1, 0, 0, 2] = np.inf, np.nan
    value, _ = value_and_gradient(scores, VALID)
    np.testing.assert_array_equal(
        np.isnan(value), np.isnan(scores).any(-1) | (scores.max(-1) > 1e9)
    )


def test_rows_of_zeros_score_zero_with_finite_gradients():
    rows = np.float32([[0, 0], [3, 4], [1e-20, 0], [0, 0]])

    @jax.jit
    def both(rows):
        units, pullback = jax.vjp(entropy.unit_rows, rows)
        return units, pullback(jnp.ones_like(units))[0]

    units, gradient = both(rows)
    np.testing.assert_allclose(units, [[0, 0], [0.6, 0.8], [1e-8, 0], [0, 0]], rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_all_is_float32_whatever_comes_in():
    features, rows = jnp.ones((1, 2, 3, 4), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)

    @jax.jit
    def all_of_them(features, rows):
        scores = entropy.similarity(features, rows)
        measured = entropy.measure(features, {'within': LabelEmbeddings(rows)}, factor=2)
        maps = entropy.entropy(scores.astype(jnp.bfloat16))
        return scores, entropy.unit_rows(rows), maps, measured

    found = all_of_them(features, rows)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype('float32')}
    np.testing.assert_allclose(found[0], 2, rtol=1e-6)
    # Both rows score the same, at the dimmed border as well.
    np.testing.assert_allclose(found[-1].entropy['within'], (24 * np.log(2), 24), rtol=1e-6)


@pytest.mark.parametrize(
    ('given', 'answer'),
    [
        ((np.ones((4, 3)), None), r'rows has shape \(4, 3\); expected \[R, 6\] .* 6 channels'),
        ((np.ones((1, 6)), None), r'rows has shape \(1, 6\)'),
        ((np.ones((4, 6)), np.ones(4, bool)), r'valid has shape \(4,\); expected \(3,\)'),
    ],
)
def test_what_does_not_fit_is_named(given, answer):
    with pytest.raises(ValueError, match=answer):
        entropy.measure(np.ones((1, 2, 2, 6), np.float32), {'within': LabelEmbeddings(*given)})


def test_no_label_set_is_named():
    with pytest.raises(ValueError, match='label_sets is empty'):
        entropy.measure(np.ones((1, 2, 2, 6), np.float32), {})


# A few images at a time.

ALPHA, BETA = 0.5, 2.0


@functools.cache
def example():
    """Six embedding maps [6, 3, 2, 7], and rows of two label sets; three of the own are valid."""
    rng = np.random.default_rng(1)
    shapes = (6, 3, 2, 7), (6, 7), (4, 7)
    embedding, own, other = (rng.normal(0, 2, shape).astype(np.float32) for shape in shapes)
    return embedding, {'within': LabelEmbeddings(own, VALID), 'cross': LabelEmbeddings(other)}


def value_gradient_and_log(embedding, sets):
    def loss(embedding):
        measured = entropy.measure(embedding, sets)
        cross, within = (losses.mean(*measured.entropy[name]) for name in ('cross', 'within'))
        return ALPHA * cross + BETA * within, measured

    (value, measured), gradient = jax.value_and_grad(loss, has_aux=True)(embedding)
    return value, gradient, measured


@functools.cache
def expected():
    """Value and gradient with the whole embedding enlarged, its scores and log in numpy."""
    embedding, sets = example()
    own = sets['within'].rows[np.append(VALID, True)]

    @jax.jit
    def program(embedding):
        return jax.value_and_grad(
            lambda e: entropy.loss(resize.upsample_zero(e), own, sets['cross'].rows, ALPHA, BETA)
        )(embedding)

    rows = {name: x.rows[:-1] for name, x in sets.items()}
    scores = {
        name: embedding @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
        for name, x in rows.items()
    }
    scores['within'] = np.where(VALID, scores['within'], -np.inf)
    nearest = {
        name: np.bincount(x.argmax(-1).ravel(), minlength=x.shape[-1]) for name, x in scores.items()
    }
    return *program(embedding), nearest, np.linalg.norm(embedding, axis=-1).sum()


@pytest.mark.parametrize(('images', 'turns'), [(6, 1), (4, 2), (1, 6)])
def test_enlarged_scores_are_scores_of_the_enlarged(monkeypatch, images, turns):
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', images * 4 * 24 * 16 * (5 + 3))
    own = jax.jit(lambda *given: value_gradient_and_log(*given))  # not one traced before
    traced = own.trace(*example())
    # One loop forwards and one backwards, for both label sets.
    assert re.findall(r'length=(\d+)', str(traced.jaxpr)) == [str(turns)] * 2 * (turns > 1)
    value, gradient, measured = traced.lower().compile()(*example())
    expected_value, expected_gradient, nearest, length = expected()
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    close(gradient, np.asarray(expected_gradient))
    for name in ('within', 'cross'):
        assert measured.entropy[name].count == 6 * 24 * 16
        np.testing.assert_array_equal(measured.nearest[name], nearest[name])
    np.testing.assert_allclose(measured.length, (length, 6 * 3 * 2), rtol=1e-6)


def test_a_label_set_without_a_valid_row_adds_nothing():
    embedding, sets = example()
    sets = {**sets, 'within': sets['within']._replace(valid=np.zeros(5, bool))}
    value, gradient, measured = jax.jit(value_gradient_and_log)(embedding, sets)
    assert measured.entropy['within'].total == 0
    assert not np.any(measured.nearest['within'])
    np.testing.assert_allclose(value, ALPHA * losses.mean(*measured.entropy['cross']), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_what_is_logged_has_no_gradient():
    def logged(embedding):
        measured = entropy.measure(embedding, example()[1])
        return measured.length.total + sum(x.sum() for x in measured.nearest.values())

    embedding = np.zeros((1, 3, 2, 7), np.float32)  # where a length has none that is finite
    assert not np.any(jax.jit(jax.grad(logged))(embedding))


def test_memory_grows_by_the_small_maps_alone(monkeypatch):
    """With many rows and more images, no map of theirs at full resolution."""
    side, rows, channels = 8, 60, 16
    one_image = 4 * (8 * side) ** 2 * 2 * rows
    monkeypatch.setattr(resize, '_BYTES_AT_ONCE', one_image)

    def temporary(batch):
        embedding = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
        label_set = LabelEmbeddings(jax.ShapeDtypeStruct((rows + 1, channels), jnp.float32))
        sets = {'within': label_set, 'cross': label_set}
        program = jax.jit(value_gradient_and_log).lower(embedding, sets).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = temporary(2), temporary(6)
    assert few <= 6 * one_image
    assert many - few <= 4 * one_image / 4
