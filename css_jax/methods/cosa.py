"""CoSA (arXiv 2402.17891): segmentation learned from image-level labels alone.

"Weakly Supervised Co-training with Swapping Assignments" trains an online network on a strong view,
by an assignment network, its EMA, that sees the weak view at several scales and mirrored:

- image-level labels train a classifier on the last features and one on early features;
- class activation maps (CAMs) of the assignment network become pseudo-labels, which train the
  segmentation (CAM2Seg), from the last and from the early features;
- its segmentation becomes soft pseudo-labels, which train the CAMs (Seg2CAM);
- a dense energy asks that pixels alike in place and colour have the same class.

    L = L_cls + 0.1 L_c2s + 0.05 L_s2c + 0.05 L_reg, in a warm-up L_cls alone.

This is the authors' program as it is published; their logs are of versions before it. What the
paper adds is off unless it is asked for, and is our reading: weights by perplexity
(`cosa.weighting`), a dynamic threshold (`cosa.thresholds`) and contrastive separation
(`cosa.separation`). The settings of the logged runs are `css_jax.methods.cosa_settings`.

The masks never get here: the stream 'images' gives which classes are in the whole image. Of the C
classes background is class 0; K = C - 1, and channel k of a CAM belongs to class k + 1. Symbols:
CPL and SPL are the pseudo-labels from CAMs and from the segmentation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax import state as states
from css_jax.methods import cosa_cams, cosa_scores, teacher, views
from css_jax.methods import cosa_settings as settings
from css_jax.methods import cosa_thresholds as thresholds
from css_jax.methods.method import Method
from css_jax.ops import (
    augment,
    cam,
    color,
    cosa,
    crf,
    draws,
    magnitudes,
    perplexity,
    resize,
    weak,
)
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables

optimizer = settings.optimizer
# The authors' weight of the energy, at half of their crop of 448. Their filter gives 0.57 of the
# sum that it stands for, which is computed here as it is.
_ENERGY, _HALF, _FILTER = 1e-7, 224, 0.57
_SIGMA_RGB, _SIGMA_XY, _CROP = 15.0, 100.0, 448  # of the energy's kernel; the second at that crop


class Images(NamedTuple):
    """What classification trains on.

    Attributes:
        strong: [B, H, W, 3] normalised.
        present: image-level labels, [B, K] bool.
        counts: histograms of CAM values by their kind, [B, BINS]; none with fixed thresholds.
    """

    strong: Array
    present: Array
    counts: dict[str, Array]


class Targets(NamedTuple):
    """What a step trains on.

    Attributes:
        strong: [B, H, W, 3] normalised.
        present: image-level labels, [B, K] bool.
        counts: as in `Images`.
        box: [B, 4] int32, top, bottom, left, right of what is no padding.
        cam: [B, H, W] float32 in [0, 1], the largest value of the classes that the image has.
        cam_label: CPL, [B, H, W] int32, -1: none.
        cam_weight: of CPL, [B, H, W] float32.
        aux_label: CPL of the early features, likewise.
        aux_weight: likewise.
        segmentation: SPL, [B, h, w, C] float32, which sum up to 1.
    """

    strong: Array
    present: Array
    counts: dict[str, Array]
    box: Array
    cam: Array
    cam_label: Array
    cam_weight: Array
    aux_label: Array
    aux_weight: Array
    segmentation: Array


def outputs(config: ConfigDict) -> dict[str, int]:
    """Return the segmentation, and a classifier and its CAMs of last and of early features."""
    labelled = ('class', 'cam', 'class_aux', 'cam_aux')
    return {'logits': config.num_classes, **dict.fromkeys(labelled, config.num_classes - 1)}


def init_teacher(student: Variables, key: Array, ctx: Context) -> Variables:
    """Start the assignment network with the student's backbone, and heads of its own."""
    own = states.variables(ctx, key)
    params = own.params | {'backbone': jax.tree.map(jnp.copy, student.params['backbone'])}
    return Variables(params, jax.tree.map(jnp.copy, student.batch_stats))


