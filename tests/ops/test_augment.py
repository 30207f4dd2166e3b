import colorsys
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from css_jax.models.backbones import IMAGENET
from css_jax.ops import augment, draws

MEAN, STD = IMAGENET
GREY = np.array([0.299, 0.587, 0.114])
PAPER = {
    'jitter_prob': 0.8,
    'brightness': 0.25,
    'contrast': 0.25,
    'saturation': 0.25,
    'hue': 0.25,
    'blur_prob': 0.5,
    'blur_sigma': (0.15, 1.15),
    'flip_prob': 0.5,
    'resize': (0.5, 1.5),
    'mixing': 'cutmix',
}
STILL = {'jitter_prob': 0.0, 'blur_prob': 0.0, 'flip_prob': 0.0, 'resize': (1.0, 1.0)}


def settings(**overrides):
    return augment.Augment(**(PAPER | overrides))


def next_example(tree):
    return jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), tree)


def keys_of(count, seed=0):
    """Keys of so many examples; made here, as `split` would be a program for every count."""
    bits = np.random.default_rng(seed).integers(0, 2**32, (count, 2), np.uint32)
    return jax.random.wrap_key_data(bits, impl='threefry2x32')


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def pixel_index(batch, height, width):
    """A different integer at every pixel of the batch."""
    return np.arange(batch * height * width, dtype=np.int32).reshape(batch, height, width)


def pil_resize(image, height, width):
    channels = [Image.fromarray(channel) for channel in np.moveaxis(image, -1, 0)]
    resized = [np.asarray(c.resize((width, height), Image.BILINEAR)) for c in channels]
    return np.stack(resized, -1)


def ones(tree):
    return jax.tree.map(jnp.ones_like, tree)


# Jitted: a compiled whole costs less than dozens of small programs.
resize_crop = jax.jit(augment.resize_crop, static_argnums=3)
color = jax.jit(augment.color)
blur = jax.jit(augment.blur, static_argnames=('prob', 'sigma'))
flip = jax.jit(augment.flip)


@partial(jax.jit, static_argnums=(3, 4), static_argnames='label')
def mix(keys, images, maps, kind, partner=next_example, label='label'):
    return augment.mix(
        keys, images, maps, partner, kind=kind, label=label, num_classes=4, fill=MEAN
    )


def replaced_pixels(kind, keys, labels):
    """Where mixing takes the partner's pixels, [N, H, W]."""
    mixed, _ = mix(keys, np.zeros((*labels.shape, 3), np.float32), {'label': labels}, kind, ones)
    return np.asarray(mixed[..., 0]) == 1


@partial(jax.jit, static_argnums=3)
def strong_view(keys, images, maps, parameters):
    return augment.strong_view(
        keys,
        images,
        maps,
        parameters,
        label='label',
        num_classes=4,
        next_example=next_example,
        mean=MEAN,
        std=STD,
    )


# Resize, pad, crop.


@pytest.mark.parametrize('scale', [0.5, 0.73, 0.3])
def test_shrinking_is_pil_antialiased_then_padded_by_reflection_and_maps_are_nearest(scale):
    height, width = 24, 32
    images, index = random_images(2, height, width), pixel_index(2, height, width)
    maps = {'label': index, 'indicator': index.astype(np.float32)}
    result, maps = resize_crop(keys_of(2), images, maps, (scale, scale))
    small = int(height * scale), int(width * scale)
    margin = ((0, height - small[0]), (0, width - small[1]), (0, 0))  # 0.3: more than one turn
    for image, got in zip(images, result, strict=True):
        expected = np.pad(pil_resize(image, *small), margin, mode='reflect')
        np.testing.assert_allclose(got, expected, atol=2e-6)
    rows = np.floor((np.arange(small[0]) + 0.5) * height / small[0]).astype(int)
    columns = np.floor((np.arange(small[1]) + 0.5) * width / small[1]).astype(int)
    for name, unknown in (('label', -1), ('indicator', 0)):
        expected = np.full(index.shape, unknown)
        expected[:, : small[0], : small[1]] = index[:, rows[:, None], columns]
        np.testing.assert_array_equal(maps[name], expected)
        assert maps[name].dtype == (jnp.int32 if name == 'label' else jnp.float32)


