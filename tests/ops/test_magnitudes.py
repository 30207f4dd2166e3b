"""CoSA's strong operations against the authors' program and against Pillow itself."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from css_jax.ops import augment, intensity, magnitudes

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')
CASES = [key.split('_')[1:] for key in GOLDEN if key[-1].isdigit() and key.startswith('strong_')]
ENHANCED = ('color', 'contrast', 'brightness', 'sharpness')

# One program for all operations.
strong = jax.jit(magnitudes.strong)


def batch(cases, image):
    ops = np.int32([magnitudes.NAMES.index(name) for name, _ in cases])
    steps = np.int32([m for _, m in cases])
    return np.asarray(strong(np.broadcast_to(image, (len(cases), *image.shape)), ops, steps))


def held(name, ours, theirs):
    """Check the bound of an operation: equal, or 1 level off where `ops.intensity` says so."""
    off = np.abs(ours.astype(int) - theirs.astype(int))
    assert ours.dtype == np.uint8
    assert off.max() <= (1 if name in (*ENHANCED, 'autocontrast') else 0), name
    assert name == 'autocontrast' or (off > 0).mean() < 0.001, name


def by_pillow(name, image, m):
    picture = Image.fromarray(image)
    if name == 'solarize':
        return ImageOps.solarize(picture, min(int(25.6 * m), 255))
    if name == 'posterize':
        return ImageOps.posterize(picture, 4 - int(0.4 * m))
    if name in ENHANCED:
        return getattr(ImageEnhance, name.capitalize())(picture).enhance(0.1 + 0.18 * m)
    return picture if name == 'identity' else getattr(ImageOps, name)(picture)


def test_operations_are_the_authors():
    cases = [(name, int(m)) for name, m in CASES]
    assert len(cases) == 17
    for (name, m), ours in zip(cases, batch(cases, GOLDEN['strong_image']), strict=True):
        held(name, ours, GOLDEN[f'strong_{name}_{m}'])


def test_operations_are_pillow_s():
    """At all magnitudes, on a picture of which much is cut off at 0 and 255."""
    rng = np.random.default_rng(0)
    waves = np.cumsum(np.cumsum(rng.normal(size=(24, 30, 3)), 0), 1)
    image = np.interp(waves, (waves.min() / 2, waves.max() / 2), (0, 255)).astype(np.uint8)
    cases = [(name, m) for name in magnitudes.NAMES for m in range(1, 10)]
    found = [batch(cases[i : i + 27], image) for i in (0, 27, 54)]
    for (name, m), ours in zip(cases, np.concatenate(found), strict=True):
        held(name, ours, np.asarray(by_pillow(name, image, m)))


def test_changed_without_a_branch_they_are_the_same():
    """As devices other than CPUs do it."""
    cases = [(name, int(m)) for name, m in CASES]
    ops = np.int32([[intensity.NAMES.index(name)] for name, _ in cases])
    steps = np.int32([[m] for _, m in cases])
    images = np.broadcast_to(GOLDEN['strong_image'], (17, 24, 30, 3))
    together = jax.jit(intensity.together, static_argnums=3)
    found = np.asarray(together(images, ops, steps, magnitudes.parameter))
    for (name, _), ours, theirs in zip(cases, found, batch(cases, images[0]), strict=True):
        held(name, ours, theirs)


def test_one_operation_alone_is_the_same():
    images = np.stack([GOLDEN['strong_image'], GOLDEN['strong_image'][::-1]])
    for name, m in (('color', 9), ('posterize', 4)):
        alone = np.asarray(augment.operation(name, images, m))
        held(name, alone[0], GOLDEN[f'strong_{name}_{m}'])
        held(name, alone[1, ::-1], GOLDEN[f'strong_{name}_{m}'])


def test_bad_arguments_are_named():
    images = GOLDEN['strong_image'][None]
    with pytest.raises(ValueError, match="name is 'invert'"):
        magnitudes.operation('invert', images, 1)
    for m in (0, 10):
        with pytest.raises(ValueError, match=f'magnitude is {m}; expected 1 to 9'):
            magnitudes.operation('color', images, m)
