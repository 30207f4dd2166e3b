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
follows. The authors' m is `plan`'s.

Symbols: e the embedding of a pixel, not normalised; rows the label embeddings of a dataset, of unit
length, several of each label, void's last.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import optimizer as optimizers
from css_jax import parallel
from css_jax.data import sources, splits
from css_jax.keys import Key
from css_jax.methods import teacher, usss_rows, views
from css_jax.methods.method import Evaluation, Method
from css_jax.ops import entropy, losses, metrics, resize, schedules
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

STRIDE = 8  # of the network's outputs
LABELLED, UNLABELLED = 'labelled_', 'unlabelled_'
_MANY = 10**9


def plan(
    labelled: Mapping[str, int], unlabelled: Mapping[str, int], batch_size: int
) -> tuple[int, dict[str, int]]:
    """Return the steps of an epoch, and how many unlabelled batches of each dataset a step has.

    An epoch is a pass over the longest labelled list, T = ceil(max N / batch) steps; a dataset's
    unlabelled batches are dealt out to them, m = floor(floor(U / batch) / T), the rest is dropped.

    Args:
        labelled: dataset -> labelled images, N.
        unlabelled: dataset -> unlabelled images, U.
        batch_size: images.

    Returns:
        T, and dataset -> m; m may be 0, and the dataset then has no entropy term.
    """
    steps = max(1, -(-max(labelled.values()) // batch_size))
    return steps, {name: count // batch_size // steps for name, count in unlabelled.items()}


def names(config: Any) -> list[str]:
    """Return the letters of a configuration's datasets, in the order of the passes."""
    found = (name for name in config.data.streams if name.startswith(LABELLED))
    return sorted(name.removeprefix(LABELLED) for name in found)


def classes(config: Any, name: str) -> tuple[str, ...]:
    """Return the class names of a dataset, without void."""
    return sources.class_names(config.data.streams[LABELLED + name].dataset, config.data.dir)


def title(config: Any, name: str) -> str:
    """Return what a dataset is called: its name, or that of the user's own folder."""
    return sources.label_set(config.data.streams[LABELLED + name].dataset).rpartition('/')[2]


def _steps_per_epoch(c: Any) -> int:
    """Count the labelled images: the default of `usss.steps_per_epoch`."""
    loaded = splits.load(c.data)
    counts = {n: len(splits.subset(LABELLED + n, c.data.streams, loaded)) for n in names(c)}
    return plan(counts, {}, c.data.streams[LABELLED + names(c)[0]].batch_size)[0]


def _of_drn(value: Any) -> Any:
    """Return a default of the authors' encoders alone, which they feed x / 255."""
    return lambda c: value if c.model.backbone.startswith('drn') else None


KEYS = {
    'usss.epochs': Key(200, 'of the run, which give `steps`; 0: none', range=(0, _MANY)),
    'usss.steps_per_epoch': Key(
        _steps_per_epoch, 'of the learning rate, which is constant in an epoch; the passes over '
        'the longest labelled list, counted', like=1, range=(1, _MANY),
    ),
    'usss.scores': Key(
        'ours', "ours: void is never predicted, and an absent class is left out of the mean | "
        "authors: it is a miss, and counts 0", choices=('ours', 'authors'),
    ),
    'usss.centroids': Key(3, 'rows of a label', range=(1, 1000)),
    'usss.embedding_dim': Key(100, 'channels of the projection, E', range=(1, _MANY)),
}  # fmt: skip
ENTROPY_KEYS = {
    **KEYS,
    'usss.cross_weight': Key(1.0, 'lambda_1, of L_c', range=(0, 1e3)),
    'usss.within_weight': Key(1.0, 'lambda_2, of L_w', range=(0, 1e3)),
    'usss.embeddings': Key(
        '', 'file of label embeddings, as `--mode embeddings` writes it; empty: random rows'
    ),
    'usss.projection_init': Key(
        'random', "random (the authors') | pca: the pixels start where the rows are",
        choices=('random', 'pca'),
    ),
}  # fmt: skip
DEFAULTS = {
    'steps': lambda c: c.usss.epochs * c.usss.steps_per_epoch if c.usss.epochs else None,
    'model.family': 'fcn',
    'model.backbone': 'drn_d_22',
    'data.mean': _of_drn((0.0, 0.0, 0.0)),
    'data.std': _of_drn((1.0, 1.0, 1.0)),
    'data.streams.*.batch_size': 8,
    'data.streams.*.resize': (1.0, 1.0),
    'data.streams.*.flip_prob': 0.5,
    'optimizer.learning_rate': 0.001,
    'optimizer.weight_decay': 1e-4,
    'optimizer.nesterov': False,
    'eval.network': 'student',
}


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
) -> tuple[dict[str, Array], Any]:
    """Standardise the images: stream -> images [B, H, W, 3], 'labels_a' -> [B, H, W] int32."""
    del keys
    prepared = {name: views.normalise(arrays['image'], ctx) for name, arrays in batch.items()}
    for name, arrays in batch.items():
        if 'label' in arrays:
            labels = views.host_labels(arrays['label'])
            prepared[f'labels_{name.removeprefix(LABELLED)}'] = labels
    return prepared, state.teacher.batch_stats


def loss(
    params: Any, state: TrainState, prepared: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_sup of each dataset and, where it has unlabelled images, L_c and L_w."""
    del keys
    stats, terms, logged = state.student.batch_stats, {}, {}
    for name in names(ctx.config):
        out, stats = ctx.train(Variables(params, stats), prepared[LABELLED + name])
        logits, labels = out[f'logits_{name}'], prepared[f'labels_{name}']
        terms[f'supervised_{name}'] = Term(*_cross_entropy(logits, labels))
        if UNLABELLED + name in prepared:
            images = _micro_batches(prepared[UNLABELLED + name], name, ctx)
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
    found, authors = {}, config.usss.scores == 'authors'
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


def optimizer(config: ConfigDict) -> optimizers.Optimizer:
    """Return SGD with a rate that is constant in an epoch."""
    c, per_epoch = config.optimizer, config.usss.steps_per_epoch
    epochs = max(1, -(-config.steps // per_epoch))
    rate = schedules.poly_by_epoch(c.learning_rate, epochs, per_epoch, c.power)
    return optimizers.sgd(config, rate=rate)


def check(config: ConfigDict, single: bool = False) -> None:
    """Refuse streams that do not go together.

    Args:
        config: filled in.
        single: one dataset is expected, not several.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    streams, letters = config.data.streams, names(config)
    titles = [title(config, name) for name in letters]
    if single != (len(titles) == 1):
        wanted = 'one' if single else 'two or more (usss_single is of one)'
        raise ValueError(
            f'data.streams: got labelled images of {", ".join(titles)}, expected {wanted}'
        )
    if len(set(titles)) < len(titles):
        raise ValueError(f'data.streams: got the datasets {", ".join(titles)}, expected each once')
    if config.accumulate_steps > 1:
        raise ValueError(
            f'accumulate_steps: got {config.accumulate_steps}, expected 1: every labelled and '
            'unlabelled batch is a pass of its own'
        )
    for name, stream in streams.items():
        if any(side % STRIDE for side in stream.crop):
            raise ValueError(
                f'data.streams.{name}.crop: got {tuple(stream.crop)}, expected multiples of '
                f"{STRIDE}, the stride of the network's outputs"
            )
        if name.startswith(UNLABELLED):
            _check_unlabelled(name, streams)


def _check_unlabelled(name: str, streams: ConfigDict) -> None:
    """Raise ValueError where an unlabelled stream has no labelled one that it fits."""
    label = LABELLED + name.removeprefix(UNLABELLED)
    if label not in streams:
        raise ValueError(f'data.streams: got {name}, expected {label} beside it')
    datasets = [sources.label_set(streams[one].dataset) for one in (name, label)]
    if len(set(datasets)) > 1:
        raise ValueError(
            f'data.streams.{name}.dataset: got {datasets[0]!r}, expected {datasets[1]!r} as of '
            f'{label}'
        )
    size, expected = streams[name].batch_size, streams[label].batch_size
    if size % expected:
        raise ValueError(
            f'data.streams.{name}.batch_size: got {size}, expected a multiple of {expected}, the '
            f'batch of {label}: m passes of as many images'
        )


def warnings(config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """Name datasets without an entropy term, and rows that are random.

    Args:
        config: finalised.
        images: stream -> how many images it has.
    """
    found, streams, c = [], config.data.streams, config.usss
    if c.epochs and config.steps != c.epochs * c.steps_per_epoch:
        found.append(
            f'usss.epochs={c.epochs} has no effect: steps={config.steps} is set, which is '
            f'{config.steps / c.steps_per_epoch:.1f} epochs'
        )
    for name in names(config):
        if 'cross_weight' in config.usss and UNLABELLED + name not in streams:
            found.append(
                f'dataset {title(config, name)} has no stream {UNLABELLED}{name}, so that its '
                f'images are in no entropy term ({images[LABELLED + name]} are labelled)'
            )
    if 'embeddings' in config.usss and not config.usss.embeddings:
        found.append(
            'usss.embeddings is empty: the label embeddings are random directions, which mean '
            'nothing; --mode stages makes them first'
        )
    return found


BASIC = Method(
    streams={f'{LABELLED}*': 'mask'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=KEYS,
    defaults=DEFAULTS,
    init_teacher=teacher.none,
    update_teacher=teacher.keep,
    optimizer=optimizer,
    evaluations=evaluations,
    check=check,
    warnings=warnings,
)
SINGLE = BASIC._replace(check=functools.partial(check, single=True))
FULL = BASIC._replace(
    streams={f'{LABELLED}*': 'mask', f'{UNLABELLED}*': 'none'},
    keys=ENTROPY_KEYS,
    weights=weights,
    init_memory=init_memory,
    given=given,
)
CROSS = FULL._replace(defaults=DEFAULTS | {'usss.within_weight': 0.0})
