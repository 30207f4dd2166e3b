"""Photographs and masks of every kind of file, as the builders read them."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep import images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 3), np.uint8)
DEEP = RNG.integers(0, 4096, (24, 32, 3)).astype(np.uint16)  # of a camera of 12 bits
IDS = RNG.integers(0, 2, (24, 32)).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)
GOLDEN = Path(__file__).parents[1] / 'fixtures' / 'usss_ops.npz'
pytestmark = [  # Pillow's, of damaged files and of large ones
    pytest.mark.filterwarnings('ignore::UserWarning'),
    pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning'),
]


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def shown(data):
    """What PIL shows of a file."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))


def kept(data):
    """What training reads of a record; it is what `decode` gives."""
    photograph = images.decode('a', data)
    record = images.encoded(photograph, data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    read = cv2.imdecode(np.frombuffer(record, np.uint8), flags)[..., ::-1]
    # Decoders of JPEG differ by a rounding.
    assert np.abs(read.astype(int) - photograph.pixels).max() <= (2 if record == data else 0)
    return record


@pytest.mark.parametrize(('modes', 'kind', 'same'), [
    ('RGB L', 'JPEG', True), ('CMYK', 'JPEG', False), ('RGB L', 'PNG', True),
    ('1 P LA RGBA', 'PNG', False), ('RGB L', 'BMP', False), ('RGB L CMYK LA', 'TIFF', False),
    ('RGB RGBA', 'WEBP', False),
])  # fmt: skip
def test_images_of_eight_bits(modes, kind, same):
    for mode in modes.split():
        data = encode(IMAGE.convert(mode), kind)
        photograph = images.decode('a', data)
        assert photograph.pixels.dtype == np.uint8 and photograph.size == (24, 32)
        np.testing.assert_array_equal(photograph.pixels, shown(data))
        assert photograph.kept == same
        assert (kept(data) == data) == same


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_turns_an_image(orientation):
    for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF'):
        data = encode(IMAGE, kind, exif=turned(orientation))
        photograph = images.decode('a', data)
        np.testing.assert_array_equal(photograph.pixels, shown(data))
        if kind != 'TIFF':  # Pillow turns these itself
            assert (photograph.orientation, photograph.stored) == (orientation, (24, 32))
        assert (kept(data) == data) == (orientation == 1 and kind in ('JPEG', 'PNG'))
    assert images.decode('a', encode(IMAGE, 'JPEG', exif=turned(9))).kept


@pytest.mark.parametrize('grey', [False, True])
@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_sixteen_bits_are_scaled_by_a_range(ending, grey):
    values = DEEP[..., 0] if grey else DEEP
    data = cv2.imencode(ending, values if grey else values[..., ::-1])[1].tobytes()
    full = images.decode('a', data).pixels
    np.testing.assert_array_equal(full[..., 0], np.rint(DEEP[..., 0] / 257))
    ranged = images.decode('a', data, (100, 4095)).pixels
    expected = np.clip(np.rint((DEEP - 100.0) * (255 / 3995)), 0, 255)
    expected = np.stack([expected[..., 0]] * 3, -1) if grey else expected
    np.testing.assert_array_equal(ranged, expected)
    assert not images.decode('a', data).kept


def test_the_range_is_of_all_images_of_sixteen_bits(tmp_path):
    for index, values in enumerate((DEEP[..., 0] + 5, DEEP[..., 0] + 900)):
        Image.fromarray(values).save(tmp_path / f'{index}.png')
    IMAGE.save(tmp_path / '2.png')
    IMAGE.save(tmp_path / '3.tif')
    (tmp_path / '4.png').write_bytes((tmp_path / '0.png').read_bytes()[:100])
    files = sorted(tmp_path.iterdir())
    high = int(DEEP[..., 0].max())
    assert images.deep_range(files) == (int(DEEP[..., 0].min()) + 5, high + 900)
    assert images.deep_range(files[2:4]) is None


def test_sixteen_bits_with_orientation_and_with_one_value():
    data = encode(Image.fromarray(DEEP[..., 0]), 'PNG', exif=turned(6))
    photograph = images.decode('a', data)
    assert (photograph.size, photograph.stored) == ((32, 24), (24, 32))
    flat = encode(Image.fromarray(np.full((4, 4), 7, np.uint16)), 'PNG')
    assert images.decode('a', flat, (7, 7)).pixels.max() == 0


TGA = encode(IMAGE, 'TGA')
PNG = encode(IMAGE, 'PNG')
FLOATS = encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), 'TIFF')
SIXTEEN = encode(Image.fromarray(DEEP[..., 0]), 'PNG')


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (TGA, 'expected JPEG, PNG, BMP, TIFF, WEBP'),
        (b'no image', 'expected JPEG, PNG'),
        (b'', 'it is empty'),
        (FLOATS, 'values of type float32; expected 8 or 16 bits'),
        *((encode(IMAGE, kind)[:-400], 'no readable image') for kind in images.FORMATS[:-1]),
        (encode(IMAGE, 'WEBP')[:100], 'no readable image'),
        (SIXTEEN[:300], 'damaged or cut short'),
        (PNG[:60] + b'\0' * 20 + PNG[80:], 'no readable image'),
        (b'II*\0' + b'\xff' * 40, 'no readable image'),
    ],
    ids=range(12),
)
def test_what_is_no_image_is_named(data, reason):
    with pytest.raises(ValueError, match=rf'^site A/ä\.jpg.*{reason}') as error:
        images.decode('site A/ä.jpg', data)
    assert '\n' not in str(error.value)


