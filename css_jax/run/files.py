"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib


def write(path: str | pathlib.Path, content: str | bytes) -> None:
    """Write a file; a process that is killed meanwhile leaves what was there.

    Raises:
        OSError: it cannot be written; names it. A full disk's own error does not.
    """
    path = pathlib.Path(path)
    draft = path.with_name(f'{path.name}.tmp')
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
