"""Images a second that the host reads, decodes, scales and crops: python -m benchmarks.data.

The records are VOC's in everything but content: JPEG files of 500 x 375 and 375 x 500 pixels that
compress as photographs do, to about 95 kB (VOC 2012 has 17,125 of them in 2 GB), and masks with a
handful of regions and void outlines, written to a temporary folder as `data_prep.voc` writes its
own. The two streams are those of configs/voc.py: 16 labelled images, scaled at random, and 16
unlabelled ones.

- By number of threads: images of both streams, and the same for two of the cores that this process
  may use. 'pil' is the reference's filter, `config.data.resampling`. The CPU time says what that
  would be on cores that nothing else uses.
- In one thread: what is done to an image of either stream, on average over both, each function by
  itself; then the pipeline with one thread.

'small' reads fewer images, of the same kind.
"""

import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from benchmarks import timing
from configs import voc as voc_config
from css_jax import config as configs
from css_jax.data import geometry, sources, streams
from data_prep import records
from data_prep.voc import builder as voc

IMAGES = {'real': 128, 'small': 48}  # drawn
SECONDS = {'real': 6.0, 'small': 2.0}  # of a row
THREADS = (1, 2, 4, 8, 16, 32)
SIZES = ((375, 500), (375, 500), (500, 375))  # height, width of VOC's images, by how many there are
QUALITY = 95


class Builder(voc.Builder, skip_registration=True):
    """VOC's records of drawn images."""

    name = 'voc'  # in whose place it is found

    def __init__(self, *, images: int, **kwargs):
        """Initialises.

        Args:
            images: how many, in all.
            **kwargs: data_dir.
        """
        super().__init__(**kwargs)
        self._counts = {'train': images // 2, 'extra': images - images // 2, 'val': 1}

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._drawn(split) for split in self._counts}

    def _drawn(self, split: str) -> Iterator[tuple[int, dict]]:
        items = (
            (f'{split}{i}', *draw(np.random.default_rng([*split.encode(), i])))
            for i in range(self._counts[split])
        )
        return records.examples(self.info.metadata, split, items)


def draw(rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """Draws what compresses as a photograph does: a JPEG and its label uint8 [H, W]."""
    height, width = SIZES[rng.integers(len(SIZES))]
    image = 128 + 7 * rng.standard_normal((height, width, 1), np.float32)
    for octave in range(1, 8):  # detail falls with frequency
        field = rng.standard_normal((2**octave, 2**octave, 3), np.float32)
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
        image = image + 60 * 0.62**octave * field
    label = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 6)):
        corners = rng.uniform(0, 1, (7, 2)) * rng.uniform(0.3, 0.9) + rng.uniform(0, 0.5, 2)
        shape = [cv2.convexHull((corners * (width, height)).astype(np.int32))]
        cv2.fillPoly(label, shape, int(rng.integers(1, 21)))
        cv2.polylines(label, shape, True, 255, 5)
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    encoded = cv2.imencode('.jpg', image.clip(0, 255).astype(np.uint8), quality)[1]
    return encoded.tobytes(), label


def configuration(folder: pathlib.Path, threads: int, resampling: str = 'cv2') -> ConfigDict:
    """Gives the `config.data` of configs/voc.py, all of the train images being labelled."""
    config = voc_config.get_config('classic,css_mix')
    config.data.streams.labelled.update(count=0, min_per_class=0)
    config.data.dir, config.data.threads, config.data.resampling = str(folder), threads, resampling
    config.data.prefetch = max(configs.keys()['data.prefetch'].default, threads)
    return configs.finalise(config).data


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a number of threads, one for the reference's filter, then one a kind of work."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        tfds.disable_progress_bar()
        records.prepare(Builder(images=IMAGES[size], data_dir=folder))
        source = sources.load('voc', 'trainaug', folder)
        kilobytes = statistics.mean(len(record['image']) for record in source.records) / 1e3
        what = f'16 + 16 crops of 512 x 512 from JPEGs of {kilobytes:.0f} kB'
        threads = [n for n in THREADS if n == 1 or n <= 4 * cores]
        for count, resampling in [*((n, 'cv2') for n in threads), (cores, 'pil')]:
            data = configuration(pathlib.Path(folder), count, resampling)
            rate, cpu = throughput(data, SECONDS[size])
            yield (
                f'{what}, by threads on {cores} cores',
                {
                    'threads': count,
                    'resampling': resampling,
                    'images/s': rate,
                    'images/s a core pair': 2 * rate / cores,
                    'CPU ms an image': cpu,
                },
            )
        data = configuration(pathlib.Path(folder), 1)
        for row in costs(data, source, SECONDS[size]):
            yield f'{what}, what an image costs in one thread', row


def throughput(data: ConfigDict, seconds: float) -> tuple[float, float]:
    """Reads three batches or more; what was read ahead of the clock is left out.

    Returns:
        Images of all streams a second, and milliseconds of CPU time an image, over all threads.
    """
    batches = streams.train_batches(data, seed=0)
    for _ in range(data.prefetch + 1):
        next(batches)
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    images = count * _batch(data)
    return images / (time.perf_counter() - start), 1e3 * (time.process_time() - cpu) / images


def costs(data: ConfigDict, source: sources.Source, seconds: float) -> Iterator[timing.Row]:
    """Gives a row each thing that is done to an image.

    Args:
        data: of one thread.
        source: the images.
        seconds: of all of it together, and of the whole pipeline.
    """
    labelled, unlabelled = data.streams.labelled, data.streams.unlabelled
    places = range(min(16, len(source)))
    read = [source.records[i] for i in places]
    decoded = [{'image': geometry.decode_image(record['image'])} for record in read]
    pairs = [
        {**image, 'label': geometry.decode_label(record['label'])}
        for image, record in zip(decoded, read, strict=True)
    ]

    def crop(stream: ConfigDict) -> Callable[[dict, int], dict]:
        return lambda arrays, seed: geometry.random_crop(
            arrays,
            np.random.default_rng(seed),
            crop=stream.crop,
            scale=stream.resize,
            pad=stream.pad,
            fill=(124, 116, 104),
        )

    crops = [crop(unlabelled)(image, 0)['image'] for image in decoded]
    # What is done, and to what share of the images.
    steps = {
        'read the record': (1, lambda: [source.records[i] for i in places]),
        'decode the JPEG': (1, lambda: [geometry.decode_image(r['image']) for r in read]),
        'decode the mask, labelled': (
            0.5,
            lambda: [geometry.decode_label(r['label']) for r in read],
        ),
        'scale, pad, crop, labelled': (0.5, lambda: list(map(crop(labelled), pairs, places))),
        'pad, crop, unlabelled': (0.5, lambda: list(map(crop(unlabelled), decoded, places))),
        'copy into the batch': (1, lambda: np.stack(crops)),
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, (share, run) in steps.items():
            start = time.thread_time()
            run()
            spent[name].append(1e3 * share * (time.thread_time() - start) / len(places))
    found = {name: statistics.median(times) for name, times in spent.items()}
    _, whole = throughput(data, seconds)
    found['the rest: order, draws, threads'] = whole - sum(found.values())
    for name, ms in [*found.items(), ('the whole', whole)]:
        yield {'work': name, 'CPU ms an image': ms, 'of the whole': ms / whole}


def _batch(data: ConfigDict) -> int:
    return sum(stream.batch_size for stream in data.streams.values())


if __name__ == '__main__':
    timing.main('Training batches from the host', rows)
