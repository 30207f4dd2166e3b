"""The keys and defaults of USSS, what a step of it has, and which streams go together.

The defaults are those of the authors' program (arXiv 1811.10323), where it has one.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from css_jax import optimizer as optimizers
from css_jax.data import sources, splits
from css_jax.keys import Key
from css_jax.methods import epochs
from css_jax.ops import schedules

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
    'eval.scores': Key(
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
    'steps': epochs.steps('usss', lambda c: c.usss.steps_per_epoch),
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


def optimizer(config: ConfigDict) -> optimizers.Optimizer:
    """Return SGD with a rate that is constant in an epoch, but for a warm-up."""
    c, per_epoch = config.optimizer, config.usss.steps_per_epoch
    count = max(1, -(-config.steps // per_epoch))
    by_epoch = schedules.poly_by_epoch(c.learning_rate, count, per_epoch, c.power)

    def rate(step: Any) -> Any:
        found = jnp.maximum(by_epoch(step), c.floor)
        return found * jnp.minimum((step + 1) / max(1, c.warmup_steps), 1.0)

    return optimizers.sgd(config, rate=rate)


def check(config: ConfigDict, single: bool = False) -> None:
    """Refuse streams that do not go together, and networks of another stride.

    Args:
        config: filled in.
        single: one dataset is expected, not several.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    if config.model.family in ('deeplab', 'dpt'):
        raise ValueError(
            f"model.family: got {config.model.family!r}, expected 'fcn' or 'largefov', whose "
            f'outputs are at stride {STRIDE}'
        )
    streams, letters = config.data.streams, names(config)
    titles = [title(config, name) for name in letters]
    if single != (len(titles) == 1):
        wanted = 'one' if single else 'two or more (usss_single is of one)'
        raise ValueError(
            f'data.streams: got labelled images of {", ".join(titles)}, expected {wanted}'
        )
    if len(set(titles)) < len(titles):
        raise ValueError(f'data.streams: got the datasets {", ".join(titles)}, expected each once')
    scored = dict.fromkeys(stream.dataset for stream in streams.values())
    if config.eval.dataset not in scored:  # which nothing else reads
        raise ValueError(
            f'eval.dataset: got {config.eval.dataset!r}, expected one of {", ".join(scored)}: '
            'every dataset is evaluated by its own decoder'
        )
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
    streams = config.data.streams
    found = epochs.warnings(config, 'usss', config.usss.steps_per_epoch)
    for name in names(config):
        if 'cross_weight' in config.usss and UNLABELLED + name not in streams:
            found.append(
                f'dataset {title(config, name)} has no stream {UNLABELLED}{name}, so that its '
                f'images are in no entropy term ({images[LABELLED + name]} are labelled)'
            )
    if 'embeddings' in config.usss and not config.usss.embeddings:
        if not config.init_from:  # which has rows of its own
            found.append(
                'usss.embeddings is empty: the label embeddings are random directions, which mean '
                'nothing; --mode stages makes them first'
            )
        if config.usss.projection_init != 'random':
            found.append('usss.projection_init=pca has no effect: usss.embeddings names no file')
    return found
