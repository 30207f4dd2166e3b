"""--mode embeddings: label embeddings from a run of `usss_basic`, for the entropies of USSS.

The features of the labelled images' pixels, where the decoders read them, become centroids of each
label; principal components of the features of all datasets together, in which every label weighs
alike, make these as short as the projection of the pixels is. What the authors' program does not
say is a fill-in; see `css_jax.ops.embeddings` and docs/usss.md.
"""

import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax.data import evaluation, sources, splits
from css_jax.evaluation import pictures
from css_jax.methods import usss, usss_rows, views
from css_jax.ops import embeddings as ops
from css_jax.run import checkpoint, progress
from css_jax.run import folder as run_folder
from css_jax.weights import files

LOG = logging.getLogger('css_jax')
CELLS = 10_000  # of a label, at most, in the clusters and components


class Cells(NamedTuple):
    """Labelled cells of the feature maps of one dataset.

    Attributes:
        features: [N, D] float32, a sample: of each label `CELLS` at most, evenly over the images.
        labels: [N] int32.
        sums: [C, D] float64, of all cells of each label.
        counts: [C] int64, how many those are.
    """

    features: np.ndarray
    labels: np.ndarray
    sums: np.ndarray
    counts: np.ndarray


def make(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    target: str | pathlib.Path | None = None,
    which: str = 'last',
) -> pathlib.Path:
    """Write the label embeddings of a run, and a picture of them beside.

    Args:
        config: the run's; `usss.centroids` and `usss.embedding_dim` may differ.
        workdir: the run's folder.
        target: file to write; None: DIR/embeddings.npz.
        which: checkpoint: 'last', 'best' or a step.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no such run or checkpoint, or its data is not prepared.
        FileExistsError: the file is there already.
        ValueError: the run is of another method, or has fewer channels than the embedding.
    """
    workdir = pathlib.Path(workdir)
    target = pathlib.Path(target or workdir / usss_rows.FILE)
    config = configs.finalise(config, workdir)
    if methods.METHODS[config.method].loss is not usss.loss or len(usss.names(config)) < 2:
        raise ValueError(
            f'--mode embeddings: {workdir} is a run of {config.method}, expected one of usss_basic'
        )
    free = (*run_folder.FREE, 'usss.centroids', 'usss.embedding_dim')
    run_folder.match(config, workdir, free)
    picture = _free(target)
    step = checkpoint.find(workdir, which)
    trained = run_folder.load(workdir)  # whose network this is
    ctx = methods.context(trained)
    like = state.networks(methods.METHODS[trained.method], ctx)['student']
    variables = checkpoint.restore_network(workdir, step, like, 'student')

    ids = splits.subsets(config.data)  # where they are today
    cells = {name: _cells(name, ids, config, ctx, variables) for name in usss.names(config)}
    arrays = _embedded(config, cells)
    made_of = {
        'run': str(workdir), 'step': step, 'seed': config.seed,
        'centroids': config.usss.centroids, 'embedding_dim': config.usss.embedding_dim,
        'split_hash': splits.record(config.data, ids)['split_hash'],
    }  # fmt: skip
    arrays['made_of'] = np.array(json.dumps(made_of))
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures.write_points(picture, *_points(config, arrays))
    files.write(target, arrays)  # last, as it is what is looked for
    print(f'written: {target}, {picture}')
    return target


def _free(target: pathlib.Path) -> pathlib.Path:
    """Return the place of the picture, once it is sure that both files can be written.

    Raises:
        ValueError: the file has another ending than .npz.
        FileExistsError: either is there already.
    """
    if target.suffix != '.npz':
        raise ValueError(f'--target: got {target}, expected a file ending in .npz')
    picture = target.with_suffix('.png')
    if there := [str(path) for path in (target, picture) if path.exists()]:
        raise FileExistsError(f'--target: {" and ".join(there)} is there already')
    return picture


def _embedded(config: ConfigDict, cells: Mapping[str, Cells]) -> dict[str, np.ndarray]:
    """Return the arrays of the file, see `css_jax.methods.usss_rows`, but for `made_of`.

    Raises:
        ValueError: the features have fewer channels than the embedding.
    """
    c, key = config.usss, jax.random.key(config.seed)
    features = np.concatenate([one.features for one in cells.values()])
    if c.embedding_dim > features.shape[1]:
        raise ValueError(
            f'usss.embedding_dim: got {c.embedding_dim}, expected at most the '
            f'{features.shape[1]} channels of the features'
        )
    # Every label of every dataset weighs alike.
    weights = [1 / np.bincount(one.labels, minlength=1)[one.labels] for one in cells.values()]
    mean, components = ops.pca(features, np.concatenate(weights), c.embedding_dim)
    arrays = {'mean': mean, 'components': components}
    for i, (name, one) in enumerate(cells.items()):
        classes, title = usss.classes(config, name), usss.title(config, name)
        centroids = _centroids(one, c.centroids, jax.random.fold_in(key, i))
        arrays |= {
            f'{name}/rows': ops.rows(centroids, mean, components),
            f'{name}/valid': np.repeat(one.counts > 0, c.centroids),
            f'{name}/names': np.array(classes),
            f'{name}/dataset': np.array(title),
            f'{name}/cells': one.counts,
        }
        for label in np.flatnonzero(one.counts == 0):
            LOG.warning(
                'warning: no labelled cell shows %s of %s: its rows are left out',
                classes[label], title,
            )  # fmt: skip
    return arrays


