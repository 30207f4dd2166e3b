"""What a step does across devices, and its random keys.

A step is written for one device and its block of the batch; `axis` is the name under which it meets
the others. These helpers do nothing when `axis` is None, so the same step runs without one.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def psum(tree: Any, axis: str | None) -> Any:
    """Sum every leaf over the devices of `axis`."""
    return tree if axis is None else lax.psum(tree, axis)


def gather(x: Array, axis: str | None) -> Array:
    """Stack every device's x [...] to [P, ...], in device order; for small arrays.

    A sum of arrays that are zero elsewhere, as only of sums it is known that they are equal on all
    devices: they may go into the state.
    """
    if axis is None:
        return x[None]
    return lax.psum(jnp.zeros((size(axis), *x.shape), x.dtype).at[rank(axis)].set(x), axis)


def rank(axis: str | None) -> Array | int:
    """This device's place on `axis`, 0 without one."""
    return 0 if axis is None else lax.axis_index(axis)


def size(axis: str | None) -> int:
    """Return how many devices `axis` has, 1 without one."""
    return 1 if axis is None else lax.axis_size(axis)


def varying(tree: Any, axis: str | None) -> Any:
    """Mark replicated parameters as this device's own, so that their gradients stay local.

    Without it shard_map sums the gradients over devices itself, and the step's own psum makes
    them P times too large, silently.
    """
    if axis is None:
        return tree
    return jax.tree.map(lambda x: lax.pcast(x, axis, to='varying'), tree)


def next_example(tree: Any, axis: str | None) -> Any:
    """Return each example the one after it in the global batch, the last one the first.

    Args:
        tree: arrays [B, ...], this device's contiguous block of the batch.
        axis: device axis or None.

    Returns:
        The same tree, shifted by one example over all devices.
    """
    if axis is None:
        return jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), tree)
    size = lax.axis_size(axis)
    towards_previous = [(i, (i - 1) % size) for i in range(size)]

    def shift(x: Array) -> Array:
        first_of_next = lax.ppermute(x[:1], axis, towards_previous)
        return jnp.concatenate([x[1:], first_of_next])

    return jax.tree.map(shift, tree)


def next_of_first_device(tree: Any, axis: str | None) -> Any:
    """Return each example i of a device the example i+1 of the first device's block, wrapping.

    The reference's choice of mixing partner on several devices; on one it is `next_example`.

    Args:
        tree: arrays [B, ...], this device's contiguous block of the batch.
        axis: device axis or None.
    """
    shifted = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), tree)
    first = rank(axis) == 0
    return jax.tree.map(lambda x: psum(jnp.where(first, x, jnp.zeros_like(x)), axis), shifted)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Random keys of one step: the same draws for example i however the batch is laid out.

    Attributes:
        key: the step's key.
        sizes: examples of each stream on this device.
        rank: this device's place, 0 without a device axis.
        index: of the micro-batch.
        count: micro-batches that this device's examples are cut into.
    """

    key: Array
    sizes: Mapping[str, int]
    rank: Array | int
    index: Array | int = 0
    count: int = 1

    def __call__(self, stream: str, purpose: str) -> Array:
        """Return [B] keys, one per example of `stream`, folded from (step, stream, purpose, i)."""
        size = self.sizes[stream] // self.count
        key = _fold_name(_fold_name(self.key, stream), purpose)
        index = (self.rank * self.count + self.index) * size + jnp.arange(size)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, index)

    def shared(self, purpose: str) -> Array:
        """Return one key, equal on all devices; micro-batches have different ones."""
        key = _fold_name(self.key, purpose)
        return key if self.count == 1 else jax.random.fold_in(key, self.index)

    def part(self, index: Array | int, count: int) -> 'Keys':
        """Return the keys of one of `count` micro-batches."""
        return dataclasses.replace(self, index=index, count=count)


def step_keys(key: Array, step: Array, batch: Mapping[str, Mapping], axis: str | None) -> Keys:
    """Return the keys of one step.

    Args:
        key: the run's key; nothing but the step changes what is drawn from it.
        step: [] integer.
        batch: stream -> dict of arrays [B, ...].
        axis: device axis or None.
    """
    sizes = {name: jax.tree.leaves(arrays)[0].shape[0] for name, arrays in batch.items()}
    return Keys(jax.random.fold_in(key, step), sizes, rank(axis))


def _fold_name(key: Array, name: str) -> Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
