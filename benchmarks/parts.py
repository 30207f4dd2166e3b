"""The parts of CSS's train step, each compiled alone and timed in turns with the whole.

    python -m benchmarks.parts --size real

A round runs every part once and the whole step once; the means over the faster half of the rounds
are compared. Every part works on what the parts before it give, and gets all arrays as arguments,
so that nothing is computed at compile time. 'of the bound' is 'bound ms', by the rule of
`benchmarks.count` and the peaks measured here, over the time it takes. Rows that begin with 'of
which' are parts of a part and not in the sum.

On a CPU all of it runs on one core: on several XLA computes parts that do not wait for one another
side by side, and the sum is more than the whole.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import count, peaks, step, timing
from css_jax import parallel
from css_jax import step as steps
from css_jax.methods import Method, css, views
from css_jax.ops import contrastive, prototypes, pseudo_labels
from css_jax.state import Context, Variables

CASES = {'real': (step.BFLOAT16, step.FLOAT32), 'small': (step.BFLOAT16, step.FLOAT32)}
SUM, NETWORKS, REST = 'sum of the parts', 'the networks', 'everything but the networks'
WHOLE = 'the whole step'
CONTRASTIVE, EMA = 'of which L_c alone, forward + backward', 'of which EMA alone'
LOSS_C = 'hardness, prototypes, L_c, forward + backward'
OF_WHICH = (CONTRASTIVE, EMA)


def rows(size: str) -> Iterator[tuple[str, list[timing.Row]]]:
    """Gives, for each of some cases of `benchmarks.step`, a row a part, then their sums."""
    where = (on_one_core,) if timing.isolated(jax.default_backend) == 'cpu' else ()
    best = timing.isolated(*where, peaks.measure, size)
    for case in CASES[size]:
        batch = step.batch_of(size, case)
        caption = f'{step.CAPTION[size]}; parts of {case}, {batch} + {batch} images'
        caption += ', one core' if where else ''
        measured = timing.isolated(*where, measure, size, case, best)
        yield caption, measured or [{'part': step.OUT_OF_MEMORY}]


def on_one_core(function: Callable, *arguments: Any) -> Any:
    """Calls a function on one core, in a process that has not used jax yet."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    return function(*arguments)


def measure(size: str, case: str, best: dict[str, float]) -> list[timing.Row] | None:
    """Compiles and times all parts and the whole: the rows of a case, None out of memory.

    Args:
        size: 'real' or 'small'.
        case: one of `benchmarks.step.CASES`, of the method CSS.
        best: as of `benchmarks.peaks.measure`.
    """
    return timing.attempt(_measure, step.setup(step.case_configuration(size, case)), best)


def _measure(run: SimpleNamespace, best: dict[str, float]) -> list[timing.Row]:
    rows, calls = {}, {}

    def add(name: str, function: Callable, *arguments: Any) -> Any:
        """Compiles a part and gives its results."""
        jitted = jax.jit(function)
        program, account = timing.compiled(jitted, *arguments)
        kernels = count.kernels(jitted.trace(*arguments).jaxpr)
        rows[name] = {'bound ms': peaks.bound(kernels, best), **account}
        calls[name] = lambda: program(*arguments)
        return program(*arguments)

    networks = divide(run, add)
    # The step gives its state away, so it has one of its own.
    own = SimpleNamespace(state=jax.tree.map(jnp.copy, run.state))
    jitted = jax.jit(run.step, donate_argnums=0)
    program, account = timing.compiled(jitted, own.state, run.batch)
    kernels = count.kernels(jitted.trace(own.state, run.batch).jaxpr)
    rows[WHOLE] = {'bound ms': peaks.bound(kernels, best), **account}

    def whole():
        own.state, metrics = program(own.state, run.batch)
        return metrics

    spent = timing.interleaved({**calls, WHOLE: whole}, seconds=10)
    return table(spent, rows, networks)


def table(
    spent: dict[str, float], accounts: dict[str, timing.Row], networks: tuple[str, ...]
) -> list[timing.Row]:
    """Gives a row a part, and rows of their sums.

    Args:
        spent: part, and `WHOLE`, -> milliseconds.
        accounts: likewise -> 'bound ms' and what `timing.compiled` says.
        networks: the parts that are forward and backward passes of a network.
    """
    parts = [name for name in spent if name not in (WHOLE, *OF_WHICH)]
    groups = {
        SUM: parts,
        NETWORKS: list(networks),
        REST: [name for name in parts if name not in networks],
    }
    alone = {name: [name] for name in spent}
    order = [*parts, *groups, *(name for name in OF_WHICH if name in spent), WHOLE]
    return [_row(name, {**alone, **groups}[name], spent, accounts) for name in order]


def _row(
    name: str, of: list[str], spent: dict[str, float], accounts: dict[str, timing.Row]
) -> timing.Row:
    def added(key: str) -> float:
        return sum(accounts[part][key] for part in of)

    ms = sum(spent[part] for part in of)
    return {
        'part': name,
        'of the step': ms / spent[WHOLE],
        'ms': ms,
        'bound ms': added('bound ms'),
        'of the bound': added('bound ms') / ms,
        'TFLOP/s': added('GFLOP') / ms,
        'GFLOP': added('GFLOP'),
        'compile s': added('compile s'),
        'temporary MiB': max(accounts[part]['temporary MiB'] for part in of),
    }


