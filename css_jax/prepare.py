"""What a run needs before it trains: all that can fail, made before anything is written."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax import step as steps
from css_jax.config import warnings
from css_jax.data import splits, streams
from css_jax.evaluation import evaluator
from css_jax.methods.method import computing
from css_jax.methods.method import streams as streams_of
from css_jax.run import checkpoint, wandb_run
from css_jax.run import folder as run_folder
from css_jax.weights import initial


class Phase(NamedTuple):
    """Steps that run one program.

    Attributes:
        until: the step after its last.
        sizes: stream -> images in a batch, of the streams that it reads.
        program: (state, batch) -> (state, metrics), to be compiled.
    """

    until: int
    sizes: Mapping[str, int]
    program: Callable


class Run(NamedTuple):
    """All that a run needs and that can fail, made before anything is written.

    Attributes:
        config: finalised.
        method: what `config.method` names.
        ids: stream -> its images.
        split: the training images as they are stored, see `css_jax.data.splits.record`.
        layout: its devices.
        batches: lines on what each of them takes.
        ctx: network and configuration.
        make: (seed, given) -> the first state, see `css_jax.state.maker`.
        rates: name -> schedule, for the log.
        phases: one after the other.
        every: evaluation -> its evaluator.
        warnings: sentences on what is odd about it.
        given: what a fresh run starts with, see `css_jax.weights.initial.load`.
        damaged: stream -> records that others take the place of, see
            `css_jax.data.streams.unreadable`.
    """

    config: ConfigDict
    method: methods.Method
    ids: Mapping[str, tuple[str, ...]]
    split: Mapping[str, Any]
    layout: parallel.Layout
    batches: list[str]
    ctx: state.Context
    make: Callable
    rates: Mapping[str, Callable]
    phases: list[Phase]
    every: Mapping[str, evaluator.Evaluator]
    warnings: list[str]
    given: Mapping[str, Any]
    damaged: Mapping[str, tuple[int, ...]]


def prepare(given: ConfigDict, workdir: pathlib.Path) -> Run:
    """Make all that a run needs, and write nothing.

    Args:
        given: the configuration as it came, see `css_jax.config`.
        workdir: the run's folder; it need not be there.

    Raises:
        ValueError: the configuration is impossible, cannot be trained or evaluated, or is not the
            one DIR was trained with; it asks for a library that is not installed.
        FileNotFoundError: a dataset, a list or a file of weights is not there.
    """
    with parallel.together():
        config = configs.finalise(given, workdir)
        wandb_run.check(config.wandb)
        method = methods.METHODS[config.method]
        ids = splits.subsets(config.data)
        split = splits.record(config.data, ids)
        damaged = streams.unreadable(config.data)
        for name, records in damaged.items():
            split['streams'][name]['unreadable'] = len(records)
        layout = parallel.Layout(config.parallel)
        batches = _batches(config, layout)
        every = evaluator.evaluators(config)
        images = {name: len(chosen) for name, chosen in ids.items()}
        ctx = methods.context(config, parallel.AXIS, images)
        with computing(f'the optimiser of method {config.method}'):
            tx, rates = method.optimizer(config)
        phases = phases_of(config, layout, tx, ctx)
        make = state.maker(method, tx, ctx, layout.replicated)
        first = check(config, layout, make, phases)
        evaluator.check(config, every, {'student': first.student, 'teacher': first.teacher})
        odd = warnings.warnings(given, config, images)
        # What resumes from a checkpoint needs neither the file nor the folder it started with.
        resumes = checkpoint.exists(workdir)
    parallel.agree('configuration', run_folder.lines(config))
    parallel.agree('split hash of the training images', split['split_hash'])
    parallel.agree('records that cannot be read', str(damaged))
    parallel.agree(f'checkpoints in {workdir}, which all processes need to see', str(resumes))
    if resumes:
        run_folder.match(config, workdir)
        _same_images(workdir, split)
    with parallel.together():
        begun = {} if resumes else initial.load(config, method, ctx)
    return Run(
        config, method, ids, split, layout, batches, ctx, make, rates, phases, every, odd, begun,
        damaged,
    )  # fmt: skip


def phases_of(
    config: ConfigDict, layout: parallel.Layout, tx: Any, ctx: state.Context
) -> list[Phase]:
    """Return the phases of a run, with their programs; see `css_jax.methods.phases`."""
    found = []
    with computing(f'the phases of method {config.method}'):
        every = methods.phases(config)
    for until, phase in every:
        step = functools.partial(steps.train_step, method=phase, optimizer=tx, ctx=ctx)
        read = streams_of(phase, config.data.streams)
        sizes = {name: config.data.streams[name].batch_size for name in read}
        if until:  # else a phase of no step
            found.append(Phase(until, sizes, layout.program(step)))
    return found


def check(
    config: ConfigDict, layout: parallel.Layout, make: Callable, phases: list[Phase]
) -> state.TrainState:
    """Trace the first state and every phase's step: what cannot be run says so now.

    Args:
        config: finalised.
        layout: the devices.
        make: see `css_jax.state.maker`.
        phases: from `phases_of`.

    Returns:
        The shapes of the state.

    Raises:
        ValueError: says which one, and what went wrong.
    """
    with computing(f'the first state of method {config.method}', passes=()):
        first = jax.eval_shape(make, np.uint32(config.seed), {})
    for phase in phases:
        batch = layout.placed(streams.batch_shapes(config.data, phase.sizes))
        what = f'a step of method {config.method} (until step {phase.until})'
        with computing(what, passes=()):
            # Of the arrays' own shardings, so that compiling takes this trace.
            after, _ = jax.eval_shape(phase.program, layout.replicas(first), batch)
            _same_state(state.flat(first), state.flat(after))
    return first


def _same_state(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ValueError, with a name, unless a step gives a state of the shapes that it got."""
    for path in sorted(before.keys() | after.keys()):
        old, new = (
            f'{tree[path].dtype}{list(tree[path].shape)}' if path in tree else 'nothing'
            for tree in (before, after)
        )
        if old != new:
            raise ValueError(f'it makes {path} {new}, expected {old} as before the step')


def _same_images(workdir: pathlib.Path, split: Mapping[str, Any]) -> None:
    """Raise ValueError unless the run in DIR was trained on these images."""
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        saved = checkpoints.meta(checkpoints.latest_step)
    if saved['split_hash'] is None:
        raise ValueError(
            f'{workdir} has weights that were trained elsewhere: expected --mode evaluate, or a '
            f'new --workdir with --config.init_from={workdir}'
        )
    if changed := splits.changed(saved, split):
        raise ValueError(
            f'{workdir} was trained on other images: {changed}. Take another --workdir, or the '
            'images it was trained on.'
        )


def _batches(config: ConfigDict, layout: parallel.Layout) -> list[str]:
    """Say how many images a step takes, in all and on each process and device.

    Raises:
        ValueError: a batch cannot be shared out.
    """
    kind, (_, processes) = layout.devices[0].device_kind, parallel.process()
    lines = [
        f'parallel={config.parallel}, {len(layout.devices)} x {kind} in all, {processes} x '
        f'process, learning rate {config.optimizer.learning_rate:g}, which no number of devices '
        'changes'
    ]
    parts = config.accumulate_steps
    for name, stream in config.data.streams.items():
        key = f'data.streams.{name}.batch_size'
        process, device = layout.shares(key, stream.batch_size, parts)
        cut = f', in {parts} micro-batches' if parts > 1 else ''
        lines.append(
            f'batch of {name}: {stream.batch_size} images in all, {process} a process, '
            f'{device} a device{cut}'
        )
    return lines
