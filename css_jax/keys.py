"""The declaration of a key of the configuration: what it means, and what it may be.

A key is declared once, in the file that reads it, and its values are checked and read from a
command line by that declaration alone.
"""

import difflib
import math
import unicodedata
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

SIDE = 65_535  # pixels; no JPEG has a longer side
_LARGEST = 32  # factor of a size


class Key(NamedTuple):
    """One key.

    Attributes:
        default: its value where nobody sets it, or a function of the configuration that gives it
            (of a stream's key: of the configuration and the stream's table).
        comment: what it means, with its unit.
        like: an example of its type and, of a tuple, of its length; None: the default is one.
        choices: all that it may be; None: whatever else is asked for here.
        range: least and most of a number.
        expected: for what neither of these says: value -> what was expected, '' for a good one.
        any_length: of a tuple: it may have any number of items.
        only: configuration -> whether it is read at all; None: it always is.
    """

    default: Any
    comment: str
    like: Any = None
    choices: Collection | None = None
    range: tuple[float, float] | None = None
    expected: Callable[[Any], str] | None = None
    any_length: bool = False
    only: Callable[[Any], bool] | None = None

    @property
    def example(self) -> Any:
        """A value of the key's type."""
        return self.default if self.like is None else self.like


def declared(name: str, key: Key) -> Key:
    """Return a declaration, once it is sure that it says of what type its values are.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(key.example, bool | int | float | str | tuple) or key.example == ():
        raise ValueError(
            f'{name}: declared with {key.example!r}, expected a default, or like=, of type bool, '
            'int, float, str or a tuple of these that is not empty'
        )
    return key


def check(name: str, key: Key, value: Any, where: str = '') -> None:
    """Make sure that a value is one that the key may have.

    Args:
        name: the key's path in the configuration, for the message.
        key: its declaration.
        value: what came.
        where: what is added to the list of choices, such as ' with method=css_mix'.

    Raises:
        ValueError: it is not; names the key, what came and what was expected.
    """
    if key.choices is not None:
        choice(name, value, key.choices, where)
    if wanted := _wanted(key, value):
        raise ValueError(f'{name}: got {_shown(value)}, expected {wanted}')


def choice(name: str, value: Any, choices: Iterable, where: str = '') -> None:
    """Raise ValueError, with the nearest choice, unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(one) for one in choices], n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        came = _shown(value)
        raise ValueError(f'{name}: got {came}, expected one of {sorted(choices)}{where}{hint}')


def read(name: str, key: Key, text: str | None) -> Any:
    """Read a value from the text of a command line.

    Args:
        name: the key's path, for the message.
        key: its declaration, which says of what type the value is.
        text: what came; None: the key alone, which stands for true.

    Raises:
        ValueError: the text is of another type; says what was expected.
    """
    kind = type(key.example)
    if text is None:
        text = 'true' if kind is bool else ''
    if kind is tuple:
        return _tuple(name, key, text)
    reader, expected = _READERS[kind]
    try:
        return reader(text)
    except ValueError:
        raise ValueError(f'{name}: got {text!r}, expected {expected}') from None


def at(config: Any, name: str) -> Any:
    """Return the value at a dotted path of a configuration."""
    for part in name.split('.'):
        config = config[part]
    return config


def ascending(value: tuple[float, ...]) -> str:
    """Expect a range; see `Key.expected`."""
    good = len(value) == 2 and 0 < value[0] <= value[1] <= _LARGEST
    return '' if good else f'(low, high) with 0 < low <= high, at most {_LARGEST}'


def share(value: tuple[float, ...]) -> str:
    """Expect a range of shares; see `Key.expected`."""
    good = not ascending(value) and value[1] <= 1
    return '' if good else '(low, high) with 0 < low <= high <= 1'


def factors(value: tuple[float, ...]) -> str:
    """Expect scales; see `Key.expected`."""
    good = value and min(value) > 0 and max(value) <= _LARGEST
    return '' if good else f'one or more factors above 0, at most {_LARGEST}'


def of_dataset(other: Any = None, **values: Any) -> Callable[..., Any]:
    """Return a default that depends on the dataset: a stream's own, else the evaluation's.

    Args:
        other: of a dataset that is not in `values`; None leaves it to the dataset.
        **values: dataset -> value.
    """

    def value(config: Any, *stream: Any) -> Any:
        dataset = (stream[0] if stream else config.eval).dataset
        return values.get(dataset.partition('/')[0], other)

    return value


def size_or_none(value: tuple[int, ...]) -> str:
    """Expect a height and a width, or (0, 0); see `Key.expected`."""
    good = tuple(value) == (0, 0) or (len(value) == 2 and min(value) >= 1 and max(value) <= SIDE)
    return '' if good else f'(height, width), at most {SIDE}, or (0, 0)'


def _boolean(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise ValueError(text)
    return text.lower() == 'true'


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


# Type -> what reads its text, and what that takes.
_READERS = {
    bool: (_boolean, 'true or false'),
    int: (int, 'a whole number such as 1000'),
    float: (_number, 'a number such as 0.1'),
    str: (str, 'a text'),
}
_ITEMS = {int: 'whole numbers', float: 'numbers', str: 'names'}


def _tuple(name: str, key: Key, text: str) -> tuple:
    if key.any_length and text.strip() == '()':
        return ()
    kind = type(key.example[0])
    parts = [part.strip(' \'"') for part in text.strip(' ()[]').removesuffix(',').split(',')]
    try:
        value = tuple(map(_READERS[kind][0], parts)) if all(parts) else ()
    except ValueError:
        value = ()
    if len(value) == len(key.example) or (value and key.any_length):
        return value
    shown = ','.join(map(str, key.example))
    raise ValueError(f'{name}: got {text!r}, expected {_count(key)} {_ITEMS[kind]} such as {shown}')


def _wanted(key: Key, value: Any) -> str:
    """Return what was expected in place of a value, '' for a good one."""
    example = key.example
    if isinstance(example, tuple):
        kind = type(example[0])
        kinds = (int, float) if kind is float else kind
        items = value if isinstance(value, tuple | list) else (None,)
        good = all(isinstance(v, kinds) and not isinstance(v, bool) for v in items)
        good = good and all(map(_plain, items))
        fits = key.any_length or key.expected or len(items) == len(example)
        if not good or not fits:
            return f'{_count(key)} {_ITEMS[kind]} such as {",".join(map(str, example))}'
    if isinstance(example, bool) and not isinstance(value, bool):
        return 'true or false'
    if isinstance(example, str) and not (isinstance(value, str) and _plain(value)):
        return 'a text of one line'
    if isinstance(example, int | float) and not isinstance(example, bool):
        low, high = key.range or (-math.inf, math.inf)
        kinds, named = (int, 'whole ') if isinstance(example, int) else (int | float, '')
        if isinstance(value, bool) or not isinstance(value, kinds):
            return f'a {named}number'
        if not low <= value <= high:
            return f'a number from {low} to {high}'
    return key.expected(value) if key.expected else ''


def _plain(value: Any) -> bool:
    """Say whether a number is finite, or a text has no character that controls a terminal."""
    if isinstance(value, str):
        return not any(unicodedata.category(c) == 'Cc' for c in value)
    return not isinstance(value, float) or math.isfinite(value)


def _shown(value: Any) -> str:
    """Return a value as a message has it, in one line: a table has several."""
    return ' '.join(repr(value).split()) if isinstance(value, ConfigDict) else repr(value)


def _count(key: Key) -> str:
    return 'any number of' if key.any_length else str(len(key.example))
