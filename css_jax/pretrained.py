"""What a run starts with other than random weights: a backbone's file, or another run.

`config.model.pretrained` names a file of backbone weights, `config.init_from` the folder of a run.
Both are read before a fresh run writes anything; one that goes on from a checkpoint needs neither
(but is given the same names: these are part of what it was trained with).
"""

import logging
import pathlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax import checkpoint, state, state_dicts
from css_jax.models import layouts, weights
from css_jax.state import Context

LOG = logging.getLogger('css_jax')
Rgb = tuple[float, float, float]
Arrays = dict[str, np.ndarray]


def normalisation(config: ConfigDict, workdir: str | pathlib.Path | None = None) -> tuple[Rgb, Rgb]:
    """Gives mean and standard deviation of RGB in [0, 1] that the first weights expect.

    Those of the run to start from, else of the pretrained file's family, else ImageNet's. Opens no
    file of weights.

    Args:
        config: has init_from, model.pretrained, model.backbone.
        workdir: the run's own folder, if it has one: what has started from `init_from` already
            knows, and `init_from` may be gone.

    Raises:
        FileNotFoundError: init_from is not a run's folder.
    """
    if config.init_from:
        data = (_begun(config, workdir) or _source(config)).data
        return tuple(data.mean), tuple(data.std)
    if config.model.pretrained:
        layout = layouts.of(config.model.backbone)
        return layout.mean, layout.std
    return layouts.IMAGENET_MEAN, layouts.IMAGENET_STD


def load(config: ConfigDict, method: SimpleNamespace, ctx: Context) -> dict[str, Arrays]:
    """Reads what a fresh run starts with, and says what that is.

    Args:
        config: finalised.
        method: as given by `css_jax.methods.get`.
        ctx: network and configuration.

    Returns:
        'student', 'teacher', 'memory' -> path -> array, for `css_jax.state.create`; {} where the
        run starts from random weights.

    Raises:
        ValueError: both sources are named; the file or run does not fit this network or its
            pixels; names the arrays, both shapes and the likely cause.
        FileNotFoundError: there is no such file or run.
    """
    if config.init_from and config.model.pretrained:
        raise ValueError(
            f'init_from={config.init_from} and model.pretrained={config.model.pretrained}: '
            'expected one of them, as the run has a backbone already'
        )
    if config.init_from:
        return _from_run(config, method, ctx)
    return _from_file(config, ctx) if config.model.pretrained else {}


def differences(arrays: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """Says in words what of a network is missing in `arrays` or has another shape there.

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
    """Names a configuration's network in the words of its keys."""
    keys = ('backbone', 'stem', 'width', 'representation_dim')
    model = ', '.join(f'model.{key}={config.model[key]}' for key in keys)
    return f'method={config.method}, num_classes={config.num_classes}, {model}'


def _from_file(config: ConfigDict, ctx: Context) -> dict[str, Arrays]:
    path, layout = config.model.pretrained, layouts.of(config.model.backbone)
    state_dicts.check(path, 'model.pretrained')
    shapes = state.flat(state.shapes(ctx))
    backbone = {name: like for name, like in shapes.items() if '/backbone/' in name}
    arrays = state_dicts.read(path)
    try:
        taken, prefix, ignored = layouts.backbone(arrays, backbone, layout)
    except ValueError as error:
        m = config.model
        raise ValueError(
            f'model.pretrained={path} does not fit the network (backbone={m.backbone}, '
            f'stem={m.stem}, width={m.width}): {error}'
        ) from None
    count = sum(array.size for name, array in taken.items() if name.startswith('params/'))
    LOG.info('backbone from %s: %d arrays, %s parameters', path, len(taken), f'{count:,}')
    if prefix:
        LOG.info('  found there as %s*, among %d arrays', prefix, len(arrays))
    fresh = {name.split('/')[1] for name in shapes if name not in taken}
    LOG.info('  not in it, so fresh: %s', ', '.join(sorted(fresh)))
    if ignored:
        LOG.info('  in it and not used: %s', weights.listed(ignored))
    expected = normalisation(config)
    if not _same(expected, config):
        LOG.warning(
            'warning: data.mean=%s, data.std=%s, but these weights were trained with %s, %s',
            *(tuple(config.data.mean), tuple(config.data.std), *expected),
        )
    return {'student': taken}


def _from_run(config: ConfigDict, method: SimpleNamespace, ctx: Context) -> dict[str, Arrays]:
    workdir, source = config.init_from, _source(config)
    if not _same((source.data.mean, source.data.std), config):
        raise ValueError(
            f'init_from={workdir} was trained with data.mean={source.data.mean}, '
            f'data.std={source.data.std}; expected the same here, got {config.data.mean}, '
            f'{config.data.std} (leave them out to take its own)'
        )
    step = checkpoint.find(workdir, 'last')
    saved = checkpoint.restore_arrays(workdir, step, ('student', 'teacher', 'memory'))
    student = state.shapes(ctx)
    teacher = jax.eval_shape(lambda s: method.init_teacher(s, ctx), student)
    given, fresh = {}, set()
    for part, like in {'student': student, 'teacher': teacher}.items():
        shapes, arrays = state.flat(like), saved[part]
        if not arrays and part == 'teacher':
            fresh.add('teacher (a copy of the student)')
            continue
        there = {_module(path) for path in arrays}
        absent = {m for path in shapes if (m := _module(path)) not in there and m[:5] == 'head_'}
        shapes = {path: leaf for path, leaf in shapes.items() if _module(path) not in absent}
        if wrong := differences(arrays, shapes):
            raise ValueError(
                f'init_from={workdir}: its {part} is of another network: {weights.listed(wrong)}. '
                f'There: {described(source)}. Here: {described(config)}'
            )
        given[part] = {path: arrays[path] for path in shapes}
        fresh |= absent
    memory = state.flat(jax.eval_shape(lambda: method.init_memory(config)))
    if memory and _shapes(memory) == _shapes(saved['memory']):
        given['memory'] = saved['memory']
    elif memory:
        fresh.add('memory')
    LOG.info('starting from %s, step %d: %s', workdir, step, ', '.join(given))
    if fresh:
        LOG.info('  not in it, so fresh: %s', ', '.join(sorted(fresh)))
    return given


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in arrays.items()}


def _module(path: str) -> str:
    return path.split('/')[1]


def _same(expected: tuple[Rgb, Rgb], config: ConfigDict) -> bool:
    return bool(np.allclose(expected, (config.data.mean, config.data.std), atol=1e-6))


def _begun(config: ConfigDict, workdir: str | pathlib.Path | None) -> ConfigDict | None:
    """Gives the configuration of the run in `workdir` if it is one from the same `init_from`."""
    from css_jax import stored  # as below

    if workdir is None or not (pathlib.Path(workdir) / stored.FILE).exists():
        return None
    run = stored.load(workdir)
    return run if run.init_from == config.init_from else None


def _source(config: ConfigDict) -> ConfigDict:
    from css_jax import stored  # which needs config.py, which needs this file

    try:
        return stored.load(config.init_from)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'init_from: {error}') from None
