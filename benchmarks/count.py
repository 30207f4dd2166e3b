"""What a program asks of a chip, counted from its jaxpr: arithmetic, bytes, passes over memory.

The rule, for each equation of the program that its results depend on:

- A convolution or product is a kernel of its own, at 2 operations a multiply-add. Its operands are
  read and its result is written once, in their types. Products with zeros that a dilation of the
  operand inserts are no work; those with the padding are counted apart, as a kernel may skip them.
- A sort, a scatter, a cumulative sum and whatever else is in no other rule's list likewise, bytes
  alone.
- A reduction reads what its operand is made of, and writes its result.
- Everything else is fused into what reads it and has no cost: an array is written, once, only if a
  convolution or another kernel of its own reads it, if the program returns it, or if writing it
  and reading it back moves fewer bytes than making it again for each of its readers. Passes that
  read the same arrays are one pass with several results. A slice or a gather reads as much as it
  gives.
- The body of a scan runs as often as the scan says, that of a while loop once; of a conditional the
  costliest branch runs.

So BatchNorm in training mode is three readings of its input (mean, variance, normalisation) and one
writing of what follows it. A cache is not in the rule: what fits into one moves fewer bytes.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

# Their results lie where their operand does.
VIEWS = {'reshape', 'squeeze', 'expand_dims', 'rev', 'copy', 'stop_gradient', 'pcast', 'pvary'}
SAME_IF_EQUAL = {'convert_element_type', 'slice', 'pad', 'broadcast_in_dim', 'reduce_precision'}
REDUCTIONS = ('reduce_', 'argmax', 'argmin')  # how their names begin
WINDOWS = ('reduce_window', 'reduce_precision')  # ... and what else begins so
ALONE = ('sort', 'scatter', 'cum', 'reduce_window', 'select_and', 'fft', 'dynamic_update', 'top_k')
PARTS = ('slice', 'dynamic_slice', 'gather', 'split')
BODIES = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


@dataclasses.dataclass
class Kernel:
    """One pass over memory.

    Attributes:
        kind: 'convolution' | 'product' | 'pass' (elementwise, reductions) | 'other'.
        type: what its arithmetic is in: 'bfloat16', 'float32', or 'default', which is float32 as
            jax's default precision has it on the platform (TF32 on a GPU).
        flops: 2 a multiply-add, without those that meet padding.
        padding: operations that meet padding.
        bytes: read and written.
        count: how often it runs.
    """

    kind: str
    type: str = 'default'
    flops: float = 0.0
    padding: float = 0.0
    bytes: float = 0.0
    count: float = 1.0


class Value(NamedTuple):
    """An array while it is traced: what is read to have it (name -> bytes), and if it is there."""

    reads: Mapping[int, float]
    stored: bool


NOTHING = Value({}, False)


@dataclasses.dataclass
class _Count:
    """What has been counted so far; `passes` finds the kernel that reads the same arrays."""

    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    passes: dict[frozenset, Kernel] = dataclasses.field(default_factory=dict)
    names: Iterable[int] = dataclasses.field(default_factory=itertools.count)

    def stored(self, aval: Any) -> Value:
        return Value({next(self.names): size(aval)}, True)

    def add_pass(self, reads: Mapping[int, float], written: float, times: float) -> None:
        key = frozenset([*reads, ('times', times)])
        if key not in self.passes:
            self.passes[key] = Kernel('pass', bytes=0.0, count=times)
            self.passes[key].bytes = sum(reads.values())
            self.kernels.append(self.passes[key])
        self.passes[key].bytes += written


def kernels(closed: ClosedJaxpr) -> list[Kernel]:
    """Counts a program by the rule of this module.

    Args:
        closed: as `jax.make_jaxpr(f)(*arguments)` or `jax.jit(f).trace(*arguments).jaxpr` gives it;
            the arguments may be shapes.

    Returns:
        Its kernels, in no particular order.
    """
    found = _Count()
    inputs = [found.stored(v.aval) for v in closed.jaxpr.invars]
    results = _walk(closed.jaxpr, closed.consts, inputs, None, 1.0, found)
    for value, v in zip(results, closed.jaxpr.outvars, strict=True):
        _store(value, v.aval, 1.0, found)
    return found.kernels


def totals(found: Iterable[Kernel], kind: str = '') -> dict[str, float]:
    """Adds kernels up, all or those of one kind: 'flops', 'padding', 'bytes'."""
    chosen = [k for k in found if kind in ('', k.kind)]
    return {name: sum(k.count * getattr(k, name) for k in chosen) for name in TOTALS}


TOTALS = ('flops', 'padding', 'bytes')


def size(aval: Any) -> float:
    """Gives the bytes of an array of this shape; random keys and tokens have none that matter."""
    try:
        return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize
    except (AttributeError, TypeError):
        return 0.0


def convolution(eqn: Any) -> Kernel:
    """Counts a `conv_general_dilated`: products by pairs of an output's position and a tap."""
    p = eqn.params
    (x, kernel), y = (v.aval for v in eqn.invars), eqn.outvars[0].aval
    spec = p['dimension_numbers']
    held = valid = 1
    for axis in range(len(p['window_strides'])):
        pairs = _pairs(
            x.shape[spec.lhs_spec[2 + axis]],
            kernel.shape[spec.rhs_spec[2 + axis]],
            y.shape[spec.out_spec[2 + axis]],
            p['window_strides'][axis],
            p['padding'][axis][0],
            p['lhs_dilation'][axis],
            p['rhs_dilation'][axis],
        )
        held, valid = held * pairs[0], valid * pairs[1]
    products = 2 * y.shape[spec.out_spec[0]] * y.shape[spec.out_spec[1]]
    products *= kernel.shape[spec.rhs_spec[1]]  # of one group
    return Kernel(
        'convolution', _type(x, p['precision']), products * valid, products * (held - valid)
    )


