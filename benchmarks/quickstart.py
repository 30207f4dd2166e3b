"""Accuracy on the quickstart's dataset: the tuning table of the baseline, and methods over seeds.

    python -m benchmarks.quickstart tune      # supervised: learning rate x steps x augmentation
    python -m benchmarks.quickstart imas      # iMAS: tau x lambda_u
    python -m benchmarks.quickstart compare   # the methods over seeds, on val and on fresh images

Each cell is one ordinary run in a folder of its own; finished ones are not run again. `--part 0/2`
runs every second row, so that two processes share the work.
"""

import argparse
import itertools
import json
import pathlib
import statistics
from typing import Any

from configs import quickstart
from css_jax import train
from css_jax.evaluation import results

AUGMENTATION = {
    'jitter + blur': {'augment.jitter_prob': 0.8, 'augment.blur_prob': 0.5},
    'none': {'augment.jitter_prob': 0.0, 'augment.blur_prob': 0.0},
}
TUNED = list(itertools.product((0.02, 0.05, 0.1, 0.2), (450, 900), AUGMENTATION))
# Three times the steps of the quickstart, at each learning rate: is the baseline converged?
LONGER = list(itertools.product((0.05, 0.1), (2700,), ('none',)))
IMAS = list(itertools.product((0.7, 0.9), (1.0, 3.0)))
COMPARED = ('supervised', 'cutmix', 'css_mix', 'imas', 'supervised_all')
LABELS = {
    'tune': 'learning rate | steps | colour augmentation',
    'imas': 'tau | lambda_u',
    'compare': 'method',
}


def rows(what: str, split: str) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return the rows of a table: label -> (name of the folders, method, changed keys)."""
    if what == 'compare':
        return {method: (f'{method}-{split}', method, {}) for method in COMPARED}
    found = {}
    if what == 'imas':
        for values in IMAS:
            keys = 'unsupervised.threshold', 'unsupervised.weight'
            name = '-'.join(map(str, values))
            changes = dict(zip(keys, values, strict=True))
            found[' | '.join(map(str, values))] = f'imas-{name}', 'imas', changes
        return found
    for rate, steps, name in TUNED + LONGER:
        changes = {'optimizer.learning_rate': rate, 'steps': steps, **AUGMENTATION[name]}
        folder = f'tune-{rate}-{steps}-{name.replace(" + ", "-")}'
        found[f'{rate} | {steps} | {name}'] = folder, 'supervised', changes
    return found


def score(folder: pathlib.Path, method: str, seed: int, split: str, changes: dict) -> float:
    """Train one cell, unless it is there already, and return its mIoU in percent."""
    path = folder / results.RESULTS
    if not path.exists():
        config = quickstart.get_config(method)
        config.update_from_flattened_dict(changes)
        config.seed = config.data.streams.labelled.subset_seed = seed
        config.eval.split = split
        config.log_every = config.checkpoint_every = config.steps
        train.train(config, folder)
    return 100 * json.loads(path.read_text())['miou']


def main() -> None:
    """Read the arguments, run the cells and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=LABELS)
    parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs/study'))
    parser.add_argument('--seeds', default='0-2', help='first-last')
    parser.add_argument('--split', default='val', choices=('val', 'fresh'))
    parser.add_argument('--part', default='0/1', help='i/n: every n-th row from the i-th')
    args = parser.parse_args()
    first, last = map(int, args.seeds.split('-'))
    part, parts = map(int, args.part.split('/'))
    label = LABELS[args.what]
    print(f'| {label} | mIoU on {args.split}, seeds {args.seeds} | mean | gain over the first |')
    print('|' + '---|' * (label.count('|') + 4))
    base = None
    for label, (name, method, changes) in list(rows(args.what, args.split).items())[part::parts]:
        values = [
            score(args.folder / f'{name}-{seed}', method, seed, args.split, changes)
            for seed in range(first, last + 1)
        ]
        base = base or values
        gain = ' '.join(f'{v - b:+.1f}' for v, b in zip(values, base, strict=True))
        shown = ' '.join(f'{v:.1f}' for v in values)
        print(f'| {label} | {shown} | {statistics.mean(values):.1f} | {gain} |', flush=True)


if __name__ == '__main__':
    main()
