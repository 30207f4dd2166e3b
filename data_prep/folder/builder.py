"""TFDS builder of `folder`: one configuration for each dataset that a user has prepared."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_prep import records

NAME = 'default'  # of the dataset where the user gives none
UNLABELLED = 'unlabelled'  # the split of images without masks; their label is void everywhere
TAGGED = 'tagged'  # that of images without masks of which it is known which classes they show
WEAK = 'weak'  # train and TAGGED
NEEDED_FROM_USER = """\
FOLDER has your images, and masks for some of them; docs/own_data.md shows the layouts."""

Items = Callable[[], Iterable[tuple[str, bytes, np.ndarray]]]  # id, encoded image, label


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes what `data_prep.folder` has read; once prepared, its metadata says what it is."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = ()

    def __init__(
        self,
        *,
        config: str = NAME,
        class_names: tuple[str, ...] = (),
        items: Mapping[str, Items] | None = None,
        made_from: Mapping[str, Any] | None = None,
        palette: Sequence[Sequence[int]] = (),
        tags: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
        **kwargs,
    ):
        """Initialise.

        Args:
            config: name of the dataset.
            class_names: in the order of their label values; only preparing needs it and the rest.
            items: split -> function that gives its records in order.
            made_from: what is noted beside the records; plain values.
            palette: RGB of each class, where the user's masks have colours.
            tags: split -> image's id -> its tags, see `records.examples`, of splits that have them.
            **kwargs: data_dir as in any TFDS builder.
        """
        self._class_names, self._items = class_names, items or {}
        self._palette = [list(colour) for colour in palette]
        self._made_from, self._tags = dict(made_from or {}), tags or {}
        own = tfds.core.BuilderConfig(name=config, description='your own images')
        level = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TFDS warns of every name that its class has not
        try:
            super().__init__(config=own, **kwargs)
        finally:
            logging.set_verbosity(level)

    def _info(self) -> tfds.core.DatasetInfo:
        info = records.dataset_info(
            self, self._class_names, unions(self._items), description='Images of a folder.'
        )
        info.metadata['made_from'] = self._made_from
        info.metadata['palette'] = self._palette
        return info

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {
            split: self._generate_examples(split, items()) for split, items in self._items.items()
        }

    def _generate_examples(
        self, split: str, items: Iterable[tuple[str, bytes, np.ndarray]]
    ) -> Iterator[tuple[int, dict]]:
        return records.examples(self.info.metadata, split, items, self._tags.get(split))


def unions(splits: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of splits that are made of others, by the splits that are stored."""
    return {WEAK: ('train', TAGGED)} if {'train', TAGGED} <= {*splits} else {}


def prepared(data_dir: str | None) -> list[str]:
    """List the names of the datasets that are prepared in a folder of TFDS."""
    folder = Path(Builder(data_dir=data_dir).data_dir).parents[1]
    found = folder.glob(f'*/{Builder.VERSION}/dataset_info.json')
    return sorted(file.parts[-3] for file in found)
