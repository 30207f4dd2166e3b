"""Image-level labels: labels.csv says which classes an image shows, where there is no mask."""

import collections
import csv
import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_prep.folder import classes
from data_prep.images import ENDINGS
from data_prep.records import VOID

FILE = 'labels.csv'
_FORM = 'lines of `image, class, class, ...`'
_BACKGROUND = 'background'  # name of class 0, where the tags alone say which classes there are
_HINTS = 5  # images that are not there of which the nearest is looked for, as that takes its time


class Row(NamedTuple):
    """A line of labels.csv.

    Attributes:
        place: its file and number, for messages.
        image: as it names the image.
        names: of classes, as they are written.
    """

    place: str
    image: str
    names: tuple[str, ...]


class Labels(NamedTuple):
    """What the labels.csv of a folder have.

    Attributes:
        rows: image -> its rows; it should have one.
        problems: rows that are of no image, or of nobody knows which, a sentence each.
        unsure: images that such a row may be of.
        content: hash of the files' bytes.
    """

    rows: Mapping[Path, tuple[Row, ...]]
    problems: tuple[str, ...]
    unsure: frozenset[Path]
    content: str


def find(source: Path, images: Mapping[Path, str]) -> Labels | None:
    """Read the labels.csv that lie in a folder, and beside or in its folders of images.

    Args:
        source: the folder.
        images: each image -> its path in the folder of images, without ending.

    Returns:
        What they have; None where there is no such file.

    Raises:
        OSError: one cannot be read.
        ValueError: one has no rows, or is no text.
    """
    roots = {image.parents[key.count('/')] for image, key in images.items()}
    places = {source, *roots, *(root.parent for root in roots)}
    inside = sorted(place for place in places if place.is_relative_to(source))
    files = [f for place in inside for f in sorted(place.iterdir()) if f.name.lower() == FILE]
    files = [file for file in files if file.is_file()]
    rows, problems, unsure = collections.defaultdict(list), [], set()
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents, strict=True):
        known = _Names(file.parent, images)
        for row in _read(file, content, known):
            found = known.of(row.image)
            if len(found) == 1:
                rows[found[0]].append(row)
                continue
            unsure |= {*found}
            problems.append(_not_one(row, found, known, hint=len(problems) < _HINTS))
    if not files:
        return None
    read = {image: tuple(lines) for image, lines in rows.items()}
    digest = hashlib.sha256(b'\0'.join(contents)).hexdigest()
    return Labels(read, tuple(problems), frozenset(unsure), digest)


def table(rows: Iterable[Row]) -> classes.Table:
    """Return the table of classes where the tags alone tell: background, then the alphabet's order.

    A name in small and in capital letters is one class, as it is written most often.

    Raises:
        ValueError: the names are no names, or too many.
    """
    rows = list(rows)
    spelt = collections.Counter(name for row in rows for name in row.names)
    if spelt and set(spelt) <= {'0', '1'}:
        first = next(row for row in rows if row.names)
        raise ValueError(
            f'{first.place}: {first.names[0]!r} as a class; expected the names of the classes that '
            'the image shows, not a column of 0 and 1 for each'
        )
    names: dict[str, str] = {}
    for name, _ in spelt.most_common():
        names.setdefault(_folded(name), name)
    names.pop(_BACKGROUND, None)
    voids = sorted(names.pop(name) for name in classes.VOID_NAMES if name in names)
    every = [_BACKGROUND, *sorted(names.values(), key=_folded), *voids]
    return classes.checked(Path(FILE), every, range(len(every)), [])


def check_background(named: Mapping[str, int]) -> None:
    """Make sure that class 0, which all tagged images have, is still the background.

    Args:
        named: see `classes.Classes`.

    Raises:
        ValueError: it is another class; --classes or --ignore made it so.
    """
    name = next(name for name in named if name.lower() not in classes.VOID_NAMES)
    if named[name] != 0:
        raise ValueError(
            f'with {FILE} the first class must be {name!r}, which every image shows; came '
            f'{"no such class" if named[name] == VOID else "another"} (--classes, --ignore)'
        )


def of(
    rows: Sequence[Row], chosen: classes.Classes, table: classes.Table | None
) -> tuple[int, ...]:
    """Return which classes an image shows, 0 or 1 for each; the background it always does.

    Args:
        rows: of the image; none: background alone.
        chosen: the classes.
        table: that names them, for messages; None: the masks have nothing but numbers.

    Raises:
        ValueError: a name is no class, or two rows say different things; names the line.
    """
    found = []
    for row in rows:
        ids = {_class(row, name, chosen, table) for name in row.names}
        found.append({0} | ids - {VOID})
    for row, shown in zip(rows, found, strict=True):
        if shown != found[0]:
            first, names = rows[0], dict.fromkeys((*rows[0].names, *row.names))
            raise ValueError(
                f'{row.place}: {row.image!r} is there twice, with {_listed(row)} and, in '
                f'{first.place}, {_listed(first)}; expected one line, perhaps '
                f'`{", ".join((row.image, *names))}`'
            )
    return tuple(int(i in found[0]) if found else int(i == 0) for i in range(len(chosen.names)))


