"""CoSA's thresholds of CAM values: fixed, or dynamic by what the last batches had.

The dynamic ones are fitted to a queue of histograms in the method's memory. With three components
they are an option of the authors' program (arXiv 2402.17891), with two our reading of the paper.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import cosa_settings as settings
from css_jax.ops import cam, mixture, resize
from css_jax.state import Context

QUEUE = 100  # batches whose CAM values a dynamic threshold is fitted to
# CAMs of the last and of the early features -> their keys of config.cosa.
LIMITS = {'cam': ('low', 'high'), 'cam_aux': ('aux_low', 'aux_high')}


class Queue(NamedTuple):
    """The dynamic threshold of one kind of CAMs.

    Attributes:
        counts: histograms of the last `QUEUE` batches, [QUEUE, BINS] float32.
        place: [] int32, where the next one goes.
        thresholds: [1] or [2], smoothed; low and high are the same where it is one.
    """

    counts: Array
    place: Array
    thresholds: Array


def init_memory(config: ConfigDict) -> dict[str, Queue]:
    """Return the queues of a dynamic threshold, which start with values that are equally likely."""
    found = {}
    if config.cosa.thresholds != 'fixed':
        stream = config.data.streams[settings.STREAM]
        cells = [side // config.model.output_stride for side in stream.crop]
        each = stream.batch_size * cells[0] * cells[1] / mixture.BINS
        for name, limits in LIMITS.items():
            counts = jnp.full((QUEUE, mixture.BINS), each, jnp.float32)
            found[name] = Queue(counts, jnp.int32(0), _first(config, limits))
    return found


def _first(config: ConfigDict, limits: tuple[str, str]) -> Array:
    """Return low and high as configured, or one threshold in their middle."""
    both = jnp.array([config.cosa[limit] for limit in limits], jnp.float32)
    one = config.cosa.thresholds == 'two' or config.cosa.weighting == 'perplexity'
    return both.mean(keepdims=True) if one else both


def current(memory: dict[str, Queue], config: ConfigDict) -> dict[str, tuple[Array, Array]]:
    """Return low and high of each kind of CAMs, equal where there is one threshold.

    Those of the memory are what the steps before have left.
    """
    found = {}
    for name, limits in LIMITS.items():
        values = memory[name].thresholds if memory else _first(config, limits)
        found[name] = values[0], values[-1]
    return found


def update_memory(memory: dict[str, Queue], statistics: Any, ctx: Context) -> dict[str, Queue]:
    """Put the batch's CAM values into the queues, and move the thresholds.

    The authors' queues are one a GPU; this one is of all devices.
    """
    components = {'two': 2, 'three': 3}.get(ctx.config.cosa.thresholds)
    found = {}
    for name, queue in memory.items():
        added = parallel.psum(statistics[name].sum(0), ctx.axis)
        counts = queue.counts.at[queue.place].set(added)
        fitted = mixture.thresholds(counts.sum(0), components, queue.thresholds)
        smoothed = mixture.smooth(queue.thresholds, fitted)
        found[name] = Queue(counts, (queue.place + 1) % QUEUE, smoothed)
    return found


def histograms(maps: dict[str, Array], present: Array) -> dict[str, Array]:
    """Count the largest CAM value of each cell of the grid, of both kinds of CAMs.

    Args:
        maps: of `cosa_cams.assignments`, with [B, H, W, K] CAMs.
        present: image-level labels, [B, K].

    Returns:
        Kind -> [B, BINS] float32.
    """
    grid = maps['segmentation'].shape[1:3]

    def counts(one: Array) -> Array:
        values = cam.largest(resize.half_pixel(one, grid), present)
        return jax.vmap(mixture.histogram)(values)

    return {name: counts(maps[name]) for name in LIMITS}


def sums(counts: dict[str, Array]) -> dict[str, Array]:
    """Add the histograms of a batch's images up: kind -> [BINS]."""
    return {name: one.sum(0) for name, one in counts.items()}


def logged(memory: dict[str, Queue]) -> dict[str, Array]:
    """Return the thresholds by the names of their keys, for the log."""
    return {
        f'threshold_{limit}': queue.thresholds[i]
        for name, queue in memory.items()
        for i, limit in enumerate(LIMITS[name][: len(queue.thresholds)])
    }
