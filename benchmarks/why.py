"""Why CSS(mix) is not ahead on the quickstart: one change a row, over seeds (docs/why.md).

    python -m benchmarks.why --seeds 0-2 --folder runs/why                # all rows
    python -m benchmarks.why --rows mix logit_oracle --seeds 0-2 --folder runs/why
    python -m benchmarks.evidence collect runs/why --commit HASH --to benchmarks/results/why.jsonl
    python -m benchmarks.evidence table benchmarks/results/why.jsonl --against logit

A run lies in FOLDER/ROW-sSEED; finished ones are not run again. Two rows know the truth of the
unlabelled images, which no method has: they bound what a filter of pseudo-labels can gain.
`logit_adaptive` has a threshold for each class, which no method here has either.
"""

import argparse
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from configs import quickstart
from css_jax import parallel, train
from css_jax.evaluation import results
from css_jax.methods import METHODS, mean_teacher, teacher, views
from css_jax.methods.mean_teacher import Targets
from css_jax.ops import pseudo_labels
from css_jax.state import Context, TrainState


class Row(NamedTuple):
    """One setting.

    Attributes:
        method: argument of configs/quickstart.py.
        changes: key -> value.
        labels: '' | 'filter': wrong pseudo-labels are dropped | 'truth': they are corrected |
            'adaptive': classes that the teacher is less sure of have a lower threshold.
    """

    method: str
    changes: Mapping[str, Any] = MappingProxyType({})
    labels: str = ''


_FULL = {'contrastive.weight': 1.0, 'contrastive.schedule': 'constant'}
_SELECTS = {'contrastive.similarity_temperature': 0.1}
_BATCH = 'data.streams.unlabelled.batch_size'
_BOTH = {'logit': ('cutmix', {}), 'mix': ('css_mix', _FULL)}.items()


def _threshold(value: float) -> dict[str, float]:
    return {'unsupervised.threshold': value}


# `logit` is CutMix: logit labels, confidence, no contrast. `mix` is the quickstart's css_mix. Up to
# `cross_confidence` they are the cells of Tables 1 and 5 to 7 (docs/paper.md).
ROWS = {
    'supervised': Row('supervised'),
    'logit': Row('cutmix'),
    'baseline': Row('baseline'),
    'mix': Row('css_mix'),
    'cross': Row('css_cross'),
    'supervised_all': Row('supervised_all'),
    'mean_teacher': Row('mean_teacher'),
    'representation': Row('css,pseudo_label=representation,indicator=both'),
    'logit_similarity': Row('css,pseudo_label=logit,indicator=similarity'),
    'logit_both': Row('css,pseudo_label=logit,indicator=both'),
    'mix_confidence': Row('css_mix,indicator=confidence'),
    'mix_similarity': Row('css_mix,indicator=similarity'),
    'cross_confidence': Row('css_cross,indicator=confidence'),
    'logit_oracle': Row('cutmix', labels='filter'),
    'logit_truth': Row('cutmix', labels='truth'),
    'mix_full': Row('css_mix', _FULL),
    'logit_contrast_full': Row('css', {'pseudo_label': 'logit', **_FULL}),
    'mix_selects': Row('css_mix', _FULL | _SELECTS),
    'mix_wide': Row('css_mix', _FULL | {'model.representation_dim': 256}),
    'mix_teacher': Row('css_mix', _FULL | {'contrastive.prototype_source': 'teacher'}),
    'mix_fast_prototypes': Row('css_mix', _FULL | {'contrastive.prototype_decay': 0.9}),
    'mix_no_labelled_pass': Row('css_mix', _FULL | {'teacher.labelled_pass': False}),
    'logit_adaptive': Row('cutmix', labels='adaptive'),
    **{f'{name}_classmix': Row(m, c | {'augment.mixing': 'classmix'}) for name, (m, c) in _BOTH},
    **{f'{name}_batch': Row(m, c | {_BATCH: 16}) for name, (m, c) in _BOTH},
    **{f'{name}_late': Row(m, c | {'burn_in_steps': 400}) for name, (m, c) in _BOTH},
    'mix_anchors': Row('css_mix', _FULL | {'contrastive.anchors': 1024, 'contrastive.bank': 1024}),
    **{f'logit_{value}': Row('cutmix', _threshold(value)) for value in (0.0, 0.5, 0.7, 0.97)},
    **{
        f'mix_{value}': Row('css_mix', _FULL | _threshold(value)) for value in (0.0, 0.5, 0.7, 0.97)
    },
}


