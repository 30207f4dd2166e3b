"""Images a second that the host reads, decodes, scales and crops: python -m benchmarks.data.

The records are those of `shapes` at 128 x 128, prepared in a temporary folder; scaled by 2 to 6
they are as large as VOC's images after its random scale. Their PNGs are smaller than VOC's JPEGs,
so decoding is cheaper than there.
"""

import pathlib
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from benchmarks import timing
from css_jax import config as configs
from css_jax.data import streams
from css_jax.models import layouts
from data_prep import records
from data_prep.shapes.builder import Builder

IMAGES = 64
# Batch of each of two streams, crop, range of the labelled stream's random scale.
SIZES = {'real': (16, 512, (2.0, 6.0)), 'small': (8, 64, (0.5, 1.5))}
THREADS = (1, 2, 4, 8)
AT_ONCE = 24  # batches timed together: more than are read ahead


def configuration(size: str, folder: pathlib.Path, threads: int, resampling: str) -> ConfigDict:
    """Gives `config.data` with a labelled and an unlabelled stream."""
    batch, crop, scale = SIZES[size]
    c = configs.default().data
    c.dir, c.threads, c.resampling = str(folder), threads, resampling
    c.prefetch = max(c.prefetch, threads)
    c.mean, c.std = layouts.IMAGENET_MEAN, layouts.IMAGENET_STD
    common = {'dataset': 'shapes/128', 'batch_size': batch, 'crop': (crop, crop)}
    c.streams.labelled = configs.stream(**common, count=IMAGES // 4, resize=scale)
    c.streams.unlabelled = configs.stream(
        **common, labels=False, exclude='labelled', resize=(1.0, 1.0), pad='reflect'
    )
    return c


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a number of threads, and one for the reference's filter."""
    batch, crop, scale = SIZES[size]
    caption = (
        f'Batches of {batch} + {batch}, crop {crop} x {crop}, labelled images scaled by {scale}'
    )
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(
            config='128', data_dir=folder, splits={'train': IMAGES, 'val': 1, 'fresh': 1}
        )
        tfds.disable_progress_bar()
        records.prepare(builder)
        for threads, resampling in [*((n, 'cv2') for n in THREADS), (4, 'pil')]:
            data = configuration(size, pathlib.Path(folder), threads, resampling)
            batches = streams.train_batches(data, seed=0)

            def read(batches=batches):
                for _ in range(AT_ONCE):
                    next(batches)

            spent = timing.milliseconds(read, wait=lambda _: None) / AT_ONCE
            yield (
                caption,
                {
                    'threads': threads,
                    'resampling': resampling,
                    'ms a batch of both': spent,
                    'images/s': 2 * batch / spent * 1e3,
                },
            )


if __name__ == '__main__':
    timing.main('Training batches from the host', rows)
