"""The train step: whole, by method, type and output stride, and what each of its parts takes.

    python -m benchmarks.step --size real --out benchmarks/results/step.md

'real' is the paper's VOC setting (ResNet-101, 512 crop, 16 + 16 images, 21 classes), 'small' the
quickstart's. Images and labels are random. Where a setting does not fit into the device's memory,
its row says so and the next one has half the batch. A program compiled later may find convolutions
tuned by an earlier one, so only the first compile time is that of a fresh process.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from benchmarks import timing
from configs import quickstart
from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax import step as steps
from css_jax.methods import views
from css_jax.ops import pseudo_labels
from css_jax.state import Variables

# Method, type, output stride, whether its parts are measured too; in order of importance.
CASES = (
    ('css_mix', 'float32', 8, True),
    ('css_mix', 'bfloat16', 8, True),
    ('css_mix', 'float32', 16, False),
    ('cutmix', 'float32', 8, False),
    ('supervised', 'float32', 8, False),
)
BATCH = {'real': 16, 'small': 8}


def configuration(size: str, method: str, dtype: str, stride: int, batch: int) -> ConfigDict:
    """Gives the configuration of one case; the dataset only lends its class names."""
    if size == 'small':
        c = quickstart.get_config(method)
    else:
        c = configs.default()
        c.method, c.num_classes, c.eval.dataset = method, 21, 'shapes'
        c.data.streams.labelled = configs.stream('shapes')
        c.data.streams.unlabelled = configs.stream('shapes', labels=False)
    c.model.dtype, c.model.output_stride = dtype, stride
    for stream in c.data.streams.values():
        stream.batch_size = batch
    return configs.finalise(c)


def setup(config: ConfigDict) -> SimpleNamespace:
    """Makes what a step takes: method, tx, ctx, state and a batch of random pixels."""
    method = methods.get(config.method)
    tx, ctx = method.optimizer(config), methods.context(config)
    batch = {}
    for i, (name, stream) in enumerate(config.data.streams.items()):
        image, label = jax.random.split(jax.random.key(i))
        shape = (stream.batch_size, *stream.crop)
        batch[name] = {'image': jax.random.bits(image, (*shape, 3), 'uint8')}
        if stream.labels:
            batch[name]['label'] = jax.random.randint(label, shape, 0, config.num_classes, 'uint8')
    current = state.create(method, tx, ctx)
    return SimpleNamespace(method=method, tx=tx, ctx=ctx, state=current, batch=batch)


def measure(program: Callable, account: timing.Row, *arguments: jax.Array) -> timing.Row:
    """Times a compiled program."""
    spent = timing.milliseconds(lambda: program(*arguments))
    return {'ms': spent, 'TFLOP/s': account['GFLOP'] / spent, **account}


def whole(run: SimpleNamespace) -> timing.Row:
    """Times the whole step as the training loop runs it; `run.state` moves on."""
    step = functools.partial(steps.train_step, method=run.method, optimizer=run.tx, ctx=run.ctx)
    program, account = timing.compiled(parallel.compile_step(step), run.state, run.batch)

    def once():
        run.state, metrics = program(run.state, run.batch)
        return run.state, metrics

    spent = timing.milliseconds(once)
    images = sum(len(stream['image']) for stream in run.batch.values())
    return {
        'ms': spent,
        'img/s': 1e3 * images / spent,
        'TFLOP/s': account['GFLOP'] / spent,
        **account,
    }


def parts(run: SimpleNamespace) -> Iterator[tuple[str, timing.Row | None]]:
    """Measures the parts of CSS's step, each compiled alone, on what the one before gives.

    Yields:
        (name, row), the row None where memory does not suffice.
    """
    ctx, c, memory = run.ctx, run.ctx.config.contrastive, run.state.memory
    teacher, student = run.state.teacher, run.state.student
    keys = parallel.step_keys(run.state.key, run.state.step, run.batch, None)
    weak = run.batch['unlabelled']['image']

    def labelled_view(batch):
        return views.labelled(batch, keys, ctx)

    def pseudo_label(out):
        size = weak.shape[1:3]
        y_lgt, j_lgt = pseudo_labels.from_logits(out['logits'], size)
        y_rep, _ = pseudo_labels.from_prototypes(
            out['representation'],
            memory['prototypes'],
            size,
            c.similarity_temperature,
            memory['seen'],
        )
        return {'label': pseudo_labels.mix(y_lgt, y_rep), 'indicator': j_lgt}

    def strong_view(images, maps):
        return views.strong(images, maps, keys, ctx)

    def student_passes(variables, images, strong, cotangents):
        def passes(params):
            out, stats = ctx.train(Variables(params, variables.batch_stats), images)
            out_u, stats = ctx.train(Variables(params, stats), strong)
            return (out, out_u), stats

        _, backward, stats = jax.vjp(passes, variables.params, has_aux=True)
        return backward(cotangents)[0], stats

    # The method's own loss behind a network that gives back its input: the outputs are its images.
    identity = SimpleNamespace(apply=lambda arrays, images, **_: (images, {}))
    behind = dataclasses.replace(ctx, module=identity)

    def losses(head):
        """Loss and gradient by one head; what only the other one needs falls to the compiler."""

        def gradient(outputs, prepared):
            def loss(own):
                full = [{**other, head: mine} for other, mine in zip(outputs, own, strict=True)]
                views_ = {**prepared, 'images': full[0], 'strong': full[1]}
                value, (_, new_memory, _) = run.method.loss({}, run.state, views_, keys, behind)
                return value, new_memory

            grads, new_memory = jax.grad(loss, has_aux=True)([out[head] for out in outputs])
            return grads, new_memory if head == 'representation' else {}

        return gradient

    def update(current, gradients, stats):
        updates, opt_state = run.tx.update(gradients, current.opt_state, current.student.params)
        new = Variables(optax.apply_updates(current.student.params, updates), stats)
        return new, opt_state, run.method.update_teacher(current, new, stats, ctx)
