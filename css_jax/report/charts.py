"""Charts as inline SVG: they take their colours from the page, in light and in dark.

A chart of four runs is 2 to 6 kB so, 12 kB by matplotlib and 4.5 MB of script by plotly.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from css_jax.report.page import named, text

Points = Sequence[tuple[float, float | None]]
_WIDTH, _HEIGHT = 320, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22
_MOST = 240  # points of a line; of more, every n-th and the last are drawn
COLOURS = 8  # of runs, in page.css
_FEW = 16  # points in a small drawing
_LETTER, _LINE = 6.6, 13  # width of a letter of a name, and height of its line


def lines(
    title: str,
    series: Mapping[str, Points],
    last_step: int,
    known_as: str = '',
    bounds: tuple[float, float] | None = None,
) -> str:
    """Return a figure with a line for each run, and its last value below.

    Args:
        title: of the values, plain text.
        series: run -> (step, value), steps ascending; None breaks the line. A run that has no
            value keeps its colour.
        last_step: at the right end; all charts of a page have one scale of steps.
        known_as: name of the values in metrics.jsonl, shown small where the title is another.
        bounds: least and largest value that there can be; the axis ends there.
    """
    known = [p for points in series.values() for p in points if p[1] is not None]
    if not known:
        return ''
    values = np.array([value for _, value in known], float)
    left, right = 0, max(last_step, 1)
    marks = ticks(values.min(), values.max())
    if bounds:
        marks = [mark for mark in marks if bounds[0] <= mark <= bounds[1]]
        marks = marks if len(marks) > 1 else list(bounds)
    low, high = marks[0], marks[-1]

    def x(step: float) -> float:
        return _LEFT + (step - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for mark in marks:
        parts.append(_rule(y(mark)))
        parts.append(_text(_LEFT - 5, y(mark) + 4, _short(mark), 'end'))
    for step, anchor in ((left, 'start'), (right, 'end')):
        parts.append(_text(x(step), _HEIGHT - 5, f'{step:g}', anchor))
    parts.append(_text((x(left) + x(right)) / 2, _HEIGHT - 5, 'step', 'middle'))
    legend = []
    for place, (name, points) in enumerate(series.items()):
        colour = f'var(--run-{place % COLOURS})'
        last = next((value for _, value in reversed(points) if value is not None), None)
        if last is None:
            continue
        drawn, dot = _path(_thinned(points), x, y), ''
        if len(points) == 1:  # no line
            dot = f'<circle cx="{x(points[0][0]):.1f}" cy="{y(last):.1f}" r="3.5" '
            dot += f'style="fill:{colour}"/>'
        dash = ' stroke-dasharray="5 3"' if place >= COLOURS else ''
        parts.append(
            f'<path class="line" style="stroke:{colour}"{dash} d="{drawn}">'
            f'<title>{text(name)}</title></path>{dot}'
        )
        key = f'<span class="key" style="background:{colour}"></span>'
        legend.append(f'<span>{key}{text(name)} {last:.4g}</span>')
    label = f'{title} by step: ' + ', '.join(
        f'{name} ends at {points[-1][1]:.4g}'
        for name, points in series.items()
        if points and points[-1][1] is not None
    )
    return (
        f'<figure class="chart"><h4>{named(title, known_as)}</h4>'
        f'{_svg(label, parts, _WIDTH, _HEIGHT)}<figcaption>{"".join(legend)}</figcaption></figure>'
    )


def points(
    title: str,
    places: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    groups: Sequence[int],
    titles: Sequence[str],
) -> str:
    """Return a figure of named points in the plane, one scale for both axes.

    Args:
        title: plain text.
        places: [N, 2] float.
        names: [N], plain text.
        colours: [N, 3] uint8 RGB.
        groups: [N] int, places in `titles`: a shape for each.
        titles: of the groups, plain text; shown where there are several.
    """
    width, height = (420, 280) if len(places) <= _FEW else (860, 560)
    low, high = places.min(0), places.max(0)
    margin = np.array([24 + _LETTER * max(map(len, names)), 20])  # names stand outside
    scale = float(((np.array([width, height]) - 2 * margin) / np.maximum(high - low, 1e-9)).min())
    middle = (low + high) / 2
    drawn = scale * (places - middle) * (1, -1) + np.array([width, height]) / 2
    parts, taken = [], []
    for i in np.argsort(drawn[:, 1]):  # from above: names move downwards
        (x, y), name = drawn[i].tolist(), names[i]
        side = 1 if x >= width / 2 else -1
        ends = sorted((x + 9 * side, x + (9 + _LETTER * len(name)) * side))
        under = _free(ends, y + 4, taken)
        taken.append((*ends, under))
        if abs(under - y - 4) > 1:
            parts.append(
                f'<path class="grid" d="M{x:.1f} {y:.1f}L{x + 7 * side:.1f} {under - 4:.1f}"/>'
            )
        parts.append(_text(x + 9 * side, under, name, 'start' if side > 0 else 'end', 'name'))
    for (x, y), colour, group in zip(drawn.tolist(), colours, groups, strict=True):
        fill = f'rgb({",".join(map(str, colour))})'
        parts.append(_shape(group, x, y, f'fill:{fill}'))
    label = f'{title}: {", ".join(names)}'
    legend = ''
    if len(titles) > 1:
        for group, name in enumerate(titles):
            shape = _shape(group, 7, 7, 'fill:none')
            legend += (
                f'<span><svg class="mark" viewBox="0 0 14 14" aria-hidden="true">{shape}</svg>'
            )
            legend += f' {text(name)}</span>'
        legend = f'<figcaption>{legend}</figcaption>'
    wide = '' if len(places) <= _FEW else ' wide'
    drawing = _svg(label, parts, width, height)
    return f'<figure class="chart{wide}"><h4>{text(title)}</h4>{drawing}{legend}</figure>'


def _free(ends: Sequence[float], under: float, taken: Sequence[tuple]) -> float:
    """Return the first line at or below `under` where nothing is written between two ends."""
    while any(
        ends[0] < right and left < ends[1] and abs(under - line) < _LINE
        for left, right, line in taken
    ):
        under += 3
    return under


def _shape(group: int, x: float, y: float, style: str) -> str:
    """Return a circle, square, triangle or diamond around a point."""
    if group % 4 == 0:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5" style="{style}"/>'
    corners = {1: 'm-4.5-4.5h9v9h-9z', 2: 'm0-6l5.5 10h-11z', 3: 'm0-6l6 6-6 6-6-6z'}[group % 4]
    return f'<path class="dot" d="M{x:.1f} {y:.1f}{corners}" style="{style}"/>'


def ticks(low: float, high: float) -> list[float]:
    """Return 2 to 6 round numbers, evenly spaced, of which the first and last enclose a range."""
    if not high > low:
        low, high = low - abs(low) / 2 - 1e-3, high + abs(high) / 2 + 1e-3
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _thinned(points: Points) -> Points:
    every = -(-len(points) // _MOST)
    return [*points[:-1][::every], points[-1]]


def _path(points: Points, x, y) -> str:
    """Return the path of a line."""
    drawn, pen = [], 'M'
    for step, value in points:
        if value is None:
            pen = 'M'
            continue
        drawn.append(f'{pen}{x(step):.1f} {y(value):.1f}')
        pen = 'L'
    return ''.join(drawn)


def _svg(label: str, parts: Sequence[str], width: int, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}">'
        f'{"".join(parts)}</svg>'
    )


def _rule(y: float) -> str:
    return f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'


def _text(x: float, y: float, content: str, anchor: str, kind: str = '') -> str:
    kind = f' class="{kind}"' if kind else ''
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(content)}</text>'


def _short(number: float) -> str:
    """Format a number in at most six characters or so."""
    plain = number == 0 or 1e-3 <= abs(number) < 1e4
    return f'{number:.4g}' if plain else f'{number:.1e}'.replace('e-0', 'e-').replace('e+0', 'e')
