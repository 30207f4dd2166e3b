"""What a run's method makes of a batch: pseudo-labels of both spaces, CAMs, views."""

import contextlib
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax import methods, parallel, state
from css_jax.data import sources, splits, streams
from css_jax.evaluation import pictures, targets
from css_jax.methods import css, css_follow, teacher, views
from css_jax.ops import pseudo_labels
from css_jax.report import page
from css_jax.report.page import text
from css_jax.report.runs import Run
from css_jax.run import checkpoint

_ROWS = 3


def section(run: Run) -> str:
    """Return the pictures of one run at its last checkpoint; '' where the method makes nothing.

    It is the run's own first batch, in the method's own views.

    Raises:
        ValueError: the checkpoint or the data do not fit.
        FileNotFoundError: there is no checkpoint, or the data are not there.
    """
    config, method = run.config, methods.METHODS[run.config.method]
    ids = splits.subsets(config.data)
    ctx = methods.context(config, images={name: len(found) for name, found in ids.items()})
    maker = state.maker(method, method.optimizer(config)[0], ctx)
    like = jax.eval_shape(maker, np.uint32(config.seed), {})
    with contextlib.closing(checkpoint.Checkpoints(run.folder, read_only=True)) as checkpoints:
        current = checkpoints.restore(like)
    batch, truths = _batch(config)
    in_spaces = method.targets is css.targets

    def made(current: state.TrainState, batch: dict) -> tuple[Any, tuple]:
        keys = parallel.step_keys(current.key, current.step, batch, ctx.axis)
        prepared, _ = method.targets(current, batch, keys, ctx)
        return prepared, _spaces(current, batch, ctx) if in_spaces else ()

    prepared, spaces = jax.device_get(parallel.compile(made)(current, batch))
    body = ''
    if in_spaces:
        body += _both(config, batch, truths, spaces)
    columns = {}
    for title, images in targets.read(config, batch).items():
        columns[title] = images
        stream = title.removesuffix(' crop')
        if stream in truths:
            of = '' if len(truths) == 1 else f' of {stream}'
            columns[f'truth{of}, not trained on'] = truths[stream]
    if len(batch) == 1:  # of which there is nothing to tell apart
        columns = {title.replace(f'{next(iter(batch))} ', ''): x for title, x in columns.items()}
    columns |= targets.made(config, batch, prepared)
    # What is shown already, or again as the student sees it.
    shown = ['labelled crop', 'labelled mask'] if 'student, labelled' in columns else []
    if in_spaces:
        shown += ['teacher, logit space', 'teacher, prototypes']
        shown += ['unlabelled crop', 'truth, not trained on']
    columns = {title: images for title, images in columns.items() if title not in shown}
    if set(columns) - {'student, labelled', 'its mask'}:
        body += '<h4>What the student is trained on</h4>' + _table(columns)
        if any('indicator' in title or 'CAM' in title for title in columns):
            body += page.note('Indicators and CAMs are black at 0 and white at 1.')
    return f'<h3>{text(run.name)}</h3>{_legends(config)}{body}' if body else ''


def _legends(config: ConfigDict) -> str:
    """Return the colours of each dataset, below its streams where there are several datasets."""
    of: dict[str, list[str]] = {}
    for stream, own in config.data.streams.items():
        of.setdefault(own.dataset, []).append(stream)
    body = ''
    for dataset, names in of.items():
        if len(of) > 1:
            body += page.note(f'{text(", ".join(names))}: {text(dataset)}')
        classes = sources.class_names(dataset, config.data.dir)
        body += page.legend(classes, sources.palette(dataset, config.data.dir))
    return body


def _batch(config: ConfigDict) -> tuple[dict, dict[str, np.ndarray]]:
    """Return a batch, and pictures of the masks of streams that training reads without."""
    batch = next(streams.train_batches(config.data, seed=config.seed))
    data, colours, truths = ConfigDict(config.data.to_dict()), targets.palettes(config), {}
    unread = [name for name in batch if not data.streams[name].reads.startswith('mask')]
    for name in unread:
        data.streams[name].reads = 'mask'  # to be looked at; the crops are those of training
    try:
        with_masks = next(streams.train_batches(data, seed=config.seed))
    except ValueError:  # of a split that has no masks
        with_masks = {}
    for name in unread:
        labels = with_masks.get(name, {}).get('label')
        if labels is not None and (labels != sources.VOID).any():
            truths[name] = pictures.colourise(labels, colours[name])
    return batch, truths


def _spaces(current: state.TrainState, batch: dict, ctx: state.Context) -> tuple:
    """Return labels and indicators of both spaces in the weak view, as `--mode pseudo_labels`."""
    selective = ConfigDict(ctx.config.to_dict())
    selective.contrastive.similarity_temperature = _temperature(ctx.config)
    weak = batch['unlabelled']['image']
    out, _ = teacher.run(current.teacher, views.normalise(weak, ctx), ctx)
    y_lgt, j_lgt, y_rep, j_rep = css.both_spaces(out, current.memory, weak.shape[1:3], selective)
    return y_lgt, j_lgt, y_rep, j_rep, pseudo_labels.mix(y_lgt, y_rep)


def _both(config: ConfigDict, batch: dict, truths: dict, spaces: tuple) -> str:
    y_lgt, j_lgt, y_rep, j_rep, mix = spaces
    colours = targets.palettes(config)['unlabelled']
    c, agreed = config.unsupervised, mix >= 0
    kept = np.where(agreed & (j_lgt >= c.threshold), mix, -1)
    columns = {'unlabelled image': batch['unlabelled']['image']}
    if 'unlabelled' in truths:
        columns['truth, not trained on'] = truths['unlabelled']
    columns |= {
        'logit space': pictures.colourise(y_lgt, colours),
        'its confidence': _heat(j_lgt),
        'representation space': pictures.colourise(y_rep, colours),
        'its similarity': _heat(j_rep),
        'mix: where both agree': pictures.colourise(mix, colours),
        'mix, confident': pictures.colourise(kept, colours),
    }
    return (
        "<h4>Both spaces' pseudo-labels</h4>"
        + _table(columns)
        + page.note(
            'The teacher on the weak view. Maps are dark at 0 and yellow at 1; white is no label. '
            f'Both spaces agree on {page.percent(float(agreed.mean()), 1)} % of the pixels of the '
            f'batch, and {page.percent(float((kept >= 0).mean()), 1)} % of all are confident too '
            f'(j_lgt >= {c.threshold:g}). Similarity is that of tau_sim={_temperature(config):g}.'
        )
    )


def _temperature(config: ConfigDict) -> float:
    return min(config.contrastive.similarity_temperature, css_follow.SELECTIVE_TEMPERATURE)


def _heat(shares: np.ndarray) -> np.ndarray:
    """Colour maps [B, H, W] in [0, 1] as uint8 RGB [B, H, W, 3]."""
    levels = np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)
    return np.stack([cv2.applyColorMap(x, cv2.COLORMAP_VIRIDIS)[..., ::-1] for x in levels])


def _table(columns: dict[str, np.ndarray]) -> str:
    rows = min(_ROWS, *(len(images) for images in columns.values()))
    cells = [
        [
            page.image(images[i], f'{title}, example {i + 1}', _photograph(title))
            for title, images in columns.items()
        ]
        for i in range(rows)
    ]
    return page.pictures_table(list(columns), cells)


def _photograph(title: str) -> bool:
    """Say whether a column has images of a camera, and no labels."""
    endings = ('crop', 'image', 'student, labelled', 'student, strong', 'student, mixed')
    return title.rstrip(' 12').endswith(endings)
