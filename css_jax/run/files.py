"""Files that are written whole or not at all."""

import os
import pathlib


def write(path: str | pathlib.Path, text: str) -> None:
    """Write a file; a process that is killed meanwhile leaves what was there."""
    path = pathlib.Path(path)
    draft = path.with_name(f'{path.name}.tmp')
    draft.write_text(text)
    os.replace(draft, path)


def write_bytes(path: str | pathlib.Path, data: bytes) -> None:
    """Write a file as `write` does."""
    path = pathlib.Path(path)
    draft = path.with_name(f'{path.name}.tmp')
    draft.write_bytes(data)
    os.replace(draft, path)
