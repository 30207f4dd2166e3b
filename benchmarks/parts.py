"""The parts of CSS's train step, each compiled alone and timed in turns with the whole.

    python -m benchmarks.parts --size real

The parts are those of `css_jax.step.train_step`: the targets, the loss with its gradient, the
optimiser with the EMA; rows that begin with 'of which' are the networks in them. Every part works
on what the parts before it give, and gets all arrays as arguments, so that nothing is computed at
compile time. 'of the bound' is 'bound ms' (`benchmarks.roofline`) over the time it takes. 'small'
runs on one core: on several XLA computes parts that do not wait for one another side by side, and
the sum is more than the whole. The whole keeps its state's buffers here.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import optax

from benchmarks import roofline, step, timing
from css_jax import parallel
from css_jax import step as steps
from css_jax.methods import views
from css_jax.state import Variables

TARGETS, TEACHER = 'targets: teacher, views, pseudo-labels', 'of which the teacher, forward'
LOSS, STUDENT = 'loss and gradient', 'of which the student, forward + backward'
OPTIMISER, WHOLE = 'optimiser + EMA', 'the whole step'
SECONDS = 10  # of all rounds


def programs(run: step.Run) -> dict[str, Any]:
    """Return the parts of a step of CSS as functions: name -> function."""
    method, ctx = run.method, run.ctx

    def keys(state, batch):
        return parallel.step_keys(state.key, state.step, batch, None)

    def targets(state, batch):
        return method.targets(state, batch, keys(state, batch), ctx)

    def teacher(state, batch):
        weak = views.normalise(batch['unlabelled']['image'], ctx)
        labelled = [views.normalise(batch['labelled']['image'], ctx)]
        seen = [weak, *(labelled if ctx.config.teacher.labelled_pass else [])]
        return [ctx.train(state.teacher, images) for images in seen]

    def loss(state, batch, prepared):
        def f(params):
            given = {'method': method, 'ctx': ctx}
            return steps.objective(params, state, prepared, keys(state, batch), **given)

        return jax.grad(f, has_aux=True)(state.student.params)

    def student(variables, images, strong, cotangents):
        def passes(params):
            out, stats = ctx.train(Variables(params, variables.batch_stats), images)
            out_u, stats = ctx.train(Variables(params, stats), strong)
            return (out, out_u), stats

        _, backward, stats = jax.vjp(passes, variables.params, has_aux=True)
        return backward(cotangents)[0], stats

    def optimise(state, gradients, stats):
        updates, opt_state = run.tx.update(gradients, state.opt_state, state.student.params)
        student = Variables(optax.apply_updates(state.student.params, updates), stats)
        return student, opt_state, method.update_teacher(state, student, stats, ctx)

    functions = (targets, teacher, loss, student, optimise, run.step)
    return dict(zip((TARGETS, TEACHER, LOSS, STUDENT, OPTIMISER, WHOLE), functions, strict=True))


def measure(run: step.Run, best: dict[str, float]) -> dict[str, timing.Row]:
    """Compile and time all parts and the whole, by peaks of `roofline.measure`: name -> row."""
    found, calls = {}, {}
    state, batch = run.arrays()

    def add(name: str, *arguments: Any) -> Any:
        program = timing.compiled(jax.jit(functions[name]), *arguments)
        found[name] = {'bound ms': roofline.bound(program.kernels, best), **program.row}
        calls[name] = lambda: program.call(*arguments)
        return program.call(*arguments)

    functions = programs(run)
    prepared, stats = add(TARGETS, state, batch)
    outputs = [out for out, _ in add(TEACHER, state, batch)]  # of the student's shapes, too
    gradients, _ = add(LOSS, state, batch, prepared)
    cotangents = (outputs[-1], outputs[0])
    add(STUDENT, state.student, prepared.images, prepared.strong, cotangents)
    add(OPTIMISER, state, gradients, stats)
    add(WHOLE, state, batch)
    times = timing.interleaved(calls, SECONDS)
    return {name: {'ms': times[name], **row} for name, row in found.items()}


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give, for two cases of `benchmarks.step`, a row a part, then their sums."""
    if size == 'small':
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before XLA makes its threads
    best = roofline.measure(size)
    for case in (step.HEADLINE, 'float32'):
        run = step.Run(*step.settings(size, case))
        found = measure(run, best)
        groups = {name: [name] for name in found if name != WHOLE}
        groups |= {'sum of the parts': [TARGETS, LOSS, OPTIMISER], WHOLE: [WHOLE]}
        for name, of in groups.items():
            row = {key: sum(found[part][key] for part in of) for key in ('ms', 'bound ms', 'GFLOP')}
            row |= {'of the step': row['ms'] / found[WHOLE]['ms']}
            row |= {
                'of the bound': row['bound ms'] / row['ms'],
                'TFLOP/s': row['GFLOP'] / row['ms'],
            }
            yield f'Parts of {case}, {step.images(run.config)}', {'part': name, **row}


if __name__ == '__main__':
    timing.main('Parts of the step', rows)
