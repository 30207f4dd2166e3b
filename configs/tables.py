"""The paper's tables of mIoU as data: which configuration gives each cell, and the paper's number.

Tables 1, 2, 3, 5, 6 and 7 of "Space Engage" (arXiv 2307.09755, Sec. 4.2 and 5), cell by cell.
Tables 2 and 3 have their last row only: the others quote other papers' programs. Table 4 is of
pseudo-labels, not of runs.

Sec. 5 names neither the split nor the number of runs of Tables 5, 6 and 7, whose baseline on 92
labels (67.11) is not Table 1's mean (66.91).
"""

from typing import NamedTuple


class Cell(NamedTuple):
    """One number of a table.

    Attributes:
        row: its name in the paper.
        labels: how many images are labelled.
        variant: what else a column is of; '' where the table has a column for each `labels`.
        method: the words of a configuration's argument that say what is run, on any dataset.
        mean: mIoU in percent.
        std: standard deviation over three runs; None where the paper gives none.
    """

    row: str
    labels: int
    variant: str
    method: str
    mean: float
    std: float | None


class Table(NamedTuple):
    """One table.

    Attributes:
        title: what it shows.
        file: the file of configs/ that has its runs.
        protocol: the word that this file needs beside a cell's; '' for none.
        cells: row by row.
    """

    title: str
    file: str
    protocol: str
    cells: tuple[Cell, ...]


def _row(
    row: str,
    method: str,
    labels: tuple[int, ...],
    means: tuple[float, ...],
    stds: tuple[float | None, ...] | None = None,
    variant: str = '',
) -> tuple[Cell, ...]:
    stds = stds or (None,) * len(means)
    return tuple(
        Cell(row, count, variant, method, mean, std)
        for count, mean, std in zip(labels, means, stds, strict=True)
    )


_CLASSIC = (92, 183, 366, 732)
_ABLATION = (92, 183)
_SEG, _MIX = 'seg label', 'mix label'
_REPRESENTATION = 'css,pseudo_label=representation,indicator=both'
_SIMILARITY = 'css,pseudo_label=logit,indicator=similarity'
_BOTH = 'css,pseudo_label=logit,indicator=both'

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
}  # fmt: skip


def get(number: str | int) -> Table:
    """Return a table.

    Raises:
        ValueError: the paper has no such table of runs.
    """
    by_name = {str(known): table for known, table in TABLES.items()}
    if str(number) not in by_name:
        raise ValueError(f'--table: got {str(number)!r}, expected one of {", ".join(by_name)}')
    return by_name[str(number)]


def argument(table: Table, cell: Cell) -> str:
    """Return what follows the colon of `table.file` for a cell, as in 'classic,92,css_mix'."""
    return ','.join(filter(None, (table.protocol, str(cell.labels), cell.method)))
