"""CSS ("Space Engage", arXiv 2307.09755): L = L_s + L_u + lambda_c L_c, and its ablations.

`config.pseudo_label` (logit | representation | mix | cross) and `config.indicator` (confidence |
similarity | both) are the axes of Tables 5, 6 and 7; the methods `baseline`, `css_mix` and
`css_cross` are points on them. The points where paper and reference differ are keys of their own,
see `css_jax.follow`.

Symbols: y_lgt, y_rep the pseudo-labels of the logit and the representation space, j_lgt, j_rep
their indicators, rho the class prototypes, z the student's representations.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import student, teacher, views
from css_jax.ops import contrastive, losses, prototypes, pseudo_labels, resize, schedules
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState

STREAMS = {'labelled': True, 'unlabelled': False}
DEFAULTS = {'pseudo_label': 'mix', 'indicator': 'both'}
CHOICES = {
    'pseudo_label': ('logit', 'representation', 'mix', 'cross'),
    'indicator': ('confidence', 'similarity', 'both'),
}


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
    """Teacher on the weak view, pseudo-labels of both spaces, both views for the student.

    'label' and 'indicator' are L_u's maps, 'label_c' and 'indicator_c' those of L_c where they are
    others; 'class_sums' has the sums [B, C, D] and counts [B, C] of each labelled and of each
    unlabelled image, where the teacher is the source of the prototypes.
    """
    weak = batch['unlabelled']['image']
    out, taught = teacher.run(state.teacher, views.normalise(weak, ctx), ctx)
    spaces = both_spaces(out, state.memory, weak.shape[1:3], ctx.config)
    maps = _collaborate(spaces, state.step < _warmup_end(ctx), ctx.config)
    maps = views.stored_indicators(maps, ctx)
    # ClassMix divides y_lgt's classes where the spaces exchange labels.
    lead = 'label_c' if 'label_c' in maps else 'label'
    strong, strong_maps = views.strong(weak, maps, keys, ctx, lead=lead)

    images, labels = views.labelled(batch['labelled'], keys, ctx)
    prepared = {'images': images, 'labels': labels, 'strong': strong, **strong_maps}
    if ctx.config.teacher.labelled_pass:
        out_l, taught = teacher.run(taught, images, ctx)
        if ctx.config.contrastive.prototype_source == 'teacher':
            sums = jax.vmap(lambda z, y: prototypes.class_sums(z, y, ctx.config.num_classes))
            seen = (out_l, _shrink(labels, out_l)), (out, _valid(maps, out, ctx.config))
            prepared['class_sums'] = [sums(o['representation'], y) for o, y in seen]

    y_lgt, _, y_rep, _ = spaces
    prepared['agreement'] = (y_lgt == y_rep).mean((1, 2))  # [B]
    prepared['weak_label'], prepared['weak_label_rep'] = y_lgt, y_rep
    return jax.lax.stop_gradient(prepared), taught.batch_stats


def loss(
    params: Any, state: TrainState, prepared: dict, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """L = L_s + L_u + lambda_c L_c (Eq. 6), and what the new prototypes are made of (Eq. 2)."""
    c = ctx.config.contrastive
    out, out_u, batch_stats = student.run(params, state.student.batch_stats, prepared, ctx)

    label, indicator = prepared['label'], prepared['indicator']
    supervised = views.supervised_loss(out['logits'], prepared['labels'], ctx)
    unsupervised = views.unsupervised_loss(out_u['logits'], label, indicator, ctx)

    # The valid pixels of both views, at the stride of the representations.
    z = jnp.concatenate([_pixels(out), _pixels(out_u)])  # [N, D]
    logits = jnp.concatenate([_pixels(out, 'logits'), _pixels(out_u, 'logits')])  # [N, C]
    valid_u = _valid(prepared, out_u, ctx.config).ravel()
    valid = jnp.concatenate([_shrink(prepared['labels'], out).ravel(), valid_u])  # [N]
    own = _own_indicator(z, logits, valid, state.memory, ctx.config)
    hard = (valid >= 0) & (own < c.hard_threshold)  # delta_s

    if c.prototype_source == 'teacher':
        sums = jax.tree.map(lambda of_l, of_u: of_l.sum(0) + of_u.sum(0), *prepared['class_sums'])
    else:
        constant = jax.lax.stop_gradient(z)
        sums = prototypes.class_sums(constant, valid, ctx.config.num_classes)
    sums = parallel.psum(sums, ctx.axis)
    new = _updated(state.memory, sums, ctx)
    rho, seen = new['prototypes'], new['seen']
    if c.prototype_source == 'teacher':  # the strong view may show a class that the weak one hides
        valid = jnp.where(seen[valid], valid, -1)
        hard = hard & (valid >= 0)
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
        scope=c.scope,
        segments=(len(_pixels(out)), len(_pixels(out_u))),
        gather=lambda x: parallel.gather(x, ctx.axis),
        psum=lambda x: parallel.psum(x, ctx.axis),
        rank=parallel.rank(ctx.axis),
    )
    info = parallel.psum(info, ctx.axis)

    lambda_c = _lambda_c(state.step, ctx)
    terms = {
        'supervised': Term(*supervised),
        'unsupervised': Term(*unsupervised, ctx.config.unsupervised.weight),
        'contrastive': Term(contrast, 1.0 / parallel.size(ctx.axis), lambda_c),
    }
    metrics = {
        'weight_contrastive': lambda_c,
        'agreement': views.mean(prepared['agreement'], ctx),
        'prototype_cosine': prototypes.mean_cosine(rho, seen),
        'valid': views.fraction(valid_u >= 0, jnp.ones_like(valid_u, bool), ctx),
        'hard': views.fraction(hard, valid >= 0, ctx),
        'anchors': info['anchors'],
        'classes_present': info['classes_present'],
        **views.confidence_metrics(label, indicator, ctx),
    }
    return terms, (batch_stats, sums, metrics)


def update_memory(memory: dict[str, Array], statistics: Any, ctx: Context) -> dict[str, Array]:
    """Moves the prototypes once (Eq. 2, 3), by the sums and counts of all micro-batches.

    Args:
        memory: as `init_memory` gives it.
        statistics: sums [k, C, D] and counts [k, C] over all devices.
        ctx: configuration.
    """
    return _updated(memory, [x.sum(0) for x in statistics], ctx)


def both_spaces(
    out: dict[str, Array], memory: dict[str, Array], size: tuple[int, int], config: ConfigDict
) -> tuple[Array, Array, Array, Array]:
    """Pseudo-labels and indicators of both spaces, from the teacher's outputs at h x w.

    Returns:
        y_lgt, j_lgt, y_rep, j_rep, each [B, *size]; labels int32, indicators float32 in [0, 1].
    """
    c = config.contrastive
    y_lgt, j_lgt = pseudo_labels.from_logits(out['logits'], size)  # Eq. 1
    y_rep, j_rep = pseudo_labels.from_prototypes(  # Eq. 4, 5
        out['representation'],
        memory['prototypes'],
        size,
        c.similarity_temperature,
        memory['seen'] if c.unseen == 'masked' else None,
    )
    return y_lgt, j_lgt, y_rep, j_rep


def _collaborate(
    spaces: tuple[Array, Array, Array, Array], warming_up: Array, config: ConfigDict
) -> dict[str, Array]:
    """Whose labels and indicators each loss takes (Sec. 3.3); L_c's only where they are others."""
    y_lgt, j_lgt, y_rep, j_rep = spaces
    label, label_c = {
        'logit': (y_lgt, y_lgt),
        'representation': (y_rep, y_rep),
        'mix': 2 * (pseudo_labels.mix(y_lgt, y_rep),),
        'cross': (jnp.where(warming_up, y_lgt, y_rep), y_lgt),
    }[config.pseudo_label]
    by = {'confidence': j_lgt, 'similarity': j_rep}
    if config.indicator == 'both':  # confidence in L_u, similarity in L_c, but for two disputes
        indicator, indicator_c = j_lgt, by[config.contrastive.valid_indicator]
        if config.pseudo_label == 'cross' and config.unsupervised.cross_indicator == 'similarity':
            indicator = jnp.where(warming_up, j_lgt, j_rep)
    else:
        indicator = indicator_c = by[config.indicator]

    maps = {'label': label, 'indicator': indicator}
    if label_c is not label:
        maps['label_c'] = label_c
    if indicator_c is not indicator:
        maps['indicator_c'] = indicator_c
    return maps


