"""Curves of runs over seeds as one SVG picture: a panel for each logged value, a line for each row.

A line is the mean over the seeds of a row; behind it lie the seeds, thin.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from css_jax.report import charts
from css_jax.report import names as names_of

_COLOURS = ('#1f77b4', '#d95f02', '#1b9e77', '#e7298a', '#7570b3', '#a6761d', '#444444', '#66a61e')
_WIDTH, _HEIGHT = 400, 220  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 28, 24
_LINE = 18  # height of a line of the legend

Points = Sequence[tuple[float, float]]


def svg(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return a picture that stands alone.

    Args:
        records: as `benchmarks.evidence.collect` gives them.
        names: of logged values, a panel for each.

    Raises:
        ValueError: no run has logged one of them, or there are more rows than colours.
    """
    rows = list(dict.fromkeys(record['row'] for record in records))
    if len(rows) > len(_COLOURS):
        raise ValueError(f'{len(rows)} rows; expected at most {len(_COLOURS)}, see --rows')
    colours = dict(zip(rows, _COLOURS, strict=False))
    panels = [_panel(records, name, colours, _WIDTH * i) for i, name in enumerate(names)]
    legend = [
        f'<path d="M{_LEFT} {_HEIGHT + 12 + _LINE * i}h24" stroke="{colour}" stroke-width="2.5"/>'
        f'<text x="{_LEFT + 32}" y="{_HEIGHT + 16 + _LINE * i}">{escape(row)}</text>'
        for i, (row, colour) in enumerate(colours.items())
    ]
    width, height = _WIDTH * len(names), _HEIGHT + _LINE * len(rows) + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + '\n'.join([*panels, *legend])
        + '\n</svg>\n'
    )


def mean(seeds: Sequence[Points]) -> list[tuple[float, float]]:
    """Return the mean over seeds of the steps that all of them have."""
    values = [dict(points) for points in seeds]
    common = sorted(set.intersection(*(set(value) for value in values)))
    return [(step, sum(value[step] for value in values) / len(values)) for step in common]


def _panel(
    records: Sequence[Mapping[str, Any]], name: str, colours: Mapping[str, str], left: int
) -> str:
    meaning = names_of.said(name)
    factor = 100 if meaning.percent else 1
    series: dict[str, list[Points]] = {}
    for record in records:
        points = [(s, factor * v) for s, v in record['log'].get(name, ()) if v is not None]
        if points:
            series.setdefault(record['row'], []).append(points)
    if not series:
        raise ValueError(f'no run has logged {name!r}; expected a name in the logs of all rows')
    every = [point for seeds in series.values() for points in seeds for point in points]
    last = max(step for step, _ in every)
    marks = charts.ticks(min(v for _, v in every), max(v for _, v in every))
    if meaning.percent:
        marks = [mark for mark in marks if 0 <= mark <= 100]

    def x(step: float) -> float:
        return left + _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share = (value - marks[0]) / (marks[-1] - marks[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def line(points: Points, style: str) -> str:
        if len(points) == 1:
            return f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="3" {style}/>'
        drawn = 'L'.join(f'{x(step):.1f} {y(value):.1f}' for step, value in points)
        return f'<path d="M{drawn}" fill="none" {style}/>'

    title = f'{meaning.title}, %' if meaning.percent else meaning.title
    parts = [f'<text x="{left + _LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for mark in marks:
        parts.append(
            f'<path d="M{x(0):.1f} {y(mark):.1f}H{x(last):.1f}" stroke="#ddd"/>'
            f'<text x="{x(0) - 6:.1f}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>'
        )
    for step, anchor in ((0, 'start'), (last, 'end')):
        parts.append(
            f'<text x="{x(step):.1f}" y="{_HEIGHT - 7}" text-anchor="{anchor}">{step:g}</text>'
        )
    parts.append(f'<text x="{x(last / 2):.1f}" y="{_HEIGHT - 7}" text-anchor="middle">step</text>')
    for row, seeds in series.items():
        colour = f'stroke="{colours[row]}"'
        if len(seeds) > 1:
            parts += [
                line(points, f'{colour} stroke-width="0.7" opacity="0.5"') for points in seeds
            ]
        parts.append(line(mean(seeds), f'{colour} stroke-width="2.2"'))
    return '\n'.join(parts)
