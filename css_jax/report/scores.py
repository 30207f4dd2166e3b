"""Scores of each class with bars, and the confusion matrix of each run."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from css_jax.evaluation import results as result_files
from css_jax.evaluation import tables
from css_jax.report import page
from css_jax.report.names import said
from css_jax.report.page import Cell, text
from css_jax.report.runs import Part

_WRITTEN = 12  # classes, at most, for numbers in the cells of a matrix
_CELLS = 30  # classes, at most, for cells; of more it is a picture
_CONFUSED = 8  # pairs of classes that are listed
_STRONG = 0.55  # share from which a cell is dark


def section(parts: Mapping[str, Part], colours: np.ndarray) -> str:
    """Return the table of IoU by class, the scores beside, and how they were made.

    Args:
        parts: run -> its evaluation, of the same classes.
        colours: of the classes, uint8 [C, 3] RGB.
    """
    first = next(iter(parts.values()))
    names = first.names
    rows = []
    for i, name in enumerate(names):
        found = [None if p.scores is None else p.scores['iou'][name] for p in parts.values()]
        label = page.chip(colours[i].tolist()) + text(name)
        rows.append([Cell(label, name), *_row(found, bars=True)])
    foot = [
        [Cell(title, title), *_row([p.scores and p.scores[key] for p in parts.values()])]
        for title, key in (('mIoU', 'miou'), ('pixel accuracy', 'accuracy'))
    ]
    where = f'{text(first.dataset)}, split {text(first.split)}'
    bold = '; the best of a row is bold' * (len(parts) > 1)
    body = page.table(['class', *map(text, parts)], rows, f'IoU in % on {where}{bold}', foot)
    waiting = [name for name, part in parts.items() if part.scores is None]
    if waiting:
        body += page.note(f'Not evaluated yet: {text(", ".join(waiting))}.')
    scored = {name: part.scores for name, part in parts.items() if part.scores}
    if scored:
        protocol = text(result_files.protocols_of(scored)).replace('\n', '<br>')
        body += page.note(f'Protocol: {protocol}')
    return body + _more(scored)


def matrices(parts: Mapping[str, Part], prefix: str = '') -> str:
    """Return the confusion matrix of each run that has one.

    Args:
        parts: run -> its evaluation.
        prefix: of the headings, plain text.
    """
    found, without = [], []
    for name, part in parts.items():
        counts = (part.scores or {}).get('confusion')
        if counts is None:
            without.append(name)
            continue
        names = [*part.names, *['void'] * (len(counts) - len(part.names))]
        found.append(f'<div><h3>{text(prefix + name)}</h3>{_matrix(np.array(counts), names)}</div>')
    if not found:
        return ''
    body = page.note(
        'Rows are true classes, columns predicted ones; a cell is the share of the row in %.'
    )
    if without:
        body += page.note(
            f'Without a matrix: {text(", ".join(without))}. Evaluated by an older version, or not '
            'yet; --mode evaluate writes it.'
        )
    return f'{body}<div class="matrices">{"".join(found)}</div>'


def _row(values: Sequence[float | None], bars: bool = False) -> list[Cell]:
    known = [value for value in values if value is not None]
    best = max(known) if len(values) > 1 and known else None
    return [
        Cell(page.percent(v), v, v if bars else None, v is not None and v == best) for v in values
    ]


def _more(scored: Mapping[str, Mapping]) -> str:
    """Return the table of scores beside mIoU, numbers alone; '' where there are none."""
    more = {name: result_files.numbers(one) for name, one in scored.items()}
    names = dict.fromkeys(name for one in more.values() for name in one)
    if not names:
        return ''
    rows = [
        [
            Cell(page.named(said(n).title, n), n),
            *(Cell(tables.number(o.get(n)), o.get(n)) for o in more.values()),
        ]
        for n in names
    ]
    caption = "Further scores of the runs' methods; shares in %"
    return page.table(['score', *map(text, more)], rows, caption)


def _matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn = _picture(shares) if len(names) > _CELLS else _cells(shares, counts, names)
    return drawn + _confused(shares, names)


def _cells(shares: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> str:
    top = ''.join(f'<th scope="col">{text(name)}</th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, other in enumerate(names):
            share = float(shares[i, j])
            title = f'{name} as {other}: {100 * share:.2f} %, {counts[i, j]:,} pixels'
            shown = f'{100 * share:.0f}' if len(names) <= _WRITTEN else ''
            strong = ' class="strong"' if share > _STRONG else ''
            cells.append(
                f'<td{strong} style="--share:{share:.3f}" title="{text(title)}">{shown}</td>'
            )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>')
    head = f'<thead><tr><td></td>{top}</tr></thead>'
    body = f'<table class="matrix">{head}<tbody>{"".join(rows)}</tbody></table>'
    return page.scrolled(body, 'confusion matrix')


def _picture(shares: np.ndarray) -> str:
    levels = np.rint(255 * shares).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    scale = max(1, page.SIDE // len(shares))
    drawn = coloured.repeat(scale, 0).repeat(scale, 1)
    alt = 'confusion matrix, true classes downwards, predicted ones to the right'
    said = 'Classes in the order of their table, from the top left; dark is 0, yellow all of a row.'
    return f'<div class="matrix-picture">{page.image(drawn, alt)}</div>{page.note(said)}'


def _confused(shares: np.ndarray, names: Sequence[str]) -> str:
    """Return what is taken for what most often."""
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(-wrong, axis=None, kind='stable')[:_CONFUSED]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place] > 0]
    rows = [
        [Cell(text(names[i]), names[i]), Cell(text(names[j]), names[j]),
         Cell(page.percent(wrong[i, j]), float(wrong[i, j]))]
        for i, j in pairs
    ]  # fmt: skip
    if not rows:
        return ''
    headings = ['true class', 'taken for', '% of its pixels']
    return page.folded('What is confused most', page.table(headings, rows, ''))
