"""All sections of the page, in their order."""

import logging
from collections.abc import Callable, Mapping, Sequence

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
from css_jax.run import diagnostics, progress

LOG = logging.getLogger('css_jax')


def document(title: str, found: Sequence[Run], examples: int) -> str:
    """Return the page of some runs.

    Args:
        title: plain text.
        found: the runs; those without a checkpoint are shown by their records alone.
        examples: images that are evenly spread over the split.

    Raises:
        ValueError: a checkpoint or a dataset does not fit.
        FileNotFoundError: a checkpoint or a dataset is not there.
    """
    there = [run for run in found if run.step is not None]
    every = {run.name: runs.parts(run) for run in there}
    first = next(iter(every.values()), {})
    scored, pictured, measured, shown = [], [], {}, set()
    for name, part in first.items():
        parts = {run: of[name] for run, of in every.items() if _alike(of.get(name), part)}
        top, below, numbers = _evaluation(name, parts, there, examples)
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
    made = [
        _tried(pseudo.section, run)
        for run in progress.tracked(there, 'pseudo-labels of the report')
    ]
    drawn = ''.join(_tried(embedded.section, run) for run in there)
    names = ', '.join(run.name for run in found)
    lead = page.note(f'{len(found)} runs: {text(names)}') if len(found) > 1 else ''
    sections = [
        *scored,
        Section('notes', 'What stands out', _notes(found, measured, partly)),
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


def _evaluation(
    name: str | None, parts: Mapping[str, Part], there: Sequence[Run], examples: int
) -> tuple[Section, list[Section], dict[str, diagnostics.Measured]]:
    """Return the scores of one evaluation, what follows them, and what is measured of each run."""
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
        other = predictions.load_other(run, name, own)
        of_other = predictions.on(other, sample.examples, classes) if other else None
        both = {own.network: found.together}
        both |= {predictions.other(own.network): of_other.together} if of_other else {}
        measured[run.name] = diagnostics.Measured(
            teacher=both.get('teacher'),
            student=both.get('student'),
            labelled=of_trained and of_trained.together,
            validation=found.together,
            images=(len(sample.indices), len(trained)),
            split=f'{part.dataset}:{part.split}',
        )
    key, of = ('', '') if name is None else (f'-{_key(name)}', f' of {name}')
    body = images.section(sample, predicted, part.names, colours)
    top = Section(f'scores{key}', f'Scores{of}', scores.section(parts, colours))
    below = [
        Section(f'confusion{key}', f'Confusion{of}', scores.matrices(parts)),
        Section(f'images{key}', f'Images{of}', body),
    ]
    return top, below, measured


def _alike(part: Part | None, first: Part) -> bool:
    """Say whether two runs' evaluations have the same images and classes."""
    return part is not None and part[:3] == first[:3]


def _tried(section: Callable[[Run], str], run: Run) -> str:
    """Return a section of a run, or one line on why it cannot be made: the others can."""
    try:
        return section(run)
    except (ValueError, OSError) as error:
        LOG.warning('warning: %s: %s', run.name, error)
        return page.note(f'{text(run.name)}: {text(error)}')


def _notes(
    found: Sequence[Run],
    measured: Mapping[str, Sequence[diagnostics.Measured]],
    partly: Mapping[str, Sequence[str]],
) -> str:
    """Return what is odd about each run, and which runs are shown in part: reason -> names."""
    items = ''
    for run in found:
        without = None if run.step is None else embedded.without_prototype(run)
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
    for reason, names in partly.items():
        if names:
            body += page.note(f'{reason}: {text(", ".join(names))}')
    return body


def _key(name: str) -> str:
    """Return an id of a name: letters and digits stay, others become their code."""
    return ''.join(c if c.isascii() and c.isalnum() else f'-{ord(c)}' for c in name)
