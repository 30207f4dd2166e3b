import io

import cv2
import numpy as np
import pytest
from PIL import Image

from css_jax.data import geometry


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
