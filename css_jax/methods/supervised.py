"""Supervised only: L_s on the labelled images; the EMA teacher is what is evaluated.

The 'Sup.' rows of Table 1, and the burn-in of CSS and its baselines: it trains whatever heads the
network has through the logits alone and leaves the memory as it is.
"""

from typing import Any, NamedTuple

from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.keys import Key
from css_jax.methods import css_follow, teacher, views
from css_jax.methods.method import Method
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

KEYS = {**css_follow.KEYS, **views.SUPERVISED, **views.AUGMENT, **teacher.KEYS}
# Of methods that burn in.
BURN_IN = {
    'burn_in_steps': Key(
        0, 'first steps that run the supervised method with the EMA teacher', range=(0, 10**9)
    ),
}


class Targets(NamedTuple):
    """What a step trains on: images [B, H, W, 3] normalised, labels [B, H, W] int32, -1: ignore."""

    images: Array
    labels: Array


def outputs(config: ConfigDict) -> dict[str, int]:
    """Return the one head, the logits."""
    return {'logits': config.num_classes}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Make the labelled view.

    The teacher sees it too, as its BatchNorm has nothing else to learn from.
    """
    images, labels = views.labelled(batch['labelled'], keys, ctx)
    _, taught = teacher.run(state.teacher, images, ctx)
    return Targets(images, labels), taught.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L = L_s (Eq. 7)."""
    del keys
    out, batch_stats = ctx.train(Variables(params, state.student.batch_stats), prepared.images)
    terms = {'supervised': Term(*views.supervised_loss(out['logits'], prepared.labels, ctx))}
    return terms, (batch_stats, {}, {})


METHOD = Method(
    streams={'labelled': 'mask'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=KEYS,
    defaults=css_follow.DEFAULTS,
)


def check_burn_in(config: ConfigDict) -> None:
    """Refuse a burn-in that takes the whole run, which would be of another method then.

    Raises:
        ValueError: see above.
    """
    if config.burn_in_steps >= config.steps:
        raise ValueError(
            f'burn_in_steps: got {config.burn_in_steps}, expected less than steps={config.steps}: '
            f'all steps would be of method supervised, none of {config.method}'
        )


def burn_in(config: ConfigDict) -> list[tuple[int, Method]]:
    """Run the first `config.burn_in_steps` steps by the labels alone; see `Method.phases`."""
    return [(config.burn_in_steps, METHOD)] if config.burn_in_steps else []
