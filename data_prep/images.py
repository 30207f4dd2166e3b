"""Image files of every kind, as records keep them: one way for all builders.

Photographs become 8-bit RGB, upright; masks stay the numbers or colours that they have.
"""

import contextlib
import io
import logging
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

LOG = logging.getLogger('data_prep')
ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')  # in any case
FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP')  # Pillow reads many more, some of them programs
FULL = (0, 65_535)  # of 16 bits
# MPO: several JPEG in one file, of telephones; readers take the first.
_KEPT = {('JPEG', 'RGB'), ('JPEG', 'L'), ('MPO', 'RGB'), ('PNG', 'RGB'), ('PNG', 'L')}
# Pillow warns of what is refused here, see `TooLarge`.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
_PNG = b'\x89PNG\r\n\x1a\n'
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {  # its value -> the array turned upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


class Photograph(NamedTuple):
    """An image as it is trained on.

    Attributes:
        pixels: uint8 [H, W, 3], RGB, upright.
        stored: height and width in the file, before EXIF's orientation.
        orientation: EXIF's; 1: as stored.
        kept: whether the file's own bytes are this image for everybody who reads it.
    """

    pixels: np.ndarray
    stored: tuple[int, int]
    orientation: int
    kept: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[:2]


def is_image(file: Path) -> bool:
    """Return whether a file's ending is one of `ENDINGS`, and it is not hidden."""
    return file.suffix.lower() in ENDINGS and not file.name.startswith('.')


class TooLarge(ValueError):
    """An image has more pixels than it may have, see `allowed`."""

    def __init__(self, name: object):
        """Say so of the file of this name."""
        super().__init__(
            f'{name}: an image of too many pixels; expected at most {Image.MAX_IMAGE_PIXELS:,} '
            '(data_prep.folder and --mode predict take --max_pixels)'
        )


@contextlib.contextmanager
def allowed(pixels: int | None) -> Iterator[None]:
    """Let images have so many pixels meanwhile, in the whole process.

    What is decoded lies in memory with 3 bytes a pixel or more, several images at a time, and a
    file of some kilobytes may have any number of pixels. The limit is Pillow's own.

    Args:
        pixels: the most that an image may have; None: as many as before, 89,478,485 by default.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = before if pixels is None else pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def head(name: object, file: IO[bytes] | Path) -> Image.Image:
    """Read the head of an image, which decodes nothing.

    Args:
        name: of the file, for messages.
        file: of one of `FORMATS`.

    Raises:
        TooLarge: it has more pixels than it may have.
        OSError, SyntaxError, ValueError: Pillow's, of what is no image.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:  # Pillow's limit of an error is twice as high
        raise TooLarge(name) from None
    if _is_large(image.width * image.height):
        image.close()
        raise TooLarge(name)
    return image


def decode(name: object, data: bytes, depth: tuple[int, int] = FULL) -> Photograph:
    """Decode a photograph: grey, 16-bit, CMYK and palette become RGB, alpha is left out.

    Args:
        name: of the file, for messages.
        data: JPEG, PNG, BMP, TIFF or WebP.
        depth: values of a 16-bit image that become 0 and 255, see `deep_range`.

    Raises:
        ValueError: it cannot be read; names the file.
    """
    values = _deep(name, data)
    if values is not None:
        low, high = depth
        scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1))
        pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        pixels = np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels
        orientation = _orientation(_open(name, data)) if data.startswith(_PNG) else 1
        kept = False
    else:
        image = _open(name, data)
        if image.mode.startswith(('I', 'F')):  # to RGB these are cut to 255, not scaled
            raise ValueError(f'{name}: an image of mode {image.mode}; expected 8 or 16 bits')
        orientation = _orientation(image)
        kept = (image.format, image.mode) in _KEPT and orientation == 1
        pixels = np.asarray(image.convert('RGB'))
    upright = _TURNS.get(orientation, lambda a: a)(pixels)
    return Photograph(np.ascontiguousarray(upright), pixels.shape[:2], orientation, kept)


def encoded(photograph: Photograph, data: bytes) -> bytes:
    """Return the bytes that a record keeps: the file's own where all readers agree on them.

    Args:
        photograph: see `decode`.
        data: of the file.
    """
    if photograph.kept:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        read = cv2.imdecode(np.frombuffer(data, np.uint8), flags)  # as training does
        if read is not None and read.shape[:2] == photograph.size:
            return data
    return encode_png(photograph.pixels)