def _pairs(
    length: int, taps: int, out: int, stride: int, before: int, hole: int, dilation: int
) -> tuple[int, int]:
    """Gives the (output, tap) pairs along an axis that meet no hole, and those inside the input."""
    at = stride * np.arange(out)[:, None] + dilation * np.arange(taps) - before
    held = at % hole == 0
    return int(held.sum()), int((held & (at >= 0) & (at < hole * (length - 1) + 1)).sum())


def product(eqn: Any) -> Kernel:
    """Counts a `dot_general`."""
    a, y = eqn.invars[0].aval, eqn.outvars[0].aval
    (contracted, _), _ = eqn.params['dimension_numbers']
    depth = math.prod(a.shape[axis] for axis in contracted)
    return Kernel('product', _type(a, eqn.params['precision']), 2 * math.prod(y.shape) * depth)


def _type(operand: Any, precision: Any) -> str:
    if operand.dtype.itemsize == 2:
        return 'bfloat16'
    return 'float32' if 'HIGH' in str(precision) else 'default'


def _walk(
    jaxpr: Any,
    consts: Iterable[Any],
    inputs: list[Value],
    wanted: list[bool] | None,
    times: float,
    found: _Count,
) -> list[Value]:
    """Counts the equations that the wanted results (None: all of them) depend on."""
    wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
    needed = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _variable(v)}
    readers = Counter(needed)
    alive = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in readers for v in eqn.outvars):
            alive.append(eqn)
            readers.update(v for v in eqn.invars if _variable(v))

    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {v: found.stored(v.aval) for v, _ in zip(jaxpr.constvars, consts, strict=True)}

    def read(v: Any) -> Value:
        return env.get(v, NOTHING) if _variable(v) else NOTHING  # what nobody wanted, or a literal

    for eqn in reversed(alive):
        values = [read(v) for v in eqn.invars]
        used = [v in readers for v in eqn.outvars]

        def store(index: int, eqn: Any = eqn, values: list[Value] = values) -> None:
            v = eqn.invars[index]
            values[index] = _store(values[index], v.aval, times, found)
            if _variable(v):
                env[v] = values[index]

        results = _equation(eqn, values, used, store, times, found)
        for v, value in zip(eqn.outvars, results, strict=True):
            made, kept, count = sum(value.reads.values()), size(v.aval), readers[v]
            if count * made > made + (1 + count) * kept:
                value = _store(value, v.aval, times, found)
            env[v] = value
    return [read(v) for v in jaxpr.outvars]


