"""Supervised only: L_s on the labelled images; the EMA teacher is what is evaluated.

The 'Sup.' rows of Table 1, and the burn-in of every other method: it trains whatever heads the
network has through the logits alone and leaves the memory as it is.
"""

from typing import Any

from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import teacher, views
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

STREAMS = {'labelled': True}


def outputs(config: ConfigDict) -> dict[str, int]:
    """Heads and their channels."""
    return {'logits': config.num_classes}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Array], Any]:
    """The labelled view; the teacher sees it too, as its BatchNorm has nothing else to learn from.

    Returns:
        {'images' [B, H, W, 3], 'labels' [B, H, W]} and the teacher's batch_stats.
    """
    images, labels = views.labelled(batch['labelled'], keys, ctx)
    _, taught = teacher.run(state.teacher, images, ctx)
    return {'images': images, 'labels': labels}, taught.batch_stats


def loss(
    params: Any, state: TrainState, prepared: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """L = L_s."""
    del keys
    out, batch_stats = ctx.train(Variables(params, state.student.batch_stats), prepared['images'])
    terms = {'supervised': Term(*views.supervised_loss(out['logits'], prepared['labels'], ctx))}
    return terms, (batch_stats, {}, {})
