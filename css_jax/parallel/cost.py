"""What a compiled step takes of a device: arithmetic, memory, and bytes that cross devices."""

import math
import re
from collections.abc import Mapping

import jax

# The operations of XLA's programs that exchange data between devices.
COLLECTIVES = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'collective-permute',
    'all-to-all',
    'collective-broadcast',
)
_ARRAY = re.compile(r'([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]')
_OPERATION = re.compile(rf'= (.*?) ({"|".join(COLLECTIVES)})(-start)?\(')


def cost(program: jax.stages.Compiled) -> dict[str, float | None]:
    """Say what one call of a compiled program takes of each device.

    Returns:
        'flops' and 'bytes_temporary', 'bytes_arguments', 'bytes_output', 'bytes_total', None where
        the backend does not tell. Results in their arguments' place count once in the total.
    """
    analysis, memory = program.cost_analysis() or {}, program.memory_analysis()
    parts = {
        'bytes_temporary': getattr(memory, 'temp_size_in_bytes', None),
        'bytes_arguments': getattr(memory, 'argument_size_in_bytes', None),
        'bytes_output': getattr(memory, 'output_size_in_bytes', None),
    }
    known = None not in parts.values()
    total = sum(parts.values()) - memory.alias_size_in_bytes if known else None
    return {'flops': analysis.get('flops'), **parts, 'bytes_total': total}


def traffic(text: str) -> list[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]]:
    """List what crosses devices in one call of a compiled program.

    Args:
        text: `program.as_text()`.

    Returns:
        For each operation its name, one of `COLLECTIVES`, and the arrays it gives each device, as
        pairs of type and shape, such as ('f32', (64, 3)). An operation in the body of a loop is
        listed once.
    """
    found = []
    for result, name, start in _OPERATION.findall(text):
        arrays = [
            (kind, tuple(int(side) for side in shape.split(',') if side))
            for kind, shape in _ARRAY.findall(result)
        ]
        if start and name != 'all-reduce':  # these name what they are given first, u32s last
            arrays = [array for array in arrays if array != ('u32', ())]
            arrays = arrays[len(arrays) // 2 :]
        found.append((name, tuple(arrays)))
    return found


def crossing(text: str) -> dict[str, int]:
    """Return the bytes of `traffic` by operation, of one device's results."""
    totals: dict[str, int] = {}
    for name, arrays in traffic(text):
        bytes_ = sum(_bytes(kind) * math.prod(shape) for kind, shape in arrays)
        totals[name] = totals.get(name, 0) + bytes_
    return totals


def _bytes(kind: str) -> int:
    """Return the bytes of a number of one of XLA's types, such as pred, bf16 or f8e4m3fn."""
    bits = re.search(r'\d+', kind)
    return -(-int(bits[0]) // 8) if bits else 1


def line(values: Mapping[str, float | None]) -> str:
    """Format the memory of `cost` for a log."""
    if values['bytes_total'] is None:
        return 'memory: not told by this backend'
    parts = {name: values[f'bytes_{name}'] / 2**30 for name in ('arguments', 'temporary', 'total')}
    return (
        f'memory of a step, by the compiler: {parts["total"]:.3f} GiB a device, of which state and '
        f'batch {parts["arguments"]:.3f}, temporary {parts["temporary"]:.3f}'
    )
