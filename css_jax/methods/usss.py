"""USSS (arXiv 1811.10323): L = L_sup + lambda_1 L_c + lambda_2 L_w, several datasets at once.

"Universal Semi-Supervised Semantic Segmentation" trains one encoder on datasets whose label sets
differ, each with few labelled images and a decoder of its own. In training, a projection of the
encoder's features is scored against fixed label embeddings, and the entropy of the softmax over
these is minimised on unlabelled images of all datasets: over the rows of the image's own dataset
(within, L_w) and over those of the others (cross, L_c). Inference is encoder and one decoder.

`usss_single` is one dataset by its labels, `usss_basic` L_sup alone, `usss_cross` adds L_c and
`usss_full` L_w. Label embeddings come from a run of `usss_basic`: `--mode embeddings`, or
`--mode stages` for both runs.

Streams are 'labelled_a', 'unlabelled_a', 'labelled_b', ...: the letters name the datasets, in the
order of the passes. Their order matters, as BatchNorm's running statistics move with every pass,
and the last ones weigh most. An iteration has for each dataset one pass of a labelled batch, then
m passes of as large batches of unlabelled images, which are one batch of their stream; one update
follows. The authors' m is that of `css_jax.methods.usss_settings.plan`.

Symbols: e the embedding of a pixel, not normalised; rows the label embeddings of a dataset, of unit
length, several of each label, void's last.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import teacher, usss_rows, views
from css_jax.methods import usss_settings as settings
from css_jax.methods.method import Evaluation, Method
from css_jax.methods.usss_settings import LABELLED, STRIDE, UNLABELLED, classes, names, title
from css_jax.ops import entropy, losses, metrics, resize
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

plan, optimizer = settings.plan, settings.optimizer


class Targets(NamedTuple):
    """What a step trains on: letter of a dataset -> arrays.

    Attributes:
        labelled: [B, H, W, 3] normalised; sizes differ from dataset to dataset.
        masks: [B, H, W] int32, -1: ignore.
        unlabelled: [m B, H, W, 3] normalised, of the datasets that have such a stream.
    """

    labelled: dict[str, Array]
    masks: dict[str, Array]
    unlabelled: dict[str, Array]


def outputs(config: ConfigDict) -> dict[str, int]:
    """Return a decoder for each dataset, whose last channel is void, and the projection."""
    decoders = {f'logits_{name}': len(classes(config, name)) + 1 for name in names(config)}
    return decoders | {'embedding': config.usss.embedding_dim}


def init_memory(config: ConfigDict) -> dict[str, dict[str, Array]]:
    """Return each dataset's rows [K C + 1, E] float32, random normals, all of them valid."""
    found = {}
    for i, name in enumerate(names(config)):
        rows = config.usss.centroids * len(classes(config, name)) + 1
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        drawn = jax.random.normal(key, (rows, config.usss.embedding_dim))
        found[name] = {'rows': drawn, 'valid': jnp.ones(rows - 1, bool)}
    return found


def given(config: ConfigDict, read: Callable) -> dict[str, dict[str, Any]]:
    """Read the label embeddings and, with `usss.projection_init=pca`, what the projection is."""
    if not config.usss.embeddings:
        return {}
    every = {name: classes(config, name) for name in names(config)}
    arrays = read(config.usss.embeddings, 'usss.embeddings')
    found = usss_rows.checked(arrays, every, config.usss)
    memory = {
        f'{name}/{what}': value
        for name, one in found.sets.items()
        for what, value in (('rows', one.rows), ('valid', one.valid))
    }
    if config.usss.projection_init == 'random':
        return {'memory': memory}
    kernel = found.components[None, None].astype('float32')  # [1, 1, D, E]
    bias = -found.mean @ found.components
    head = 'params/head_embedding/'
    return {'memory': memory, 'student': {f'{head}kernel': kernel, f'{head}bias': bias}}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Standardise the images of every stream; nothing else is done to them."""
    del keys
    images = {name: views.normalise(arrays['image'], ctx) for name, arrays in batch.items()}
    letters = [name.removeprefix(LABELLED) for name in batch if name.startswith(LABELLED)]
    prepared = Targets(
        {name: images[LABELLED + name] for name in letters},
        {name: views.host_labels(batch[LABELLED + name]['label']) for name in letters},
        {name: images[UNLABELLED + name] for name in letters if UNLABELLED + name in images},
    )
    return prepared, state.teacher.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_sup of each dataset and, where it has unlabelled images, L_c and L_w."""
    del keys
    stats, terms, logged = state.student.batch_stats, {}, {}
    for name in names(ctx.config):
        out, stats = ctx.train(Variables(params, stats), prepared.labelled[name])
        sums = _cross_entropy(out[f'logits_{name}'], prepared.masks[name])
        terms[f'supervised_{name}'] = Term(*sums)
        if name in prepared.unlabelled:
            images = _micro_batches(prepared.unlabelled[name], name, ctx)
            own, stats, seen = _entropies(params, stats, images, name, state.memory, ctx)
            terms |= own
            logged |= seen
    return terms, (stats, {}, logged)


def weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh L_c by lambda_1 and L_w by lambda_2."""
    del state
    c, found = ctx.config, {}
    for name in names(c):
        if UNLABELLED + name in c.data.streams:
            found[f'cross_{name}'] = c.usss.cross_weight
            found[f'within_{name}'] = c.usss.within_weight
    return found


def _cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return L_sup of logits [B, h, w, C + 1] against labels [B, 8h, 8w]: (sum, count)."""
    sums = resize.map_upsample_zero(
        lambda logits, labels: losses.pixel_cross_entropy(logits, labels).sum((1, 2)),
        logits,
        labels,
        factor=STRIDE,
    )
    return sums.sum(), (labels >= 0).sum().astype(jnp.float32)


def _micro_batches(images: Array, name: str, ctx: Context) -> Array:
    """Cut a device's unlabelled images [m B, ...] into the m passes of a step, [m, B, ...]."""
    streams = ctx.config.data.streams
    count = streams[UNLABELLED + name].batch_size // streams[LABELLED + name].batch_size
    return images.reshape(count, -1, *images.shape[1:])


def _entropies(
    params: Any, stats: Any, images: Array, name: str, memory: Any, ctx: Context
) -> tuple[dict[str, Term], Any, dict[str, Any]]:
    """Return L_c and L_w of a dataset's unlabelled images [m, B, ...], BatchNorm's state, metrics.

    The activations of one pass are kept at a time.
    """
    sets = {n: entropy.LabelEmbeddings(one['rows'], one['valid']) for n, one in memory.items()}

    def one_pass(stats: Any, images: Array) -> tuple[Any, entropy.Measured]:
        out, stats = ctx.train(Variables(params, stats), images)
        return stats, entropy.measure(out['embedding'], sets, STRIDE)

    stats, measured = jax.lax.scan(jax.checkpoint(one_pass), stats, images)  # sums [m]
    sums = {n: Term(term.total.sum(), term.count.sum()) for n, term in measured.entropy.items()}
    others = [term.total for n, term in sums.items() if n != name]
    terms = {f'within_{name}': sums[name]}
    if others:
        terms[f'cross_{name}'] = Term(sum(others) / len(others), sums[name].count)
    nearest = measured.nearest[name]  # [m, R]
    logged = {
        f'commonest_{name}': Term(nearest.max(1).sum(), nearest.sum()),
        f'embedding_norm_{name}': Term(*(x.sum() for x in measured.length)),
    }
    return terms, stats, logged


def predict(name: str, void: bool, variables: Variables, images: Array, ctx: Context) -> Array:
    """Return a dataset's logits [B, H, W, C], with void's as the last ones if `void`.

    Args:
        name: its letter.
        void: whether void may be predicted.
        variables: the network's.
        images: [B, H, W, 3] normalised.
        ctx: network and configuration.
    """
    logits = ctx.evaluate(variables, images)[f'logits_{name}']
    logits = logits if void else logits[..., :-1]
    return resize.upsample_zero(logits, STRIDE)[:, : images.shape[1], : images.shape[2]]


def evaluations(config: ConfigDict) -> dict[str, Evaluation]:
    """Evaluate each dataset by its own decoder, by the dataset's name."""
    found, authors = {}, config.eval.scores == 'authors'
    for name in names(config):
        count = len(classes(config, name))
        found[title(config, name)] = Evaluation(
            dataset=config.data.streams[LABELLED + name].dataset,
            split=config.eval.split,
            classes=count + authors,
            predict=functools.partial(predict, name, authors),
            network=config.eval.network,
            scores=functools.partial(metrics.scores, void=True, absent='zero')
            if authors
            else metrics.scores,
        )
    return found


BASIC = Method(
    streams={f'{LABELLED}*': 'mask'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=settings.KEYS,
    defaults=settings.DEFAULTS,
    init_teacher=teacher.none,
    update_teacher=teacher.keep,
    optimizer=optimizer,
    evaluations=evaluations,
    check=settings.check,
    warnings=settings.warnings,
)
SINGLE = BASIC._replace(check=functools.partial(settings.check, single=True))
FULL = BASIC._replace(
    streams={f'{LABELLED}*': 'mask', f'{UNLABELLED}*': 'none'},
    keys=settings.ENTROPY_KEYS,
    weights=weights,
    init_memory=init_memory,
    given=given,
)
CROSS = FULL._replace(defaults=settings.DEFAULTS | {'usss.within_weight': 0.0})
