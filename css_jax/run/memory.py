"""Out of memory: one line with what was asked for, what there is, and the keys that need less."""

import contextlib
import os
import re
import resource
from collections.abc import Callable, Iterator, Mapping

import jax
from ml_collections import ConfigDict

_GIB = 2**30
_USABLE = 0.9  # of a device: the rest is the runtime's, and lost between arrays


# Modes -> what needs less there; training and evaluating name their own.
_LESS = {
    'predict': 'a smaller --max_side',
    'export': 'a smaller --export_size',
    'preview': 'a smaller data.streams.*.batch_size or data.streams.*.crop',
}


@contextlib.contextmanager
def training(config: ConfigDict, needs: Mapping[str, float | None]) -> Iterator[None]:
    """Answer where a step, or its batch, has no room.

    Args:
        config: finalised.
        needs: `css_jax.parallel.cost.cost` of the step once it is compiled, else {}.

    Raises:
        ValueError: there was no room; says how much is asked for, and what needs less.
    """
    sizes = ', '.join(f'{name} {s.batch_size}' for name, s in config.data.streams.items())
    keys = [f'a smaller data.streams.*.batch_size ({sizes})', 'a smaller data.streams.*.crop']
    keys += [f'more accumulate_steps ({config.accumulate_steps})']
    if jax.default_backend() != 'cpu':  # where it saves nothing
        keys += ['model.remat']
    less = f'less is needed with {", ".join(keys)}'
    with _told(lambda: f'{_asked(needs)}{less}{_fitting(config, needs)}'):
        yield


@contextlib.contextmanager
def start() -> Iterator[None]:
    """Answer where the first state has no room, which no batch changes.

    Raises:
        ValueError: there was no room; says what there is, and what needs less.
    """
    less = 'less is needed with another model.backbone or a smaller model.width'
    with _told(lambda: f'weights and optimiser; {_asked({})}{less}'):
        yield


@contextlib.contextmanager
def evaluation(config: ConfigDict) -> Iterator[None]:
    """Answer where an evaluation has no room.

    Raises:
        ValueError: there was no room; says what there is, and what needs less.
    """
    less = f'a smaller eval.batch_size ({config.eval.batch_size}) or eval.protocol=sliding'
    if config.eval.protocol.startswith('sliding'):  # one image at a time already
        less = 'a smaller eval.window'
    with _told(lambda: f'in the evaluation; {_asked({})}less is needed with {less}'):
        yield


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    """Answer where a mode has no room, and nothing in it has said so.

    Args:
        name: of the mode.

    Raises:
        ValueError: there was no room; says what there is, and what needs less.
    """
    less = f'; less is needed with {_LESS[name]}' if name in _LESS else ''
    # Processes join inside, before which no device may be asked.
    with _told(lambda: f'in --mode {name}; {_asked({})}'.removesuffix('; ') + less):
        yield


@contextlib.contextmanager
def _told(line: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        wanted = re.search(r'[Aa]llocat\w* (?:of )?([\d.]+ ?\w*)', str(error))
        wanted = f' for {_amount(wanted[1].strip())}' if wanted else ''
        raise ValueError(f'out of memory{wanted}: {line()}') from error


def _amount(said: str) -> str:
    """Return an amount as it is said, bytes as MiB or GiB."""
    number, _, unit = said.partition(' ')
    if not number.isdigit() or unit not in ('', 'bytes', 'byte'):
        return said
    size = int(number)
    return f'{size / _GIB:.1f} GiB' if size >= _GIB else f'{size / 2**20:.1f} MiB'


def _asked(needs: Mapping[str, float | None]) -> str:
    """Say what a step takes and what there is, as far as that is known."""
    total, limit = needs.get('bytes_total'), limit_of(jax.local_devices()[0])
    parts = [f'a step takes {total / _GIB:.1f} GiB by the compiler'] if total else []
    parts += [f'the device has {limit / _GIB:.1f} GiB'] if limit else []
    return f'{", ".join(parts)}; ' if parts else ''


def _fitting(config: ConfigDict, needs: Mapping[str, float | None]) -> str:
    """Say which batches would about fit: what is temporary grows with them, the state does not."""
    temporary, fixed = needs.get('bytes_temporary'), needs.get('bytes_arguments')
    limit = limit_of(jax.local_devices()[0])
    if not temporary or fixed is None or not limit:
        return ''
    share = (_USABLE * limit - fixed) / temporary
    largest = {name: int(share * s.batch_size) for name, s in config.data.streams.items()}
    if share >= 1 or min(largest.values()) < 1:
        return ''
    return f'; about {", ".join(f"{name} {size}" for name, size in largest.items())} would fit'


def limit_of(device: jax.Device) -> int | None:
    """Return the bytes that a device has; of a CPU what the machine, and a limit, give a process.

    None where it is not told.
    """
    if device.platform != 'cpu':
        return (device.memory_stats() or {}).get('bytes_limit')
    there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return there if soft == resource.RLIM_INFINITY else min(there, soft)
