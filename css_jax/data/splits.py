"""Which images a stream holds: all of a split, a count and a seed, or a list file.

A split list of the field is one of the files that `python -m data_prep.splits` fetches; the same
settings always choose the same images, and a hash of their ids goes with every checkpoint.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from css_jax.data import sources
from css_jax.data.sources import Source
from data_prep.splits import lists

_MAX_DRAWS = 10_000  # of a subset, before `min_per_class` is given up
_RARE = 5  # a class in fewer images is named at start-up


def subsets(data: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Return every stream's ids in record order, as `streams.train_batches` uses them.

    Args:
        data: `config.data`.

    Returns:
        Stream name -> ids.

    Raises:
        ValueError: settings that make no sense, or that no images answer to; see `subset`.
        FileNotFoundError: a dataset is not prepared, see `sources.load`.
    """
    loaded = load(data)
    return {name: subset(name, data.streams, loaded) for name in data.streams}


def load(data: ConfigDict) -> dict[str, Source]:
    """Open the source of every stream, once their settings are known to make sense.

    Raises:
        ValueError: they do not, streams exclude each other in a circle, or one reads labels of a
            split that has none.
        FileNotFoundError: a dataset is not prepared, see `sources.load`.
    """
    for name in data.streams:
        _check_settings(name, data.streams)
    loaded = {
        name: sources.load(config.dataset, config.split, data.dir)
        for name, config in data.streams.items()
    }
    for name, source in loaded.items():
        reads = data.streams[name].reads
        if not reads.startswith('none'):
            check_labels(f'data.streams.{name}.split', source, tags=reads.startswith('classes'))
    return loaded


def subset(name: str, streams: Mapping, loaded: Mapping[str, Source]) -> tuple[str, ...]:
    """Choose the images of one stream; the same settings always choose the same.

    Args:
        name: the stream's name.
        streams: name -> table of every stream, `config.data.streams`.
        loaded: name -> source of every stream, from `load`.

    Returns:
        Their ids, in record order.

    Raises:
        ValueError: no images are left, fewer than `count`, or none that hold `min_per_class`; a
            list cannot be read, or names an image that the split does not have.
    """
    config, source, key = streams[name], loaded[name], f'data.streams.{name}'
    excluded = set(subset(config.exclude, streams, loaded)) if config.exclude else set()
    named = set(source.ids)
    if config.ids_file:
        named = _read_ids(f'{key}.ids_file', config.ids_file, source)
    wanted = named - excluded
    chosen = np.array([i for i, image_id in enumerate(source.ids) if image_id in wanted], int)
    check(len(chosen) > 0, key, 'no images', 'at least one that is not excluded')
    if config.count:
        chosen = _draw(key, config, source, chosen)
    return tuple(source.ids[index] for index in chosen)


def _draw(key: str, config: ConfigDict, source: Source, available: np.ndarray) -> np.ndarray:
    """Draw `count` of the available images until every class is in `min_per_class` of them."""
    count, least = config.count, config.min_per_class
    check(count <= len(available), f'{key}.count', count, f'at most {len(available)} images')
    present = source.classes  # [N, C]
    possible = np.minimum(present[available].sum(axis=0), count)
    rarest = int(possible.argmin())
    wanted = f'at most {possible[rarest]}: that many could show {source.class_names[rarest]!r}'
    check(least <= possible[rarest], f'{key}.min_per_class', least, wanted)
    rng = np.random.default_rng(config.subset_seed)
    for _ in range(_MAX_DRAWS):
        drawn = rng.permutation(available)[:count]
        if present[drawn].sum(axis=0).min() >= least:
            return np.sort(drawn)
    raise ValueError(
        f'{key}: none of {_MAX_DRAWS:,} draws of {count} images shows every class in '
        f'min_per_class = {least} of them; expected a larger count or a smaller min_per_class'
    )


