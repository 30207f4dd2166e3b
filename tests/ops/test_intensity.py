"""The twelve operations against the authors' program and against Pillow itself."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from css_jax.ops import intensity

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'imas_ops.npz')
PHOTO = Path(__file__).parents[3] / 'shared' / 'golden' / 'imas_small.npz'
EXACT = ('identity', 'equalize', 'invert', 'blur', 'posterize', 'solarize')
ENHANCED = ('contrast', 'brightness', 'color', 'sharpness')
WITHOUT_LEVEL = ('identity', 'autocontrast', 'equalize', 'invert')

# Jitted: a compiled whole costs less than dozens of small programs.
OPS = {name: jax.jit(getattr(intensity, name)) for name in intensity.NAMES}
strong = jax.jit(intensity.strong)


def held(name, ours, theirs):
    """Check the bound of an operation: equal, 1 level off, or 7 in few values."""
    assert ours.dtype == np.uint8
    off = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    assert off.max() <= (0 if name in EXACT else 7 if name == 'hue' else 1)
    assert name != 'hue' or (off > 0).mean() < 1e-3


def by_pillow(name, image, level):
    picture = Image.fromarray(image)
    if name == 'identity':
        return image
    if name == 'blur':
        return picture.filter(ImageFilter.GaussianBlur(float(0.1 + 1.9 * level)))
    if name in ENHANCED:
        return getattr(ImageEnhance, name.capitalize())(picture).enhance(0.95 - 0.85 * level)
    if name == 'posterize':
        return ImageOps.posterize(picture, 8 - max(1, int(np.ceil(4 * level))))
    if name == 'solarize':
        return ImageOps.solarize(picture, min(max(1, 256 - int(np.ceil(255 * level))), 256))
    if name == 'hue':
        hsv = np.array(picture.convert('HSV'))
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(0.5 * level * 255)) % 256
        return Image.frombytes('HSV', picture.size, hsv.tobytes()).convert('RGB')
    return getattr(ImageOps, name)(picture)


@pytest.fixture(scope='module')
def images():
    """[5, 17, 24, 3]: noise, a narrow range, few values, a smooth picture, and padding beside."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (17, 24, 3))
    waves = np.cumsum(np.cumsum(rng.normal(size=(17, 24, 3)), 0), 1)
    smooth = np.interp(waves, (waves.min(), waves.max()), (0, 255))
    padded = smooth.copy()
    padded[9:, :] = padded[:, 20:] = (123, 116, 103)
    return np.stack([noise, 90 + noise // 5, noise // 64 * 64, smooth, padded]).astype(np.uint8)


@pytest.mark.parametrize('name', intensity.NAMES[4:])
def test_parameters_are_the_authors(name):
    levels = 0.999 * GOLDEN['parameter_draws_uniform']
    expected = GOLDEN[f'parameter_draws_{name}' + ('_shift_255ths' if name == 'hue' else '')]
    compiled = jax.jit(intensity.parameter, static_argnums=0)(name, levels)
    for ours in (intensity.parameter(name, levels), compiled):
        if name in ('posterize', 'solarize'):
            np.testing.assert_array_equal(ours, expected)
        np.testing.assert_allclose(ours, expected, atol=1e-5 * expected.max())
    assert np.ndim(intensity.parameter(name, 0.5)) == 0


@pytest.mark.parametrize('name', ['invert', 'identity', 'rotate'])
def test_what_has_no_parameter_says_so(name):
    with pytest.raises(ValueError, match=f"name is '{name}'"):
        intensity.parameter(name, 0.5)


@pytest.mark.parametrize('name', intensity.NAMES[1:])
def test_operations_are_the_authors(name):
    as_the_authors(GOLDEN, 'intensity_drawn', name)


@pytest.mark.skipif(not PHOTO.exists(), reason='no ../shared/golden: a photograph is not copied')
@pytest.mark.parametrize('name', [name for name in intensity.NAMES[1:] if name != 'invert'])
def test_operations_are_the_authors_on_a_photograph(name):
    as_the_authors(np.load(PHOTO), 'intensity_photo', name)


def as_the_authors(golden, prefix, name):
    image, theirs = golden[f'{prefix}_image'], golden[f'{prefix}_{name}']
    if name in WITHOUT_LEVEL:
        held(name, OPS[name](image, 0.0), theirs)
        return
    levels = golden[f'{prefix}_hue_levels' if name == 'hue' else f'{prefix}_levels']
    for level, expected in zip(levels, theirs, strict=True):
        held(name, OPS[name](image, level), expected)


@pytest.mark.parametrize('name', intensity.NAMES)
def test_operations_are_pillow_s(images, name):
    levels = [0.0] if name in WITHOUT_LEVEL else np.linspace(0, 0.999, 41).tolist()
    for level in levels + ([-level for level in levels] if name == 'hue' else []):
        level = float(np.float32(level))  # what a device gets
        for image in images:
            held(name, OPS[name](image, level), by_pillow(name, image, level))


def test_every_eighth_colour_survives_hsv_as_in_pillow():
    side = np.r_[0:256:8, 255]
    colours = np.stack(np.meshgrid(side, side, side), -1).reshape(33, -1, 3).astype(np.uint8)
    for level in (0.0, 0.31, -0.77):
        held('hue', OPS['hue'](colours, level), by_pillow('hue', colours, level))


@pytest.mark.parametrize('shape', [(1, 1), (1, 5), (2, 3), (3, 3)])
def test_tiny_images(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for name in ('blur', 'sharpness', 'equalize'):
        held(name, OPS[name](image, 0.9), by_pillow(name, image, 0.9))


@pytest.mark.parametrize('name', intensity.NAMES)
def test_an_image_of_one_colour(name):
    for colour in ((0, 0, 0), (123, 116, 103), (255, 255, 255)):
        image = np.broadcast_to(np.uint8(colour), (17, 24, 3))
        held(name, OPS[name](image, 0.5), by_pillow(name, image, 0.5))


def test_two_operations_are_the_authors():
    image, ops, levels = (GOLDEN[f'strong_drawn_{name}'] for name in ('image', 'op', 'level'))
    theirs = GOLDEN['strong_drawn_result'].astype(int)
    together = strong(np.broadcast_to(image, theirs.shape).astype(np.uint8), ops, levels)
    assert together.dtype == np.uint8
    off = np.abs(np.asarray(together, int) - theirs)
    assert (off > 0).mean() < 1e-3 and off.max() <= 7
    chain = jax.jit(intensity.chain)
    for i in range(len(ops)):
        np.testing.assert_array_equal(chain(image, ops[i], levels[i]), together[i])


@pytest.mark.parametrize('name', ['blur', 'contrast'])
def test_it_runs_uncompiled(images, name):
    alone = getattr(intensity, name)(images[3], np.float32(0.3))
    np.testing.assert_array_equal(alone, OPS[name](images[3], np.float32(0.3)))


def test_a_batch_is_one_operation_after_the_other(images):
    """Each image has its own operations and levels, whatever its neighbours have."""
    rng = np.random.default_rng(1)
    batch = np.concatenate([images, images[:, ::-1], images[:2]])  # as many as operations
    ops = np.stack([np.arange(12), rng.permutation(12)], 1).astype(np.int32)
    levels = rng.uniform(0, 0.999, (12, 2)).astype(np.float32)
    levels[ops == 11] *= [-1, 1]
    expected = []
    for image, pair, both in zip(batch, ops, levels, strict=True):
        for op, level in zip(pair, both, strict=True):
            image = OPS[intensity.NAMES[op]](image, level)
        expected.append(image)
    np.testing.assert_array_equal(strong(batch, ops, levels), expected)
