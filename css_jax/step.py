"""One iteration of any method: targets without gradient, loss, gradient, optimiser, teacher."""

from types import SimpleNamespace
from typing import Any

import jax
import optax
from jax import Array

from css_jax import parallel
from css_jax.state import Context, TrainState, Variables


def train_step(
    state: TrainState,
    batch: dict[str, dict[str, Array]],
    *,
    method: SimpleNamespace,
    optimizer: optax.GradientTransformation,
    ctx: Context,
) -> tuple[TrainState, dict[str, Array]]:
    """Runs one iteration; pure, so it compiles under jit with or without a device axis.

    Args:
        state: the run's state.
        batch: stream -> {'image': [B, H, W, 3] uint8, ...}, this device's block of it.
        method: functions of the method, see `css_jax.methods`.
        optimizer: gradient transformation over the student's parameters.
        ctx: network, configuration, axis.

    Returns:
        (next state, metrics: name -> float32 scalar, equal on all devices).
    """
    keys = parallel.step_keys(state.key, state.step, batch, ctx.axis)
    prepared, teacher_stats = method.targets(state, batch, keys, ctx)

    def loss(params: Any) -> tuple[Array, tuple]:
        return method.loss(params, state, prepared, keys, ctx)

    # The loss is this device's share of the global one, so gradients are summed once, here.
    params = parallel.varying(state.student.params, ctx.axis)
    (_, (batch_stats, memory, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    grads = parallel.psum(grads, ctx.axis)
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
