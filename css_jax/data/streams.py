"""Named streams of training batches.

Which images a stream holds is decided in `splits`; which come when, and how they are cropped,
depends on (seed, stream's name, place in the stream) alone. Batches are therefore the same for any
number of threads and processes, and a run resumes from its step without stored iterator state. So
it is with what takes the place of a damaged record: which ones are damaged is a matter of the disk.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax.data import geometry, reading, sources, splits
from css_jax.data.sources import Source
from css_jax.data.splits import check

LOG = logging.getLogger('css_jax')
_STEPS = 2**31  # batches in a stream: more than any run takes, as many in all for zipping
RESIZE_LAWS = ('factor', 'long_side')
# `config.pad` -> the border of `geometry.crop_at`, and the level of a mean in [0, 1].
_PADS = {
    'constant': ('constant', lambda mean: round(255 * mean)),
    'constant_floor': ('constant', lambda mean: int(255 * mean)),
    'reflect': ('reflect', lambda mean: 0),
    'black': ('constant', lambda mean: 0),
    'black_corner': ('constant', lambda mean: 0),
}


def train_batches(
    data: ConfigDict,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    names: Collection[str] = (),
    damaged: Mapping[str, Collection[int]] | None = None,
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """Return an endless iterator of training batches.

    Args:
        data: `config.data`.
        seed: decides order and crops, in every stream differently.
        start_step: batches left out; a run resumed at step s passes s.
        process_index: which process asks; process p gets the p-th contiguous block of each batch.
        process_count: how many processes share a batch.
        names: streams that are read, with the batches they have in any company; (): all.
        damaged: records that others take the place of, as `unreadable` gives them; None: looks.

    Returns:
        Iterator of stream name -> {'image': uint8 [B/P, H, W, 3], RGB, and what the stream reads:
        'label': uint8 [B/P, H, W], 255 = ignore; 'classes': bool [B/P, C], those in the whole
        image; 'valid': bool [B/P, H, W], true where a pixel is of the image, not of the padding;
        'box': int32 [B/P, 4], top, bottom, left, right of these, the ends exclusive}.

    Raises:
        ValueError: a setting makes no sense, or no images answer to it (see `splits.subset`).
        FileNotFoundError: a dataset is not prepared, see `sources.load`.
    """
    _check_data(data)
    expected = f'0 to process_count - 1 = {process_count - 1}'
    check(0 <= process_index < process_count, 'process_index', process_index, expected)
    check(start_step >= 0, 'start_step', start_step, '0 or more')
    for name, config in data.streams.items():
        divides = config.batch_size % process_count == 0
        wanted = f'a multiple of the number of processes, {process_count}'
        check(divides, f'data.streams.{name}.batch_size', config.batch_size, wanted)

    loaded = splits.load(data)
    damaged = unreadable(data) if damaged is None else damaged
    batches = {}
    for name, config in data.streams.items():
        if names and name not in names:
            continue
        examples = _examples(name, data, loaded, seed, damaged.get(name, ()))
        # Batch first, then deal the blocks out: dealing out single images first would give every
        # process count another order, and with it other keys per image and other mixing partners.
        blocks = examples.batch(config.batch_size // process_count)
        batches[name] = blocks[process_index::process_count][start_step:_STEPS]
    steps = grain.experimental.ZipMapDataset(list(batches.values()))
    steps = steps.map(lambda parts: dict(zip(batches, parts, strict=True)))
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    return iter(steps.to_iter_dataset(options))


def unreadable(data: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Find the records of the streams that cannot be read, and name each in the log.

    Args:
        data: `config.data`; where `unreadable` is 0 nothing is looked at.

    Returns:
        Stream -> indices of records of its source.

    Raises:
        ValueError: there are more than `unreadable` lets there be, or a stream has no other.
    """
    if not data.unreadable:
        return {}
    loaded, found, reasons = splits.load(data), {}, {}
    for name, source in loaded.items():
        indices, label = _indices(name, data, loaded), data.streams[name].reads[:4] == 'mask'
        LOG.info('data.unreadable: reading the %d images of stream %s once', len(indices), name)
        wrong = reading.unreadable(source, indices, label, max(1, data.threads))
        for index, reason in wrong.items():
            reasons.setdefault((source.dataset, source.ids[index]), reason)
        any_left = len(wrong) < len(indices)
        check(any_left, f'data.streams.{name}', 'no image that can be read', 'at least one')
        found[name] = tuple(wrong)
    first = next(iter(reasons.values()), '')
    wanted = f'{len(reasons)} or more, as many records cannot be read; the first: {first}'
    check(len(reasons) <= data.unreadable, 'data.unreadable', data.unreadable, wanted)
    for reason in reasons.values():
        LOG.warning('warning: %s; another image takes its place', reason)
    return found


