"""The configuration in a run's folder, held against the one given; and on what the run trained."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax.config import file
from css_jax.run import checksums, files

LOG = logging.getLogger('css_jax')
FILE = file.NAME
LOCK = '.lock'
STARTS = 'run.json'
# What a run leaves in its folder and would be lost if another one took it.
TRACES = (
    *('checkpoints', 'metrics.jsonl', 'results*.json', 'events.out.tfevents.*'),
    *(STARTS, 'wandb.json'),
)
# Keys that may differ between the processes of a run, and between one time and another.
HOST = ('data.dir', 'data.threads', 'data.prefetch')
# Keys that may differ where a run resumes: none changes what is trained, or how it is scored, but
# for records that could not be trained on before.
FREE = (
    'data.unreadable',
    'parallel',
    'profile',
    'wandb',
    'model.atrous',
    'model.remat',
    'log_every',
    'checkpoint_every',
    'eval.every',
    'eval.batch_size',
    'eval.by_number',
    *HOST,
)


def save(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Write DIR/config.json, whole or not at all."""
    files.write(pathlib.Path(workdir) / FILE, file.text(config))


def load(workdir: str | pathlib.Path) -> ConfigDict:
    """Return the finalised configuration of the run in DIR, whatever version has written it.

    Raises:
        FileNotFoundError: DIR is not a run's folder.
        ValueError: its file is damaged.
    """
    return configs.finalise(file.read(workdir), workdir)


def note_start(workdir: str | pathlib.Path, step: int, devices: Sequence[jax.Device]) -> None:
    """Add to DIR/run.json when, by what and from which step the run was started or resumed.

    Args:
        workdir: the run's folder.
        step: iterations done.
        devices: all that it trains on.
    """
    begun = {
        'time': round(time.time(), 3),
        'step': step,
        'devices': len(devices),
        'device': devices[0].device_kind,
        'processes': len({device.process_index for device in devices}),
        'host': f'{_processor()}, {os.cpu_count()} cores',
        'python': platform.python_version(),
        **{name: metadata.version(name) for name in ('jax', 'flax', 'optax')},
    }
    text = json.dumps({'starts': [*starts(workdir), begun]}, indent=2)
    files.write(pathlib.Path(workdir) / STARTS, text + '\n')


def starts(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Return what `note_start` has noted, in order; nothing of an older or a damaged file."""
    try:
        found = json.loads((pathlib.Path(workdir) / STARTS).read_text())['starts']
        return [dict(start) for start in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _processor() -> str:
    """Return the name of the host's processor, its architecture where that is not told."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


@contextlib.contextmanager
def lock(workdir: str | pathlib.Path) -> Iterator[None]:
    """Keep other processes from training in DIR; the system frees it when the process ends.

    Two that train in one folder would remove each other's unfinished checkpoints.

    Args:
        workdir: the run's folder; made if missing. DIR/.lock stays in it.

    Raises:
        BlockingIOError: another process has it.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open('a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f'another process is training in {workdir}') from None
        except OSError as error:  # some network file systems have no locks
            LOG.warning('warning: %s cannot be locked (%s): train in it once', workdir, error)
        yield


def claim(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Make DIR the folder of this run, or makes sure that it is already.

    Args:
        config: finalised.
        workdir: a new or empty folder, or one whose run was trained with the same configuration.

    Raises:
        ValueError: see `match`; or DIR has checkpoints of nobody knows what.
        BlockingIOError: another process is training in DIR.
    """
    workdir = pathlib.Path(workdir)
    there = [path.name for pattern in TRACES for path in sorted(workdir.glob(pattern))]
    if there and not (workdir / FILE).exists():
        raise ValueError(
            f"{workdir} has {', '.join(there)} but no {FILE}: expected a new folder or a run's"
        )
    with lock(workdir):
        if (workdir / FILE).exists():
            _take(config, workdir)
        save(config, workdir)


def _take(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Make sure that a run's folder is this run's; one that has nothing to lose is taken over.

    A start that was refused or has failed leaves a configuration, and no checkpoint.
    """
    if checksums.steps(workdir / 'checkpoints') or any(workdir.glob('results*.json')):
        match(config, workdir)
        return
    if wrong := _wrong(config, workdir, FREE):
        LOG.info(
            '%s had another configuration (%s) and no checkpoint: it is replaced',
            workdir,
            _listed(wrong),
        )
        for pattern in TRACES:
            for path in workdir.glob(pattern):
                if path.is_file():
                    path.unlink()


def match(config: ConfigDict, workdir: str | pathlib.Path, free: tuple[str, ...] = FREE) -> None:
    """Make sure that a configuration is the one the run in DIR was trained with.

    Args:
        config: finalised.
        workdir: the run's folder.
        free: beginnings of the keys that may differ.

    Raises:
        ValueError: the run was trained with other values; names them.
        FileNotFoundError: DIR is not a run's folder.
    """
    if wrong := _wrong(config, workdir, free):
        other = all(key.startswith('eval.') for key, _, _ in wrong)
        hint = ' --mode evaluate scores it in another way.' if other else ''
        if any(key == 'steps' and new > old for key, old, new in wrong):
            # Not resumed: its learning rate has come to its end, and would jump up.
            hint = f' To train longer, start from it: --config.init_from={workdir}.'
        raise ValueError(
            f'{workdir} has a run with another configuration ({_listed(wrong)}). Take another '
            f'--workdir, or give the same values.{hint}'
        )


def _wrong(
    config: ConfigDict, workdir: str | pathlib.Path, free: tuple[str, ...]
) -> list[tuple[str, Any, Any]]:
    return [d for d in diff(load(workdir), config) if not d[0].startswith(free)]


def _listed(wrong: Sequence[tuple[str, Any, Any]]) -> str:
    return ', '.join(f'{key}: {old!r} there, {new!r} now' for key, old, new in wrong)


def diff(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """List (dotted key, old value, new value) of all keys that differ; a missing one is None."""
    flat_old, flat_new = _flat(old.to_dict()), _flat(new.to_dict())
    keys = sorted(flat_old.keys() | flat_new.keys())
    pairs = [(key, flat_old.get(key), flat_new.get(key)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def lines(config: ConfigDict) -> str:
    """Return a configuration as text that all processes of a run have in common, a key a line."""
    values = sorted(_flat(config.to_dict()).items())
    return '\n'.join(f'{key}={value!r}' for key, value in values if not key.startswith(HOST))


def _flat(tree: dict, prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        path = f'{prefix}{key}'
        flat.update(_flat(value, f'{path}.') if isinstance(value, dict) else {path: value})
    return flat
