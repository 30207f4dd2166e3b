"""Trains ten steps of the quickstart and gives the losses.

    python -m tests.golden FOLDER

FOLDER gets the dataset. The output is JSON: method -> step -> name of a loss -> value.
tests/test_house.py holds it against tests/fixtures/golden.json, which was written by the program
itself before the first method but CSS was there.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from configs import quickstart
from css_jax import config as configs
from css_jax import methods, state
from css_jax import step as steps
from css_jax.data import splits, streams
from css_jax.parallel import step_keys
from data_prep import records
from data_prep.shapes.builder import Builder

METHODS = ('css_mix', 'css_cross', 'supervised')  # the first one's state has all arrays
STEPS = (1, 2, 10)


def losses(folder):
    """Method -> step -> name -> value, of the loss and its terms; on one device."""
    records.prepare(Builder(data_dir=folder / 'data', splits={'train': 500, 'val': 1}))
    found, arrays, programs = {}, {}, {}
    for name in METHODS:
        config = quickstart.get_config(name)
        config.data.dir = str(folder / 'data')
        config.update_from_flattened_dict({'steps': max(STEPS), 'burn_in_steps': 0})
        config, method = configs.finalise(config), methods.METHODS[name]
        images = {stream: len(ids) for stream, ids in splits.subsets(config.data).items()}
        ctx = methods.context(config, images=images)
        tx, _ = method.optimizer(config)
        make = state.maker(method, tx, ctx)
        if not arrays:
            arrays = state.flat(make(np.uint32(config.seed), {}))
        # An array's first values depend on seed and path alone, so that every method has the same.
        shapes = jax.eval_shape(make, np.uint32(config.seed), {})
        leaves = [arrays[path] for path in state.flat(shapes)]
        current = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        found[name] = trained(method, tx, ctx, current, programs)
    return found


def trained(method, tx, ctx, current, programs):
    """Step -> name -> value, after a state.

    The targets are a program of their own: what follows is then one program for both methods of
    CSS, which takes as long to compile as the ten steps take.

    Args:
        method: what is trained.
        tx: its optimiser.
        ctx: its network and configuration.
        current: the state.
        programs: text -> what it is compiled to; new ones are added.
    """

    def prepare(current, batch):
        keys = step_keys(current.key, current.step, batch, ctx.axis)
        return method.targets(current, batch, keys, ctx)

    def rest(current, batch, prepared):
        after = method._replace(targets=lambda *_: prepared)
        return steps.train_step(current, batch, method=after, optimizer=tx, ctx=ctx)

    def compiled(function, *arguments):
        lowered = jax.jit(function).lower(*arguments)
        text = lowered.as_text()
        if text not in programs:
            programs[text] = lowered.compile()
        return programs[text]

    batches = streams.train_batches(ctx.config.data, ctx.config.seed, names=method.streams)
    found = {}
    for step in range(1, max(STEPS) + 1):
        batch = next(batches)
        if step == 1:
            prepare = compiled(prepare, current, batch)
            prepared = prepare(current, batch)
            rest = compiled(rest, current, batch, prepared)
        current, metrics = rest(current, batch, prepare(current, batch))
        if step in STEPS:
            found[step] = {k: float(x) for k, x in metrics.items() if k.startswith('loss')}
    return found


if __name__ == '__main__':
    print(json.dumps(losses(pathlib.Path(sys.argv[1]))))
