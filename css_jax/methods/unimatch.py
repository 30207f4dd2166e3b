"""UniMatch V2 and FixMatch: a teacher's confident labels, learned from strong views.

"UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation" (TPAMI 2025, DOI
10.1109/TPAMI.2025.3528453) labels the weak view of each unlabelled image by an EMA teacher, in
evaluation mode. The student learns these labels, where they are confident, from two strong views
that are drawn independently: jitter of the colours, grey, blur, then CutMix. Each channel of the
features is kept in one of the two views and dropped in the other one; half of the images are spared
(`css_jax.ops.dropout`). Labelled images are resized, cropped and mirrored, no more.

    L = (L_x + (L_1 + L_2) / 2) / 2

where L_k is the cross-entropy over the confident pixels of view k, divided by the number of all of
its pixels but the padding. FixMatch is what the authors compare with: L = (L_x + L_1) / 2, of one
strong view, without dropout.

What is other than in the authors' program:

- L_x and L_k are one sum over all devices, divided by one count. Theirs are means of a ratio of
  each GPU; on one device these are the same.
- Images mix within `unimatch.group`, where theirs mix within a GPU.
- On a CNN the channels of each feature are shared out by themselves. Features with as many channels
  as one another, as those of a transformer, have the same factors.

V1 is `css_jax.methods.unimatch_v1`; the settings of the published runs are
`css_jax.methods.unimatch_settings`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from css_jax import parallel
from css_jax.methods import supervised, teacher, unimatch_views, views
from css_jax.methods import unimatch_settings as settings
from css_jax.methods.method import Method
from css_jax.methods.unimatch_v1 import METHOD as V1
from css_jax.ops import schedules
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

__all__ = ['FIXMATCH', 'METHOD', 'V1']


class OneView(NamedTuple):
    """What a step of FixMatch trains on.

    Attributes:
        images: [B, H, W, 3] normalised.
        labels: [B, H, W] int32, -1: ignore.
        weak_label: pseudo-labels of the weak view, [B', H, W] int32.
        weak_indicator: their confidence, [B', H, W] float32 in [0, 1].
        weak_valid: [B', H, W] bool, false in the padding.
        strong1: [B', H, W, 3] normalised, mixed.
        label1: of the strong view, [B', H, W] int32.
        indicator1: likewise, float32.
        valid1: likewise, bool.
    """

    images: Array
    labels: Array
    weak_label: Array
    weak_indicator: Array
    weak_valid: Array
    strong1: Array
    label1: Array
    indicator1: Array
    valid1: Array


class Targets(NamedTuple):
    """What a step of V2 trains on: that of `OneView`, and a second strong view.

    Attributes:
        scale: feature -> factors of its channels in the first view, [B', C] float32, of a
            transformer one array [B', D]; in the second view they are 2 minus these. None: no
            channel is dropped.
    """

    images: Array
    labels: Array
    weak_label: Array
    weak_indicator: Array
    weak_valid: Array
    strong1: Array
    label1: Array
    indicator1: Array
    valid1: Array
    strong2: Array
    label2: Array
    indicator2: Array
    valid2: Array
    scale: dict[str, Array] | Array | None


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Label the weak view by the teacher, make the strong ones, and share the channels out."""
    found, maps = _found(state, batch, keys, ctx)
    second = unimatch_views.mixed('strong2', batch, maps, keys, ctx)
    dropout = ctx.config.unimatch.dropout
    scale = unimatch_views.complementary(keys, batch, ctx) if dropout else None
    prepared = Targets(**found, **second, scale=scale)
    return jax.lax.stop_gradient(prepared), state.teacher.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_x, and L_1 and L_2 of one pass over both strong views."""
    del keys
    p = prepared
    scale = jax.tree.map(lambda s: jnp.concatenate([s, 2 - s]), p.scale)
    more = {} if scale is None else {'channel_scale': scale}
    return _losses(params, state, p, jnp.concatenate([p.strong1, p.strong2]), ctx, **more)


def weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh (L_x + (L_1 + L_2) / 2) / 2; `unsupervised.weight` is a factor of the second term."""
    del state
    each = ctx.config.unsupervised.weight / 4
    return {'supervised': 1 / 2, 'strong1': each, 'strong2': each}


def fixmatch_targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[OneView, Any]:
    """Label the weak view by the teacher, and make one strong view."""
    found, _ = _found(state, batch, keys, ctx)
    return jax.lax.stop_gradient(OneView(**found)), state.teacher.batch_stats


def fixmatch_loss(
    params: Any, state: TrainState, prepared: OneView, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_x and L_1."""
    del keys
    return _losses(params, state, prepared, prepared.strong1, ctx)


def fixmatch_weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh (L_x + L_1) / 2, as `weights`."""
    del state
    return {'supervised': 1 / 2, 'strong1': ctx.config.unsupervised.weight / 2}


def update_teacher(
    state: TrainState, student: Variables, batch_stats: Any, ctx: Context
) -> Variables:
    """Move the EMA of parameters and running statistics; the first update copies.

    A teacher taken from another run (`config.init_from`) is no copy, so its decay is constant.
    """
    del batch_stats
    decay = ctx.config.teacher.decay
    if not ctx.config.init_from:
        decay = schedules.ema_decay(state.step, decay)
    return teacher.follow(state.teacher, student, decay)


def _found(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the arrays of `OneView`, and the maps of the weak view."""
    maps = unimatch_views.labels(state.teacher, batch, ctx)
    weak = {f'weak_{name}': x for name, x in maps.items()}
    first = unimatch_views.mixed('strong1', batch, maps, keys, ctx)
    return {**unimatch_views.labelled(batch, ctx), **weak, **first}, maps


def _losses(
    params: Any, state: TrainState, p: Any, strong: Array, ctx: Context, **more: Any
) -> tuple[dict[str, Term], tuple]:
    """Compute L_x, and L_k of one pass over all strong views, one after the other."""
    stats = state.student.batch_stats
    out, stats = ctx.train(Variables(params, stats), p.images)
    terms = {'supervised': Term(*views.supervised_loss(out['logits'], p.labels, ctx))}
    out, stats = ctx.train(Variables(params, stats), strong, **more)
    unlabelled, agreement = unimatch_views.strong_losses(out['logits'], p, ctx)
    shares = unimatch_views.shares(p.weak_label, p.weak_indicator, p.weak_valid, ctx)
    return terms | unlabelled, (stats, {}, shares | agreement)


METHOD = unimatch_views.burning_in(
    Method(
        streams={'labelled': 'mask', 'unlabelled': 'none+valid'},
        outputs=supervised.outputs,
        targets=targets,
        loss=loss,
        keys=settings.KEYS,
        defaults=settings.DEFAULTS,
        weights=weights,
        update_teacher=update_teacher,
        optimizer=settings.optimizer,
        check=settings.check_v2,
        warnings=settings.warnings,
    )
)
FIXMATCH = unimatch_views.burning_in(
    METHOD._replace(
        targets=fixmatch_targets,
        loss=fixmatch_loss,
        weights=fixmatch_weights,
        keys=settings.FIXMATCH_KEYS,
        check=settings.check,
    )
)
