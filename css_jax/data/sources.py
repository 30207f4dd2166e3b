"""The datasets by name, and their prepared records by split."""

import dataclasses
import difflib
import os
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data_prep import records
from data_prep.ade20k import builder as ade20k
from data_prep.camvid import builder as camvid
from data_prep.cityscapes import builder as cityscapes
from data_prep.coco import builder as coco
from data_prep.figures import builder as figures
from data_prep.folder import builder as folder
from data_prep.idd import builder as idd
from data_prep.palette import default
from data_prep.shapes import builder as shapes
from data_prep.sun import builder as sun
from data_prep.voc import builder as voc

DATASETS = {
    'shapes': shapes,
    'figures': figures,
    'camvid': camvid,
    'voc': voc,
    'cityscapes': cityscapes,
    'idd': idd,
    'sun': sun,
    'coco': coco,
    'ade20k': ade20k,
    'folder': folder,  # its configs are what the user has prepared, each a dataset of its own
}
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
        pixels: int64 [N, C], each image's number of pixels of each class; none without masks.
        class_names: in the order of the label values; `VOID` is no class.
        parts: name and number of images of the splits that this one is made of, in record order;
            empty where it is stored as it is.
        tags: bool [N, C], the classes of each image, where they do not follow from `pixels`: of
            images that are tagged and have no masks. Class 0, background, is in all of them.
        again: what to do where a record is damaged.
    """

    dataset: str
    split: str
    records: Sequence[dict]
    ids: tuple[str, ...]
    sizes: np.ndarray
    pixels: np.ndarray
    class_names: tuple[str, ...]
    parts: tuple[tuple[str, int], ...] = ()
    tags: np.ndarray | None = None
    again: str = ''

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> np.ndarray:
        """The classes of each image, bool [N, C]: by its tags, else by its mask."""
        return self.pixels > 0 if self.tags is None else self.tags


def class_names(dataset: str, data_dir: str = '') -> tuple[str, ...]:
    """Return a dataset's class names in the order of the label values; prepares nothing.

    Args:
        dataset: name in `DATASETS`, with '/config' where it has several.
        data_dir: folder of prepared datasets, see `load`; those of `folder` have their names there.

    Returns:
        The names.

    Raises:
        ValueError: there is no such dataset or configuration.
        FileNotFoundError: a dataset of `folder` is not prepared.
    """
    module, config = _find(dataset, data_dir)
    if _is_own(module):
        return tuple(_noted(module, config, data_dir)['class_names'])
    return module.CLASS_NAMES


def renamed(names: Sequence[str], others: Sequence[str]) -> int | None:
    """Return the first class that has another name in the other list; None if none has.

    One list may be longer: a dataset may have fewer classes than what is learned.
    """
    pairs = enumerate(zip(names, others, strict=False))
    return next((i for i, (name, other) in pairs if name.lower() != other.lower()), None)


def palette(dataset: str, data_dir: str = '') -> np.ndarray:
    """Return the colours of a dataset's classes, uint8 [C, 3] RGB; VOC's where it has none.

    For arguments and what is raised see `class_names`.
    """
    module, config = _find(dataset, data_dir)
    own = getattr(module, 'PALETTE', ())
    if _is_own(module):
        own = _noted(module, config, data_dir).get('palette', ())
    if not len(own):
        return default(len(class_names(dataset, data_dir)))
    return np.array(own, np.uint8)


class Preparation(NamedTuple):
    """What was done to the images of a dataset of the user; others are as they were published.

    Attributes:
        max_side: the longer side, in pixels, that larger ones were made smaller to; 0: none were.
        depth: values of 16-bit images that became 0 and 255; None without such images.
    """

    max_side: int = 0
    depth: tuple[int, int] | None = None


def preparation(dataset: str, data_dir: str = '') -> Preparation:
    """Return how a dataset's images were prepared; as if by nothing where they are not there.

    Args:
        dataset: see `class_names`.
        data_dir: see `class_names`.
    """
    try:
        module, config = _find(dataset, data_dir)
    except FileNotFoundError:
        return Preparation()
    if not _is_own(module):
        return Preparation()
    noted = _noted(module, config, data_dir).get('made_from') or {}
    depth = noted.get('depth')
    return Preparation(noted.get('settings', [0])[-1], tuple(depth) if depth else None)


def label_set(dataset: str) -> str:
    """Return what names a dataset's classes and images: itself without '/config'.

    The configs of a dataset have the same classes and ids; those of `folder` have nothing in
    common.
    """
    name = dataset.partition('/')[0]
    return dataset if name in DATASETS and _is_own(DATASETS[name]) else name


def splits(dataset: str, data_dir: str = '') -> list[str]:
    """List the splits of a dataset; for arguments and what is raised see `load`."""
    metadata = _open(dataset, data_dir).info.metadata
    return [*metadata['splits'], *metadata.get('unions', {})]


def load(dataset: str, split: str, data_dir: str = '') -> Source:
    """Open one split of a dataset, and prepares the dataset where that needs nothing.

    Args:
        dataset: name in `DATASETS`, with '/config' where it has several.
        split: name of the split.
        data_dir: folder of prepared datasets; '': TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        The split's records and what was noted when they were written.

    Raises:
        ValueError: there is no such dataset, configuration or split, or its records are damaged.
        FileNotFoundError: the dataset is not prepared and needs files only the user can get.
    """
    builder = _open(dataset, data_dir)
    again = _how_to_repair(dataset, data_dir, builder.data_dir)
    if not (builder.info.metadata or {}).get('splits'):
        raise ValueError(f'dataset {dataset!r}: metadata.json has no splits; {again}')
    stored = builder.info.metadata['splits']
    unions = builder.info.metadata.get('unions', {})  # splits that are not stored a second time
    if split not in (known := [*stored, *unions]):
        raise ValueError(
            f'dataset {dataset!r} has no split {split!r}; it has {_list(split, known)}'
        )
    parts = unions.get(split, [split])
    noted = [stored[part] for part in parts]
    tags = None
    if any('tags' in part for part in noted):
        tags = [part.get('tags', np.array(part['pixels']) > 0) for part in noted]
        tags = np.concatenate(tags) > 0
    undecoded = tfds.decode.SkipDecoding()
    decoders = {'image': undecoded, 'label': undecoded}
    name = '+'.join(parts)
    try:
        found = builder.as_data_source(name, decoders=decoders)
        for place in (0, len(found) - 1):  # what is gone or cut says so before anything is built
            if not found[place].get('image'):
                raise ValueError(f'record {place} of {len(found)} has no image')
    except Exception as error:  # whatever TFDS and ArrayRecord meet in a damaged file
        raise ValueError(f'dataset {dataset!r}, split {name}: {said(error)}; {again}') from error
    return Source(
        dataset=f'{builder.name}/{builder.builder_config.name}',
        split=split,
        records=found,
        ids=tuple(image_id for part in noted for image_id in part['ids']),
        sizes=np.concatenate([part['sizes'] for part in noted]),
        pixels=np.concatenate([part['pixels'] for part in noted]),
        class_names=tuple(builder.info.metadata['class_names']),
        parts=tuple((part, len(stored[part]['ids'])) for part in unions.get(split, ())),
        tags=tags,
        again=again,
    )


def said(error: Exception) -> str:
    """Return the first line of what an exception says, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip('.')


