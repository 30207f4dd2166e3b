"""The files of a folder by key, which is a path without ending; what is hidden is no file of it."""

import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from data_prep.images import is_image

_MACOS = '__MACOSX'  # in its archives, beside what was packed


def images(folder: Path) -> dict[str, Path]:
    """Return key -> image file of all images in a folder and those in it."""
    return keyed(folder, [file for file in walk(folder) if is_image(file)])


def keyed(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return key -> file.

    Raises:
        ValueError: two files have one key.
    """
    found: dict[str, Path] = {}
    for file in files:
        key = key_of(folder, file)
        if key in found:
            raise ValueError(
                f'{found[key]} and {file.name} have one stem: which belongs to the mask? Expected '
                'one of them, or another name'
            )
        found[key] = file
    return found


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in those in it, sorted, but the hidden ones."""
    for file in sorted(folder.rglob('*')):
        concealed = any(map(hidden, file.relative_to(folder).parts))
        if file.is_file() and not concealed:
            yield file


def hidden(name: str) -> bool:
    """Tell whether a name is that of a hidden file or folder."""
    return name.startswith('.') or name == _MACOS


def key_of(folder: Path, file: Path) -> str:
    """Return a file's path in a folder without ending; letters with accents in one form."""
    key = file.relative_to(folder).with_suffix('').as_posix()
    if not key.isprintable() and any('\ud800' <= letter <= '\udfff' for letter in key):
        raise ValueError(f'{str(file)!a}: a name that is no UTF-8; expected another')
    return unicodedata.normalize('NFC', key)


def more(found: Collection) -> str:
    """Say how many there are beside the first one."""
    return f' and {len(found) - 1} more' if len(found) > 1 else ''
