"""Tables of mIoU as data: which configuration gives each cell, and the published number.

Tables 1, 2, 3, 5, 6 and 7 of "Space Engage" (arXiv 2307.09755, Sec. 4.2 and 5), cell by cell.
Tables 2 and 3 have their last row only: the others quote other papers' programs. Table 4 is of
pseudo-labels, not of runs.

Sec. 5 names neither the split nor the number of runs of Tables 5, 6 and 7, whose baseline on 92
labels (67.11) is not Table 1's mean (66.91).

Three tables of iMAS (arXiv 2211.11335) have the numbers that its authors published with their
program (https://github.com/ZhenZHAO/iMAS): `imas:classic`, `imas:blended`, `imas:cityscapes`.

- A row of output stride 8 on VOC is of their README, which has no log beside it. All others are the
  best epoch of a log, of the EMA teacher where there is one; the README's supervised numbers are
  those of the logs, rounded, whose output stride is 16. Its row of Cityscapes at stride 8, 75.2
  78.0 78.2 80.2, is nearly that of the logs, which is here.
- Two logs of the same settings are one cell, their mean and standard deviation.
- Some logs end early: four of classic VOC at epoch 26 to 32 of 80, of ResNet-101 on blended VOC
  that of 1,323 at 72 and of 2,646 at 75, the supervised one of Cityscapes, 744, at 182 of 240.
"""

import statistics
from typing import NamedTuple


class Cell(NamedTuple):
    """One number of a table.

    Attributes:
        row: its name in the paper.
        labels: how many images are labelled.
        variant: what else a column is of; '' where the table has a column for each `labels`.
        method: the words of a configuration's argument that say what is run, on any dataset.
        mean: mIoU in percent.
        std: standard deviation over the runs; None where there is none.
        setup: the words that only the table's own file needs, as of the network.
    """

    row: str
    labels: int
    variant: str
    method: str
    mean: float
    std: float | None
    setup: str = ''


class Table(NamedTuple):
    """One table.

    Attributes:
        title: what it shows.
        file: the file of configs/ that has its runs.
        protocol: the word that this file needs beside a cell's; '' for none.
        cells: row by row.
        source: whose numbers they are.
        note: what they are.
    """

    title: str
    file: str
    protocol: str
    cells: tuple[Cell, ...]
    source: str = 'paper'
    note: str = 'The published numbers are the best of many evaluations on val.'


def _row(
    row: str,
    method: str,
    labels: tuple[int, ...],
    means: tuple[float, ...],
    stds: tuple[float | None, ...] | None = None,
    variant: str = '',
) -> tuple[Cell, ...]:
    """Return the cells of a row."""
    stds = stds or (None,) * len(means)
    return tuple(
        Cell(row, count, variant, method, mean, std)
        for count, mean, std in zip(labels, means, stds, strict=True)
    )


def _imas(
    network: str,
    labels: tuple[int, ...],
    logs: tuple[float | tuple[float, ...], ...],
    setup: str,
    *,
    method: str = 'imas',
    where: str = 'log',
) -> tuple[Cell, ...]:
    """Return the cells of a row of iMAS.

    Args:
        network: its name and output stride, as in 'R50, stride 16'.
        labels: how many images are labelled.
        logs: number for each, or the numbers of several logs.
        setup: of the cells.
        method: name in `css_jax.methods.METHODS`.
        where: the numbers are published, 'log' or 'README'.
    """
    name = {'imas': 'iMAS', 'imas_supervised': 'SupOnly'}[method]
    every = [log if isinstance(log, tuple) else (log,) for log in logs]
    return tuple(
        Cell(
            f'{name}, {network} ({where})', count, '', method, statistics.mean(runs),
            statistics.stdev(runs) if len(runs) > 1 else None, setup,
        )
        for count, runs in zip(labels, every, strict=True)
    )  # fmt: skip


