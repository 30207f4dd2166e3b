"""Mean teacher and CutMix: L = L_s + L_u, the teacher's pseudo-labels on a strong view.

Two rows of Table 1, for which there is no reference code: CSS without its representation head, with
the same resize, jitter and blur, so that what remains of the difference is the mixing and the
second space. 'MT' mixes nothing (Tarvainen and Valpola, arXiv 1703.01780, as the paper uses it),
'CutMix' mixes by boxes (French et al., arXiv 1906.01916), or as `config.augment.mixing` says.
"""

from typing import Any, NamedTuple

import jax
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import css_follow, student, supervised, teacher, views
from css_jax.methods.method import Method
from css_jax.ops import pseudo_labels
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState

KEYS = {
    **supervised.KEYS,
    **supervised.BURN_IN,
    **views.STRONG,
    **views.UNSUPERVISED,
    **teacher.LABELLED_PASS,
    **student.KEYS,
}


class Targets(NamedTuple):
    """What a step trains on; of the labelled, the strong and, to be looked at, the weak view.

    Attributes:
        images: [B, H, W, 3] normalised.
        labels: [B, H, W] int32, -1: ignore.
        strong: [B', H', W', 3] normalised.
        label: [B', H', W'] int32, pseudo-labels in the strong view.
        indicator: [B', H', W'] float32 in [0, 1], their confidence.
        weak_label: [B', H', W'] int32, pseudo-labels in the weak view.
    """

    images: Array
    labels: Array
    strong: Array
    label: Array
    indicator: Array
    weak_label: Array


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Run the teacher on the weak view; make both views for the student."""
    weak = batch['unlabelled']['image']
    out, taught = teacher.run(state.teacher, views.normalise(weak, ctx), ctx)
    label, indicator = pseudo_labels.from_logits(out['logits'], weak.shape[1:3])
    maps = views.stored_indicators({'label': label, 'indicator': indicator}, ctx)
    strong, maps = views.strong(weak, maps, keys, ctx)

    images, labels = views.labelled(batch['labelled'], keys, ctx)
    if ctx.config.teacher.labelled_pass:
        _, taught = teacher.run(taught, images, ctx)
    prepared = Targets(images, labels, strong, maps['label'], maps['indicator'], label)
    return jax.lax.stop_gradient(prepared), taught.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L = L_s + L_u."""
    del keys
    p, stats = prepared, state.student.batch_stats
    out, out_u, batch_stats = student.run(params, stats, p.images, p.strong, ctx)
    terms = {
        'supervised': Term(*views.supervised_loss(out['logits'], p.labels, ctx)),
        'unsupervised': Term(*views.unsupervised_loss(out_u['logits'], p.label, p.indicator, ctx)),
    }
    return terms, (batch_stats, {}, views.confidence_metrics(p.label, p.indicator, ctx))


def weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh L_u by `config.unsupervised.weight`."""
    del state
    return {'unsupervised': ctx.config.unsupervised.weight}


def check(config: ConfigDict) -> None:
    """Refuse values that contradict each other."""
    css_follow.check_labelled_pass(config)
    supervised.check_burn_in(config)
    student.check(config)


def _mixing(*choices: str) -> Method:
    mixing = KEYS['augment.mixing']._replace(default=choices[0], choices=choices)
    return Method(
        streams={'labelled': 'mask', 'unlabelled': 'none'},
        outputs=supervised.outputs,
        targets=targets,
        loss=loss,
        keys={**KEYS, 'augment.mixing': mixing},
        defaults=css_follow.DEFAULTS | css_follow.UNLABELLED,
        weights=weights,
        phases=supervised.burn_in,
        check=check,
    )


METHOD = _mixing('none')
CUTMIX = _mixing('cutmix', 'classmix', 'cutout')
