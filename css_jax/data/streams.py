"""Named streams of training batches, and the batches of an evaluation.

Which images a stream holds is decided by `subset`; which come when, and how they are cropped,
depends on (seed, stream's name, place in the stream) alone. Batches are therefore the same for any
number of threads and processes, and a run resumes from its step without stored iterator state.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grain
import numpy as np
from ml_collections import ConfigDict

from css_jax.data import geometry, sources
from css_jax.data.sources import VOID, Source

_STEPS = 2**31  # batches in a stream: more than any run takes, as many in all for zipping
_MAX_DRAWS = 10_000  # of a subset, before `min_per_class` is given up


def train_batches(
    data: ConfigDict,
    *,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """Gives an endless iterator of training batches.

    Args:
        data: `config.data`.
        seed: decides order and crops, in every stream differently.
        start_step: batches left out; a run resumed at step s passes s.
        process_index: which process asks; process p gets the p-th contiguous block of each batch.
        process_count: how many processes share a batch.

    Returns:
        Iterator of stream name -> {'image': uint8 [B/P, H, W, 3], RGB, and 'label': uint8
        [B/P, H, W], 255 = ignore}; no 'label' in a stream with labels=False.

    Raises:
        ValueError: a setting makes no sense, or no images answer to it (see `subset`).
        FileNotFoundError: a dataset is not prepared, see `sources.load`.
    """
    _check_data(data)
    _check_processes(process_index, process_count)
    _check(start_step >= 0, 'start_step', start_step, '0 or more')
    for name, config in data.streams.items():
        divides = config.batch_size % process_count == 0
        wanted = f'a multiple of the number of processes, {process_count}'
        _check(divides, f'data.streams.{name}.batch_size', config.batch_size, wanted)

    loaded = _load(data)
    batches = {}
    for name, config in data.streams.items():
        examples = _examples(name, data, loaded, seed)
        # Batch first, then deal the blocks out: dealing out single images first would give every
        # process count another order, and with it other keys per image and other mixing partners.
        blocks = examples.batch(config.batch_size // process_count)
        batches[name] = blocks[process_index::process_count][start_step:_STEPS]
    steps = grain.experimental.ZipMapDataset(list(batches.values()))
    steps = steps.map(lambda parts: dict(zip(batches, parts, strict=True)))
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    return iter(steps.to_iter_dataset(options))


def _examples(
    name: str, data: ConfigDict, loaded: Mapping[str, Source], seed: int
) -> grain.MapDataset:
    """Gives one stream's endless sequence of cropped examples."""
    config, source = data.streams[name], loaded[name]
    row = {image_id: index for index, image_id in enumerate(source.ids)}
    indices = [row[image_id] for image_id in subset(name, data.streams, loaded)]
    fill = tuple(round(255 * mean) for mean in data.mean)

    def crop(example, rng):
        return geometry.random_crop(
            example,
            rng,
            crop=tuple(config.crop),
            scale=tuple(config.resize),
            pad=config.pad,
            fill=fill,
            resampling=data.resampling,
        )

    stream_seed = _stream_seed(seed, name)
    record = _shuffled(indices, stream_seed)
    dataset = grain.MapDataset.range(_STEPS * config.batch_size).seed(stream_seed)
    return dataset.map(lambda place: _decode(source, record(place), config.labels)).random_map(crop)


def _shuffled(indices: list[int], seed: int) -> Callable[[int], int]:
    """Gives the function from a place in an endless stream to the index of the record there.

    Every pass over the indices has a permutation of its own. (grain's `shuffle` would compute one
    index at a time, which for 16 images costs several times the decoding.)
    """

    @functools.lru_cache(maxsize=4)  # passes that the threads may be in at once
    def permutation(number: int) -> np.ndarray:
        return np.random.default_rng([seed, number]).permutation(indices)

    def record(place: int) -> int:
        number, rest = divmod(place, len(indices))
        return int(permutation(number)[rest])

    return record


def _decode(source: Source, index: int, labels: bool) -> dict[str, np.ndarray]:
    """Decodes one record: its image and, if `labels`, its mask."""
    record = source.records[index]
    example = {'image': geometry.decode_image(record['image'])}
    if labels:
        example['label'] = geometry.decode_label(record['label'])
    return example


