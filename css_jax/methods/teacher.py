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

from css_jax.keys import Key
from css_jax.ops import schedules
from css_jax.state import Context, TrainState, Variables

KEYS = {
    'teacher.decay': Key(0.99, 'EMA of the parameters, min(1 - 1/(t+1), decay)', range=(0, 1)),
    'teacher.batch_norm': Key(
        'own',
        "own: trains on its batches | ema: follows the student's",
        choices=('own', 'ema'),
    ),
}
# Of methods whose teacher may see the labelled batch: only statistics of its own would feel it.
LABELLED_PASS = {
    'teacher.labelled_pass': Key(
        lambda c: c.teacher.batch_norm == 'own', 'it sees the labelled batch too', like=True
    ),
}


def copy(student: Variables, key: Array, ctx: Context) -> Variables:
    """Start the teacher as a copy of the student."""
    del key, ctx
    return jax.tree.map(jnp.copy, student)


def none(student: Variables, key: Array, ctx: Context) -> Variables:
    """Start without a teacher: one without arrays; for methods that evaluate the student."""
    del student, key, ctx
    return Variables({}, {})


def keep(state: TrainState, student: Variables, batch_stats: Any, ctx: Context) -> Variables:
    """Leave the teacher as it is."""
    del student, batch_stats, ctx
    return state.teacher


def run(teacher: Variables, images: Array, ctx: Context) -> tuple[dict[str, Array], Variables]:
    """Run the teacher on normalised images [B, H, W, 3].

    Returns:
        Head name -> [B, h, w, channels], and the teacher with the statistics the pass has left.
    """
    if ctx.config.teacher.batch_norm == 'ema':
        return ctx.evaluate(teacher, images), teacher
    outputs, batch_stats = ctx.train(teacher, images)
    return outputs, teacher.replace(batch_stats=batch_stats)


def update(state: TrainState, student: Variables, batch_stats: Any, ctx: Context) -> Variables:
    """Move the parameters' EMA, with decay min(1 - 1/(t+1), decay): the first update copies.

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

    if ctx.config.teacher.batch_norm == 'ema':
        batch_stats = follow(batch_stats, student.batch_stats, decay)
    return Variables(follow(state.teacher.params, student.params, decay), batch_stats)


def follow(teacher: Any, student: Any, decay: Any) -> Any:
    """Return decay teacher + (1 - decay) student, of pytrees of the same arrays."""
    return jax.tree.map(lambda t, s: decay * t + (1.0 - decay) * s, teacher, student)
