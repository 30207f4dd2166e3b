"""Devices: the only file that knows how a step is compiled, what crosses devices, and the keys.

A step is written for one device and its block of the batch; `axis` is the name under which it
meets the others. The helpers do nothing when `axis` is None, so the same step runs without one.
A `Layout` compiles it over the devices of all processes.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LOG = logging.getLogger('css_jax')
AXIS = 'data'
MODES = ('jit', 'pmap')
_JOINING = 300  # seconds for all processes to come
_QUIET = 5.0  # seconds of them before a line says what is waited for
_LEAVING = 3.0  # seconds that one process waits for the others to end


# The process group.


def start(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Joins the other processes of a run; the first thing a program does with jax.

    Without arguments it joins those of the cluster that jax detects (SLURM, Open MPI, Cloud TPU),
    and does nothing on a plain machine.

    Args:
        address: host:port of process 0.
        count: processes in all; 1 keeps this one alone wherever it runs.
        index: this process's number, from 0.

    Raises:
        ValueError: the arguments make no sense together.
    """
    # A single task would be shown the first of its devices only.
    alone = 1 if os.environ.get('SLURM_NTASKS') == '1' and address is None else count
    if alone == 1:
        return
    given = (address, count, index)
    if any(value is not None for value in given) and None in given:
        raise ValueError(
            f'--coordinator, --process_count, --process_id: got {address}, {count}, {index}; '
            'expected all three, or none'
        )
    if count is not None and not 0 <= index < count:
        raise ValueError(f'--process_id: got {index}, expected 0 to {count - 1}')
    if address is not None and not address.rpartition(':')[2].isdecimal():
        raise ValueError(f'--coordinator: got {address!r}, expected host:port of process 0')
    where = f' {index} of {count} waits at {address}' if address else ' waits'
    text = f'this process{where} for the others; jax gives up after {_JOINING} s'
    late = threading.Timer(_QUIET, LOG.warning, [text])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=_JOINING)
    except (ValueError, RuntimeError) as error:
        if address is not None or isinstance(error, RuntimeError):
            alone = '' if address else '; --process_count=1 keeps a process alone'
            raise ValueError(f'the processes of this run cannot meet: {error}{alone}') from None
        # jax knows of no cluster here.
    finally:
        late.cancel()


def process() -> tuple[int, int]:
    """Gives this process's number and how many there are; one that is alone needs no device."""
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def primary() -> bool:
    """Says whether this is the process that writes the files that there are one of."""
    return process()[0] == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what each process does alone: where it fails in one, it fails in all.

    Raises:
        ValueError: in processes where it went well, with the text of what the others raise.
    """
    if process()[1] == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    texts = _texts('' if error is None else str(error) or repr(error))
    if error is not None:
        raise error
    if failed := [f'process {index}: {text}' for index, text in enumerate(texts) if text]:
        raise ValueError('; '.join(failed))


def on_primary(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in process 0, while the others wait; all raise if it does.

    Raises:
        ValueError: in the other processes, with the text of what process 0 raises.
    """
    with together():
        if primary():
            function(*arguments)


def agree(what: str, lines: str) -> None:
    """Makes sure that all processes have the same text: a run's parts must not drift apart.

    Args:
        what: it is, for the error.
        lines: of text; the error has those that differ.

    Raises:
        ValueError: in every process.
    """
    if process()[1] == 1:
        return
    first, *others = (text.splitlines() for text in _texts(lines))
    for index, other in enumerate(others, start=1):
        if other != first:
            here = ', '.join(line for line in first if line not in other)
            there = ', '.join(line for line in other if line not in first)
            raise ValueError(
                f'{what}: got {here or "less"} in process 0, {there or "less"} in process {index}; '
                'expected the same'
            )


def _texts(text: str) -> list[str]:
    """Gives every process's text, by process; every process calls it."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(data.size))).ravel()
    padded = np.zeros(sizes.max() + 1, np.uint8)
    padded[: data.size] = data
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(every, sizes, strict=True)]


def leave(code: int) -> NoReturn:
    """Ends this process after an error; waits for the others only as long as all end likewise.

    jax has a process that ends wait for the others, for minutes if one of these waits for it.

    Args:
        code: exit code.
    """
    if jax.distributed.is_initialized():
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(_LEAVING)
        if farewell.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def stops(step: int, asked: bool) -> bool:
    """Says whether to stop after `step`, in all processes at the same one.

    Args:
        step: iterations done; every process asks at every step.
        asked: whether this process was asked to. Several processes do not need it: jax's
            coordination service hears SIGTERM in any of them and agrees on a step.
    """
    if process()[1] == 1:
        return asked
    return multihost_utils.reached_preemption_sync_point(step)


# What a step does across devices.


def psum(tree: Any, axis: str | None) -> Any:
    """Sums every leaf over the devices of `axis`."""
    return tree if axis is None else lax.psum(tree, axis)


def gather(x: Array, axis: str | None) -> Array:
    """Stacks every device's x [...] to [P, ...], in device order; for small arrays.

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
    """How many devices `axis` has, 1 without one."""
    return 1 if axis is None else lax.axis_size(axis)