def test_growing_is_a_crop_of_pil_at_the_place_the_maps_are_taken_from():
    height, width = 24, 32
    large = int(height * 1.31), int(width * 1.31)
    images, index = random_images(3, height, width), pixel_index(3, height, width)
    maps = {'label': index, 'indicator': index.astype(np.float32)}
    result, maps = jax.tree.map(np.asarray, resize_crop(keys_of(3), images, maps, (1.31, 1.31)))
    rows = np.floor((np.arange(large[0]) + 0.5) * height / large[0]).astype(int)
    columns = np.floor((np.arange(large[1]) + 0.5) * width / large[1]).astype(int)
    for i in range(3):
        whole = pil_resize(images[i], *large)
        places = [
            (top, left)
            for top in range(large[0] - height + 1)
            for left in range(large[1] - width + 1)
            if np.abs(whole[top : top + height, left : left + width] - result[i]).max() < 1e-5
        ]
        assert len(places) == 1
        top, left = places[0]
        nearest = index[i][rows[top : top + height, None], columns[left : left + width]]
        np.testing.assert_array_equal(maps['label'][i], nearest)
        np.testing.assert_array_equal(maps['indicator'][i], nearest)


def test_crop_covers_every_offset_evenly():
    count = 2000
    index = np.broadcast_to(pixel_index(1, 4, 6), (count, 4, 6))
    images = np.zeros((count, 4, 6, 3), np.float32)
    _, maps = resize_crop(keys_of(count), images, {'index': index}, (1.5, 1.5))
    _, seen = np.unique(np.asarray(maps['index']).reshape(count, -1), axis=0, return_counts=True)
    assert len(seen) == 3 * 4  # 6 - 4 + 1 rows, 9 - 6 + 1 columns
    assert np.abs(seen - count / 12).max() < 5 * np.sqrt(count / 12)


def test_scale_is_uniform_in_its_range():
    count = 1000
    images = np.zeros((count, 40, 3, 3), np.float32)
    known = np.ones((count, 40, 3), np.float32)
    _, maps = resize_crop(keys_of(count), images, {'known': known}, (0.5, 1.0))
    sizes = np.asarray(maps['known'])[:, :, 0].sum(1)
    assert sizes.min() == 20
    assert sizes.max() == 39
    assert abs(sizes.mean() - 29.5) < 5 * 5.8 / np.sqrt(count)


def test_unit_scale_is_the_identity():
    images = random_images(2, 6, 8)
    result, _ = resize_crop(keys_of(2), images, {}, (1.0, 1.0))
    np.testing.assert_array_equal(result, images)


# Mixing.


