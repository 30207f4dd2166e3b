"""Which classes masks have: tables of names and colours, and what the user picks of them."""

import csv
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.records import VOID

MOST = VOID  # classes: their ids and void are 8 bits
LARGEST = (1 << 16) - 1  # value of a mask
ROBOFLOW = '_classes.csv'
VOID_NAMES = ('void', 'ignore', '__ignore__')  # an entry of such a name is no class
_COLOUR = 1 << 24  # added to a colour that no table has, so that it is no class id
Colour = tuple[int, int, int]


class Table(NamedTuple):
    """The classes of a folder.

    Attributes:
        names: in the table's order.
        values: of each in masks of numbers.
        colours: of each in masks of colours; () where the table has none.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[Colour, ...] = ()


class Classes(NamedTuple):
    """How the values of masks become class ids.

    Attributes:
        names: of the classes, in the order of their ids.
        ids: value -> id, or `VOID`.
        notes: what the user should know, a sentence each.
        named: name before any were picked -> id, or `VOID`; in the table's order.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int]
    notes: tuple[str, ...]
    named: Mapping[str, int]


def beside(folder: Path) -> Table | None:
    """Read the table of a folder: classes.txt, or labelmap.txt; None where there is neither."""
    there = {file.name.lower(): file for file in sorted(folder.iterdir()) if file.is_file()}
    for name, read in (('classes.txt', read_classes), ('labelmap.txt', read_labelmap)):
        if name in there:
            return read(there[name])
    return None


def read_classes(file: Path) -> Table:
    """Read classes.txt: a class a line, `name` or `name r g b`, in the order of their values.

    Raises:
        ValueError: a line is neither, or of two kinds; names it.
    """
    names, colours = [], []
    for number, line in _lines(file):
        found = re.fullmatch(r'(.*\S)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)', line)
        names.append(found[1] if found else line)
        if found:
            colours.append(_colour(file, number, found.groups()[1:]))
        if len(colours) not in (0, len(names)):
            raise ValueError(
                f'{file}: line {number}: expected `name r g b` in all lines or in none'
            )
    return checked(file, names, range(len(names)), colours)


def read_labelmap(file: Path) -> Table:
    """Read CVAT's labelmap.txt: `name:r,g,b:parts:actions` a line.

    Raises:
        ValueError: a line is not; names it.
    """
    names, colours = [], []
    for number, line in _lines(file):
        found = re.fullmatch(r'(.+?):(\d+),(\d+),(\d+)(:.*)?', line)
        if not found:
            raise ValueError(f'{file}: line {number}: expected `name:r,g,b::`, came {line!r}')
        names.append(found[1].strip())
        colours.append(_colour(file, number, found.groups()[1:4]))
    return checked(file, names, range(len(names)), colours)


def read_roboflow(file: Path) -> Table:
    """Read Roboflow's _classes.csv: `Pixel Value, Class`, then a class a line.

    Raises:
        ValueError: a line is no value and name; names it.
    """
    names, values = [], []
    for number, line in _lines(file):
        row = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
        if len(row) == 2 and row[0].isdecimal():
            values.append(int(row[0]))
            names.append(row[1])
        elif names:
            raise ValueError(f'{file}: line {number}: expected `value, name`, came {line!r}')
    return checked(file, names, values, [])


def values(mask: np.ndarray, table: Table | None, name: object) -> np.ndarray:
    """Return a mask as numbers: colours become the table's values, and others none of them.

    Args:
        mask: int32 [H, W], or uint8 [H, W, 3].
        table: of the classes, or None.
        name: of the file, for messages.

    Returns:
        int32 [H, W].

    Raises:
        ValueError: it has colours, and the table has none.
    """
    if mask.ndim == 2:
        return mask
    if table is None or not table.colours:
        if (mask == mask[..., :1]).all():  # grey, saved in three channels
            return mask[..., 0].astype(np.int32)
        raise ValueError(
            f'{name}: colours, and no table of them; expected class ids, or a classes.txt of '
            '`name r g b` lines'
        )
    packed = mask.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, place = np.unique(packed, return_inverse=True)
    known = {
        (r << 16) + (g << 8) + b: value
        for (r, g, b), value in zip(table.colours, table.values, strict=True)
    }
    return np.array([known.get(c, _COLOUR + c) for c in found.tolist()], np.int32)[
        place.reshape(packed.shape)
    ]