def encode_png(array: np.ndarray) -> bytes:
    """Encode uint8 [H, W] (grey) or [H, W, 3] (RGB) as PNG."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', array)[1].tobytes()


def resize(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image by Pillow's bilinear filter and its label to the nearest pixel.

    The filter is a triangle, which is wider where the image becomes smaller: at half the size a
    pixel is the sum of four, a side, with weights 1/8, 3/8, 3/8, 1/8. Pixel i of the label is the
    one at floor((i + 0.5) n / m), where n pixels become m: 2 i + 1 at half the size.

    Args:
        image: uint8 [H, W, 3].
        label: uint8 [H, W].
        size: height and width of the results.

    Returns:
        The image and the label.
    """
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    rows, columns = (
        (2 * np.arange(m) + 1) * n // (2 * m) for n, m in zip(label.shape, size, strict=True)
    )
    return np.asarray(resized), label[rows[:, None], columns]


def at_size(
    photograph: Photograph, data: bytes, label: np.ndarray, size: tuple[int, int] | None
) -> tuple[bytes, np.ndarray]:
    """Return what a record keeps of an image and its label, resized where they have another size.

    Args:
        photograph: see `decode`.
        data: of its file.
        label: uint8 [H, W].
        size: height and width, see `resize`; None: as they are.

    Returns:
        The encoded image, which is the file's own where nothing changes, and the label.
    """
    if size is None or size == photograph.size:
        return encoded(photograph, data), label
    pixels, label = resize(photograph.pixels, label, size)
    return encode_png(pixels), label


def deep_range(files: Iterable[Path]) -> tuple[int, int] | None:
    """Return the least and largest value of the 16-bit images among files; None without any.

    What a camera of 12 bits gives lies in a small part of 16; all images are scaled alike. Files
    that cannot be read count for nothing here.
    """
    low, high = FULL[1], FULL[0]
    for file in files:
        try:
            with file.open('rb') as opened:
                begin = opened.read(32)
            values = _deep(file, file.read_bytes()) if _may_be_deep(begin) else None
        except (OSError, ValueError):
            continue
        if values is not None:
            low, high = min(low, int(values.min())), max(high, int(values.max()))
    return (low, high) if low <= high else None


def decode_mask(name: object, data: bytes) -> np.ndarray:
    """Decode a mask, with its numbers or colours as they are in the file.

    Args:
        name: of the file, for messages.
        data: PNG, BMP or TIFF: 1, 8 or 16 bits, palette indices or RGB; alpha is left out.

    Returns:
        int32 [H, W], or uint8 [H, W, 3] where it has colours.

    Raises:
        ValueError: it cannot be read, or is of a kind that changes numbers; names the file.
    """
    image = _open(name, data)
    if image.format in ('JPEG', 'MPO', 'WEBP'):
        raise ValueError(
            f'{name}: a mask in {image.format}, which blurs class ids; expected PNG, BMP or TIFF'
        )
    if image.mode in ('RGB', 'RGBA'):
        return np.asarray(image)[..., :3]
    # Palette images keep their indices here; other decoders give their colours, silently.
    if image.mode in ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L'):
        values = np.asarray(image).astype(np.int32)
        if values.min(initial=0) < 0:  # of 32 bits
            raise ValueError(f'{name}: a mask with the value {values.min()}; expected 0 or more')
        return values
    if image.mode in ('LA', 'PA'):
        return np.asarray(image)[..., 0].astype(np.int32)
    raise ValueError(
        f'{name}: a mask of mode {image.mode}; expected class ids (grey or palette) or RGB'
    )


def palette(data: bytes) -> np.ndarray | None:
    """Return the colours of a palette image that `decode_mask` has read, uint8 [N, 3], or None."""
    colours = Image.open(io.BytesIO(data), formats=FORMATS).getpalette()
    return None if colours is None else np.array(colours, np.uint8).reshape(-1, 3)


