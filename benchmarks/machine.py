"""Where and when a benchmark ran: chip, versions, load, commit."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import time
from typing import Any

DRIVER = pathlib.Path('/proc/driver/nvidia/version')


def describe() -> dict[str, Any]:
    """Return the platform, the chip and the versions; this takes the accelerator, if there is one.

    'platform' is 'cpu', 'gpu' or 'tpu', 'cores' are those of the host that this process may use.
    """
    import jax  # here: the runner asks in another process, and needs no jax itself

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
    if device.platform == 'gpu' and DRIVER.exists():
        versions['driver'] = DRIVER.read_text().splitlines()[0].removeprefix('NVRM version: ')
    counts = {'devices': jax.device_count(), 'cores': len(os.sched_getaffinity(0))}
    return {'platform': device.platform, 'chip': chip, **counts, 'versions': versions}


def line(where: dict[str, Any]) -> str:
    """Format `describe` in one line."""
    versions = ', '.join(f'{name} {version}' for name, version in where['versions'].items())
    return f'{where["devices"]} x {where["chip"]} ({where["cores"]} cores of the host); {versions}'


def slug(where: dict[str, Any]) -> str:
    """Return the chip for a file's name, such as 'cpu-amd-epyc' or 'gpu-nvidia-h200'."""
    words = re.findall(r'[a-z0-9]+', where['chip'].lower())
    words = [word for word in words if word != where['platform']]
    return '-'.join([where['platform'], *words])[:48].rstrip('-')


def moment() -> dict[str, Any]:
    """Return the date and time (UTC), the load average of a minute, and the commit of the code.

    The commit has '+ changes' where files differ from it, and is None outside of git.
    """
    command = ['git', 'describe', '--always', '--exclude=*', '--abbrev=12', '--dirty= + changes']
    given = {'cwd': pathlib.Path(__file__).parent, 'stderr': subprocess.DEVNULL, 'text': True}
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output(command, **given).strip()
    date = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    return {'date': date, 'load_average': round(os.getloadavg()[0], 2), 'commit': commit}


if __name__ == '__main__':
    print(json.dumps(describe()))
