"""Runs every benchmark, one process each, and keeps the tables: python -m benchmarks.run.

Without --size an accelerator gets the paper's sizes and a CPU small ones. No part begins a new row
once its time is up, so that all of them together take about nine minutes on one GPU.
"""

import argparse
import pathlib
import subprocess
import sys

SECONDS = {
    'step': 300,
    'convolutions': 90,
    'contrastive': 45,
    'augment': 30,
    'data': 30,
    'checkpoint': 30,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.run', description=__doc__)
    parser.add_argument('--size', choices=('auto', 'real', 'small'), default='auto')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('benchmarks/results'))
    flags = parser.parse_args()
    failed = []
    for part, seconds in SECONDS.items():
        command = [sys.executable, '-m', f'benchmarks.{part}', '--size', flags.size]
        command += ['--out', str(flags.out / f'{part}.md'), '--seconds', str(seconds)]
        if subprocess.run(command).returncode:
            failed.append(part)
        print(flush=True)
    if failed:
        sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
