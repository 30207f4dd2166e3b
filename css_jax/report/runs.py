"""The runs of a report: what lies in their folders."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from css_jax import methods
from css_jax.data import sources
from css_jax.evaluation import results as result_files
from css_jax.run import checkpoint, metrics
from css_jax.run import folder as run_folder


class Part(NamedTuple):
    """One evaluation of a run.

    Attributes:
        dataset: with '/config'.
        split: of it.
        names: of the classes.
        network: 'teacher' or 'student'.
        scores: its part of the results, None where it was not evaluated yet.
    """

    dataset: str
    split: str
    names: tuple[str, ...]
    network: str
    scores: dict[str, Any] | None


class Run(NamedTuple):
    """One run.

    Attributes:
        name: of its folder, unless two have the same; plain text.
        folder: where it lies.
        config: finalised.
        results: of its evaluation, None where it was not evaluated yet.
        records: of metrics.jsonl.
        starts: see `css_jax.run.folder.note_start`.
        step: iterations of the weights that are shown, those that were evaluated, else those of
            the last checkpoint; None without one.
    """

    name: str
    folder: pathlib.Path
    config: ConfigDict
    results: dict[str, Any] | None
    records: list[dict]
    starts: list[dict]
    step: int | None


def find(folders: Sequence[str | pathlib.Path], file: str = result_files.RESULTS) -> list[Run]:
    """Find the runs in folders, each a run or a folder of runs.

    Args:
        folders: in the order of the report; the runs of one folder by when they were evaluated.
        file: which results, see `css_jax.evaluation.results.file_name`. A run without the file of
            its own evaluation is taken as one that is being trained; one without another file is
            left out.

    Raises:
        FileNotFoundError: there is no folder of that name, or no run in it.
        ValueError: a run's file is damaged.
    """
    paths = []
    for folder in dict.fromkeys(map(pathlib.Path, folders)):
        there = [folder] if (folder / run_folder.FILE).exists() else _in(folder, file)
        there = [path for path in there if file == result_files.RESULTS or (path / file).exists()]
        if not there:
            raise FileNotFoundError(
                f'no run with {file} in {folder}: expected folders of runs that were evaluated, or '
                'one such folder'
            )
        paths += [path for path in there if path.resolve() not in [p.resolve() for p in paths]]
    return [_read(path, name, file) for path, name in zip(paths, _names(paths), strict=True)]


def parts(run: Run) -> dict[str | None, Part]:
    """Return the evaluations of a run by name; None names the only one.

    Raises:
        ValueError: see `css_jax.data.sources.load`.
        FileNotFoundError: likewise.
    """
    evaluations = methods.METHODS[run.config.method].evaluations(run.config)
    if run.results:
        found = run.results.get('evaluations') or {None: run.results}
        return {name: _evaluated(run, one, evaluations) for name, one in found.items()}
    found = {}
    for name, one in evaluations.items():
        source = sources.load(one.dataset, one.split, run.config.data.dir)
        further = range(len(source.class_names), one.classes)
        names = (*source.class_names, *(f'class {i}' for i in further))
        found[name] = Part(source.dataset, one.split, names, one.network, None)
    return found if len(found) > 1 else {None: next(iter(found.values()))}


def _evaluated(run: Run, scores: dict[str, Any], evaluations: dict[str, Any]) -> Part:
    dataset, _, split = scores['split'].rpartition(':')
    own = next(iter(evaluations.values())).network
    network = run.results['eval'].get('network', own)
    return Part(dataset, split, tuple(scores['iou']), network, scores)


def _in(folder: pathlib.Path, results: str) -> list[pathlib.Path]:
    """Return the runs in a folder: by when they were evaluated, those that were not last."""

    def order(path: pathlib.Path) -> tuple[float, str]:
        file = path / results
        return (file.stat().st_mtime if file.exists() else float('inf')), path.name

    return sorted((path.parent for path in folder.glob(f'*/{run_folder.FILE}')), key=order)


def _read(folder: pathlib.Path, name: str, file: str) -> Run:
    results = result_files.read(folder / file) if (folder / file).exists() else None
    step = results['step'] if results else None
    if step is None and checkpoint.exists(folder):
        with contextlib.suppress(ValueError):  # all are damaged, which it has warned of
            step = checkpoint.find(folder, 'last')
    config, records = run_folder.load(folder), metrics.read(folder)
    return Run(name, folder, config, results, records, run_folder.starts(folder), step)


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Name folders by as few of their last parts as tell all of them apart."""
    whole = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, whole), default=0) + 1):
        names = ['/'.join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    return names
