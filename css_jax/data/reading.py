"""Records of a dataset, decoded; one that is damaged is named."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from css_jax.data import geometry
from css_jax.data.sources import VOID, Source, said


def read(source: Source, index: int, label: bool = True) -> dict[str, np.ndarray]:
    """Decode one record.

    Args:
        source: the images.
        index: of the image.
        label: whether its mask is decoded too.

    Returns:
        {'image': uint8 [H, W, 3], RGB} and perhaps {'label': uint8 [H, W]}, class ids or `VOID`.

    Raises:
        ValueError: the record is damaged, or a label is no class; names dataset, split and image,
            and the command that prepares the records again.
    """
    try:
        record = source.records[index]
    except Exception as error:  # whatever ArrayRecord meets in a damaged file
        raise damaged(source, index, said(error)) from error
    image = _decoded(source, index, record, 'image')
    if not label:
        return {'image': image}
    mask = _decoded(source, index, record, 'label')
    if mask.shape != image.shape[:2]:
        sizes = f'image {image.shape[:2]} and label {mask.shape}, expected one height and width'
        raise damaged(source, index, sizes)
    wrong = mask[(mask >= len(source.class_names)) & (mask != VOID)]
    if wrong.size:
        last = len(source.class_names) - 1
        raise damaged(
            source, index, f'label value {wrong[0]}, expected a class, 0 to {last}, or {VOID}: void'
        )
    return {'image': image, 'label': mask}


def unreadable(
    source: Source, indices: Sequence[int], label: bool = True, threads: int = 1
) -> dict[int, str]:
    """Decode records once, to find those that cannot be.

    Args:
        source: the images.
        indices: of the images.
        label: whether their masks are decoded too.
        threads: that read.

    Returns:
        Index -> what `read` says of it, in the order of `indices`; of those that cannot be read.
    """

    def reason(index: int) -> str:
        try:
            read(source, index, label)
        except ValueError as error:
            return str(error)
        return ''

    with ThreadPoolExecutor(threads) as pool:
        found = zip(indices, pool.map(reason, indices), strict=True)
        return {index: why for index, why in found if why}


def damaged(source: Source, index: int, what: str) -> ValueError:
    """Return the error that names a record and how to prepare it again."""
    again = f'; {source.again}' if source.again else ''
    return ValueError(
        f'{source.dataset}:{source.split}, image {source.ids[index]!r}: {what}{again}'
    )


def _decoded(source: Source, index: int, record: Mapping[str, bytes], part: str) -> np.ndarray:
    decode = {'image': geometry.decode_image, 'label': geometry.decode_label}[part]
    try:
        array = decode(record[part])
    except (cv2.error, KeyError, TypeError) as error:  # TFDS gives None for what a record lacks
        if getattr(error, 'code', None) == cv2.Error.STS_NO_MEM:
            raise MemoryError(f'no room for {part} {source.ids[index]!r}') from error
        array = None
    if array is None:
        raise damaged(source, index, f'its {part} cannot be decoded')
    return array
