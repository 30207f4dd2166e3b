"""One file per published method; a method is a module of functions.

- `outputs(config)` -> dict head name -> channels: the heads the network gets.
- `targets(state, batch, keys, ctx)` -> (prepared, teacher's batch_stats): all without gradient.
- `loss(params, state, prepared, keys, ctx)` -> (scalar, (batch_stats, memory, metrics)): all that
  is differentiated, and what it updates. The scalar is this device's share: shares add up to the
  loss. It may divide by a psum, but never psums what depends on the parameters.
- `STREAMS`: the streams of `config.data.streams` it asks for, with whether each has labels.

What a method leaves out is taken from `css_jax.methods.default`.
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from css_jax import models
from css_jax.methods import css_mix, cutmix, default, supervised
from css_jax.state import Context

METHODS = {'supervised': supervised, 'cutmix': cutmix, 'css_mix': css_mix}


def get(name: str) -> SimpleNamespace:
    """Gives the functions of the method `name`, with the defaults for those it leaves out.

    Raises:
        KeyError: no such method.
    """
    return SimpleNamespace(**{**vars(default), **vars(METHODS[name])})


def burn_in() -> SimpleNamespace:
    """Gives the method of the first `config.burn_in_steps` steps of any other."""
    return get('supervised')


def context(config: ConfigDict, axis: str | None = None) -> Context:
    """Gives the network of `config.method`, with the configuration, as methods take them."""
    outputs = get(config.method).outputs(config)
    module = models.build(config.model, config.num_classes, outputs, axis_name=axis)
    return Context(module, config, axis)
