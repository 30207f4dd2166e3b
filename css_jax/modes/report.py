"""--mode report: runs side by side, as a table, a picture, and a page with all about them."""

import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from css_jax.data import evaluation as batches
from css_jax.data import sources
from css_jax.evaluation import pictures, tables
from css_jax.evaluation import results as result_files
from css_jax.report import (
    curves,
    embedded,
    images,
    page,
    predictions,
    pseudo,
    runs,
    scores,
    settings,
)
from css_jax.report.page import Section, text
from css_jax.report.runs import Part, Run
from css_jax.run import diagnostics, files, progress

LOG = logging.getLogger('css_jax')
TABLE = 'report.md'
PICTURE = 'report.png'
PAGE = 'report.html'


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
    if scored:
        table = _table(folder, scored)
        written = [folder / TABLE, *_pictures(folder, scored, examples)]
    if html:
        written.append(_page(folder / PAGE, found, examples))
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
    """Draw a picture of each evaluation; return their paths."""
    several = next(iter(scored.values())).results.get('evaluations', {})
    paths = {name: folder / f'report_{name}.png' for name in several} or {None: folder / PICTURE}
    for name, path in paths.items():
        _picture(path, scored, name, examples)
    return list(paths.values())


def _picture(
    path: pathlib.Path, scored: Mapping[str, Run], evaluation: str | None, examples: int
) -> None:
    """Draw the predictions of the weights that the table is about, each on the whole image."""
    first = next(iter(scored.values()))
    part = runs.parts(first)[evaluation]
    source = sources.load(part.dataset, part.split, first.config.data.dir)
    # What was padded to one size is shown so.
    size = predictions.static_size(first, source)
    places = np.unique(np.linspace(0, len(source) - 1, examples).round().astype(int))
    chosen = [batches.example(source, int(index), size) for index in places]
    colours = pictures.palette(
        sources.palette(part.dataset, first.config.data.dir), len(part.names)
    )

    def column(labels: list[np.ndarray]) -> np.ndarray:
        return pictures.aligned([pictures.colourise(one, colours) for one in labels])

    columns = {
        'image': pictures.aligned([example['image'] for example in chosen]),
        'truth': column([example['label'] for example in chosen]),
    }
    for name, run in scored.items():
        predictor = predictions.load(run, evaluation, runs.parts(run)[evaluation])
        columns[name] = column([predictions.labels(predictor, example) for example in chosen])
    pictures.write_grid(path, columns)


def _page(path: pathlib.Path, found: Sequence[Run], examples: int) -> pathlib.Path:
    """Make the page of all runs and write it."""
    lacking = [run.name for run in found if run.step is None]
    there = [run for run in found if run.step is not None]
    every = {run.name: runs.parts(run) for run in there}
    first = next(iter(every.values()), {})
    evaluations = {
        name: {run: p[name] for run, p in every.items() if _alike(p.get(name), part)}
        for name, part in first.items()
    }
    sections, measured = [], {}
    for name, parts in evaluations.items():
        made, more = _evaluation(name, parts, there, examples)
        sections += made
        measured |= {run: found for run, found in more.items() if run not in measured}
    prototypes = {run.name: embedded.without_prototype(run) for run in there}
    measured = {
        run: one._replace(without_prototype=prototypes[run]) for run, one in measured.items()
    }
    made = []
    for run in progress.tracked(there, 'pseudo-labels of the report'):
        made.append(_tried(pseudo.section, run))
    drawn = ''.join(_tried(embedded.section, run) for run in there)
    notes = {
        run.name: diagnostics.notes(run.config, run.records, run.results, measured.get(run.name))
        for run in found
    }
    sections = [
        Section('notes', 'What stands out', _notes(notes, lacking)),
        *sections,
        Section('curves', 'Training', curves.section(found)),
        Section('pseudo-labels', 'Pseudo-labels and views', ''.join(made)),
        Section('embedded', 'Prototypes and label embeddings',
                f'<div class="charts">{drawn}</div>' if drawn else ''),
        Section('hardware', 'Time and hardware', settings.hardware(found)),
        Section('configuration', 'Configurations', settings.differences(found)),
    ]  # fmt: skip
    order = [s for s in sections if s.key.startswith('scores')]
    order += [s for s in sections if s not in order]
    names = ', '.join(run.name for run in found)
    lead = f'<p class="note">{len(found)} runs: {text(names)}</p>' if len(found) > 1 else ''
    title = names if len(found) == 1 else f'Runs in {path.parent.resolve().name}'
    files.write(path, page.document(title, lead, order))
    return path


