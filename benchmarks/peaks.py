"""What the device at hand can do, measured, and the time a program takes at least by it."""

import functools
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import count

# TFLOP/s dense by type, 'default' being TF32, and GB/s. The makers' data sheets:
# nvidia.com/en-us/data-center/h200, /h100 (SXM), /a100 (80 GB SXM); cloud.google.com/tpu/docs
# (v4, v5e, v6e), whose float32 products are bfloat16 ones unless told otherwise.
DATASHEETS = {
    'H200': {'bfloat16': 989, 'default': 494, 'float32': 67, 'GB/s': 4800},
    'H100': {'bfloat16': 989, 'default': 494, 'float32': 67, 'GB/s': 3350},
    'A100': {'bfloat16': 312, 'default': 156, 'float32': 19.5, 'GB/s': 2039},
    'TPU v4': {'bfloat16': 275, 'default': 275, 'GB/s': 1228},
    'TPU v5 lite': {'bfloat16': 197, 'default': 197, 'GB/s': 819},
    'TPU v6 lite': {'bfloat16': 918, 'default': 918, 'GB/s': 1640},
}
TYPES = {
    'bfloat16': ('bfloat16', 'default'),
    'default': ('float32', 'default'),
    'float32': ('float32', 'highest'),
}
MEANING = {
    'bfloat16': 'products in bfloat16',
    'default': "products in float32, jax's default precision (TF32 on a GPU)",
    'float32': "products in float32, precision 'highest'",
    'GB/s': 'an array read and written',
}
SIZES = {'real': ((4096, 8192), 2**31), 'small': ((1024, 2048), 2**28)}  # sides; bytes
REPEATS = 5


def measure(size: str) -> dict[str, float]:
    """Measures the device: TFLOP/s of each of TYPES, and 'GB/s' of memory.

    The best of a few, as a peak is what nothing disturbed.
    """
    sides, bytes_ = SIZES[size]
    best = {}
    for name, (dtype, precision) in TYPES.items():
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        for side in sides:
            # Not ones: a chip draws less power on equal bits, and runs faster than in use.
            a = jax.random.normal(jax.random.key(0), (side, side), dtype)
            rate = 2 * side**3 / _seconds(product, a, a) / 1e12
            best[name] = max(rate, best.get(name, 0.0))
    # In its own place: a result that has to be allocated anew would be timed with its page faults.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, times = jax.block_until_ready(add(jnp.zeros(bytes_ // 4))), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        x = jax.block_until_ready(add(x))
        times.append(time.perf_counter() - start)
    best['GB/s'] = 2 * x.nbytes / min(times) / 1e9
    return best


def _seconds(function: jax.stages.Wrapped, *arguments: Array) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def bound(kernels: Iterable[count.Kernel], best: dict[str, float]) -> float:
    """Gives the milliseconds that a chip with these peaks takes at least, kernel by kernel."""

    def seconds(kernel: count.Kernel) -> float:
        arithmetic = kernel.flops / (1e12 * rate(best, kernel.type))
        return kernel.count * max(arithmetic, kernel.bytes / (1e9 * best['GB/s']))

    return 1e3 * sum(seconds(kernel) for kernel in kernels)


def rate(best: dict[str, float], dtype: str) -> float:
    """Gives the TFLOP/s of products in a type: of it, or of a finer one where that is faster."""
    finer = {'bfloat16': ('bfloat16', 'default', 'float32'), 'float32': ('float32',)}
    return max(best.get(name, 0.0) for name in finer.get(dtype, ('default', 'float32')))


def datasheet(chip: str) -> dict[str, float]:
    """Gives what a chip's data sheet says, {} for an unknown one."""
    return next((values for name, values in DATASHEETS.items() if name in chip), {})
