"""What the builders share: the form of a record, what is noted beside it, and the report.

Beside the records lies, per split and in record order, each image's id, its size and its number of
pixels of each class. Subsets, class coverage and reports therefore need no scan of the images.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

VOID = 255  # label of pixels that have no class


def dataset_info(
    builder: tfds.core.DatasetBuilder, class_names: tuple[str, ...], **kwargs
) -> tfds.core.DatasetInfo:
    """Gives the description every builder's `_info` returns.

    Args:
        builder: the builder described.
        class_names: names in the order of their label values.
        **kwargs: description, homepage, citation as in `tfds.core.DatasetInfo`.

    Returns:
        The description, with an empty metadata table that `examples` fills.
    """
    features = {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
    }
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(class_names=list(class_names), splits={}),
        disable_shuffling=True,
        **kwargs,
    )


def examples(
    metadata: tfds.core.MetadataDict, split: str, items: Iterable[tuple[str, bytes, np.ndarray]]
) -> Iterator[tuple[int, dict]]:
    """Turns a split's items into TFDS examples and notes what was seen in the metadata.

    Args:
        metadata: the builder's `info.metadata`; gets `splits[split]`.
        split: name of the split.
        items: (id, encoded image, label uint8 [H, W]) in record order.

    Yields:
        (key, example) as `_generate_examples` must.
    """
    noted = {'ids': [], 'sizes': [], 'pixels': []}
    num_classes = len(metadata['class_names'])
    for key, (image_id, image, label) in enumerate(items):
        noted['ids'].append(image_id)
        noted['sizes'].append(list(label.shape))
        pixels = np.bincount(label.ravel(), minlength=num_classes)[:num_classes]
        noted['pixels'].append(pixels.tolist())
        yield key, {'id': image_id, 'image': image, 'label': encode_png(label)}
    metadata['splits'][split] = noted


def encode_png(array: np.ndarray) -> bytes:
    """Encodes uint8 [H, W] (grey) or [H, W, 3] (RGB) as PNG."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', array)[1].tobytes()


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the builder's records, with a progress bar; nothing happens where they exist.

    They are written to a folder of another name that is renamed at the end, so that an interrupted
    preparation leaves nothing that looks finished.
    """
    try:
        builder.download_and_prepare(file_format='array_record')
    except OSError:
        # Another process may have finished the same records first; then they are as good as ours.
        if not is_prepared(builder):
            raise


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Tells whether the builder's records lie in its folder."""
    return (Path(builder.data_dir) / 'dataset_info.json').exists()


def report(builder: tfds.core.DatasetBuilder) -> str:
    """Describes prepared records: images, sizes, and a histogram of the classes per split."""
    names = builder.info.metadata['class_names']
    lines = [f'{builder.info.full_name} in {builder.data_dir}']
    for split, noted in builder.info.metadata['splits'].items():
        pixels, sizes = np.array(noted['pixels']), np.array(noted['sizes'])
        area = sizes.prod(axis=1).sum()
        kinds = sorted({f'{width}x{height}' for height, width in noted['sizes']})
        shown = ', '.join(kinds[:3]) + (f' and {len(kinds) - 3} more' if len(kinds) > 3 else '')
        lines.append(f'\n{split}: {len(sizes)} images, width x height {shown}')
        lines.append(f'  {"class":<14}{"pixels":>9}{"images":>8}')
        for name, total, images in zip(names, pixels.sum(0), (pixels > 0).sum(0), strict=True):
            lines.append(f'  {name:<14}{total / area:>9.2%}{images:>8}')
        lines.append(f'  {"(void)":<14}{1 - pixels.sum() / area:>9.2%}')
    return '\n'.join(lines)
