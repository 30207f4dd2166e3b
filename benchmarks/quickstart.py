"""Accuracy on the quickstart's dataset: the tuning table of the baseline, and methods over seeds.

    python -m benchmarks.quickstart tune      # supervised: learning rate x steps x augmentation
    python -m benchmarks.quickstart compare   # the methods over seeds, on val and on fresh images

Each cell is one ordinary run in a folder of its own; finished ones are not run again. `--part 0/2`
runs every second cell, so that two processes share the work.
"""

import argparse
import itertools
import json
import pathlib
import statistics

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
COMPARED = ('supervised', 'cutmix', 'css_mix', 'supervised_all')


def score(folder: pathlib.Path, method: str, seed: int, split: str = 'val', **changes) -> float:
    """Trains one cell, unless it is there already, and gives its mIoU in percent."""
    path = folder / results.RESULTS
    if not path.exists():
        config = quickstart.get_config(method)
        config.update_from_flattened_dict(changes)
        config.seed = config.data.streams.labelled.subset_seed = seed
        config.eval.split = split
        config.log_every = config.checkpoint_every = config.steps
        train.train(config, folder)
    return 100 * json.loads(path.read_text())['miou']


def tune(folder: pathlib.Path, seeds: range, part: int, parts: int) -> None:
    """Prints the supervised baseline's table, a row a cell, over seeds."""
    print('| learning rate | steps | colour augmentation | mIoU, seeds | mean |')
    print('|---|---|---|---|---|')
    for i, (rate, steps, name) in enumerate(TUNED + LONGER):
        if i % parts != part:
            continue
        changes = {'optimizer.learning_rate': rate, 'steps': steps, **AUGMENTATION[name]}
        cell = f'tune-{rate}-{steps}-{name.replace(" + ", "-")}'
        values = [score(folder / f'{cell}-{s}', 'supervised', s, **changes) for s in seeds]
        shown = ' '.join(f'{v:.1f}' for v in values)
        print(
            f'| {rate} | {steps} | {name} | {shown} | {statistics.mean(values):.1f} |', flush=True
        )


def compare(folder: pathlib.Path, seeds: range, split: str, part: int, parts: int) -> None:
    """Prints a row a method, over seeds, with the difference to supervised, seed by seed."""
    print(f'| method, on {split} | mIoU, seeds {seeds.start}-{seeds.stop - 1} | mean | gain |')
    print('|---|---|---|---|')
    table = {}
    for i, method in enumerate(COMPARED):
        if i % parts != part:
            continue
        table[method] = [
            score(folder / f'{method}-{split}-{seed}', method, seed, split) for seed in seeds
        ]
        values, base = table[method], table.get('supervised')
        gain = ' '.join(f'{v - b:+.1f}' for v, b in zip(values, base, strict=True)) if base else '-'
        shown = ' '.join(f'{v:.1f}' for v in values)
        print(f'| {method} | {shown} | {statistics.mean(values):.1f} | {gain} |', flush=True)


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('tune', 'compare'))
    parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs/study'))
    parser.add_argument('--seeds', default='0-2', help='first-last')
    parser.add_argument('--split', default='val', choices=('val', 'fresh'))
    parser.add_argument('--part', default='0/1', help='i/n: every n-th cell from the i-th')
    args = parser.parse_args()
    first, last = map(int, args.seeds.split('-'))
    part, parts = map(int, args.part.split('/'))
    if args.what == 'tune':
        tune(args.folder, range(first, last + 1), part, parts)
    else:
        compare(args.folder, range(first, last + 1), args.split, part, parts)


if __name__ == '__main__':
    main()
