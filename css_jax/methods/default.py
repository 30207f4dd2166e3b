"""What most methods do alike; a method that differs defines the function itself."""

from typing import Any

import optax
from jax import Array
from ml_collections import ConfigDict

from css_jax import optimizer as optimizers
from css_jax.methods import teacher
from css_jax.ops import resize
from css_jax.state import Context, Variables

init_teacher = teacher.init
update_teacher = teacher.update
# Without prototypes only BatchNorm's own statistics feel the teacher's labelled pass.
DEFAULTS = {'teacher.labelled_pass': lambda c: c.teacher.batch_norm == 'own'}
CHOICES = {'pseudo_label': ('logit',), 'indicator': ('confidence',)}


def init_memory(config: ConfigDict) -> dict:
    """No memory."""
    del config
    return {}


def update_memory(memory: Any, statistics: Any, ctx: Context) -> Any:
    """The memory stays."""
    del statistics, ctx
    return memory


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """SGD as the field uses it."""
    return optimizers.sgd(config)


def predict(variables: Variables, images: Array, ctx: Context) -> Array:
    """Logits [B, H, W, C] float32 of normalised images [B, H, W, 3], running statistics."""
    logits = ctx.evaluate(variables, images)['logits']
    return resize.bilinear(logits, images.shape[1:3])