def _stream_seed(seed: int, name: str) -> int:
    """Mixes the run's seed with the stream's name, so that no two streams run in step."""
    return int.from_bytes(hashlib.sha256(f'{seed} {name}'.encode()).digest()[:4])


def subset(name: str, streams: Mapping, loaded: Mapping[str, Source]) -> tuple[str, ...]:
    """Chooses the images of one stream; the same settings always choose the same.

    Args:
        name: the stream's name.
        streams: name -> table of every stream, `config.data.streams`.
        loaded: name -> source of every stream.

    Returns:
        Their ids, in record order.

    Raises:
        ValueError: no images are left, fewer than `count`, or none that hold `min_per_class`; an
            id or a stream that is named does not exist; streams exclude each other in a circle.
    """
    config, source, key = streams[name], loaded[name], f'data.streams.{name}'
    _check_exclude(name, streams)
    excluded = set(subset(config.exclude, streams, loaded)) if config.exclude else set()
    wanted = set(source.ids)
    if config.ids_file:
        wanted = _read_ids(key, config.ids_file, source)
    chosen = np.array(
        [i for i, image_id in enumerate(source.ids) if image_id in wanted - excluded], int
    )
    _check(len(chosen) > 0, key, 'no images', 'at least one that is not excluded')
    if config.count:
        chosen = _draw(key, config, source, chosen)
    return tuple(source.ids[index] for index in chosen)


def _draw(key: str, config: ConfigDict, source: Source, available: np.ndarray) -> np.ndarray:
    """Draws `count` of the available images until every class is in `min_per_class` of them."""
    count, least = config.count, config.min_per_class
    _check(count <= len(available), f'{key}.count', count, f'at most {len(available)} images')
    present = source.pixels > 0  # [N, C]
    possible = np.minimum(present[available].sum(axis=0), count)
    rarest = int(possible.argmin())
    wanted = f'at most {possible[rarest]}: that many could show {source.class_names[rarest]!r}'
    _check(least <= possible[rarest], f'{key}.min_per_class', least, wanted)
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
    """Reads a file of ids, one a line."""
    _check(Path(path).is_file(), f'{key}.ids_file', path, 'a text file of ids, one a line')
    ids = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    known = set(source.ids)
    unknown = next((image_id for image_id in ids if image_id not in known), None)
    wanted = f'ids of {source.dataset} {source.split} such as {source.ids[0]!r}'
    _check(unknown is None, f'{key}.ids_file', f'{unknown!r} in {path}', wanted)
    return set(ids)