def _equation(
    eqn: Any,
    values: list[Value],
    used: list[bool],
    store: Callable[[int], None],
    times: float,
    found: _Count,
) -> list[Value]:
    """Counts one equation and gives its results; `store(i)` puts operand i into memory."""
    name, outs = eqn.primitive.name, [v.aval for v in eqn.outvars]
    written = sum(size(aval) for aval, w in zip(outs, used, strict=True) if w)
    body = next((eqn.params[key] for key in BODIES if key in eqn.params), None)

    if name in ('conv_general_dilated', 'dot_general'):
        kernel = convolution(eqn) if name.startswith('conv') else product(eqn)
    elif name == 'scan':
        return _scan(eqn, values, store, times, found)
    elif name == 'while':
        body = eqn.params['body_jaxpr']
        for i in range(len(values)):
            store(i)
        inputs = values[eqn.params['cond_nconsts'] :]
        return _closed(body, inputs, None, times, found)
    elif name == 'cond':
        return _costliest(eqn, values[1:], used, times, found)
    elif body is not None and not name.startswith(('reduce', *ALONE)):
        return _closed(body, values, used, times, found)
    elif name in VIEWS or (name in SAME_IF_EQUAL and size(outs[0]) == size(eqn.invars[0].aval)):
        return [values[0]]
    elif name.startswith(REDUCTIONS) and not name.startswith(WINDOWS):
        found.add_pass(_merged(values), written, times)
        return [found.stored(aval) for aval in outs]
    elif name.startswith(ALONE):
        kernel = Kernel('other')
    else:
        reads = _merged(values)
        if name in PARTS:
            kept = sum(math.prod(aval.shape) for aval in outs)
            share = min(1.0, kept / max(1, math.prod(eqn.invars[0].aval.shape)))
            reads = {**{k: v * share for k, v in values[0].reads.items()}, **_merged(values[1:])}
        return [Value(reads, False) for _ in outs]

    for i in range(len(values)):
        store(i)
    touched = [v.aval for v in eqn.invars]
    if name.startswith(('scatter', 'dynamic_update')):  # in place: as much as is written there
        touched = [touched[1], touched[2]] if name.startswith('scatter') else [touched[1]]
        written = size(touched[-1])
    kernel.bytes, kernel.count = sum(map(size, touched)) + written, times
    found.kernels.append(kernel)
    return [found.stored(aval) for aval in outs]


def _closed(
    body: Any, values: list[Value], used: list[bool] | None, times: float, found: _Count
) -> list[Value]:
    """Counts the body of a call, closed or not."""
    jaxpr = getattr(body, 'jaxpr', body)
    return _walk(jaxpr, getattr(body, 'consts', ()), values, used, times, found)


def _scan(
    eqn: Any, values: list[Value], store: Callable, times: float, found: _Count
) -> list[Value]:
    """Counts the body as often as it runs; every run reads its slice of what is scanned over."""
    body, times = eqn.params['jaxpr'], times * eqn.params['length']
    for i in range(len(values)):
        store(i)
    inputs = [found.stored(v.aval) for v in body.jaxpr.invars]
    results = _closed(body, inputs, None, times, found)
    for value, v in zip(results, body.jaxpr.outvars, strict=True):
        _store(value, v.aval, times, found)
    return [found.stored(v.aval) for v in eqn.outvars]


def _costliest(
    eqn: Any, values: list[Value], used: list[bool], times: float, found: _Count
) -> list[Value]:
    counts = []
    for branch in eqn.params['branches']:
        own = _Count(names=found.names)
        for value, v in zip(_closed(branch, values, used, times, own), eqn.outvars, strict=True):
            _store(value, v.aval, times, own)
        sums = totals(own.kernels)
        counts.append(((sums['flops'], sums['bytes']), own.kernels))
    found.kernels += max(counts, key=lambda pair: pair[0])[1]
    return [found.stored(v.aval) for v in eqn.outvars]


def _store(value: Value, aval: Any, times: float, found: _Count) -> Value:
    """Writes an array that is not in memory yet."""
    if value.stored:
        return value
    found.add_pass(value.reads, size(aval), times)
    return found.stored(aval)


def _merged(values: Iterable[Value]) -> dict[int, float]:
    reads: dict[int, float] = {}
    for value in values:
        for name, bytes_ in value.reads.items():
            reads[name] = max(bytes_, reads.get(name, 0.0))
    return reads


def _variable(v: Any) -> bool:
    return not isinstance(v, Literal)
