"""--mode pseudo_labels: their quality, against truth that training never sees (Table 4)."""

import contextlib
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax.data import sources, splits, streams
from css_jax.evaluation import tables
from css_jax.methods import css, css_follow, teacher, views
from css_jax.ops import metrics
from css_jax.ops import pseudo_labels as labelling
from css_jax.run import checkpoint, files
from css_jax.run import folder as run_folder

LOG = logging.getLogger('css_jax')
KINDS = ('logit', 'representation', 'mix')


def pseudo_labels(
    config: ConfigDict, workdir: str | pathlib.Path, which: str = 'last'
) -> dict[str, Any]:
    """Measure the pseudo-labels that a checkpoint's teacher gives the unlabelled images.

    One pass over the unlabelled stream, in the weak view and with the BatchNorm of training. The
    labels are those that the sampling of Sec. 3.4 leaves: 'logit' where j_lgt >= delta_u,
    'representation' where j_rep >= delta_w, 'mix' where both spaces agree and j_lgt >= delta_u. An
    IoU is over the pixels that have a label left; coverage is the share of a class's true pixels
    that are among them; padding is void. As j_rep is thresholded from below, its tau_sim is at most
    `css_jax.methods.css_follow.SELECTIVE_TEMPERATURE`, whatever the run was trained with.

    DIR/pseudo_labels.json, and .md with the table, are of the last checkpoint; those of others
    are named by it, such as DIR/pseudo_labels_best.json.

    Args:
        config: the run's configuration.
        workdir: the run's folder.
        which: 'last', 'best' or a step.

    Returns:
        What is written: 'step', the 'split_hash' of the images trained on, the number of 'images'
        measured, 'delta_u', 'delta_w' and 'tau_sim' as used here, and kind of label -> its 'miou',
        'iou', 'accuracy', 'coverage' and 'coverage_by_class'.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the method has no second space, the unlabelled images are not known, or the
            configuration is not the run's.
    """
    config = configs.finalise(config, workdir)
    run_folder.match(config, workdir)
    method = methods.METHODS[config.method]
    if method.targets is not css.targets:
        having = [n for n, other in methods.METHODS.items() if other.targets is css.targets]
        raise ValueError(
            f'method: got {config.method}, expected one with a representation space: {having}'
        )
    step = checkpoint.find(workdir, which)
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        meta = checkpoints.meta(step)
    if note := splits.changed_since(meta, config.data):
        LOG.warning('warning: %s', note)
    data = ConfigDict(config.data.to_dict())
    data.streams.unlabelled.reads = 'mask'  # here alone; the crops are those of training
    ids = splits.subsets(data)['unlabelled']
    ctx = methods.context(config)
    variables = checkpoint.restore_network(workdir, step, state.networks(method, ctx)['teacher'])
    memory = checkpoint.restore_arrays(workdir, step, ['memory'])['memory']
    measure = parallel.compile(_measure(config, ctx))

    size = data.streams.unlabelled.batch_size
    # Of this stream alone: the labelled one is not even decoded.
    batches = streams.train_batches(data, seed=config.seed, names=('unlabelled',))
    total = None
    for start in range(0, len(ids), size):
        batch = next(batches)['unlabelled']
        batch['label'][len(ids) - start :] = sources.VOID  # of the next pass already
        part = jax.device_get(measure(variables, memory, batch))
        part = jax.tree.map(lambda x: x.astype(np.int64), part)
        total = part if total is None else jax.tree.map(np.add, total, part)

    matrices, pixels = total
    scores = {kind: _scores(matrices[kind], pixels) for kind in KINDS}
    results = {
        'step': step,
        'split_hash': meta['split_hash'],
        'images': len(ids),
        'delta_u': config.unsupervised.threshold,
        'delta_w': config.contrastive.valid_threshold,
        'tau_sim': _temperature(config),
        **scores,
    }
    names = sources.class_names(data.streams.unlabelled.dataset, data.dir)
    title = f'{config.method}, step {step}: pseudo-labels of {len(ids)} unlabelled images'
    text = f'{title}; IoU in %, then coverage in %\n\n{_table(names, scores)}\n'
    suffix = {'last': '', 'best': '_best'}.get(which, f'_step{step}')  # as results.file_name
    path = pathlib.Path(workdir) / f'pseudo_labels{suffix}.json'
    table = path.with_suffix('.md')
    files.write(table, text)
    files.write(path, json.dumps(results, indent=2) + '\n')
    print(text, end='')
    print(f'written: {table}, {path}')
    return results


def _temperature(config: ConfigDict) -> float:
    return min(config.contrastive.similarity_temperature, css_follow.SELECTIVE_TEMPERATURE)


def _measure(config: ConfigDict, ctx: state.Context) -> Any:
    """Return the function of one batch -> ({kind: confusion [C, C]}, true pixels by class [C])."""
    selective = ConfigDict(config.to_dict())
    selective.contrastive.similarity_temperature = _temperature(config)

    def measure(variables: state.Variables, memory: dict, batch: dict) -> tuple[dict, jax.Array]:
        truth = views.host_labels(batch['label'])
        out, _ = teacher.run(variables, views.normalise(batch['image'], ctx), ctx)
        y_lgt, j_lgt, y_rep, j_rep = css.both_spaces(out, memory, truth.shape[1:], selective)
        confident = j_lgt >= config.unsupervised.threshold
        agreed = labelling.mix(y_lgt, y_rep)
        left = {
            'logit': jnp.where(confident, y_lgt, -1),
            'representation': jnp.where(j_rep >= config.contrastive.valid_threshold, y_rep, -1),
            'mix': jnp.where(confident, agreed, -1),
        }
        matrices = {
            kind: metrics.confusion(jnp.where(y >= 0, truth, -1), y.clip(0), config.num_classes)
            for kind, y in left.items()
        }
        return matrices, (truth[..., None] == jnp.arange(config.num_classes)).sum((0, 1, 2))

    return measure


def _scores(matrix: np.ndarray, pixels: np.ndarray) -> dict[str, Any]:
    covered = matrix.sum(1)
    by_class = [float(n / m) if m else None for n, m in zip(covered, pixels, strict=True)]
    coverage = float(covered.sum() / max(pixels.sum(), 1))
    return {**metrics.scores(matrix), 'coverage': coverage, 'coverage_by_class': by_class}


def _table(names: tuple[str, ...], results: dict[str, dict]) -> str:
    def percent(value: float | None) -> str:
        return '-' if value is None else f'{100 * value:.2f}'

    kinds = list(results)
    rows = [['class', *kinds, *(f'{kind}, coverage' for kind in kinds)]]
    for i, name in enumerate(names):
        row = [percent(results[kind]['iou'][i]) for kind in kinds]
        rows.append([name, *row, *(percent(results[k]['coverage_by_class'][i]) for k in kinds)])
    row = [percent(results[kind]['miou']) for kind in kinds]
    rows.append(['mIoU, all', *row, *(percent(results[kind]['coverage']) for kind in kinds)])
    return tables.markdown(rows)
