"""All sections of the page, in their order."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from css_jax import predict
from css_jax.data import sources
from css_jax.evaluation import pictures
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
from css_jax.run import checkpoint, diagnostics, progress

LOG = logging.getLogger('css_jax')


def document(title: str, found: Sequence[Run], examples: int) -> str:
    """Return the page of some runs.

    Args:
        title: plain text.
        found: the runs; those without a checkpoint are shown by their records alone.
        examples: images that are evenly spread over the split.

    What needs a checkpoint or a dataset that is not there any more, or damaged, is a line that says
    so, and the rest of the page is there.
    """
    there = [run for run in found if run.step is not None]
    data_dir = found[0].config.data.dir
    every, without = _parts(there), _without_weights(there)
    with_weights = [run for run in there if run.name not in without]
    first = next(iter(every.values()), {})
    scored, pictured, measured, shown = [], [], {}, set()
    for name, part in first.items():
        parts = {run: of[name] for run, of in every.items() if _alike(of.get(name), part)}
        top, below, numbers = _evaluation(name, parts, with_weights, examples, data_dir)
        scored, pictured = [*scored, top], [*pictured, *below]
        shown |= set(parts)
        for run, one in numbers.items():
            measured.setdefault(run, []).append(one)

    partly = {
        'Without a checkpoint, shown by their curves alone': [
            run.name for run in found if run.step is None
        ],
        'Of other images or classes than the first run, without scores and images': [
            run.name for run in there if run.name not in shown
        ],
    }
    lines = [f'{why}: {", ".join(names)}' for why, names in partly.items() if names]
    lines += [f'Without pictures: {name}. {why}' for name, why in without.items()]
    made = [
        _tried(pseudo.section, run)
        for run in progress.tracked(with_weights, 'pseudo-labels of the report')
    ]
    drawn = ''.join(_tried(embedded.section, run) for run in with_weights)
    names = ', '.join(run.name for run in found)
    lead = page.note(f'{len(found)} runs: {text(names)}') if len(found) > 1 else ''
    sections = [
        *scored,
        Section('notes', 'What stands out', _notes(found, with_weights, measured, lines)),
        *pictured,
        Section('curves', 'Training', curves.section(found)),
        Section('pseudo-labels', 'Pseudo-labels and views', ''.join(made)),
        Section(
            'embedded',
            'Prototypes and label embeddings',
            f'<div class="charts">{drawn}</div>' if drawn else '',
        ),
        Section('hardware', 'Time and hardware', settings.hardware(found)),
        Section('configuration', 'Configurations', settings.differences(found)),
    ]
    return page.document(title, lead, sections)


def _parts(there: Sequence[Run]) -> dict[str, dict[str | None, Part]]:
    """Return the evaluations of each run; a run of a dataset that is not there has none."""
    found = {}
    for run in there:
        try:
            found[run.name] = runs.parts(run)
        except (ValueError, OSError) as error:  # not evaluated yet, and its split is gone
            LOG.warning('warning: %s: %s', run.name, error)
    return found


def _without_weights(there: Sequence[Run]) -> dict[str, str]:
    """Return why the weights of some runs cannot be shown: name -> reason."""
    reasons = {}
    for run in there:
        try:
            checkpoint.find(run.folder, str(run.step))
        except (ValueError, OSError) as error:
            LOG.warning('warning: %s: %s', run.name, error)
            reasons[run.name] = str(error)
    return reasons


def _evaluation(
    name: str | None,
    parts: Mapping[str, Part],
    with_weights: Sequence[Run],
    examples: int,
    data_dir: str,
) -> tuple[Section, list[Section], dict[str, diagnostics.Measured]]:
    """Return the scores of one evaluation, what follows them, and what is measured of each run."""
    part, chosen = next(iter(parts.values())), [run for run in with_weights if run.name in parts]
    colours = _colours(part, data_dir)
    body, measured = '', {}
    if chosen:
        body, measured = _images(name, parts, chosen, examples, colours)
    key, of = ('', '') if name is None else (f'-{_key(name)}', f' of {name}')
    top = Section(f'scores{key}', f'Scores{of}', scores.section(parts, colours))
    below = [
        Section(f'confusion{key}', f'Confusion{of}', scores.matrices(parts)),
        Section(f'images{key}', f'Images{of}', body),
    ]
    return top, below, measured


def _images(
    name: str | None,
    parts: Mapping[str, Part],
    chosen: Sequence[Run],
    examples: int,
    colours: np.ndarray,
) -> tuple[str, dict[str, diagnostics.Measured]]:
    """Return the pictures of one evaluation, and what is measured of each run that has weights."""
    part = parts[chosen[0].name]
    try:
        source = sources.load(part.dataset, part.split, chosen[0].config.data.dir)
    except (ValueError, OSError) as error:
        return _failed(part.split, error), {}
    sample, predicted, measured, failed = None, {}, {}, ''
    for run in progress.tracked(chosen, 'predictions of the report'):
        own, classes = parts[run.name], len(part.names)
        try:
            predictor = predictions.load(run, name, own)
            if sample is None:
                sample, found = predictions.sample(run, source, predictor, classes, examples)
            else:
                found = predictions.on(predictor, sample.examples, classes)
            measured[run.name] = _measured(run, name, own, sample, found, predictor)
            predicted[run.name] = found
        except (ValueError, OSError) as error:
            failed += _failed(run.name, error)
    body = images.section(sample, predicted, part.names, colours) if predicted else ''
    return body + failed, measured


def _measured(
    run: Run,
    name: str | None,
    own: Part,
    sample: predictions.Sample,
    found: predictions.Predicted,
    predictor: predict.Predictor,
) -> diagnostics.Measured:
    """Return what diagnostics take from predictions of both networks, and of labelled images."""
    classes, trained = len(own.names), predictions.labelled(run, own)
    of_trained = predictions.on(predictor, trained, classes) if trained else None
    other = predictions.load_other(run, name, own)
    both = {own.network: found.together}
    if other:
        of_other = predictions.on(other, sample.examples, classes)
        both[predictions.other(own.network)] = of_other.together
    return diagnostics.Measured(
        teacher=both.get('teacher'),
        student=both.get('student'),
        labelled=of_trained and of_trained.together,
        validation=found.together,
        images=(len(sample.indices), len(trained)),
        split=f'{own.dataset}:{own.split}',
    )


def _colours(part: Part, data_dir: str) -> np.ndarray:
    """Return the colours of an evaluation's classes, others where the dataset is not there."""
    try:
        own = sources.palette(part.dataset, data_dir)
    except (ValueError, OSError):
        own = np.zeros((0, 3), np.uint8)
    return pictures.palette(own, len(part.names))


