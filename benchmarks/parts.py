"""The parts of CSS's train step, each compiled alone; `benchmarks.step` shows them."""

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import jax
import optax
from jax import Array

from benchmarks import timing
from css_jax import parallel
from css_jax import step as steps
from css_jax.methods import views
from css_jax.ops import pseudo_labels
from css_jax.state import Context, TrainState, Variables


def measure(
    method: SimpleNamespace,
    tx: optax.GradientTransformation,
    ctx: Context,
    state: TrainState,
    batch: dict[str, dict[str, Array]],
) -> Iterator[tuple[str, timing.Row]]:
    """Times each part on what the parts before it give, then adds them up.

    Every array goes in as an argument, so that nothing is computed at compile time.

    Args:
        method: CSS.
        tx: optimiser.
        ctx: network and configuration.
        state: of the run.
        batch: 'labelled' and 'unlabelled', as the step takes them.

    Yields:
        (name, row as of `timing.measured`).
    """
    total = {'ms': 0.0, 'compile s': 0.0, 'GFLOP': 0.0}

    def add(row: timing.Row) -> timing.Row:
        for key in total:
            total[key] += row[key]
        return row

    def keys(state):
        return parallel.step_keys(state.key, state.step, batch, None)

    def labelled_view(state, stream):
        return views.labelled(stream, keys(state), ctx)

    def strong_view(state, images, maps):
        return views.strong(images, maps, keys(state), ctx)

    def update(state, gradients, stats):
        updates, opt_state = tx.update(gradients, state.opt_state, state.student.params)
        student = Variables(optax.apply_updates(state.student.params, updates), stats)
        return student, opt_state, method.update_teacher(state, student, stats, ctx)

    raw = batch['unlabelled']['image']
    weak = jax.jit(lambda images: views.normalise(images, ctx))(raw)
    program, account = timing.compiled(jax.jit(ctx.train), state.teacher, weak)
    (out_u, stats), row = timing.timed(program, account, state.teacher, weak)
    yield 'teacher forward, weak view', add(row)

    (images, labels), view_row = timing.measured(labelled_view, state, batch['labelled'])
    teacher = Variables(state.teacher.params, stats)
    account['compile s'] = 0.0  # the same program
    (out, _), row = timing.timed(program, account, teacher, images)
    yield 'teacher forward, labelled', add(row)

    maps, row = timing.measured(_pseudo_label(ctx, raw.shape[1:3]), out_u, state.memory)
    yield 'pseudo-labels', add(row)
    (strong, maps), row = timing.measured(strong_view, state, raw, maps)
    yield 'strong view', add(row)
    yield 'labelled view', add(view_row)

    outputs = (out, out_u)  # the student's have the same shapes
    (gradients, stats), row = timing.measured(_student(ctx), state.student, images, strong, outputs)
    yield 'student forward + backward, both views', add(row)

    prepared = {'labels': labels, **maps, 'agreement': labels.mean((1, 2))}
    losses = {'L_s + L_u': 'logits', 'hardness, prototypes, L_c': 'representation'}
    for name, head in losses.items():
        _, row = timing.measured(_loss(method, ctx, keys, head), state, outputs, prepared)
        yield f'{name}, forward + backward', add(row)

    _, row = timing.measured(update, state, gradients, stats)
    yield 'optimiser + EMA', add(row)
    nan = float('nan')
    rate = total['GFLOP'] / total['ms']
    yield 'sum of the parts', {key: total.get(key, nan) for key in row} | {'TFLOP/s': rate}


def _pseudo_label(ctx: Context, size: tuple[int, int]) -> Callable:
    """Gives (teacher's outputs, memory) -> the maps the strong view takes along."""

    def f(out, memory):
        y_lgt, j_lgt = pseudo_labels.from_logits(out['logits'], size)
        y_rep, _ = pseudo_labels.from_prototypes(
            out['representation'],
            memory['prototypes'],
            size,
            ctx.config.contrastive.similarity_temperature,
            memory['seen'],
        )
        return {'label': pseudo_labels.mix(y_lgt, y_rep), 'indicator': j_lgt}

    return f


def _student(ctx: Context) -> Callable:
    """Gives (variables, both views, the outputs' gradients) -> (gradients, batch_stats)."""

    def f(variables, images, strong, cotangents):
        def passes(params):
            out, stats = ctx.train(Variables(params, variables.batch_stats), images)
            out_u, stats = ctx.train(Variables(params, stats), strong)
            return (out, out_u), stats

        _, backward, stats = jax.vjp(passes, variables.params, has_aux=True)
        return backward(cotangents)[0], stats

    return f


def _loss(method: SimpleNamespace, ctx: Context, keys: Callable, head: str) -> Callable:
    """Gives (state, both views' outputs, prepared) -> (gradients of one head's outputs, memory).

    It is the method's own loss behind a network that gives back what it gets, which is not images
    but the outputs. What only the other head needs is dead code and falls to the compiler.
    """
    given = SimpleNamespace(apply=lambda variables, images, **_: (images, {}))
    ctx = dataclasses.replace(ctx, module=given)

    def f(state, outputs, prepared):
        def loss(own):
            full = [{**out, head: values} for out, values in zip(outputs, own, strict=True)]
            both = {**prepared, 'images': full[0], 'strong': full[1]}
            value, (_, memory, _) = steps.objective(
                {}, state, both, keys(state), method=method, ctx=ctx
            )
            return value, memory

        gradients, memory = jax.grad(loss, has_aux=True)([out[head] for out in outputs])
        return gradients, memory if head == 'representation' else {}

    return f
