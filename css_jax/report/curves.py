"""What was logged while the runs were trained, as charts."""

import fnmatch
from collections.abc import Sequence

from css_jax.report import charts
from css_jax.report.page import text
from css_jax.report.runs import Run

# Heading -> patterns of names; a name is of the first that fits. What none fits comes last.
GROUPS = {
    'Scores on the validation split': ('eval_miou', 'eval_*'),
    'Losses': ('loss', 'loss_*'),
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
_NO_METRIC = ('step', 'time', 'seconds_to_go')
_SAID = {
    'eval_miou': 'mIoU', 'loss': 'loss, all terms weighted',
    'confident': 'share of confident pixels',
    'confident_foreground': 'share of foreground among the confident',
    'agreement': 'share of pixels on which both spaces agree',
    'prototype_cosine': 'mean cosine between prototypes',
    'classes_with_prototype': 'classes with a prototype',
    'images_per_second': 'images per second',
}  # fmt: skip


def section(runs: Sequence[Run]) -> str:
    """Return the charts of all metrics in the records, in groups; '' where there are none."""
    names = dict.fromkeys(name for run in runs for record in run.records for name in record)
    grouped: dict[str, list[str]] = {}
    for name in names:
        if name not in _NO_METRIC:
            grouped.setdefault(_group(name), []).append(name)
    body = ''
    for heading in (*GROUPS, _OTHER):
        wanted = sorted(grouped.get(heading, ()), key=lambda name: (_place(name), name))
        drawn = ''.join(_chart(name, runs) for name in wanted)
        if drawn:
            body += f'<h3>{text(heading)}</h3><div class="charts">{drawn}</div>'
    return body


def _chart(name: str, runs: Sequence[Run]) -> str:
    series = {
        run.name: [(record['step'], record[name]) for record in run.records if name in record]
        for run in runs
    }
    said = _SAID.get(name)
    last = max(run.records[-1]['step'] for run in runs if run.records)
    return charts.lines(f'{said} ({name})' if said else name, series, last)


def _group(name: str) -> str:
    fits = (g for g, patterns in GROUPS.items() if any(fnmatch.fnmatch(name, p) for p in patterns))
    return next(fits, _OTHER)


def _place(name: str) -> int:
    """Return the place of a name among its group's patterns."""
    patterns = GROUPS.get(_group(name), ())
    return next((i for i, p in enumerate(patterns) if fnmatch.fnmatch(name, p)), 0)
