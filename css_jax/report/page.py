"""The page itself: one HTML file that asks nothing of a network."""

import base64
import hashlib
import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from css_jax.evaluation import pictures

_FOLDER = pathlib.Path(__file__).parent
SIDE = 256  # pixels of the longer side of a picture, at most
_QUALITY = 82  # of photographs, as JPEG has it
_NAMES = 30  # in a legend that is not folded
_COARSE = 128  # pixels up to which a picture is shown enlarged, its pixels as squares


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        key: its id, of letters, digits and hyphens.
        title: heading, plain text.
        body: HTML.
    """

    key: str
    title: str
    body: str


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        body: HTML.
        value: number or text that its column is sorted by; None: last.
        share: length of the bar behind it, in [0, 1]; None: no bar.
        best: whether it is the best of its row.
    """

    body: str
    value: float | str | None = None
    share: float | None = None
    best: bool = False


def text(value: Any) -> str:
    """Escape text for HTML, also inside of quotes."""
    return html.escape(str(value))


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the page.

    Args:
        title: plain text.
        lead: HTML below the heading.
        sections: those without a body are left out.
    """
    there = [section for section in sections if section.body]
    style, script = ((_FOLDER / name).read_text() for name in ('page.css', 'page.js'))
    # The one script that may run is this one, and nothing is loaded from anywhere.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    links = ''.join(f'<li><a href="#{s.key}">{text(s.title)}</a></li>' for s in there)
    parts = '\n'.join(
        f'<section id="{s.key}" aria-labelledby="{s.key}-title">\n'
        f'<h2 id="{s.key}-title">{text(s.title)}</h2>\n{s.body}\n</section>'
        for s in there
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f'<a class="skip" href="#content">Skip to the content</a>\n'
        f'<header>\n<h1>{text(title)}</h1>\n{lead}\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f'<main id="content">\n{parts}\n</main>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    caption: str,
    foot: Iterable[Sequence[Cell]] = (),
    sortable: bool = True,
    kind: str = '',
) -> str:
    """Return a table; the first cell names its row.

    Args:
        headings: HTML of the columns.
        rows: cells, as many as headings.
        caption: HTML.
        foot: rows that stay below.
        sortable: whether headings are buttons that sort the rows.
        kind: further class of CSS.
    """
    if sortable:
        headings = [f'<button type="button">{heading}</button>' for heading in headings]
    top = ''.join(f'<th scope="col">{heading}</th>' for heading in headings)
    body, end = (
        ''.join(f'<tr>{_named(row[0])}{"".join(map(_cell, row[1:]))}</tr>\n' for row in part)
        for part in (rows, foot)
    )
    end = f'<tfoot>\n{end}</tfoot>\n' if end else ''
    return scrolled(
        f'<table class="{"sortable " * sortable}{kind}">\n<caption>{caption}</caption>\n'
        f'<thead><tr>{top}</tr></thead>\n'
        f'<tbody>\n{body}</tbody>\n{end}</table>'
    )


def scrolled(body: str, label: str = 'table') -> str:
    """Put what may be wider than the page in a part that is scrolled, also by keyboard."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{text(label)}">{body}</div>'


def pictures_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = ''
) -> str:
    """Return rows of pictures below headings.

    Args:
        headings: plain text.
        rows: HTML of the cells, as many as headings.
        caption: HTML.
    """
    top = ''.join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    body = ''.join(f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>\n' for row in rows)
    caption = f'<caption>{caption}</caption>' if caption else ''
    return scrolled(
        f'<table class="pictures">{caption}<thead><tr>{top}</tr></thead>'
        f'<tbody>{body}</tbody></table>',
        'pictures',
    )


def folded(summary: str, body: str) -> str:
    """Return HTML that is shown once its summary, HTML as well, is opened."""
    return f'<details><summary>{summary}</summary>\n{body}\n</details>'


def note(body: str) -> str:
    """Return a paragraph of small print; HTML."""
    return f'<p class="note">{body}</p>'


def image(picture: np.ndarray, alt: str, photograph: bool = False) -> str:
    """Return an image of bounded size as a part of the page.

    Args:
        picture: uint8 RGB [H, W, 3].
        alt: what it shows, plain text.
        photograph: stored as JPEG; else as PNG, whose flat colours stay as they are.
    """
    small = pictures.shrink(picture, SIDE, labels=not photograph)
    kind, options = (
        ('png', []) if not photograph else ('jpeg', [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    )
    encoded = cv2.imencode(f'.{kind}', np.ascontiguousarray(small[..., ::-1]), options)[1]
    height, width = small.shape[:2]
    data = base64.b64encode(encoded.tobytes()).decode()
    coarse = ' class="coarse"' if max(height, width) <= _COARSE else ''
    return (
        f'<img{coarse} src="data:image/{kind};base64,{data}" width="{width}" height="{height}" '
        f'alt="{text(alt)}">'
    )


def named(title: str, key: str) -> str:
    """Return a title, and small beside it the name that it has in files, where it is another."""
    small = f' <code>{text(key)}</code>' if key not in ('', title) else ''
    return f'{text(title)}{small}'


def legend(names: Sequence[str], colours: np.ndarray) -> str:
    """Return names beside their colours, and void; folded where they are many.

    Args:
        names: of the classes, plain text.
        colours: of the classes, uint8 [C, 3] RGB.
    """
    pairs = zip(names, colours.tolist(), strict=True)
    items = ''.join(f'<li>{chip(colour)}{text(name)}</li>' for name, colour in pairs)
    items = f'<ul class="legend">{items}<li>{chip((255, 255, 255))}void or no label</li></ul>'
    return items if len(names) <= _NAMES else folded(f'Colours of {len(names)} classes', items)


def chip(colour: Sequence[int]) -> str:
    """Return a small square of an RGB colour."""
    return f'<span class="chip" style="background:rgb({",".join(map(str, colour))})"></span>'


def percent(value: float | None, digits: int = 2) -> str:
    """Format a share in percent, '-' for none."""
    return '-' if value is None else f'{100 * value:.{digits}f}'


def _named(cell: Cell) -> str:
    return f'<th scope="row"{_sorted_by(cell)}>{cell.body}</th>'


def _cell(cell: Cell) -> str:
    kinds = [name for name, on in (('bar', cell.share is not None), ('best', cell.best)) if on]
    kinds = f' class="{" ".join(kinds)}"' if kinds else ''
    length = f' style="--share:{100 * cell.share:.1f}%"' if cell.share is not None else ''
    return f'<td{kinds}{length}{_sorted_by(cell)}>{cell.body}</td>'


def _sorted_by(cell: Cell) -> str:
    return '' if cell.value is None else f' data-value="{text(cell.value)}"'
