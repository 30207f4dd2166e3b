"""All that one iteration hands to the next, as one pytree."""

import dataclasses
from collections.abc import Callable, Mapping
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
        teacher: its EMA; without arrays where a method has none.
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
        module: the network; returns a dict of outputs for images [B, H, W, 3].
        config: the run's configuration.
        axis: name of the device axis, or None.
        images: stream -> how many images it has, for schedules that count passes.
    """

    module: nn.Module
    config: ConfigDict
    axis: str | None = None
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def apply(
        self, variables: Variables, images: Array, train: bool, **more: Any
    ) -> tuple[dict[str, Array], Any]:
        """Run the network on [B, H, W, 3].

        Args:
            variables: the network's.
            images: normalised.
            train: BatchNorm normalises by the batch and moves its running statistics.
            **more: what else the network takes, such as dropout factors or a grid.

        Returns:
            (outputs, batch_stats after the pass).
        """
        arrays = {'params': variables.params, 'batch_stats': variables.batch_stats}
        if not train:
            return self.module.apply(arrays, images, train=False, **more), variables.batch_stats
        outputs, updated = self.module.apply(
            arrays, images, train=True, mutable=['batch_stats'], **more
        )
        return outputs, updated.get('batch_stats', variables.batch_stats)

    def train(
        self, variables: Variables, images: Array, **more: Any
    ) -> tuple[dict[str, Array], Any]:
        """Run the network in training mode: (outputs, new batch_stats); see `apply`."""
        return self.apply(variables, images, True, **more)

    def evaluate(self, variables: Variables, images: Array, **more: Any) -> dict[str, Array]:
        """Run the network with its running statistics; see `apply`."""
        return self.apply(variables, images, False, **more)[0]


def variables(ctx: Context, key: Array) -> Variables:
    """Make a network's first arrays, by an image as large as the first stream's crop.

    No shape depends on that size, but a network may take multiples of its stride alone.
    """
    crop = next(iter(ctx.config.data.streams.values())).crop
    arrays = ctx.module.init(key, jnp.zeros((1, *crop, 3)), train=False)
    return Variables(arrays['params'], arrays.get('batch_stats', {}))


def shapes(ctx: Context) -> Variables:
    """Return the shapes of the student's arrays without making them."""
    return jax.eval_shape(lambda: variables(ctx, jax.random.key(0)))


def networks(method: Any, ctx: Context) -> dict[str, Variables]:
    """Return the shapes of the arrays of 'student' and 'teacher', without making them."""

    def first(key: Array) -> dict[str, Variables]:
        student = variables(ctx, key)
        return {'student': student, 'teacher': method.init_teacher(student, key, ctx)}

    return jax.eval_shape(first, jax.random.key(0))


def flat(tree: Any) -> dict[str, Any]:
    """Return path -> leaf, 'params/conv1/kernel', of `Variables` or any other pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def not_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays that hold NaN or infinite numbers.

    Args:
        arrays: name -> array, of the host or the same on all devices.
    """
    floats = {k: x for k, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return [name for name, x in floats.items() if not np.isfinite(np.asarray(x)).all()]


def create(
    method: Any,
    tx: optax.GradientTransformation,
    ctx: Context,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    sharding: Any = None,
) -> TrainState:
    """Make a run's first state from `ctx.config.seed` inside one compiled call.

    One call, so that student and teacher never share a buffer: donating a shared one fails.

    Args:
        method: a `css_jax.methods.Method`.
        tx: gradient transformation over the student's parameters.
        ctx: network and configuration.
        given: 'student', 'teacher' or 'memory' -> path -> array that it starts with instead, see
            `flat`; what of the teacher is not given starts as the method says.
        sharding: where every array goes, see `css_jax.parallel.Layout`; None: the first device.
    """
    return maker(method, tx, ctx, sharding)(np.uint32(ctx.config.seed), given or {})


def maker(
    method: Any, tx: optax.GradientTransformation, ctx: Context, sharding: Any = None
) -> Callable[[Any, Mapping], TrainState]:
    """Return the compiled call (seed, given) -> state of `create`; see there."""

    def init(seed: Array, given: Mapping[str, Mapping[str, Array]]) -> TrainState:
        key = jax.random.key(seed)

        def start(part: str, tree: Any) -> Any:
            arrays = given.get(part, {})
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.copy(arrays.get(_name(path), leaf)), tree
            )

        student = start('student', variables(ctx, jax.random.fold_in(key, 0)))
        teacher = method.init_teacher(student, jax.random.fold_in(key, 2), ctx)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            student=student,
            teacher=start('teacher', teacher),
            memory=start('memory', method.init_memory(ctx.config)),
            opt_state=tx.init(student.params),
            key=jax.random.fold_in(key, 1),
        )

    return parallel.compile(init, sharding)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')
