"""UniMatch V1: the student's own confident labels, learned from strong and from perturbed views.

"Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation" (CVPR 2023) has no
teacher. The student labels the weak view in training mode, in the pass that it learns the labelled
images from, and learns these labels, where they are confident, from two strong views (as in V2, see
`css_jax.methods.unimatch`, without dropout) and from the weak one with dropped channels: L_fp.

    L = (L_x + (L_1 + L_2) / 4 + L_fp / 2) / 2

What is other than in the authors' program:

- L_x, L_k and L_fp are one sum over all devices, divided by one count, as in V2.
- In the box of a strong view theirs show the same image, cropped once more, as their loader gives
  both in one order; the authors say that this is a slip and makes no difference. Here it is another
  image of `unimatch.group`, as in V2. What it is labelled by is theirs: the student in evaluation
  mode, as it was before the step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from css_jax import parallel
from css_jax.methods import supervised, teacher, unimatch_views, views
from css_jax.methods import unimatch_settings as settings
from css_jax.methods.method import Method
from css_jax.ops import losses, pseudo_labels
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables


class Targets(NamedTuple):
    """What a step trains on.

    The maps of a strong view have the partner's labels in the box. Elsewhere the image has labels
    of its own, which `loss` makes.

    Attributes:
        images: [B, H, W, 3] normalised.
        labels: [B, H, W] int32, -1: ignore.
        weak: [B', H, W, 3] normalised.
        weak_valid: [B', H, W] bool, false in the padding.
        strong1: [B', H, W, 3] normalised, mixed.
        label1: [B', H, W] int32, -1 but in the box.
        indicator1: [B', H, W] float32, 0 but in the box.
        valid1: [B', H, W] bool, of the whole view.
        strong2: of the second view, likewise.
        label2: likewise.
        indicator2: likewise.
        valid2: likewise.
        scale: feature -> factors of its channels, in the perturbed weak view, [B', C] float32.
        labelled_scale: in that of the labelled images, which is in no loss, [B, C].
    """

    images: Array
    labels: Array
    weak: Array
    weak_valid: Array
    strong1: Array
    label1: Array
    indicator1: Array
    valid1: Array
    strong2: Array
    label2: Array
    indicator2: Array
    valid2: Array
    scale: dict[str, Array]
    labelled_scale: dict[str, Array]


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Label the weak view in evaluation mode, for the boxes, and make the strong views."""
    maps = unimatch_views.labels(state.student, batch, ctx)
    unknown = {
        'label': jnp.full_like(maps['label'], -1),
        'indicator': jnp.zeros_like(maps['indicator']),
        'valid': maps['valid'],
    }
    first, second = (
        unimatch_views.mixed(view, batch, unknown, keys, ctx, of_partner=maps)
        for view in ('strong1', 'strong2')
    )
    prepared = Targets(
        **unimatch_views.labelled(batch, ctx),
        weak=views.normalise(batch['unlabelled']['image'], ctx),
        weak_valid=maps['valid'],
        **first,
        **second,
        scale=unimatch_views.dropped('unlabelled', keys, batch, ctx),
        labelled_scale=unimatch_views.dropped('labelled', keys, batch, ctx),
    )
    return jax.lax.stop_gradient(prepared), state.teacher.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_x, L_fp, L_1 and L_2, of two passes.

    In the first one the heads see the labelled and the weak images as they are, then both with
    dropped channels, all with the same statistics of BatchNorm. The logits of the clean weak images
    are the pseudo-labels, and have no gradient.
    """
    del keys
    p, stats = prepared, state.student.batch_stats
    count = len(p.images) + len(p.weak)
    scale = {
        name: jnp.concatenate([jnp.ones((count, s.shape[1])), p.labelled_scale[name], s])
        for name, s in p.scale.items()
    }
    both = jnp.concatenate([p.images, p.weak])
    out, stats = ctx.train(Variables(params, stats), both, channel_scale=scale)
    ends = len(p.images), count, count + len(p.images)
    labelled, weak, _, perturbed = jnp.split(out['logits'], ends)
    size, threshold = p.weak.shape[1:3], ctx.config.unsupervised.threshold
    label, indicator = pseudo_labels.from_logits(jax.lax.stop_gradient(weak), size)
    terms = {
        'supervised': Term(*views.supervised_loss(labelled, p.labels, ctx)),
        'perturbed': Term(
            *losses.confident_over_valid(perturbed, label, indicator, p.weak_valid, threshold)
        ),
    }
    strong = jnp.concatenate([p.strong1, p.strong2])
    out, stats = ctx.train(Variables(params, stats), strong)
    strong_terms, agreement = unimatch_views.strong_losses(
        out['logits'], completed(p, label, indicator), ctx
    )
    shares = unimatch_views.shares(label, indicator, p.weak_valid, ctx)
    return terms | strong_terms, (stats, {}, shares | agreement)


def completed(p: Targets, label: Array, indicator: Array) -> Targets:
    """Return the targets with an image's own labels [B', H, W] outside the boxes."""

    def outside(of_partner: Array, ours: Array, theirs: Array) -> Array:
        return jnp.where(of_partner < 0, ours, theirs)

    return p._replace(
        label1=outside(p.label1, label, p.label1),
        indicator1=outside(p.label1, indicator, p.indicator1),
        label2=outside(p.label2, label, p.label2),
        indicator2=outside(p.label2, indicator, p.indicator2),
    )


def weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh (L_x + (L_1 + L_2) / 4 + L_fp / 2) / 2.

    `unsupervised.weight` is a factor of all terms but the first one.
    """
    del state
    half = ctx.config.unsupervised.weight / 2
    strong = {'strong1': half / 4, 'strong2': half / 4}
    return {'supervised': 1 / 2, 'perturbed': half / 2, **strong}


METHOD = unimatch_views.burning_in(
    Method(
        streams={'labelled': 'mask', 'unlabelled': 'none+valid'},
        outputs=supervised.outputs,
        targets=targets,
        loss=loss,
        keys=settings.V1_KEYS,
        defaults=settings.V1_DEFAULTS,
        weights=weights,
        init_teacher=teacher.none,
        update_teacher=teacher.keep,
        optimizer=settings.optimizer,
        check=settings.check_v1,
        warnings=settings.warnings,
    )
)
