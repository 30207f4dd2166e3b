"""Trains ten steps of the quickstart and prints the losses, in a process of its own.

    python -m tests.golden FOLDER

FOLDER gets the dataset and the runs. The last line of the output is JSON: method -> step -> name
of a loss -> value. tests/test_house.py holds it against tests/fixtures/golden.json, which was
written by this file before the first method but CSS was there.
"""

import json
import pathlib
import sys

from configs import quickstart
from css_jax import train
from data_prep import records
from data_prep.shapes.builder import Builder

METHODS = ('css_mix', 'css_cross', 'supervised')
STEPS = (1, 2, 10)


def losses(method, folder):
    """Step -> name -> value, of the loss and its terms."""
    config = quickstart.get_config(method)
    config.data.dir = str(folder / 'data')
    config.update_from_flattened_dict({'steps': 10, 'log_every': 1, 'burn_in_steps': 0})
    train.train(config, folder / method)
    lines = (folder / method / 'metrics.jsonl').read_text().splitlines()
    records = {record['step']: record for record in map(json.loads, lines)}
    return {
        step: {name: x for name, x in records[step].items() if name.startswith('loss')}
        for step in STEPS
    }


def main(folder):
    """Prints the losses of all methods; one image is enough to evaluate."""
    folder = pathlib.Path(folder)
    records.prepare(Builder(data_dir=folder / 'data', splits={'train': 500, 'val': 1}))
    print(json.dumps({method: losses(method, folder) for method in METHODS}))


if __name__ == '__main__':
    main(sys.argv[1])
