"""What is said of a folder before anything is written."""

from collections.abc import Mapping

import numpy as np

from data_prep import records
from data_prep.folder import classes
from data_prep.folder.builder import TAGGED, UNLABELLED, unions
from data_prep.folder.found import Found, Seen

_SHOWN = 20  # lines of one kind in the report
_LISTED = 50  # files that cannot be used
_NAMES = 10  # of classes, in a line of it
_LARGE = 1500  # pixels a side, from which on reading whole images slows training


def lines_of(
    found: Found,
    splits: Mapping[str, Mapping[str, Seen]],
    chosen: classes.Classes,
    depth: tuple[int, int] | None,
    max_side: int,
    divided: str,
    problems: list[str],
) -> list[str]:
    """Describe what was found, before anything is written."""
    labelled = {split: named for split, named in splits.items() if split != UNLABELLED}
    counts = {split: len(splits.get(split, ())) for split in (TAGGED, UNLABELLED)}
    count = sum(map(len, labelled.values())) - counts[TAGGED]
    first = f'{found.layout}: {count} {"labelled" if found.masks else "tagged"} images'
    first += ''.join(f', {n} {split}' for split, n in counts.items() if n or split == UNLABELLED)
    notes = list(chosen.notes)
    if notes and notes[0].startswith('masks are 0 and 255'):
        first += f'; {notes.pop(0)}'
    lines = [first]
    totals = np.zeros(len(chosen.names), int)
    for split, named in splits.items():
        noted = noted_of(named, chosen)
        lines += records.split_lines(split, noted, chosen.names if split in labelled else ())
        if split in labelled and (split != TAGGED or not found.masks):
            shown = noted['pixels' if found.masks else 'tags']
            totals += (np.array(shown).reshape(-1, len(totals)) > 0).sum(0)
    for union, parts in unions(splits).items():
        count = sum(len(splits[part]) for part in parts)
        lines.append(f'\n{union}: {count} images, those of {" and ".join(parts)}')
    lines.append('')
    lines += [divided] if divided else []
    lines += [*notes, *_shortened(list(found.notes), 'warning: ')]
    if max_side:
        lines.append(f'the copies have at most {max_side} pixels a side; above are the files')
    if depth:
        lines.append(f'16-bit images: their values {depth[0]} to {depth[1]} become 0 to 255')
    if found.masks and not any(counts.values()):
        lines.append('no image is without a mask: training will be supervised')
    one = 'mask' if counts[TAGGED] else 'image'
    for text, which in ((f'in no {one}', totals == 0), (f'in one {one} alone', totals == 1)):
        names = [name for name, yes in zip(chosen.names, which, strict=True) if yes]
        if names:
            lines.append(f'warning: classes {text}: {_few(names)}')
    if not found.table and (totals == 0).sum() > len(totals) // 2:
        lines.append(
            f'warning: no table of classes, and {(totals == 0).sum()} of the {len(totals)} that '
            'the largest value stands for do not occur: is each value a class? A classes.txt with '
            'colours, or --ignore'
        )
    if found.masks and (totals > 0).sum() == 1:
        name = chosen.names[int(totals.argmax())]
        lines.append(f'warning: the masks show one class alone, {name}: every score will be 100')
    longest = max((max(s.size) for named in splits.values() for s in named.values()), default=0)
    if longest > _LARGE:
        lines.append(
            f'warning: images of up to {longest} pixels a side are read whole at every step; '
            '--max_side 1024 makes them smaller'
        )
    warnings = [one.warning for named in splits.values() for one in named.values() if one.warning]
    lines += _shortened([*_repeated(labelled), *warnings], 'warning: ')
    lines += _shortened(problems, 'cannot be used: ', _LISTED)
    return lines


def noted_of(named: Mapping[str, Seen], chosen: classes.Classes) -> dict[str, list]:
    """Return what `records.examples` will note of a split, at the files' own sizes."""
    pixels = np.zeros((len(named), len(chosen.names)), int)
    for row, one in zip(pixels, named.values(), strict=True):
        for value, count in one.values.items():
            if (index := chosen.ids[value]) != records.VOID:
                row[index] += count
    noted = {
        'ids': list(named),
        'sizes': [list(one.size) for one in named.values()],
        'pixels': pixels.tolist(),
    }
    tagged = [list(one.tags) for one in named.values()]
    return noted | ({'tags': tagged} if all(tagged) else {})


def _repeated(labelled: Mapping[str, Mapping[str, Seen]]) -> list[str]:
    """Name images that are trained on by their labels and are in another split, too."""
    trained = {
        one.pixels: (split, one.item.image)
        for split in (TAGGED, 'train')
        for one in labelled.get(split, {}).values()
    }
    return [
        f'{one.item.image} of {split} is the same image as {trained[one.pixels][1]} of {there}'
        for split, named in labelled.items()
        if split != 'train'
        for one in named.values()
        if (there := trained.get(one.pixels, (split,))[0]) != split
    ]


def _few(names: list[str]) -> str:
    more = f' and {len(names) - _NAMES} more' if len(names) > _NAMES else ''
    return ', '.join(names[:_NAMES]) + more


def _shortened(lines: list[str], prefix: str, shown: int = _SHOWN) -> list[str]:
    more = [f'and {len(lines) - shown} more'] if len(lines) > shown else []
    return [prefix + line for line in [*lines[:shown], *more]]