def targets_of(kind: str) -> Any:
    """Return `css_jax.methods.mean_teacher.targets` with other pseudo-labels.

    Args:
        kind: see `Row.labels`.
    """

    def targets(
        state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
    ) -> tuple[Targets, Any]:
        weak, truth = batch['unlabelled']['image'], views.host_labels(batch['unlabelled']['label'])
        out, taught = teacher.run(state.teacher, views.normalise(weak, ctx), ctx)
        label, indicator = pseudo_labels.from_logits(out['logits'], weak.shape[1:3])
        known = label
        if kind == 'truth':
            known = truth
        elif kind == 'filter':
            known = jnp.where(label == truth, label, -1)
        else:
            indicator = adapted(label, indicator, ctx.config.num_classes)
        maps = {'label': known, 'indicator': indicator}
        strong, maps = views.strong(weak, maps, keys, ctx)
        images, labels = views.labelled(batch['labelled'], keys, ctx)
        if ctx.config.teacher.labelled_pass:
            _, taught = teacher.run(taught, images, ctx)
        prepared = Targets(images, labels, strong, maps['label'], maps['indicator'], label)
        return jax.lax.stop_gradient(prepared), taught.batch_stats

    return targets


def adapted(label: Array, indicator: Array, num_classes: int) -> Array:
    """Return confidences divided by their class's share of the surest class's confidence.

    A threshold on them is one for each class of the batch, lower where the mean confidence of the
    pixels with that label is lower.

    Args:
        label: [B, H, W] int, pseudo-labels.
        indicator: [B, H, W] float, their confidence.
        num_classes: of the labels.
    """
    of_class = jax.nn.one_hot(label, num_classes)  # [B, H, W, C]
    mean = jnp.einsum('bhwc,bhw->c', of_class, indicator) / jnp.maximum(of_class.sum((0, 1, 2)), 1)
    share = mean / mean.max()
    return jnp.minimum(indicator / share[label], 1)


def register() -> None:
    """Add the methods of these runs to those of the project; who reads the runs needs them too."""
    for kind in ('filter', 'truth', 'adaptive'):
        METHODS[f'labels_{kind}'] = mean_teacher.CUTMIX._replace(
            streams={'labelled': 'mask', 'unlabelled': 'mask'}, targets=targets_of(kind)
        )


def run(row: Row, folder: pathlib.Path, seed: int, split: str) -> None:
    """Train one cell, unless it is there already."""
    if (folder / results.RESULTS).exists():
        return
    config = quickstart.get_config(row.method)
    config.update_from_flattened_dict(row.changes)
    config.seed = config.data.streams.labelled.subset_seed = seed
    config.eval.split = split
    config.log_every = 100
    config.checkpoint_every = config.steps
    if row.labels:
        config.method = f'labels_{row.labels}'
    train.train(config, folder)


def main() -> None:
    """Read the arguments and run the cells."""
    register()
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=ROWS, metavar='ROW')
    parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs/why'))
    parser.add_argument('--seeds', default='0-2', help='first-last')
    parser.add_argument('--split', default='val', choices=('val', 'fresh'))
    args = parser.parse_args()
    first, last = map(int, args.seeds.split('-'))
    for seed in range(first, last + 1):
        for name in args.rows:
            run(ROWS[name], args.folder / f'{name}-s{seed}', seed, args.split)


if __name__ == '__main__':
    main()
