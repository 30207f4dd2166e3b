"""Where and when a benchmark ran: chip, versions, load, commit."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import time
from typing import Any

import jax

_DRIVER = pathlib.Path('/proc/driver/nvidia/version')


def describe() -> dict[str, Any]:
    """Gives the platform, the chip and the versions; this takes the accelerator, if there is one.

    Returns:
        'platform' ('cpu', 'gpu', 'tpu'), 'chip', 'devices' (how many), 'cores' (of the host, that
        this process may use) and 'versions', name -> version.
    """
    device = jax.devices()[0]
    chip = device.device_kind
    if device.platform == 'cpu':
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        chip = names[0] if names else platform.machine()
    versions = {'Python': platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax')}
    # Of an accelerator: the platform's (CUDA, libtpu), then the kernel driver's.
    versions['platform'] = ' '.join(device.client.platform_version.split())
    if device.platform == 'gpu' and _DRIVER.exists():
        versions['driver'] = _DRIVER.read_text().splitlines()[0].removeprefix('NVRM version: ')
    return {
        'platform': device.platform,
        'chip': chip,
        'devices': jax.device_count(),
        'cores': len(os.sched_getaffinity(0)),
        'versions': versions,
    }


def line(where: dict[str, Any]) -> str:
    """Formats `describe` in one line."""
    versions = ', '.join(f'{name} {version}' for name, version in where['versions'].items())
    return f'{where["devices"]} x {where["chip"]} ({where["cores"]} cores of the host); {versions}'


def slug(where: dict[str, Any]) -> str:
    """Gives the chip for a file's name, such as 'cpu-amd-epyc' or 'gpu-nvidia-h200'."""
    words = re.findall(r'[a-z0-9]+', where['chip'].lower())
    words = [word for word in words if word != where['platform']]
    return '-'.join([where['platform'], *words])[:48].rstrip('-')


def moment() -> dict[str, Any]:
    """Gives the date and time (UTC), the load average of a minute, and the commit of the code."""
    return {
        'date': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'load_average': round(os.getloadavg()[0], 2),
        'commit': _commit(),
    }


def _commit() -> str | None:
    """Gives the commit, with '+ changes' where files differ from it; None outside of git."""
    root = pathlib.Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short=12', 'HEAD') + (' + changes' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return None
