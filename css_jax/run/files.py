"""Files that are written whole or not at all."""

import os
import pathlib


def write(path: str | pathlib.Path, content: str | bytes) -> None:
    """Write a file; a process that is killed meanwhile leaves what was there."""
    path = pathlib.Path(path)
    draft = path.with_name(f'{path.name}.tmp')
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(draft, path)
