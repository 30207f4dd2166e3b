"""Decoding and random geometry on the host: uint8 in, uint8 out, one image at a time.

What only moves pixels is done here, so that batches have one static shape and travel as bytes;
colour, blur, flip and mixing follow on the device.
"""

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


def random_crop(
    arrays: dict[str, np.ndarray],
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    pad: str = 'constant',
    fill: tuple[int, int, int] = (0, 0, 0),
    resampling: str = 'cv2',
) -> dict[str, np.ndarray]:
    """Resize at random, pad up to the crop and crop at random: image and label alike.

    Args:
        arrays: 'image' uint8 [H, W, 3]; perhaps 'label' uint8 [H, W], 'valid' bool [H, W]; what
            else there is, is passed on.
        rng: where scale and place come from; the draws do not depend on the pixels.
        crop: height and width of the result.
        scale: range of the factor, drawn uniformly; the resized size is (int(H s), int(W s)).
        pad: of the image, 'constant' (`fill`) or 'reflect'. The label's is ignore under both: no
            pixel of it counts twice.
        fill: RGB of the padding.
        resampling: 'cv2' or 'pil', see `resize`.

    Returns:
        The same names, 'image' uint8 [*crop, 3], 'label' uint8 [*crop], 'valid' bool [*crop],
        false where the image is padded.
    """
    image, label = arrays['image'], arrays.get('label')
    factor = rng.uniform(*scale)
    size = tuple(max(1, int(side * factor)) for side in image.shape[:2])
    height, width = (max(side, least) for side, least in zip(size, crop, strict=True))
    top = rng.integers(0, height - crop[0] + 1)
    left = rng.integers(0, width - crop[1] + 1)
    window = np.s_[top : top + crop[0], left : left + crop[1]]

    # Cut, then padded: a side that is padded is not cut, so nothing is copied to be thrown away.
    image = resize(image, size, resampling)[window]
    result = arrays | {'image': np.ascontiguousarray(pad_to(image, crop, pad, fill))}
    if label is not None:
        label = resize_label(label, size, resampling)[window]
        result['label'] = np.ascontiguousarray(pad_to(label, crop, 'constant', 255))
    if 'valid' in arrays:  # padding is right and below
        result['valid'] = np.zeros(crop, bool)
        result['valid'][: image.shape[0], : image.shape[1]] = True
    return result


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
    array: np.ndarray, size: tuple[int, int], mode: str, value: int | tuple[int, ...] = 0
) -> np.ndarray:
    """Pad right and bottom where the array is smaller than `size`.

    Args:
        array: uint8 [H, W] or [H, W, 3].
        size: least height and width of the result.
        mode: 'constant', or 'reflect': mirrored about the last pixel, back and forth where the
            padding is larger than the array.
        value: of 'constant'.

    Returns:
        uint8 [max(H, size[0]), max(W, size[1])], with channels as they came.
    """
    down, right = (max(0, least - side) for side, least in zip(array.shape, size, strict=False))
    if not (down or right):
        return array
    border = {'constant': cv2.BORDER_CONSTANT, 'reflect': cv2.BORDER_REFLECT_101}[mode]
    return cv2.copyMakeBorder(array, 0, down, 0, right, border, value=value)