def check_palette(numbers: np.ndarray, colours: np.ndarray, table: Table, name: object) -> None:
    """Compare a palette mask's numbers, which count, with its colours.

    Programs that make RGB files smaller give palettes with numbers of their own.

    Args:
        numbers: int32 [H, W].
        colours: of the palette, uint8 [N, 3].
        table: of the classes, with colours.
        name: of the file, for messages.

    Raises:
        ValueError: the colours are the table's, and stand for other classes than the numbers.
    """
    known = dict(zip(table.colours, table.values, strict=True))
    used = set(np.unique(numbers).tolist()) & set(table.values)
    by_colour = {i: known.get(tuple(colours[i].tolist())) for i in used if i < len(colours)}
    if any(value not in (i, None) for i, value in by_colour.items()):
        raise ValueError(
            f'{name}: the numbers of its palette say other classes than the colours of the table; '
            'expected both alike, or RGB'
        )


def colours(table: Table | None, resolved: Classes) -> tuple[Colour, ...]:
    """Return the colour of each class: of the first entry of the table that it is made of.

    Args:
        table: of the classes, or None.
        resolved: see `resolve`.

    Returns:
        The colours by class id; () where the table has none, or has not one for each class.
    """
    found: dict[int, Colour] = {}
    if table:
        # A table without colours gives no pairs.
        for value, colour in zip(table.values, table.colours, strict=False):
            found.setdefault(resolved.ids.get(value, VOID), colour)
    own = tuple(found[i] for i in range(len(resolved.names)) if i in found)
    return own if len(set(own)) == len(resolved.names) else ()


def is_colour(value: int) -> bool:
    """Tell whether a value of `values` stands for a colour that no table has."""
    return value >= _COLOUR


def shown(value: int) -> str:
    """Write a value of `values` for people."""
    if not is_colour(value):
        return str(value)
    return f'colour {value >> 16 & 255} {value >> 8 & 255} {value & 255}'


def resolve(
    found: Mapping[int, object], table: Table | None, ignore: Collection[int], picked: str
) -> Classes:
    """Decide which value is which class.

    Args:
        found: each value that the masks have -> a mask that has it, for messages.
        table: of the classes, or None: `class 0` to the largest value.
        ignore: values that are void, beside 255.
        picked: what the user picks, see `pick`; '': all of them.

    Returns:
        The classes. Values that are neither a class nor void are not among its `ids`.

    Raises:
        ValueError: there are more classes than 8 bits hold, or `picked` makes no sense.
    """
    notes = []
    two = table is None or len(_classes_of(table)) == len(table.names) == 2
    if two and VOID not in ignore and VOID in found and set(found) <= {0, VOID}:
        names = table.names if table else ('class 0', 'class 1')
        table = Table(tuple(names), (0, 1))
        # Were 255 void, one class would be left, and every score 100.
        notes.append(f'masks are 0 and 255: 255 is class 1, {names[1]!r} (--ignore 255: void)')
        ids = {0: 0, VOID: 1, 1: 1} | dict.fromkeys(ignore, VOID)
    else:
        void = {VOID, *ignore}
        if table is None:
            count = max((v for v in found if v not in void and v < _COLOUR), default=0) + 1
            if count > MOST:
                raise ValueError(
                    f'{found[count - 1]}: a mask with the value {count - 1}; expected class ids '
                    f'from 0 to {MOST - 1} (--ignore N makes a value void)'
                )
            table = Table(tuple(f'class {i}' for i in range(count)), tuple(range(count)))
        classes = [(name, value) for name, value in _classes_of(table) if value not in ignore]
        if not classes:
            raise ValueError('no class is left beside void; expected at least one')
        names = tuple(name for name, _ in classes)
        ids = dict.fromkeys([*void, *table.values], VOID)
        ids |= {value: i for i, (_, value) in enumerate(classes)}
    if picked:
        names, new, dropped = pick(picked, names)
        ids = {value: VOID if i == VOID else new[i] for value, i in ids.items()}
        if dropped:
            notes.append(f'void, as --classes does not name them: {", ".join(dropped)}')
    named = {name: ids[value] for name, value in zip(table.names, table.values, strict=True)}
    return Classes(tuple(names), ids, tuple(notes), named)