def _warmup_end(ctx: Context) -> int:
    """The step at which cross begins to cross; prototypes exist from the end of the burn-in on."""
    passes = ctx.config.unsupervised.warmup_passes
    if ctx.config.pseudo_label != 'cross' or not passes:
        return 0
    return ctx.config.burn_in_steps + passes * views.steps_per_pass('labelled', ctx)


def _valid(maps: dict[str, Array], out: dict[str, Array], config: ConfigDict) -> Array:
    """Labels [B, h, w] of the unlabelled pixels that L_c takes, those under delta_w ignored."""
    label = maps.get('label_c', maps['label'])
    indicator = maps.get('indicator_c', maps['indicator'])
    return _shrink(jnp.where(indicator >= config.contrastive.valid_threshold, label, -1), out)


def _own_indicator(
    z: Array, logits: Array, labels: Array, memory: dict[str, Array], config: ConfigDict
) -> Array:
    """The student's indicator [N] for each pixel's own class; a class without one: 0, so hard."""
    if config.indicator != 'confidence':  # Eq. 5, against the prototypes from before this step
        c = config.contrastive
        logits = prototypes.cosine(z, memory['prototypes']) / c.similarity_temperature
        if c.unseen == 'masked':
            logits = jnp.where(memory['seen'], logits, -1e9)
    return jnp.exp(-losses.pixel_cross_entropy(jax.lax.stop_gradient(logits), labels))


def _lambda_c(step: Array, ctx: Context) -> Array:
    c = ctx.config.contrastive
    if c.schedule == 'reference':  # which has no burn-in
        done = step - ctx.config.burn_in_steps
        factor = schedules.rampdown_by_pass(done, views.steps_per_pass('labelled', ctx))
    else:
        factor = schedules.rampdown(step, ctx.config.steps) if c.schedule == 'rampdown' else 1.0
    return jnp.float32(c.weight) * factor


def _updated(memory: dict[str, Array], sums: Any, ctx: Context) -> dict[str, Array]:
    decay = ctx.config.contrastive.prototype_decay
    rho, seen = prototypes.update(memory['prototypes'], memory['seen'], *sums, decay)
    return {'prototypes': rho, 'seen': seen}


def _pixels(out: dict[str, Array], head: str = 'representation') -> Array:
    return out[head].reshape(-1, out[head].shape[-1])


def _shrink(labels: Array, out: dict[str, Array]) -> Array:
    return resize.nearest(labels, out['representation'].shape[1:3])
