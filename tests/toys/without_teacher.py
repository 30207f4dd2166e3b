"""Trains the student alone, by a head that is not called 'logits'."""

from typing import NamedTuple

from jax import Array

from css_jax.methods import teacher, views
from css_jax.methods.method import Method, on_one_dataset
from css_jax.ops import resize
from css_jax.ops.losses import Term
from css_jax.state import Variables


class Targets(NamedTuple):
    images: Array
    labels: Array


def outputs(config):
    return {'scores': config.num_classes}


def targets(state, batch, keys, ctx):
    images, labels = views.labelled(batch['labelled'], keys, ctx)
    return Targets(images, labels), {}


def loss(params, state, prepared, keys, ctx):
    out, stats = ctx.train(Variables(params, state.student.batch_stats), prepared.images)
    term = Term(*views.supervised_loss(out['scores'], prepared.labels, ctx))
    return {'scores': term}, (stats, {}, {})


def predict(variables, images, ctx):
    return resize.bilinear(ctx.evaluate(variables, images)['scores'], images.shape[1:3])


def evaluations(config):
    return {name: e._replace(predict=predict) for name, e in on_one_dataset(config).items()}


METHOD = Method(
    streams={'labelled': 'mask'},
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys={**views.SUPERVISED, **views.AUGMENT},
    defaults={'eval.network': 'student'},
    init_teacher=teacher.none,
    update_teacher=teacher.keep,
    evaluations=evaluations,
)
