"""Published archives: fetched once, read where they lie, never unpacked.

A tar or zip file is read member by member straight into the records. Its members' names are checked
all the same: an archive that names files outside its own folder is not what was published.
"""

import contextlib
import functools
import gzip
import hashlib
import http.client
import lzma
import os
import re
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without an answer
# A member may be so many times as large as what it is packed in; annotations in JSON are 5 times.
_RATIO = 100
_SMALL = 1 << 20  # bytes that any member may have
_KINDS = {40: 'sha1', 64: 'sha256'}  # hexadecimal digits of a published checksum -> its kind

Members = dict[str, Callable[[], bytes]]


class Entry(NamedTuple):
    """A file of a folder or of an archive.

    Attributes:
        shown: its name, for messages.
        read: returns its bytes; may raise as `members` does.
    """

    shown: str
    read: Callable[[], bytes]


def members(file: Path) -> Members:
    """Open an archive whose members can be read in any order: a zip, or a tar not compressed.

    Args:
        file: the archive.

    Returns:
        Name -> function that reads the member's bytes; regular files only. A zip stays open as long
        as these live.

    Raises:
        ValueError: the archive is damaged or cut short, or encrypted (reading a member may raise
            it too), or a member is a link, lies outside the archive's folder, is there twice or
            is far larger than what it is packed in; names it.
    """
    with _in_words(file):
        if file.suffix == '.zip':
            return _zip_members(file)
        found: Members = {}
        with tarfile.open(file, 'r:') as archive:
            for member in archive:
                if _is_file(file, member):
                    place = member.name, member.offset_data, member.size
                    name = _new_name(file, member.name, found)
                    found[name] = functools.partial(_read_range, file, *place)
            _read_range(file, 'its end', archive.offset, tarfile.BLOCKSIZE)  # tarfile needs none
    return found


