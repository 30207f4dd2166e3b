"""The student's forward passes on its two views."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from css_jax.state import Context, Variables

Outputs = dict[str, Array]


def run(
    params: Any, batch_stats: Any, prepared: Mapping[str, Array], ctx: Context
) -> tuple[Outputs, Outputs, Any]:
    """Runs the student on the labelled and on the strong view, in training mode.

    In the paper these are two passes: BatchNorm normalises each view by its own statistics, and
    the running ones move twice, the strong view's last. With `config.joint_pass` they are one pass
    over both together: fewer and larger operations, one set of statistics, moved once; another
    method, strictly speaking.

    Args:
        params: what is differentiated.
        batch_stats: BatchNorm's running statistics.
        prepared: 'images' [B, H, W, 3] and 'strong' [B', H', W', 3], normalised; with `joint_pass`
            of one size H x W.
        ctx: network and configuration.

    Returns:
        Head name -> [B, h, w, channels] of the labelled view, the same of the strong view, and
        the new batch_stats.
    """
    if not ctx.config.joint_pass:
        out, batch_stats = ctx.train(Variables(params, batch_stats), prepared['images'])
        out_u, batch_stats = ctx.train(Variables(params, batch_stats), prepared['strong'])
        return out, out_u, batch_stats
    both = jnp.concatenate([prepared['images'], prepared['strong']])
    out, batch_stats = ctx.train(Variables(params, batch_stats), both)
    count = len(prepared['images'])
    labelled = {head: values[:count] for head, values in out.items()}
    strong = {head: values[count:] for head, values in out.items()}
    return labelled, strong, batch_stats
