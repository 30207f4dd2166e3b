"""What a key has where nobody sets it: the method's default, the dataset's, or the table's.

Precedence: a flag, a file of configs/ (both are values that are set), the method's defaults, those
of the dataset (of the stream that the key is of, else of the evaluation), the key's own.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import methods
from css_jax.config import table
from css_jax.keys import Key, at, check
from css_jax.methods.method import computing, streams

# Dataset -> what runs on it have, by the papers that score it.
DATASETS: dict[str, dict[str, Any]] = {
    'cityscapes': {
        'steps': 80_000,
        'optimizer.learning_rate': 0.0038,
        'eval.protocol': 'sliding',
        'data.streams.*.batch_size': 8,
        'data.streams.*.crop': (768, 768),
        'data.streams.*.resize': (0.5, 2.0),
    }
}
SET = 'set'  # what `resolve` calls the origin of a value that somebody has set


def resolve(config: ConfigDict, derived: Mapping[str, Callable[[Any], Any]]) -> dict[str, str]:
    """Fill in, in place, every key that is None, and check every value by its declaration.

    Args:
        config: unlocked; `config.method` is a method's name.
        derived: key -> function of the configuration that comes before all defaults.

    Returns:
        Path of each key that the method reads -> where its value is from: `SET`, 'method NAME',
        'dataset NAME', 'init_from' (of `derived`), 'from other keys' or 'default'.

    Raises:
        ValueError: a value is impossible; names the key, what came and what was expected.
    """
    return _Resolver(config, derived).run()


def departures(config: ConfigDict, names: tuple[str, ...]) -> list[str]:
    """List 'key=value' of the keys whose value is another than they had if none of them were set.

    Args:
        config: finalised.
        names: the keys; 'data.streams.*.crop' is of every stream.
    """
    column = ConfigDict(config.to_dict())
    every = [path for path in table.paths(column) if any_stream(path) in names]
    for path in every:
        put(column, path, None)
    resolve(column, {})
    pairs = [(path, at(config, path), at(column, path)) for path in every]
    return [f'{path}={value}' for path, value, other in pairs if value != other]


def any_stream(path: str) -> str:
    """Return a path with '*' in place of its stream, if it is of one."""
    parts = path.split('.')
    if path.startswith('data.streams.'):
        parts[2] = '*'
    return '.'.join(parts)


def put(config: ConfigDict, path: str, value: Any) -> None:
    """Set the value at a dotted path of a configuration."""
    place, _, leaf = path.rpartition('.')
    (at(config, place) if place else config)[leaf] = value


def _check_defaults(name: str) -> None:
    """Raise ValueError where a method has a default for a key that it does not read."""
    known = {f'data.streams.*.{leaf}' for leaf in table.STREAM} | {*table.keys(name)} - {'method'}
    for path in methods.METHODS[name].defaults:
        if any_stream(path) not in known:
            near = difflib.get_close_matches(path, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(
                f'method {name}: got a default for {path!r}, expected one of the keys that it '
                f'reads{hint}'
            )


class _Resolver:
    """Resolves keys in any order: a default that reads another key resolves that one first."""

    def __init__(self, config: ConfigDict, derived: Mapping[str, Callable[[Any], Any]]):
        self._config, self._derived = config, derived
        self._method = methods.METHODS[config.method]
        self._keys = table.keys(config.method)
        _check_defaults(config.method)
        self._origins: dict[str, str] = {}
        self._under_way: list[str] = []

    def run(self) -> dict[str, str]:
        for path in self._paths():
            self.value(path)
        return self._origins

    def value(self, path: str) -> Any:
        """Return the value of a key, after filling it in."""
        if path in self._origins:
            return at(self._config, path)
        if path in self._under_way:
            chain = ' -> '.join([*self._under_way, path])
            raise ValueError(f'{path}: its default depends on itself: {chain}')
        value, origin = at(self._config, path), SET
        if value is None:
            self._under_way.append(path)
            value, origin = self._default(path)
            self._under_way.pop()
            put(self._config, path, value)
        # Here, before another key's default takes it for possible.
        check(path, self._declared(path), value, self._elsewhere(path, value))
        self._origins[path] = origin
        return value

    def _declared(self, path: str) -> Key:
        if path.startswith('data.streams.'):
            return table.STREAM[path.split('.')[3]]
        return self._keys[path]

    def _elsewhere(self, path: str, value: Any) -> str:
        """Say with which method a key is as it is, and which others take this value."""
        if path not in self._method.keys:
            return ''
        others = [
            name
            for name, other in methods.METHODS.items()
            if path in other.keys and value in (other.keys[path].choices or ())
        ]
        more = f' (it is one of method {", ".join(others)})' if others else ''
        return f' with method={self._config.method}{more}'

    def _default(self, path: str) -> tuple[Any, str]:
        view = _View(self, self._config, '')
        given = (view,)
        if path.startswith('data.streams.'):
            stream = '.'.join(path.split('.')[:3])
            given += (_View(self, at(self._config, stream), stream),)
        for origin, default in self._sources(path, given):
            with computing(f'{path}: its default'):
                value = default(*given) if callable(default) else default
            if value is not None:
                return value, origin
        raise ValueError(f'{path}: nobody sets it, and it has no default')

    def _sources(self, path: str, given: tuple) -> Iterator[tuple[str, Any]]:
        """Yield (origin, default), the one that comes first first."""
        if path in self._derived:
            yield 'init_from', self._derived[path]
        name = any_stream(path)
        for known in (path, name):
            if known in self._method.defaults:
                yield f'method {self._config.method}', self._method.defaults[known]
        of_stream = name != path
        if of_stream and path.endswith('.reads'):
            read = streams(self._method, self._config.data.streams)
            yield f'method {self._config.method}', read.get(path.split('.')[2])
            yield 'default', 'none'
        if path not in ('eval.dataset', 'eval.split') and not path.endswith('.dataset'):
            dataset = (given[1] if of_stream else given[0].eval).dataset.partition('/')[0]
            if name in DATASETS.get(dataset, {}):
                yield f'dataset {dataset}', DATASETS[dataset][name]
        default = self._declared(path).default
        yield 'from other keys' if callable(default) else 'default', default

    def _paths(self) -> Iterator[str]:
        yield from self._keys
        for stream in self._config.data.streams:
            for leaf in table.STREAM:
                yield f'data.streams.{stream}.{leaf}'


class _View(Mapping):
    """A table as a default's function sees it: reading a key fills it in."""

    def __init__(self, resolver: _Resolver, config: ConfigDict, path: str):
        self._resolver, self._config, self._path = resolver, config, path

    def __getattr__(self, name: str) -> Any:
        path = f'{self._path}.{name}'.lstrip('.')
        if name not in self._config:
            raise AttributeError(f'no key {path}')
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return _View(self._resolver, value, path)
        return self._resolver.value(path)

    def __getitem__(self, name: str) -> Any:
        if name not in self._config:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)
