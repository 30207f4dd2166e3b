"""From a table that a file of configs/ or a flag has set keys of to the one that a run has."""

import pathlib

from ml_collections import ConfigDict, FrozenConfigDict

from css_jax import methods
from css_jax.config import check, defaults, pixels, table
from css_jax.data import sources
from css_jax.keys import choice


def finalise(config: ConfigDict, workdir: str | pathlib.Path | None = None) -> FrozenConfigDict:
    """Fill in every key that is not set, and check all of them.

    Args:
        config: a table as `css_jax.config.default` gives it, changed by a file of configs/ or by
            flags; or one that is finalised, or that a run has stored.
        workdir: the run's folder, see `css_jax.config.pixels.normalisation`.

    Returns:
        A frozen copy with every key of its method, and without the others' keys and without streams
        that the method has no use for.

    Raises:
        ValueError: a value is impossible; names the key, what came and what was expected.
    """
    return _finalised(config, workdir)[0]


def origins(config: ConfigDict, workdir: str | pathlib.Path | None = None) -> dict[str, str]:
    """Return where each value of `finalise(config)` is from: path -> see `defaults.resolve`."""
    return _finalised(config, workdir)[1]


def _finalised(
    config: ConfigDict, workdir: str | pathlib.Path | None
) -> tuple[FrozenConfigDict, dict[str, str]]:
    config = ConfigDict(config.to_dict())
    check.known(config)
    for path in table.KEYS:  # a table of an older version, or none of `default`'s
        table.add(config, path, None)
    config.method = config.method or table.KEYS['method'].default
    choice('method', config.method, methods.METHODS)
    for path in methods.METHODS[config.method].keys:
        table.add(config, path, None)
    for stream in config.data.streams.values():
        for leaf in table.STREAM:
            table.add(stream, leaf, None)
    check.streams(config)
    _drop(config)

    # Of the run that this one starts with, whatever the method's defaults are.
    derived = {
        f'data.{name}': lambda c, i=i: pixels.normalisation(c, workdir)[i] if c.init_from else None
        for i, name in enumerate(('mean', 'std'))
    }
    found = defaults.resolve(config, derived)
    check.values(config)
    if not config.num_classes:
        found['num_classes'] = f'dataset {config.eval.dataset}'
    config.num_classes = _num_classes(config)
    return FrozenConfigDict(config), found


def _drop(config: ConfigDict) -> None:
    """Leave out keys of other methods, and streams that neither the method nor its streams need."""
    own = table.keys(config.method)
    for path in [p for p in table.paths(config) if not p.startswith('data.streams.')]:
        if path not in own:
            *groups, leaf = path.split('.')
            places = [config]
            for group in groups:
                places.append(places[-1][group])
            del places[-1][leaf]
            if groups and not places[-1]:
                del places[-2][groups[-1]]
    streams = config.data.streams
    needed = list(methods.METHODS[config.method].streams)
    for name in needed:  # grows by what these leave out
        needed += {streams[name].exclude} & set(streams) - set(needed)
    for name in set(streams) - set(needed):
        del streams[name]


def _num_classes(config: ConfigDict) -> int:
    """Return as many classes as the datasets have, or as are asked for.

    Raises:
        ValueError: there is no such dataset, or it has more classes than are asked for.
    """
    evaluated = {'eval': config.eval.dataset}
    streams = config.data.streams.items()
    labelled = {f'data.streams.{name}': s.dataset for name, s in streams if s.reads[:4] != 'none'}
    others = {f'data.streams.{name}': s.dataset for name, s in streams if s.reads[:4] == 'none'}
    counts = {}
    for key, dataset in (evaluated | labelled | others).items():
        try:
            counts[key] = len(sources.class_names(dataset))
        except ValueError as error:
            raise ValueError(f'{key}.dataset: {error}') from None
    if len({dataset.partition('/')[0] for dataset in labelled.values()}) > 1:
        # A label set each: the method's heads have their own numbers.
        return config.num_classes or max(counts[key] for key in labelled)
    count = config.num_classes or counts['eval']
    for key, dataset in (evaluated | labelled).items():
        if counts[key] > count:
            raise ValueError(f'num_classes: got {count}, but {key} ({dataset}) has {counts[key]}')
    return count
