"""The processes of a run: how they meet, agree, fail together and end."""

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

LOG = logging.getLogger('css_jax')
_JOINING = 300  # seconds for all processes to come
_QUIET = 5.0  # seconds of them before a line says what is waited for
_LEAVING = 3.0  # seconds that one process waits for the others to end


def start(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Join the other processes of a run; the first thing a program does with jax.

    Without arguments it joins those of the cluster that jax detects (SLURM, Open MPI, Cloud TPU),
    and does nothing on a plain machine.

    Args:
        address: host:port of process 0.
        count: processes in all; 1 keeps this one alone wherever it runs.
        index: this process's number, from 0.

    Raises:
        ValueError: the arguments make no sense together.
    """
    # A single task of SLURM would be shown the first of its devices only.
    if count == 1 or (address is None and os.environ.get('SLURM_NTASKS') == '1'):
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
        if address is None and 'coordinator_address' in str(error):
            return  # jax knows of no cluster here
        hint = '' if address else '; --process_count=1 keeps a process alone'
        raise ValueError(f'the processes of this run cannot meet: {error}{hint}') from None
    finally:
        late.cancel()


def process() -> tuple[int, int]:
    """Return this process's number and how many there are; one that is alone needs no device."""
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def primary() -> bool:
    """Say whether this is the process that writes the files that there are one of."""
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
    """Call a function in process 0, while the others wait; all raise if it does.

    Raises:
        ValueError: in the other processes, with the text of what process 0 raises.
    """
    with together():
        if primary():
            function(*arguments)


def from_primary(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in process 0 and gives its result, plain JSON data, to every process.

    Raises:
        ValueError: see `on_primary`.
    """
    found: list[str] = []
    on_primary(lambda: found.append(json.dumps(function(*arguments))))
    return json.loads(found[0] if process()[1] == 1 else _texts(''.join(found))[0])


def agree(what: str, lines: str) -> None:
    """Make sure that all processes have the same text: a run's parts must not drift apart.

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
    """Return every process's text, by process; every process calls it."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(data.size))).ravel()
    padded = np.zeros(sizes.max() + 1, np.uint8)
    padded[: data.size] = data
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(every, sizes, strict=True)]


def leave(code: int) -> NoReturn:
    """End this process after an error; waits for the others only as long as all end likewise.

    jax has a process that ends wait for the others, for minutes if one of these waits for it.

    Args:
        code: exit code.
    """
    if jax.distributed.is_initialized():
        if not primary():  # which, once gone, would have jax abort this one
            _exit(code)
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(_LEAVING)
        if farewell.is_alive():
            _exit(code)
    sys.exit(code)


def _exit(code: int) -> NoReturn:
    """End this process without jax's farewell."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stops(step: int, asked: bool) -> bool:
    """Say whether to stop, in all processes at the same time.

    Args:
        step: a number that grows from call to call; every process asks with the same ones.
        asked: whether this process was asked to. Several processes do not need it: jax's
            coordination service hears SIGTERM in any of them and agrees on a step.
    """
    if process()[1] == 1:
        return asked
    return multihost_utils.reached_preemption_sync_point(step)