def _read_ids(key: str, path: str, source: Source) -> set[str]:
    """Read a list, see `data_prep.splits.lists.read`, and finds every image in the source."""
    wanted = (
        'a list of images, one a line (python -m data_prep.splits fetches the published ones, of '
        'two kinds: --layout)'
    )
    check(Path(path).is_file(), key, path, wanted)
    known = set(source.ids)
    try:
        named = lists.read(path, known=known)
    except ValueError as error:
        raise ValueError(f'{key}: {error}') from None
    unknown = [image_id for image_id in named if image_id not in known]
    if unknown:
        first = unknown[0]
        came = f'{first!r} in line {named[first]} of {path}'
        came += f' and {len(unknown) - 1} more that are unknown' if len(unknown) > 1 else ''
        nearest = difflib.get_close_matches(first, source.ids, n=1, cutoff=0.0)[0]
        wanted = f'images of {source.dataset}:{source.split}; the nearest is {nearest!r}'
        check(False, key, came, wanted)
    return set(named)


def fingerprint(ids: Mapping[str, tuple[str, ...]]) -> str:
    """Return a short hash of the images of every stream: 12 hexadecimal digits of a SHA-256.

    Args:
        ids: stream name -> ids, as from `subsets`.

    Returns:
        The hash; the order in which the streams are named does not matter.
    """
    text = json.dumps({name: list(ids[name]) for name in sorted(ids)})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def record(data: ConfigDict, ids: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Describe the training images as it is stored with checkpoints and results.

    Args:
        data: `config.data`.
        ids: stream name -> ids, as from `subsets`.

    Returns:
        {'split_hash': see `fingerprint`, 'streams': stream name -> {'split': which images in
        words, 'images': how many}}.
    """
    loaded = load(data)
    described = {
        name: {
            'split': _describe(data.streams[name], loaded[name], ids[name]),
            'images': len(ids[name]),
        }
        for name in ids
    }
    return {'split_hash': fingerprint(ids), 'streams': described}


def report(data: ConfigDict, ids: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Say which images are trained on, in lines for the log.

    Args:
        data: `config.data`.
        ids: stream name -> ids, as from `subsets`.

    Returns:
        A line per stream; where it has labels, two more with the number of its images that show
        each class and with the classes that are rare; and one on images that streams share.
    """
    loaded = load(data)
    lines = []
    for name, chosen in ids.items():
        config, source = data.streams[name], loaded[name]
        lines.append(f'stream {name}: {_describe(config, source, chosen)}')
        if config.reads[:4] != 'none':
            counts = coverage(source, chosen)
            shown = ', '.join(f'{known} {count}' for known, count in counts.items())
            lines.append(f'  images that show each class: {shown}')
            rare = [f'{known} {count}' for known, count in counts.items() if count < _RARE]
            if rare:
                lines.append(f'  rare, in fewer than {_RARE} images: {", ".join(rare)}')
        for other in list(ids)[: list(ids).index(name)]:
            same = {sources.label_set(data.streams[one].dataset) for one in (name, other)}
            shared = len(set(chosen) & set(ids[other])) if len(same) == 1 else 0
            if shared:
                lines.append(f'  {shared} of its images are in stream {other} too')
    return lines


def warnings(data: ConfigDict, ids: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Say which streams have labels of one class alone, from which nothing can be learned.

    Args:
        data: `config.data`.
        ids: stream name -> ids, as from `subsets`.
    """
    loaded, found = load(data), []
    for name, chosen in ids.items():
        if data.streams[name].reads[:4] != 'none':
            shown = [known for known, count in coverage(loaded[name], chosen).items() if count]
            if len(shown) == 1:
                found.append(
                    f'stream {name}: its labels show one class alone, {shown[0]}: every loss will '
                    'be 0 and every score of it 100 (masks of 0 and 255, where 255 is void?)'
                )
    return found


def coverage(source: Source, ids: Collection[str]) -> dict[str, int]:
    """Return for each class, by name, in how many of these images it appears."""
    row = {image_id: index for index, image_id in enumerate(source.ids)}
    shown = source.classes[[row[image_id] for image_id in ids]].sum(axis=0)
    return dict(zip(source.class_names, shown.tolist(), strict=True))


def changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what differs between the training images of a checkpoint and those of today.

    Args:
        saved: what is stored with the checkpoint, as from `record`.
        now: as from `record`.

    Returns:
        Both hashes, and both descriptions of each stream where they differ; '' for the same images.
    """
    if saved['split_hash'] == now['split_hash']:
        return ''
    parts = [f'split hash {saved["split_hash"]} there, {now["split_hash"]} now']
    before, after = saved.get('streams', {}), now['streams']
    for name in sorted(before.keys() | after.keys()):
        old, new = (table.get(name, {}).get('split') for table in (before, after))
        if old != new:
            parts.append(f'{name}: {old} there, {new} now')
    return '; '.join(parts)


def changed_since(saved: Mapping[str, Any], data: ConfigDict) -> str:
    """Say whether the training images are still those of a checkpoint, where they can be read.

    Evaluating does not need them, so that they may be gone.

    Args:
        saved: what is stored with the checkpoint, as from `record`.
        data: `config.data`.

    Returns:
        A sentence where they are others or cannot be read; '' for the same images, and where
        nobody knows: weights that were trained elsewhere have no hash.
    """
    if saved['split_hash'] is None:
        return ''
    try:
        difference = changed(saved, record(data, subsets(data)))
    except (OSError, ValueError) as error:
        return f'the training images could not be read again: {str(error).splitlines()[0]}'
    return f'the training images are no longer those trained on: {difference}' if difference else ''


def check_labels(key: str, source: Source, tags: bool = False) -> None:
    """Make sure that a split has labels.

    Args:
        key: that asks for them, for the message.
        source: the split.
        tags: images that say which classes they have will do.

    Raises:
        ValueError: none of its images has a pixel of a class, or a tag where tags will do.
    """
    known, more = (source.classes, ' or tags') if tags else (source.pixels, '')
    came = f'{source.split!r} of {source.dataset}, where no image has a pixel of a class'
    check(bool(known.any()), key, came, f'a split with masks{more}')


def check(good: bool, key: str, came: object, expected: str) -> None:
    """Make sure that a setting is good.

    Raises:
        ValueError: it is not; names the setting's key, what came and what was expected.
    """
    if not good:
        raise ValueError(f'{key}: got {came}, expected {expected}')


def _describe(config: ConfigDict, source: Source, ids: Collection[str]) -> str:
    """Say in words which images of a source a stream holds."""
    total, images = len(source), len(ids)
    parts = [f'{source.dataset}:{source.split}']
    if config.ids_file:  # its folder names it: every list of the field is a 'labeled.txt'
        parts.append(f'list {"/".join(Path(config.ids_file).parts[-2:])}')
    parts.append(f'all {total} images' if images == total else f'{images} of {total} images')
    if source.parts and images < total:
        # Of VOC's lists of one length some take the finely annotated images first, some any.
        shown = ', '.join(f'{count} of {name}' for name, count in _by_part(source, ids).items())
        parts[-1] += f' ({shown})'
    if config.count:
        parts.append(f'subset_seed {config.subset_seed}')
    if config.min_per_class:
        parts.append(f'min_per_class {config.min_per_class}')
    if config.exclude:
        parts.append(f'without {config.exclude}')
    return ', '.join(parts)


def _by_part(source: Source, ids: Collection[str]) -> dict[str, int]:
    """Return how many images are of each split that a source is made of."""
    counts, start = {}, 0
    for name, images in source.parts:
        counts[name] = len(set(source.ids[start : start + images]).intersection(ids))
        start += images
    return counts


def _check_settings(name: str, streams: Mapping) -> None:
    """Raise ValueError where a stream's choice of images makes no sense whatever the records."""
    config, key = streams[name], f'data.streams.{name}'
    check(config.count >= 0, f'{key}.count', config.count, '0 (all) or more')
    both = config.count > 0 and config.ids_file != ''
    check(not both, f'{key}.count', config.count, '0 where ids_file is given')
    alone = config.min_per_class > 0 and config.count == 0
    check(not alone, f'{key}.min_per_class', config.min_per_class, '0 where count is 0')
    chain = [name]
    while other := streams[chain[-1]].exclude:
        key, dataset = f'data.streams.{chain[-1]}.exclude', streams[chain[-1]].dataset
        check(other in streams, key, repr(other), f'one of {", ".join(streams)}')
        check(other not in chain, key, repr(other), 'streams that do not exclude each other')
        same = sources.label_set(streams[other].dataset) == sources.label_set(dataset)
        check(same, key, repr(other), f'a stream of the same dataset, {dataset}')
        chain.append(other)
