"""How a step is compiled over the devices of all processes, and its arrays placed on them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from css_jax.parallel.processes import process

AXIS = 'data'
MODES = ('jit', 'pmap')


def compile(function: Callable, sharding: Any = None) -> Callable:
    """Compile a function of arrays; nothing is given away.

    Args:
        function: pure.
        sharding: of its results, see `Layout.replicated`; None: as jax chooses.
    """
    return jax.jit(function, out_shardings=sharding)


def _devices() -> tuple[jax.Device, ...]:
    """All devices, those of process 0 first: process p holds the p-th block of a batch."""
    return tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices of a run, and how its step is compiled for them.

    Every device holds the whole state and one contiguous block of each stream's batch.

    Attributes:
        mode: 'jit', one program over a mesh, or 'pmap'.
        devices: in the order of the blocks; those of one process are neighbours.
    """

    mode: str = 'jit'
    devices: Sequence[jax.Device] = dataclasses.field(default_factory=_devices)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """One axis, `AXIS`, over the devices."""
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def replicated(self) -> NamedSharding:
        """Of arrays that every device has whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def local(self) -> int:
        """Return how many of the devices are this process's."""
        return sum(device.process_index == jax.process_index() for device in self.devices)

    def shares(self, key: str, batch_size: int, parts: int = 1) -> tuple[int, int]:
        """Return how many images of a global batch a process and a device get.

        Args:
            key: of the batch size, for the error.
            batch_size: over all devices.
            parts: micro-batches that a device's share is cut into.

        Raises:
            ValueError: the batch cannot be shared out; processes have unequally many devices.
        """
        count, (_, processes) = len(self.devices), process()
        if self.local * processes != count:
            raise ValueError(
                f'this process has {self.local} of {count} devices, expected as many as each of '
                f'the {processes}'
            )
        if batch_size % (count * parts):
            of = f'{count} devices' + (f' x accumulate_steps={parts}' if parts > 1 else '')
            kind = self.devices[0].platform
            hint = {'gpu': 'CUDA_VISIBLE_DEVICES', 'cpu': 'JAX_NUM_CPU_DEVICES'}.get(kind)
            hint = f'; {hint} chooses the devices' if hint and count > 1 else ''
            raise ValueError(f'{key}: got {batch_size}, expected a multiple of {of}{hint}')
        return batch_size // count * self.local, batch_size // count

    def place(self, batch: Any) -> Any:
        """Put this process's block of a batch, host arrays [B/P, ...], on its devices."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))

        def put(x: np.ndarray) -> Array:
            if self.mode == 'pmap':  # which asks for [P, B/P, ...]
                x = x.reshape(self.local, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x)

        return jax.tree.map(put, batch)

    def replicas(self, tree: Any) -> Any:
        """Return the shapes of arrays that every device is to have whole."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree
        )

    def placed(self, shapes: Any) -> Any:
        """Return the shapes of a batch as `place` gives it, of those of a global batch."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))

        def put(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            if self.mode == 'pmap':
                each = x.shape[0] // len(self.devices)
                return jax.ShapeDtypeStruct((self.local, each, *x.shape[1:]), x.dtype)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(put, shapes)

    def program(self, step: Callable) -> Callable:
        """Return `step(state, batch) -> (state, metrics)` over the devices, not yet compiled.

        It gives the state's buffers away. `jax.eval_shape` traces it; under jit `.lower` takes that
        trace for arrays of the same shapes and shardings.

        Args:
            step: of one device, with the axis `AXIS`.
        """
        if self.mode == 'pmap':
            axes = {'in_axes': (None, 0), 'out_axes': (None, None)}
            return jax.pmap(step, AXIS, **axes, donate_argnums=0, devices=self.devices)
        whole, block = PartitionSpec(), PartitionSpec(AXIS)
        specs = {'in_specs': (whole, block), 'out_specs': (whole, whole)}
        return jax.jit(jax.shard_map(step, mesh=self.mesh, **specs), donate_argnums=0)

    def compile_step(self, step: Callable, state: Any, batch: Any) -> jax.stages.Compiled:
        """Compile `program(step)`.

        Args:
            step: see `program`.
            state: an example of what it gets, or shapes with shardings.
            batch: likewise, as `place` gives it.
        """
        return self.program(step).lower(state, batch).compile()

    def compile_sums(self, function: Callable) -> Callable:
        """Compile `function(variables, batch) -> sums`, which are added up over the devices.

        Whatever the mode: a batch is as Layout('jit') places it.
        """

        def sums(variables: Any, batch: Any) -> Any:
            return lax.psum(function(variables, batch), AXIS)

        specs = {'in_specs': (PartitionSpec(), PartitionSpec(AXIS)), 'out_specs': PartitionSpec()}
        # Nothing is differentiated, so that what varies over devices need not be tracked.
        return jax.jit(jax.shard_map(sums, mesh=self.mesh, **specs, check_vma=False))
