"""What a run starts with other than random weights: a backbone's file, or another run.

`config.model.pretrained` is a file of backbone weights or the name of published ones,
`config.init_from` the folder of a run.
Both are read before a fresh run writes anything; one that resumes from a checkpoint needs neither
(but is given the same names: these are part of what it was trained with).
"""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax import methods, state
from css_jax.data import sources
from css_jax.keys import at
from css_jax.methods import Method
from css_jax.methods.method import computing
from css_jax.models import published
from css_jax.models.backbones import Pixels, pixels
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from css_jax.state import Context
from css_jax.weights import files, layouts, named, reference

LOG = logging.getLogger('css_jax')
_COPY = 'teacher (a copy of the student)'
Arrays = dict[str, np.ndarray]


def load(config: ConfigDict, method: Method, ctx: Context) -> dict[str, Arrays]:
    """Read what a fresh run starts with, and say what that is.

    Args:
        config: finalised.
        method: the run's.
        ctx: network and configuration.

    Returns:
        'student', 'teacher', 'memory' -> path -> array, for `css_jax.state.create`; {} where the
        run starts from random weights.

    Raises:
        ValueError: both sources are named; the file or run does not fit this network or its
            pixels; names the arrays, both shapes and the likely cause. Or it holds NaN.
        FileNotFoundError: there is no such file or run, or what a name stands for is not here and
            cannot be had, see `css_jax.weights.named`.
        OSError: it cannot be downloaded.
    """
    if config.init_from and config.model.pretrained:
        raise ValueError(
            f'init_from={config.init_from} and model.pretrained={config.model.pretrained}: '
            'expected one of them, as the run has a backbone already'
        )
    found: dict[str, Arrays] = {}
    if config.init_from:
        found = _from_run(config, method, ctx)
    elif config.model.pretrained:
        found = _from_file(config, ctx)
    with computing(f'what method {config.method} starts with'):
        given = method.given(config, _named)
        _check_given(given, method, ctx)
    key = 'init_from' if config.init_from else 'model.pretrained'
    _check_finite(found, f'{key}={at(config, key)}')
    _check_finite(given, f'what method {config.method} starts with')
    return {part: {**found.get(part, {}), **given.get(part, {})} for part in {**found, **given}}


