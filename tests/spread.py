"""Runs steps on layouts of devices, in processes of their own; test_spread.py starts these.

A run's name is 'plain' (jit without a device axis) or MODE:DEVICES, such as 'pmap:8', with a third
part where something else than three steps is to be run: 'jit:8:again' (the program of 'jit:8' once
more, right after it), 'pmap:8:mean_of_means' (a mistake, see `MISTAKES`) or 'jit:8:draws' (see
`draws`). What process i ends with goes to FOLDER/NAME.i.npz.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from css_jax.ops import losses
from tests import tiny
from tests.small import small

IMAGES = {'labelled': 16, 'unlabelled': 32}
BATCH, SIDE, STEPS, KEYS = 16, 32, 3, 16


def batches():
    """Three global batches [16, 32, 32, ...]: two images each for eight devices, all different."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        label = np.kron(rng.integers(0, 4, (BATCH, 4, 4)), np.ones((8, 8))).astype(np.uint8)
        label[:3] = 255  # of eight devices the first has no labelled pixel at all, the second few
        label[3, 4:] = 255
        label[8:, :, 20:] = 255
        label[6, :9, :9] = 4  # on one device only; there is no 5 and no 6
        contrast = rng.uniform(0.1, 1, (2, BATCH, 1, 1, 3))  # so that images differ in the whole
        image = rng.integers(0, 256, (2, BATCH, SIDE, SIDE, 3)) * contrast
        image = (image + rng.uniform(0, 255 * (1 - contrast))).astype(np.uint8)
        yield {'labelled': {'image': image[0], 'label': label}, 'unlabelled': {'image': image[1]}}


def configuration(**changes):
    """CSS on the tiny configuration, with a learning rate that lets no rounding grow."""
    c = tiny.get_config()
    c.optimizer.learning_rate = 0.02
    c.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return configs.finalise(c)


def mean_of_means(terms, weights, ctx):
    """Stands for step._weigh: each device divides by its own count."""
    share, logged = 0.0, {'loss': 0.0}
    for name, term in terms.items():
        own = losses.mean(term.total.sum(), term.count.sum()) / parallel.size(ctx.axis)
        mean = parallel.psum(jax.lax.stop_gradient(own), ctx.axis)
        share += weights.get(name, 1.0) * own
        logged[f'loss_{name}'] = mean
        logged['loss'] += weights.get(name, 1.0) * mean
    lambda_c = weights.get('contrastive')
    return share, logged | {'weight_contrastive': lambda_c}


def own_neighbours(tree, axis):
    """Stands for parallel.next_example: a device mixes its own images only."""
    return jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), tree)


def own_statistics(config, num_classes, outputs, axis_name):
    """Stands for models.build: BatchNorm by the device's own batch."""
    return small(config, num_classes, outputs, None)


MISTAKES = {
    'mean_of_means': (steps, '_weigh', mean_of_means),
    'own_neighbours': (parallel, 'next_example', own_neighbours),
    'own_statistics': (models, 'build', own_statistics),
}


def arrays(tree):
    """Path -> array on the host."""
    return {path: np.asarray(leaf) for path, leaf in state.flat(tree).items()}


def ended(current, metrics):
    """All that is compared: the whole state, and the metrics of the last step."""
    current = current.replace(key=jax.random.key_data(current.key))
    return arrays(current) | {f'metrics/{name}': np.asarray(x) for name, x in metrics.items()}


def walk(layout, compiled=None):
    """Three steps from the seed; `layout` None: of plain jit.

    Args:
        layout: see above.
        compiled: the program of an earlier call; None: the step is compiled.

    Returns:
        What it ended with, and the program.
    """
    config = configuration(contrastive__weight=0.0)  # of L_c the value alone: see `draws`
    axis = None if layout is None else parallel.AXIS
    method, ctx = methods.METHODS[config.method], methods.context(config, axis, IMAGES)
    tx = method.optimizer(config)[0]
    step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    alone = methods.context(config)
    if layout is None:
        current, compiled = state.create(method, tx, alone), jax.jit(step)
    else:
        current = state.create(method, tx, alone, {}, layout.replicated)
    for batch in batches():
        batch = batch if layout is None else layout.place(share(batch))
        compiled = compiled or layout.compile_step(step, current, batch)
        current, metrics = compiled(current, batch)
    return ended(current, metrics), compiled


def share(batch):
    """This process's block of a global batch."""
    index, count = parallel.process()
    size = BATCH // count
    return jax.tree.map(lambda x: x[index * size : (index + 1) * size], batch)


def evenly(count):
    """So many devices, as many of each process."""
    every = parallel.Layout().devices
    each = len(every) // jax.process_count()
    own = count // jax.process_count()
    assert 1 <= own <= each, (count, every)
    return [device for i, device in enumerate(every) if i % each < own]


def draws(layout):
    """L_c and its gradient by the representation head's kernel, for `KEYS` keys; the views stay.

    At a state that has prototypes of every class.
    """
    config = configuration()
    method, ctx = methods.METHODS[config.method], methods.context(config, parallel.AXIS, IMAGES)
    current = state.create(
        method, method.optimizer(config)[0], methods.context(config), {}, layout.replicated
    )
    rng = np.random.default_rng(1)
    memory = {'prototypes': rng.normal(size=(7, 16)).astype(np.float32), 'seen': np.ones(7, bool)}
    current = current.replace(memory=jax.device_put(memory, layout.replicated))

    def measure(current, batch):
        keys = parallel.step_keys(current.key, current.step, batch, ctx.axis)
        prepared, _ = method.targets(current, batch, keys, ctx)
        params = parallel.varying(current.student.params, ctx.axis)

        def one(index):
            drawn = dataclasses.replace(keys, key=jax.random.fold_in(current.key, index))
            loss = functools.partial(steps.objective, method=method, ctx=ctx)
            (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(
                params, current, prepared, drawn
            )
            gradient = parallel.psum(gradient['representation']['kernel'], ctx.axis)
            return aux[2]['loss_contrastive'], gradient

        loss, gradient = jax.lax.map(one, jnp.arange(KEYS))
        return current, {'loss': loss, 'gradient': gradient.reshape(KEYS, -1)}

    batch = layout.place(next(batches()))
    return arrays(layout.compile_step(measure, current, batch)(current, batch)[1])


def main(folder):
    """Runs what the command line names; $PLACE is how to meet the other processes, and which it is.

    Args:
        folder: for what it ends with.
    """
    port, count, index = os.environ['PLACE'].split()
    if int(count) > 1:
        parallel.start(f'localhost:{port}', int(count), int(index))
    models.build = small
    compiled = None
    for name in sys.argv[1:]:
        mode, devices, what = [*name.split(':'), '', ''][:3]
        layout = None
        if mode != 'plain':
            layout = parallel.Layout(mode, evenly(int(devices)))
        with contextlib.ExitStack() as stack:
            if what in MISTAKES:
                stack.enter_context(mock.patch.object(*MISTAKES[what]))
            if what == 'draws':
                found = draws(layout)
            else:
                found, compiled = walk(layout, compiled if what == 'again' else None)
        np.savez(pathlib.Path(folder) / f'{name}.{index}.npz', **found)
    sys.exit()
