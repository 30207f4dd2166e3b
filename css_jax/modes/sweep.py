"""--mode sweep --table N: a table of a paper over seeds, one process a run.

The tables are data, configs/tables/. A run has a folder of its own in DIR, named by what is run
(DIR/css_mix_92/seed0), so that tables with common cells share the runs where they share DIR. A
finished run is skipped and a broken one resumes from its checkpoint; DIR/tableN.md
(DIR/table_imas_classic.md) is written anew after each run.
"""

import contextlib
import itertools
import logging
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import tables
from css_jax import config as configs
from css_jax.config import command_line
from css_jax.data import sources, splits
from css_jax.evaluation import results
from css_jax.run import files, progress
from css_jax.run import folder as run_folder

LOG = logging.getLogger('css_jax')
OUTPUT = 'log.txt'  # in a run's folder: all that its process prints
PROGRAM = (sys.executable, '-m', 'css_jax.main')
ROOT = pathlib.Path(__file__).parents[2]
_QUIET = 60.0  # seconds between lines of progress
_GRACE = 300.0  # seconds that a run has to stop: it may have to finish an evaluation
_STOPS = (signal.SIGTERM, signal.SIGHUP)  # besides Ctrl-C; the second is of a closed terminal


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
        row: of the table.
        column: of the table.
        folder: the run's.
        command: of its process.
        config: finalised, as the process will have it.
    """

    row: str
    column: str
    folder: pathlib.Path
    command: tuple[str, ...]
    config: ConfigDict


def sweep(
    workdir: str | pathlib.Path,
    table: str | int = '',
    *,
    config: str | None = None,
    seeds: Sequence[str | int] = (0, 1, 2),
    labels: Sequence[str | int] = (),
    changes: Mapping[str, str | None] | None = None,
    print_commands: bool = False,
) -> str:
    """Run what is not finished of a table, and puts its numbers beside the published ones.

    Args:
        workdir: folder of the runs and of the table; made if missing.
        table: its name in configs/tables/, as 5 or imas:classic.
        config: FILE[:ARGUMENT] of configs/; the argument goes to every run. Without it the
            paper's own. With another file each cell's method runs on that file's dataset.
        seeds: every cell runs with each.
        labels: how many images are labelled, a column each; without it the paper's, or, with
            another file, the one number that the file has.
        changes: key -> text, as in --config.KEY=TEXT; go to every run.
        print_commands: print a command for each run that is not finished and do nothing, for a
            scheduler; the sweep then makes the table of what is there.

    Returns:
        The table, Markdown, as written to DIR/tableN.md; '' with `print_commands`.

    Raises:
        ValueError: an argument is impossible, or a run's folder has another run; nothing is run.
        FileNotFoundError: a run's dataset is not prepared; nothing is run.
        ChildProcessError: some runs failed, after the others have run.
    """
    workdir, changes = pathlib.Path(workdir), dict(changes or {})
    runs = plan(workdir, table, config=config, seeds=seeds, labels=labels, changes=changes)
    left = [run for run in runs if not finished(run)]
    settings = [config or tables.get(table).file, *command_line.arguments(changes)]
    if print_commands:
        for run in left:
            # There the program is found, and other files that the configuration names.
            print(f'cd {shlex.quote(os.getcwd())} && {shlex.join(run.command)}')
        return ''
    _check_images(left)

    def write() -> str:
        text = markdown(table, runs, shlex.join(settings))
        workdir.mkdir(parents=True, exist_ok=True)
        files.write(workdir / tables.file_name(table), text)
        return text

    LOG.info('runs: %d, finished already: %d', len(runs), len(runs) - len(left))
    text, failed, start = write(), [], time.perf_counter()
    for done, run in enumerate(left):
        elapsed = time.perf_counter() - start
        to_go = progress.duration(elapsed / done * (len(left) - done)) if done else 'not known yet'
        LOG.info(
            'run %d of %d: %s · elapsed %s · to go %s',
            len(runs) - len(left) + done + 1, len(runs), run.folder.relative_to(workdir),
            progress.duration(elapsed), to_go,
        )  # fmt: skip
        code = _execute(run)
        if code or not finished(run):
            failed.append(run)
            output = run.folder / OUTPUT
            LOG.error('failed with exit code %d, see %s\n  %s', code, output, _reason(output))
        text = write()
    print(text)
    print(f'written: {workdir / tables.file_name(table)}')
    if failed:
        names = ', '.join(str(run.folder.relative_to(workdir)) for run in failed)
        raise ChildProcessError(
            f'{len(failed)} of {len(runs)} runs failed: {names}; {OUTPUT} in their folders says '
            'why, and the same command runs them again'
        )
    return text


def plan(
    workdir: pathlib.Path,
    table: str | int,
    *,
    config: str | None,
    seeds: Sequence[str | int],
    labels: Sequence[str | int],
    changes: Mapping[str, str | None],
) -> list[Run]:
    """List the runs of a table, a seed after the other; for the arguments see `sweep`.

    Raises:
        ValueError: an argument is impossible, or a run's configuration.
    """
    paper = tables.get(table)
    seeds, labels = _numbers('--seeds', seeds, least=0), _numbers('--labels', labels, least=1)
    if not seeds:
        raise ValueError('--seeds: got none, expected numbers such as 0,1,2')
    file, _, common = (config or os.path.relpath(ROOT / paper.file)).partition(':')
    own = pathlib.Path(file).resolve() == ROOT / paper.file
    counts = labels or (_unique(cell.labels for cell in paper.cells) if own else [0])
    rows: dict[str, tuple[str, str]] = {}
    for cell in paper.cells:
        # With another file, rows that differ in the network alone are one run, the first one's.
        rows.setdefault(tables.method(cell, own), (cell.row, cell.variant))

    runs = []
    # A seed after the other: the first numbers of every cell come before the second of any.
    for seed, (method, (row, variant)), count in itertools.product(seeds, rows.items(), counts):
        words = [paper.protocol if own else '', str(count or ''), method, f'seed={seed}', common]
        argument = ','.join(filter(None, words))
        name = '_'.join(word.rpartition('=')[2] for word in method.split(','))
        folder = workdir / (f'{name}_{count}' if count else name) / f'seed{seed}'
        finalised = _load(f'{file}:{argument}', changes, folder)
        column = _heading(count or finalised.data.streams.labelled.count, variant)
        path = f'{os.path.abspath(file)}:{argument}'
        command = (*PROGRAM, '--config', path, *command_line.arguments(changes))
        command += ('--workdir', os.path.abspath(folder))
        runs.append(Run(row, column, folder, command, finalised))
    return runs


def finished(run: Run) -> bool:
    """Tell whether a run is trained to its last step and scored.

    Raises:
        ValueError: its folder has a run with another configuration, or damaged results.
    """
    if (run.folder / run_folder.FILE).exists():
        run_folder.match(run.config, run.folder)
    results = _results(run)
    return results is not None and results['step'] == run.config.steps


def markdown(table: str | int, runs: Sequence[Run], settings: str) -> str:
    """Make the table of the finished runs, with the paper's beside it.

    Args:
        table: its name in configs/tables/.
        runs: from `plan`.
        settings: what they have in common, as on the command line.

    Returns:
        Markdown: a row for each of the table's, mean ± sample standard deviation (n - 1) of the
        last step's mIoU in percent and, in brackets, of how many runs; '-' where there is none.
    """
    paper = tables.get(table)
    done = [run for run in runs if finished(run)]
    scores: dict[tuple[str, str], list[float]] = {}
    for run in done:
        if (miou := _results(run)['miou']) is not None:  # None: the split is void everywhere
            scores.setdefault((run.row, run.column), []).append(100 * miou)
    published = {(cell.row, _heading(cell.labels, cell.variant)): cell for cell in paper.cells}
    columns = _unique(run.column for run in runs)
    theirs = _unique(column for _, column in published)
    # On the paper's own dataset the columns are the same, and those left out stay out.
    theirs = [column for column in theirs if column in columns] or theirs

    rows = [['', *columns, *(f'{paper.source}, {column}' for column in theirs)]]
    shown = {run.row for run in runs}
    for row in _unique(cell.row for cell in paper.cells if cell.row in shown):
        ours = [_mean(scores.get((row, column), [])) for column in columns]
        cells = [published.get((row, column)) for column in theirs]
        rows.append([row, *ours, *(_shown(cell.mean, cell.std) if cell else '-' for cell in cells)])
    lines = [f'| {" | ".join(row)} |' for row in rows]
    lines.insert(1, '|---|' + '---:|' * (len(rows[0]) - 1))

    # A row's runs are scored alike, but a baseline may have no teacher.
    found = {run.row: _results(run) for run in done}
    scored = results.protocols_of(found).splitlines()
    where = f' on {next(iter(found.values()))["split"]}' if found else ''
    where += f': {scored[0]}' if len(scored) == 1 else ''
    return '\n'.join(
        [
            f'# {tables.heading(table)}',
            '',
            'mIoU in %, mean ± sample standard deviation (number of runs) after the last step.',
            paper.note,
            '',
            f'`{settings}`{where}.',
            '',
            *(f'- {line}.' for line in scored if len(scored) > 1),
            *([''] if len(scored) > 1 else []),
            *lines,
            '',
        ]
    )


def _load(path: str, changes: Mapping[str, str | None], folder: pathlib.Path) -> ConfigDict:
    """Return the configuration, finalised, that --config FILE:ARGUMENT and changes to it make."""
    config = command_line.load(path, changes)
    try:
        config.update_from_flattened_dict(command_line.values(config, changes))
        return configs.finalise(config, folder)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def _check_images(runs: Sequence[Run]) -> None:
    """Raise in words, see `splits.subsets`, where images of a run are missing."""
    chosen = [(run.config.data, run.config.eval.dataset, run.config.eval.split) for run in runs]
    for data, dataset, split in _unique(chosen):
        splits.subsets(data)
        sources.load(dataset, split, data.dir)


def _execute(run: Run) -> int:
    """Run one process to its end and gives its exit code; stops it where the sweep is stopped."""
    run.folder.mkdir(parents=True, exist_ok=True)
    output = run.folder / OUTPUT
    # What is ignored stays so: nohup's sweep outlives its terminal.
    caught = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in caught}
    # A session of its own: Ctrl-C then reaches the run through us, once, whoever sent it.
    with output.open('ab') as log:
        child = subprocess.Popen(
            # Of one process, also where the sweep itself is one task of many in a cluster.
            (*run.command, '--process_count=1'),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while True:
            try:
                return child.wait(_QUIET)
            except subprocess.TimeoutExpired:
                LOG.info('  %s', _tail(output)[-1][:100])
    finally:
        if child.poll() is None:
            LOG.info('  the run saves its step; Ctrl-C again, or %.0f s, ends it', _GRACE)
            # A run ignores Ctrl-C where we do, as in the background of a script.
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            child.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE)
            finally:  # after the grace, or at a second Ctrl-C
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _results(run: Run) -> dict | None:
    path = run.folder / results.RESULTS
    return results.read(path) if path.exists() else None


def _tail(path: pathlib.Path) -> list[str]:
    """Return the last lines of a file, at least one."""
    with path.open('rb') as file:
        file.seek(max(path.stat().st_size - 4000, 0))
        lines = file.read().decode(errors='replace').splitlines()
    return [line for line in lines if line.strip()] or ['']


def _reason(output: pathlib.Path) -> str:
    lines = _tail(output)
    return next((line for line in reversed(lines) if line.startswith('error:')), lines[-1])


def _heading(labels: int, variant: str) -> str:
    return f'{labels or "default"} labels{variant and f", {variant}"}'


def _mean(values: Sequence[float]) -> str:
    if not values:
        return '-'
    std = statistics.stdev(values) if len(values) > 1 else None
    return f'{_shown(statistics.mean(values), std)} ({len(values)})'


def _shown(mean: float, std: float | None) -> str:
    return f'{mean:.2f}' if std is None else f'{mean:.2f} ± {std:.2f}'


def _numbers(flag: str, values: Sequence[str | int], least: int) -> list[int]:
    """Read different whole numbers."""
    texts = [str(value).strip() for value in values]
    for text in texts:
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f'{flag}: got {text!r}, expected whole numbers from {least}')
    if len(numbers := _unique(map(int, texts))) < len(texts):
        raise ValueError(f'{flag}: got {",".join(texts)}, expected each number once')
    return numbers


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))
