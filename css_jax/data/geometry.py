"""Decoding and random geometry on the host: uint8 in, uint8 out, one image at a time.

What only moves pixels is done here, so that batches have one static shape and travel as bytes;
colour, blur and mixing follow on the device, and so does the flip of methods whose teacher does not
see it.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # the caller's threads work on different images; more within one only compete


def decode_image(encoded: bytes) -> np.ndarray:
    """Decode a PNG or JPEG to uint8 [H, W, 3], RGB."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION  # as labels know no orientation
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


def decode_label(encoded: bytes) -> np.ndarray:
    """Decode an 8-bit grey PNG to uint8 [H, W]."""
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)


class Place(NamedTuple):
    """Where a crop is taken from: the draws of `random_crop`.

    Attributes:
        size: height and width to which the image is resized.
        top: first row of the crop in the resized image; -n: n rows of padding come first.
        left: first column of the crop in the resized image, after it is mirrored, or likewise.
        mirrored: whether the resized image is mirrored left-right.
    """

    size: tuple[int, int]
    top: int
    left: int
    mirrored: bool = False


def random_crop(
    arrays: dict[str, np.ndarray],
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    long_side: tuple[int, int] = (0, 0),
    of_long_side: bool = False,
    flip_prob: float = 0.0,
    around: bool = False,
    with_padding: bool = False,
    pad: str = 'constant',
    fill: tuple[int, int, int] = (0, 0, 0),
    resampling: str = 'cv2',
) -> dict[str, np.ndarray]:
    """Resize and mirror at random, pad up to the crop and crop at random.

    Args:
        arrays: see `crop_at`.
        rng: see `draw`.
        crop: height and width of the result.
        scale: see `draw`.
        long_side: see `draw`.
        of_long_side: see `draw`.
        flip_prob: see `draw`.
        around: see `draw`.
        with_padding: see `draw`.
        pad: see `crop_at`.
        fill: see `crop_at`.
        resampling: see `resize`.

    Returns:
        See `crop_at`.
    """
    place = draw(
        arrays['image'].shape[:2],
        rng,
        crop=crop,
        scale=scale,
        long_side=long_side,
        of_long_side=of_long_side,
        flip_prob=flip_prob,
        around=around,
        with_padding=with_padding,
    )
    return crop_at(arrays, place, crop=crop, pad=pad, fill=fill, resampling=resampling)


def draw(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    long_side: tuple[int, int] = (0, 0),
    of_long_side: bool = False,
    flip_prob: float = 0.0,
    around: bool = False,
    with_padding: bool = False,
) -> Place:
    """Draw where a crop is taken from.

    Args:
        shape: height and width of the image.
        rng: where the draws come from. They do not depend on the pixels, and what is off draws
            nothing.
        crop: height and width of the result.
        scale: range of the factor, drawn uniformly, see `scaled`.
        long_side: range of the long side, a whole number drawn uniformly, both ends included, see
            `with_long_side`; (0, 0): `scale` is used.
        of_long_side: `scale` is of the image's own long side L, which is a whole number drawn from
            int(low L) to int(high L), both ends included; see `with_long_side`.
        flip_prob: probability that the image is mirrored.
        around: a side that is smaller than the crop lies anywhere in it; else it is padded right
            and below alone.
        with_padding: what is right of a mirrored image was padded before it was mirrored, and is
            left of it.

    Returns:
        The place; every one in the resized and padded image is as likely.
    """
    if of_long_side and not any(long_side):
        long_side = tuple(max(1, int(factor * max(shape))) for factor in scale)
    if any(long_side):
        size = with_long_side(shape, int(rng.integers(*long_side, endpoint=True)))
    else:
        size = scaled(shape, rng.uniform(*scale))
    # From the first to the last place of the crop in the image, or of the image in the crop.
    rests = [side - least for side, least in zip(size, crop, strict=True)]
    top, left = (
        int(rng.integers(min(rest, 0) if around else 0, max(rest, 0) + 1)) for rest in rests
    )
    mirrored = bool(flip_prob) and rng.random() < flip_prob
    if mirrored and with_padding:
        left = size[1] - left - crop[1]  # the same part, counted from the other side
    return Place(size, top, left, mirrored)