def subsets(data: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Gives every stream's ids in record order, as `train_batches` uses them."""
    _check_data(data)
    loaded = _load(data)
    return {name: subset(name, data.streams, loaded) for name in data.streams}


def fingerprint(ids: Mapping[str, tuple[str, ...]]) -> str:
    """Gives a short hash of the images of every stream: 12 hexadecimal digits of a SHA-256.

    Args:
        ids: stream name -> ids, as from `subsets`.

    Returns:
        The hash; the order in which the streams are named does not matter.
    """
    text = json.dumps({name: list(ids[name]) for name in sorted(ids)})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    size: tuple[int, int] = (0, 0),
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Gives every image of a source once, in record order and batches of one static shape.

    Images are padded right and bottom by reflection, labels by 255. The last batch is filled up
    with blank images whose labels are all 255, so that they count nowhere.

    Args:
        source: the images.
        batch_size: images in a batch, over all processes.
        size: height and width of every image of the batch; (0, 0): those of the first image.
        process_index: which process asks; process p gets the p-th contiguous block of each batch.
        process_count: how many processes share a batch.

    Returns:
        Iterator of {'image': uint8 [B/P, *size, 3], RGB, 'label': uint8 [B/P, *size]}; every
        process gets ceil(N / B) batches.

    Raises:
        ValueError: the batch cannot be shared out, or an image is larger than `size`.
    """
    _check_processes(process_index, process_count)
    divides = batch_size > 0 and batch_size % process_count == 0
    wanted = f'a positive multiple of the number of processes, {process_count}'
    _check(divides, 'eval.batch_size', batch_size, wanted)
    size = eval_size(source, size)

    def padded(index: int) -> dict[str, np.ndarray]:
        if index >= len(source):
            blank = np.zeros((*size, 3), np.uint8)
            return {'image': blank, 'label': np.full(size, VOID, np.uint8)}
        example = _decode(source, index, labels=True)
        return {
            'image': geometry.pad_to(example['image'], size, 'reflect'),
            'label': geometry.pad_to(example['label'], size, 'constant', VOID),
        }

    filled = -(-len(source) // batch_size) * batch_size
    blocks = grain.MapDataset.range(filled).map(padded).batch(batch_size // process_count)
    blocks = blocks[process_index::process_count]
    return iter(blocks.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)))


def eval_size(source: Source, size: tuple[int, int]) -> tuple[int, int]:
    """Gives the height and width of every image of an evaluation batch.

    Args:
        source: the images.
        size: as configured; (0, 0): the first image's.

    Raises:
        ValueError: an image is larger; names the first.
    """
    size = tuple(size) if any(size) else tuple(int(side) for side in source.sizes[0])
    for image_id, sides in zip(source.ids, source.sizes.tolist(), strict=True):
        wanted = f'at least height, width {tuple(sides)}: image {image_id!r} has them'
        _check(sides[0] <= size[0] and sides[1] <= size[1], 'eval.pad_to', size, wanted)
    return size


def _load(data: ConfigDict) -> dict[str, Source]:
    """Opens the source of every stream."""
    return {
        name: sources.load(config.dataset, config.split, data.dir)
        for name, config in data.streams.items()
    }


def _check_data(data: ConfigDict) -> None:
    """Raises ValueError, in words, where `config.data` makes no sense whatever the records."""
    _check(len(data.streams) > 0, 'data.streams', 'none', 'at least one stream')
    _check(data.resampling in ('cv2', 'pil'), 'data.resampling', data.resampling, 'cv2 or pil')
    _check(data.threads >= 0, 'data.threads', data.threads, '0 or more')
    _check(data.prefetch >= 1, 'data.prefetch', data.prefetch, '1 or more')
    for name, config in data.streams.items():
        key, crop, resize = f'data.streams.{name}', config.crop, config.resize
        _check(config.batch_size >= 1, f'{key}.batch_size', config.batch_size, '1 or more')
        positive = len(crop) == 2 and min(crop) >= 1
        _check(positive, f'{key}.crop', crop, 'a positive height and width')
        ordered = len(resize) == 2 and 0 < resize[0] <= resize[1]
        _check(ordered, f'{key}.resize', resize, 'a range (low, high) with 0 < low <= high')
        _check(config.pad in ('constant', 'reflect'), f'{key}.pad', config.pad,
               'constant or reflect')  # fmt: skip
        _check(config.count >= 0, f'{key}.count', config.count, '0 (all) or more')
        both = config.count > 0 and config.ids_file != ''
        _check(not both, f'{key}.count', config.count, '0 where ids_file is given')
        alone = config.min_per_class > 0 and config.count == 0
        _check(not alone, f'{key}.min_per_class', config.min_per_class, '0 where count is 0')


def _check_exclude(name: str, streams: Mapping) -> None:
    """Raises ValueError where a stream's `exclude` leads nowhere, elsewhere or in a circle."""
    chain = [name]
    while other := streams[chain[-1]].exclude:
        key, dataset = f'data.streams.{chain[-1]}.exclude', streams[chain[-1]].dataset
        _check(other in streams, key, repr(other), f'one of {", ".join(streams)}')
        _check(other not in chain, key, repr(other), 'streams that do not exclude each other')
        same = streams[other].dataset.partition('/')[0] == dataset.partition('/')[0]
        _check(same, key, repr(other), f'a stream of the same dataset, {dataset}')
        chain.append(other)


def _check_processes(index: int, count: int) -> None:
    """Raises ValueError unless 0 <= index < count."""
    _check(0 <= index < count, 'process_index', index, f'0 to process_count - 1 = {count - 1}')


def _check(good: bool, key: str, came: object, expected: str) -> None:
    """Raises ValueError that names the setting, what came and what was expected."""
    if not good:
        raise ValueError(f'{key}: got {came}, expected {expected}')
