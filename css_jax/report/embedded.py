"""Prototypes, or label embeddings, in the plane of their two largest principal components."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from css_jax.data import sources
from css_jax.evaluation import pictures
from css_jax.methods import usss_settings
from css_jax.report import charts, page
from css_jax.report.page import text
from css_jax.report.runs import Run
from css_jax.run import checkpoint


class _Points(NamedTuple):
    """Named vectors; see `css_jax.report.charts.points`.

    Attributes:
        vectors: [N, D] float.
        names: [N], of their classes.
        colours: [N, 3] uint8 RGB.
        groups: [N] int, places in `titles`.
        titles: of the datasets.
    """

    vectors: np.ndarray
    names: Sequence[str]
    colours: np.ndarray
    groups: Sequence[int]
    titles: Sequence[str]


def section(run: Run) -> str:
    """Return the drawing of one run; '' where its memory has nothing of the kind."""
    memory = checkpoint.restore_arrays(run.folder, run.step, ['memory'])['memory']
    if 'prototypes' in memory:
        return _drawn(run, 'prototypes', _prototypes(run, memory))
    if any(path.endswith('/rows') for path in memory):
        return _drawn(run, 'label embeddings', _rows(run, memory))
    return ''


def without_prototype(run: Run) -> list[str] | None:
    """Return the names of the classes that have no prototype; None where a run has none at all."""
    memory = checkpoint.restore_arrays(run.folder, run.step, ['memory'])['memory']
    if 'seen' not in memory:
        return None
    return [name for name, seen in zip(_names(run), memory['seen'], strict=True) if not seen]


def plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the places of unit vectors in their plane, and the share of variance in it.

    Args:
        vectors: [N, D]; their lengths do not count.

    Returns:
        [N, 2] float, and a share in [0, 1].
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    found = (left * sizes)[:, :2]
    places[:, : found.shape[1]] = found
    return places, float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-12))


def _drawn(run: Run, what: str, points: _Points) -> str:
    if len(points.vectors) < 2:
        return ''
    places, share = plane(points.vectors)
    title = f'{run.name}: {what}'
    figure = charts.points(title, places, *points[1:])
    return f'<div>{figure}' + page.note(
        f'{len(places)} {text(what)} of unit length, in the plane of their two largest principal '
        f'components, which has {100 * share:.0f} % of their variance: what is near there may be '
        'apart in other directions.'
    ) + '</div>'  # fmt: skip


def _names(run: Run) -> list[str]:
    stream = next(iter(run.config.data.streams.values()))
    try:
        own = sources.class_names(stream.dataset, run.config.data.dir)
    except (ValueError, OSError):  # the dataset is not there any more
        own = ()
    return [*own, *(f'class {i}' for i in range(len(own), run.config.num_classes))]


def _prototypes(run: Run, memory: dict) -> _Points:
    stream = next(iter(run.config.data.streams.values()))
    own = sources.palette(stream.dataset, run.config.data.dir)
    colours, seen = pictures.palette(own, run.config.num_classes), memory['seen'].astype(bool)
    names = [name for name, known in zip(_names(run), seen, strict=True) if known]
    return _Points(memory['prototypes'][seen], names, colours[seen], [0] * len(names), [''])


def _rows(run: Run, memory: dict) -> _Points:
    config, found = run.config, []
    letters = usss_settings.names(config)
    for group, letter in enumerate(letters):
        classes = usss_settings.classes(config, letter)
        stream = config.data.streams[usss_settings.LABELLED + letter]
        colours = pictures.palette(sources.palette(stream.dataset, config.data.dir), len(classes))
        for place in np.flatnonzero(memory[f'{letter}/valid']):  # void's row is left out
            number = place // config.usss.centroids
            row = memory[f'{letter}/rows'][place]
            found.append((row, classes[number], colours[number], group))
    vectors, names, colours, groups = zip(*found, strict=True) if found else ((), (), (), ())
    titles = [usss_settings.title(config, letter) for letter in letters]
    return _Points(np.array(vectors), names, np.array(colours), groups, titles)