_CLASSIC = (92, 183, 366, 732)
_ABLATION = (92, 183)
_SEG, _MIX = 'seg label', 'mix label'
_REPRESENTATION = 'css,pseudo_label=representation,indicator=both'
_SIMILARITY = 'css,pseudo_label=logit,indicator=similarity'
_BOTH = 'css,pseudo_label=logit,indicator=both'

_FINE = (*_CLASSIC, 1464)
_BLENDED = (662, 1323, 2646)
_STREETS = (186, 372, 744, 1488)
_R50, _R101 = 'backbone=resnet50', 'backbone=resnet101'
_OS8, _OS16 = 'model.output_stride=8', 'model.output_stride=16'
_R50_16, _R101_16 = f'{_R50},{_OS16}', f'{_R101},{_OS16}'
_NOTE = (
    "The published numbers are the authors' best epoch on val, of one run or, with ±, of two. "
    'Stride is the output stride.'
)

TABLES = {
    1: Table(
        'comparison with existing methods, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *_row('Sup.', 'supervised', _CLASSIC, (51.57, 54.69, 64.86, 70.77),
                  (3.58, 2.44, 1.04, 0.76)),
            *_row('MT', 'mean_teacher', _CLASSIC, (58.92, 61.63, 66.79, 71.58),
                  (2.99, 1.76, 0.53, 0.51)),
            *_row('CutMix', 'cutmix', _CLASSIC, (65.82, 67.91, 72.53, 74.08),
                  (3.60, 1.47, 0.50, 0.49)),
            *_row('Baseline', 'baseline', _CLASSIC, (66.91, 70.32, 73.97, 76.49),
                  (4.21, 1.86, 1.04, 0.58)),
            *_row('CSS(crs.)', 'css_cross', _CLASSIC, (67.03, 71.41, 74.47, 77.08),
                  (4.58, 1.67, 1.08, 0.37)),
            *_row('CSS(mix)', 'css_mix', _CLASSIC, (68.09, 71.93, 74.91, 77.57),
                  (4.89, 1.88, 1.12, 0.73)),
        ),
    ),
    2: Table(
        'blender VOC',
        'configs/voc.py',
        'blender',
        _row('CSS (mix)', 'css_mix', (662, 1323, 2646, 5291), (78.73, 79.54, 80.82, 81.06)),
    ),
    3: Table(
        'Cityscapes',
        'configs/cityscapes.py',
        '',
        _row('CSS (mix)', 'css_mix', (186, 372, 744, 1488), (74.02, 76.93, 77.94, 79.62)),
    ),
    5: Table(
        'pseudo-labels from different sources, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *_row('logit space', 'baseline', _ABLATION, (67.11, 70.32)),
            *_row('representation space', _REPRESENTATION, _ABLATION, (64.20, 67.52)),
            *_row('mix pseudo-labeling', 'css_mix', _ABLATION, (68.41, 72.74)),
            *_row('cross pseudo-labeling', 'css_cross', _ABLATION, (67.85, 71.98)),
        ),
    ),
    6: Table(
        'indicators from different spaces, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *_row('conf.', 'baseline', _ABLATION, (67.11, 70.32), variant=_SEG),
            *_row('conf.', 'css_mix,indicator=confidence', _ABLATION, (68.33, 71.92), variant=_MIX),
            *_row('smr.', _SIMILARITY, _ABLATION, (66.16, 68.90), variant=_SEG),
            *_row('smr.', 'css_mix,indicator=similarity', _ABLATION, (66.89, 69.25), variant=_MIX),
            *_row('mix', _BOTH, _ABLATION, (67.80, 71.50), variant=_SEG),
            *_row('mix', 'css_mix', _ABLATION, (68.41, 72.74), variant=_MIX),
        ),
    ),
    7: Table(
        'components of CSS, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *_row('baseline', 'baseline', _ABLATION, (67.11, 70.32)),
            *_row('mix', 'css_mix,indicator=confidence', _ABLATION, (68.33, 71.92)),
            *_row('cross', 'css_cross,indicator=confidence', _ABLATION, (67.21, 70.87)),
            *_row('ind', _BOTH, _ABLATION, (67.80, 71.50)),
            *_row('mix + ind', 'css_mix', _ABLATION, (68.41, 72.74)),
            *_row('cross + ind', 'css_cross', _ABLATION, (67.85, 71.98)),
        ),
    ),
    'imas:classic': Table(
        'iMAS, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *_imas('R101, stride 16', _CLASSIC, (45.5, 57.5, 66.6, 70.4), _R101_16,
                   method='imas_supervised'),
            *_imas('R101, stride 16', _FINE,
                   ((68.78, 68.67), 74.42, (78.45, 77.54), 79.74, (81.16, 80.97)), _R101_16),
        ),
        'authors',
        _NOTE,
    ),
    'imas:blended': Table(
        'iMAS, blended VOC',
        'configs/voc.py',
        'blender',
        (
            *_imas('R50, stride 16', _BLENDED, (63.8, 69.0, 72.5), _R50_16,
                   method='imas_supervised', where='README'),
            *_imas('R50, stride 8', _BLENDED, (75.9, 76.7, 77.1), f'{_R50},{_OS8}',
                   where='README'),
            *_imas('R50, stride 16', _BLENDED, (74.75, (76.60, 76.21), 76.98), _R50_16),
            *_imas('R101, stride 16', _BLENDED, (67.4, 72.1, 74.7), _R101_16,
                   method='imas_supervised', where='README'),
            *_imas('R101, stride 8', _BLENDED, (77.2, 78.4, 79.3), f'{_R101},{_OS8}',
                   where='README'),
            *_imas('R101, stride 16', _BLENDED, (76.48, 77.85, 78.08), _R101_16),
        ),
        'authors',
        _NOTE,
    ),
    'imas:cityscapes': Table(
        'iMAS, Cityscapes',
        'configs/cityscapes.py',
        '',
        (
            *_imas('R50, stride 16', _STREETS, (64.0, 69.2, 73.0, 76.4), _R50_16,
                   method='imas_supervised', where='README'),
            # There on eight GPUs of two images each, which mix with one another.
            *_imas('R50, stride 8', _STREETS, (75.16, 78.27, 78.12, 80.21),
                   f'{_R50},{_OS8},imas.group=2'),
            *_imas('R50, stride 16', _STREETS, (74.31, 77.43, 78.22, 79.30), _R50_16),
        ),
        'authors',
        _NOTE,
    ),
}  # fmt: skip


