"""The configuration of a run as a file, DIR/config.json."""

import functools
import json
import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from css_jax.config import check, table
from css_jax.keys import at
from css_jax.methods import METHODS

LOG = logging.getLogger('css_jax')
NAME = 'config.json'
# Keys of older versions -> the value at which `slips` is true.
_SLIPS = {'eight_bit_indicators': True, 'augment.partner': 'first_device'}


def text(config: ConfigDict) -> str:
    """Return what the file has of a configuration."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def read(workdir: str | pathlib.Path) -> ConfigDict:
    """Read the configuration that a run was trained with, for `css_jax.config.finalise`.

    A key that the run has not, as it is newer, is not set. Those of other methods are left out, and
    so is one that nothing reads any more, with a line that names it.

    Raises:
        FileNotFoundError: DIR is not a run's folder.
        ValueError: the file is damaged.
    """
    config = table.default()
    found = values(workdir)
    for name in found['data']['streams']:
        config.data.streams[name] = table.stream('')
    path = ''  # of the key that is read
    try:
        stored = ConfigDict(found)
        gone = check.unknown(stored)
        own = table.keys(stored.method if stored.method in METHODS else None)
        for path in table.paths(stored):
            if path in own or (path.startswith('data.streams.') and path not in gone):
                place, _, leaf = path.rpartition('.')
                (at(config, place) if place else config)[leaf] = at(stored, path)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{_path(workdir)} is not the configuration of a run: {path}: {error!r}'
        ) from None
    scored = {config.eval.dataset} - {stream.dataset for stream in config.data.streams.values()}
    if scored and 'by_number' not in found.get('eval', {}):
        config.eval.by_number = True  # as all datasets were scored when it was written
    if gone:
        shown = ', '.join(f'{path}={at(stored, path)!r}' for path in gone)
        _tell(f'{_path(workdir)}: nothing reads these keys any more: {shown}')
    if slips := [old == at(stored, path) for path, old in _SLIPS.items() if path in gone]:
        config.slips = any(slips) if config.slips is None else config.slips
        if any(slips) != all(slips):
            _tell(f'{_path(workdir)}: this run had one of the slips alone, and slips=True has all')
    return config


@functools.cache
def _tell(line: str) -> None:
    """Log a line once: a command reads the file more than once."""
    LOG.info('%s', line)


def values(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Read the values in the file as they are, lists as tuples.

    Raises:
        FileNotFoundError: DIR is not a run's folder.
        ValueError: the file is damaged.
    """
    path = _path(workdir)
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is missing: expected the folder of a run that --mode train has written to'
        )
    try:
        found = _tuples(json.loads(path.read_text()))
        for key in ('mean', 'std'):
            found['data'][key]
        for group in (found['data']['streams'], found.get('eval', {}), found.get('model', {})):
            dict(group)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not the configuration of a run: {error!r}') from None
    return found


def _path(workdir: str | pathlib.Path) -> pathlib.Path:
    return pathlib.Path(workdir) / NAME


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
