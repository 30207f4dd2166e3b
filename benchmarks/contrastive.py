"""Time and memory of the contrastive loss and of what it needs, forward and backward.

    python -m benchmarks.contrastive --size real --repeats 9 --out benchmarks/results/contrastive.md

Each row runs in a process of its own, so that its peak memory is its own: the highest mark of the
process (on an accelerator: of the allocator) less what was in use when the inputs and the compiled
program were there. Where the mark cannot be reset (not Linux's CPU), making the inputs may have
set it, and the peak is an upper bound.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp

from css_jax.ops import contrastive, losses, prototypes

MIB = 2**20
SIZES = {  # representation map and classes; the rest is the paper's
    'real': ((16, 128, 128, 256), 21),
    'small': ((2, 32, 32, 64), 7),
}


def inputs(size: str) -> tuple[jax.Array, ...]:
    """Gives representations, labels (one in C + 1 ignored), hard (0.3 of them), prototypes."""
    shape, num_classes = SIZES[size]
    keys = jax.random.split(jax.random.key(0), 4)
    return (
        jax.jit(jax.random.normal, static_argnums=1)(keys[0], shape),
        jax.random.randint(keys[1], shape[:-1], -1, num_classes),
        jax.random.bernoulli(keys[2], 0.3, shape[:-1]),
        jax.random.normal(keys[3], (num_classes, shape[-1])),
    )


def loss_and_gradient(estimator: str):
    def f(representations, labels, hard, rho):
        return contrastive.loss(
            jax.random.key(1), representations, labels, hard, rho, estimator=estimator
        )[0]

    return jax.value_and_grad(f)


def hardness(representations, labels, hard, rho):
    """Which pixels are hard, as method CSS decides it; `hard` itself is not used."""
    logits = prototypes.cosine(representations, rho) / 0.5
    return jnp.exp(-losses.pixel_cross_entropy(logits, labels)) < 0.8


def class_sums(representations, labels, hard, rho):
    return prototypes.class_sums(representations, labels, len(rho))


PROGRAMS = {
    'bank, forward + backward': loss_and_gradient('bank'),
    'sampled, forward + backward': loss_and_gradient('sampled'),
    'hard pixels': hardness,
    'class sums': class_sums,
}


def memory_in_use() -> tuple[int, int]:
    """Gives the bytes in use now and at most so far, of the accelerator or else of the process."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats['bytes_in_use'], stats['peak_bytes_in_use']
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    kibibytes = {line.split(':')[0]: line.split()[1] for line in lines if line.startswith('Vm')}
    return int(kibibytes['VmRSS']) * 1024, int(kibibytes['VmHWM']) * 1024


def forget_peak() -> None:
    """Sets the process's highest mark to what is in use now, where the system allows it."""
    with contextlib.suppress(OSError):
        pathlib.Path('/proc/self/clear_refs').write_text('5')


def measure(name: str, size: str, repeats: int) -> dict[str, float | str]:
    """Compiles and times one of PROGRAMS; the first call does not count."""
    arguments = jax.block_until_ready(inputs(size))
    start = time.perf_counter()
    program = jax.jit(PROGRAMS[name]).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    analysis = program.memory_analysis()
    forget_peak()
    before, _ = memory_in_use()
    jax.block_until_ready(program(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    return {
        'program': name,
        'median ms': f'{statistics.median(times):.1f}',
        'min ms': f'{min(times):.1f}',
        'output MiB': f'{analysis.output_size_in_bytes / MIB:.0f}',
        'temporary MiB': f'{analysis.temp_size_in_bytes / MIB:.0f}',
        'peak above inputs MiB': f'{(memory_in_use()[1] - before) / MIB:.0f}',
        'compile s': f'{compile_seconds:.1f}',
    }


def machine() -> str:
    """Gives the chip and the versions in one line."""
    device = jax.devices()[0]
    chip = device.device_kind
    if device.platform == 'cpu':
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        chip = f'{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores'
    return f'{chip}; jax {jax.__version__}, Python {platform.python_version()}'


def report(size: str, repeats: int) -> str:
    """Measures every program, each in a fresh process, and gives the table in Markdown."""
    shape, num_classes = SIZES[size]
    spawn = multiprocessing.get_context('spawn')
    load = os.getloadavg()[0]
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        where = pool.submit(machine).result()
        rows = [pool.submit(measure, name, size, repeats).result() for name in PROGRAMS]
    lines = [
        f'Representations {shape} float32, {num_classes} classes, 256 anchors a class, '
        f'512 negatives, bank of 256; {repeats} repeats.',
        f'{where}; {time.strftime("%Y-%m-%d")}; load average at the start {load:.1f}.',
        '',
        '| ' + ' | '.join(rows[0]) + ' |',
        '|---' + '|---:' * (len(rows[0]) - 1) + '|',
        *('| ' + ' | '.join(row.values()) + ' |' for row in rows),
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--size', choices=SIZES, default='real')
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--out', type=pathlib.Path, help='Markdown file to write the table to')
    flags = parser.parse_args()
    table = report(flags.size, flags.repeats)
    print(table, end='')
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text('# Contrastive loss\n\n' + table)


if __name__ == '__main__':
    main()
