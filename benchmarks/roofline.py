"""What the device at hand can do, measured, and the time that a program takes at least by it.

`benchmarks.count` has the rule by which a program is divided into kernels. Each takes at least the
longer of its arithmetic at the peak of its type and its bytes at the bandwidth; their sum is the
program's bound. It is a bound by that rule: what is fused further, or stays in a cache, may take
less, as a small program on a CPU does.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import count
from benchmarks.tables import Row

# TFLOP/s dense by type, 'default' being TF32, and GB/s. The makers' data sheets:
# nvidia.com/en-us/data-center/h200, /h100 (SXM), /a100 (80 GB SXM).
DATASHEETS = {
    'H200': {'bfloat16': 989, 'default': 494, 'float32': 67, 'GB/s': 4800},
    'H100': {'bfloat16': 989, 'default': 494, 'float32': 67, 'GB/s': 3350},
    'A100': {'bfloat16': 312, 'default': 156, 'float32': 19.5, 'GB/s': 2039},
}
# Type -> that of the operands, precision of the product, its row.
TYPES = {
    'bfloat16': ('bfloat16', 'default', 'products in bfloat16, TFLOP/s'),
    'default': ('float32', 'default', 'products in float32 (TF32 on a GPU), TFLOP/s'),
    'float32': ('float32', 'highest', "products in float32, precision 'highest', TFLOP/s"),
}
SIZES = {'real': (8192, 2**31), 'small': (2048, 2**28)}  # side of a product; bytes of an array
REPEATS = 5
KINDS = {
    'convolution': 'convolutions',
    'product': 'products, 1x1 convolutions among them',
    'pass': 'BatchNorm and other passes',
    'other': 'sorts, scatters',
    '': 'all',
}


def programs(size: str) -> dict[str, tuple[Any, tuple]]:
    """Return the programs that `measure` runs: name -> (jitted function, shapes)."""
    side, bytes_ = SIZES[size]
    # In its own place: a result that has to be allocated anew would be timed with its page faults.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    found = {'GB/s': (add, (jax.ShapeDtypeStruct((bytes_ // 4,), 'float32'),))}
    for name, (dtype, precision, _) in TYPES.items():
        shape = jax.ShapeDtypeStruct((side, side), dtype)
        found[name] = jax.jit(partial(jnp.matmul, precision=precision)), (shape, shape)
    return found


def measure(size: str) -> dict[str, float]:
    """Measure the device: TFLOP/s of each of TYPES, and 'GB/s' of memory.

    The best of a few, as a peak is what nothing disturbed.
    """
    best = {}
    for name, (function, shapes) in programs(size).items():
        # Not ones: a chip draws less power on equal bits, and runs faster than in use.
        arrays = [jax.random.normal(jax.random.key(0), s.shape, s.dtype) for s in shapes]
        work = 2 * arrays[0].nbytes / 1e9 if name == 'GB/s' else 2 * len(arrays[0]) ** 3 / 1e12
        times = []
        for _ in range(REPEATS + 1):  # the first compiles
            start = time.perf_counter()
            result = jax.block_until_ready(function(*arrays))
            times.append(time.perf_counter() - start)
            arrays = [result] if name == 'GB/s' else arrays
        best[name] = work / min(times)
    return best


def peaks(best: dict[str, float]) -> Iterator[tuple[str, Row]]:
    """Give a row a peak that `measure` found, beside the data sheet where it is known."""
    chip = jax.devices()[0].device_kind
    said = next((values for name, values in DATASHEETS.items() if name in chip), {})
    for name, rate in best.items():
        what = TYPES[name][2] if name in TYPES else 'an array read and written, GB/s'
        row = {'peak': what, 'measured': rate, 'data sheet': said.get(name, float('nan'))}
        yield f'Peaks of {chip}', row


def rate(best: dict[str, float], dtype: str) -> float:
    """Return the TFLOP/s of products in a type: of it, or of a finer one where that is faster."""
    finer = {'bfloat16': ('bfloat16', 'default', 'float32'), 'float32': ('float32',)}
    return max(best.get(name, 0.0) for name in finer.get(dtype, ('default', 'float32')))


def bound(kernels: Iterable[count.Kernel], best: dict[str, float]) -> float:
    """Return the milliseconds that a chip with these peaks takes at least, kernel by kernel."""

    def seconds(kernel: count.Kernel) -> float:
        arithmetic = kernel.flops / (1e12 * rate(best, kernel.type))
        return kernel.count * max(arithmetic, kernel.bytes / (1e9 * best['GB/s']))

    return 1e3 * sum(seconds(kernel) for kernel in kernels)


def kinds(kernels: list[count.Kernel], best: dict[str, float]) -> Iterator[Row]:
    """Give a row a kind of kernel of a program."""
    for kind, name in KINDS.items():
        own = [kernel for kernel in kernels if kind in ('', kernel.kind)]
        sums = count.totals(own)
        yield {
            'kernels': name,
            'number': int(sum(kernel.count for kernel in own)),
            'TFLOP': sums['flops'] / 1e12,
            'with padding': (sums['flops'] + sums['padding']) / 1e12,
            'GB': sums['bytes'] / 1e9,
            'bound ms': bound(own, best),
        }
