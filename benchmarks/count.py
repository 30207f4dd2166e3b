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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

# Their results lie where their operand does; those of SAME where both are of one size.
VIEWS = {'reshape', 'squeeze', 'expand_dims', 'rev', 'copy', 'stop_gradient', 'pcast', 'pvary'}
SAME = {'convert_element_type', 'slice', 'pad', 'broadcast_in_dim', 'reduce_precision'}
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


def kernels(closed: ClosedJaxpr) -> list[Kernel]:
    """Count a program by the rule of this module.

    Args:
        closed: as `jax.make_jaxpr(f)(*arguments)` or `jax.jit(f).trace(*arguments).jaxpr` gives it;
            the arguments may be shapes.

    Returns:
        Its kernels, in no particular order.
    """
    found = _Count(itertools.count(), 1.0)
    inputs = [found.stored(v.aval) for v in closed.jaxpr.invars]
    results = found.walk(closed, inputs)
    for value, v in zip(results, closed.jaxpr.outvars, strict=True):
        found.store(value, v.aval)
    return found.kernels


def totals(found: Sequence[Kernel]) -> dict[str, float]:
    """Add kernels up: 'flops', 'padding', 'bytes'."""
    names = ('flops', 'padding', 'bytes')
    return {name: sum(k.count * getattr(k, name) for k in found) for name in names}


def size(aval: Any) -> float:
    """Return the bytes of an array of this shape; random keys and tokens have none that matter."""
    try:
        return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize
    except (AttributeError, TypeError):
        return 0.0


def convolution(eqn: Any) -> Kernel:
    """Count a `conv_general_dilated`: products by pairs of an output's position and a tap."""
    p, (x, kernel), y = eqn.params, (v.aval for v in eqn.invars), eqn.outvars[0].aval
    spec = p['dimension_numbers']
    held = valid = 1  # pairs that meet no hole of a dilated x, and those of them inside x
    for axis, stride in enumerate(p['window_strides']):
        places = (of[2 + axis] for of in (spec.lhs_spec, spec.rhs_spec, spec.out_spec))
        length, taps, out = (a.shape[i] for a, i in zip((x, kernel, y), places, strict=True))
        hole, step = p['lhs_dilation'][axis], p['rhs_dilation'][axis]
        at = stride * np.arange(out)[:, None] + step * np.arange(taps) - p['padding'][axis][0]
        there = at % hole == 0
        held *= int(there.sum())
        valid *= int((there & (at >= 0) & (at < hole * (length - 1) + 1)).sum())
    products = 2 * y.shape[spec.out_spec[0]] * y.shape[spec.out_spec[1]]
    products *= kernel.shape[spec.rhs_spec[1]]  # of one group
    kind = _type(x, p['precision'])
    return Kernel('convolution', kind, products * valid, products * (held - valid))


def product(eqn: Any) -> Kernel:
    """Count a `dot_general`."""
    a, y = eqn.invars[0].aval, eqn.outvars[0].aval
    (contracted, _), _ = eqn.params['dimension_numbers']
    depth = math.prod(a.shape[axis] for axis in contracted)
    return Kernel('product', _type(a, eqn.params['precision']), 2 * math.prod(y.shape) * depth)


def _type(operand: Any, precision: Any) -> str:
    if operand.dtype.itemsize == 2:
        return 'bfloat16'
    return 'float32' if 'HIGH' in str(precision) else 'default'


