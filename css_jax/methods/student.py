"""The student's forward passes on its two views."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from css_jax.keys import Key
from css_jax.state import Context, Variables

Outputs = dict[str, Array]

KEYS = {
    'joint_pass': Key(False, "the student's two views in one pass, sharing BatchNorm's statistics"),
}


def run(
    params: Any, batch_stats: Any, images: Array, strong: Array, ctx: Context
) -> tuple[Outputs, Outputs, Any]:
    """Run the student on the labelled and on the strong view, in training mode.

    In the paper these are two passes: BatchNorm normalises each view by its own statistics, and
    the running ones move twice, the strong view's last. With `config.joint_pass` they are one pass
    over both together: fewer and larger operations, one set of statistics, moved once; another
    method, strictly speaking.

    Args:
        params: what is differentiated.
        batch_stats: BatchNorm's running statistics.
        images: [B, H, W, 3], the labelled view, normalised.
        strong: [B', H', W', 3], likewise; with `joint_pass` of one size H x W.
        ctx: network and configuration.

    Returns:
        Head name -> [B, h, w, channels] of the labelled view, the same of the strong view, and
        the new batch_stats.
    """
    if not ctx.config.joint_pass:
        out, batch_stats = ctx.train(Variables(params, batch_stats), images)
        out_u, batch_stats = ctx.train(Variables(params, batch_stats), strong)
        return out, out_u, batch_stats
    both = jnp.concatenate([images, strong])
    out, batch_stats = ctx.train(Variables(params, batch_stats), both)
    count = len(images)
    labelled = {head: values[:count] for head, values in out.items()}
    unlabelled = {head: values[count:] for head, values in out.items()}
    return labelled, unlabelled, batch_stats


def check(config: Any) -> None:
    """Refuse `joint_pass` where the two views have no common size.

    Raises:
        ValueError: see above; names the crops.
    """
    crops = {name: tuple(stream.crop) for name, stream in config.data.streams.items()}
    views = {name: crops[name] for name in ('labelled', 'unlabelled')}
    if config.joint_pass and len(set(views.values())) > 1:
        raise ValueError(
            'joint_pass: got True, expected False or the same data.streams.*.crop, as both views '
            f'are one batch of the network; the crops are {views}'
        )
