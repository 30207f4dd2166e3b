"""How much L_c depends on the number of devices, where each draws from its own pixels.

    python -m benchmarks.scope --out benchmarks/results/scope.md

16 images of `shapes` with their masks are cut into as many blocks as there are devices, and L_c is
computed for 200 keys: over all blocks ('global'), and as the mean of each block's own ('device',
the reference's). Representations are random, or those of the quickstart's CSS(mix) after 300 of its
steps, which are trained here first. All valid pixels are hard, as they are at tau_sim = 0.5.
"""

import functools
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from configs import quickstart
from css_jax import config as configs
from css_jax import methods, parallel, state, train
from css_jax.data import streams
from css_jax.methods import views
from css_jax.ops import contrastive, prototypes, resize
from css_jax.run import checkpoint

KEYS = 200
# Estimator, scope, numbers of devices.
CASES = (
    ('bank', 'global', (1, 8)),
    ('bank', 'device', (1, 2, 4, 8)),
    ('sampled', 'device', (1, 8)),
)


def images() -> dict[str, np.ndarray]:
    """Gives 16 images of `shapes`, uint8 [16, 64, 64, 3], and their masks."""
    c = quickstart.get_config('supervised_all')
    c.data.streams.labelled.batch_size = 16
    return next(streams.train_batches(configs.finalise(c).data, seed=0))['labelled']


def trained(batch: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """Trains, and gives the teacher's representations [16, h, w, D] and the prototypes [C, D]."""
    config = quickstart.get_config('css_mix')
    config.steps = config.checkpoint_every = 300
    with tempfile.TemporaryDirectory() as workdir:
        train.train(config, workdir)
        ctx = methods.context(configs.finalise(config))
        teacher = checkpoint.restore_network(workdir, 300, state.shapes(ctx))
        memory = checkpoint.restore_arrays(workdir, 300, ['memory'])['memory']
    out = jax.jit(ctx.evaluate)(teacher, views.normalise(batch['image'], ctx))
    return out['representation'], jnp.asarray(memory['prototypes'])


def untrained(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives random representations and their classes' means."""
    z = jax.random.normal(jax.random.key(0), (*labels.shape, 64))
    sums, counts = prototypes.class_sums(z, labels, 7)
    return z, sums / jnp.maximum(counts, 1)[:, None]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def values(z, labels, rho, estimator: str, scope: str, devices: int) -> tuple[jax.Array, jax.Array]:
    """Gives L_c [KEYS] over so many devices, and how many classes are present, their mean."""
    z, labels = (x.reshape(devices, -1, *x.shape[1:]) for x in (z, labels))

    def block(key, z, labels):
        share, info = contrastive.loss(
            key,
            z,
            labels,
            labels >= 0,
            rho,
            estimator=estimator,
            scope=scope,
            gather=lambda x: parallel.gather(x, 'd'),
            psum=lambda x: parallel.psum(x, 'd'),
            rank=parallel.rank('d'),
        )
        return share, info['classes_present']

    def one(key):
        shares, present = jax.vmap(block, (None, 0, 0), axis_name='d')(key, z, labels)
        return shares.sum(), present.sum()

    losses, present = jax.lax.map(one, jax.random.split(jax.random.key(devices), KEYS))
    return losses, present.mean()


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a state, a kind of L_c and a number of devices."""
    del size
    batch = images()
    masks = views.host_labels(jnp.asarray(batch['label']))
    for name in ('random', 'trained'):
        z, rho = trained(batch) if name == 'trained' else untrained(_shrink(masks, (16, 16)))
        labels = _shrink(masks, z.shape[1:3])
        for estimator, scope, numbers in CASES:
            alone = 0.0
            for devices in numbers:
                losses, present = values(z, labels, rho, estimator, scope, devices)
                mean, error = float(losses.mean()), float(losses.std(ddof=1)) / KEYS**0.5
                alone = alone or mean
                yield (
                    f'L_c of 16 images, mean over {KEYS} keys',
                    {
                        'representations': name,
                        'estimator': estimator,
                        'scope': scope,
                        'devices': devices,
                        'L_c': mean,
                        'standard error %': 100 * error / mean,
                        'above 1 device %': 100 * (mean / alone - 1),
                        'classes a device': float(present),
                    },
                )


def _shrink(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
    return resize.nearest(labels, size)


if __name__ == '__main__':
    timing.main('L_c and the number of devices', rows)
