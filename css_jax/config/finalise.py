"""From a table that a file of configs/ or a flag has set keys of to the one that a run has."""

import pathlib

from ml_collections import ConfigDict, FrozenConfigDict

from css_jax import methods
from css_jax.config import check, defaults, pixels, table
from css_jax.data import sources
from css_jax.keys import choice
from css_jax.methods.method import streams as streams_of
from css_jax.models import published

_Classes = dict[str, tuple[str, int]]  # key of a dataset -> (dataset, how many classes it has)


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
    table.add(config, 'data.streams', ConfigDict())
    for path in table.KEYS:  # a table of an older version, or none of `default`'s
        table.add(config, path, None)
    if config.method is None:
        config.method = table.KEYS['method'].default
    choice('method', config.method, methods.METHODS)
    for path in methods.METHODS[config.method].keys:
        table.add(config, path, None)
    for stream in config.data.streams.values():
        for leaf in table.STREAM:
            table.add(stream, leaf, None)
    check.streams(config)
    _drop(config)

    # A name is what a file of configs/ starts with; a run to start with has a backbone already.
    if config.init_from and config.model.pretrained in published.NAMES:
        config.model.pretrained = ''

    # Of the run that this one starts with, whatever the method's defaults are.
    derived = {
        f'data.{name}': lambda c, i=i: pixels.normalisation(c, workdir)[i] if c.init_from else None
        for i, name in enumerate(('mean', 'std'))
    }
    found = defaults.resolve(config, derived)
    check.values(config)
    every = _classes(config)
    if not config.num_classes:
        config.num_classes, dataset = _most_classes(config, every)
        found['num_classes'] = f'dataset {dataset}'
    if config.num_classes < 2:
        raise ValueError(
            f'num_classes: got {config.num_classes} ({found["num_classes"]}), expected at least 2: '
            'of one class every pixel is right, and nothing is learned'
        )
    check.network(config)
    _check_classes(config, every)
    _check_names(config, every)
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
    needed = list(streams_of(methods.METHODS[config.method], streams))
    for name in needed:  # grows by what these leave out
        needed += {streams[name].exclude} & set(streams) - set(needed)
    for name in set(streams) - set(needed):
        del streams[name]


def _classes(config: ConfigDict) -> _Classes:
    """Return the classes of the evaluation's dataset, then of the streams'.

    A dataset whose classes are noted with its records is left out where these are gone and
    `num_classes` is set, as in a run that has moved.

    Raises:
        ValueError: there is no such dataset.
        FileNotFoundError: its records are not there, and `num_classes` is not set.
    """
    keys = {'eval': config.eval.dataset}
    keys |= {f'data.streams.{name}': s.dataset for name, s in config.data.streams.items()}
    found, counts = {}, {}
    for key, dataset in keys.items():
        try:
            if dataset not in counts:
                counts[dataset] = len(sources.class_names(dataset, config.data.dir))
            found[key] = dataset, counts[dataset]
        except FileNotFoundError:
            if not config.num_classes:
                raise
        except ValueError as error:
            raise ValueError(f'{key}.dataset: {error}') from None
    return found


def _labelled(config: ConfigDict, every: _Classes) -> _Classes:
    """Return those of the streams that have labels."""
    streams = config.data.streams
    return {
        key: found
        for key, found in every.items()
        if key != 'eval' and not streams[key.rpartition('.')[2]].reads.startswith('none')
    }


def _label_sets(labelled: _Classes) -> set[str]:
    return {sources.label_set(dataset) for dataset, _ in labelled.values()}


def _most_classes(config: ConfigDict, every: _Classes) -> tuple[int, str]:
    """Return the classes of the evaluation or, with several label sets, of the largest; and whose.

    With a label set each, a method's heads have numbers of their own.
    """
    labelled = _labelled(config, every)
    if len(_label_sets(labelled)) > 1:
        dataset, count = max(labelled.values(), key=lambda found: found[1])
    else:
        dataset, count = every['eval']
    return count, dataset


def _check_classes(config: ConfigDict, every: _Classes) -> None:
    """Raise ValueError where a dataset has more classes than the network."""
    labelled = _labelled(config, every)
    if len(_label_sets(labelled)) > 1:
        return
    evaluated = {key: found for key, found in every.items() if key == 'eval'}
    for key, (dataset, count) in (evaluated | labelled).items():
        if count > config.num_classes:
            raise ValueError(
                f'num_classes: got {config.num_classes}, but {key} ({dataset}) has {count}'
            )


def _check_names(config: ConfigDict, every: _Classes) -> None:
    """Raise ValueError where the classes that are scored have other names than those learned.

    Datasets with a label set each have heads of their own, and are not compared. A dataset may have
    fewer classes than the network.
    """
    labelled = _labelled(config, every)
    if config.eval.by_number or len(_label_sets(labelled)) != 1 or 'eval' not in every:
        return
    learned, scored = next(iter(labelled.values()))[0], every['eval'][0]
    names, others = (sources.class_names(d, config.data.dir) for d in (learned, scored))
    if (i := sources.renamed(names, others)) is not None:
        raise ValueError(
            f'eval.dataset: {scored} has other classes than {learned}, which is learned: class '
            f'{i} is {others[i]!r} in the first and {names[i]!r} in the second; expected the same '
            'names in the same order, or eval.by_number=True to score them by their numbers'
        )
