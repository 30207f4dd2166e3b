"""CutMix: L = L_s + L_u, pseudo-labels of the logit space on a mixed strong view.

The 'CutMix' rows of Table 1 (there is no reference code): CSS without its representation head,
with the same jitter, blur and strong resize, so that what remains of the difference is the
second space. `config.augment.mixing` names the mixing.
"""

from typing import Any

import jax
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import views
from css_jax.ops import pseudo_labels
from css_jax.state import Context, TrainState, Variables

STREAMS = {'labelled': True, 'unlabelled': False}


def outputs(config: ConfigDict) -> dict[str, int]:
    """Heads and their channels."""
    return {'logits': config.num_classes}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Array], Any]:
    """Teacher on the weak view, its pseudo-labels, both views for the student."""
    weak = batch['unlabelled']['image']
    out, teacher_stats = ctx.train(state.teacher, views.normalise(weak, ctx))
    label, indicator = pseudo_labels.from_logits(out['logits'], weak.shape[1:3])
    strong, maps = views.strong(weak, {'label': label, 'indicator': indicator}, keys, ctx)

    images, labels = views.labelled(batch['labelled'], keys, ctx)
    if ctx.config.teacher.labelled_pass:
        _, teacher_stats = ctx.train(Variables(state.teacher.params, teacher_stats), images)
    prepared = {'images': images, 'labels': labels, 'strong': strong, 'weak_label': label, **maps}
    return jax.lax.stop_gradient(prepared), teacher_stats


def loss(
    params: Any, state: TrainState, prepared: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Array, tuple]:
    """L = L_s + L_u; two student passes, so the running statistics move twice."""
    del keys
    out, batch_stats = ctx.train(Variables(params, state.student.batch_stats), prepared['images'])
    out_u, batch_stats = ctx.train(Variables(params, batch_stats), prepared['strong'])

    supervised, mean_s = views.supervised_loss(out['logits'], prepared['labels'], ctx)
    label, indicator = prepared['label'], prepared['indicator']
    unsupervised, mean_u = views.unsupervised_loss(out_u['logits'], label, indicator, ctx)
    weight = ctx.config.unsupervised.weight
    metrics = {
        'loss': mean_s + weight * mean_u,
        'loss_supervised': mean_s,
        'loss_unsupervised': mean_u,
        **views.confidence_metrics(label, indicator, ctx),
    }
    return supervised + weight * unsupervised, (
        batch_stats,
        state.memory,
        jax.lax.stop_gradient(metrics),
    )
