"""The optimiser of the field: SGD, Nesterov momentum, coupled weight decay, poly schedule."""

import optax
from ml_collections import ConfigDict

from css_jax.ops import schedules


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Gives the learning rate by step, from `config.optimizer` and `config.steps`."""
    c = config.optimizer
    return schedules.poly(c.learning_rate, config.steps, c.power, c.floor, c.warmup_steps)


def sgd(config: ConfigDict) -> optax.GradientTransformation:
    """Gives torch's SGD: decay is added to the gradient before the momentum, on every parameter.

    Torch does not damp the first momentum, and neither does `optax.trace`.
    """
    c = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(c.weight_decay),
        optax.trace(decay=c.momentum, nesterov=c.nesterov),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
