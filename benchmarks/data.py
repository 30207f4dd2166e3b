"""Images a second that the host reads, decodes, scales and crops: python -m benchmarks.data.

The records are VOC's in everything but content: JPEG files of 500 x 375 and 375 x 500 pixels that
compress as photographs do, to about 95 kB (VOC 2012 has 17,125 of them in 2 GB), and masks with a
handful of regions and void outlines, written to a temporary folder as `data_prep.voc` writes its
own. The two streams are those of configs/voc.py: 16 labelled images, scaled at random, and 16
unlabelled ones. A row has a number of threads, for all of the cores that this process may use;
'pil' is the reference's filter, `config.data.resampling`. The CPU time of an image says what its
rate would be on cores that nothing else uses. 'small' reads fewer images, of the same kind.
"""

import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from benchmarks import timing
from configs import voc as voc_config
from css_jax import config as configs
from css_jax.data import sources, streams
from data_prep import records
from data_prep.voc import builder as voc

IMAGES = {'real': 128, 'small': 48}  # drawn
SECONDS = {'real': 4.0, 'small': 2.0}  # of a row
SIZES = ((375, 500), (375, 500), (500, 375))  # height, width of VOC's images, by how many there are
QUALITY = 95


class Builder(voc.Builder, skip_registration=True):
    """VOC's records of drawn images; `splits` says how many."""

    name = 'voc'  # in whose place it is found

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        del dl_manager

        def drawn(split: str) -> Iterator[tuple[str, bytes, np.ndarray]]:
            for i in range(self._splits[split]):
                yield f'{split}{i}', *draw(np.random.default_rng([*split.encode(), i]))

        metadata = self.info.metadata
        return {split: records.examples(metadata, split, drawn(split)) for split in self._splits}


def draw(rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """Draw what compresses as a photograph does: a JPEG and its label uint8 [H, W]."""
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


def configuration(folder: pathlib.Path, threads: int, resampling: str) -> ConfigDict:
    """Return the `config.data` of configs/voc.py, all of the train images being labelled."""
    config = voc_config.get_config('classic,css_mix')
    config.data.streams.labelled.update(count=0, min_per_class=0)
    config.data.dir, config.data.threads, config.data.resampling = str(folder), threads, resampling
    config.data.prefetch = max(configs.keys()['data.prefetch'].default, threads)
    return configs.finalise(config).data


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give a row a number of threads, all cores first, and one for the reference's filter."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        tfds.disable_progress_bar()
        half = IMAGES[size] // 2
        counts = {'train': half, 'extra': half, 'val': 1}
        records.prepare(Builder(splits=counts, data_dir=folder))
        source = sources.load('voc', 'trainaug', folder)
        kilobytes = statistics.mean(len(record['image']) for record in source.records) / 1e3
        cases = [(n, 'cv2') for n in dict.fromkeys((cores, 1, 2 * cores))]
        for count, resampling in [*cases, (cores, 'pil')]:
            data = configuration(pathlib.Path(folder), count, resampling)
            rate, cpu = throughput(data, SECONDS[size])
            row = {'threads': count, 'resampling': resampling, 'images/s': rate}
            row |= {'images/s a core pair': 2 * rate / cores, 'CPU ms an image': cpu}
            yield f'16 + 16 crops of 512 x 512, JPEGs of {kilobytes:.0f} kB, {cores} cores', row


def throughput(data: ConfigDict, seconds: float) -> tuple[float, float]:
    """Return the images of all streams a second, and the CPU time of one, over all threads.

    Three batches are read or more; what was read ahead of the clock is left out.
    """
    batches = streams.train_batches(data, seed=0)
    for _ in range(data.prefetch + 1):
        next(batches)
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    images = count * sum(stream.batch_size for stream in data.streams.values())
    return images / (time.perf_counter() - start), 1e3 * (time.process_time() - cpu) / images


if __name__ == '__main__':
    timing.main('Training batches from the host', rows)