def _check_finite(start: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Raise ValueError where arrays hold NaN: a run would end at its first step."""
    if wrong := state.not_finite(state.flat(start)):
        raise ValueError(
            f'{source}: {len(wrong)} arrays hold numbers that are not finite, such as {wrong[0]}; '
            'expected weights of a run that has not diverged'
        )


def _check_given(given: Mapping[str, Mapping[str, Any]], method: Method, ctx: Context) -> None:
    """Raise ValueError unless all that a method gives has a place in the state, of its shape."""
    if not given:
        return
    there = {part: state.flat(like) for part, like in state.networks(method, ctx).items()}
    there['memory'] = state.flat(jax.eval_shape(lambda: method.init_memory(ctx.config)))
    for part, arrays in given.items():
        for path, array in arrays.items():
            expected = there[part][path].shape if path in there[part] else 'nothing'
            if expected != array.shape:
                raise ValueError(f'{part} {path}: got {array.shape}, expected {expected}')


def _named(path: str, key: str) -> Arrays:
    """Read the file that a key of a method names."""
    files.check(path, key)
    return files.read(path)


def differences(arrays: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """Say in words what of a network is missing in `arrays` or has another shape there.

    Args:
        arrays: path -> array.
        shapes: path -> what has a shape.
    """
    found = []
    for path, like in shapes.items():
        if path not in arrays:
            found.append(f'{path} is missing')
        elif arrays[path].shape != like.shape:
            found.append(f'{path} has {arrays[path].shape}, expected {like.shape}')
    return found


def described(config: ConfigDict) -> str:
    """Name a configuration's network in the words of its keys."""
    keys = ('family', 'backbone', 'stem', 'width', 'head_convs', 'representation_dim')
    model = ', '.join(f'model.{key}={config.model[key]}' for key in keys if key in config.model)
    return f'method={config.method}, num_classes={config.num_classes}, {model}'


def _from_file(config: ConfigDict, ctx: Context) -> dict[str, Arrays]:
    path, layout = config.model.pretrained, layouts.of(config.model.backbone)
    if path in published.NAMES:
        path = named.path(path, 'model.pretrained')
    files.check(path, 'model.pretrained', f'one of {", ".join(published.NAMES)} or ')
    shapes = state.flat(state.shapes(ctx))
    backbone = {name: like for name, like in shapes.items() if '/backbone/' in name}
    arrays = files.read(path)
    try:
        taken, prefix, ignored = layouts.backbone(arrays, backbone, layout)
    except ValueError as error:
        m = config.model
        raise ValueError(
            f'model.pretrained={m.pretrained} does not fit the network (backbone={m.backbone}, '
            f'stem={m.stem}, width={m.width}): {error}'
        ) from None
    count = sum(array.size for name, array in taken.items() if name.startswith('params/'))
    LOG.info('backbone from %s: %d arrays, %s parameters', path, len(taken), f'{count:,}')
    if prefix:
        LOG.info('  found there as %s*, among %d arrays', prefix, len(arrays))
    fresh = {name.split('/')[1] for name in shapes if name not in taken}
    LOG.info('  not in it, so fresh: %s', ', '.join(sorted(fresh)))
    if ignored:
        LOG.info('  in it and not used: %s', reference.listed(ignored))
    expected = pixels(config.model)
    if not _same(expected, config):
        LOG.warning(
            'warning: data.mean=%s, data.std=%s, but these weights were trained with %s, %s',
            *(tuple(config.data.mean), tuple(config.data.std), *expected),
        )
    return {'student': taken}


def _from_run(config: ConfigDict, method: Method, ctx: Context) -> dict[str, Arrays]:
    """Take the backbone of a run, and what else of it fits: another task has other class layers.

    A layer is taken as a whole, or is fresh; so is one of as many classes with other names. The
    memory is of what the networks say, and is taken with all of their layers alone. See `load` for
    the arguments and what is raised.
    """
    workdir, source = config.init_from, run_folder.load(config.init_from)
    if not _same(Pixels(source.data.mean, source.data.std), config):
        raise ValueError(
            f'init_from={workdir} was trained with data.mean={source.data.mean}, '
            f'data.std={source.data.std}; expected the same here, got {config.data.mean}, '
            f'{config.data.std} (leave them out to take its own)'
        )
    step = checkpoint.find(workdir, 'last')
    saved = checkpoint.restore_arrays(workdir, step, ('student', 'teacher', 'memory'))
    given, fresh = {}, set()
    others, renamed = _renamed(source, config, method, ctx)
    for part, like in state.networks(method, ctx).items():
        shapes, arrays = state.flat(like), saved[part]
        if not arrays and part == 'teacher':
            fresh |= {_COPY} if shapes else set()
            continue
        there = {_module(path) for path in arrays}
        absent = {m for path in shapes if (m := _module(path)) not in there and m[:5] == 'head_'}
        shapes = {path: leaf for path, leaf in shapes.items() if _module(path) not in absent}
        other = {_layer(path) for path, leaf in shapes.items() if not _fits(arrays, path, leaf)}
        other |= {_layer(path) for path in shapes} & renamed
        if any(layer.startswith('backbone/') for layer in other):
            wrong = differences(arrays, shapes)
            raise ValueError(
                f'init_from={workdir}: its {part} is of another network: '
                f'{reference.listed(wrong)}. There: {described(source)}. Here: {described(config)}'
            )
        given[part] = {path: arrays[path] for path in shapes if _layer(path) not in other}
        fresh |= absent | other
    memory = state.flat(jax.eval_shape(lambda: method.init_memory(config)))
    taken = not fresh - {_COPY}
    if memory and taken and _shapes(memory) == _shapes(saved['memory']):
        given['memory'] = saved['memory']
    elif memory:
        fresh.add('memory')
    LOG.info('starting from %s, step %d: %s', workdir, step, ', '.join(given))
    if fresh:
        LOG.info('  not in it, or of %s, so fresh: %s', others, ', '.join(sorted(fresh)))
    return given


def _renamed(
    source: ConfigDict, config: ConfigDict, method: Method, ctx: Context
) -> tuple[str, set[str]]:
    """Return what others are said to be, and the layers of classes that have other names there.

    Streams with a label set each have heads that are named after them; any other layer of classes
    is one that grows with their number.
    """
    there, here = (_classes(c) for c in (source, config))
    pairs = {name: (there[name], here[name]) for name in there.keys() & here.keys()}
    if not pairs and there and here:  # methods may name their streams otherwise
        pairs = {'': (next(iter(there.values())), next(iter(here.values())))}
    moved = {name: i for name, pair in pairs.items() if (i := sources.renamed(*pair)) is not None}
    if not moved:
        return 'another shape', set()
    more = ConfigDict(config.to_dict())
    more.num_classes += 1
    grown = state.networks(method, methods.context(more, ctx.axis))
    layers, ends = set(), tuple(f'_{name.rpartition("_")[2]}' for name in moved)
    for part, like in state.networks(method, ctx).items():
        wider = state.flat(grown[part])
        for path, leaf in state.flat(like).items():
            if leaf.shape != wider[path].shape or _module(path).endswith(ends):
                layers.add(_layer(path))
    name, i = next(iter(moved.items()))
    old, new = (names[i] for names in pairs[name])
    return f'another shape or other classes (class {i} is {old!r} there, {new!r} here)', layers


def _classes(config: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of each stream with labels, where they can be read."""
    found = {}
    for name, stream in config.data.streams.items():
        with contextlib.suppress(OSError, ValueError):  # of records that are gone
            if not stream.reads.startswith('none'):
                found[name] = sources.class_names(stream.dataset, config.data.dir)
    return found


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in arrays.items()}


def _module(path: str) -> str:
    return path.split('/')[1]


def _layer(path: str) -> str:
    """Return the layer that an array is of: 'head_logits/out' of 'params/head_logits/out/bias'."""
    return path.partition('/')[2].rpartition('/')[0]


def _fits(arrays: Mapping[str, Any], path: str, like: Any) -> bool:
    return path in arrays and arrays[path].shape == like.shape


def _same(expected: Pixels, config: ConfigDict) -> bool:
    return bool(np.allclose(expected, (config.data.mean, config.data.std), atol=1e-6))
