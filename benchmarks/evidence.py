"""What runs over several seeds show: their logs in one small file, and tables of it.

    python -m benchmarks.evidence collect RUNS --commit HASH --to FILE.jsonl
    python -m benchmarks.evidence table FILE.jsonl --rows 'animals-55-*' --against ROW
    python -m benchmarks.evidence curves FILE.jsonl --names loss confident --to FILE.svg

A run is a folder NAME-sSEED or NAME-sSEED-MORE; what stands beside the seed names its row. A line
of the file is a run: its settings, its scores and what it logged. 'miou' is of the network that the
method is scored by, 'student' of the student, where that was evaluated too. Two runs of one seed
have the same labelled images and the same weights of the heads, so rows are compared by differences
of pairs.
"""

import argparse
import fnmatch
import json
import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import curves, why
from css_jax.evaluation import results, tables
from css_jax.report import runs

STUDENT = 'results_network=student.json'  # of --mode evaluate --config.eval.network=student
_SEED = re.compile(r'-s(\d+)(?=-|$)')
_DIGITS = 4
_NOT_LOGGED = ('step', 'time', 'seconds_to_go')


def collect(folders: Sequence[str], commit: str) -> list[dict[str, Any]]:
    """Return a record of each evaluated run, the runs sorted by name.

    Args:
        folders: runs, or folders of runs.
        commit: of the code that made them.

    Raises:
        ValueError: a run's folder has no seed in its name, or another one.
    """
    found = [_record(run, commit) for run in runs.find(folders) if run.results]
    return sorted(found, key=lambda record: (record['row'], record['seed']))


def row_of(name: str, seed: int) -> str:
    """Return a folder's name without its seed.

    Raises:
        ValueError: the name has no seed, or another one than the run.
    """
    there = _SEED.search(name)
    if not there or int(there[1]) != seed:
        raise ValueError(f'run {name} has seed {seed}; expected -s{seed} in the name of its folder')
    return _SEED.sub('', name)


def difference(
    scores: Mapping[int, float], others: Mapping[int, float]
) -> tuple[float, float | None, int]:
    """Compare two rows by the seeds that both have.

    Args:
        scores: seed -> score.
        others: seed -> score of what it is compared with.

    Returns:
        (mean of the differences, two standard errors of that mean or None for one pair, pairs).

    Raises:
        ValueError: there is no common seed.
    """
    pairs = [scores[seed] - others[seed] for seed in sorted(set(scores) & set(others))]
    if not pairs:
        raise ValueError(f'seeds {sorted(scores)} and {sorted(others)} have none in common')
    error = 2 * statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return statistics.mean(pairs), error, len(pairs)


def table(records: Sequence[Mapping[str, Any]], against: str = '') -> str:
    """Return a Markdown table with a line for each row of runs.

    Args:
        records: as `collect` gives them, in the order of the table.
        against: row that the others are compared with; '' for none.

    Raises:
        ValueError: there is no row of that name.
    """
    rows: dict[str, dict[int, Mapping]] = {}
    for record in records:
        rows.setdefault(record['row'], {})[record['seed']] = record
    if against and against not in rows:
        raise ValueError(f'--against is {against!r}; expected one of {", ".join(rows)}')
    head = ['runs', 'seeds', 'mIoU', 'of the student', 'minutes', 'seconds a step']
    lines = [[*head, f'mIoU − {against}'] if against else head]
    for name, row in rows.items():
        cells = [name, ' '.join(map(str, row))]
        cells += [_spread([row[seed][who] for seed in row]) for who in ('miou', 'student')]
        cells += [f'{statistics.mean(one["minutes"] for one in row.values()):.0f}']
        cells += [f'{statistics.median(one["step_seconds"] for one in row.values()):.2f}']
        if against:
            scores, others = ({s: one['miou'] for s, one in rows[r].items()}
                              for r in (name, against))  # fmt: skip
            cells += ['' if name == against else _difference(scores, others)]
        lines.append(cells)
    return tables.markdown(lines)


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Read the records of a file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def _record(run: runs.Run, commit: str) -> dict[str, Any]:
    config, found = run.config, run.results
    student = run.folder / STUDENT
    times = [start['time'] for start in run.starts]
    ends = [*times[1:], math.inf]
    written = (run.folder / results.RESULTS).stat().st_mtime
    seconds = 0.0  # of all parts of a run that was interrupted, without what lies between
    for begin, end in zip(times, ends, strict=True):
        last = [r['time'] for r in run.records if begin < r['time'] < end]
        seconds += (written if end == math.inf else max(last, default=begin)) - begin
    speeds = [r['images_per_second'] for r in run.records if r.get('images_per_second')]
    images = sum(stream.batch_size for stream in config.data.streams.values())
    logged = dict.fromkeys(name for record in run.records for name in record)
    return {
        'row': row_of(run.folder.name, config.seed),
        'seed': config.seed,
        'method': config.method,
        'dataset': found['split'],
        'labels': config.data.streams.labelled.count,
        'steps': found['step'],
        'learning_rate': config.optimizer.learning_rate,
        'miou': _percent(found['miou']),
        'student': _percent(results.read(student)['miou']) if student.exists() else None,
        'iou': {name: _percent(value) for name, value in found['iou'].items()},
        'minutes': round(seconds / 60, 1),
        'step_seconds': round(images / statistics.median(speeds), 3) if speeds else None,
        'device': run.starts[-1]['host'],
        'jax': run.starts[-1]['jax'],
        'commit': commit,
        'log': {
            name: [[r['step'], _short(r[name])] for r in run.records if name in r]
            for name in logged
            if name not in _NOT_LOGGED
        },
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)


def _short(value: float | None) -> float | None:
    return value if value is None else float(f'{value:.{_DIGITS}g}')


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ''
    spread = f' ± {statistics.stdev(known):.1f}' if len(known) > 1 else ''
    return f'{statistics.mean(known):.1f}{spread}'


def _difference(scores: Mapping[int, float], others: Mapping[int, float]) -> str:
    mean, error, count = difference(scores, others)
    return f'{mean:+.1f}' + (f' ± {error:.1f} ({count} pairs)' if error is not None else ' (one)')


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    commands = parser.add_subparsers(dest='what', required=True)
    collecting = commands.add_parser('collect', help='write a file of what runs have logged')
    collecting.add_argument('runs', nargs='+')
    collecting.add_argument('--commit', required=True, help='of the code that made them')
    collecting.add_argument('--to', required=True)
    showing = commands.add_parser('table', help='print a table of such a file')
    showing.add_argument('--against', default='', help='row that the others are compared with')
    drawing = commands.add_parser('curves', help='draw what was logged')
    drawing.add_argument('--names', nargs='+', required=True, help='of logged values')
    drawing.add_argument('--to', required=True, help='SVG file')
    for one in (showing, drawing):
        one.add_argument('file')
        one.add_argument('--rows', nargs='+', default=['*'], help='patterns, in this order')
    given = parser.parse_args()
    if given.what == 'collect':
        why.register()
        records = collect(given.runs, given.commit)
        pathlib.Path(given.to).write_text(''.join(json.dumps(r) + '\n' for r in records))
        print(f'{len(records)} runs: {given.to}')
        return
    every = read(given.file)
    chosen = [r for pattern in given.rows for r in every if fnmatch.fnmatch(r['row'], pattern)]
    unique = list({(record['row'], record['seed']): record for record in chosen}.values())
    if given.what == 'curves':
        pathlib.Path(given.to).write_text(curves.svg(unique, given.names))
    else:
        print(table(unique, given.against))


if __name__ == '__main__':
    main()