def _centroids(cells: Cells, count: int, key: jax.Array) -> np.ndarray:
    """Return [C, count, D] centroids; a single one is the mean of all cells, sampled or not."""
    classes = len(cells.counts)
    if count == 1:
        return (cells.sums / np.maximum(cells.counts, 1)[:, None])[:, None].astype(np.float32)
    return ops.centroids(cells.features, cells.labels, classes, count, key)[0]


def _cells(
    name: str, ids: dict, config: ConfigDict, ctx: state.Context, variables: state.Variables
) -> Cells:
    """Run the network on a dataset's labelled images, whole, and take the labelled cells."""
    stream = config.data.streams[usss.LABELLED + name]
    source = sources.load(stream.dataset, stream.split, config.data.dir)
    row = {image_id: index for index, image_id in enumerate(source.ids)}
    chosen = [row[image_id] for image_id in ids[usss.LABELLED + name]]
    classes = len(source.class_names)
    showing = np.maximum((source.pixels[chosen] > 0).sum(0), 1)  # images that show each label
    rng = np.random.default_rng([config.seed, *name.encode()])
    sums, counts, features, labels = None, np.zeros(classes, np.int64), [], []
    for maps, mask in _features(source, chosen, ctx, variables):
        cells = _at_cells(mask, maps.shape[:2])
        flat = maps.reshape(-1, maps.shape[-1])
        sums = np.zeros((classes, flat.shape[1])) if sums is None else sums
        for label in np.unique(cells[cells != sources.VOID]):
            own = np.flatnonzero(cells.ravel() == label)
            sums[label] += flat[own].astype(np.float64).sum(0)
            counts[label] += len(own)
            share = -(-CELLS // showing[label])
            taken = np.sort(rng.permutation(own)[:share])
            features.append(flat[taken])
            labels.append(np.full(len(taken), label, np.int32))
    if not features:
        raise ValueError(
            f'data.streams.{usss.LABELLED}{name}: no cell of the features has a label; expected '
            'labelled images'
        )
    return Cells(np.concatenate(features), np.concatenate(labels), sums, counts)


def _at_cells(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the label in the middle of each cell of the features [h, w]; void outside."""
    stride = usss.STRIDE
    labels = np.full(size, sources.VOID, mask.dtype)
    middle = mask[stride // 2 :: stride, stride // 2 :: stride]
    labels[: middle.shape[0], : middle.shape[1]] = middle
    return labels


def _features(
    source: sources.Source, chosen: list[int], ctx: state.Context, variables: state.Variables
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the features [h, w, D] float32 and the mask [H, W] of each image."""

    def features(variables: state.Variables, images: jax.Array) -> jax.Array:
        arrays = {'params': variables.params, 'batch_stats': variables.batch_stats}
        seen = views.normalise(images, ctx)
        _, sown = ctx.module.apply(arrays, seen, train=False, mutable=['intermediates'])
        return sown['intermediates']['features'][0]

    run = parallel.compile(features)  # once for each size of image
    for index in progress.tracked(chosen, f'features of {source.dataset}'):
        example = evaluation.example(source, index)
        maps = np.asarray(run(variables, example['image'][None]))[0]
        yield maps, example['label']


def _points(
    config: ConfigDict, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """Return what the picture shows: places [N, 2], names, dataset of each [N], and their titles.

    The places are the rows along their two directions of largest variance.
    """
    rows, names, dataset = [], [], []
    for i, name in enumerate(usss.names(config)):
        valid = arrays[f'{name}/valid']
        rows.append(arrays[f'{name}/rows'][:-1][valid])
        labels = np.repeat(arrays[f'{name}/names'], config.usss.centroids)[valid]
        names += list(map(str, labels))
        dataset += [i] * len(labels)
    rows = np.concatenate(rows)
    mean, components = ops.pca(rows, np.ones(len(rows)), min(2, rows.shape[1]))
    places = (rows - mean) @ components
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    titles = [usss.title(config, name) for name in usss.names(config)]
    return places, names, np.array(dataset), titles
