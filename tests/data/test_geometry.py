import hashlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from css_jax.data import geometry
from css_jax.ops import augment

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'imas_crops.npz')


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (37, 53, 3), np.uint8), (0, 0), 2)
    return {'image': image, 'label': rng.integers(0, 7, (37, 53), np.uint8)}


@pytest.mark.parametrize('resampling', ['cv2', 'pil'])
@pytest.mark.parametrize('pad', ['constant', 'reflect'])
@pytest.mark.parametrize('crop', [(20, 30), (64, 30), (200, 200)])
def test_crop_of_any_size(arrays, crop, pad, resampling):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        moved = geometry.random_crop(
            arrays, rng, crop=crop, scale=(0.3, 2.0), pad=pad, resampling=resampling
        )
        assert moved['image'].shape == (*crop, 3) and moved['label'].shape == crop
        assert moved['image'].dtype == moved['label'].dtype == np.uint8
        assert set(np.unique(moved['label'])) <= {*range(7), 255}


def test_label_does_not_change_the_draws(arrays):
    crops = [
        geometry.random_crop(part, np.random.default_rng(5), crop=(30, 30), scale=(0.5, 1.5))
        for part in (arrays, {'image': arrays['image']})
    ]
    np.testing.assert_array_equal(crops[0]['image'], crops[1]['image'])
    assert crops[1].keys() == {'image'}


def test_crop_reaches_every_place(arrays):
    y, x = np.mgrid[:37, :53].astype(np.uint8)
    arrays = {'image': np.stack([y, x, x], axis=-1)}
    rng = np.random.default_rng(0)
    corners = [geometry.random_crop(arrays, rng, crop=(34, 50))['image'][0, 0] for _ in range(300)]
    assert {(int(c[0]), int(c[1])) for c in corners} == {(a, b) for a in range(4) for b in range(4)}


def test_constant_padding_is_the_mean_colour_and_ignore(arrays):
    rng = np.random.default_rng(0)
    moved = geometry.random_crop(arrays, rng, crop=(40, 53), fill=(124, 116, 104))
    np.testing.assert_array_equal(moved['image'][:37], arrays['image'])
    np.testing.assert_array_equal(moved['image'][37:], np.full((3, 53, 3), (124, 116, 104)))
    np.testing.assert_array_equal(moved['label'][37:], 255)


def test_reflection_repeats_the_image_but_no_label(arrays):
    moved = geometry.random_crop(arrays, np.random.default_rng(0), crop=(40, 60), pad='reflect')
    image = np.pad(arrays['image'], ((0, 3), (0, 7), (0, 0)), mode='reflect')
    label = np.pad(arrays['label'], ((0, 3), (0, 7)), constant_values=255)
    np.testing.assert_array_equal(moved['image'], image)
    np.testing.assert_array_equal(moved['label'], label)


@pytest.mark.parametrize('pad', ['constant', 'reflect'])
@pytest.mark.parametrize('crop', [(20, 30), (64, 30), (20, 90), (90, 90)])
def test_crop_is_cut_from_the_padded_image(arrays, crop, pad):
    for seed in range(5):
        moved = geometry.random_crop(
            arrays,
            np.random.default_rng(seed),
            crop=crop,
            scale=(0.6, 1.7),
            pad=pad,
            fill=(9, 8, 7),
        )
        rng = np.random.default_rng(seed)
        factor = rng.uniform(0.6, 1.7)
        size = int(37 * factor), int(53 * factor)
        image = geometry.pad_to(geometry.resize(arrays['image'], size), crop, pad, (9, 8, 7))
        label = geometry.resize_label(arrays['label'], size)
        label = geometry.pad_to(label, crop, 'constant', 255)
        top = rng.integers(0, len(image) - crop[0] + 1)
        left = rng.integers(0, image.shape[1] - crop[1] + 1)
        window = np.s_[top : top + crop[0], left : left + crop[1]]
        np.testing.assert_array_equal(moved['image'], image[window])
        np.testing.assert_array_equal(moved['label'], label[window])
        assert all(array.flags['C_CONTIGUOUS'] for array in moved.values())


def test_what_is_off_draws_nothing_so_that_crops_stay_as_they_were():
    """The digest is of the crops before images were mirrored and had a range of the long side."""
    y, x = np.mgrid[:37, :53].astype(np.uint8)
    arrays = {
        'image': np.stack([5 * y, 3 * x, x + y], axis=-1),
        'label': x // 7 + y // 5,
        'valid': np.ones((37, 53), bool),
    }
    options = {'scale': (0.5, 1.5), 'fill': (124, 116, 104), 'resampling': 'pil'}
    found = hashlib.sha256()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for crop in ((20, 30), (64, 30), (20, 90), (90, 90)):
            for pad in ('constant', 'reflect'):
                moved = geometry.random_crop(arrays, rng, crop=crop, pad=pad, **options)
                for name in arrays:
                    found.update(moved[name].tobytes())
        found.update(rng.bytes(8))
    expected = 'c98e711ec57f68152e2057cac5fd1df42ca2a8b060a9af48f7d7416972bf1c26'
    assert found.hexdigest() == expected


