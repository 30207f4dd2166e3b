"""Look at every file of a folder before anything is written; then read it for the records."""

import collections
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from data_prep import images, records
from data_prep.folder import classes, labelme, layouts, report, tags
from data_prep.folder.builder import TAGGED, UNLABELLED
from data_prep.folder.found import Found, Item, Seen

_THREADS = 4


class Settings(NamedTuple):
    """What the user asks for.

    Attributes:
        ignore: values of masks that are void, beside 255.
        classes: see `classes.pick`; '': all.
        val_share: of the labelled images, where there is no val split.
        seed: of that draw.
        max_side: pixels of the longer side, above which images are made smaller; 0: none is.
        skip_bad: how many files that cannot be used are left out.
    """

    ignore: tuple[int, ...] = ()
    classes: str = ''
    val_share: float = 0.2
    seed: int = 0
    max_side: int = 0
    skip_bad: int = 0


class Plan(NamedTuple):
    """What will be written.

    Attributes:
        found: the folder's layout and table.
        splits: split -> image's id -> what was seen of it.
        classes: names, and what each value of a mask becomes.
        depth: values of 16-bit images that become 0 and 255; None without such images.
        max_side: see `Settings`.
        report: lines, the first of which names the layout.
        made_from: what is noted beside the records; equal for equal files and settings.
    """

    found: Found
    splits: Mapping[str, Mapping[str, Seen]]
    classes: classes.Classes
    depth: tuple[int, int] | None
    max_side: int
    report: tuple[str, ...]
    made_from: Mapping[str, Any]

    @property
    def tags(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Split -> image's id -> its tags, of the splits that have them."""
        return {
            split: {name: seen.tags for name, seen in named.items()}
            for split, named in self.splits.items()
            if self.found.has_tags(split)
        }


def read(source: Path, settings: Settings) -> tuple[Plan, list[str]]:
    """Look at all files of a folder, with progress.

    Args:
        source: the folder.
        settings: what the user asks for.

    Returns:
        The plan, and why files cannot be used, one sentence each: at most `settings.skip_bad` of
        them are left out of the plan, with more it must not be carried out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: its layout, a table of classes or a setting makes no sense, or too little is
            left.
    """
    found = layouts.find(source)
    depth = images.deep_range(item.image for item in found.items)
    look = functools.partial(_look, table=found.table, depth=depth or images.FULL)
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = pool.map(look, found.items)
        bar = {'total': len(found.items), 'unit': 'image', 'disable': None}  # in a terminal alone
        every = list(tqdm(looked, 'reading', **bar))
    values = {value: seen.item.mask for seen in reversed(every) for value in seen.values}
    chosen = classes.resolve(values, found.table, settings.ignore, settings.classes)
    every = [_known(seen, chosen, found.table) for seen in every]
    if any(found.has_tags(item.split) for item in found.items):
        tags.check_background(chosen.named)
        every = [_tagged(seen, chosen, found) for seen in every]
    problems = [*found.labels.problems] if found.labels else []
    problems += [seen.problem for seen in every if seen.problem]
    good = [seen for seen in every if not seen.problem]
    if len(problems) <= settings.skip_bad:
        _check_enough(good, chosen, len(problems), found.masks)
    kind = 'labelled' if found.masks else 'tagged'
    good, divided = _divide(good, chosen, settings, kind)
    splits = _named(source, good)
    made_from = {
        'layout': found.layout,
        'settings': [settings.classes, [*settings.ignore], settings.val_share, settings.seed,
                     settings.max_side],
        'depth': list(depth) if depth else None,
        'classes': _hash(json.dumps([found.table, chosen.names, [*chosen.ids.items()]]).encode()),
        'files': _hash(json.dumps({
            split: {name: seen.files for name, seen in named.items()}
            for split, named in splits.items()
        }).encode()),
    }  # fmt: skip
    if found.labels:
        made_from['labels'] = found.labels.content
    lines = report.lines_of(found, splits, chosen, depth, settings.max_side, divided, problems)
    plan = Plan(found, splits, chosen, depth, settings.max_side, tuple(lines), made_from)
    return plan, problems


def items(plan: Plan, split: str) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Read a split for its records: (id, encoded image, label uint8 [H, W]), in order.

    Raises:
        ValueError: a file is no longer what it was when it was looked at.
    """
    for image_id, seen in plan.splits[split].items():
        data = seen.item.image.read_bytes()
        photograph = images.decode(seen.item.image, data, plan.depth or images.FULL)
        if seen.item.mask:
            values = _mask(seen.item, photograph.size, plan.found.table)
            expected = 'what it had when it was first read'
            label = records.relabel(values, plan.classes.ids, seen.item.mask, expected)
        else:
            label = np.full(photograph.size, records.VOID, np.uint8)
        factor = plan.max_side / max(photograph.size) if plan.max_side else 1
        if factor >= 1:
            yield image_id, images.encoded(photograph, data), label
            continue
        size = tuple(max(1, round(side * factor)) for side in reversed(photograph.size))
        pixels = cv2.resize(photograph.pixels, size, interpolation=cv2.INTER_AREA)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
        yield image_id, images.encode_png(pixels), label


def _look(item: Item, table: classes.Table | None, depth: tuple[int, int]) -> Seen:
    """Read one image and its mask."""
    try:
        data = item.image.read_bytes()
        photograph = images.decode(item.image, data, depth)
        seen = Seen(item, size=photograph.size, pixels=_hash(photograph.pixels.tobytes()))
        if item.mask is None:
            return seen._replace(files=_hash(data))
        values = _mask(item, photograph.size, table)
        warning = images.check_sizes(item.image, photograph, item.mask, values.shape)
        if item.mask.suffix.lower() == '.json':  # LabelMe shows images as EXIF turns them
            warning = ''
        counted = dict(
            zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True)
        )
        files = _hash(data + item.mask.read_bytes())
        return seen._replace(warning=warning, values=counted, files=files)
    except (OSError, ValueError) as error:
        return Seen(item, problem=str(error))


def _mask(item: Item, size: tuple[int, int], table: classes.Table | None) -> np.ndarray:
    """Return a mask's values, int32 [H, W]."""
    if item.mask.suffix.lower() == '.json':
        return labelme.draw(item.mask, size, table)
    data = item.mask.read_bytes()
    mask = images.decode_mask(item.mask, data)
    if table and table.colours and (colours := images.palette(data)) is not None:
        classes.check_palette(mask, colours, table, item.mask)
    return classes.values(mask, table, item.mask)


def _known(seen: Seen, chosen: classes.Classes, table: classes.Table | None) -> Seen:
    """Find fault with a mask that has values which are no class."""
    wrong = [value for value in seen.values if value not in chosen.ids]
    if not wrong or seen.problem:
        return seen
    pixels = sum(seen.values[value] for value in wrong)
    shown = ', '.join(map(classes.shown, wrong[:5])) + (' ...' if len(wrong) > 5 else '')
    last = max(table.values) if table else len(chosen.names) - 1
    expected = 'one of the table' if table and table.colours else f'0 to {last}, or 255 for void'
    remedy, kind = '--ignore N makes a value void', 'values'
    if classes.is_colour(wrong[0]):
        remedy, kind = 'a line `void r g b` makes a colour void', 'colours'
    return seen._replace(
        problem=f'{seen.item.mask}: {pixels} pixels of {kind} {shown}; expected {expected} '
        f'({remedy})'
    )


def _tagged(seen: Seen, chosen: classes.Classes, found: Found) -> Seen:
    """Note the tags of an image, or find fault with them."""
    if seen.problem or not found.has_tags(seen.item.split):
        return seen
    try:
        return seen._replace(tags=tags.of(seen.item.rows, chosen, found.table))
    except ValueError as error:
        return seen._replace(problem=str(error))


def _shows(seen: Seen, chosen: classes.Classes) -> bool:
    """Tell whether there is a class to teach or to score: in a pixel of the mask, or by tags."""
    return any(seen.tags) or any(chosen.ids[value] != records.VOID for value in seen.values)


def _check_enough(
    seen: list[Seen], chosen: classes.Classes, left_out: int, have_masks: bool
) -> None:
    """Raise ValueError where there are too few labelled images to train on and to evaluate on."""
    splits = collections.Counter(one.item.split for one in seen if _shows(one, chosen))
    own = any(one.item.split == 'val' for one in seen)
    more = f' and {left_out} that cannot be used' if left_out else ''
    if own and not splits['val']:
        raise ValueError(f'val: no mask shows a class{more}; expected at least 1')
    if splits['train'] < (1 if own else 2):
        expected = 'at least 1' if own else 'at least 2, one of them to evaluate on'
        which = ' with a mask that shows a class' if have_masks else ''
        raise ValueError(
            f'images to train on{which}: got {splits["train"]}{more}, expected {expected}'
        )
    if not have_masks and not any(any(one.tags[1:]) for one in seen):
        raise ValueError(
            f'{tags.FILE}: no image has a class but {chosen.names[0]!r}{more}; expected at least 1'
        )


def _divide(
    seen: list[Seen], chosen: classes.Classes, settings: Settings, kind: str
) -> tuple[list[Seen], str]:
    """Make a val split of some labelled images where there is none, and say so in words."""
    train = [(i, one) for i, one in enumerate(seen) if one.item.split == 'train']
    labelled = [i for i, one in train if _shows(one, chosen)]
    if len(labelled) < 2 or any(one.item.split == 'val' for one in seen):
        return seen, ''
    count = min(max(1, round(settings.val_share * len(labelled))), len(labelled) - 1)
    drawn = set(np.random.default_rng(settings.seed).permutation(labelled)[:count].tolist())
    divided = [
        one._replace(item=one.item._replace(split='val')) if i in drawn else one
        for i, one in enumerate(seen)
    ]
    return divided, (
        f'no val split: {count} of the {len(train)} {kind} images are it, drawn by seed '
        f'{settings.seed} (--val_share, --seed)'
    )


def _named(source: Path, seen: list[Seen]) -> dict[str, dict[str, Seen]]:
    """Return split -> id -> image; an id is the file's stem, with folders where that is no name."""

    def names(item: Item) -> dict[str, None]:
        stem, whole = PurePosixPath(item.key).name, item.image.relative_to(source)
        every = (stem, item.key, f'{item.split}/{item.key}', whole.with_suffix(''), whole)
        return dict.fromkeys(map(str, every))

    counts = collections.Counter(name for one in seen for name in names(one.item))
    found: dict[str, dict[str, Seen]] = {split: {} for split in ('train', 'val')}
    for one in sorted(seen, key=lambda one: one.item.key):
        name = next(name for name in names(one.item) if counts[name] == 1)
        found.setdefault(one.item.split, {})[name] = one
    order = ('train', 'val', 'test', TAGGED, UNLABELLED)
    return {split: found[split] for split in order if split in found}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
