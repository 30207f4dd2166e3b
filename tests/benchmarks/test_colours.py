"""The benchmark of the changes of colours: on small images, and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import intensity
from css_jax.ops.intensity import NAMES, chain


def test_both_forms_of_the_strong_view_are_one():
    """The tests of `css_jax.ops.intensity` have the form of this platform."""
    rng, images = np.random.default_rng(1), intensity.drawn(12, 37)
    ops = np.stack([np.arange(12), rng.permutation(12)], 1).astype(np.int32)
    levels = rng.uniform(0, 0.999, (12, 2)).astype(np.float32)
    levels[ops == NAMES.index('hue')] *= [-1, 1]
    one, other = (jax.jit(form)(images, ops, levels) for form in intensity.FORMS.values())
    np.testing.assert_array_equal(one, other)


@pytest.mark.soak
def test_the_programs_run_in_turns():
    rows = {row['operation']: row for row in intensity.operations(['invert', 'hue'], 32, 2)}
    assert list(rows) == ['invert', 'hue']
    rows |= {row['strong view']: row for row in intensity.views(2, 32, 3)}
    assert rows['Pillow']['to Pillow'] == 1
    for row in rows.values():
        assert all(value > 0 for name, value in row.items() if name.endswith(('ms', 'to Pillow')))


@pytest.mark.soak
@pytest.mark.parametrize('name', NAMES)
def test_pillow_does_the_same(name):
    (image,) = intensity.drawn(1, 32)
    theirs = np.asarray(intensity.pillow(name, 0.5)(Image.fromarray(image)), int)
    places, levels = np.int32([NAMES.index(name)]), np.float32([0.5])
    ours = np.asarray(jax.jit(chain)(image, places, levels), int)
    assert np.abs(ours - theirs).max() <= (7 if name == 'hue' else 1)


@pytest.mark.soak
def test_numbers_are_those_of_every_equation_and_of_the_costliest_branch():
    def f(x):
        y = jax.lax.map(lambda row: row + 1, x).sum()  # 3 times 4, then 12
        # 1 for the comparison, 1 for the index that is made of it, 24 for the costlier branch.
        return jax.lax.cond(y > 0, lambda x: jnp.sin(x * 2), lambda x: x, x)

    assert intensity.numbers(jax.make_jaxpr(f)(jnp.ones((3, 4)))) == 3 * 4 + 12 + 2 + 24


@pytest.mark.soak
@pytest.mark.parametrize('name', intensity.STEPS)
def test_the_strong_view_is_little_of_a_step(name):
    for row in intensity.shares(name):
        assert row['share in %'] < 5 and row['share of bytes in %'] < 5
