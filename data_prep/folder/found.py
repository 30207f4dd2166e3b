"""What is known of a folder, of its images, and of each once it was looked at."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data_prep.folder import classes, tags
from data_prep.folder.builder import TAGGED, UNLABELLED


class Item(NamedTuple):
    """An image and what is known of it.

    Attributes:
        split: one of the values of SPLITS, or TAGGED; '': left out, as no list has it.
        key: its path in the folder of images, without ending: 'site A/0001'.
        image: its file.
        mask: file of its mask, LabelMe's JSON, or None.
        rows: of labels.csv, where they tell its classes.
    """

    split: str
    key: str
    image: Path
    mask: Path | None
    rows: tuple[tags.Row, ...] = ()


class Found(NamedTuple):
    """What a folder has.

    Attributes:
        layout: its name, for the first line of output.
        items: every image; sorted by split and key.
        table: of the classes, where there is one.
        notes: what the user should know, a sentence each.
        labels: what labels.csv has, where there is one.
        masks: whether there are any or a folder of them; else labels.csv is in their place.
    """

    layout: str
    items: tuple[Item, ...]
    table: classes.Table | None
    notes: tuple[str, ...]
    labels: tags.Labels | None = None
    masks: bool = True

    def has_tags(self, split: str) -> bool:
        """Tell whether the images of a split have tags."""
        return split == TAGGED or (split != UNLABELLED and not self.masks)


class Seen(NamedTuple):
    """One image and its mask or tags, as they were found.

    Attributes:
        item: which.
        problem: why it cannot be used; '': it can.
        warning: what is odd; '': nothing.
        size: height and width.
        values: of the mask -> how many pixels; {} without one.
        pixels: hash of the image's pixels.
        files: hash of both files' bytes.
        tags: 0 or 1 for each class; () where labels.csv does not tell.
    """

    item: Item
    problem: str = ''
    warning: str = ''
    size: tuple[int, int] = (0, 0)
    values: Mapping[int, int] = {}
    pixels: str = ''
    files: str = ''
    tags: tuple[int, ...] = ()
