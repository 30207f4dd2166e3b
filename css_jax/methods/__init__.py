"""One file per published method; a method is a module of functions.

- `outputs(config)` -> dict head name -> channels: the heads the network gets.
- `targets(state, batch, keys, ctx)` -> (prepared, teacher's batch_stats): all without gradient.
  Every array of prepared is [B, ...], one entry an example: micro-batches are cut from it.
- `loss(params, state, prepared, keys, ctx)` -> (terms, (batch_stats, statistics, metrics)): all
  that is differentiated, of a micro-batch. Terms is a dict name -> `css_jax.ops.losses.Term`, this
  device's sums: the step adds up devices and micro-batches, divides, weighs, and logs 'loss' and
  'loss_NAME'. A term never psums what depends on the parameters. Metrics are equal on all devices.
- `update_memory(memory, statistics, ctx)` -> memory: once a step, by the statistics of all
  micro-batches, stacked [k, ...].
- `STREAMS`: the streams of `config.data.streams` it asks for, with whether each has labels.
- `DEFAULTS`: configuration key -> its value where nobody sets it, or a function of the
  configuration that gives it.
- `CHOICES`: configuration key -> the values it knows; others are refused.

What a method leaves out is taken from `css_jax.methods.default`.
"""

from collections.abc import Mapping
from types import SimpleNamespace

from ml_collections import ConfigDict

from css_jax import models
from css_jax.methods import (
    baseline,
    css,
    css_cross,
    css_mix,
    cutmix,
    default,
    mean_teacher,
    supervised,
)
from css_jax.state import Context

METHODS = {
    'supervised': supervised,
    'mean_teacher': mean_teacher,
    'cutmix': cutmix,
    'baseline': baseline,
    'css_cross': css_cross,
    'css_mix': css_mix,
    'css': css,
}


def get(name: str) -> SimpleNamespace:
    """Gives the functions of the method `name`, with the defaults for those it leaves out.

    Raises:
        KeyError: no such method.
    """
    return SimpleNamespace(**{**vars(default), **vars(METHODS[name])})


def burn_in() -> SimpleNamespace:
    """Gives the method of the first `config.burn_in_steps` steps of any other."""
    return get('supervised')


def context(
    config: ConfigDict, axis: str | None = None, images: Mapping[str, int] | None = None
) -> Context:
    """Gives the network of `config.method`, with the configuration, as methods take them.

    Args:
        config: finalised.
        axis: name of the device axis, or None.
        images: stream -> how many images it has; training needs it, evaluation does not.
    """
    outputs = get(config.method).outputs(config)
    module = models.build(config.model, config.num_classes, outputs, axis_name=axis)
    return Context(module, config, axis, images or {})