def batch_shapes(
    data: ConfigDict, names: Collection[str]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of the global batches that `train_batches` gives, of these streams."""
    found = {}
    for name in names:
        config = data.streams[name]
        what, _, padding = config.reads.partition('+')
        size = (config.batch_size, *config.crop)
        found[name] = {'image': jax.ShapeDtypeStruct((*size, 3), np.uint8)}
        if what == 'mask':
            found[name]['label'] = jax.ShapeDtypeStruct(size, np.uint8)
        if what == 'classes':
            count = len(sources.class_names(config.dataset, data.dir))
            found[name]['classes'] = jax.ShapeDtypeStruct((config.batch_size, count), bool)
        if padding == 'valid':
            found[name]['valid'] = jax.ShapeDtypeStruct(size, bool)
        if padding == 'box':
            found[name]['box'] = jax.ShapeDtypeStruct((config.batch_size, 4), np.int32)
    return found


def _examples(
    name: str,
    data: ConfigDict,
    loaded: Mapping[str, Source],
    seed: int,
    damaged: Collection[int],
) -> grain.MapDataset:
    """Return one stream's endless sequence of cropped examples."""
    config, source = data.streams[name], loaded[name]
    border, level = _PADS[config.pad]
    fill = tuple(map(level, data.mean))

    def crop(example, rng):
        return geometry.random_crop(
            example,
            rng,
            crop=tuple(config.crop),
            scale=tuple(config.resize),
            long_side=tuple(config.long_side),
            of_long_side=config.resize_law == 'long_side',
            flip_prob=config.flip_prob,
            around=config.pad == 'black',
            with_padding=config.pad == 'black_corner',
            pad=border,
            fill=fill,
            resampling=data.resampling,
        )

    stream_seed = _stream_seed(seed, name)
    record = _shuffled(_indices(name, data, loaded), stream_seed, damaged)
    dataset = grain.MapDataset.range(_STEPS * config.batch_size).seed(stream_seed)
    return dataset.map(lambda place: _decode(source, record(place), config.reads)).random_map(crop)


def _indices(name: str, data: ConfigDict, loaded: Mapping[str, Source]) -> list[int]:
    """Return the indices of a stream's images in its source, ascending."""
    row = {image_id: index for index, image_id in enumerate(loaded[name].ids)}
    return [row[image_id] for image_id in splits.subset(name, data.streams, loaded)]


def _shuffled(indices: list[int], seed: int, damaged: Collection[int] = ()) -> Callable[[int], int]:
    """Return the function from a place in an endless stream to the index of the record there.

    Every pass over the indices has a permutation of its own. (grain's `shuffle` would compute one
    index at a time, which for 16 images costs several times the decoding.) In the place of a
    damaged record is the next one of its pass that is not, or the first; no other changes places.
    """

    @functools.lru_cache(maxsize=4)  # passes that the threads may be in at once
    def permutation(number: int) -> np.ndarray:
        return np.random.default_rng([seed, number]).permutation(indices)

    def record(place: int) -> int:
        number, rest = divmod(place, len(indices))
        order = permutation(number)
        places = ((rest + more) % len(order) for more in range(len(order)))
        return next(int(order[i]) for i in places if order[i] not in damaged)

    return record


def _decode(source: Source, index: int, reads: str) -> dict[str, np.ndarray]:
    """Decode one record: its image, and what else `config.reads` names."""
    what, _, padding = reads.partition('+')
    example = reading.read(source, index, label=what == 'mask')
    if what == 'classes':  # noted when the records were written: the mask is not opened
        example['classes'] = source.classes[index]
    if padding == 'valid':
        example['valid'] = np.ones(example['image'].shape[:2], bool)
    if padding == 'box':
        height, width = example['image'].shape[:2]
        example['box'] = np.array([0, height, 0, width], np.int32)
    return example


def _stream_seed(seed: int, name: str) -> int:
    """Mix the run's seed with the stream's name, so that no two streams run in step."""
    return int.from_bytes(hashlib.sha256(f'{seed} {name}'.encode()).digest()[:4])


def _check_data(data: ConfigDict) -> None:
    """Raise ValueError where `config.data` makes no sense whatever the records."""
    check(len(data.streams) > 0, 'data.streams', 'none', 'at least one stream')
    check(data.resampling in ('cv2', 'pil'), 'data.resampling', data.resampling, 'cv2 or pil')
    check(data.threads >= 0, 'data.threads', data.threads, '0 or more')
    check(data.prefetch >= 1, 'data.prefetch', data.prefetch, '1 or more')
    for name, config in data.streams.items():
        key, crop, resize = f'data.streams.{name}', config.crop, config.resize
        check(config.batch_size >= 1, f'{key}.batch_size', config.batch_size, '1 or more')
        positive = len(crop) == 2 and min(crop) >= 1
        check(positive, f'{key}.crop', crop, 'a positive height and width')
        ordered = len(resize) == 2 and 0 < resize[0] <= resize[1]
        check(ordered, f'{key}.resize', resize, 'a range (low, high) with 0 < low <= high')
        low, high = config.long_side if len(config.long_side) == 2 else (-1, -1)
        whole = low == high == 0 or 0 < low <= high
        check(whole, f'{key}.long_side', config.long_side, 'a range (low, high) with 0 < low <= '
              'high, or (0, 0)')  # fmt: skip
        law = config.resize_law
        check(law in RESIZE_LAWS, f'{key}.resize_law', law, ' or '.join(RESIZE_LAWS))
        share = 0 <= config.flip_prob <= 1
        check(share, f'{key}.flip_prob', config.flip_prob, 'a number from 0 to 1')
        check(config.pad in _PADS, f'{key}.pad', config.pad, ' or '.join(_PADS))
