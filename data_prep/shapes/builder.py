"""TFDS builder of `shapes`."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data_prep import records
from data_prep.shapes import draw

CLASS_NAMES = draw.CLASS_NAMES
NEEDED_FROM_USER = ''
SPLITS = {'train': 500, 'val': 200, 'fresh': 200}  # images; 'fresh' is to be looked at only once


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """Size of the images in pixels a side."""

    size: int


class Builder(tfds.core.GeneratorBasedBuilder):
    """Draws and stores the images; the same seed gives the same images."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = (
        Config(name='64', size=64, description='64x64 pixels'),
        Config(name='128', size=128, description='128x128 pixels'),
    )

    STYLE = draw.SHAPES

    def __init__(self, *, seed: int = 0, splits: dict[str, int] | None = None, **kwargs):
        """Initialise.

        Args:
            seed: of the images; the splits differ whatever it is.
            splits: images per split; None: `SPLITS`.
            **kwargs: data_dir, config as in any TFDS builder.
        """
        self._seed = seed
        self._splits = SPLITS if splits is None else splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(self, self.STYLE.class_names, description=draw.__doc__)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        return records.examples(self.info.metadata, split, self._draw(split))

    def _draw(self, split: str) -> Iterator[tuple[str, bytes, np.ndarray]]:
        for index in range(self._splits[split]):
            rng = np.random.default_rng([self._seed, *split.encode(), index])
            image, label = draw.draw(rng, self.builder_config.size, self.STYLE)
            yield f'{split}_{index:05d}', records.encode_png(image), label