def get(name: str | int) -> Table:
    """Return a table.

    Args:
        name: its number in the paper, or 'imas:classic', 'imas:blended', 'imas:cityscapes'.

    Raises:
        ValueError: there is no such table of runs.
    """
    by_name = {str(known): table for known, table in TABLES.items()}
    if str(name) not in by_name:
        raise ValueError(f'--table: got {str(name)!r}, expected one of {", ".join(by_name)}')
    return by_name[str(name)]


def heading(name: str | int) -> str:
    """Return a table's name and title, as in 'Table 1: ...'."""
    numbered = f'Table {name}: ' if str(name).isdecimal() else ''
    return numbered + get(name).title


def file_name(name: str | int) -> str:
    """Return the name of the file that a table is written to; it has no colon."""
    return f'table{name}.md' if str(name).isdecimal() else f'table_{name}.md'.replace(':', '_')


def method(cell: Cell, own: bool = True) -> str:
    """Return the words that say what is run in a cell.

    Args:
        cell: of a table.
        own: with the table's own file.
    """
    return f'{cell.method},{cell.setup}' if own and cell.setup else cell.method


def argument(table: Table, cell: Cell) -> str:
    """Return what follows the colon of `table.file` for a cell, as in 'classic,92,css_mix'."""
    return ','.join(filter(None, (table.protocol, str(cell.labels), method(cell))))