def scaled(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return a height and a width times a factor, rounded down, but at least 1."""
    height, width = shape
    return max(1, int(height * factor)), max(1, int(width * factor))


def with_long_side(shape: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Return a height and a width with this long side; the short one is rounded, at least 1."""
    height, width = (int(long_side * side / max(shape) + 0.5) for side in shape)
    return max(1, height), max(1, width)


def crop_at(
    arrays: dict[str, np.ndarray],
    place: Place,
    *,
    crop: tuple[int, int],
    pad: str = 'constant',
    fill: tuple[int, int, int] = (0, 0, 0),
    resampling: str = 'cv2',
) -> dict[str, np.ndarray]:
    """Resize, mirror, pad up to the crop, and crop: image and label alike.

    Args:
        arrays: 'image' uint8 [H, W, 3]; perhaps 'label' uint8 [H, W], 'valid' bool [H, W], 'box'
            int32 [4]; what else there is, is passed on.
        place: where the crop is taken from.
        crop: height and width of the result.
        pad: of the image, 'constant' (`fill`) or 'reflect'. The label's is ignore under both: no
            pixel of it counts twice.
        fill: RGB of the padding.
        resampling: 'cv2' or 'pil', see `resize`.

    Returns:
        The same names, 'image' uint8 [*crop, 3], 'label' uint8 [*crop], 'valid' bool [*crop],
        false where the image is padded, 'box' the top, bottom, left and right of what is not.
    """
    # Cut, then mirrored and padded: a side that is padded is not cut, so nothing is copied to be
    # thrown away.
    before = max(0, -place.top), max(0, -place.left)
    image = _cut(resize(arrays['image'], place.size, resampling), place, crop)
    result = arrays | {'image': np.ascontiguousarray(pad_to(image, crop, pad, fill, before))}
    if 'label' in arrays:
        label = _cut(resize_label(arrays['label'], place.size, resampling), place, crop)
        result['label'] = np.ascontiguousarray(pad_to(label, crop, 'constant', 255, before))
    top, left = before
    bottom, right = top + image.shape[0], left + image.shape[1]
    if 'valid' in arrays:
        result['valid'] = np.zeros(crop, bool)
        result['valid'][top:bottom, left:right] = True
    if 'box' in arrays:
        result['box'] = np.array([top, bottom, left, right], np.int32)
    return result


def _cut(array: np.ndarray, place: Place, crop: tuple[int, int]) -> np.ndarray:
    """Return the part of a resized array [H, W, ...] that a crop shows, mirrored where it is."""
    rows = slice(max(0, place.top), max(0, place.top + crop[0]))
    columns = max(0, place.left), max(0, place.left + crop[1])
    if not place.mirrored:
        return array[rows, slice(*columns)]
    end = array.shape[1] - columns[0]
    return cv2.flip(array[rows, max(0, array.shape[1] - columns[1]) : end], 1)


def resize(image: np.ndarray, size: tuple[int, int], resampling: str = 'cv2') -> np.ndarray:
    """Resize an image.

    Args:
        image: uint8 [H, W, 3].
        size: height, width.
        resampling: 'cv2': area average when shrinking, bilinear when growing; 'pil': bilinear,
            antialiased when shrinking, as the reference program does.

    Returns:
        uint8 [*size, 3].
    """
    if image.shape[:2] == tuple(size):
        return image
    if resampling == 'pil':
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    shrinks = size[0] < image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=method)


def resize_label(label: np.ndarray, size: tuple[int, int], resampling: str = 'cv2') -> np.ndarray:
    """Resize a label map uint8 [H, W] to `size` (height, width), nearest at pixel centres."""
    if label.shape == tuple(size):
        return label
    if resampling == 'pil':
        return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
    # INTER_NEAREST is off by up to a pixel; _EXACT is what PIL does.
    return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def pad_to(
    array: np.ndarray,
    size: tuple[int, int],
    mode: str,
    value: int | tuple[int, ...] = 0,
    before: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Pad where the array is smaller than `size`, right and bottom alone unless told otherwise.

    Args:
        array: uint8 [H, W] or [H, W, 3].
        size: least height and width of the result.
        mode: 'constant', or 'reflect': mirrored about the last pixel, back and forth where the
            padding is larger than the array.
        value: of 'constant'.
        before: how many of the missing rows and columns come first.

    Returns:
        uint8 [max(H, size[0]), max(W, size[1])], with channels as they came.
    """
    down, right = (max(0, least - side) for side, least in zip(array.shape, size, strict=False))
    if not (down or right):
        return array
    border = {'constant': cv2.BORDER_CONSTANT, 'reflect': cv2.BORDER_REFLECT_101}[mode]
    top, left = before
    return cv2.copyMakeBorder(array, top, down - top, left, right - left, border, value=value)
