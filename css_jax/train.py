"""The training loop, from top to bottom."""

import contextlib
import functools
import logging
import pathlib
import signal
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from css_jax import (
    advice,
    checkpoint,
    cost,
    evaluate,
    follow,
    interrupt,
    methods,
    monitor,
    optimizer,
    parallel,
    pretrained,
    state,
    stored,
)
from css_jax import config as configs
from css_jax import step as steps
from css_jax.data import splits, streams

LOG = logging.getLogger('css_jax')


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Trains one run, or goes on with it where DIR has its checkpoints, then evaluates it.

    Args:
        config: see `css_jax.config`.
        workdir: the run's folder; made if missing.

    Returns:
        The results, as written to DIR/results.json.

    Raises:
        ValueError: the configuration is impossible, or not the one DIR was trained with.
        BlockingIOError: another process is training in DIR.
        FloatingPointError: a loss, gradient or update is not finite; the last checkpoint stays.
        css_jax.interrupt.Stopped: SIGTERM or Ctrl-C came; the last step is saved.
    """
    workdir = pathlib.Path(workdir)
    with parallel.together():
        config = configs.finalise(config, workdir)
        ids = splits.subsets(config.data)
        split = splits.record(config.data, ids)
        layout = parallel.Layout(config.parallel)
        batch_sizes = _batches(config, layout)
        evaluator = evaluate.Evaluator(config)
        method = methods.get(config.method)
        images = {name: len(chosen) for name, chosen in ids.items()}
        ctx = methods.context(config, parallel.AXIS, images)
        # Before anything is written; what goes on from a checkpoint needs neither file nor folder.
        goes_on = checkpoint.exists(workdir)
    parallel.agree('configuration', stored.lines(config))
    parallel.agree('split hash of the training images', split['split_hash'])
    parallel.agree(f'checkpoints in {workdir}, which all processes need to see', str(goes_on))
    if goes_on:
        stored.match(config, workdir)
        _same_images(workdir, split)
    with parallel.together():
        given = {} if goes_on else pretrained.load(config, method, ctx)
    lock = contextlib.ExitStack()  # of process 0, held until the end
    parallel.on_primary(_claim, config, workdir, lock)
    departures = follow.departures(config, method.DEFAULTS)
    LOG.info('follow=%s; otherwise: %s', config.follow, ', '.join(departures) or 'nothing')
    for warning in advice.warnings(config, configs.default(), ctx.images):
        LOG.warning('warning: %s', warning)
    for line in splits.report(config.data, ids):
        LOG.info('%s', line)
    LOG.info('split hash %s', split['split_hash'])

    tx = method.optimizer(config)
    current = state.create(method, tx, ctx, given, layout.replicated)
    LOG.info('\n%s', parameter_overview.get_parameter_overview(current.student.params))
    for line in batch_sizes:
        LOG.info('%s', line)

    with (
        lock,
        contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints,
        interrupt.caught() as asked,
    ):
        if checkpoints.latest_step is not None:
            current = checkpoints.restore(current)
            LOG.info('going on from step %d', int(current.step))
            _warn_of_devices(config, layout, checkpoints)
        start = int(current.step)
        scores, stop, done = None, False, start
        meta = {**split, 'devices': len(layout.devices)}

        def broken_off() -> bool:
            """Of an evaluation: several processes would have to agree at every batch."""
            return asked() > 0 and parallel.process()[1] == 1

        rate = optimizer.learning_rate(config)
        progress = monitor.Progress(start, config.steps)

        with (
            contextlib.closing(monitor.Writer(workdir, start, parallel.primary())) as writer,
            contextlib.closing(
                monitor.Profile(workdir, config.profile, parallel.primary())
            ) as profile,
        ):
            pending: dict[int, Mapping] = {}  # step -> metrics, still on the device
            for t in range(start, config.steps):
                if t in (start, config.burn_in_steps):
                    now = methods.burn_in() if t < config.burn_in_steps else method
                    step = functools.partial(steps.train_step, method=now, optimizer=tx, ctx=ctx)
                    sizes = {name: config.data.streams[name].batch_size for name in now.STREAMS}
                    with progress.pause():
                        batches = streams.train_batches(
                            config.data, config.seed, t, *parallel.process(), names=sizes
                        )
                        batch = layout.place(next(batches))
                        run = _compile(layout, step, current, batch)
                else:
                    batch = layout.place(next(batches))
                profile.before(t)
                with jax.profiler.StepTraceAnnotation('train', step_num=t):
                    current, pending[t + 1] = run(current, batch)
                profile.after(t, pending[t + 1])
                # The host is one step ahead, not fifty: those would hold their batches' memory, and
                # be waited for when the run is to stop.
                jax.block_until_ready(pending.get(t))

                done = t + 1
                last = done == config.steps
                log = last or done % config.log_every == 0
                score = last or (config.eval.every > 0 and done % config.eval.every == 0)
                if stop := parallel.stops(2 * done, asked() > 0):
                    score = False  # seconds may be left
                record = {}
                if log or score:
                    values = _finite(pending, writer)
                if log:
                    speed = progress.update(done, sum(sizes.values()))
                    record = {**values, 'learning_rate': float(rate(t)), **speed}
                    LOG.info(monitor.line(done, config.steps, record))
                if score:
                    with progress.pause():
                        scores = evaluator(getattr(current, config.eval.network), broken_off)
                score = score and scores is not None
                if score:
                    record['eval_miou'] = _number(scores['miou'])
                    LOG.info(
                        'step %d: mIoU %.2f on %s', done, 100 * record['eval_miou'], evaluator.name
                    )
                if record:
                    writer.write(done, record)
                stop = stop or parallel.stops(2 * done + 1, asked() > 0)  # while it was evaluated
                if score or stop or done % config.checkpoint_every == 0:
                    _finite(pending, writer)
                    known = score and scores['miou'] is not None
                    evaluated = {'miou': scores['miou']} if known else None
                    with progress.pause():
                        checkpoints.save(done, current, meta, evaluated)
                if stop:
                    scores = scores if score else None
                    break
        best = checkpoints.best()

    if stop and (scores is None or done < config.steps):
        raise interrupt.Stopped(done, asked() or signal.SIGTERM)
    if scores is None:
        LOG.info('%s is trained to its last step %d already', workdir, start)
        scores = evaluator(getattr(current, config.eval.network))
    return evaluate.report(workdir, config, evaluator, scores, int(current.step), split, best)


def _number(value: float | None) -> float:
    """Gives NaN for a score of nothing: a split that is void everywhere."""
    return np.nan if value is None else value


def _claim(config: ConfigDict, workdir: pathlib.Path, lock: contextlib.ExitStack) -> None:
    stored.claim(config, workdir)
    lock.enter_context(stored.lock(workdir))


def _warn_of_devices(
    config: ConfigDict, layout: parallel.Layout, checkpoints: checkpoint.Checkpoints
) -> None:
    """Warns where another number of devices makes other micro-batches than before."""
    before = checkpoints.meta(checkpoints.latest_step).get('devices')
    if config.accumulate_steps > 1 and before not in (None, len(layout.devices)):
        LOG.warning(
            'warning: accumulate_steps cuts the batch of each device, so that on %d devices other '
            'images are normalised together than before on %d',
            len(layout.devices),
            before,
        )


def _same_images(workdir: pathlib.Path, split: Mapping[str, Any]) -> None:
    """Raises ValueError, in words, unless the run in DIR was trained on these images."""
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
    """Says how many images a step takes, in all and on each process and device.

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


def _compile(layout: parallel.Layout, step: Any, current: Any, batch: Any) -> Any:
    """Compiles a step and says how long that took and what memory it asks for."""
    began = time.perf_counter()
    program = layout.compile_step(step, current, batch)
    LOG.info('compiled the step in %.1f s', time.perf_counter() - began)
    LOG.info('%s', cost.line(cost.cost(program)))
    return program


def _finite(pending: dict[int, Mapping], writer: monitor.Writer) -> dict[str, float]:
    """Fetches the last step's metrics after checking, and forgetting, every step since the last.

    Raises:
        FloatingPointError: at the first step that is not finite, with its numbers, which are
            written to the record first. Loss, gradient and update finite: so are the weights.
    """
    values = {}
    for step, metrics in jax.device_get(pending).items():
        values = {name: float(value) for name, value in metrics.items()}
        checked = [values[name] for name in ('loss', 'gradient_norm', 'update_norm')]
        if not np.isfinite(checked).all():
            writer.write(step, values)
            shown = ' · '.join(f'{name} {value:.4g}' for name, value in values.items())
            raise FloatingPointError(
                f'step {step}: loss, gradient or update is not finite ({shown}); the last '
                'checkpoint before it is kept'
            )
    pending.clear()
    return values
