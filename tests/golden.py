"""Trains the first four steps of a quickstart of ten, on a shallow network, and gives the losses.

    python -m tests.golden FOLDER

FOLDER gets the dataset. The output is JSON: method -> step -> name of a loss -> value.
tests/test_house.py holds it against tests/fixtures/golden.json, which the program itself wrote when
it still gave the losses that it gave before the first method but CSS was there.
"""

import functools
import json
import pathlib
import sys
from unittest import mock

import jax
import numpy as np

from configs import quickstart
from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from css_jax.data import splits, streams
from data_prep import records
from data_prep.shapes.builder import Builder
from tests import small

METHODS = ('css_mix', 'css_cross')
STEPS = (1, 2, 4)


class Runs:
    """Short runs of several methods, on one device; what they share is made once."""

    def __init__(self, folder):
        self._folder = folder
        self._programs = {}  # text -> what it is compiled to
        records.prepare(Builder(data_dir=folder, splits={'train': 500, 'val': 1}))

    def losses(self, name):
        """Step -> name -> value, of a method's loss and its terms."""
        method, tx, ctx = self._made(name)
        shapes = jax.eval_shape(state.maker(method, tx, ctx), np.uint32(ctx.config.seed), {})
        # An array's first values depend on seed and path alone, so that every method has the same.
        leaves = [self._arrays[path] for path in state.flat(shapes)]
        current = jax.tree.unflatten(jax.tree.structure(shapes), leaves)

        # The targets are a program of their own: what follows is then one program for both methods
        # of CSS, which takes longer to compile than the steps take.
        def prepare(current, batch):
            keys = parallel.step_keys(current.key, current.step, batch, ctx.axis)
            return method.targets(current, batch, keys, ctx)

        def rest(current, batch, prepared):
            after = method._replace(targets=lambda *_: prepared)
            return steps.train_step(current, batch, method=after, optimizer=tx, ctx=ctx)

        batches = streams.train_batches(ctx.config.data, ctx.config.seed, names=method.streams)
        found = {}
        for step in range(1, max(STEPS) + 1):
            batch = next(batches)
            if step == 1:
                prepare = self._compiled(prepare, current, batch)
                prepared = prepare(current, batch)
                rest = self._compiled(rest, current, batch, prepared)
            current, metrics = rest(current, batch, prepare(current, batch))
            if step in STEPS:
                found[step] = {k: float(x) for k, x in metrics.items() if k.startswith('loss')}
        return found

    @functools.cached_property
    def _arrays(self):
        """Path -> array of the first state of CSS, which has all there are."""
        return state.flat(state.create(*self._made('css_mix')))

    def _made(self, name):
        config = quickstart.get_config(name)
        config.data.dir = str(self._folder)
        config.update_from_flattened_dict({'steps': 10, 'burn_in_steps': 0})
        config.unsupervised.threshold = 0.1  # so that the first steps have pseudo-labels
        config, method = configs.finalise(config), methods.METHODS[name]
        images = {stream: len(ids) for stream, ids in splits.subsets(config.data).items()}
        with mock.patch.dict(models.BACKBONES, resnet18=small.shallow):
            ctx = methods.context(config, images=images)
        return method, method.optimizer(config)[0], ctx

    def _compiled(self, function, *arguments):
        lowered = jax.jit(function).lower(*arguments)
        text = lowered.as_text()
        if text not in self._programs:
            self._programs[text] = lowered.compile()
        return self._programs[text]


if __name__ == '__main__':
    runs = Runs(pathlib.Path(sys.argv[1]))
    print(json.dumps({name: runs.losses(name) for name in METHODS}))
