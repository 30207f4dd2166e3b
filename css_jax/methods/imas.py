"""iMAS (arXiv 2211.11335): L = L_x + lambda_u L_u, by how easy each unlabelled image is.

"Instance-specific and Model-adaptive Supervision" is FixMatch with an EMA teacher. The easiness h
of an unlabelled image, in [0, 1], is how far teacher and student agree on its weak view, times how
confident they are (`css_jax.ops.hardness`). An easy image

(a) has a strong view that is distorted more: h u_s + (1 - h) u_w;
(b) is mixed with others more often: a group by CutMix with the probability of its mean easiness;
(c) lends its box to a hard one, and has the box of a hard one: the hardest pairs with the easiest;
(d) weighs more in the loss.

Where the paper and its authors' program differ, this is the program, by which the published numbers
were made: the weights of IoU are of both networks, class 0 is left out of them, and the images that
are mixed are the weak ones. What the program calls hardness is the easiness here. The settings of
the published runs are `css_jax.methods.imas_settings`.

Symbols: u_w, u_s, u_m the weak, strong and mixed views of an unlabelled image; y and q the
teacher's labels of it and their confidence; tau the threshold on q.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.methods import imas_settings as settings
from css_jax.methods import teacher, views
from css_jax.methods.method import Method
from css_jax.ops import draws, hardness, imas, intensity, losses, pseudo_labels, schedules
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

optimizer = settings.optimizer


class Labelled(NamedTuple):
    """What a step trains on: images [B, H, W, 3] normalised, labels [B, H, W] int32, -1: ignore."""

    images: Array
    labels: Array


class Targets(NamedTuple):
    """What a step trains on: the labelled images, and three views of the unlabelled ones.

    Attributes:
        images: [B, H, W, 3] normalised.
        labels: [B, H, W] int32, -1: ignore.
        weak: u_w, [B', H, W, 3] normalised.
        strong: u_s, [B', H, W, 3] normalised.
        mixed: u_m, [B', H, W, 3] normalised.
        label: y, [B', H, W] int32, of the weak and the strong view.
        indicator: q, [B', H, W] float32 in [0, 1].
        mixed_label: [B', H, W] int32.
        mixed_indicator: [B', H, W] float32.
        easiness: h, [B'] float32.
        triggered: [B'] bool, whether the mixed view of the image's group is there.
        sure: [B'] float32, share of the student's confident pixels.
    """

    images: Array
    labels: Array
    weak: Array
    strong: Array
    mixed: Array
    label: Array
    indicator: Array
    mixed_label: Array
    mixed_indicator: Array
    easiness: Array
    triggered: Array
    sure: Array


class Draws(NamedTuple):
    """The random numbers of a step, of each unlabelled image; those of a group are equal in it.

    Attributes:
        operations: [B, n] int32, places in `css_jax.ops.intensity.NAMES`.
        levels: [B, n] float32 in [0, 0.999], of hue with either sign.
        strong: [B] in [0, 1), below which easiness an image stays strong where nothing is blended.
        trigger: [B / group] in [0, 1), of a group.
        box: [B] in [0, 1), of a group: the size of CutMix's boxes.
        row: [B] int32, of the box's centre.
        column: [B] int32, likewise.
    """

    operations: Array
    levels: Array
    strong: Array
    trigger: Array
    box: Array
    row: Array
    column: Array


def outputs(config: ConfigDict) -> dict[str, int]:
    """Return the logits and, where it has a weight, the auxiliary head on layer3."""
    auxiliary = {'auxiliary': config.num_classes} if config.imas.auxiliary_weight else {}
    return {'logits': config.num_classes} | auxiliary


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Label the weak view, measure how easy each image is, and make the other views by it.

    Both networks have their running statistics here, and no statistic moves.
    """
    c, weak = ctx.config, batch['unlabelled']['image']
    threshold, group = c.unsupervised.threshold, _group(weak, c)
    u_w = views.normalise(weak, ctx)

    def labels(network: Variables) -> tuple[Array, Array]:
        return pseudo_labels.from_logits(ctx.evaluate(network, u_w)['logits'], weak.shape[1:3])

    of_student, (y, q) = labels(state.student), labels(state.teacher)
    h = hardness.easiness_of_maps(
        *of_student,
        y,
        q,
        c.num_classes,
        threshold,
        c.imas.ignore_background,
        c.imas.class_weights,
        c.imas.normalised,
    )

    d = draw(keys, weak.shape[1:3], ctx)
    u_s = views.normalise(intensity.strong(weak, d.operations, d.levels), ctx)
    share = h if c.imas.blend else (d.strong < h).astype(jnp.float32)
    u_s = imas.blend(u_s, u_w, share)  # (a)

    triggered = imas.mixes(h, d.trigger, group)  # (b)
    boxes = imas.boxes(d.box, d.row, d.column, weak.shape[1:3], c.imas.box)
    partner = imas.pair_by_easiness(h, group)  # (c)
    u_m, mixed = imas.paste(boxes, partner, u_w, {'label': y, 'indicator': q})

    x, t = _labelled(batch, ctx)
    sure = (of_student[1] >= threshold).mean((1, 2))
    prepared = Targets(
        x, t, u_w, u_s, u_m, y, q, mixed['label'], mixed['indicator'], h, triggered, sure
    )
    return jax.lax.stop_gradient(prepared), state.teacher.batch_stats


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_x and L_u, of one pass over all views.

    The weak view is in no loss, but in BatchNorm's statistics. The mixed view of a group that is
    not mixed is in neither.
    """
    del keys
    p, threshold = prepared, ctx.config.unsupervised.threshold
    there = p.triggered.astype(jnp.float32)
    every = jnp.concatenate([p.images, p.weak, p.mixed, p.strong])
    weights = jnp.concatenate([jnp.ones(len(p.images)), jnp.ones_like(there), there])
    weights = jnp.concatenate([weights, jnp.ones_like(there)])
    out, batch_stats = ctx.train(
        Variables(params, state.student.batch_stats), every, image_weights=weights
    )
    terms = _supervised({name: x[: len(p.images)] for name, x in out.items()}, p.labels, ctx)

    mixed, strong = jnp.split(out['logits'][len(p.images) + len(p.weak) :], 2)
    half = p.easiness * there / 2  # (d); of a group that is mixed each view has a half
    sums = [
        losses.easiness_weighted(strong, p.label, p.indicator, p.easiness - half, threshold),
        losses.easiness_weighted(mixed, p.mixed_label, p.mixed_indicator, half, threshold),
    ]
    terms['unsupervised'] = Term(sums[0][0] + sums[1][0], sums[0][1])
    metrics = {
        'easiness': views.mean(p.easiness),
        'mixed': views.mean(there),
        'confident_student': views.mean(p.sure),
        **views.confidence_metrics(p.label, p.indicator, ctx),
    }
    return terms, (batch_stats, {}, metrics)


def weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh L_u by lambda_u, and L_x of the auxiliary head."""
    found = {'unsupervised': ctx.config.unsupervised.weight}
    return found | supervised_weights(state, ctx)


def draw(keys: parallel.Keys, size: tuple[int, int], ctx: Context) -> Draws:
    """Draw a step's random numbers; see `Draws`.

    Args:
        keys: of the step.
        size: H, W of the crops.
        ctx: configuration.
    """
    c = ctx.config.imas
    own, (height, width) = keys('unlabelled', 'imas'), size
    operations = draws.integer(draws.uniform(own, 'operation', c.operations), len(intensity.NAMES))
    levels = 0.999 * draws.uniform(own, 'level', c.operations)
    backwards = draws.uniform(own, 'sign', c.operations) < 0.5
    backwards &= operations == intensity.NAMES.index('hue')
    strong, row, column = draws.uniform(own, 'image', 3).T
    trigger, box = draws.uniform(own, 'group', 2)[:: c.group].T  # a group's are its first image's
    return Draws(
        operations,
        jnp.where(backwards, -levels, levels),
        strong,
        trigger,
        jnp.repeat(box, c.group),
        height // 16 + draws.integer(row, height - height // 16),
        width // 16 + draws.integer(column, width - width // 16),
    )


def update_teacher(
    state: TrainState, student: Variables, batch_stats: Any, ctx: Context
) -> Variables:
    """Move the EMA of parameters and running statistics; copies in the first epochs.

    A teacher taken from another run (`config.init_from`) is no copy, so its decay is constant.
    """
    del batch_stats
    c, decay = ctx.config, ctx.config.teacher.decay
    if not c.init_from:
        epoch = settings.steps_per_epoch(c)
        decay = schedules.ema_decay_after(state.step, epoch, c.imas.supervised_epochs, decay)
    return teacher.follow(state.teacher, student, decay)


def phases(config: ConfigDict) -> list[tuple[int, Method]]:
    """Train by the labels alone in the first `config.imas.supervised_epochs` epochs."""
    until = config.imas.supervised_epochs * settings.steps_per_epoch(config)
    return [(until, _BY_LABELS)] if until else []


def supervised_targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Labelled, Any]:
    """Take the labelled images as they are."""
    del keys
    return Labelled(*_labelled(batch, ctx)), state.teacher.batch_stats


def supervised_loss(
    params: Any, state: TrainState, prepared: Labelled, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L = L_x."""
    del keys
    network = Variables(params, state.student.batch_stats)
    out, batch_stats = ctx.train(network, prepared.images)
    return _supervised(out, prepared.labels, ctx), (batch_stats, {}, {})


def supervised_weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh L_x of the auxiliary head."""
    del state
    weight = ctx.config.imas.auxiliary_weight
    return {'auxiliary': weight} if weight else {}


def _labelled(batch: dict, ctx: Context) -> tuple[Array, Array]:
    arrays = batch['labelled']
    return views.normalise(arrays['image'], ctx), views.host_labels(arrays['label'])


def _supervised(out: dict[str, Array], labels: Array, ctx: Context) -> dict[str, Term]:
    """Return L_x of each head."""
    names = {'logits': 'supervised', 'auxiliary': 'auxiliary'}
    return {names[head]: Term(*views.supervised_loss(x, labels, ctx)) for head, x in out.items()}


def _group(images: Array, config: ConfigDict) -> int:
    """Return the images of a group.

    Raises:
        ValueError: it does not divide those of a device.
    """
    group = config.imas.group
    if len(images) % group:
        raise ValueError(
            f'imas.group: got {group}, expected a divisor of the {len(images)} unlabelled images '
            'that a device has'
        )
    return group


METHOD = Method(
    streams={'labelled': 'mask', 'unlabelled': 'none'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=settings.KEYS,
    defaults=settings.DEFAULTS,
    weights=weights,
    update_teacher=update_teacher,
    optimizer=optimizer,
    phases=phases,
    check=settings.check,
    warnings=settings.warnings,
)
# The authors' baseline, which has no teacher.
SUPERVISED = Method(
    streams={'labelled': 'mask'},
    outputs=outputs,
    targets=supervised_targets,
    loss=supervised_loss,
    keys=settings.SUPERVISED_KEYS,
    defaults=settings.SUPERVISED_DEFAULTS,
    weights=supervised_weights,
    init_teacher=teacher.none,
    update_teacher=teacher.keep,
    optimizer=optimizer,
    warnings=settings.warnings,
)
_BY_LABELS = SUPERVISED._replace(update_teacher=update_teacher)