def divide(run: SimpleNamespace, add: Callable) -> tuple[str, ...]:
    """Hands every part of a step of CSS to `add`, in order, and names those that are networks.

    Args:
        run: as of `benchmarks.step.setup`.
        add: (name, function, *arguments) -> the function's results.
    """
    method, ctx, state, batch = run.method, run.ctx, run.state, run.batch

    def keys(state):
        return parallel.step_keys(state.key, state.step, batch, None)

    def labelled_view(state, stream):
        return views.labelled(stream, keys(state), ctx)

    def strong_view(state, images, maps):
        return views.strong(images, maps, keys(state), ctx)

    def teacher(variables, images):
        return ctx.train(variables, images)

    def optimise(state, gradients, stats):
        updates, opt_state = run.tx.update(gradients, state.opt_state, state.student.params)
        student = Variables(optax.apply_updates(state.student.params, updates), stats)
        return student, opt_state, method.update_teacher(state, student, stats, ctx)

    def ema(state, student, stats):
        return method.update_teacher(state, student, stats, ctx)

    networks = ['teacher forward, weak view', 'student forward + backward, both views']
    raw = batch['unlabelled']['image']
    weak = jax.jit(lambda images: views.normalise(images, ctx))(raw)
    out_u, _ = add(networks[0], teacher, state.teacher, weak)
    images, labels = add('labelled view', labelled_view, state, batch['labelled'])
    out = out_u  # of the same shapes
    if ctx.config.teacher.labelled_pass:
        networks.append('teacher forward, labelled')
        out, _ = add(networks[-1], teacher, state.teacher, images)
    maps = add('pseudo-labels', _pseudo_label(ctx, raw.shape[1:3]), out_u, state.memory)
    strong, maps = add('strong view', strong_view, state, raw, maps)
    outputs = (out, out_u)  # the student's have the same shapes
    gradients, stats = add(networks[1], _student(ctx), state.student, images, strong, outputs)

    prepared = {'labels': labels, **maps, 'agreement': labels.mean((1, 2))}
    losses = {'L_s + L_u, forward + backward': 'logits', LOSS_C: 'representation'}
    for name, head in losses.items():
        add(name, _loss(method, ctx, keys, head), state, outputs, prepared)
    add('optimiser + EMA', optimise, state, gradients, stats)
    add(EMA, ema, state, state.student, stats)
    add(CONTRASTIVE, _contrast(ctx), *_pixels(outputs, ctx))
    return tuple(networks)


def _pseudo_label(ctx: Context, size: tuple[int, int]) -> Callable:
    """Gives (teacher's outputs, memory) -> the maps the strong view takes along."""

    def f(out, memory):
        y_lgt, j_lgt, y_rep, _ = css.both_spaces(out, memory, size, ctx.config)
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


def _loss(method: Method, ctx: Context, keys: Callable, head: str) -> Callable:
    """Gives (state, both views' outputs, prepared) -> (gradients of one head's outputs, memory).

    It is the method's own loss behind a network that gives back what it gets, which is not images
    but the outputs. What only the other head needs is dead code and falls to the compiler.
    """
    given = SimpleNamespace(apply=lambda variables, images, **_: (images, {}))
    ctx = dataclasses.replace(ctx, module=given)

    def f(state, outputs, prepared):
        def loss(own):
            full = [{**out, head: values} for out, values in zip(outputs, own, strict=True)]
            both = step.targets(*full, prepared)
            value, (_, memory, _) = steps.objective(
                {}, state, both, keys(state), method=method, ctx=ctx
            )
            return value, memory

        gradients, memory = jax.grad(loss, has_aux=True)([out[head] for out in outputs])
        return gradients, memory if head == 'representation' else {}

    return f


def _pixels(outputs: tuple[dict, dict], ctx: Context) -> tuple:
    """Gives both views' representations [N, D], random labels and hardness [N], prototypes."""
    z = jnp.concatenate(
        [x['representation'].reshape(-1, x['representation'].shape[-1]) for x in outputs]
    )
    keys = jax.random.split(jax.random.key(0))
    labels = jax.random.randint(keys[0], z.shape[:1], -1, ctx.config.num_classes)
    sums, counts = prototypes.class_sums(z, labels, ctx.config.num_classes)
    rho = sums / jnp.maximum(counts, 1)[:, None]
    return z, labels, jax.random.bernoulli(keys[1], 0.3, z.shape[:1]), rho


def _contrast(ctx: Context) -> Callable:
    """Gives (z, labels, hard, rho) -> (L_c, its gradient), by the configuration's numbers."""
    c = ctx.config.contrastive

    def f(z, labels, hard, rho):
        return contrastive.loss(
            jax.random.key(0),
            z,
            labels,
            hard & (labels >= 0),
            rho,
            temperature=c.temperature,
            num_anchors=c.anchors,
            num_negatives=c.negatives,
            bank_size=c.bank,
            estimator=c.estimator,
        )[0]

    return jax.value_and_grad(f)


if __name__ == '__main__':
    timing.main('Parts of the step', rows)
