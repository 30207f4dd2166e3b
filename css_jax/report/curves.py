"""What was logged while the runs were trained, as charts."""

import fnmatch
from collections.abc import Mapping, Sequence

from css_jax.report import charts, page
from css_jax.report import names as names_of
from css_jax.report.page import text
from css_jax.report.runs import Run

# Heading -> patterns of names; a name is of the first that fits. What none fits comes last.
GROUPS = {
    'Scores on the validation split': ('eval_miou', 'eval_*'),
    'Losses': ('loss', 'loss_supervised*', 'loss_unsupervised', 'loss_contrastive', 'loss_*'),
    'Pseudo-labels': (
        'confident', 'confident_*', 'agreement', 'labelled', 'foreground', 'easiness*', 'threshold*'
    ),
    'Representations and prototypes': (
        'prototype_*', 'classes_*', 'valid', 'hard', 'anchors', 'commonest_*', 'embedding_*'
    ),
    'Optimisation': ('learning_rate*', 'weight_*', 'gradient_norm', 'update_norm'),
    'Speed': ('images_per_second',),
}  # fmt: skip
_OTHER = 'Other'
_FOLDED = ('Optimisation', 'Speed')  # shown once opened
_NO_METRIC = ('step', 'time', 'seconds_to_go')


def section(runs: Sequence[Run]) -> str:
    """Return the charts of all metrics in the records, in groups; '' where there are none."""
    found = dict.fromkeys(name for run in runs for record in run.records for name in record)
    names = [name for name in found if name not in _NO_METRIC]
    once = [name for name in names if name.startswith('eval_') and _once(name, runs)]
    grouped: dict[str, list[str]] = {}
    for name in names:
        if name not in once:
            grouped.setdefault(_group(name), []).append(name)
    body = ''
    if once:
        body += page.note('Evaluated once, after training: the scores are at the top of the page.')
    for heading in (*GROUPS, _OTHER):
        wanted = sorted(grouped.get(heading, ()), key=_place)
        drawn = ''.join(_chart(name, runs) for name in wanted)
        if drawn and heading in _FOLDED:
            body += page.folded(text(heading), f'<div class="charts">{drawn}</div>')
        elif drawn:
            body += f'<h3>{text(heading)}</h3><div class="charts">{drawn}</div>'
    return body


def _once(name: str, runs: Sequence[Run]) -> bool:
    """Say whether a score is in one record of each run, whose results have it too."""
    having = [run for run in runs if any(name in record for record in run.records)]
    return all(
        run.results and sum(record.get(name) is not None for record in run.records) < 2
        for run in having
    )


def _chart(name: str, runs: Sequence[Run]) -> str:
    meaning = names_of.said(name)
    factor = 100 if meaning.percent else 1

    def value(record: Mapping) -> float | None:
        return None if record[name] is None else factor * record[name]

    series = {
        run.name: [(record['step'], value(record)) for record in run.records if name in record]
        for run in runs
    }
    last = max(run.records[-1]['step'] for run in runs if run.records)
    title = f'{meaning.title}, %' if meaning.percent else meaning.title
    return charts.lines(title, series, last, name, (0, 100) if meaning.percent else None)


def _group(name: str) -> str:
    fits = (g for g, patterns in GROUPS.items() if any(fnmatch.fnmatch(name, p) for p in patterns))
    return next(fits, _OTHER)


def _place(name: str) -> int:
    """Return the place of a name among its group's patterns."""
    patterns = GROUPS.get(_group(name), ())
    return next((i for i, p in enumerate(patterns) if fnmatch.fnmatch(name, p)), 0)
