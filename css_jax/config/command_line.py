"""The configuration that a command line asks for: --config FILE[:ARGUMENT] and --config.KEY=VALUE.

FILE is a path, or the name of a file in configs/: `voc` is configs/voc.py, in whatever folder the
command runs.
Keys and values are held against the table that the file gives, so that every mistake is answered
in words, with the nearest name, before anything is built.
"""

import difflib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax.config import table
from css_jax.keys import Key, read

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'  # also where the package is installed


def split(argv: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """Take the changes to the configuration out of a command line.

    Args:
        argv: its arguments. Changes are '--config.KEY=VALUE', '--config.KEY VALUE' and, for what
            is true or false, '--config.KEY' and '--noconfig.KEY'; one '-' will do.

    Returns:
        The other arguments; key -> text, the last where a key comes twice, None where none is.
    """
    others, changes, left = [], {}, list(argv)
    while left:
        argument = left.pop(0)
        found = re.fullmatch(r'--?(no)?config\.([^=]*)(?:=(.*))?', argument, re.DOTALL)
        if not found:
            others.append(argument)
            continue
        no, key, text = found.groups()
        if no:
            text = 'false'
        elif text is None and left and not re.match('--?[a-zA-Z]', left[0]):  # -1 is a value
            text = left.pop(0)
        changes[key] = text
    return others, changes


def arguments(changes: Mapping[str, str | None]) -> list[str]:
    """Return the command-line arguments of changes, as `split` reads them."""
    return [
        f'--config.{key}' + ('' if text is None else f'={text}') for key, text in changes.items()
    ]


def load(path: str, changes: Mapping[str, str | None] | None = None) -> ConfigDict:
    """Return the table that `get_config` of FILE[:ARGUMENT] gives, locked.

    Args:
        path: FILE[:ARGUMENT], see above.
        changes: those of the command line, see `split`; none are made. A `get_config` that has a
            parameter of this name gets them: where settings follow from data, it has to know
            which.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file with a `get_config`, or that takes no such argument; or
            whatever it raises.
    """
    if not path.isprintable():
        raise ValueError(
            f'--config: got {path!r}, expected FILE[:ARGUMENT] of printable characters'
        )
    file, *argument = path.split(':', 1)
    file = found(file)
    if not pathlib.Path(file).is_file():
        folder = pathlib.Path(file).parent
        known = [*map(str, folder.glob('*.py')), *names()]
        near = difflib.get_close_matches(file, known, n=1)
        raise FileNotFoundError(f'--config={path}: there is no file {file!r}{_meant(near)}')
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    if spec is None:
        raise ValueError(f'--config={path}: got {file!r}, expected a file of Python')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
        raise ValueError(f'--config={path}: {file!r} has no function get_config')
    signature = inspect.signature(module.get_config)
    more = {'changes': dict(changes or {})} if 'changes' in signature.parameters else {}
    try:
        signature.bind(*argument, **more)
    except TypeError as error:
        expected = file if argument else f'{file}:ARGUMENT'
        raise ValueError(f'--config={path}: expected {expected} ({error})') from None
    return module.get_config(*argument, **more).lock()


def names() -> list[str]:
    """List the names of the files in configs/ that make a configuration."""
    there = sorted(file.stem for file in CONFIGS.glob('*.py'))
    return [name for name in there if name not in ('__init__', 'arguments', 'stored')]


def found(file: str) -> str:
    """Return the path of a file of configurations that is given by its path or by its name.

    A path that is there comes first. 'configs/voc.py' is found from any folder, as 'voc' is.
    """
    path = pathlib.Path(file)
    if path.is_file() or path.stem not in names():
        return file
    by_name = file == path.stem or path.parts == (CONFIGS.name, f'{path.stem}.py')
    return str(CONFIGS / f'{path.stem}.py') if by_name else file


def values(config: ConfigDict, changes: Mapping[str, str | None]) -> dict[str, Any]:
    """Read the changes of a command line as values of the types that the keys have.

    Args:
        config: the table; nothing in it is changed.
        changes: dotted key -> text, or None; see `split`.

    Returns:
        Dotted key -> value, for `config.update_from_flattened_dict`.

    Raises:
        ValueError: there is no such key, or the text is no such value; names the key, what came
            and what was expected.
    """
    return {path: read(path, _declared(config, path), text) for path, text in changes.items()}


def _declared(config: ConfigDict, path: str) -> Key:
    """Return a key's declaration.

    Raises:
        ValueError: the configuration has no such key; names the nearest.
    """
    tables = dict(_tables(config))
    place, _, name = path.rpartition('.')
    if path in tables:
        known = ', '.join(tables[path])
        raise ValueError(f'{path!r} is a table, expected one of its keys: {known}')
    declared = table.find(path)
    if place in tables and name in tables[place] and declared:
        return declared

    paths = [f'{place}.{name}'.lstrip('.') for place, there in tables.items() for name in there]
    near = [known for known in paths if known.endswith(f'.{path}')]
    near = near or difflib.get_close_matches(path, paths, n=1)
    while place not in tables:
        place = place.rpartition('.')[0]
    there = f' ({place} has {", ".join(tables[place])})' if place else ''
    raise ValueError(f'no key {path!r}{_meant(near)}{there}')


def _tables(config: ConfigDict, path: str = '') -> Iterator[tuple[str, ConfigDict]]:
    """Yield (dotted key, table) of a table and of all that are in it; its own key is `path`."""
    yield path, config
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _tables(value, f'{path}.{name}'.lstrip('.'))


def _meant(near: list[str]) -> str:
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
