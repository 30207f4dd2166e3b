"""How results are written: rows as Markdown tables, all of a machine as JSON and as Markdown."""

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import machine

Row = dict[str, str | float | None]


def lines(pairs: Iterable[tuple[str, Row]]) -> Iterable[str]:
    """Give the lines of Markdown tables of (caption, row): a head wherever one of them changes."""
    last = None
    for caption, row in pairs:
        if (caption, list(row)) != last:
            signs = ['---' if isinstance(value, str) else '---:' for value in row.values()]
            yield from ('', caption, '', _line(row), '|' + '|'.join(signs) + '|')
        last = caption, list(row)
        yield _line(cell(value) for value in row.values())


def cell(value: str | float | None) -> str:
    """Format a value: text as it is, numbers to three digits or more, '-' for none."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return '-'
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f'{value:,.{digits}f}'


def plain(row: Row) -> Row:
    """Return a row for JSON, which has no NaN: None stands for it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def write(stem: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Write STEM.json and STEM.md of what `benchmarks.run.Results` has.

    Whoever reads them meanwhile finds the old or the new ones.
    """
    last = results['last_run']
    text = [f'# Benchmarks on {results["chip"]}', '']
    text += [f'The last run: {last["date"]}, `{last["command"]}`: {last["state"]}.']
    for name, part in results['parts'].items():
        text += ['', f'## {name}', '', *_part(part)]
        if 'later' in part:
            text += ['', 'A later run did not come to the end of this part:', '']
            text += _part(part['later'])
    table = re.sub(r'\{[^{}]*\}', _joined, json.dumps(results, indent=1))  # a row is a line
    table = re.sub(r'\{\s*"caption"[^\n]*\n[^\n]*\n\s*\}', _joined, table)
    for suffix, whole in (('json', table), ('md', '\n'.join(text))):
        draft = pathlib.Path(f'{stem}.{suffix}.tmp')
        draft.write_text(whole + '\n')
        os.replace(draft, f'{stem}.{suffix}')


def _part(part: Mapping[str, Any]) -> Iterable[str]:
    commit = f'commit {part["commit"]}, ' if part['commit'] else ''
    yield f'`{part["command"]}`: {part["state"]}, {part["seconds"]:.0f} s.'
    yield f'{part["date"]}, {commit}load average at the start {part["load_average"]};'
    yield f'{machine.line(part["where"])}.'
    captions = dict.fromkeys(found['caption'] for found in part['rows'])  # each one table
    rows = [(c, r['row']) for c in captions for r in part['rows'] if r['caption'] == c]
    yield from lines(rows)


def _joined(found: re.Match) -> str:
    return ' '.join(found[0].split())


def _line(cells: Iterable[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'
