"""The figures to reach, each with its bar and with what a run of `benchmarks.run` measured.

The bars of the step's time are for one H200 at the paper's sizes, those of its memory and of the
start for any accelerator, that of the host's input for any machine. What a run has not measured, on
this chip or at this size, says so, and so does what the memory did not suffice for: not reached.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import kernels, parts, step
from benchmarks.tables import Row

CAPTION = 'The figures to reach'
NOT_MEASURED = 'not measured'
H200, ACCELERATOR, ANY = 'one H200', 'an accelerator', 'any machine'
Rows = list[dict[str, Any]]


class Bar(NamedTuple):
    """A figure to reach.

    Attributes:
        what: it is of; '{cores}' is how many the host has.
        sign: '<=' or '>='.
        limit: the most or the least that it may be.
        unit: of both.
        needs: `H200`, `ACCELERATOR` or `ANY`.
        value: rows of a run -> what it measured, NaN for nothing, infinity where it ran out of
            memory.
    """

    what: str
    sign: str
    limit: float
    unit: str
    needs: str
    value: Callable[[Rows], float]


def find(part: str, column: str, where: Mapping[str, str]) -> Callable[[Rows], float]:
    """Gives the function that takes a number from the rows of a run.

    Args:
        part: whose rows.
        column: of the number.
        where: column -> its text; 'caption' -> what the caption has in it.

    Returns:
        Rows -> the number of the first row that fits; infinity where that ran out of memory, NaN
        where none fits.
    """

    def value(rows: Rows) -> float:
        for line in rows:
            row = line['row']
            fits = line['part'] == part and where.get('caption', '') in line['caption']
            fits = fits and all(
                row.get(k) in (v, step.OUT_OF_MEMORY) for k, v in where.items() if k != 'caption'
            )
            if fits and isinstance(row.get(column), (int, float)):
                return float(row[column])
            if fits and step.OUT_OF_MEMORY in row.values():
                return math.inf
        return math.nan

    return value


def _step(case: str, column: str) -> Callable[[Rows], float]:
    batch = step.batch_of('real', case)
    return find('step', column, {'step': case, 'images': f'{batch} + {batch}'})


def _gigabytes(*cases: str) -> Callable[[Rows], float]:
    """Gives the least of the highest marks of those of some cases that ran."""
    found = [_step(case, 'peak MiB') for case in cases]
    return lambda rows: min((f(rows) for f in found), key=_nan_last) * 2**20 / 1e9


def _share(name: str) -> Callable[[Rows], float]:
    """Gives the percentage of a part of the headline's step."""
    found = find('parts', 'of the step', {'part': name, 'caption': step.BFLOAT16})
    return lambda rows: 100 * found(rows)


def _input(rows: Rows, column: str) -> float:
    """Gives the largest number in a column, of the input at the paper's crop."""
    found = [
        line['row'].get(column)
        for line in rows
        if line['part'] == 'data' and '512' in line['caption']
    ]
    return max((value for value in found if isinstance(value, (int, float))), default=math.nan)


def _ahead(rows: Rows) -> float:
    """Gives how many times faster than the step the input is."""
    needed = _step(step.BFLOAT16, 'img/s')(rows)
    return needed if math.isinf(needed) else _input(rows, 'images/s') / needed


def _nan_last(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


def _covered(rows: Rows) -> float:
    return 100 * find('kernels', 'share', {'kernels': kernels.COVERED})(rows)


def _start(cache: str) -> Callable[[Rows], float]:
    return find('startup', 'first step done after s', {'cache': cache})


REMAT = ('bfloat16, remat=layer3', 'bfloat16, remat=all')
BARS = (
    Bar('a step, teacher on unlabelled', '<=', 168, 'ms', H200, _step(step.BFLOAT16, 'ms')),
    Bar('the same', '>=', 95, 'pairs/s', H200, _step(step.BFLOAT16, 'pairs/s')),
    Bar('a step, teacher on both', '>=', 86, 'pairs/s', H200, _step(step.BOTH, 'pairs/s')),
    Bar(parts.REST, '<=', 12, '% of the step', H200, _share(parts.REST)),
    Bar('L_c, forward + backward', '<=', 3, '% of the step', H200, _share(parts.CONTRASTIVE)),
    Bar('L_c with hardness and prototypes', '<=', 3, '% of the step', H200, _share(parts.LOSS_C)),
    Bar('parts of the step, their sum', '>=', 90, '% of the step', ANY, _share(parts.SUM)),
    Bar('the same', '<=', 110, '% of the step', ANY, _share(parts.SUM)),
    Bar('the profile: covered by kernels', '>=', 95, '% of the step', H200, _covered),
    Bar(
        'host input, crops of 512',
        '>=',
        250,
        'img/s a core pair',
        ANY,
        lambda rows: _input(rows, 'images/s a core pair'),
    ),
    Bar('the same, ahead on {cores} cores', '>=', 1, 'times the step', H200, _ahead),
    Bar('first step, empty cache', '<=', 120, 's', ACCELERATOR, _start('cold')),
    Bar('first step, filled cache', '<=', 20, 's', ACCELERATOR, _start('warm')),
    Bar('memory, VOC 16 + 16', '<=', 80, 'GB', ACCELERATOR, _gigabytes(step.BFLOAT16)),
    Bar('memory, Cityscapes 8 + 8', '<=', 80, 'GB', ACCELERATOR, _gigabytes(step.CITYSCAPES)),
    Bar('memory, VOC 16 + 16, remat', '<=', 24, 'GB', ACCELERATOR, _gigabytes(*REMAT)),
)


def rows(results: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Gives a row a bar.

    Args:
        results: of `benchmarks.run`: 'where', 'size' and 'rows' are read.
    """
    where = results['where']
    real = results['size'] == 'real' and where['platform'] != 'cpu'
    met = {H200: real and 'H200' in where['chip'], ACCELERATOR: real, ANY: True}
    for bar in BARS:
        value = bar.value(results['rows']) if met[bar.needs] else math.nan
        met_by = value <= bar.limit if bar.sign == '<=' else value >= bar.limit
        measured, reached = f'{value:.3g}', 'yes' if met_by else 'no'
        if math.isnan(value):
            measured, reached = NOT_MEASURED, '-'
        elif math.isinf(value):
            measured, reached = step.OUT_OF_MEMORY, 'no'
        yield (
            CAPTION,
            {
                'what': bar.what.format(cores=where['cores']),
                'on': bar.needs,
                'bar': f'{bar.sign} {bar.limit:g} {bar.unit}',
                'measured': measured,
                'reached': reached,
            },
        )
