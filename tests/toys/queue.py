"""Keeps the means of the last images in memory, and pulls a batch's towards them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from css_jax import parallel
from css_jax.methods import teacher, views
from css_jax.methods.method import Method
from css_jax.ops.losses import Term
from css_jax.state import Variables


class Targets(NamedTuple):
    images: Array


def outputs(config):
    return {'logits': config.num_classes, 'embedding': 4}


def init_memory(config):
    return {'queue': jnp.zeros((6, 4))}


def targets(state, batch, keys, ctx):
    images = views.normalise(batch['unlabelled']['image'], ctx)
    return Targets(images), state.teacher.batch_stats


def loss(params, state, prepared, keys, ctx):
    out, stats = ctx.train(Variables(params, state.student.batch_stats), prepared.images)
    means = out['embedding'].mean((1, 2))
    distance = jnp.square(means[:, None] - state.memory['queue']).sum(-1)
    return {'pull': Term(distance.sum(), distance.size)}, (stats, means, {})


def update_memory(memory, statistics, ctx):
    every = parallel.gather(statistics, ctx.axis).reshape(-1, 4)
    return {'queue': jnp.concatenate([every, memory['queue']])[:6]}


METHOD = Method(
    streams={'unlabelled': 'none'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=teacher.KEYS,
    defaults={'teacher.batch_norm': 'ema'},
    init_memory=init_memory,
    update_memory=update_memory,
)
