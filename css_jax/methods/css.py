"""CSS ("Space Engage", arXiv 2307.09755): L = L_s + L_u + lambda_c L_c, and its ablations.

`config.pseudo_label` (logit | representation | mix | cross) and `config.indicator` (confidence |
similarity | both) are the axes of Tables 5, 6 and 7; `baseline`, `css_mix` and `css_cross` are
points on them:

- CSS(mix), the paper's best: a pixel is labelled where both spaces agree (Sec. 3.3).
- CSS(cross): each space learns from the other's pseudo-labels: L_u takes y_rep and L_c takes y_lgt.
  While the prototypes are still poor, in the first `config.unsupervised.warmup_passes` passes over
  the labelled images (20 epochs in Sec. 4.1), L_u takes y_lgt as well.
- The contrastive baseline of Table 1 and of the first rows of Tables 5 to 7: CSS on the logits
  alone, as earlier pixel-contrastive methods. As in the reference program lambda_c stays 1, delta_s
  is 0.97 (on confidence) and the teacher does not see the labelled batch.

The points where paper and reference differ are keys of their own, see `css_jax.methods.css_follow`.

Symbols: y_lgt, y_rep the pseudo-labels of the logit and the representation space, j_lgt, j_rep
their indicators, rho the class prototypes, z the student's representations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.keys import Key
from css_jax.methods import css_follow, mean_teacher, student, supervised, teacher, views
from css_jax.methods.css_follow import by_column
from css_jax.methods.method import Method
from css_jax.ops import contrastive, losses, prototypes, pseudo_labels, resize, schedules
from css_jax.ops.losses import Term, Total
from css_jax.state import Context, TrainState, Variables

_SPACES = ('confidence', 'similarity')
_MANY = 10**9
KEYS = {
    **mean_teacher.KEYS,
    'pseudo_label': Key('mix', 'logit | representation | mix | cross',
                        choices=('logit', 'representation', 'mix', 'cross')),
    'indicator': Key('both', 'confidence | similarity | both', choices=(*_SPACES, 'both')),
    'model.representation_dim': Key(256, 'channels of the representation head', range=(1, _MANY)),
    'unsupervised.cross_indicator': Key(
        by_column('confidence', 'similarity', 'confidence'), 'of cross: confidence | similarity',
        like='confidence', choices=_SPACES,
        only=lambda c: c.pseudo_label == 'cross' and c.indicator == 'both',
    ),
    'unsupervised.warmup_passes': Key(
        20, 'of cross: over the labelled images, y_lgt for L_u too', range=(0, _MANY),
        only=lambda c: c.pseudo_label == 'cross',
    ),
    'contrastive.weight': Key(1.0, 'lambda_c', range=(0, 1e3)),
    'contrastive.schedule': Key(
        by_column('rampdown', 'reference', 'constant'),
        'of lambda_c: rampdown | constant | reference', like='rampdown',
        choices=('rampdown', 'constant', 'reference'),
    ),
    'contrastive.estimator': Key('bank', 'of the negatives: bank | sampled (the paper\'s)',
                                 choices=('bank', 'sampled')),
    'contrastive.scope': Key(
        by_column(css_follow.scope, 'device', css_follow.scope),
        "global: all devices' pixels (bank) | device: its own", like='global',
        choices=('global', 'device'),
    ),
    'contrastive.prototype_source': Key(
        by_column('student', 'student', 'teacher'), 'student | teacher', like='student',
        choices=('student', 'teacher'),
    ),
    'contrastive.unseen': Key(
        lambda c: 'zero' if c.slips else 'masked',
        'classes without a prototype: masked | zero', like='masked', choices=('masked', 'zero'),
    ),
    'contrastive.valid_indicator': Key(
        by_column('confidence', 'confidence', 'similarity'),
        'of delta_w: confidence | similarity', like='confidence', choices=_SPACES,
        only=lambda c: c.indicator == 'both',
    ),
    'contrastive.valid_threshold': Key(0.7, 'delta_w', range=(0, 1)),
    'contrastive.hard_threshold': Key(css_follow.hard_threshold, 'delta_s', like=0.8,
                                      range=(0, 1)),
    'contrastive.temperature': Key(0.5, 'tau_c', range=(1e-3, 1e3)),
    'contrastive.similarity_temperature': Key(css_follow.similarity_temperature, 'tau_sim',
                                              like=0.5, range=(1e-3, 1e3)),
    'contrastive.anchors': Key(256, 'per class', range=(1, _MANY)),
    'contrastive.negatives': Key(512, 'per anchor', range=(1, _MANY)),
    'contrastive.bank': Key(256, 'pixels per class shared by all anchors', range=(1, _MANY),
                            only=lambda c: c.contrastive.estimator == 'bank'),
    'contrastive.prototype_decay': Key(0.99, 'EMA of the prototypes', range=(0, 1)),
}  # fmt: skip


class Targets(NamedTuple):
    """What a step trains on; of the labelled, the strong and, to be looked at, the weak view.

    Attributes:
        images: [B, H, W, 3] normalised.
        labels: [B, H, W] int32, -1: ignore.
        strong: [B', H', W', 3] normalised.
        label: [B', H', W'] int32, L_u's pseudo-labels in the strong view.
        indicator: [B', H', W'] float32 in [0, 1], L_u's.
        label_c: L_c's pseudo-labels; often those of L_u.
        indicator_c: L_c's indicator, likewise.
        agreement: [B'] float32, share of pixels to which both spaces give one label.
        weak_label: [B', H', W'] int32, y_lgt in the weak view.
        weak_label_rep: [B', H', W'] int32, y_rep in the weak view.
        class_sums: sums [., C, D] and counts [., C] of each labelled and of each unlabelled image,
            where the teacher is the source of the prototypes, else ().
    """

    images: Array
    labels: Array
    strong: Array
    label: Array
    indicator: Array
    label_c: Array
    indicator_c: Array
    agreement: Array
    weak_label: Array
    weak_label_rep: Array
    class_sums: tuple


def outputs(config: ConfigDict) -> dict[str, int]:
    """Return the two heads, of the logit and of the representation space."""
    return {
        'logits': config.num_classes,
        'representation': config.model.representation_dim,
    }


def init_memory(config: ConfigDict) -> dict[str, Array]:
    """Return prototypes [C, D] float32 and which classes have one, [C] bool."""
    shape = (config.num_classes, config.model.representation_dim)
    return {'prototypes': jnp.zeros(shape), 'seen': jnp.zeros(shape[0], bool)}


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Run the teacher on the weak view; label it in both spaces; make the student's views."""
    weak = batch['unlabelled']['image']
    out, taught = teacher.run(state.teacher, views.normalise(weak, ctx), ctx)
    spaces = both_spaces(out, state.memory, weak.shape[1:3], ctx.config)
    maps = _collaborate(spaces, state.step < _warmup_end(ctx), ctx.config)
    maps = views.stored_indicators(maps, ctx)
    # ClassMix divides y_lgt's classes where the spaces exchange labels.
    lead = 'label_c' if 'label_c' in maps else 'label'
    strong, moved = views.strong(weak, maps, keys, ctx, lead=lead)

    images, labels = views.labelled(batch['labelled'], keys, ctx)
    class_sums = ()
    if ctx.config.teacher.labelled_pass:
        out_l, taught = teacher.run(taught, images, ctx)
        if ctx.config.contrastive.prototype_source == 'teacher':
            sums = jax.vmap(lambda z, y: prototypes.class_sums(z, y, ctx.config.num_classes))
            valid = _valid(*_of_contrast(maps), out, ctx.config)
            seen = (out_l, _shrink(labels, out_l)), (out, valid)
            class_sums = tuple(sums(o['representation'], y) for o, y in seen)

    y_lgt, _, y_rep, _ = spaces
    prepared = Targets(
        images,
        labels,
        strong,
        moved['label'],
        moved['indicator'],
        *_of_contrast(moved),
        agreement=(y_lgt == y_rep).mean((1, 2)),
        weak_label=y_lgt,
        weak_label_rep=y_rep,
        class_sums=class_sums,
    )
    return jax.lax.stop_gradient(prepared), taught.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L = L_s + L_u + lambda_c L_c (Eq. 6), and what the prototypes are made of (Eq. 2).

    With micro-batches L_c sees prototypes that this micro-batch alone has moved, while the stored
    ones are moved once, by all of them: the sums of all are known only after the last one. At a
    prototype decay of 0.99 the two differ by a hundredth of what one batch's means differ.
    """
    c, p = ctx.config.contrastive, prepared
    stats = state.student.batch_stats
    out, out_u, batch_stats = student.run(params, stats, p.images, p.strong, ctx)

    supervised_sums = views.supervised_loss(out['logits'], p.labels, ctx)
    unsupervised_sums = views.unsupervised_loss(out_u['logits'], p.label, p.indicator, ctx)

    # The valid pixels of both views, at the stride of the representations.
    z = jnp.concatenate([_pixels(out), _pixels(out_u)])  # [N, D]
    logits = jnp.concatenate([_pixels(out, 'logits'), _pixels(out_u, 'logits')])  # [N, C]
    valid_u = _valid(p.label_c, p.indicator_c, out_u, ctx.config).ravel()
    valid = jnp.concatenate([_shrink(p.labels, out).ravel(), valid_u])  # [N]
    own = _own_indicator(z, logits, valid, state.memory, ctx.config)
    hard = (valid >= 0) & (own < c.hard_threshold)  # delta_s

    if c.prototype_source == 'teacher':
        sums = jax.tree.map(lambda of_l, of_u: of_l.sum(0) + of_u.sum(0), *p.class_sums)
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

    share = 1.0 / parallel.size(ctx.axis)  # of a device, in a mean over micro-batches
    terms = {
        'supervised': Term(*supervised_sums),
        'unsupervised': Term(*unsupervised_sums),
        'contrastive': Term(contrast, share),
    }
    metrics = {
        'agreement': views.mean(p.agreement),
        'prototype_cosine': prototypes.mean_cosine(rho, seen),
        'classes_with_prototype': seen.sum(dtype=jnp.float32),
        'valid': views.share(valid_u >= 0, jnp.ones_like(valid_u, bool)),
        'hard': views.share(hard, valid >= 0),
        'anchors': Total(info['anchors']),
        'classes_present': Term(info['classes_present'], share),
        **views.confidence_metrics(p.label, p.indicator, ctx),
    }
    return terms, (batch_stats, sums, metrics)


def weights(state: TrainState, ctx: Context) -> dict[str, Any]:
    """Weigh L_u by `config.unsupervised.weight` and L_c by lambda_c(t)."""
    c = ctx.config.contrastive
    if c.schedule == 'reference':  # which has no burn-in
        done = state.step - ctx.config.burn_in_steps
        factor = schedules.rampdown_by_pass(done, _steps_per_pass(ctx))
    else:
        steps = ctx.config.steps
        factor = schedules.rampdown(state.step, steps) if c.schedule == 'rampdown' else 1.0
    lambda_c = jnp.float32(c.weight) * factor
    return {'unsupervised': ctx.config.unsupervised.weight, 'contrastive': lambda_c}


def update_memory(memory: dict[str, Array], statistics: Any, ctx: Context) -> dict[str, Array]:
    """Move the prototypes once (Eq. 2, 3), by the sums and counts of all micro-batches.

    Args:
        memory: as `init_memory` gives it.
        statistics: sums [k, C, D] and counts [k, C] over all devices.
        ctx: configuration.
    """
    return _updated(memory, [x.sum(0) for x in statistics], ctx)


def check(config: ConfigDict) -> None:
    """Refuse values that contradict each other."""
    css_follow.check(config)
    supervised.check_burn_in(config)
    student.check(config)


def both_spaces(
    out: dict[str, Array], memory: dict[str, Array], size: tuple[int, int], config: ConfigDict
) -> tuple[Array, Array, Array, Array]:
    """Return pseudo-labels and indicators of both spaces, from the teacher's outputs at h x w.

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


def similarity(
    variables: Variables, memory: dict[str, Array], images: Array, ctx: Context
) -> Array:
    """Return j_rep (Eq. 5), the similarity to the nearest prototype, of images [B, H, W, 3]."""
    out = ctx.evaluate(variables, images)
    return both_spaces(out, memory, images.shape[1:3], ctx.config)[3]


def _collaborate(
    spaces: tuple[Array, Array, Array, Array], warming_up: Array, config: ConfigDict
) -> dict[str, Array]:
    """Choose the labels and indicators of each loss (Sec. 3.3); L_c's only where they differ."""
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
    """Return the step at which cross begins to cross; the burn-in has made the prototypes."""
    passes = ctx.config.unsupervised.warmup_passes
    if ctx.config.pseudo_label != 'cross' or not passes:
        return 0
    return ctx.config.burn_in_steps + passes * _steps_per_pass(ctx)


def _steps_per_pass(ctx: Context) -> int:
    batch_size = ctx.config.data.streams.labelled.batch_size
    return views.steps_per_pass(ctx.images['labelled'], batch_size)


def _of_contrast(maps: dict[str, Array]) -> tuple[Array, Array]:
    """Return L_c's label and indicator, which are L_u's where they are not in `maps`."""
    return maps.get('label_c', maps['label']), maps.get('indicator_c', maps['indicator'])


def _valid(label: Array, indicator: Array, out: dict[str, Array], config: ConfigDict) -> Array:
    """Return labels [B, h, w] of the unlabelled pixels that L_c takes; under delta_w: ignored."""
    return _shrink(jnp.where(indicator >= config.contrastive.valid_threshold, label, -1), out)


def _own_indicator(
    z: Array, logits: Array, labels: Array, memory: dict[str, Array], config: ConfigDict
) -> Array:
    """Return the student's indicator [N] for each pixel's class; without one it is 0, so hard."""
    if config.indicator != 'confidence':  # Eq. 5, against the prototypes from before this step
        c = config.contrastive
        logits = prototypes.cosine(z, memory['prototypes']) / c.similarity_temperature
        if c.unseen == 'masked':
            logits = jnp.where(memory['seen'], logits, -1e9)
    return jnp.exp(-losses.pixel_cross_entropy(jax.lax.stop_gradient(logits), labels))


def _updated(memory: dict[str, Array], sums: Any, ctx: Context) -> dict[str, Array]:
    decay = ctx.config.contrastive.prototype_decay
    rho, seen = prototypes.update(memory['prototypes'], memory['seen'], *sums, decay)
    return {'prototypes': rho, 'seen': seen}


def _pixels(out: dict[str, Array], head: str = 'representation') -> Array:
    return out[head].reshape(-1, out[head].shape[-1])


def _shrink(labels: Array, out: dict[str, Array]) -> Array:
    return resize.nearest(labels, out['representation'].shape[1:3])


METHOD = Method(
    streams={'labelled': 'mask', 'unlabelled': 'none'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=KEYS,
    defaults={
        **css_follow.DEFAULTS,
        **css_follow.UNLABELLED,
        'teacher.labelled_pass': css_follow.labelled_pass,
    },
    weights=weights,
    init_memory=init_memory,
    update_memory=update_memory,
    similarity=similarity,
    phases=supervised.burn_in,
    check=check,
    warnings=css_follow.warnings,
)


def _point(**values: str) -> dict[str, Key]:
    """Return the keys of a point on the axes: these have one value each."""
    return KEYS | {
        name: KEYS[name]._replace(default=value, choices=(value,)) for name, value in values.items()
    }


MIX = METHOD._replace(keys=_point(pseudo_label='mix'))
CROSS = METHOD._replace(keys=_point(pseudo_label='cross'))
BASELINE = METHOD._replace(
    keys=_point(pseudo_label='logit', indicator='confidence'),
    defaults={
        **METHOD.defaults,
        'contrastive.schedule': 'constant',
        # Unless the prototypes are the teacher's, which need the labelled pixels.
        'teacher.labelled_pass': lambda c: c.contrastive.prototype_source == 'teacher',
    },
)