def _alike(part: Part | None, first: Part) -> bool:
    """Say whether two runs' evaluations have the same images and classes."""
    return part is not None and part[:3] == first[:3]


def _tried(section: Callable[[Run], str], run: Run) -> str:
    """Return a section of a run, or one line on why it cannot be made: the others can."""
    try:
        return section(run)
    except (ValueError, OSError) as error:
        return _failed(run.name, error)


def _failed(name: str, error: Exception) -> str:
    """Log why something of a run or split is not shown; return that as a paragraph."""
    LOG.warning('warning: %s: %s', name, error)
    return page.note(f'{text(name)}: {text(error)}')


def _notes(
    found: Sequence[Run],
    with_weights: Sequence[Run],
    measured: Mapping[str, Sequence[diagnostics.Measured]],
    lines: Sequence[str],
) -> str:
    """Return what is odd about each run, and in lines which runs are shown in part."""
    items = ''
    for run in found:
        readable = any(run is one for one in with_weights)
        without = None
        if readable:
            # A run that is trained meanwhile removes its older checkpoints.
            with contextlib.suppress(ValueError, OSError):
                without = embedded.without_prototype(run)
        notes = [  # of each evaluation; what the records say is said once
            note
            for numbers in measured.get(run.name, [diagnostics.Measured()])
            for note in diagnostics.notes(
                run.config, run.records, run.results, numbers._replace(without_prototype=without)
            )
        ]
        for note in dict.fromkeys(notes):
            items += f'<li><b>{text(run.name)}</b>: {text(note)}</li>'
    body = f'<ul class="notes">{items}</ul>' if items else page.note('Nothing was found odd.')
    return body + ''.join(page.note(text(line)) for line in lines)


def _key(name: str) -> str:
    """Return an id of a name: letters and digits stay, others become their code."""
    return ''.join(c if c.isascii() and c.isalnum() else f'-{ord(c)}' for c in name)
