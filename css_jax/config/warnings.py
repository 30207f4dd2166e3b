"""What is possible but unlikely to be meant: warnings at start-up, a sentence each."""

import os
from collections.abc import Iterator, Mapping

import jax
from ml_collections import ConfigDict

from css_jax import methods
from css_jax.config import defaults, table
from css_jax.keys import at
from css_jax.methods.method import computing
from css_jax.models import backbones, published


def warnings(given: ConfigDict, config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """List them.

    Args:
        given: as it came, before it was finalised.
        config: finalised.
        images: stream -> how many images it has.

    Returns:
        The sentences.
    """
    with computing(f'the warnings of method {config.method}'):
        own = methods.METHODS[config.method].warnings(config, images)
    return [
        *_random_weights(config),
        *_frozen(config),
        *_other_stem(config),
        *_not_needed(given, config),
        *_undone(config),
        *_unread(given, config),
        *_not_scaled(config),
        *own,
    ]


def _random_weights(config: ConfigDict) -> Iterator[str]:
    dataset = config.eval.dataset.partition('/')[0]
    from_weights = dataset in ('voc', 'cityscapes', 'coco', 'ade20k')
    if from_weights and not (config.model.pretrained or config.init_from):
        yield (
            "model.pretrained is empty: this run starts from random weights, the paper's from "
            f'ImageNet ones ({_how(config.model)})'
        )


def _frozen(config: ConfigDict) -> Iterator[str]:
    if config.model.frozen_backbone and not (config.model.pretrained or config.init_from):
        yield (
            'model.frozen_backbone keeps random weights, as model.pretrained and init_from are '
            f'empty ({_how(config.model)})'
        )


def _other_stem(config: ConfigDict) -> Iterator[str]:
    dataset = config.eval.dataset.partition('/')[0]
    splits = {stream.split for name, stream in config.data.streams.items() if name == 'labelled'}
    deep = dataset == 'cityscapes' or (dataset == 'voc' and 'trainaug' in splits)
    if deep and config.model.stem == 'conv7' and config.model.backbone not in backbones.PLAIN:
        yield (
            "model.stem=conv7: the paper's network has a deep stem here, for which no weights have "
            'a name; `pretrained=FILE` behind the colon of --config takes them'
        )


def _not_needed(given: ConfigDict, config: ConfigDict) -> Iterator[str]:
    name = given.model.get('pretrained')
    if config.init_from and name in published.NAMES:
        yield f'model.pretrained={name} has no effect: the run in init_from has a backbone already'


def _how(model: ConfigDict) -> str:
    name = model.get('backbone')
    known = name in published.NAMES and not published.mismatch(name, model)
    return f'--config.model.pretrained={name if known else "FILE"}'


def _undone(config: ConfigDict) -> Iterator[str]:
    kept_apart = 'cse_barrier_expander' in os.environ.get('XLA_FLAGS', '')
    if config.model.remat and jax.default_backend() == 'cpu' and not kept_apart:
        yield (
            'model.remat saves nothing on a CPU, where XLA finds the second computation equal to '
            'the first; XLA_FLAGS=--xla_disable_hlo_passes=cse_barrier_expander keeps them apart'
        )


def _unread(given: ConfigDict, config: ConfigDict) -> Iterator[str]:
    """Name keys that somebody has set and that nothing reads in this configuration."""
    every, own = table.keys(), table.keys(config.method)
    of_streams = [p for p in table.paths(given) if p.startswith('data.streams.')]
    for path in [p for p in table.paths(given) if p not in of_streams]:
        if (value := at(given, path)) is None:
            continue
        if path not in own and value != every[path].default:
            yield f'{path}={value} has no effect: method {config.method} does not read it'
        elif (
            path in own
            and own[path].only
            and not own[path].only(config)
            and defaults.departures(config, (path,))
        ):
            yield f'{path}={value} has no effect in this configuration'


def _not_scaled(config: ConfigDict) -> Iterator[str]:
    """Name ranges of the scale that are set where the long side has a range of its own."""
    ranged = [name for name, stream in config.data.streams.items() if any(stream.long_side)]
    changed = defaults.departures(config, ('data.streams.*.resize',)) if ranged else []
    for name in ranged:
        path = f'data.streams.{name}.'
        for found in changed:
            if found.startswith(path):
                yield f'{found} has no effect: {path}long_side takes its place'
