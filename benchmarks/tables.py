"""How results are written: rows as Markdown tables, a whole run as JSON and as Markdown."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import machine

Row = dict[str, str | float]
Pair = tuple[str, Row]  # caption and row


def lines(pairs: Iterable[Pair]) -> Iterable[str]:
    """Gives the lines of Markdown tables: a caption and a head wherever these change."""
    last = None
    for caption, row in pairs:
        if (caption, list(row)) != last:
            yield from ('', caption, '', *_head(row))
        last = caption, list(row)
        yield _line([cell(value) for value in row.values()])


def cell(value: str | float | None) -> str:
    """Formats a value: text as it is, numbers to three digits or more, '-' for none."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return '-'
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f'{value:,.{digits}f}'


def plain(row: Row) -> Row:
    """Gives a row for JSON, which has no NaN: None stands for it."""

    def value(x: str | float | None) -> str | float | None:
        if x is None or isinstance(x, (str, int)):
            return x
        return float(x) if math.isfinite(x) else None

    return {key: value(x) for key, x in row.items()}


def write(stem: pathlib.Path, results: Mapping[str, Any], bars: Iterable[Pair]) -> None:
    """Writes STEM.json and STEM.md; whoever reads them meanwhile finds the old or the new ones.

    Args:
        stem: of both files' names.
        results: of `benchmarks.run`.
        bars: the table that the Markdown file begins with, see `benchmarks.bars`.
    """
    bars = list(bars)
    whole = {**results, 'bars': [plain(row) for _, row in bars]}
    _replace(f'{stem}.json', json.dumps(whole, indent=1, allow_nan=False))
    _replace(f'{stem}.md', '\n'.join(_document(results, bars)))


def _document(results: Mapping[str, Any], bars: list[Pair]) -> Iterable[str]:
    yield f'# Benchmarks on {results["where"]["chip"]}, size {results["size"]}'
    yield ''
    commit = f', commit {results["commit"]}' if results['commit'] else ''
    yield f'{results["date"]}{commit}; load average at the start {results["load_average"]}.'
    yield f'{machine.line(results["where"])}.'
    yield f'`{results["command"]}`: {results["state"]}.'
    yield from lines(bars)
    for part, about in results['parts'].items():
        yield from ('', f'## {about["title"] or part}', '')
        yield f'`python -m benchmarks.{part} --size {results["size"]}`: {about["state"]}.'
        own = (r for r in results['rows'] if r['part'] == part)
        yield from lines((r['caption'], r['row']) for r in own)
    yield ''


def _replace(path: str, text: str) -> None:
    draft = pathlib.Path(f'{path}.tmp')
    draft.write_text(text + '\n' if not text.endswith('\n') else text)
    os.replace(draft, path)


def _head(row: Row) -> list[str]:
    numbers = [not isinstance(value, str) for value in row.values()]
    return [_line(list(row)), '|' + '|'.join('---:' if n else '---' for n in numbers) + '|']


def _line(cells: list[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'
