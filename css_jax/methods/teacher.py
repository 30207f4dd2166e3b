"""The teacher's forward passes, and how it follows the student.

`config.teacher.batch_norm` names where its BatchNorm statistics come from:

- 'own' (the reference): it runs in training mode, normalises by each batch, and its running
  statistics are its own. With `config.teacher.labelled_pass` it also sees the labelled batch, in a
  pass that only these statistics (and prototypes taken from the teacher) feel.
- 'ema': it runs in evaluation mode on the EMA of the student's running statistics.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from css_jax.ops import schedules
from css_jax.state import Context, TrainState, Variables


def init(student: Variables, ctx: Context) -> Variables:
    """The teacher starts as a copy of the student."""
    del ctx
    return jax.tree.map(jnp.copy, student)


def run(teacher: Variables, images: Array, ctx: Context) -> tuple[dict[str, Array], Variables]:
    """Runs the teacher on normalised images [B, H, W, 3].

    Returns:
        Head name -> [B, h, w, channels], and the teacher with the statistics the pass has left.
    """
    if ctx.config.teacher.batch_norm == 'ema':
        return ctx.evaluate(teacher, images), teacher
    outputs, batch_stats = ctx.train(teacher, images)
    return outputs, teacher.replace(batch_stats=batch_stats)


def update(state: TrainState, student: Variables, batch_stats: Any, ctx: Context) -> Variables:
    """EMA of the parameters, with decay min(1 - 1/(t+1), decay): the first update copies.

    A teacher taken from another run (`config.init_from`) is no copy, so its decay is constant.

    Args:
        state: before the step.
        student: after the optimiser's update.
        batch_stats: the teacher's, after its passes.
        ctx: configuration.
    """
    decay = ctx.config.teacher.decay
    if not ctx.config.init_from:  # another run's teacher has an average behind it already
        decay = schedules.ema_decay(state.step, decay)

    def follow(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda t, s: decay * t + (1.0 - decay) * s, old, new)

    if ctx.config.teacher.batch_norm == 'ema':
        batch_stats = follow(batch_stats, student.batch_stats)
    return Variables(follow(state.teacher.params, student.params), batch_stats)
