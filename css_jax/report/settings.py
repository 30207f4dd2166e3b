"""How the runs differ in their configurations, and what they were trained on, for how long."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flax.traverse_util import flatten_dict

from css_jax.report import page
from css_jax.report.page import Cell, text
from css_jax.report.runs import Run
from css_jax.run import folder, progress


def differences(runs: Sequence[Run]) -> str:
    """Return a table of the keys that differ, and each whole configuration, folded."""
    flat = {run.name: flatten_dict(run.config.to_dict(), sep='.') for run in runs}
    keys = sorted({key for values in flat.values() for key in values})
    differ = [k for k in keys if len({repr(v.get(k, _ABSENT)) for v in flat.values()}) > 1]
    body = ''
    if len(runs) > 1 and differ:
        # What two runs have set in two ways says more than what only one kind of run has at all.
        several = [k for k in differ if len({repr(v[k]) for v in flat.values() if k in v}) > 1]
        some = [key for key in differ if key not in several]
        if several:
            caption = f'{len(several)} of {len(keys)} keys; - where a run has none'
            body += _table(flat, sorted(several, key=lambda key: key != 'method'), caption)
        if some:
            caption = 'Keys that a run has or has not, and of one value'
            title = f'{len(some)} keys that only some of the runs have'
            body += page.folded(title, _table(flat, some, caption))
    elif len(runs) > 1:
        body = page.note('The configurations do not differ.')
    for name, values in flat.items():
        listed = '\n'.join(f'{key} = {value!r}' for key, value in sorted(values.items()))
        body += page.folded(f'Configuration of {text(name)}', f'<pre>{text(listed)}</pre>')
    return body


def hardware(runs: Sequence[Run]) -> str:
    """Return a table of devices, versions, time and speed."""
    rows = {
        'training data': _streams,
        'steps': lambda run: f'{_steps(run)} of {run.config.steps}',
        'time trained': lambda run: _duration(trained_seconds(run.records, run.starts)),
        'images per second, median': lambda run: _speed(run.records),
        'started': _started,
        'times resumed': lambda run: str(len(run.starts) - 1) if run.starts else '-',
        'devices': lambda run: _last(run, lambda s: f'{s["devices"]} x {s["device"]}'),
        'processes': lambda run: _last(run, lambda s: s['processes']),
        'host of process 0': lambda run: _last(run, lambda s: s['host']),
        'Python': lambda run: _last(run, lambda s: s['python']),
        'jax, flax, optax': lambda run: _last(
            run, lambda s: ', '.join(s[name] for name in ('jax', 'flax', 'optax'))
        ),
    }
    found = {title: [show(run) for run in runs] for title, show in rows.items()}
    table = [
        [Cell(title, title), *(Cell(text(value), value) for value in values)]
        for title, values in found.items()
        if set(values) != {'-'}
    ]
    caption = (
        'Time is that between records, the first compilation and pauses between starts left out'
    )
    headings = ['', *(text(run.name) for run in runs)]
    body = page.table(headings, table, caption, sortable=False, kind='values')
    if not all(run.starts for run in runs):
        body += page.note(f'Devices and versions are not noted of all runs, in {folder.STARTS}.')
    return body


def trained_seconds(records: Sequence[Mapping], starts: Sequence[Mapping]) -> float:
    """Return the time between the records of a run, without that between two starts."""
    begun = [start['time'] for start in starts]
    return sum(
        b['time'] - a['time']
        for a, b in itertools.pairwise(records)
        if not any(a['time'] < start < b['time'] for start in begun)
    )


def _table(flat: Mapping[str, Mapping], keys: Sequence[str], caption: str) -> str:
    rows = [
        [Cell(text(key), key), *(_value(values, key) for values in flat.values())] for key in keys
    ]
    return page.table(['key', *map(text, flat)], rows, caption, kind='values')


class _Absent:
    def __repr__(self) -> str:
        return '-'


_ABSENT = _Absent()


def _value(values: Mapping[str, Any], key: str) -> Cell:
    shown = repr(values.get(key, _ABSENT))
    return Cell(text(shown), shown)


def _streams(run: Run) -> str:
    found = (run.results or {}).get('streams', {})
    return ', '.join(f'{name}: {one["images"]} images' for name, one in found.items()) or '-'


def _steps(run: Run) -> int:
    return run.records[-1]['step'] if run.records else 0


def _duration(seconds: float) -> str:
    return progress.duration(seconds) if seconds else '-'


def _speed(records: Sequence[Mapping]) -> str:
    speeds = [r['images_per_second'] for r in records if r.get('images_per_second')]
    return f'{statistics.median(speeds):.3g}' if speeds else '-'


def _started(run: Run) -> str:
    known = [item['time'] for item in (*run.starts[:1], *run.records[:1])]
    return f'{datetime.fromtimestamp(known[0], UTC):%Y-%m-%d %H:%M} UTC' if known else '-'


def _last(run: Run, show: Any) -> str:
    return str(show(run.starts[-1])) if run.starts else '-'
