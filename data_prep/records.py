"""What the builders share: reading pairs, the form of a record, what is noted, the report.

Beside the records lies, per split and in record order, each image's id, its size and its number of
pixels of each class. Subsets, class coverage and reports therefore need no scan of the images.
"""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants, shuffle

VOID = 255  # label of pixels that have no class


def dataset_info(
    builder: tfds.core.DatasetBuilder,
    class_names: tuple[str, ...],
    unions: Mapping[str, tuple[str, ...]] | None = None,
    **kwargs,
) -> tfds.core.DatasetInfo:
    """Return the description every builder's `_info` returns.

    Args:
        builder: the builder described.
        class_names: names in the order of their label values.
        unions: name of a split that is made of others, not stored again -> their names.
        **kwargs: description, homepage, citation as in `tfds.core.DatasetInfo`.

    Returns:
        The description. Its metadata has `splits`, which `examples` fills, and `archives`, for a
        builder to fill with name -> fingerprint of what it read.
    """
    features = {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
    }
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(
            class_names=list(class_names),
            splits={},
            unions={name: list(parts) for name, parts in (unions or {}).items()},
            archives={},
        ),
        disable_shuffling=True,
        **kwargs,
    )


def examples(
    metadata: tfds.core.MetadataDict, split: str, items: Iterable[tuple[str, bytes, np.ndarray]]
) -> Iterator[tuple[int, dict]]:
    """Turn a split's items into TFDS examples and notes what was seen in the metadata.

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


def decode_pair(
    image: tuple[object, bytes], label: tuple[object, bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and its label, and compares their sizes.

    Args:
        image: name for messages, and a JPEG or PNG.
        label: name for messages, and a PNG of one channel: grey, or palette indices.

    Returns:
        image uint8 [H, W, 3] (RGB), label uint8 [H, W] with its values as they are in the file.

    Raises:
        ValueError: a file cannot be read, the label is a colour image, or the sizes differ.
    """
    pixels, values = _open(*image), _open(*label)
    # Palette images keep their indices here; other decoders give their colours, silently.
    if values.mode not in ('L', 'P'):
        raise ValueError(
            f'{label[0]}: expected one channel of class ids (grey or palette), '
            f'came an image of mode {values.mode}'
        )
    if values.size != pixels.size:
        raise ValueError(
            f'{label[0]}: expected width x height {pixels.width}x{pixels.height} '
            f'as in {image[0]}, came {values.width}x{values.height}'
        )
    return np.asarray(pixels.convert('RGB')), np.asarray(values)


def _open(name: object, encoded: bytes) -> Image.Image:
    """Decode an image to its last pixel."""
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # PIL's, on broken files
        raise ValueError(f'{name} is no readable image: {error}') from error
    return image


def relabel(label: np.ndarray, ids: Mapping[int, int], name: object, expected: str) -> np.ndarray:
    """Map a file's label values to class ids.

    Args:
        label: uint8 [H, W].
        ids: value in the file -> class id or `VOID`.
        name: of the file, for messages.
        expected: which values there may be, for messages.

    Returns:
        uint8 [H, W].

    Raises:
        ValueError: a value is none of `ids`.
    """
    known, table = np.zeros(256, bool), np.zeros(256, np.uint8)
    known[list(ids)], table[list(ids)] = True, list(ids.values())
    wrong = label[~known[label]]
    if wrong.size:
        raise ValueError(f'{name}: label value {wrong[0]}; expected {expected}')
    return table[label]


def shrink(image: np.ndarray, label: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Make `factor` pixels one, a side: averaged in the image, the nearest in the label."""
    size = (label.shape[1] // factor, label.shape[0] // factor)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image, cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)


def encode_png(array: np.ndarray) -> bytes:
    """Encode uint8 [H, W] (grey) or [H, W, 3] (RGB) as PNG."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', array)[1].tobytes()


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Write the builder's records, with a progress bar; nothing happens where they exist.

    They are written to a folder of another name that is renamed at the end, so that an interrupted
    preparation leaves nothing that looks finished. While it is written a split lies on the disk
    twice, and never in memory.
    """
    try:
        with mock.patch.object(shuffle, 'Shuffler', _Spool):
            builder.download_and_prepare(file_format='array_record')
    except OSError:
        # Another process may have finished the same records first; then they are as good as ours.
        if not is_prepared(builder):
            raise


class _Spool:
    """A split's records on their way to the shards, whose number depends on the size of them all.

    Takes the place of TFDS's Shuffler, which holds a split in memory, from 1,000 MiB on spills it
    with TensorFlow, and at last sorts it. `examples` yields in order, so one file will do.
    """

    def __init__(self, dirpath: str | os.PathLike, **_):
        # It has no name, so that nothing is left of it whatever happens. Beside the folder, not in
        # it: NFS does name open files, and the folder could then not be removed.
        self._file = tempfile.TemporaryFile(dir=Path(dirpath).parent)  # noqa: SIM115
        self._lengths = []  # bytes of each record

    @property
    def size(self) -> int:
        return sum(self._lengths)

    @property
    def num_examples(self) -> int:
        return len(self._lengths)

    @property
    def bucket_lengths(self) -> list[int]:
        return [len(self._lengths)]

    def add(self, key: int, record: bytes) -> None:
        del key  # the record's number
        self._file.write(record)
        self._lengths.append(len(record))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        for key, length in enumerate(self._lengths):
            yield key, self._file.read(length)
        self._file.close()


def leftovers(builder: tfds.core.DatasetBuilder) -> list[Path]:
    """Find folders in which these records are being written, or were until something broke off."""
    folder = Path(builder.data_dir)
    return sorted(folder.parent.glob(f'{constants.INCOMPLETE_PREFIX}*_{folder.name}'))


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Tell whether the builder's records lie in its folder."""
    return (Path(builder.data_dir) / 'dataset_info.json').exists()


def report(builder: tfds.core.DatasetBuilder) -> str:
    """Describe prepared records: sources, images, sizes, a histogram of the classes per split."""
    metadata = builder.info.metadata
    names = metadata['class_names']
    lines = [f'{builder.info.full_name} in {builder.data_dir}']
    for name, noted in metadata.get('archives', {}).items():
        known = {None: '', True: ', as published', False: ', NOT the published file'}
        line = f'from {name}: {noted["bytes"]:,} bytes, SHA-256 {noted["sha256"]}'
        lines.append(line + known[noted.get('published')])
    for split, noted in metadata['splits'].items():
        pixels, sizes = np.array(noted['pixels']), np.array(noted['sizes'])
        area = sizes.prod(axis=1).sum()
        kinds = sorted({f'{width}x{height}' for height, width in noted['sizes']})
        shown = ', '.join(kinds[:3]) + (f' and {len(kinds) - 3} more' if len(kinds) > 3 else '')
        lines.append(f'\n{split}: {len(sizes)} images, width x height {shown}')
        lines.append(f'  {"class":<14}{"pixels":>9}{"images":>8}')
        for name, total, images in zip(names, pixels.sum(0), (pixels > 0).sum(0), strict=True):
            lines.append(f'  {name:<14}{total / area:>9.2%}{images:>8}')
        lines.append(f'  {"(void)":<14}{1 - pixels.sum() / area:>9.2%}')
    for union, parts in metadata.get('unions', {}).items():
        count = sum(len(metadata['splits'][part]['ids']) for part in parts)
        lines.append(f'\n{union}: {count} images, those of {" and ".join(parts)}')
    return '\n'.join(lines)