def of_size(width, height, depth):
    """The beginning of a PNG: what its header says alone makes it a bomb."""
    head = b'IHDR' + struct.pack('>IIBBBBB', width, height, depth, 0, 0, 0, 0)
    data = b'IDAT' + zlib.compress(bytes(100))
    parts = (struct.pack('>I', len(p) - 4) + p + struct.pack('>I', zlib.crc32(p))
             for p in (head, data))  # fmt: skip
    return images._PNG + b''.join(parts)


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('size', [(30_000, 4_000), (60_000, 60_000)])
def test_what_is_too_large_is_refused_by_its_header(size, depth):
    for decode in (images.decode, images.decode_mask):
        with pytest.raises(ValueError, match=r'^a: an image of too many pixels; expected .* 89,'):
            decode('a', of_size(*size, depth))


def test_more_pixels_can_be_allowed():
    kinds = [encode(IMAGE, kind) for kind in images.FORMATS]
    deep = [cv2.imencode(ending, DEEP)[1].tobytes() for ending in ('.png', '.tif')]
    before = Image.MAX_IMAGE_PIXELS
    for data in (*kinds, *deep):
        with images.allowed(767):
            with pytest.raises(images.TooLarge, match=r'expected at most 767 .*take --max_pixels'):
                images.decode('a', data)
            with images.allowed(768):
                assert images.decode('a', data).size == (24, 32)
    assert before == Image.MAX_IMAGE_PIXELS


def test_damaged_files_give_no_other_error():
    rng = np.random.default_rng(1)
    kinds = [encode(IMAGE, kind, exif=turned(6)) for kind in ('JPEG', 'PNG', 'TIFF', 'WEBP')]
    for data in [*kinds, SIXTEEN, encode(Image.fromarray(DEEP[..., 0]), 'TIFF')]:
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, min(len(data), 300), 3)] = rng.integers(0, 256, 3)
            for decode in (images.decode, images.decode_mask):
                try:
                    decode('a.jpg', damaged.tobytes())
                except ValueError as error:
                    assert 'a.jpg' in str(error)


MASKS = {
    'grey': (Image.fromarray(IDS * 7), 'PNG'),
    'bits': (Image.fromarray(IDS * 255).convert('1'), 'PNG'),
    'bits of BMP': (Image.fromarray(IDS * 255).convert('1'), 'BMP'),
    'grey of BMP': (Image.fromarray(IDS * 7), 'BMP'),
    'grey of TIFF': (Image.fromarray(IDS * 7), 'TIFF'),
    'alpha': (Image.merge('LA', [Image.fromarray(IDS * 7), Image.fromarray(IDS)]), 'PNG'),
    '16 bits': (Image.fromarray(IDS.astype(np.uint16) * 700), 'PNG'),
    '16 bits of TIFF': (Image.fromarray(IDS.astype(np.uint16) * 700), 'TIFF'),
    'palette': (Image.fromarray(IDS * 7).convert('P'), 'PNG'),
}
MASKS['palette'][0].putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())


@pytest.mark.parametrize('name', MASKS)
def test_masks_keep_their_numbers(name):
    scale = 700 if '16' in name else 1 if 'bits' in name else 7
    mask = images.decode_mask('a', encode(*MASKS[name]))
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask, IDS * np.int32(scale))


