"""Tables with every key filled in, for what takes a part of a finalised configuration."""

from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax.config import table


def stream(dataset, reads='mask', **overrides):
    """A stream's table by the defaults of its keys."""
    found = configs.stream(dataset, reads=reads, **overrides)
    for leaf, key in table.STREAM.items():
        if found[leaf] is None:
            found[leaf] = key.default
    return found


def data():
    """`config.data` without streams; of its keys those that have a default of their own."""
    found = configs.default().data
    for leaf in found:
        key = table.KEYS.get(f'data.{leaf}')
        if key and not callable(key.default):
            found[leaf] = key.default
    return found


def model(**overrides):
    """`config.model` by the defaults of the networks' keys."""
    keys = {path: key for path, key in configs.keys('css_mix').items() if path.startswith('model.')}
    return ConfigDict({path[6:]: key.default for path, key in keys.items()} | overrides)