def update_teacher(
    state: TrainState, student: Variables, batch_stats: Any, ctx: Context
) -> Variables:
    """Move the EMA of parameters and running statistics, by the same decay from step 0 on."""
    del batch_stats
    return teacher.follow(state.teacher, student, ctx.config.teacher.decay)


def classification_targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Images, Any]:
    """Make the strong view; with a dynamic threshold measure the CAMs, too."""
    images, present = _weak(batch, keys, ctx)
    counts = {}
    if ctx.config.cosa.thresholds != 'fixed':
        maps = cosa_cams.assignments(state.teacher, views.normalise(images, ctx), present, ctx)
        counts = thresholds.histograms(maps, present)
    prepared = Images(_strong(images, keys, ctx), present, counts)
    return jax.lax.stop_gradient(prepared), state.teacher.batch_stats


def targets(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[Targets, Any]:
    """Make the assignment network's pseudo-labels of the weak view, and the strong view.

    The thresholds of a step are those that the steps before it have left.
    """
    c, box = ctx.config.cosa, batch[settings.STREAM]['box']
    images, present = _weak(batch, keys, ctx)
    maps = cosa_cams.assignments(state.teacher, views.normalise(images, ctx), present, ctx)
    found = {}
    for name, (low, high) in thresholds.current(state.memory, ctx.config).items():
        label = cam.pseudo_labels(maps[name], present, low, high, box, c.shrink)
        weight = jnp.ones(label.shape, jnp.float32)
        if c.weighting == 'perplexity':
            weight = perplexity.reciprocal(cam.largest(maps[name], present), low, box)
        found[name] = label, weight
    prepared = Targets(
        _strong(images, keys, ctx),
        present,
        thresholds.histograms(maps, present) if state.memory else {},
        box,
        cam.largest(maps['cam'], present),
        *found['cam'],
        *found['cam_aux'],
        maps['segmentation'],
    )
    return jax.lax.stop_gradient(prepared), state.teacher.batch_stats


def classification_loss(
    params: Any, state: TrainState, prepared: Images, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_cls of the last and of the early features."""
    del keys
    network = Variables(params, state.student.batch_stats)
    out, batch_stats = ctx.train(network, prepared.strong)
    return _classification(out, prepared.present), (
        batch_stats,
        thresholds.sums(prepared.counts),
        {},
    )


def loss(
    params: Any, state: TrainState, prepared: Targets, keys: parallel.Keys, ctx: Context
) -> tuple[dict[str, Term], tuple]:
    """Compute L_cls, L_c2s of both CAMs, L_s2c, and L_reg."""
    del keys
    p, c = prepared, ctx.config.cosa
    out, batch_stats = ctx.train(Variables(params, state.student.batch_stats), p.strong)
    terms = _classification(out, p.present)
    labels = {'cam': (p.cam_label, p.cam_weight), 'aux': (p.aux_label, p.aux_weight)}
    for name, (label, weight) in labels.items():
        background, foreground = cosa.cam2seg_loss(out['logits'], label, weight, by_weight=True)
        terms[f'{name}2seg_background'] = Term(*background)
        terms[f'{name}2seg_foreground'] = Term(*foreground)
    terms['seg2cam'] = Term(*cosa.seg2cam_loss(out['cam'], p.segmentation))
    if c.energy_weight:
        terms['energy'] = Term(*_energy(out['logits'], p, ctx))
    if c.separation:
        region = resize.nearest(p.aux_label, out['cam'].shape[1:3])
        terms['separation'] = Term(*cosa.separation(out['cam'], region, p.present))

    inside = cam.inside(p.box, p.cam_label.shape[1:])
    labelled = p.cam_label >= 0
    coarse = resize.nearest(p.cam_label, p.segmentation.shape[1:3])
    metrics = {
        'labelled': views.share(labelled, inside),
        'foreground': views.share(p.cam_label > 0, labelled),
        'agreement': views.share(coarse == p.segmentation.argmax(-1), coarse >= 0),
        **thresholds.logged(state.memory),
    }
    return terms, (batch_stats, thresholds.sums(p.counts), metrics)


def weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh the terms; background and foreground, and both kinds of CAMs, by halves."""
    del state
    c = ctx.config.cosa
    found = {
        f'{name}2seg_{region}': c.cam2seg_weight / 4
        for name in ('cam', 'aux')
        for region in ('background', 'foreground')
    }
    found['seg2cam'] = c.seg2cam_weight
    if c.energy_weight:
        found['energy'] = c.energy_weight
    if c.separation:
        found['separation'] = c.separation
    return found


def phases(config: ConfigDict) -> list[tuple[int, Method]]:
    """Classify alone first: up to and with step `config.cosa.warmup_steps`, counted from 0."""
    return [(min(config.cosa.warmup_steps + 1, config.steps), _CLASSIFY)]


def _weak(batch: dict, keys: parallel.Keys, ctx: Context) -> tuple[Array, Array]:
    """Return the images [B, H, W, 3] uint8 that both views are made of, and their labels [B, K].

    Both views are blurred, by a Gaussian where Pillow approximates one by boxes.
    """
    arrays, c = batch[settings.STREAM], ctx.config.augment
    images = arrays['image']
    if c.blur_prob:
        own = keys(settings.STREAM, 'weak')
        blurred = color.blur(own, augment.to_float(images), prob=c.blur_prob, sigma=c.blur_sigma)
        images = jnp.clip(jnp.round(255 * blurred), 0, 255).astype(jnp.uint8)
    present = arrays['classes'][:, 1:]
    missing = ctx.config.num_classes - 1 - present.shape[1]  # of classes that no image can have
    return images, jnp.pad(present, ((0, 0), (0, missing)))


def _strong(images: Array, keys: parallel.Keys, ctx: Context) -> Array:
    """Return the strong view [B, H, W, 3] normalised: one of nine operations on colours."""
    own, probability = keys(settings.STREAM, 'strong'), ctx.config.cosa.strong_prob
    if probability:
        chosen, magnitude, changed = draws.uniform(own, 'operation', 3).T
        identity = magnitudes.NAMES.index('identity')
        chosen = draws.integer(chosen, len(magnitudes.NAMES))
        chosen = jnp.where(changed < probability, chosen, identity)
        magnitude = 1 + draws.integer(magnitude, magnitudes.MAGNITUDES)
        images = magnitudes.strong(images, chosen, magnitude)
    return views.normalise(images, ctx)


def _classification(out: dict[str, Array], present: Array) -> dict[str, Term]:
    """Return L_cls of both classifiers."""
    return {
        head: Term(*weak.multilabel_soft_margin(out[head], present))
        for head in ('class', 'class_aux')
    }


def _energy(logits: Array, p: Targets, ctx: Context) -> tuple[Array, Array]:
    """Return L_reg as the authors log it: (sum over the images, their number)."""
    height, width = p.strong.shape[1:3]
    levels = views.levels(p.strong, ctx)
    # Sides of a square with as many pixels: what is taller than wide has the same energy turned.
    crop, side = (height * width) ** 0.5, ctx.config.cosa.energy_side
    smaller = max(1, round(side * height / crop)), max(1, round(side * width / crop))
    probabilities = resize.half_pixel_through(jax.nn.softmax, logits, (height, width), smaller)
    sigma_xy = _SIGMA_XY * crop / _CROP
    total, count = crf.dense_energy(
        levels, probabilities, p.cam_label, p.box, _SIGMA_RGB, sigma_xy, smaller
    )
    # A sum over pairs of pixels: as large as at the authors' size, whatever the side.
    pairs = (smaller[0] * smaller[1]) ** 2
    return _ENERGY * _FILTER * (_HALF**4 / pairs) * total, count


METHOD = Method(
    streams={settings.STREAM: 'classes+box'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys=settings.KEYS,
    defaults=settings.DEFAULTS,
    weights=weights,
    init_memory=thresholds.init_memory,
    update_memory=thresholds.update_memory,
    init_teacher=init_teacher,
    update_teacher=update_teacher,
    optimizer=optimizer,
    evaluations=cosa_scores.evaluations,
    phases=phases,
    check=settings.check,
    warnings=settings.warnings,
)
_CLASSIFY = METHOD._replace(
    targets=classification_targets,
    loss=classification_loss,
    weights=lambda state, ctx: {},
)
