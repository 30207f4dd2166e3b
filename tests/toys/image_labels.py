"""Image-level labels, AdamW with two rates, a warm-up that only classifies, scores beside mIoU."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from css_jax import optimizer
from css_jax.keys import Key
from css_jax.methods import teacher, views
from css_jax.methods.method import Method, More, on_one_dataset
from css_jax.ops import losses, metrics, resize
from css_jax.ops.losses import Term
from css_jax.state import Variables

KEYS = {
    'image_labels.warmup': Key(2, 'steps that only classify', range=(0, 100)),
    'image_labels.sizes': Key((3, 4), 'a tuple of its own'),
}


class Targets(NamedTuple):
    images: Array
    classes: Array
    label: Array


def outputs(config):
    return {'logits': config.num_classes}


def targets(state, batch, keys, ctx):
    b = batch['images']
    images = views.normalise(b['image'], ctx)
    scores = ctx.evaluate(state.teacher, images)['logits']
    scores = jnp.where(b['classes'][:, None, None], scores, -1e9)  # absent ones are no label
    valid = resize.nearest(b['valid'], scores.shape[1:3])
    label = jnp.where(valid, scores.argmax(-1), -1)
    return jax.lax.stop_gradient(Targets(images, b['classes'], label)), state.teacher.batch_stats


def classify(params, state, prepared, keys, ctx):
    out, stats = ctx.train(Variables(params, state.student.batch_stats), prepared.images)
    x = out['logits'].max((1, 2))
    logistic = jnp.where(prepared.classes, jax.nn.softplus(-x), jax.nn.softplus(x))
    return {'classes': Term(logistic.sum(), logistic.size)}, (stats, {}, {}), out


def warmup_loss(params, state, prepared, keys, ctx):
    terms, rest, _ = classify(params, state, prepared, keys, ctx)
    return terms, rest


def loss(params, state, prepared, keys, ctx):
    terms, rest, out = classify(params, state, prepared, keys, ctx)
    return {**terms, 'maps': Term(*losses.cross_entropy(out['logits'], prepared.label))}, rest


def weights(state, ctx):
    return {'maps': 0.1}


def adamw(config):
    return optimizer.adamw(config, [optimizer.Group('head', 'logits', rate=10.0)])


def warmup(config):
    done = config.image_labels.warmup
    return [(done, METHOD._replace(loss=warmup_loss, weights=lambda state, ctx: {}))]


def measures(variables, seen, ctx):
    possible = jnp.where(seen.classes[:, None, None], seen.logits, -jnp.inf).argmax(-1)
    histogram = metrics.score_histogram(seen.logits.max((1, 2)), seen.classes, seen.counted)
    confusion = metrics.confusion(seen.labels, possible, seen.logits.shape[-1])
    return {'histogram': histogram, 'confusion': confusion, 'images': seen.counted.sum()}


def scores(sums):
    precision = metrics.average_precision(sums['histogram'])
    return {
        'precision': np.nanmean(precision),
        'precisions': precision,
        'miou_masked': metrics.scores(sums['confusion'])['miou'],
        'images': sums['images'],
    }


def evaluations(config):
    return {
        name: one._replace(more=More(measures, scores))
        for name, one in on_one_dataset(config).items()
    }


METHOD = Method(
    streams={'images': 'classes+valid'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys={**KEYS, **teacher.KEYS},
    defaults={
        'optimizer.learning_rate': 1e-5,
        'optimizer.weight_decay': 0.01,
        'teacher.decay': 0.9994,
        'teacher.batch_norm': 'ema',
        'data.streams.*.resize': (0.5, 0.5),
    },
    weights=weights,
    optimizer=adamw,
    evaluations=evaluations,
    phases=warmup,
)
