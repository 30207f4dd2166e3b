"""One iteration of any method: targets without gradient, loss, gradient, optimiser, teacher."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from css_jax import parallel
from css_jax.methods import Method
from css_jax.ops import losses
from css_jax.optimizer import split
from css_jax.state import Context, TrainState, Variables


def train_step(
    state: TrainState,
    batch: dict[str, dict[str, Array]],
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    ctx: Context,
) -> tuple[TrainState, dict[str, Array]]:
    """Run one iteration; pure, so it compiles under jit with or without a device axis.

    Args:
        state: the run's state.
        batch: stream -> {'image': [B, H, W, 3] uint8, ...}, this device's block of it.
        method: the phase of the run, see `css_jax.methods.phases`.
        optimizer: gradient transformation over the student's parameters.
        ctx: network, configuration, axis.

    Returns:
        (next state, metrics: name -> float32 scalar, equal on all devices).
    """
    keys = parallel.step_keys(state.key, state.step, batch, ctx.axis)
    prepared, teacher_stats = method.targets(state, batch, keys, ctx)

    # The loss is this device's share of the global one, so gradients are summed once, here.
    trained, frozen = split(parallel.varying(state.student.params, ctx.axis), ctx.config)

    def loss(trained: Any) -> tuple[Array, tuple]:
        return objective({**trained, **frozen}, state, prepared, keys, method=method, ctx=ctx)

    (_, (batch_stats, memory, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    grads = parallel.psum(grads, ctx.axis)
    grads |= jax.tree.map(jnp.zeros_like, split(state.student.params, ctx.config)[1])
    updates, opt_state = optimizer.update(grads, state.opt_state, state.student.params)
    student = Variables(optax.apply_updates(state.student.params, updates), batch_stats)
    teacher = method.update_teacher(state, student, teacher_stats, ctx)
    norms = {'gradient_norm': optax.tree.norm(grads), 'update_norm': optax.tree.norm(updates)}
    return (
        state.replace(
            step=state.step + 1,
            student=student,
            teacher=teacher,
            memory=memory,
            opt_state=opt_state,
        ),
        {**metrics, **norms},
    )


def objective(
    params: Any,
    state: TrainState,
    prepared: Any,
    keys: parallel.Keys,
    *,
    method: Method,
    ctx: Context,
) -> tuple[Array, tuple]:
    """Compute the loss of a step, over its micro-batches one after the other.

    With `config.accumulate_steps` = k the examples of each device are cut into k micro-batches. A
    term of the loss is still one sum over all of them divided by one count. The gradient keeps the
    activations of one micro-batch at a time and computes each micro-batch's forward pass twice: the
    counts, which every gradient depends on, are known only after the last one. BatchNorm normalises
    by micro-batches, and its running statistics move with each.

    Args:
        params: the student's, what is differentiated.
        state: before the step.
        prepared: of `method.targets`, arrays [B, ...].
        keys: of the step.
        method: as in `train_step`.
        ctx: network, configuration, axis.

    Returns:
        This device's share of the loss, and (batch_stats, memory, metrics).
    """
    count = ctx.config.accumulate_steps

    def part(batch_stats: Any, given: tuple) -> tuple[Any, tuple]:
        index, examples = given
        now = state.replace(student=Variables(state.student.params, batch_stats))
        terms, (batch_stats, statistics, metrics) = method.loss(
            params, now, examples, keys.part(index, count), ctx
        )
        return batch_stats, (terms, statistics, metrics)

    if count == 1:
        batch_stats, parts = part(state.student.batch_stats, (0, prepared))
        parts = jax.tree.map(lambda x: jnp.asarray(x)[None], parts)
    else:
        cut = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), prepared)
        batch_stats, parts = jax.lax.scan(
            jax.checkpoint(part), state.student.batch_stats, (jnp.arange(count), cut)
        )
    terms, statistics, metrics = parts  # [k, ...]
    memory = method.update_memory(state.memory, jax.lax.stop_gradient(statistics), ctx)
    share, logged = _weigh(terms, method.weights(state, ctx), ctx)
    logged |= _logged(jax.lax.stop_gradient(metrics), ctx)
    return share, (batch_stats, memory, jax.lax.stop_gradient(logged))


def _weigh(
    terms: Mapping[str, losses.Term], weights: Mapping[str, Any], ctx: Context
) -> tuple[Array, dict[str, Array]]:
    """Add the terms [k] up: this device's share of the loss, and the losses over all devices."""
    if unknown := set(weights) - set(terms):
        raise ValueError(
            f'weights: got {sorted(unknown)}, expected terms of the loss: {sorted(terms)}'
        )
    share, logged = 0.0, {'loss': 0.0}
    for name, term in terms.items():
        total, weight = term.total.sum(), weights.get(name, 1.0)
        count = parallel.psum(jax.lax.stop_gradient(term.count).sum(), ctx.axis)
        # Only the share is differentiated: a psum of what depends on the parameters inside a
        # differentiated loss makes gradients P times too large (see `parallel.varying`).
        mean = losses.mean(parallel.psum(jax.lax.stop_gradient(total), ctx.axis), count)
        share += weight * losses.mean(total, count)
        logged[f'loss_{name}'] = mean
        logged['loss'] += weight * mean
        if isinstance(weight, Array):  # it follows a schedule
            logged[f'weight_{name}'] = weight
    return share, logged


def _logged(metrics: Mapping[str, Any], ctx: Context) -> dict[str, Array]:
    """Add the metrics [k] up over devices and micro-batches, and divide once.

    What is no sum is equal on all devices, and is averaged over micro-batches.
    """
    found = {}
    for name, metric in metrics.items():
        if isinstance(metric, losses.Term):
            sums = parallel.psum((metric.total.sum(), metric.count.sum()), ctx.axis)
            found[name] = losses.mean(*sums)
        elif isinstance(metric, losses.Total):
            found[name] = parallel.psum(metric.total.sum(), ctx.axis)
        else:
            found[name] = metric.mean(0)
    return found