@pytest.mark.parametrize('kind', ['cutmix', 'cutout'])
def test_box_law(kind):
    count, height, width = 3000, 9, 8
    keys, labels = keys_of(count), np.zeros((count, height, width), np.int32)
    if kind == 'cutmix':
        inside = replaced_pixels(kind, keys, labels)
    else:
        _, maps = mix(keys, np.zeros((*labels.shape, 3), np.float32), {'label': labels}, kind)
        inside = np.asarray(maps['label']) == -1
    rows, columns = inside.any(2), inside.any(1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    boxes = np.stack([columns.sum(1), rows.sum(1), columns.argmax(1), rows.argmax(1)], 1)
    found, seen = np.unique(boxes, axis=0, return_counts=True)
    expected = {
        (w, h, left, top): 1 / 3 / ((width - w + 1) * (height - h + 1))
        for w in (5, 6, 7)
        for h in [round(height * width / (2 * w))]
        for left in range(width - w + 1)
        for top in range(height - h + 1)
    }
    assert {tuple(box) for box in found.tolist()} == set(expected)
    for box, times in zip(found.tolist(), seen, strict=True):
        share = expected[tuple(box)]
        assert abs(times - count * share) < 5 * np.sqrt(count * share)


@pytest.mark.parametrize('kind', ['cutmix', 'classmix'])
def test_mixed_pixels_are_the_examples_own_or_the_next_ones(kind):
    index = pixel_index(3, 10, 12)
    images = np.stack([index, index + 1, index + 2], -1).astype(np.float32)
    labels = np.random.default_rng(0).integers(-1, 4, index.shape).astype(np.int32)
    maps = {'label': labels, 'index': index, 'indicator': index.astype(np.float32)}
    mixed, after = jax.tree.map(np.asarray, mix(keys_of(3), images, maps, kind))
    inside = replaced_pixels(kind, keys_of(3), labels)
    np.testing.assert_array_equal(after['index'], np.where(inside, np.roll(index, -1, 0), index))
    np.testing.assert_array_equal(mixed[..., 2], after['index'] + 2)
    np.testing.assert_array_equal(after['indicator'], after['index'])
    np.testing.assert_array_equal(after['label'], labels.reshape(-1)[after['index']])
    assert 0 < inside.mean() < 1


def test_classmix_keeps_every_half_of_the_values_alike():
    count = 1200
    row = np.int32([-1, 0, 2, 2, 3, 0])  # four values, ignore among them; 1 is absent
    replaced = replaced_pixels('classmix', keys_of(count), np.tile(row, (count, 2, 1)))
    np.testing.assert_array_equal(replaced[:, 0], replaced[:, 1])
    kept = ~replaced[:, 0]
    np.testing.assert_array_equal(kept[:, 2], kept[:, 3])
    np.testing.assert_array_equal(kept[:, 1], kept[:, 5])
    halves, seen = np.unique(kept[:, [0, 1, 2, 4]], axis=0, return_counts=True)
    assert len(halves) == 6
    assert (halves.sum(1) == 2).all()
    assert np.abs(seen - count / 6).max() < 5 * np.sqrt(count / 6)


def test_classmix_rounds_down():
    rows = np.int32([[3] * 6, [-1] * 6, [0, 0, 0, 1, 1, 1], [-1, -1, 0, 0, 2, 2]])
    labels = np.tile(rows[:, None], (5, 2, 1))
    replaced = replaced_pixels('classmix', keys_of(len(labels)), labels)
    np.testing.assert_array_equal((~replaced[:, 0]).sum(1), [0, 0, 3, 2] * 5)


def test_cutout_is_zero_after_the_photometry():
    index = pixel_index(4, 16, 20) % 4
    maps = {'label': index, 'indicator': np.ones(index.shape, np.float32)}
    parameters = settings(mixing='cutout', resize=(1.0, 1.0), jitter_prob=1.0, blur_prob=1.0)
    images, maps = strong_view(keys_of(4), random_images(4, 16, 20), maps, parameters)
    hole = np.asarray(maps['label']) == -1
    assert set(maps) == {'label', 'indicator'}
    assert np.abs(hole.mean((1, 2)) - 0.5).max() < 0.1
    np.testing.assert_array_equal(np.asarray(images == 0).all(-1), hole)
    np.testing.assert_array_equal(maps['indicator'], ~hole)


def test_none_mixes_nothing():
    images = random_images(2, 4, 4)
    mixed, _ = mix(keys_of(2), images, {}, 'none')
    np.testing.assert_array_equal(mixed, images)


# Photometry.


COUNT = 24  # one shape for all tests of colour: one program


def only(name, value):
    still = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}
    return {'jitter_prob': 1.0} | still | {name: value}


def hand_jitter(image, name, amount):
    """One change of one image, by the book."""
    if name == 'hue':
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
        rgb = [colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in hsv]
        return np.array(rgb).reshape(image.shape)
    grey = (image * GREY).sum(-1, keepdims=True)
    target = {'brightness': 0 * grey, 'contrast': grey.mean(), 'saturation': grey}[name]
    factor = 1 + amount
    return np.clip(factor * image + (1 - factor) * target, 0, 1)


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation', 'hue'])
def test_each_change_has_its_law(name):
    spread = 0.25
    images = random_images(COUNT, 4, 5)
    images[:, 0, 0] = 0.4, 0.5, 0.3  # clipped by none of them: gives the amount away
    images[:, 1, :4] = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0.5, 0.5, 0.5]])
    result = np.asarray(color(keys_of(COUNT), images, **only(name, spread)))
    amounts = []
    for image, got in zip(images.astype(np.float64), result, strict=True):
        trial = np.linspace(-spread, spread, 501)
        errors = [np.abs(hand_jitter(image[:1, :1], name, a) - got[0, 0]).max() for a in trial]
        if name == 'contrast':  # its target is the whole image's
            errors = [np.abs(hand_jitter(image, name, a)[0, 0] - got[0, 0]).max() for a in trial]
        amounts.append(trial[np.argmin(errors)])
        np.testing.assert_allclose(got, hand_jitter(image, name, amounts[-1]), atol=4e-3)
    assert np.std(amounts) > 0.05