def test_masks_of_colours_keep_them():
    np.testing.assert_array_equal(images.decode_mask('a', PNG), PIXELS)
    np.testing.assert_array_equal(
        images.decode_mask('a', encode(IMAGE.convert('RGBA'), 'PNG')), PIXELS
    )
    # An image that is grey throughout may be all of one class whose colour is grey.
    flat = Image.new('RGBA', (32, 24), (128, 128, 128, 255))
    assert images.decode_mask('a', encode(flat, 'PNG')).shape == (24, 32, 3)


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (encode(IMAGE, 'JPEG'), 'a mask in JPEG, which blurs class ids; expected PNG, BMP or TIFF'),
        (encode(IMAGE, 'WEBP'), 'a mask in WEBP'),
        (FLOATS, 'a mask of mode F; expected class ids'),
        (
            encode(Image.fromarray(IDS.astype(np.int32) - 65_535), 'TIFF'),
            'a mask with the value -65535; expected 0 or more',
        ),
        (encode(IMAGE.convert('CMYK'), 'TIFF'), 'a mask of mode CMYK'),
        (PNG[:-300], 'no readable image'),
        (TGA, 'no readable image'),
    ],
    ids=range(7),
)
def test_what_is_no_mask_is_named(data, reason):
    with pytest.raises(ValueError, match=f'^m.png.*{reason}'):
        images.decode_mask('m.png', data)


def test_sizes_that_differ_and_orientation(caplog):
    def check(orientation, size):
        photograph = images.decode('i', encode(IMAGE, 'JPEG', exif=turned(orientation)))
        return images.check_sizes('i', photograph, 'm', size)

    assert check(1, (24, 32)) == check(6, (32, 24)) == ''
    with pytest.raises(ValueError, match=r'm: expected width x height 32x24 as in i, came 31x24$'):
        check(1, (24, 31))
    with pytest.raises(ValueError, match=r'came 32x24: .* as stored, .* turn the mask or remove'):
        check(6, (24, 32))
    assert 'i: EXIF orientation 3 turns it, and m fits both ways' in check(3, (24, 32))
    mask = encode(Image.fromarray(IDS), 'PNG')
    with pytest.raises(ValueError, match='m: expected one channel of class ids'):
        images.decode_pair(('i', PNG), ('m', PNG))
    turned_about = encode(IMAGE, 'JPEG', exif=turned(3))
    photograph, values = images.decode_pair(('i', turned_about), ('m', mask))
    assert (photograph.size, values.shape) == ((24, 32), (24, 32))
    assert 'warning: i: EXIF orientation 3' in caplog.text


def triangle(n, m):
    """What m pixels are of n: bilinear interpolation, as wide as a pixel of the result."""
    scale = n / m
    centres, width = (np.arange(m)[:, None] + 0.5) * scale, max(scale, 1.0)
    weights = np.maximum(0, 1 - np.abs(np.arange(n) + 0.5 - centres) / width)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ((1024, 2048), (512, 1024)),  # Cityscapes
        ((1080, 1920), (512, 1024)),  # IDD
        ((720, 1280), (512, 1024)),
        ((530, 730), (480, 640)),  # SUN RGB-D
        ((427, 561), (480, 640)),
        ((441, 591), (480, 640)),
    ],
)
def test_images_are_resized_by_a_triangle_and_labels_to_the_nearest(before, after):
    rng = np.random.default_rng(before)
    image = cv2.resize(rng.integers(0, 256, (90, 120, 3), np.uint8), before[::-1])
    label = rng.integers(0, 256, before).astype(np.uint8)
    resized, nearest = images.resize(image, label, after)
    assert (resized.dtype, resized.shape) == (np.uint8, (*after, 3))
    rows, columns = map(triangle, before, after)
    channels = np.moveaxis(image.astype(float), -1, 0)
    expected = np.moveaxis(rows @ channels @ columns.T, 0, -1)
    assert np.abs(resized - expected).max() < 1.01  # rounded after each side
    np.testing.assert_array_equal(
        nearest, Image.fromarray(label).resize(after[::-1], Image.Resampling.NEAREST)
    )
    if before[0] == 2 * after[0]:
        assert np.array_equal(nearest, label[1::2, 1::2])
        np.testing.assert_allclose(rows[3, 5:9], [1 / 8, 3 / 8, 3 / 8, 1 / 8])
    middle = nearest[after[0] // 2, after[1] // 2]
    place = [int((m // 2 + 0.5) * n / m) for n, m in zip(before, after, strict=True)]
    assert middle == label[tuple(place)]


def test_resizing_is_that_of_the_authors_of_usss():
    golden = np.load(GOLDEN)
    size = tuple(golden['loader/size_wh'][::-1].tolist())
    image, label = images.resize(golden['loader/image'], golden['loader/label'], size)
    assert np.abs(image - 255 * golden['loader/image_out']).max() < 1.001
    np.testing.assert_array_equal(np.where(label == 255, 19, label), golden['loader/label_out'])


def test_a_record_of_the_same_size_keeps_the_file():
    data = encode(IMAGE, 'JPEG')
    photograph = images.decode('a', data)
    for size in (None, photograph.size):
        kept_data, label = images.at_size(photograph, data, IDS, size)
        assert kept_data == data
        assert label is IDS
    small, label = images.at_size(photograph, data, IDS, (12, 16))
    assert images.decode('a', small).size == label.shape == (12, 16)
