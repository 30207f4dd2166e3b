"""A run of random weights, saved as a trained one is, for tests of what is predicted."""

import contextlib

import jax
import numpy as np

from css_jax import config as configs
from css_jax import methods, state
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from tests import tiny


def save(workdir, data_dir, method='css_mix', steps=(3,), **evaluation):
    """Save a run in a folder; its prototypes and weights are random, others at every step."""
    config = tiny.get_config(method)
    config.data.dir = str(data_dir)
    config.eval.update(evaluation)
    config = configs.finalise(config)
    run_folder.save(config, workdir)
    chosen = methods.METHODS[config.method]
    first = state.create(chosen, chosen.optimizer(config)[0], methods.context(config))
    draws = np.random.default_rng(0)
    for step in steps:

        def draw(x):
            return draws.standard_normal(x.shape).astype(np.float32) if x.ndim > 1 else x

        networks = {n: jax.tree.map(draw, getattr(first, n)) for n in ('student', 'teacher')}
        memory = {}
        if first.memory:
            memory = {'prototypes': draw(first.memory['prototypes']), 'seen': np.ones(7, bool)}
        saved = jax.device_put(first.replace(step=np.int32(step), memory=memory, **networks))
        with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
            checkpoints.save(step, saved, {'split_hash': None})
    return workdir


def image(number, height, width):
    """A smooth random image: labels then come in pieces."""
    small = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    rows, columns = (np.arange(side) * n // side for side, n in ((height, 3), (width, 4)))
    return small[rows[:, None], columns]
