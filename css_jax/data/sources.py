"""The datasets by name, and their prepared records by split."""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow_datasets as tfds

from data_prep import records
from data_prep.camvid import builder as camvid
from data_prep.cityscapes import builder as cityscapes
from data_prep.shapes import builder as shapes
from data_prep.voc import builder as voc

DATASETS = {'shapes': shapes, 'camvid': camvid, 'voc': voc, 'cityscapes': cityscapes}
VOID = records.VOID


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a prepared dataset.

    Attributes:
        dataset: its name, with '/config'.
        split: name of the split.
        records: random access to {'image': bytes, 'label': bytes}, still encoded.
        ids: name of each record's image.
        sizes: int64 [N, 2], each image's height and width in pixels.
        pixels: int64 [N, C], each image's number of pixels of each class.
        class_names: in the order of the label values; `VOID` is no class.
    """

    dataset: str
    split: str
    records: Sequence[dict]
    ids: tuple[str, ...]
    sizes: np.ndarray
    pixels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def class_names(dataset: str) -> tuple[str, ...]:
    """Return a dataset's class names in the order of the label values; prepares nothing.

    Args:
        dataset: name in `DATASETS`, with '/config' where it has several.

    Returns:
        The names.

    Raises:
        ValueError: there is no such dataset or configuration.
    """
    module, _ = _find(dataset)
    return module.CLASS_NAMES


def load(dataset: str, split: str, data_dir: str = '') -> Source:
    """Open one split of a dataset, and prepares the dataset where that needs nothing.

    Args:
        dataset: name in `DATASETS`, with '/config' where it has several.
        split: name of the split.
        data_dir: folder of prepared datasets; '': TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        The split's records and what was noted when they were written.

    Raises:
        ValueError: there is no such dataset, configuration or split.
        FileNotFoundError: the dataset is not prepared and needs files only the user can get.
    """
    module, config = _find(dataset)
    place = {'config': config, 'data_dir': data_dir or None}
    builder = module.Builder(**place)
    if not records.is_prepared(builder):
        if module.NEEDED_FROM_USER:
            raise FileNotFoundError(_how_to_prepare(dataset, config, data_dir, builder.data_dir))
        records.prepare(builder)
        builder = module.Builder(**place)  # now reads back what was noted
    splits = builder.info.metadata['splits']
    unions = builder.info.metadata.get('unions', {})  # splits that are not stored a second time
    if split not in (known := [*splits, *unions]):
        raise ValueError(
            f'dataset {dataset!r} has no split {split!r}; it has {_list(split, known)}'
        )
    parts = unions.get(split, [split])
    noted = [splits[part] for part in parts]
    undecoded = tfds.decode.SkipDecoding()
    decoders = {'image': undecoded, 'label': undecoded}
    return Source(
        dataset=f'{builder.name}/{config}',
        split=split,
        records=builder.as_data_source('+'.join(parts), decoders=decoders),
        ids=tuple(image_id for part in noted for image_id in part['ids']),
        sizes=np.concatenate([part['sizes'] for part in noted]),
        pixels=np.concatenate([part['pixels'] for part in noted]),
        class_names=module.CLASS_NAMES,
    )


def _find(dataset: str) -> tuple[types.ModuleType, str]:
    """Return a dataset's module and the name of its configuration (the first if none is named)."""
    name, _, config = dataset.partition('/')
    if name not in DATASETS:
        raise ValueError(f'there is no dataset {name!r}; there are {_list(name, DATASETS)}')
    configs = [known.name for known in DATASETS[name].Builder.BUILDER_CONFIGS]
    if config and config not in configs:
        raise ValueError(
            f'dataset {name!r} has no config {config!r}; it has {_list(config, configs)}'
        )
    return DATASETS[name], config or configs[0]


def _how_to_prepare(dataset: str, config: str, data_dir: str, missing: str) -> str:
    """Say which command prepares a dataset, and from what."""
    name = dataset.partition('/')[0]
    command = f'python -m data_prep.{name} --source FOLDER --config {config}'
    command += f' --data_dir {data_dir}' if data_dir else ''
    needed = DATASETS[name].NEEDED_FROM_USER
    return f'dataset {dataset!r} is not prepared: there is no {missing}. Run\n  {command}\n{needed}'


def _list(name: str, known: Iterable[str]) -> str:
    """List the known names, the one nearest to `name` first."""
    nearest = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    return ', '.join(nearest)