def _class(row: Row, name: str, chosen: classes.Classes, table: classes.Table | None) -> int:
    """Return the id of the class that a row names, or `VOID`."""
    if name in chosen.named:
        return chosen.named[name]
    same = [known for known in chosen.named if _folded(known) == _folded(name)]
    if len(same) == 1:
        return chosen.named[same[0]]
    folded = {_folded(known): known for known in chosen.named}
    near = folded[difflib.get_close_matches(_folded(name), folded, n=1, cutoff=0.0)[0]]
    raise ValueError(
        f'{row.place}: got {name!r}, expected one of the {len(chosen.named)} classes; the nearest '
        f'is {near!r}' + ('' if table else ' (no classes.txt names the values of the masks)')
    )


class _Names:
    """The images that lie in a folder, by all that a row may call them."""

    def __init__(self, folder: Path, images: Mapping[Path, str]):
        """Initialise.

        Args:
            folder: has the file of rows.
            images: see `find`; those elsewhere are not called anything.
        """
        self._folder = folder
        self.usual: dict[str, str] = {}  # name in small letters -> as it is, for hints
        self._paths, self._names = collections.defaultdict(set), collections.defaultdict(set)
        for image, key in images.items():
            if image.is_relative_to(folder):
                path = _form(image.relative_to(folder).as_posix())
                bare, ending = _form(key), image.suffix
                for name in (bare, bare + ending, path, path.removesuffix(ending)):
                    self._paths[name].add(image)
                for name in (bare, bare + ending):
                    self._names[name.rpartition('/')[2]].add(image)
                self.usual[(bare + ending).casefold()] = bare + ending

    def of(self, text: str) -> list[Path]:
        """Return the images that may be meant; by a path rather than by a file's name."""
        name = PurePosixPath(_form(text))
        without = name.with_suffix('') if name.suffix.lower() in ENDINGS else name
        for form in map(str, (name, without)):
            for known in (self._paths, self._names):
                if form in known:
                    return sorted(known[form])
        return []

    def path(self, image: Path) -> str:
        """Return the path by which a row may call an image, whatever the others are called."""
        return image.relative_to(self._folder).as_posix()


def _not_one(row: Row, found: Sequence[Path], known: _Names, hint: bool) -> str:
    """Say that a row is of no image or of several."""
    if found:
        paths = [known.path(image) for image in found]
        more = f' or {len(paths) - 2} more' if len(paths) > 2 else ''
        return (
            f'{row.place}: {row.image!r} may be {paths[0]} or {paths[1]}{more}; expected the path '
            'of one'
        )
    if not row.image:
        return f'{row.place}: no image before {row.names[0]!r}; expected {_FORM}'
    near = hint and difflib.get_close_matches(_form(row.image).casefold(), known.usual, 1, 0.0)
    nearest = f'; the nearest is {known.usual[near[0]]!r}' if near else ''
    header = row.place.endswith('line 1')
    return f'{row.place}: there is no image {row.image!r}{nearest}' + (
        ' (a line of headings begins with `image`)' if header else ''
    )


def _read(file: Path, content: bytes, known: _Names) -> list[Row]:
    """Return the rows of a file, of which the first may be headings."""
    try:
        lines = content.decode('utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise ValueError(
            f'{file} is no text in UTF-8 (in Excel "CSV UTF-8"); expected {_FORM}'
        ) from None
    # Excel writes semicolons where the comma is in numbers. Those in quotes separate nothing.
    first = next(filter(None, (re.search('[,;]', re.sub('"[^"]*"', '', s)) for s in lines)), None)
    rows = []
    for number, line in enumerate(lines, 1):
        cells = csv.reader([line], delimiter=first[0] if first else ',', skipinitialspace=True)
        try:
            image, *names = [cell.strip() for cell in next(cells)] or ['']  # of an empty line
        except csv.Error as error:
            raise ValueError(f'{file}: line {number}: {error}; expected {_FORM}') from None
        names = tuple(filter(None, names))  # programs end lines with as many commas as others have
        if image or names:
            rows.append(Row(f'{file}: line {number}', image, names))
    if rows and rows[0].image.lower() == 'image' and not known.of(rows[0].image):
        del rows[0]
    if not rows:
        raise ValueError(f'{file} has no rows; expected {_FORM}')
    return rows


def _listed(row: Row) -> str:
    return ', '.join(row.names) or 'no class'


def _form(path: str) -> str:
    """Return a path in one form of letters with accents, and of slashes."""
    return unicodedata.normalize('NFC', path).replace('\\', '/').removeprefix('./')


def _folded(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()
