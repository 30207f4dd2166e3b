"""What most methods do alike; a method that differs defines the function itself."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from css_jax import optimizer as optimizers
from css_jax.ops import resize, schedules
from css_jax.state import Context, TrainState, Variables


def init_memory(config: ConfigDict) -> dict:
    """No memory."""
    del config
    return {}


def init_teacher(student: Variables, ctx: Context) -> Variables:
    """The teacher starts as a copy of the student."""
    del ctx
    return jax.tree.map(jnp.copy, student)


def update_teacher(
    state: TrainState, student: Variables, teacher_stats: Any, ctx: Context
) -> Variables:
    """EMA of the parameters; the BatchNorm statistics are the teacher's own (spec section 3.7)."""
    decay = schedules.ema_decay(state.step, ctx.config.teacher.decay)
    return Variables(
        jax.tree.map(
            lambda t, s: decay * t + (1.0 - decay) * s, state.teacher.params, student.params
        ),
        teacher_stats,
    )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """SGD as the field uses it."""
    return optimizers.sgd(config)


def predict(variables: Variables, images: Array, ctx: Context) -> Array:
    """Logits [B, H, W, C] float32 of normalised images [B, H, W, 3], running statistics."""
    logits = ctx.evaluate(variables, images)['logits']
    return resize.bilinear(logits, images.shape[1:3])
