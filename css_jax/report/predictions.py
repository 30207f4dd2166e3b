"""Predictions of the runs on some images of a split, and what they score there."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from css_jax import predict
from css_jax.data import evaluation as batches
from css_jax.data import sources, splits
from css_jax.data.sources import Source
from css_jax.ops import metrics
from css_jax.report.runs import Part, Run

IMAGES = 48  # of a split, at most
LABELLED = 16  # images of the labelled stream, at most
SIZES = 4  # of images, at most: each is compiled for every network
SECONDS = 10.0  # that the first network may take for them, without compilation


class Sample(NamedTuple):
    """Some images of a split.

    Attributes:
        source: the split.
        indices: of the images, the evenly spread ones first.
        spread: how many of them are evenly spread over the split.
        examples: 'image' and 'label' of each.
    """

    source: Source
    indices: list[int]
    spread: int
    examples: list[dict[str, np.ndarray]]


class Predicted(NamedTuple):
    """What one network makes of a sample.

    Attributes:
        labels: classes [H, W] of each image, void where the truth is.
        miou: of each image, over the classes that it shows or is said to show; None of one
            without truth.
        together: mIoU of all these images as one.
    """

    labels: list[np.ndarray]
    miou: list[float | None]
    together: float | None


def static_size(run: Run, source: Source) -> tuple[int, int]:
    """Return the size that images are padded to, (0, 0) for none; it saves compilations."""
    config = run.results['eval'] if run.results else run.config.eval
    whole = config['protocol'] == 'whole'
    return batches.eval_size(source, config['pad_to']) if whole else (0, 0)


def sample(
    run: Run, source: Source, predictor: predict.Predictor, classes: int, examples: int
) -> tuple[Sample, Predicted]:
    """Choose images of a split, and as many as a network predicts in `SECONDS`.

    Args:
        run: the first one, whose network it is.
        source: the split.
        predictor: of the run.
        classes: of the evaluation.
        examples: images that are evenly spread and always there.
    """
    size = static_size(run, source)
    spread = _spread(len(source), examples)
    sizes = source.sizes if size == (0, 0) else np.zeros((len(source), 2), int)
    common = _of_common_sizes(sizes)
    further = [common[i] for i in _spread(len(common), IMAGES)]
    order = list(dict.fromkeys([*spread, *further]))[:IMAGES]
    chosen, found, began, compiled = [], [], time.perf_counter(), set()
    for index in order:
        if len(chosen) >= len(spread) and time.perf_counter() - began > SECONDS:
            break
        chosen.append(batches.example(source, index, size))
        before, shape = time.perf_counter(), chosen[-1]['image'].shape
        found.append(labels(predictor, chosen[-1]))
        if shape not in compiled:
            began += time.perf_counter() - before
        compiled.add(shape)
    return Sample(source, order[: len(chosen)], len(spread), chosen), _scored(
        found, chosen, classes
    )


def on(predictor: predict.Predictor, examples: Sequence[dict], classes: int) -> Predicted:
    """Predict examples, each on its own."""
    return _scored([labels(predictor, example) for example in examples], examples, classes)


def labels(predictor: predict.Predictor, example: dict[str, np.ndarray]) -> np.ndarray:
    """Return an image's predicted classes [H, W], void where its truth is, if it has any."""
    found = predictor.predict(example['image'][None])[0]
    void = example['label'] == sources.VOID
    return found if void.all() else np.where(void, sources.VOID, found)


def load(run: Run, name: str | None, part: Part) -> predict.Predictor:
    """Load the network that a run was, or is to be, evaluated with."""
    own = run.config.eval.get('network')
    network = None if part.network == own else part.network
    return predict.load(run.folder, str(run.step), network, name)


def other(network: str) -> str:
    """Return the name of the other one of student and teacher."""
    return 'student' if network == 'teacher' else 'teacher'


def load_other(run: Run, name: str | None, part: Part) -> predict.Predictor | None:
    """Load the other one of student and teacher; None where a method has no teacher."""
    try:
        return predict.load(run.folder, str(run.step), other(part.network), name)
    except ValueError:
        return None


def labelled(run: Run, part: Part) -> list[dict[str, np.ndarray]]:
    """Return some images that a run was trained on with their masks, of an evaluation's dataset.

    They are whole, and as evenly spread over its labelled images as their sizes allow. There are
    none where it was trained without masks, or where they are not there any more.
    """
    data = run.config.data
    found = []
    try:
        loaded, ids = splits.load(data), splits.subsets(data)
    except (ValueError, OSError):
        return found
    for name, source in loaded.items():
        if not data.streams[name].reads.startswith('mask') or source.dataset != part.dataset:
            continue
        places = {image: place for place, image in enumerate(source.ids)}
        indices = np.array([places[image] for image in ids[name]])
        validation = sources.load(part.dataset, part.split, data.dir)
        size = static_size(run, validation)
        fits = (source.sizes[indices] <= size).all(1) if any(size) else np.zeros(len(indices), bool)
        if not fits.all():
            size = (0, 0)
            indices = indices[_of_common_sizes(source.sizes[indices], 1)]
        chosen = indices[_spread(len(indices), LABELLED)]
        found += [batches.example(source, int(index), size) for index in chosen]
    return found[:LABELLED]


def _scored(found: list[np.ndarray], examples: Sequence[dict], classes: int) -> Predicted:
    matrices = [_confusion(e['label'], f, classes) for e, f in zip(examples, found, strict=True)]
    miou = [metrics.scores(matrix)['miou'] for matrix in matrices]
    return Predicted(found, miou, metrics.scores(np.sum(matrices, axis=0))['miou'])


def _confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    known = (truth < classes) & (found < classes)
    index = truth[known].astype(int) * classes + found[known]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def _spread(count: int, wanted: int) -> list[int]:
    """Return at most so many places, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def _of_common_sizes(sizes: np.ndarray, most: int = SIZES) -> np.ndarray:
    """Return the places of the images whose sizes are the commonest ones, ascending."""
    _, kind, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    common = np.argsort(-counts, kind='stable')[:most]
    return np.flatnonzero(np.isin(kind.ravel(), common))
