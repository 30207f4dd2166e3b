"""All that one iteration hands to the next, as one pytree."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel


class Variables(struct.PyTreeNode):
    """A network's arrays: what the optimiser or the EMA moves, and BatchNorm's statistics."""

    params: Any
    batch_stats: Any


class TrainState(struct.PyTreeNode):
    """The state of a run.

    Attributes:
        step: [] int32, iterations done.
        student: what is trained.
        teacher: its EMA, what is evaluated.
        memory: the method's own pytree, such as prototypes.
        opt_state: the optimiser's.
        key: the run's random key; never changes.
    """

    step: Array
    student: Variables
    teacher: Variables
    memory: Any
    opt_state: Any
    key: Array


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method needs beside arrays.

    Attributes:
        module: the network; gives a dict of outputs for images [B, H, W, 3].
        config: the run's configuration.
        axis: name of the device axis, or None.
        images: stream -> how many images it has, for schedules that count passes.
    """

    module: nn.Module
    config: ConfigDict
    axis: str | None = None
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def train(self, variables: Variables, images: Array) -> tuple[dict[str, Array], Any]:
        """Runs the network on [B, H, W, 3] in training mode: (outputs, new batch_stats)."""
        outputs, updated = self.module.apply(
            {'params': variables.params, 'batch_stats': variables.batch_stats},
            images,
            train=True,
            mutable=['batch_stats'],
        )
        return outputs, updated.get('batch_stats', variables.batch_stats)

    def evaluate(self, variables: Variables, images: Array) -> dict[str, Array]:
        """Runs the network on [B, H, W, 3] with its running statistics."""
        arrays = {'params': variables.params, 'batch_stats': variables.batch_stats}
        return self.module.apply(arrays, images, train=False)


def variables(ctx: Context, key: Array) -> Variables:
    """Makes a network's first arrays; a few pixels suffice, as no shape depends on them."""
    arrays = ctx.module.init(key, jnp.zeros((1, 64, 64, 3)), train=False)
    return Variables(arrays['params'], arrays.get('batch_stats', {}))


def shapes(ctx: Context) -> Variables:
    """Gives the shapes of a network's arrays without making them."""
    return jax.eval_shape(lambda: variables(ctx, jax.random.key(0)))


def flat(tree: Any) -> dict[str, Any]:
    """Gives path -> leaf, 'params/conv1/kernel', of `Variables` or any other pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def create(
    method: SimpleNamespace,
    optimizer: optax.GradientTransformation,
    ctx: Context,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    sharding: Any = None,
) -> TrainState:
    """Makes a run's first state from `ctx.config.seed` inside one compiled call.

    One call, so that student and teacher never share a buffer: donating a shared one fails.

    Args:
        method: as given by `css_jax.methods.get`.
        optimizer: gradient transformation over the student's parameters.
        ctx: network and configuration.
        given: 'student', 'teacher' or 'memory' -> path -> array that it starts with instead, see
            `flat`; what of the teacher is not given starts from the student.
        sharding: where every array goes, see `css_jax.parallel.Layout`; None: the first device.
    """

    def init(seed: Array, given: Mapping[str, Mapping[str, Array]]) -> TrainState:
        key = jax.random.key(seed)

        def start(part: str, tree: Any) -> Any:
            arrays = given.get(part, {})
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.copy(arrays.get(_name(path), leaf)), tree
            )

        student = start('student', variables(ctx, jax.random.fold_in(key, 0)))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            student=student,
            teacher=start('teacher', method.init_teacher(student, ctx)),
            memory=start('memory', method.init_memory(ctx.config)),
            opt_state=optimizer.init(student.params),
            key=jax.random.fold_in(key, 1),
        )

    return parallel.compile(init, sharding)(np.uint32(ctx.config.seed), given or {})


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')