def pick(
    text: str, names: Collection[str]
) -> tuple[tuple[str, ...], dict[int, int], tuple[str, ...]]:
    """Read `--classes`: names to keep, NEW=A+B to merge, A=void, and rest=void or rest=NAME.

    Args:
        text: parts with commas between, as in 'background,cat,cattle=cow+ox,rest=void'.
        names: the classes that there are.

    Returns:
        The new names; old id -> new id or `VOID`; names of classes that no part is about.

    Raises:
        ValueError: a class is not known, or named twice.
    """
    known = {name: i for i, name in enumerate(names)}
    new: dict[str, list[str]] = {}
    void, rest = [], ''
    for part in filter(None, map(str.strip, text.split(','))):
        left, equals, right = (piece.strip() for piece in part.partition('='))
        if left == 'rest' and equals and 'rest' not in known:
            rest = right
        elif right == 'void' and left in known:
            void.append(left)
        else:
            olds = [old.strip() for old in right.split('+')] if equals else [left]
            if left == 'void':
                void += olds
            elif left in new:
                raise ValueError(f'--classes: {left!r} is there twice')
            else:
                new[left] = olds
    used = [*void, *(old for olds in new.values() for old in olds)]
    for old in used:
        if old not in known:
            raise ValueError(f'--classes: {old!r} is no class; there are {", ".join(known)}')
        if used.count(old) > 1:
            raise ValueError(f'--classes: {old!r} is there twice')
    others = [name for name in known if name not in used]
    if rest and rest != 'void':
        new.setdefault(rest, []).extend(others)
    if not new:
        raise ValueError('--classes: no class is left; expected at least one')
    ids = dict.fromkeys(range(len(known)), VOID)
    for i, olds in enumerate(new.values()):
        ids |= {known[old]: i for old in olds}
    return tuple(new), ids, tuple(others if not rest else ())


def _classes_of(table: Table) -> list[tuple[str, int]]:
    """Return name and value of a table's classes, which void is not."""
    pairs = zip(table.names, table.values, strict=True)
    return [(name, value) for name, value in pairs if name.lower() not in VOID_NAMES]


def checked(file: Path, names: list[str], values: Iterable[int], colours: list[Colour]) -> Table:
    """Return a table, checked.

    Args:
        file: where it comes from, for messages.
        names: of the classes.
        values: of each in masks of numbers.
        colours: of each, or none.

    Raises:
        ValueError: it is empty or too large, or has something twice.
    """
    if not names:
        raise ValueError(f'{file}: no classes; expected one a line')
    for kind, every in (('name', names), ('value', list(values)), ('colour', colours)):
        twice = next((one for one in every if every.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f'{file}: the {kind} {twice!r} is there twice')
    table = Table(tuple(names), tuple(values), tuple(colours))
    if (count := len(_classes_of(table))) > MOST:
        raise ValueError(f'{file}: {count} classes; expected at most {MOST}')
    if (largest := max(table.values)) > LARGEST:
        raise ValueError(f'{file}: the value {largest}; expected at most {LARGEST}')
    return table


def _colour(file: Path, number: int, numbers: Iterable[str]) -> Colour:
    colour = tuple(map(int, numbers))
    if max(colour) > 255:
        raise ValueError(f'{file}: line {number}: colour {colour}; expected numbers from 0 to 255')
    return colour


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return (number, text) of the lines that are neither empty nor comments."""
    try:
        text = file.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError:
        raise ValueError(f'{file} is no text in UTF-8, expected a class a line') from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith('#')]