def varying(tree: Any, axis: str | None) -> Any:
    """Marks replicated parameters as this device's own, so that their gradients stay local.

    Without it shard_map sums the gradients over devices itself, and the step's own psum makes
    them P times too large, silently.
    """
    if axis is None:
        return tree
    return jax.tree.map(lambda x: lax.pcast(x, axis, to='varying'), tree)


def next_example(tree: Any, axis: str | None) -> Any:
    """Gives each example the one after it in the global batch, the last one the first.

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
    """Gives each example i of a device the example i+1 of the first device's block, wrapping.

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
        """Gives [B] keys, one per example of `stream`, folded from (step, stream, purpose, i)."""
        size = self.sizes[stream] // self.count
        key = _fold_name(_fold_name(self.key, stream), purpose)
        index = (self.rank * self.count + self.index) * size + jnp.arange(size)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, index)

    def shared(self, purpose: str) -> Array:
        """Gives one key, equal on all devices; micro-batches have different ones."""
        key = _fold_name(self.key, purpose)
        return key if self.count == 1 else jax.random.fold_in(key, self.index)

    def part(self, index: Array | int, count: int) -> 'Keys':
        """Gives the keys of one of `count` micro-batches."""
        return dataclasses.replace(self, index=index, count=count)


def step_keys(key: Array, step: Array, batch: Mapping[str, Mapping], axis: str | None) -> Keys:
    """Gives the keys of one step.

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


# How a step is compiled.


def compile(function: Callable, sharding: Any = None) -> Callable:
    """Compiles a function of arrays; nothing is given away.

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
        """How many of the devices are this process's."""
        return sum(device.process_index == jax.process_index() for device in self.devices)

    def shares(self, key: str, batch_size: int, parts: int = 1) -> tuple[int, int]:
        """Gives how many images of a global batch a process and a device get.

        Args:
            key: of the batch size, for the error.
            batch_size: over all devices.
            parts: micro-batches that a device's share is cut into.

        Raises:
            ValueError: the batch cannot be shared out.
        """
        count = len(self.devices)
        if batch_size % (count * parts):
            of = f'{count} devices' + (f' x accumulate_steps={parts}' if parts > 1 else '')
            kind = self.devices[0].platform
            hint = {'gpu': 'CUDA_VISIBLE_DEVICES', 'cpu': 'JAX_NUM_CPU_DEVICES'}.get(kind)
            hint = f'; {hint} chooses the devices' if hint and count > 1 else ''
            raise ValueError(f'{key}: got {batch_size}, expected a multiple of {of}{hint}')
        return batch_size // count * self.local, batch_size // count

    def place(self, batch: Any) -> Any:
        """Puts this process's block of a batch, host arrays [B/P, ...], on its devices."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))

        def put(x: np.ndarray) -> Array:
            if self.mode == 'pmap':  # which asks for [P, B/P, ...]
                x = x.reshape(self.local, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x)

        return jax.tree.map(put, batch)

    def shapes(self, tree: Any) -> Any:
        """Gives the shapes of arrays that every device is to have whole."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree
        )

    def compile_step(self, step: Callable, state: Any, batch: Any) -> jax.stages.Compiled:
        """Compiles `step(state, batch) -> (state, metrics)`; the state's buffers are given away.

        Args:
            step: of one device, with the axis `AXIS`.
            state: an example of what it gets, or shapes with shardings.
            batch: likewise, as `place` gives it.
        """
        if self.mode == 'pmap':
            axes = {'in_axes': (None, 0), 'out_axes': (None, None)}
            mapped = jax.pmap(step, AXIS, **axes, donate_argnums=0, devices=self.devices)
        else:
            whole, block = PartitionSpec(), PartitionSpec(AXIS)
            specs = {'in_specs': (whole, block), 'out_specs': (whole, whole)}
            mapped = jax.jit(jax.shard_map(step, mesh=self.mesh, **specs), donate_argnums=0)
        return mapped.lower(state, batch).compile()

    def compile_sums(self, function: Callable) -> Callable:
        """Compiles `function(variables, batch) -> sums`, which are added up over the devices.

        Whatever the mode: a batch is as Layout('jit') places it.
        """

        def sums(variables: Any, batch: Any) -> Any:
            return lax.psum(function(variables, batch), AXIS)

        specs = {'in_specs': (PartitionSpec(), PartitionSpec(AXIS)), 'out_specs': PartitionSpec()}
        # Nothing is differentiated, so that what varies over devices need not be tracked.
        return jax.jit(jax.shard_map(sums, mesh=self.mesh, **specs, check_vma=False))
