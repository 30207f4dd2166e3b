"""--mode report: runs side by side, as a table, a picture, and a page with all about them."""

import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from css_jax.data import evaluation as batches
from css_jax.data import sources
from css_jax.evaluation import pictures, tables
from css_jax.evaluation import results as result_files
from css_jax.report import predictions, runs, sections
from css_jax.report.runs import Run
from css_jax.run import files

TABLE = 'report.md'
PICTURE = 'report.png'
PAGE = 'report.html'
LOG = logging.getLogger('css_jax')


def report(
    folders: str | pathlib.Path | Sequence[str | pathlib.Path],
    examples: int = 6,
    file: str = result_files.RESULTS,
    html: bool = True,
) -> str:
    """Compare runs, and write report.md, report.png and report.html to the first folder.

    The table has IoU per class and mIoU, and what the runs' methods have beside; it is printed,
    too. The picture has images, truth and each run's prediction; of runs with several evaluations
    there is one of each, such as report_NAME.png. The runs must have been evaluated on the same
    splits by one protocol. One that was not evaluated yet is on the page alone, as it was at its
    last checkpoint. Where none was evaluated, only the page is written.

    Args:
        folders: one or several, each a run or a folder of runs.
        examples: images shown, spread evenly over the split.
        file: which results of a run, see `css_jax.evaluation.results.file_name`.
        html: whether to write the page.

    Returns:
        The tables, Markdown; '' where no run was evaluated.

    Raises:
        FileNotFoundError: a folder has no run.
        ValueError: the runs were evaluated on different splits, by different protocols, or have
            different classes; or a file is damaged.
    """
    if isinstance(folders, str | pathlib.Path):
        folders = [folders]
    found = runs.find(folders, file)
    scored = {run.name: run for run in found if run.results}
    if not scored and not html:
        raise FileNotFoundError(f'no */{file} in {folders[0]}: expected runs that were evaluated')
    _check(list(scored.values()), ', '.join(map(str, folders)))
    folder, table, written = pathlib.Path(folders[0]), '', []
    if not os.access(folder, os.W_OK):
        raise PermissionError(f'{folder} cannot be written to: the report goes to the first folder')
    if scored:
        table = _table(folder, scored)
        written = [folder / TABLE, *_pictures(folder, scored, examples)]
    if html:
        names = ', '.join(run.name for run in found)
        one = len(folders) == 1 and len(found) > 1
        title = f'Runs in {folder.resolve().name}' if one else names
        files.write(folder / PAGE, sections.document(title, found, examples))
        written.append(folder / PAGE)
    print(f'written: {", ".join(map(str, written))}')
    return table


def _check(scored: Sequence[Run], where: str) -> None:
    """Raise ValueError unless the results of all runs can stand in one table."""
    results = {run.name: run.results for run in scored}
    for differ, values in {
        'on different splits': {name: result['split'] for name, result in results.items()},
        'by different protocols': {
            name: result_files.without_network(r['protocol']) for name, r in results.items()
        },
    }.items():
        if len(set(values.values())) > 1:
            raise ValueError(f'the runs in {where} were evaluated {differ}: {values}')
    classes = {name: list(result['iou']) for name, result in results.items()}
    if len({tuple(names) for names in classes.values()}) > 1:
        raise ValueError(f'the runs in {where} have different classes: {classes}')


def _table(folder: pathlib.Path, scored: Mapping[str, Run]) -> str:
    """Print the tables and write them; return them."""
    results = {name: run.results for name, run in scored.items()}
    first = next(iter(results.values()))
    columns = {
        name: {**result, 'iou': list(result['iou'].values())} for name, result in results.items()
    }
    more = {name: result_files.numbers_of_all(result) for name, result in results.items()}
    both = tables.scores_table(tuple(first['iou']), columns), tables.more_table(more)
    table = '\n\n'.join(filter(None, both))
    heading = f'IoU in % on {first["split"]}'
    protocol = result_files.protocols_of(results)
    files.write(folder / TABLE, f'{heading}\n\n{table}\n\n{protocol}\n')
    print(f'{heading}\n{table}\n{protocol}')
    return table


def _pictures(folder: pathlib.Path, scored: Mapping[str, Run], examples: int) -> list[pathlib.Path]:
    """Draw a picture of each evaluation; return the paths of those that could be drawn."""
    several = next(iter(scored.values())).results.get('evaluations', {})
    paths = {name: folder / f'report_{name}.png' for name in several} or {None: folder / PICTURE}
    written = []
    for name, path in paths.items():
        try:
            _picture(path, scored, name, examples)
            written.append(path)
        except (ValueError, OSError) as error:  # the table needs neither dataset nor weights
            LOG.warning('warning: %s is left out: %s', path.name, error)
    return written


def _picture(
    path: pathlib.Path, scored: Mapping[str, Run], evaluation: str | None, examples: int
) -> None:
    """Draw the predictions of the weights that the table is about, seen as each run was scored."""
    first = next(iter(scored.values()))
    part = runs.parts(first)[evaluation]
    source = sources.load(part.dataset, part.split, first.config.data.dir)
    size = predictions.static_size(first, source)
    places = np.unique(np.linspace(0, len(source) - 1, examples).round().astype(int))
    chosen = [batches.example(source, int(index), size) for index in places]
    sizes = source.sizes[places].tolist()
    colours = pictures.palette(
        sources.palette(part.dataset, first.config.data.dir), len(part.names)
    )

    def column(images: Iterable[np.ndarray]) -> np.ndarray:
        """Stack images without what was padded."""
        pairs = zip(images, sizes, strict=True)
        return pictures.aligned([image[:height, :width] for image, (height, width) in pairs])

    columns = {
        'image': column(example['image'] for example in chosen),
        'truth': column(pictures.colourise(example['label'], colours) for example in chosen),
    }
    for name, run in scored.items():
        try:
            predictor = predictions.load(run, evaluation, runs.parts(run)[evaluation])
        except (ValueError, OSError) as error:
            LOG.warning('warning: %s is not in %s: %s', name, path.name, error)
            continue
        found = (predictions.labels(predictor, example) for example in chosen)
        columns[name] = column(pictures.colourise(labels, colours) for labels in found)
    if len(columns) == 2:
        raise ValueError('no run has weights that can be read')
    pictures.write_grid(path, columns)