def test_jitter_applies_the_changes_in_the_drawn_order():
    images = random_images(COUNT, 4, 5)
    spread = {'brightness': 0.5, 'contrast': 0.5, 'saturation': 0.5, 'hue': 0.5}
    result = color(keys_of(COUNT), images, jitter_prob=1.0, **spread)
    uniform = jax.jit(draws.uniform, static_argnums=(1, 2))
    drawn = np.asarray(uniform(keys_of(COUNT), 'color', 9), np.float64)
    orders = np.argsort(drawn[:, 1:5], axis=1)
    for image, got, order, draw in zip(images, result, orders, drawn, strict=True):
        image = image.astype(np.float64)
        for change in order:
            image = hand_jitter(image, list(spread)[change], draw[5 + change] - 0.5)
        np.testing.assert_allclose(got, image, atol=2e-5)
    many = np.argsort(np.asarray(uniform(keys_of(1000), 'color', 9))[:, 1:5], axis=1)
    assert len(np.unique(many, axis=0)) == math.factorial(4)


def test_jitter_spares_its_share_of_the_examples():
    images = random_images(COUNT, 4, 5)
    parameters = only('brightness', 0.25) | {'jitter_prob': 0.8}
    spared = [
        (np.asarray(color(keys_of(COUNT, seed), images, **parameters)) == images).all((1, 2, 3))
        for seed in range(20)
    ]
    assert abs(np.mean(spared) - 0.2) < 0.1


def test_blur_is_a_gaussian_with_reflected_borders():
    images = random_images(2, 12, 15)
    result = blur(keys_of(2), images, prob=1.0, sigma=(1.15, 1.15))
    for image, got in zip(images, result, strict=True):
        expected = ndimage.gaussian_filter(image, (1.15, 1.15, 0), mode='mirror', radius=(5, 5, 0))
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_blur_is_drawn_per_example():
    impulse = np.zeros((200, 9, 9, 3), np.float32)
    impulse[:, 4, 4] = 1
    peak = np.asarray(blur(keys_of(200), impulse, prob=0.5, sigma=(0.5, 1.15)))[:, 4, 4, 0]
    assert abs((peak == 1).mean() - 0.5) < 0.2
    blurred = peak[peak < 1]
    assert blurred.min() > 1 / (2 * np.pi * 1.15**2) * 0.99  # the widest kernel's peak
    assert blurred.max() < 0.63  # that of 0.5 pixels, sampled
    assert np.std(blurred) > 0.05


def test_blur_of_an_image_smaller_than_its_kernel():
    result = blur(keys_of(2), np.full((2, 2, 3, 3), 0.7, np.float32), prob=1.0, sigma=(1.0, 2.0))
    np.testing.assert_allclose(result, 0.7, rtol=1e-6)


def test_flip_mirrors_images_and_maps_together():
    images, index = random_images(50, 2, 3), pixel_index(50, 2, 3)
    result, maps = flip(keys_of(50), images, {'index': index}, prob=0.5)
    flipped = np.asarray(maps['index'])[:, 0, 0] != index[:, 0, 0]
    assert 10 < flipped.sum() < 40
    expected = np.where(flipped[:, None, None], index[:, :, ::-1], index)
    np.testing.assert_array_equal(maps['index'], expected)
    np.testing.assert_array_equal(result, images.reshape(-1, 3)[expected])


def test_probability_zero_only_normalises():
    images = np.round(255 * random_images(2, 8, 9)).astype(np.uint8)
    run = partial(augment.photometric, augment=settings(**STILL), mean=MEAN, std=STD)
    result, _ = jax.jit(lambda keys, images: run(keys, augment.to_float(images), {}))(
        keys_of(2), images
    )
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(result, expected, atol=1e-5)


# The whole view.