class _Count:
    """What has been counted so far, and how often what is counted now runs."""

    def __init__(self, names: Iterator[int], times: float):
        self.names, self.times = names, times
        self.kernels: list[Kernel] = []
        self.passes: dict[frozenset, Kernel] = {}  # what is read -> the kernel that reads it

    def stored(self, aval: Any) -> Value:
        """Return a new array that is in memory."""
        return Value({next(self.names): size(aval)}, True)

    def store(self, value: Value, aval: Any) -> Value:
        """Write an array that is not in memory yet."""
        if value.stored:
            return value
        self.add_pass(value.reads, size(aval))
        return self.stored(aval)

    def add_pass(self, reads: Mapping[int, float], written: float) -> None:
        """Add a result to the kernel that reads these arrays."""
        key = frozenset([*reads, ('times', self.times)])
        if key not in self.passes:
            self.passes[key] = Kernel('pass', bytes=sum(reads.values()), count=self.times)
            self.kernels.append(self.passes[key])
        self.passes[key].bytes += written

    def walk(
        self, body: Any, inputs: Sequence[Value], wanted: Sequence[bool] | None = None
    ) -> list[Value]:
        """Count the equations that the wanted results (None: all) of a jaxpr depend on."""
        jaxpr, consts = getattr(body, 'jaxpr', body), getattr(body, 'consts', ())
        wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
        needed = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _named(v)}
        readers = Counter(needed)
        alive = []
        for eqn in reversed(jaxpr.eqns):
            if any(v in readers for v in eqn.outvars):
                alive.append(eqn)
                readers.update(v for v in eqn.invars if _named(v))

        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env |= {v: self.stored(v.aval) for v, _ in zip(jaxpr.constvars, consts, strict=True)}

        def read(v: Any) -> Value:  # NOTHING of a literal, and of what nobody wanted
            return env.get(v, NOTHING) if _named(v) else NOTHING

        for eqn in reversed(alive):
            values = [read(v) for v in eqn.invars]
            results = self.equation(eqn, values, [v in readers for v in eqn.outvars])
            # `equation` has put into memory what it needs there.
            env |= {v: value for v, value in zip(eqn.invars, values, strict=True) if _named(v)}
            for v, value in zip(eqn.outvars, results, strict=True):
                made, kept, count = sum(value.reads.values()), size(v.aval), readers[v]
                if count * made > made + (1 + count) * kept:
                    value = self.store(value, v.aval)
                env[v] = value
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, values: list[Value], used: list[bool]) -> list[Value]:
        """Count one equation and return its results; `values` change where it stores them."""
        name, outs = eqn.primitive.name, [v.aval for v in eqn.outvars]
        written = sum(size(aval) for aval, w in zip(outs, used, strict=True) if w)
        body = next((eqn.params[key] for key in BODIES if key in eqn.params), None)

        if name in ('conv_general_dilated', 'dot_general'):
            kernel = convolution(eqn) if name.startswith('conv') else product(eqn)
        elif name == 'scan':
            return self.scan(eqn, values)
        elif name == 'while':
            self.store_all(eqn, values)
            return self.walk(eqn.params['body_jaxpr'], values[eqn.params['cond_nconsts'] :])
        elif name == 'cond':
            return self.costliest(eqn, values[1:], used)
        elif body is not None and not name.startswith(('reduce', *ALONE)):
            return self.walk(body, values, used)
        elif name in VIEWS or (name in SAME and size(outs[0]) == size(eqn.invars[0].aval)):
            return [values[0]]
        elif name.startswith(REDUCTIONS) and not name.startswith(WINDOWS):
            self.add_pass(_merged(values), written)
            return [self.stored(aval) for aval in outs]
        elif name.startswith(ALONE):
            kernel = Kernel('other')
        else:
            reads = _merged(values)
            if name in PARTS:
                kept = sum(math.prod(aval.shape) for aval in outs)
                share = min(1.0, kept / max(1, math.prod(eqn.invars[0].aval.shape)))
                reads = {k: v * share for k, v in values[0].reads.items()} | _merged(values[1:])
            return [Value(reads, False) for _ in outs]

        self.store_all(eqn, values)
        touched = [v.aval for v in eqn.invars]
        if name.startswith(('scatter', 'dynamic_update')):  # in place: as much as is written there
            touched = touched[1:3] if name.startswith('scatter') else touched[1:2]
            written = size(touched[-1])
        kernel.bytes, kernel.count = sum(map(size, touched)) + written, self.times
        self.kernels.append(kernel)
        return [self.stored(aval) for aval in outs]

    def store_all(self, eqn: Any, values: list[Value]) -> None:
        """Put the operands of an equation into memory."""
        for i, v in enumerate(eqn.invars):
            values[i] = self.store(values[i], v.aval)

    def scan(self, eqn: Any, values: list[Value]) -> list[Value]:
        """Count the body as often as it runs; every run reads its slice of what is scanned over."""
        body, before = eqn.params['jaxpr'], self.times
        self.store_all(eqn, values)
        self.times *= eqn.params['length']
        results = self.walk(body, [self.stored(v.aval) for v in body.jaxpr.invars])
        for value, v in zip(results, body.jaxpr.outvars, strict=True):
            self.store(value, v.aval)
        self.times = before
        return [self.stored(v.aval) for v in eqn.outvars]

    def costliest(self, eqn: Any, values: list[Value], used: list[bool]) -> list[Value]:
        """Count the branch of a conditional that has most operations, then bytes."""
        found = []
        for branch in eqn.params['branches']:
            own = _Count(self.names, self.times)
            for value, v in zip(own.walk(branch, values, used), eqn.outvars, strict=True):
                own.store(value, v.aval)
            sums = totals(own.kernels)
            found.append(((sums['flops'], sums['bytes']), own.kernels))
        self.kernels += max(found, key=lambda pair: pair[0])[1]
        return [self.stored(v.aval) for v in eqn.outvars]


def _merged(values: Iterable[Value]) -> dict[int, float]:
    reads: dict[int, float] = {}
    for value in values:
        for name, bytes_ in value.reads.items():
            reads[name] = max(bytes_, reads.get(name, 0.0))
    return reads


def _named(v: Any) -> bool:
    return not isinstance(v, Literal)
