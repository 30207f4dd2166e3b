"""What the builders share: the form of a record, what is noted, the report.

Beside the records lies, per split and in record order, each image's id, its size and its number of
pixels of each class. Subsets, class coverage and reports therefore need no scan of the images.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, shuffle

from data_prep.images import encode_png

VOID = 255  # label of pixels that have no class


class FromFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Read published files once; the records are all that is needed afterwards.

    Attributes:
        SPLITS: split -> how many images it must have, None: any number but 0.
    """

    VERSION = tfds.core.Version('1.0.0')
    SPLITS: Mapping[str, int | None] = {}

    def __init__(
        self, *, source: str = '', splits: Mapping[str, int | None] | None = None, **kwargs
    ):
        """Initialise.

        Args:
            source: the published files, or their folder; only preparing needs it.
            splits: instead of `SPLITS`.
            **kwargs: data_dir, config as in any TFDS builder.
        """
        self._source = Path(source)
        self._splits = self.SPLITS if splits is None else splits
        super().__init__(**kwargs)


class _Info(tfds.core.DatasetInfo):
    """A description that TFDS does not look for elsewhere.

    Its own asks Google's storage for every dataset that is not on this disk, and makes a folder
    for the answer that nobody removes.
    """

    def initialize_from_bucket(self) -> None:
        """Leave the description as it is."""


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
    return _Info(
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
    metadata: tfds.core.MetadataDict,
    split: str,
    items: Iterable[tuple[str, bytes, np.ndarray]],
    tags: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[tuple[int, dict]]:
    """Turn a split's items into TFDS examples and notes what was seen in the metadata.

    Args:
        metadata: the builder's `info.metadata`; gets `splits[split]`.
        split: name of the split.
        items: (id, encoded image, label uint8 [H, W]) in record order.
        tags: of a split whose images are tagged in place of masks: id -> 0 or 1 for each class, of
            which the first, the background, is always 1.

    Yields:
        (key, example) as `_generate_examples` must.

    Raises:
        ValueError: a label has a value that is neither a class nor void; names the image.
        KeyError: an image has no tags where the others have.
    """
    noted = {'ids': [], 'sizes': [], 'pixels': []}
    num_classes = len(metadata['class_names'])
    for key, (image_id, image, label) in enumerate(items):
        noted['ids'].append(image_id)
        noted['sizes'].append(list(label.shape))
        pixels = np.bincount(label.ravel(), minlength=VOID + 1)
        wrong = np.flatnonzero(pixels[num_classes:VOID])
        if wrong.size:
            raise ValueError(
                f'{split}, image {image_id!r}: label value {num_classes + wrong[0]} in '
                f'{pixels[num_classes:VOID].sum()} pixels; expected 0 to {num_classes - 1}, or '
                f'{VOID} for void'
            )
        noted['pixels'].append(pixels[:num_classes].tolist())
        yield key, {'id': image_id, 'image': image, 'label': encode_png(label)}
    if tags is not None:
        noted['tags'] = [list(tags[image_id]) for image_id in noted['ids']]
    metadata['splits'][split] = noted


def relabel(label: np.ndarray, ids: Mapping[int, int], name: object, expected: str) -> np.ndarray:
    """Map a file's label values to class ids.

    Args:
        label: int32 [H, W], none below 0.
        ids: value in the file -> class id or `VOID`.
        name: of the file, for messages.
        expected: which values there may be, for messages.

    Returns:
        uint8 [H, W].

    Raises:
        ValueError: a value is none of `ids`.
    """
    known, table = np.zeros(1 << 16, bool), np.zeros(1 << 16, np.uint8)
    known[list(ids)], table[list(ids)] = True, list(ids.values())
    wrong = label[~known[np.minimum(label, len(known) - 1)]]
    if wrong.size:
        raise ValueError(f'{name}: label value {wrong[0]}; expected {expected}')
    return table[label]


def shrink(image: np.ndarray, label: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Make `factor` pixels one, a side: averaged in the image, the nearest in the label."""
    size = (label.shape[1] // factor, label.shape[0] // factor)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image, cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Write the builder's records, in a terminal with a progress bar; not where they exist.

    They are written to a folder of another name that is renamed at the end, so that an interrupted
    preparation leaves nothing that looks finished. While it is written a split lies on the disk
    twice, and never in memory.

    Raises:
        OSError: they cannot be written; names the folder.
        ValueError: their folder is there, and is not finished.
    """
    if is_unfinished(builder):
        raise ValueError(
            f'{builder.data_dir} has no dataset_info.json, which is written last: it is no whole '
            'dataset; remove it and prepare again'
        )
    if not sys.stderr.isatty():  # in a file its lines would run into those of the program
        tfds.disable_progress_bar()
    try:
        with mock.patch.object(shuffle, 'Shuffler', _Spool):
            builder.download_and_prepare(
                file_format='array_record',
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError as error:
        # Another process may have finished the same records first; then they are as good as ours.
        if is_prepared(builder):
            return
        if error.errno and not error.filename:  # a full disk names no file
            raise OSError(f'{builder.data_dir}: {error.strerror}') from error
        raise
    except RuntimeError as error:  # ArrayRecord's, as of a full disk
        raise OSError(f'{builder.data_dir}: {str(error).splitlines()[0]}') from error


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


def is_unfinished(builder: tfds.core.DatasetBuilder) -> bool:
    """Tell whether the builder's folder is there without what is written last."""
    there = Path(builder.data_dir).exists()  # asked first: another process's gets its name whole
    return there and not is_prepared(builder)


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
        lines += split_lines(split, noted, names)
    everything = np.concatenate([np.array(n['pixels']) for n in metadata['splits'].values()])
    if (shown := np.flatnonzero(everything.sum(0))).size == 1:
        lines.append(
            f'\nwarning: the labels show one class alone, {names[shown[0]]}: every score will be '
            '100 (masks of 0 and 255, where 255 is void?)'
        )
    for union, parts in metadata.get('unions', {}).items():
        count = sum(len(metadata['splits'][part]['ids']) for part in parts)
        lines.append(f'\n{union}: {count} images, those of {" and ".join(parts)}')
    return '\n'.join(lines)


def split_lines(split: str, noted: Mapping, names: Sequence[str]) -> list[str]:
    """Describe a split: images, sizes, and a histogram of the classes.

    Args:
        split: its name.
        noted: 'sizes' and 'pixels' of every image, perhaps 'tags', as `examples` notes them.
        names: of the classes; empty for a split without masks or tags.
    """
    if not noted['sizes']:
        return [f'\n{split}: no images']
    pixels, sizes = np.array(noted['pixels']), np.array(noted['sizes'])
    area = sizes.prod(axis=1).sum()
    kinds = sorted({f'{width}x{height}' for height, width in noted['sizes']})
    shown = ', '.join(kinds[:3]) + (f' and {len(kinds) - 3} more' if len(kinds) > 3 else '')
    lines = [f'\n{split}: {len(sizes)} images, width x height {shown}']
    wide = max(14, *(len(name) + 2 for name in names)) if names else 0
    if names and 'tags' in noted:
        lines.append(f'  {"tag":<{wide}}{"images":>8}')
        for name, images in zip(names, np.sum(noted['tags'], axis=0), strict=True):
            lines.append(f'  {name:<{wide}}{images:>8}')
    elif names:
        lines.append(f'  {"class":<{wide}}{"pixels":>9}{"images":>8}')
        for name, total, images in zip(names, pixels.sum(0), (pixels > 0).sum(0), strict=True):
            lines.append(f'  {name:<{wide}}{total / area:>9.2%}{images:>8}')
        lines.append(f'  {"(void)":<{wide}}{1 - pixels.sum() / area:>9.2%}')
    return lines
