"""What keys have to do with each other; css_jax/config/warnings.py has what is possible but odd.

A value by itself is checked by its key's declaration, where it is filled in (defaults.py).
"""

import difflib
import fnmatch

from ml_collections import ConfigDict

from css_jax import methods, models
from css_jax.config import table
from css_jax.keys import at
from css_jax.methods.method import computing
from css_jax.methods.method import streams as streams_of
from css_jax.models import backbones, published


def known(config: ConfigDict) -> None:
    """Refuse keys that nothing reads, as a slip in a file of configs/ makes them.

    Raises:
        ValueError: a key is declared nowhere; names the nearest.
    """
    every = table.keys()
    groups = {'data.streams', *(path.rpartition('.')[0] for path in every)} - {''}
    for path in unknown(config):
        if path in groups:
            raise ValueError(f'{path}: got {at(config, path)!r}, expected a table of keys')
        place, _, leaf = path.rpartition('.')
        if place in every:
            raise ValueError(f'{place}: got a table of keys ({leaf}), expected a value')
        streams = place.startswith('data.streams.')
        there = [known.rpartition('.') for known in every]
        names = list(table.STREAM) if streams else [name for at, _, name in there if at == place]
        names += [] if place else [at.partition('.')[0] for at, _, _ in there if at]
        near = difflib.get_close_matches(leaf, names, n=1)
        hint = f'; did you mean {place}.{near[0]}?'.replace(' .', ' ') if near else ''
        raise ValueError(f'no key {path}{hint}')


def unknown(config: ConfigDict) -> list[str]:
    """List the paths of a configuration's keys that are declared nowhere."""
    every = table.keys()
    return [
        path
        for path in table.paths(config)
        if not (path in every or (path.startswith('data.streams.') and table.find(path)))
    ]


def values(config: ConfigDict) -> None:
    """Refuse values that contradict each other, in a configuration that is filled in.

    Raises:
        ValueError: a value is impossible; names the key, what came and what was expected.
    """
    method = methods.METHODS[config.method]
    o = config.optimizer
    if o.floor > o.learning_rate:
        raise ValueError(
            f'optimizer.floor: got {o.floor}, expected at most optimizer.learning_rate='
            f'{o.learning_rate}, which it would raise'
        )
    if wrong := published.mismatch(config.model.pretrained, config.model):
        raise ValueError(
            f'model.pretrained: got {config.model.pretrained!r}, whose weights are of {wrong}; '
            'expected weights of this network: a name, a file, or nothing for random ones'
        )
    _multiples(config)
    for name, stream in config.data.streams.items():
        if stream.batch_size % config.accumulate_steps:
            raise ValueError(
                f'data.streams.{name}.batch_size: got {stream.batch_size}, expected a multiple of '
                f'accumulate_steps={config.accumulate_steps}'
            )
    for name, reads in streams_of(method, config.data.streams).items():
        if config.data.streams[name].reads != reads:
            raise ValueError(
                f'data.streams.{name}.reads: got {config.data.streams[name].reads!r}, expected '
                f'{reads!r} for method {config.method}'
            )
    with computing(f'the check of method {config.method}'):
        method.check(config)


def network(config: ConfigDict) -> None:
    """Refuse a network that cannot be built: a family without its backbone, a stride there is not.

    The heads of a method may be named by records; where these are gone, nothing is checked.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    try:
        with computing(f'the heads of method {config.method}'):
            outputs = methods.METHODS[config.method].outputs(config)
    except FileNotFoundError:
        return
    try:
        models.build(config.model, config.num_classes, outputs, axis_name=None)
    except ValueError as error:
        key = f'model.{str(error).split()[0]}'
        said = f'model.{error}' if key in table.KEYS else f'model: {error}'
        raise ValueError(f'{said} (model.backbone={config.model.backbone})') from None


def _multiples(config: ConfigDict) -> None:
    """Refuse crops that the backbone does not take, and evaluations that resize to such sizes."""
    multiple = backbones.MULTIPLES.get(config.model.backbone, 1)
    wanted = f'of {multiple} with model.backbone={config.model.backbone}'
    for name in streams_of(methods.METHODS[config.method], config.data.streams):
        crop = tuple(config.data.streams[name].crop)
        near = tuple(max(1, round(side / multiple)) * multiple for side in crop)
        if crop != near:
            raise ValueError(
                f'data.streams.{name}.crop: got {crop}, expected multiples {wanted}, such as '
                f'{near[0]},{near[1]}'
            )
        patch = config.model.output_stride if config.model.backbone in backbones.PLAIN else 1
        if multiple == 1 and min(crop) < patch:
            raise ValueError(
                f'data.streams.{name}.crop: got {crop}, expected at least {patch} pixels a side, '
                f'a patch of {config.model.backbone}'
            )
    if config.eval.multiple % multiple:
        raise ValueError(f'eval.multiple: got {config.eval.multiple}, expected a multiple {wanted}')


def streams(config: ConfigDict) -> None:
    """Make sure that the method has all its streams.

    Raises:
        ValueError: one is missing; names it and those that are there.
    """
    for name in methods.METHODS[config.method].streams:
        there = sorted(config.data.streams)
        if not fnmatch.filter(there, name):
            raise ValueError(
                f'data.streams: got {there}, but method {config.method} needs {name!r}'
            )
