"""What a run's numbers say about what went wrong: sentences, each with its number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

# A record has the numbers of one step, which vary: what is said is of the last tenth of a run's
# records, of five at least. Fewer records than these say nothing.
SHARE, LEAST = 0.1, 5
# L_c is a mean over a batch's anchors. It is 0 in one step by chance, in so many records not.
SILENT_RECORDS = 5
# Where two spaces of C classes agree by chance, they do on 1/C of the pixels: 5 % at C = 20. Of a
# working run they agree on most.
LITTLE_AGREEMENT = 0.1
# Less than one pixel in a hundred is trained on: L_u is the loss of a few odd pixels.
FEW_CONFIDENT = 0.01
# Class 0 alone, but for one confident pixel in a hundred. Masks can show as little else, as of
# defects: what to expect is said.
FEW_FOREGROUND = 0.01
# Cross-entropies of images that were trained on (augmented, which makes theirs larger) and not. A
# run with all labels has a ratio near 1; one that has learned eight images by heart 7 and more.
LOSS_RATIO = 5.0
# mIoU of both kinds of images, which is more direct.
MEMORISED = 0.2
# A teacher is the mean of the student's last steps. One that is worse by more than noise lags.
WORSE = 0.01


class Measured(NamedTuple):
    """What is measured of a run's weights beside its records and results; None: it was not.

    Attributes:
        without_prototype: names of the classes that have no prototype.
        teacher: mIoU of the teacher on some images of the validation split, in [0, 1].
        student: of the student, on the same images.
        labelled: mIoU of the evaluated network on labelled images that it was trained on.
        validation: of the same network, on some images of the validation split.
        images: how many validation images those are, and how many labelled ones.
        split: which split that is.
    """

    without_prototype: Sequence[str] | None = None
    teacher: float | None = None
    student: float | None = None
    labelled: float | None = None
    validation: float | None = None
    images: tuple[int, int] = (0, 0)
    split: str = 'the validation split'


def notes(
    config: ConfigDict,
    records: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any] | None,
    measured: Measured | None = None,
) -> list[str]:
    """Return a sentence for each thing that is odd about a run.

    Args:
        config: the run's, finalised.
        records: of DIR/metrics.jsonl, ascending.
        results: of its evaluation; None: not evaluated yet.
        measured: of its weights; None: nothing.
    """
    measured = measured or Measured()
    found = [
        _silent(records),
        _without_prototype(config, records, measured),
        _disagreement(config, records),
        _few_confident(config, records),
        _background_only(records),
        _memorised(records, results, measured),
        _worse_teacher(measured),
    ]
    return [note for note in found if note]


def _silent(records: Sequence[Mapping]) -> str | None:
    """Say that L_c is 0."""
    of_contrast = [r for r in records if r.get('loss_contrastive') is not None]
    count = _while(reversed(of_contrast), lambda r: r['loss_contrastive'] == 0)
    if count < SILENT_RECORDS:
        return None
    first, last = of_contrast[-count]['step'], of_contrast[-1]['step']
    return (
        f'L_c is 0 in the last {count} records, of steps {first} to {last}: nothing is learned '
        'from contrast. It needs pixels above contrastive.valid_threshold of two classes or more'
    )


def _without_prototype(
    config: ConfigDict, records: Sequence[Mapping], measured: Measured
) -> str | None:
    """Say which classes never got a prototype, or how many."""
    names = measured.without_prototype
    counts = _values(records, 'classes_with_prototype')[-1:]
    missing = len(names) if names is not None else config.num_classes - int(sum(counts))
    begun = bool(_values(records, 'loss_contrastive'))  # no burn-in makes a prototype
    if not missing or not begun or (names is None and not counts):
        return None
    which = f' ({", ".join(names)})' if names else ''
    return (
        f'{missing} of {config.num_classes} classes never got a prototype{which}: no labelled '
        'crop shows them, and no pixel is given their label in the representation space'
    )


def _disagreement(config: ConfigDict, records: Sequence[Mapping]) -> str | None:
    """Say that mix rejects nearly everything."""
    agreed = _recent(records, 'agreement')
    if config.get('pseudo_label') != 'mix' or agreed is None or agreed >= LITTLE_AGREEMENT:
        return None
    return (
        f'mix rejects nearly everything: both spaces give one label to {_percent(agreed)} of the '
        f'unlabelled pixels (expected: above {LITTLE_AGREEMENT:.0%}), and no other pixel is '
        'trained on'
    )


def _few_confident(config: ConfigDict, records: Sequence[Mapping]) -> str | None:
    """Say that hardly a pixel is above the threshold."""
    confident = _recent(records, 'confident')
    if confident is None or confident >= FEW_CONFIDENT:
        return None
    threshold = config.get('unsupervised', {}).get('threshold')
    by = '' if threshold is None else f' (unsupervised.threshold={threshold:g})'
    return (
        f'{_percent(confident)} of the unlabelled pixels have a confident pseudo-label{by}: L_u is '
        'of nearly nothing'
    )


def _background_only(records: Sequence[Mapping]) -> str | None:
    """Say that class 0 alone is trained on."""
    pairs = {'confident': 'confident_foreground', 'labelled': 'foreground'}
    for whole, part in pairs.items():
        share, foreground = _recent(records, whole), _recent(records, part)
        # Of hardly any confident pixel the share says nothing; that is a note of its own.
        if None not in (share, foreground) and share >= FEW_CONFIDENT:
            if foreground >= FEW_FOREGROUND:
                return None
            return (
                f'the confident pixels are of class 0 only: {_percent(foreground)} of them are of '
                f'another class (expected: about as in the masks), and {_percent(share)} of all '
                'pixels are confident'
            )
    return None


def _memorised(
    records: Sequence[Mapping], results: Mapping[str, Any] | None, measured: Measured
) -> str | None:
    """Say that labelled images are scored far better than others."""
    if None not in (measured.labelled, measured.validation):
        gap = measured.labelled - measured.validation
        if gap < MEMORISED:
            return None
        validation, labelled = measured.images
        return (
            f'the labelled images are memorised: mIoU {_points(measured.labelled)} on {labelled} '
            f'of them against {_points(measured.validation)} on {validation} of {measured.split}, '
            f'{100 * gap:.1f} points less (expected: less than {100 * MEMORISED:.0f})'
        )
    trained, other = _recent(records, 'loss_supervised'), (results or {}).get('loss')
    if None in (trained, other) or other < LOSS_RATIO * trained:
        return None
    return (
        f'the labelled images may be memorised: cross-entropy {trained:.3g} on them, {other:.3g} '
        f'on the validation split, {other / max(trained, 1e-9):.1f} times as much (expected: less '
        f'than {LOSS_RATIO:g} times)'
    )


def _worse_teacher(measured: Measured) -> str | None:
    """Say that the EMA is behind."""
    if None in (measured.teacher, measured.student):
        return None
    gap = measured.student - measured.teacher
    if gap < WORSE:
        return None
    return (
        f'the teacher is worse than the student: mIoU {_points(measured.teacher)} against '
        f'{_points(measured.student)} on {measured.images[0]} images of {measured.split}. A '
        'smaller teacher.decay or more steps let it follow'
    )


def _recent(records: Sequence[Mapping], name: str) -> float | None:
    """Return the mean of a metric over the last records that have it; None if few have."""
    values = _values(records, name)
    last = values[-max(LEAST, round(SHARE * len(values))) :]
    return float(np.mean(last)) if len(last) >= LEAST else None


def _values(records: Sequence[Mapping], name: str) -> list[float]:
    return [record[name] for record in records if record.get(name) is not None]


def _while(items: Iterable[Any], true: Any) -> int:
    """Count the first items for which something is true."""
    count = 0
    for item in items:
        if not true(item):
            break
        count += 1
    return count


def _percent(share: float) -> str:
    return f'{100 * share:.2g} %'


def _points(miou: float) -> str:
    return f'{100 * miou:.1f}'
