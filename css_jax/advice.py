"""What is possible but unlikely to be meant: warnings at start-up, a sentence each."""

import math
import os
from collections.abc import Callable, Iterator, Mapping

import jax
from ml_collections import ConfigDict

from css_jax import follow, methods
from css_jax.methods import views
from css_jax.state import Context

# Key -> whether a configuration reads it; keys that are not here always are.
READ: dict[str, Callable[[ConfigDict], bool]] = {
    'unsupervised.cross_indicator': lambda c: c.pseudo_label == 'cross' and c.indicator == 'both',
    'unsupervised.warmup_passes': lambda c: c.pseudo_label == 'cross',
    'contrastive.valid_indicator': lambda c: c.indicator == 'both',
    'contrastive.bank': lambda c: c.contrastive.estimator == 'bank',
    'augment.partner': lambda c: c.augment.mixing in ('cutmix', 'classmix'),
    'supervised.ohem_threshold': lambda c: c.supervised.loss == 'ohem',
    'supervised.ohem_kept': lambda c: c.supervised.loss == 'ohem',
    'model.stem_ceil_mode': lambda c: c.model.stem == 'deep',
}


def warnings(config: ConfigDict, table: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """Lists them.

    Args:
        config: finalised.
        table: `css_jax.config.default()`.
        images: stream -> how many images it has.

    Returns:
        The sentences.
    """
    return [
        *_random_weights(config),
        *_undone(config),
        *_unread(config, table),
        *_out_of_reach(config),
        *_never(config, images),
    ]


def _random_weights(config: ConfigDict) -> Iterator[str]:
    dataset = config.eval.dataset.partition('/')[0]
    if dataset in ('voc', 'cityscapes') and not (config.model.pretrained or config.init_from):
        yield (
            "model.pretrained is empty: this run starts from random weights, the paper's from "
            'ImageNet ones (--config.model.pretrained=FILE)'
        )


def _undone(config: ConfigDict) -> Iterator[str]:
    kept_apart = 'cse_barrier_expander' in os.environ.get('XLA_FLAGS', '')
    if config.model.remat and jax.default_backend() == 'cpu' and not kept_apart:
        yield (
            'model.remat saves nothing on a CPU, where XLA finds the second computation equal to '
            'the first; XLA_FLAGS=--xla_disable_hlo_passes=cse_barrier_expander keeps them apart'
        )


def _unread(config: ConfigDict, table: ConfigDict) -> Iterator[str]:
    """Names keys that somebody has changed and that nothing reads in this configuration."""
    defaults = methods.get(config.method).DEFAULTS
    changed = {key.partition('=')[0] for key in follow.departures(config, defaults)}
    has_prototypes = _has_prototypes(config)
    for group in ('model', 'supervised', 'augment', 'unsupervised', 'contrastive'):
        for key, value in table[group].items():
            name = f'{group}.{key}'
            if value is not None and config[group][key] != value:
                changed.add(name)
            read = has_prototypes if group == 'contrastive' else True
            read = read and READ.get(name, lambda c: True)(config)
            if name in changed and not read:
                yield f'{name}={config[group][key]} has no effect in this configuration'


def _out_of_reach(config: ConfigDict) -> Iterator[str]:
    """Names thresholds that no pixel can pass.

    Softmax similarity has an upper bound, as cosines have: 1 / (1 + (C-1) exp(-2/tau_sim)).
    """
    if not _has_prototypes(config):
        return
    c = config.contrastive
    bound = 1 / (1 + (config.num_classes - 1) * math.exp(-2 / c.similarity_temperature))
    alone, both = config.indicator == 'similarity', config.indicator == 'both'
    crossed = config.pseudo_label == 'cross' and config.unsupervised.cross_indicator == 'similarity'
    thresholds = [
        (
            'unsupervised.threshold',
            config.unsupervised.threshold,
            alone or (both and crossed),
            'L_u is 0',
        ),
        (
            'contrastive.valid_threshold',
            c.valid_threshold,
            alone or (both and c.valid_indicator == 'similarity'),
            'no unlabelled pixel enters L_c',
        ),
        (
            'contrastive.hard_threshold',
            c.hard_threshold,
            alone or both,
            'every valid pixel is hard (the reference runs so)',
        ),
    ]
    for key, threshold, on_similarity, effect in thresholds:
        if on_similarity and threshold > bound:
            yield (
                f'{key}={threshold} is above the largest softmax similarity, {bound:.3f} with '
                f'{config.num_classes} classes at similarity_temperature='
                f'{c.similarity_temperature}: {effect}'
            )


def _never(config: ConfigDict, images: Mapping[str, int]) -> Iterator[str]:
    """Names terms that end early or never begin, as they count passes over the labelled images."""
    if not _has_prototypes(config):
        return
    one_pass = views.steps_per_pass('labelled', Context(None, config, None, images))
    if config.contrastive.schedule == 'reference':
        end = config.burn_in_steps + 200 * one_pass
        if end < config.steps:
            yield f'lambda_c is 0 from step {end} of {config.steps} on, as in the reference'
    begin = config.burn_in_steps + config.unsupervised.warmup_passes * one_pass
    if config.pseudo_label == 'cross' and begin >= config.steps:
        yield f'the warm-up ends at step {begin}, after the last of {config.steps}: nothing crosses'


def _has_prototypes(config: ConfigDict) -> bool:
    return 'representation' in methods.get(config.method).outputs(config)
