"""The configuration a command line asks for: --config FILE[:ARGUMENT] and --config.KEY=VALUE.

Keys and values are held against the table that the file gives, so that every mistake is answered
in words, with the nearest name, before anything is built.
"""

import difflib
import importlib.util
import inspect
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict


def _boolean(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise ValueError(text)
    return text.lower() == 'true'


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


# Type of a key -> what reads its text, and what that takes.
READERS = {
    bool: (_boolean, 'true or false'),
    int: (int, 'a whole number such as 1000'),
    float: (_number, 'a number such as 0.1'),
    str: (str, 'a text'),
}
# Keys of tuples, by their last name: an example, of their length and of the type of their items.
TUPLES = {
    'profile': (0, 0),
    'crop': (64, 64),
    'pad_to': (512, 512),
    'window': (768, 768),
    'resize': (0.5, 1.5),
    'blur_sigma': (0.15, 1.15),
    'scales': (0.5, 1.0, 1.5),
    'mean': (0.485, 0.456, 0.406),
    'std': (0.229, 0.224, 0.225),
    'remat': ('layer3', 'layer4'),
}
ANY_LENGTH = ('scales', 'remat')


def split(argv: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """Takes the changes to the configuration out of a command line.

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
    """Gives the command-line arguments of changes, as `split` reads them."""
    return [
        f'--config.{key}' + ('' if text is None else f'={text}') for key, text in changes.items()
    ]


def load(path: str) -> ConfigDict:
    """Gives the table that `get_config` of FILE[:ARGUMENT] gives, locked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file with a `get_config`, or that takes no such argument; or
            whatever it raises.
    """
    file, *argument = path.split(':', 1)
    folder = pathlib.Path(file).parent
    if not pathlib.Path(file).is_file():
        near = difflib.get_close_matches(file, map(str, folder.glob('*.py')), n=1)
        raise FileNotFoundError(f'--config={path}: there is no file {file!r}{_meant(near)}')
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    if spec is None:
        raise ValueError(f'--config={path}: got {file!r}, expected a file of Python')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
        raise ValueError(f'--config={path}: {file!r} has no function get_config')
    try:
        inspect.signature(module.get_config).bind(*argument)
    except TypeError as error:
        expected = file if argument else f'{file}:ARGUMENT'
        raise ValueError(f'--config={path}: expected {expected} ({error})') from None
    return module.get_config(*argument).lock()


def values(config: ConfigDict, changes: Mapping[str, str | None]) -> dict[str, Any]:
    """Reads the changes of a command line as values of the types that the table has.

    Args:
        config: the table; nothing in it is changed.
        changes: dotted key -> text, or None; see `split`.

    Returns:
        Dotted key -> value, for `config.update_from_flattened_dict`.

    Raises:
        ValueError: there is no such key, or the text is no such value; names the key, what came
            and what was expected.
    """
    return {key: _value(key, text, _type(config, key)) for key, text in changes.items()}


def _type(config: ConfigDict, key: str) -> type:
    tables = dict(_tables(config))
    path, _, name = key.rpartition('.')
    if key in tables:
        raise ValueError(f'{key!r} is a table, expected one of its keys: {", ".join(tables[key])}')
    if path in tables and name in tables[path]:
        return tables[path].get_type(name)  # of a key without a value too

    keys = [f'{path}.{name}'.lstrip('.') for path, table in tables.items() for name in table]
    near = [known for known in keys if known.endswith(f'.{key}')]
    near = near or difflib.get_close_matches(key, keys, n=1)
    while path not in tables:
        path = path.rpartition('.')[0]
    there = f' ({path} has {", ".join(tables[path])})' if path else ''
    raise ValueError(f'no key {key!r}{_meant(near)}{there}')


def _tables(table: ConfigDict, path: str = '') -> Iterator[tuple[str, ConfigDict]]:
    """Gives (dotted key, table) of a table and of all that are in it; its own key is `path`."""
    yield path, table
    for name, value in table.items():
        if isinstance(value, ConfigDict):
            yield from _tables(value, f'{path}.{name}'.lstrip('.'))


def _value(key: str, text: str | None, kind: type) -> Any:
    if text is None:
        text = 'true' if kind is bool else ''
    if kind is tuple:
        return _tuple(key, text)
    read, expected = READERS[kind]
    try:
        return read(text)
    except ValueError:
        raise ValueError(f'{key}: got {text!r}, expected {expected}') from None


def _tuple(key: str, text: str) -> tuple:
    name = key.rpartition('.')[2]
    example, any_length = TUPLES[name], name in ANY_LENGTH
    if any_length and text.strip() == '()':
        return ()
    read, _ = READERS[type(example[0])]
    parts = [part.strip(' \'"') for part in text.strip(' ()[]').removesuffix(',').split(',')]
    try:
        value = tuple(map(read, parts)) if all(parts) else ()
    except ValueError:
        value = ()
    if len(value) == len(example) or (value and any_length):
        return value
    count = 'any number of' if any_length else len(example)
    kind = {int: 'whole numbers', float: 'numbers', str: 'names'}[type(example[0])]
    shown = ','.join(map(str, example))
    raise ValueError(f'{key}: got {text!r}, expected {count} {kind} such as {shown}')


def _meant(near: list[str]) -> str:
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