def test_image_label_and_indicator_stay_aligned():
    batch, height, width = 4, 32, 40
    index = pixel_index(batch, height, width)
    example, row, column = np.unravel_index(index, index.shape)
    images = np.stack([example / batch, row / height, column / width], -1).astype(np.float32)
    parameters = settings(**STILL | {'resize': (0.5, 1.5), 'flip_prob': 0.5})
    maps = {'label': index, 'indicator': index.astype(np.float32)}
    images, maps = strong_view(keys_of(batch, 3), images, maps, parameters)
    label = np.asarray(maps['label'])
    known = label >= 0
    np.testing.assert_array_equal(maps['indicator'], np.where(known, label, 0))
    images = np.asarray(images) * np.array(STD) + np.array(MEAN)
    found = np.stack(np.unravel_index(np.maximum(label, 0), index.shape), -1)
    error = np.abs(images * np.array([batch, height, width]) - found)[known]
    assert error[:, 0].max() < 1e-4  # the same example
    assert error[:, 1:].max() < 1.01  # the same pixel: bilinear against nearest, at half size
    assert len({tuple(np.unique(label[i][known[i]] // (height * width))) for i in range(4)}) == 4


def test_view_is_finite_and_a_function_of_the_keys():
    black, white, grey = (np.full((16, 16, 3), value, np.float32) for value in (0, 1, 0.5))
    images = np.stack([black, white, grey, random_images(16, 16)])
    maps = {'label': np.full((4, 16, 16), -1), 'indicator': np.zeros((4, 16, 16), np.float32)}
    first, again, other = (
        strong_view(keys_of(4, seed), images, maps, settings(mixing='classmix'))
        for seed in (0, 0, 1)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_view_depends_on_no_other_example_but_the_next():
    label = np.random.default_rng(0).integers(-1, 4, (4, 16, 16))
    indicator = pixel_index(4, 16, 16).astype(np.float32)
    keys, images = keys_of(4), random_images(4, 16, 16)
    parameters = settings(mixing='classmix')
    first = strong_view(keys, images, {'label': label, 'indicator': indicator}, parameters)
    # The first two at other places, beside other images with other keys.
    keys = keys_of(4, 1).at[1:3].set(keys[:2])
    others = random_images(4, 16, 16, seed=1), np.zeros_like(label), np.zeros_like(indicator)
    for now, then in zip(others, (images, label, indicator), strict=True):
        now[1:3] = then[:2]
    images, label, indicator = others
    second = strong_view(keys, images, {'label': label, 'indicator': indicator}, parameters)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one[0], two[1], atol=1e-5)


# Bad input.


@pytest.mark.parametrize(
    ('overrides', 'words'),
    [
        ({'mixing': 'mixup'}, "'mixup'.*cutmix, classmix, cutout, none"),
        ({'flip_prob': 1.5}, 'flip_prob is 1.5'),
        ({'hue': 0.6}, 'hue is 0.6'),
        ({'blur_sigma': (0.0, 1.0)}, 'blur_sigma'),
        ({'resize': (1.5, 0.5)}, 'resize'),
    ],
)
def test_bad_parameters_are_named(overrides, words):
    with pytest.raises(ValueError, match=words):
        settings(**overrides)


def test_bad_arguments_are_named():
    images, label = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.int32)
    with pytest.raises(ValueError, match='scale_range'):
        resize_crop(keys_of(2), images, {}, (0.0, 1.0))
    with pytest.raises(ValueError, match=r"'label'.*2, 3, 4"):
        augment.flip(keys_of(2), images, {'label': np.zeros((2, 3, 4))}, prob=0.5)
    with pytest.raises(ValueError, match=r'keys \(3,\)'):
        augment.flip(keys_of(3), images, {}, prob=0.5)
    with pytest.raises(ValueError, match=r"'teacher'.*label"):
        mix(keys_of(2), images, {'label': label}, 'classmix', label='teacher')
    with pytest.raises(ValueError, match="'mixup'"):
        mix(keys_of(2), images, {'label': label}, 'mixup')
    with pytest.raises(ValueError, match="'label' is uint8"):
        mix(keys_of(2), images, {'label': label.astype(np.uint8)}, 'cutout')
    with pytest.raises(ValueError, match='2 x 2'):
        mix(keys_of(2), images[:, :2, :2], {}, 'cutmix')
