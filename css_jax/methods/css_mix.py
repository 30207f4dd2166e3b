"""CSS with mix pseudo-labels ("Space Engage", arXiv 2307.09755): L = L_s + L_u + lambda_c L_c.

Symbols: y_lgt, y_rep the pseudo-labels of the logit and the representation space, j_lgt, j_rep
their indicators, rho the class prototypes, z the student's representations. Where paper and
reference differ this follows the reference: prototypes from the student, delta_w on j_lgt,
delta_s on the softmax similarity.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import views
from css_jax.ops import contrastive, losses, prototypes, pseudo_labels, resize, schedules
from css_jax.state import Context, TrainState, Variables

STREAMS = {'labelled': True, 'unlabelled': False}


def outputs(config: ConfigDict) -> dict[str, int]:
    """Heads and their channels."""
    return {
        'logits': config.num_classes,
        'representation': config.model.representation_dim,
    }


def init_memory(config: ConfigDict) -> dict[str, Array]:
    """Prototypes [C, D] float32 and which classes have one, [C] bool."""
    shape = (config.num_classes, config.model.representation_dim)
    return {'prototypes': jnp.zeros(shape), 'seen': jnp.zeros(shape[0], bool)}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Array], Any]:
    """Teacher on the weak view, pseudo-labels of both spaces, both views for the student."""
    weak = batch['unlabelled']['image']
    size = weak.shape[1:3]
    out, teacher_stats = ctx.train(state.teacher, views.normalise(weak, ctx))
    y_lgt, j_lgt = pseudo_labels.from_logits(out['logits'], size)  # Eq. 1
    y_rep, _ = pseudo_labels.from_prototypes(  # Eq. 4, 5
        out['representation'],
        state.memory['prototypes'],
        size,
        ctx.config.contrastive.similarity_temperature,
        state.memory['seen'],
    )
    mixed = pseudo_labels.mix(y_lgt, y_rep)  # Sec. 3.3
    agreement = (mixed >= 0).sum(dtype=jnp.float32)
    strong, maps = views.strong(weak, {'label': mixed, 'indicator': j_lgt}, keys, ctx)

    images, labels = views.labelled(batch['labelled'], keys, ctx)
    if ctx.config.teacher.labelled_pass:
        _, teacher_stats = ctx.train(Variables(state.teacher.params, teacher_stats), images)
    prepared = {'images': images, 'labels': labels, 'strong': strong, 'weak_label': y_lgt, **maps}
    prepared['agreement'] = parallel.psum(agreement, ctx.axis) / parallel.psum(
        jnp.float32(mixed.size), ctx.axis
    )
    return jax.lax.stop_gradient(prepared), teacher_stats


def loss(
    params: Any, state: TrainState, prepared: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Array, tuple]:
    """L = L_s + L_u + lambda_c L_c (Eq. 6), and the new prototypes (Eq. 2, 3)."""
    c = ctx.config.contrastive
    # Two passes: separate batch statistics, and the running ones move twice.
    out, batch_stats = ctx.train(Variables(params, state.student.batch_stats), prepared['images'])
    out_u, batch_stats = ctx.train(Variables(params, batch_stats), prepared['strong'])

    supervised, mean_s = views.supervised_loss(out['logits'], prepared['labels'], ctx)
    label, indicator = prepared['label'], prepared['indicator']
    unsupervised, mean_u = views.unsupervised_loss(out_u['logits'], label, indicator, ctx)

    # The valid pixels of both views, at the stride of the representations.
    z = jnp.concatenate([_pixels(out), _pixels(out_u)])  # [N, D]
    confident = jnp.where(indicator >= c.valid_threshold, label, -1)  # delta_w
    valid = jnp.concatenate([_shrink(prepared['labels'], out), _shrink(confident, out_u)])  # [N]
    old, seen = state.memory['prototypes'], state.memory['seen']
    hard = _hard(jax.lax.stop_gradient(z), valid, old, seen, c)

    sums, counts = prototypes.class_sums(jax.lax.stop_gradient(z), valid, old.shape[0])
    sums, counts = parallel.psum((sums, counts), ctx.axis)
    rho, seen = prototypes.update(old, seen, sums, counts, c.prototype_decay)  # Eq. 2, 3
    contrast, info = contrastive.loss(  # Eq. 9
        keys.shared('contrastive'),
        z,
        valid,
        hard,
        rho,
        temperature=c.temperature,
        num_anchors=c.anchors,
        num_negatives=c.negatives,
        bank_size=c.bank,
        estimator=c.estimator,
        segments=(len(_pixels(out)), len(_pixels(out_u))),
        gather=lambda x: parallel.gather(x, ctx.axis),
        psum=lambda x: parallel.psum(x, ctx.axis),
        rank=parallel.rank(ctx.axis),
    )
    mean_c, info = parallel.psum(jax.lax.stop_gradient((contrast, info)), ctx.axis)

    lambda_u, lambda_c = ctx.config.unsupervised.weight, _lambda_c(state.step, ctx.config)
    metrics = {
        'loss': mean_s + lambda_u * mean_u + lambda_c * mean_c,
        'loss_supervised': mean_s,
        'loss_unsupervised': mean_u,
        'loss_contrastive': mean_c,
        'weight_contrastive': lambda_c,
        'agreement': prepared['agreement'],
        'prototype_cosine': prototypes.mean_cosine(rho, seen),
        'valid': _share(valid >= 0, ctx),
        'hard': _share(hard, ctx),
        'anchors': info['anchors'],
        'classes_present': info['classes_present'],
        **views.confidence_metrics(label, indicator, ctx),
    }
    total = supervised + lambda_u * unsupervised + lambda_c * contrast
    memory = {'prototypes': rho, 'seen': seen}
    return total, (batch_stats, memory, jax.lax.stop_gradient(metrics))


def _pixels(out: dict[str, Array]) -> Array:
    return out['representation'].reshape(-1, out['representation'].shape[-1])


def _shrink(labels: Array, out: dict[str, Array]) -> Array:
    return resize.nearest(labels, out['representation'].shape[1:3]).ravel()


def _hard(z: Array, labels: Array, rho: Array, seen: Array, c: ConfigDict) -> Array:
    """Valid pixels [N] whose softmax similarity to their own class is under delta_s.

    A class without a prototype yet has similarity 0 there, so its pixels are all hard.
    """
    logits = jnp.where(seen, prototypes.cosine(z, rho) / c.similarity_temperature, -1e9)
    own = jnp.exp(-losses.pixel_cross_entropy(logits, labels))
    return (labels >= 0) & (own < c.hard_threshold)


def _lambda_c(step: Array, config: ConfigDict) -> Array:
    c = config.contrastive
    factor = {'constant': 1.0, 'rampdown': schedules.rampdown(step, config.steps)}[c.schedule]
    return jnp.float32(c.weight) * factor


def _share(mask: Array, ctx: Context) -> Array:
    hits, pixels = parallel.psum((mask.sum(dtype=jnp.float32), jnp.float32(mask.size)), ctx.axis)
    return hits / pixels