def test_sizes_are_those_of_imas():
    sizes, sides = GOLDEN['resize_random_size'], GOLDEN['resize_random_long_side']
    found = [geometry.with_long_side(*pair) for pair in zip(sizes, sides, strict=True)]
    np.testing.assert_array_equal(found, GOLDEN['resize_random_resized'])
    factors = 0.5 + 1.5 * GOLDEN['resize_random_fixed_uniform']
    base = tuple(GOLDEN['resize_random_fixed_base'])
    found = [geometry.scaled(base, factor) for factor in factors]
    np.testing.assert_array_equal(found, GOLDEN['resize_random_fixed_resized'])


def test_the_crop_is_that_of_imas():
    names = 'image', 'label', 'left_top', 'limits_left_top', 'cropped', 'cropped_label'
    image, label, left_top, limits, cropped, labels = (GOLDEN[f'crop_small_{n}'] for n in names)
    crop, (left, top) = cropped.shape[:2], left_top.tolist()
    arrays = {'image': image, 'label': label.astype(np.uint8)}
    place = geometry.Place(label.shape, top, left)
    moved = geometry.crop_at(arrays, place, crop=crop, fill=(123, 116, 103))
    np.testing.assert_array_equal(moved['image'], cropped)
    np.testing.assert_array_equal(moved['label'], labels.astype(np.uint8))  # ignore: -1, here 255

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = np.asarray(augment.normalise(augment.to_float(moved['image']), mean, std))
    theirs = GOLDEN['crop_small_normalised']
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()

    rng = np.random.default_rng(0)
    places = [geometry.draw(label.shape, rng, crop=crop) for _ in range(200)]
    reached = {place.left for place in places}, {place.top for place in places}
    assert reached == tuple({*range(low, high + 1)} for low, high in limits.tolist())


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [((30, 40), {(2, 2), (2, 3), (3, 4), (4, 5)}), ((9, 3), {(2, 1), (3, 1), (4, 1), (5, 2)})],
)
def test_every_long_side_is_as_likely_whatever_the_size(shape, expected):
    rng = np.random.default_rng(0)
    options = {'crop': (8, 8), 'long_side': (2, 5), 'scale': (50.0, 60.0)}
    sizes = [geometry.draw(shape, rng, **options).size for _ in range(2000)]
    counts = [sizes.count(size) for size in sorted(set(sizes))]
    assert set(sizes) == expected
    assert min(counts) > 440 and max(counts) < 560  # of 500; their deviation is 19


def test_no_side_vanishes():
    assert geometry.with_long_side((2, 900), 100) == (1, 100)
    assert geometry.with_long_side((900, 2), 100) == (100, 1)
    assert geometry.scaled((2, 90), 0.1) == (1, 9)


@pytest.mark.parametrize('resampling', ['cv2', 'pil'])
@pytest.mark.parametrize('pad', ['constant', 'reflect'])
@pytest.mark.parametrize('crop', [(20, 30), (64, 30), (20, 90), (90, 90)])
def test_all_is_mirrored_after_the_resize_and_before_the_padding(arrays, crop, resampling, pad):
    arrays['valid'] = np.ones((37, 53), bool)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        options = {'scale': (0.6, 1.7), 'long_side': (20, 80) if seed % 2 else (0, 0)}
        place = geometry.draw((37, 53), rng, crop=crop, flip_prob=1.0, **options)
        moved = geometry.crop_at(
            arrays, place, crop=crop, pad=pad, fill=(9, 8, 7), resampling=resampling
        )
        image = geometry.resize(arrays['image'], place.size, resampling)[:, ::-1]
        label = geometry.resize_label(arrays['label'], place.size, resampling)[:, ::-1]
        valid = np.ones(place.size, np.uint8)
        padded = {
            'image': geometry.pad_to(np.ascontiguousarray(image), crop, pad, (9, 8, 7)),
            'label': geometry.pad_to(np.ascontiguousarray(label), crop, 'constant', 255),
            'valid': geometry.pad_to(valid, crop, 'constant', 0) > 0,
        }
        window = np.s_[place.top : place.top + crop[0], place.left : place.left + crop[1]]
        for name, whole in padded.items():
            np.testing.assert_array_equal(moved[name], whole[window])
            assert moved[name].flags['C_CONTIGUOUS'] and moved[name].shape[:2] == crop


def test_so_many_images_are_mirrored_and_their_places_stay():
    def places(flip_prob, count=400):
        return [
            geometry.draw((37, 53), np.random.default_rng(i), crop=(20, 30), flip_prob=flip_prob)
            for i in range(count)
        ]

    never, some, always = places(0.0), places(0.3), places(1.0)
    assert not any(place.mirrored for place in never)
    assert all(place.mirrored for place in always)
    assert 0.2 < np.mean([place.mirrored for place in some]) < 0.4
    for place in zip(never, some, always, strict=True):
        assert len({one._replace(mirrored=False) for one in place}) == 1


