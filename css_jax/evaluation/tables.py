"""Tables of scores, in Markdown."""

from collections.abc import Mapping, Sequence


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


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text as a Markdown table, the first row its heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) + ' |'
        for r in rows
    ]
    rule = '|' + '|'.join(['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])]) + '|'
    return '\n'.join([lines[0], rule, *lines[1:]])
