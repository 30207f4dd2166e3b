"""Three tables of iMAS (arXiv 2211.11335): `imas:classic`, `imas:blended`, `imas:cityscapes`.

They have the numbers that its authors published with their program
(https://github.com/ZhenZHAO/iMAS).

- A row of output stride 8 on VOC is of their README, which has no log beside it. All others are the
  best epoch of a log, of the EMA teacher where there is one; the README's supervised numbers are
  those of the logs, rounded, whose output stride is 16. Its row of Cityscapes at stride 8, 75.2
  78.0 78.2 80.2, is nearly that of the logs, which is here.
- Two logs of the same settings are one cell, their mean and standard deviation.
- Some logs end early: four of classic VOC at epoch 26 to 32 of 80, of ResNet-101 on blended VOC
  that of 1,323 at 72 and of 2,646 at 75, the supervised one of Cityscapes, 744, at 182 of 240.
"""

from configs.tables.cells import Cell, Table, runs

_CLASSIC = (92, 183, 366, 732)
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
    return runs(f'{name}, {network} ({where})', method, setup, labels, logs)


TABLES = {
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
