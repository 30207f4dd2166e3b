"""Damaged folders: told by checksums that are kept in them, passed over, or moved out of the way.

What is looked through is a folder of numbered folders, FOLDER/STEP.
"""

import json
import logging
import pathlib
import zlib
from collections.abc import Callable, Collection

LOG = logging.getLogger('css_jax')
SUMS = 'checksums.json'  # path of a file -> [its bytes, its CRC-32]
SUFFIX = '.damaged'  # FOLDER.damaged/STEP is where `move` puts them
_SMALL = 2**16  # bytes; larger files are read only where all is asked for
_BLOCK = 2**22

# A folder and whether to read all of it -> what is wrong with it, None if nothing is.
Check = Callable[[pathlib.Path, bool], str | None]


def sum_up(folder: pathlib.Path, without: Collection[str] = ()) -> None:
    """Read all files of a folder and writes their sizes and checksums to FOLDER/checksums.json.

    Args:
        folder: complete, and not to change any more.
        without: paths of files in it that may still change.
    """
    paths = [path for path in sorted(folder.rglob('*')) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    sums = {
        name: [path.stat().st_size, _crc(path)]
        for name, path in names.items()
        if name not in without
    }
    (folder / SUMS).write_text(json.dumps(sums, indent=1))


def difference(folder: pathlib.Path, whole: bool = True) -> str | None:
    """Compare a folder with its checksums.

    Args:
        folder: one that has some.
        whole: reads every file; otherwise the sizes of all, and the small files.

    Returns:
        The first file that differs, and how; None if none does.
    """
    try:
        for name, (size, crc) in json.loads((folder / SUMS).read_text()).items():
            path = folder / name
            if not path.exists():
                return f'{name} is missing'
            if (got := path.stat().st_size) != size:
                return f'{name} has {got:,} bytes, expected {size:,}'
            if (whole or size <= _SMALL) and _crc(path) != crc:
                return f'{name} does not have the bytes that were written'
    except OSError as error:
        return str(error)
    except (ValueError, TypeError, AttributeError) as error:
        return f'{SUMS} is not a list of checksums: {error}'
    return None


def steps(folder: pathlib.Path) -> list[int]:
    """Return the numbers that folders in FOLDER have for names, ascending."""
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit())


def newest(folder: pathlib.Path, check: Check) -> int | None:
    """Return the newest readable step, None if there is none at all; warns of those after it.

    Raises:
        ValueError: there are some, but none is readable; names them all.
    """
    step, reasons = _newest(folder, check)
    for other, reason in reasons.items():
        warn(folder / str(other), reason, f'step {step} is used')
    return step


def move(folder: pathlib.Path, check: Check) -> None:
    """Move damaged ones to FOLDER.damaged, with a warning; nothing where none is readable.

    Those before the newest readable one are not read as a whole.

    Raises:
        ValueError: there are some, but none is readable; names them all.
    """
    step, reasons = _newest(folder, check)
    older = [other for other in steps(folder) if other < step]
    reasons |= {other: reason for other in older if (reason := check(folder / str(other), False))}
    for other, reason in reasons.items():
        place = folder.with_name(folder.name + SUFFIX) / str(other)
        if before := len(list(place.parent.glob(f'{other}*'))):
            place = place.with_name(f'{other}.{before}')
        place.parent.mkdir(exist_ok=True)
        (folder / str(other)).rename(place)
        warn(folder / str(other), reason, f'moved to {place}; the newest is step {step}')


def warn(folder: pathlib.Path, reason: str, then: str) -> None:
    """Warn of a damaged folder."""
    LOG.warning('warning: %s is damaged: %s; %s', folder, reason, then)


def _newest(folder: pathlib.Path, check: Check) -> tuple[int | None, dict[int, str]]:
    reasons = {}
    for step in reversed(steps(folder)):
        if not (reason := check(folder / str(step), True)):
            return step, reasons
        if (folder / str(step)).exists():  # else the run that trains has removed it
            reasons[step] = reason
    if reasons:
        listed = '; '.join(f'step {step}: {reason}' for step, reason in reasons.items())
        raise ValueError(f'none of {folder} is readable: {listed}')
    return None, {}


def _crc(path: pathlib.Path) -> int:
    crc = 0
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