def check_sizes(image: object, photograph: Photograph, mask: object, size: tuple[int, int]) -> str:
    """Compare an image's size and its mask's.

    Args:
        image: name, for messages.
        photograph: see `decode`.
        mask: name, for messages.
        size: of the mask, height and width.

    Returns:
        A warning where EXIF turns the image and the size fits both ways, else ''.

    Raises:
        ValueError: they differ; says how.
    """
    expected, stored = photograph.size, photograph.stored
    if size != expected:
        turned = ''
        if size == stored:
            turned = (
                f': the mask is of the image as stored, before EXIF orientation '
                f'{photograph.orientation} turns it; turn the mask or remove the orientation'
            )
        raise ValueError(
            f'{mask}: expected width x height {_shown(expected)} as in {image}, '
            f'came {_shown(size)}{turned}'
        )
    if photograph.orientation != 1 and size == stored:
        return (
            f'{image}: EXIF orientation {photograph.orientation} turns it, and {mask} fits both '
            'ways; it is taken as drawn on the turned image'
        )
    return ''


def decode_pair(
    image: tuple[object, bytes], label: tuple[object, bytes], depth: tuple[int, int] = FULL
) -> tuple[Photograph, np.ndarray]:
    """Decode an image and its label of class ids, and compare their sizes.

    Args:
        image: name for messages, and the file's bytes.
        label: likewise.
        depth: see `decode`.

    Returns:
        The image, and int32 [H, W] with the label's values as they are in the file.

    Raises:
        ValueError: a file cannot be read, the label is a colour image, or the sizes differ.
    """
    photograph, values = decode(*image, depth), decode_mask(*label)
    if values.ndim == 3:
        raise ValueError(
            f'{label[0]}: expected one channel of class ids (grey or palette), came colours (RGB)'
        )
    if warning := check_sizes(image[0], photograph, label[0], values.shape):
        LOG.warning('warning: %s', warning)
    return photograph, values


def _deep(name: object, data: bytes) -> np.ndarray | None:
    """Return the values of a 16-bit PNG or TIFF, uint16 [H, W] or [H, W, 3] (RGB), else None."""
    if not _may_be_deep(data):
        return None
    png = data.startswith(_PNG)
    if _is_large(_deep_pixels(data)):
        raise TooLarge(name)
    # Pillow cuts 48-bit PNG to 24 bits and opens no 48-bit TIFF.
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # such as too many pixels
        values = None
    if values is None and png:
        raise ValueError(f'{name} is no readable image: its pixels are damaged or cut short')
    if values is None or values.dtype == np.uint8:
        return None
    if values.dtype != np.uint16:
        raise ValueError(f'{name}: values of type {values.dtype}; expected 8 or 16 bits')
    if values.ndim == 2 or values.shape[2] == 1:
        return values.reshape(values.shape[:2])
    return values[..., 2::-1]  # from BGR or BGRA


def _may_be_deep(begin: bytes) -> bool:
    """Return whether a file that begins so is a 16-bit PNG or any TIFF."""
    if begin.startswith(_PNG):
        return begin[24:25] == b'\x10'  # bits a channel
    return begin[:4] in (b'II*\0', b'MM\0*')


def _deep_pixels(data: bytes) -> int:
    """Return how many pixels a PNG or a TIFF has by its header; 0 where that is damaged."""
    try:
        if data.startswith(_PNG):
            width, height = struct.unpack('>II', data[16:24])
            return width * height
        entries = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(entries.next)
        entries.load(file)
        return int(entries[TiffImagePlugin.IMAGEWIDTH]) * int(entries[TiffImagePlugin.IMAGELENGTH])
    except (struct.error, SyntaxError, OSError, KeyError, TypeError, ValueError):
        return 0


def _is_large(pixels: int) -> bool:
    """Return whether an image has more pixels than it may have, see `allowed`."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS


def _open(name: object, data: bytes) -> Image.Image:
    """Decode an image to its last pixel."""
    broken = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
    try:
        image = head(name, io.BytesIO(data))
        image.load()
    except TooLarge:
        raise
    except broken as error:  # PIL's, on broken files
        why = f'expected {", ".join(FORMATS)}' if 'cannot identify' in str(error) else error
        why = why if data else 'it is empty'
        raise ValueError(f'{name} is no readable image: {why}') from error
    return image


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation of an image; 1 where it has none that makes sense."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _TURNS else 1


def _shown(size: tuple[int, int]) -> str:
    return f'{size[1]}x{size[0]}'
