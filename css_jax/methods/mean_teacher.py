"""Mean teacher: L = L_s + L_u, the teacher's pseudo-labels on a strong view without mixing.

The 'MT' rows of Table 1 (Tarvainen and Valpola, arXiv 1703.01780, as the paper uses it; there is
no reference code): CSS without its representation head, with the same resize, jitter and blur, so
that what remains of the difference is the mixing and the second space.
"""

from typing import Any

import jax
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import default, student, teacher, views
from css_jax.ops import pseudo_labels
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState

STREAMS = {'labelled': True, 'unlabelled': False}
DEFAULTS = {'augment.mixing': 'none', **default.DEFAULTS}
CHOICES = {
    'augment.mixing': ('none',),
    'pseudo_label': ('logit',),
    'indicator': ('confidence',),
}


def outputs(config: ConfigDict) -> dict[str, int]:
    """Heads and their channels."""
    return {'logits': config.num_classes}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Array], Any]:
    """Teacher on the weak view, its pseudo-labels, both views for the student."""
    weak = batch['unlabelled']['image']
    out, taught = teacher.run(state.teacher, views.normalise(weak, ctx), ctx)
    label, indicator = pseudo_labels.from_logits(out['logits'], weak.shape[1:3])
    maps = views.stored_indicators({'label': label, 'indicator': indicator}, ctx)
    strong, maps = views.strong(weak, maps, keys, ctx)

    images, labels = views.labelled(batch['labelled'], keys, ctx)
    if ctx.config.teacher.labelled_pass:
        _, taught = teacher.run(taught, images, ctx)
    prepared = {'images': images, 'labels': labels, 'strong': strong, 'weak_label': label, **maps}
    return jax.lax.stop_gradient(prepared), taught.batch_stats


def loss(
    params: Any, state: TrainState, prepared: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """L = L_s + L_u."""
    del keys
    out, out_u, batch_stats = student.run(params, state.student.batch_stats, prepared, ctx)

    label, indicator = prepared['label'], prepared['indicator']
    unsupervised = views.unsupervised_loss(out_u['logits'], label, indicator, ctx)
    terms = {
        'supervised': Term(*views.supervised_loss(out['logits'], prepared['labels'], ctx)),
        'unsupervised': Term(*unsupervised, ctx.config.unsupervised.weight),
    }
    return terms, (batch_stats, {}, views.confidence_metrics(label, indicator, ctx))
