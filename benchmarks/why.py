"""Why CSS(mix) is not ahead on the quickstart: one change a row, over seeds (docs/why.md).

    python -m benchmarks.why --seeds 0-2 --folder runs/why                # all rows
    python -m benchmarks.why --rows mix logit_oracle --seeds 0-2 --folder runs/why
    python -m benchmarks.evidence collect runs/why --commit HASH --to benchmarks/results/why.jsonl
    python -m benchmarks.evidence table benchmarks/results/why.jsonl --against logit

A run lies in FOLDER/ROW-sSEED; finished ones are not run again. Two rows know the truth of the
unlabelled images, which no method has: they bound what a filter of pseudo-labels can gain.
"""

import argparse
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
        method: of the quickstart.
        changes: key -> value.
        oracle: '' | 'filter': wrong pseudo-labels are dropped | 'truth': they are corrected.
    """

    method: str
    changes: Mapping[str, Any] = MappingProxyType({})
    oracle: str = ''


_FULL = {'contrastive.weight': 1.0, 'contrastive.schedule': 'constant'}
_SELECTS = {'contrastive.similarity_temperature': 0.1}
_STRONGER = _FULL | {'model.representation_dim': 256}


def _threshold(value: float) -> dict[str, float]:
    return {'unsupervised.threshold': value}


# `logit` is CutMix: logit labels, confidence, no contrast. `mix` is the quickstart's css_mix.
ROWS = {
    'supervised': Row('supervised'),
    'logit': Row('cutmix'),
    'baseline': Row('baseline'),
    'mix': Row('css_mix'),
    'cross': Row('css_cross'),
    'logit_oracle': Row('cutmix', oracle='filter'),
    'logit_truth': Row('cutmix', oracle='truth'),
    'mix_full': Row('css_mix', _FULL),
    'logit_contrast_full': Row('css', {'pseudo_label': 'logit', **_FULL}),
    'mix_selects': Row('css_mix', _FULL | _SELECTS),
    'mix_wide': Row('css_mix', _STRONGER),
    'mix_teacher': Row('css_mix', _FULL | {'contrastive.prototype_source': 'teacher'}),
    'mix_fast_prototypes': Row('css_mix', _FULL | {'contrastive.prototype_decay': 0.9}),
    'mix_no_labelled_pass': Row('css_mix', _FULL | {'teacher.labelled_pass': False}),
    **{f'logit_{value}': Row('cutmix', _threshold(value)) for value in (0.0, 0.5, 0.7, 0.97)},
    **{
        f'mix_{value}': Row('css_mix', _FULL | _threshold(value)) for value in (0.0, 0.5, 0.7, 0.97)
    },
}


def targets_of(oracle: str) -> Any:
    """Return `css_jax.methods.mean_teacher.targets` with the truth of the unlabelled images.

    Args:
        oracle: see `Row`.
    """

    def targets(
        state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
    ) -> tuple[Targets, Any]:
        weak, truth = batch['unlabelled']['image'], views.host_labels(batch['unlabelled']['label'])
        out, taught = teacher.run(state.teacher, views.normalise(weak, ctx), ctx)
        label, indicator = pseudo_labels.from_logits(out['logits'], weak.shape[1:3])
        known = truth if oracle == 'truth' else jnp.where(label == truth, label, -1)
        maps = {'label': known, 'indicator': indicator}
        strong, maps = views.strong(weak, maps, keys, ctx)
        images, labels = views.labelled(batch['labelled'], keys, ctx)
        if ctx.config.teacher.labelled_pass:
            _, taught = teacher.run(taught, images, ctx)
        prepared = Targets(images, labels, strong, maps['label'], maps['indicator'], label)
        return jax.lax.stop_gradient(prepared), taught.batch_stats

    return targets


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
    if row.oracle:
        config.method = f'oracle_{row.oracle}'
    train.train(config, folder)


def main() -> None:
    """Read the arguments and run the cells."""
    for oracle in ('filter', 'truth'):
        METHODS[f'oracle_{oracle}'] = mean_teacher.CUTMIX._replace(
            streams={'labelled': 'mask', 'unlabelled': 'mask'}, targets=targets_of(oracle)
        )
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