def _evaluation(
    name: str | None, parts: Mapping[str, Part], there: Sequence[Run], examples: int
) -> tuple[list[Section], dict[str, diagnostics.Measured]]:
    """Return the sections of one evaluation, and what its predictions measure of each run."""
    chosen = {run.name: run for run in there if run.name in parts}
    first, part = next(iter(chosen.values())), next(iter(parts.values()))
    source = sources.load(part.dataset, part.split, first.config.data.dir)
    colours = pictures.palette(
        sources.palette(part.dataset, first.config.data.dir), len(part.names)
    )
    sample, predicted, measured = None, {}, {}
    for run in progress.tracked(list(chosen.values()), 'predictions of the report'):
        own = parts[run.name]
        predictor, classes = predictions.load(run, name, own), len(own.names)
        if sample is None:
            sample, found = predictions.sample(run, source, predictor, classes, examples)
        else:
            found = predictions.on(predictor, sample.examples, classes)
        predicted[run.name] = found
        trained = predictions.labelled(run, own)
        of_trained = predictions.on(predictor, trained, classes) if trained else None
        other = predictions.other(run, name, own)
        of_other = predictions.on(other, sample.examples, classes) if other else None
        both = {own.network: found.together, 'other': of_other and of_other.together}
        teacher = own.network == 'teacher'
        measured[run.name] = diagnostics.Measured(
            teacher=both[own.network] if teacher else both['other'],
            student=both['other'] if teacher else both[own.network],
            labelled=of_trained and of_trained.together,
            validation=found.together,
            images=(len(sample.indices), len(trained)),
        )
    key, of = ('', '') if name is None else (f'-{_key(name)}', f' of {name}')
    body = images.section(sample, predicted, part.names, colours)
    return [
        Section(f'scores{key}', f'Scores{of}', scores.section(parts, colours)),
        Section(f'confusion{key}', f'Confusion{of}', scores.matrices(parts)),
        Section(f'images{key}', f'Images{of}', body),
    ], measured


def _alike(part: Part | None, first: Part) -> bool:
    """Say whether two runs' evaluations have the same images and classes."""
    return part is not None and part[:3] == first[:3]


def _tried(section, run: Run) -> str:
    """Return a section of a run, or one line on why it cannot be made: the others can."""
    try:
        return section(run)
    except (ValueError, OSError) as error:
        LOG.warning('warning: %s: %s', run.name, error)
        return page.note(f'{text(run.name)}: {text(error)}')


def _notes(notes: Mapping[str, Sequence[str]], lacking: Sequence[str]) -> str:
    found = [(run, note) for run, every in notes.items() for note in every]
    items = ''.join(f'<li><b>{text(run)}</b>: {text(note)}</li>' for run, note in found)
    body = f'<ul class="notes">{items}</ul>' if items else page.note('Nothing was found odd.')
    if lacking:
        body += page.note(
            f'Without a checkpoint, shown by their curves alone: {text(", ".join(lacking))}'
        )
    return body


def _key(name: str) -> str:
    """Return an id of a name: letters and digits stay, others become their code."""
    return ''.join(c if c.isascii() and c.isalnum() else f'-{ord(c)}' for c in name)
