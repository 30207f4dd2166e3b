"""Tables of scores, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def scores_table(names: tuple[str, ...], columns: Mapping[str, Mapping], digits: int = 2) -> str:
    """Format scores as a Markdown table: a row per class, then mIoU and pixel accuracy.

    Args:
        names: class names.
        columns: heading -> scores as `css_jax.ops.metrics.scores` gives them.
        digits: behind the point, of percent.

    Returns:
        The table; '-' where a class is neither true nor predicted.
    """

    def percent(value: float | None) -> str:
        return '-' if value is None else f'{100 * value:.{digits}f}'

    rows = [['class', *columns]]
    rows += [[n, *(percent(c['iou'][i]) for c in columns.values())] for i, n in enumerate(names)]
    rows += [['mIoU', *(percent(c['miou']) for c in columns.values())]]
    rows += [['pixel accuracy', *(percent(c['accuracy']) for c in columns.values())]]
    return markdown(rows)


def number(value: float | None, digits: int = 2) -> str:
    """Format a score of a method: a fraction in [0, 1] in percent, '-' for none.

    Args:
        value: whole numbers are counts, and no fractions.
        digits: behind the point, of percent.
    """
    if value is None or isinstance(value, int):
        return '-' if value is None else str(value)
    return f'{100 * value:.{digits}f}' if 0 <= value <= 1 else f'{value:.4g}'


def more_lines(more: Mapping[str, Any]) -> list[str]:
    """Format a method's scores beside mIoU, numbers and lists of numbers: a line each."""
    lists = {name: found if isinstance(found, list) else [found] for name, found in more.items()}
    return [f'{name}: {", ".join(map(number, values))}' for name, values in lists.items()]


def more_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Format scores beside mIoU as a Markdown table, a row each; '' if there is none.

    Args:
        columns: heading -> name -> number.
    """
    names = dict.fromkeys(name for more in columns.values() for name in more)
    rows = [[name, *(number(more.get(name)) for more in columns.values())] for name in names]
    return markdown([['more', *columns], *rows]) if rows else ''


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text as a Markdown table, the first row its heading."""
    # Names are the user's: neither a bar nor a line break in one ends a cell.
    rows = [[' '.join(cell.split()).replace('|', '\\|') for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) + ' |'
        for r in rows
    ]
    rule = '|' + '|'.join(['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])]) + '|'
    return '\n'.join([lines[0], rule, *lines[1:]])