def test_a_crop_at_random_is_the_crop_at_its_draws(arrays):
    drawn = {'crop': (40, 30), 'scale': (0.6, 1.7), 'flip_prob': 0.5}
    filled = {'pad': 'constant', 'fill': (9, 8, 7), 'resampling': 'pil'}
    for long_side in ((0, 0), (20, 80)):
        for seed in range(6):
            options = drawn | {'long_side': long_side}
            place = geometry.draw((37, 53), np.random.default_rng(seed), **options)
            moved = geometry.random_crop(arrays, np.random.default_rng(seed), **options, **filled)
            expected = geometry.crop_at(arrays, place, crop=(40, 30), **filled)
            for name in arrays:
                np.testing.assert_array_equal(moved[name], expected[name])


def test_a_crop_mirrored_with_its_padding_is_the_plain_one_mirrored(arrays):
    """As UniMatch has it: resized, padded right and below, cropped, then mirrored."""
    arrays = arrays | {'valid': np.ones((37, 53), bool)}
    for seed in range(12):
        for crop in ((20, 30), (64, 30), (20, 90), (90, 90)):
            plain, moved = (
                geometry.random_crop(
                    arrays, np.random.default_rng(seed), crop=crop, scale=(0.6, 1.7),
                    flip_prob=prob, with_padding=True, fill=(0, 0, 0),
                )
                for prob in (1e-9, 1.0)
            )  # fmt: skip
            for name in ('label', 'valid'):
                np.testing.assert_array_equal(moved[name], plain[name][:, ::-1])
            # An image is resized before it is mirrored, which rounds alike from either side.
            apart = np.abs(moved['image'].astype(int) - plain['image'][:, ::-1])
            assert apart.max() <= 1


def test_the_long_side_is_that_of_unimatch():
    rows = np.load(Path(__file__).parents[1] / 'fixtures' / 'unimatch_ops.npz')['resized']
    for height, width, new_height, new_width, least, most in rows.tolist():
        shape = height, width
        found = geometry.with_long_side(shape, max(new_height, new_width))
        assert found == (new_height, new_width)
        options = {'crop': (8, 8), 'scale': (0.5, 2.0), 'of_long_side': True}
        sides = [
            max(geometry.draw(shape, np.random.default_rng(seed), **options).size)
            for seed in range(200)
        ]
        assert least <= min(sides) < least + 0.05 * most and 0.95 * most < max(sides) <= most


@pytest.mark.parametrize('size', [(37, 53), (40, 40), (73, 60), (190, 300)])
def test_reflection_equals_numpy(arrays, size):
    down, right = max(0, size[0] - 37), max(0, size[1] - 53)
    for array in arrays.values():
        widths = ((0, down), (0, right), (0, 0))[: array.ndim]
        expected = np.pad(array, widths, mode='reflect')
        np.testing.assert_array_equal(geometry.pad_to(array, size, 'reflect'), expected)


def test_reflection_of_a_single_pixel():
    pixel = np.full((1, 1), 7, np.uint8)
    np.testing.assert_array_equal(geometry.pad_to(pixel, (3, 2), 'reflect'), np.full((3, 2), 7))


@pytest.mark.parametrize('size', [(18, 26), (23, 31), (55, 79), (74, 106)])
def test_resampling_agrees_with_pil(arrays, size):
    label = [geometry.resize_label(arrays['label'], size, kind) for kind in ('cv2', 'pil')]
    np.testing.assert_array_equal(*label)
    image = [geometry.resize(arrays['image'], size, kind).astype(int) for kind in ('cv2', 'pil')]
    assert np.abs(image[0] - image[1]).mean() < 2  # levels of 255; the filters differ


def test_pil_resampling_is_the_antialiased_bilinear_filter(arrays):
    expected = Image.fromarray(arrays['image']).resize((20, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(geometry.resize(arrays['image'], (10, 20), 'pil'), expected)


def test_size_after_resize_is_rounded_down(arrays):
    rng = np.random.default_rng(0)
    moved = geometry.random_crop(arrays, rng, crop=(37, 53), scale=(0.99, 0.99))
    assert (moved['label'][:36, :52] < 255).all()
    assert (moved['label'][36:] == 255).all() and (moved['label'][:, 52:] == 255).all()


def test_decoding_gives_rgb():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    encoded = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(geometry.decode_image(encoded), image)


def test_decoding_a_jpeg_gives_what_pil_gives(arrays):
    encoded = cv2.imencode('.jpg', arrays['image'][..., ::-1])[1].tobytes()
    expected = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
    assert np.abs(geometry.decode_image(encoded) - expected).max() <= 2  # of 255; decoders round
