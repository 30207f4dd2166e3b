"""Two label sets on one encoder: a head and an evaluation for each stream's dataset."""

import functools

from css_jax.data import sources
from css_jax.methods import teacher, views
from css_jax.methods.method import Evaluation, Method
from css_jax.ops import resize
from css_jax.ops.losses import Term
from css_jax.state import Variables

STREAMS = ('coarse', 'fine')


def classes(config, stream):
    return len(sources.class_names(config.data.streams[stream].dataset, config.data.dir))


def outputs(config):
    return {f'logits_{stream}': classes(config, stream) for stream in STREAMS}


def targets(state, batch, keys, ctx):
    prepared = {
        stream: (
            views.normalise(batch[stream]['image'], ctx),
            views.host_labels(batch[stream]['label']),
        )
        for stream in STREAMS
    }
    return prepared, state.teacher.batch_stats


def loss(params, state, prepared, keys, ctx):
    stats, terms = state.student.batch_stats, {}
    for stream, (images, labels) in prepared.items():
        out, stats = ctx.train(Variables(params, stats), images)
        sums = views.supervised_loss(out[f'logits_{stream}'], labels, ctx)
        terms[f'supervised_{stream}'] = Term(*sums)
    return terms, (stats, {}, {})


def predict(stream, variables, images, ctx):
    logits = ctx.evaluate(variables, images)[f'logits_{stream}']
    return resize.bilinear(logits, images.shape[1:3])


def evaluations(config):
    return {
        stream: Evaluation(
            dataset=config.data.streams[stream].dataset,
            split=config.eval.split,
            classes=classes(config, stream),
            predict=functools.partial(predict, stream),
            network=config.eval.network,
        )
        for stream in STREAMS
    }


METHOD = Method(
    streams=dict.fromkeys(STREAMS, 'mask'),
    outputs=outputs,
    targets=targets,
    loss=loss,
    keys={**views.SUPERVISED, **teacher.KEYS},
    defaults={'teacher.batch_norm': 'ema'},
    evaluations=evaluations,
)