def walk(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Read a tar file, compressed or not, from its beginning to its end, with progress.

    A compressed tar has no random access: every step back would unpack it from its beginning.

    Args:
        file: the archive.
        wanted: tells from its name whether a member is to be read.

    Yields:
        (name, bytes) of the wanted members that are regular files, in the archive's order.

    Raises:
        ValueError: as in `members`; also where only the last member is at fault.
    """
    size, seen = file.stat().st_size, set()
    with (
        _in_words(file),
        file.open('rb') as raw,
        tqdm.wrapattr(raw, 'read', total=size, desc=file.name) as counted,
        tarfile.open(fileobj=counted, mode='r|*', bufsize=_CHUNK) as archive,
    ):
        for member in archive:
            _check_size(file, member.name, member.size, size)
            if _is_file(file, member) and wanted(_name(member.name)):
                seen.add(name := _new_name(file, member.name, seen))
                yield name, archive.extractfile(member).read()


def tree(source: Path, pattern: re.Pattern[str], spool: Path) -> dict[str, Entry]:
    """Find files by their names in a folder, or in an archive, which can be a compressed tar.

    What is wanted of a compressed tar is first copied to a file in `spool` that has no name, so
    that nothing is left of it whatever happens; it takes as much disk as these files.

    Args:
        source: folder, .zip, .tar, or compressed tar.
        pattern: matches the whole path of each wanted file; its first group is the path without
            the folders above what was published.
        spool: folder for that copy.

    Returns:
        First group -> the file, sorted. They can be read in any order.

    Raises:
        ValueError: as in `members`, or two files have one path; names them.
        OSError: a folder cannot be read, or the disk is full.
    """
    if source.is_dir():
        walked = os.walk(source, onerror=_raise, followlinks=True)
        paths = [Path(folder, name) for folder, _, names in walked for name in names]
        found = {path.relative_to(source).as_posix(): path.read_bytes for path in paths}
        shown = '{0}/{1}'
    else:
        ordered = source.suffix in ('.zip', '.tar')
        found = members(source) if ordered else _spooled(source, pattern, spool)
        shown = '{0}: {1}'
    wanted: dict[str, Entry] = {}
    for name, read in found.items():
        if match := pattern.fullmatch(name):
            entry = Entry(shown.format(source, name), read)
            if match[1] in wanted:
                raise ValueError(
                    f'{source}: {wanted[match[1]].shown} and {entry.shown} are both {match[1]}; '
                    'expected one of them'
                )
            wanted[match[1]] = entry
    return dict(sorted(wanted.items()))


def require(file: Path, found: Members, names: Iterable[str]) -> None:
    """Raise ValueError that names the first of `names` the archive does not have."""
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise ValueError(f'{file}: there is no {missing} in it')


def fingerprint(file: Path, published: str = '') -> dict[str, int | str | bool]:
    """Tell which file it was; reads it, with progress.

    Args:
        file: the archive.
        published: its SHA-256 or SHA-1 as published; '': nothing is known of it.

    Returns:
        {'bytes', 'sha256'} and, where something is known, 'published': whether this is that file.
    """
    noted = {'bytes': file.stat().st_size, 'sha256': checksum(file)}
    if published:
        kind = _KINDS[len(published)]
        came = noted['sha256'] if kind == 'sha256' else checksum(file, kind)
        noted['published'] = came == published
    return noted


def checksum(file: Path, kind: str = 'sha256') -> str:
    """Return a checksum of a file as hexadecimal digits: 64 of 'sha256', 40 of 'sha1'."""
    digest, size = hashlib.new(kind), file.stat().st_size
    with (
        file.open('rb') as raw,
        tqdm(total=size, desc=f'{_shown(kind)} of {file.name}', unit='B', unit_scale=True) as bar,
    ):
        while chunk := raw.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def download(url: str, file: Path, published: str = '') -> None:
    """Fetch a file, with progress; an earlier attempt that was cut short is continued.

    Until it is complete and checked it is called `file` + '.part'.

    Args:
        url: http or https address.
        file: where it goes.
        published: its SHA-256 or SHA-1; '': unknown, nothing to compare with.

    Raises:
        OSError: no answer, or the connection broke; what has arrived is kept.
        KeyboardInterrupt: Ctrl-C; the same.
        ValueError: the file is not the published one; it is removed.
    """
    part = file.with_name(f'{file.name}.part')
    try:
        _fetch(url, part)
    except (OSError, http.client.HTTPException, KeyboardInterrupt) as error:
        kept = f'; what has arrived is kept in {part}, run again to go on' if part.exists() else ''
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(url + kept) from error
        raise OSError(f'{url}: {error}{kept}') from error
    if published and (came := checksum(part, kind := _KINDS[len(published)])) != published:
        part.unlink()
        raise ValueError(f'{url}: expected {_shown(kind)} {published}, came {came}; removed')
    part.rename(file)


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what it lacks, or writes it anew where the server cannot go on."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if not have or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # as long as the file or longer: what it is nobody knows
        return _fetch(url, part)
    with answer:
        have = have if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        rest = answer.headers['Content-Length']
        total = have + int(rest) if rest else None
        progress = {'total': total, 'initial': have, 'unit': 'B', 'unit_scale': True}
        with part.open('ab' if have else 'wb') as out, tqdm(desc=part.stem, **progress) as bar:
            while chunk := answer.read(_CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    came = part.stat().st_size
    if total is not None and came != total:
        raise OSError(f'the connection ended after {came:,} of {total:,} bytes')


def _shown(kind: str) -> str:
    """Write 'sha256' as 'SHA-256'."""
    return kind.upper().replace('SHA', 'SHA-')


def _zip_members(file: Path) -> Members:
    archive = zipfile.ZipFile(file)
    for info in archive.infolist():
        _check_name(file, info.filename, is_link=stat.S_ISLNK(info.external_attr >> 16))
        _check_size(file, info.filename, info.file_size, info.compress_size)
    found: Members = {}
    for info in archive.infolist():
        if not info.is_dir():
            name = _new_name(file, info.filename, found)
            found[name] = functools.partial(_read_zip, archive, info)
    return found


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    file = Path(archive.filename)
    with _in_words(file):
        try:
            return archive.read(info.filename)  # compares its checksum, too
        except RuntimeError as error:  # encrypted, or compressed in a way zipfile does not know
            raise ValueError(
                f'{file}: its member {info.filename!r} cannot be read ({error}); '
                'expected the archive as published'
            ) from error


def _read_range(file: Path, name: str, start: int, size: int) -> bytes:
    with file.open('rb') as raw:
        raw.seek(start)
        data = raw.read(size)
    if len(data) != size:
        raise ValueError(_damaged(file, f'{name} is cut short'))
    return data


def _raise(error: OSError) -> None:
    raise error


def _spooled(file: Path, pattern: re.Pattern[str], folder: Path) -> Members:
    """Copy what matches out of a compressed tar to one file without a name, to read it there."""
    spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 open as long as the members live
    found: Members = {}
    for name, data in walk(file, lambda name: pattern.fullmatch(name) is not None):
        found[name] = functools.partial(_read_spool, spool, spool.tell(), len(data))
        spool.write(data)
    return found


def _read_spool(spool: IO[bytes], start: int, size: int) -> bytes:
    spool.seek(start)  # writes what is still in its buffer
    return spool.read(size)


def _is_file(file: Path, member: tarfile.TarInfo) -> bool:
    """Check a tar's member, and tell whether it is a regular file (otherwise a folder)."""
    _check_name(file, member.name, is_link=not (member.isfile() or member.isdir()))
    if member.issparse():
        raise ValueError(f'{file}: refused: its member {member.name!r} is stored with holes')
    return member.isfile()


def _check_name(file: Path, name: str, is_link: bool) -> None:
    path = PurePosixPath(name)
    if is_link:
        raise ValueError(f'{file}: refused: its member {name!r} is a link, not a file')
    if path.is_absolute() or '..' in path.parts:
        raise ValueError(f'{file}: refused: its member {name!r} lies outside its folder')


def _check_size(file: Path, name: str, size: int, packed: int) -> None:
    """Refuse a member of `size` bytes that come from `packed` bytes, as zeros of a bomb do."""
    if size > max(_SMALL, _RATIO * packed):
        raise ValueError(
            f'{file}: refused: its member {name!r} has {size:,} bytes, packed in {packed:,}; '
            f'expected at most {_RATIO} times as many'
        )


def _name(name: str) -> str:
    """Write './a/b' as 'a/b'."""
    return str(PurePosixPath(name))


def _new_name(file: Path, name: str, seen: Container[str]) -> str:
    """Return `_name`; of two members of one name nobody knows which is meant."""
    if _name(name) in seen:
        raise ValueError(f'{file}: refused: its member {_name(name)!r} is there twice')
    return _name(name)


@contextlib.contextmanager
def _in_words(file: Path) -> Iterator[None]:
    """Turn what the libraries raise on broken archives into one ValueError."""
    broken = (
        tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError,
        EOFError, NotImplementedError,  # the last: zipfile's, of a version no archive has
    )  # fmt: skip
    try:
        yield
    except broken as error:
        raise ValueError(_damaged(file, error)) from error


def _damaged(file: Path, why: object) -> str:
    return f'{file} is damaged or cut short ({why}); expected the whole archive as published'