def _open(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Return the builder of a dataset, prepared."""
    module, config = _find(dataset, data_dir)
    builder = _builder(module, config, data_dir)
    if records.is_unfinished(builder):
        again = _how_to_repair(dataset, data_dir, builder.data_dir)
        raise ValueError(f'dataset {dataset!r}: there is no dataset_info.json; {again}')
    if not records.is_prepared(builder):
        if module.NEEDED_FROM_USER:
            raise FileNotFoundError(_how_to_prepare(dataset, config, data_dir, builder.data_dir))
        records.prepare(builder)
        builder = _builder(module, config, data_dir)  # now reads back what was noted
    return builder


def _builder(module: types.ModuleType, config: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        builder = module.Builder(config=config, data_dir=data_dir or None)
        _ = builder.info.metadata  # read from files when it is first asked for
        return builder
    except Exception as error:  # of the files that describe the records
        name = module.__name__.split('.')[-2]
        root = Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
        place = root.expanduser() / name / config / str(module.Builder.VERSION)
        if not place.exists():
            raise
        dataset = f'{name}/{config}'
        again = _how_to_repair(dataset, data_dir, place)
        raise ValueError(f'dataset {dataset!r}: {said(error)}; {again}') from error


def _noted(module: types.ModuleType, config: str, data_dir: str) -> dict:
    """Return what was noted with the records of a dataset of the user.

    Raises:
        ValueError: it is gone.
    """
    builder = _builder(module, config, data_dir)
    noted = builder.info.metadata or {}
    if not noted.get('class_names'):
        dataset = f'{builder.name}/{config}'
        again = _how_to_repair(dataset, data_dir, builder.data_dir)
        raise ValueError(f'dataset {dataset!r}: metadata.json has no class names; {again}')
    return noted


def _is_own(module: types.ModuleType) -> bool:
    """Say whether a module's configs are datasets of the user."""
    return hasattr(module, 'prepared')


def _find(dataset: str, data_dir: str) -> tuple[types.ModuleType, str]:
    """Return a dataset's module and the name of its configuration (the first if none is named)."""
    name, _, config = dataset.partition('/')
    if name not in DATASETS:
        raise ValueError(f'there is no dataset {name!r}; there are {_list(name, DATASETS)}')
    if _is_own(DATASETS[name]):
        return DATASETS[name], _find_own(name, config, data_dir)
    configs = [known.name for known in DATASETS[name].Builder.BUILDER_CONFIGS]
    if config and config not in configs:
        raise ValueError(
            f'dataset {name!r} has no config {config!r}; it has {_list(config, configs)}'
        )
    return DATASETS[name], config or configs[0]


def _find_own(name: str, config: str, data_dir: str) -> str:
    """Return the name of a dataset that the user has prepared: the only one if none is named."""
    known = DATASETS[name].prepared(data_dir or None)
    if config in known:
        return config
    where = data_dir or 'TFDS_DATA_DIR or ~/tensorflow_datasets'
    if not config and len(known) == 1:
        return known[0]
    if not config and known:
        several = ', '.join(f'{name}/{one}' for one in known)
        raise ValueError(f'dataset {name!r}: several are prepared in {where}: {several}; name one')
    there = f'there are {_list(config, known)}' if known else 'none is there'
    command = f'python -m data_prep.{name} --source FOLDER --name {config or "NAME"}'
    command += f' --data_dir {data_dir}' if data_dir else ''
    missing = f'{name}/{config}' if config else name
    raise FileNotFoundError(
        f'dataset {missing!r} is not prepared in {where}: {there}. To prepare it run: {command}'
    )


def _how_to_prepare(dataset: str, config: str, data_dir: str, missing: str) -> str:
    """Say which command prepares a dataset, and from what."""
    needed = DATASETS[dataset.partition('/')[0]].NEEDED_FROM_USER
    command = _command(dataset, config, data_dir)
    return f'dataset {dataset!r} is not prepared: there is no {missing}. Run\n  {command}\n{needed}'


def _how_to_repair(dataset: str, data_dir: str, folder: str | Path) -> str:
    """Say how to prepare records again that are damaged."""
    module, config = _find(dataset, data_dir)
    then = f'run {_command(dataset, config, data_dir)}' if module.NEEDED_FROM_USER else 'try again'
    return f'the prepared records (array_record) are damaged: remove {folder} and {then}'


def _command(dataset: str, config: str, data_dir: str) -> str:
    """Return the command that prepares a dataset."""
    name = dataset.partition('/')[0]
    flag = '--name' if _is_own(DATASETS[name]) else '--config'
    command = f'python -m data_prep.{name} --source FOLDER {flag} {config}'
    return command + (f' --data_dir {data_dir}' if data_dir else '')


def _list(name: str, known: Iterable[str]) -> str:
    """List the known names, the one nearest to `name` first."""
    nearest = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    return ', '.join(nearest)
