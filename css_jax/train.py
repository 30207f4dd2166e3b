"""The training loop, from top to bottom: prepare, loop, finish."""

import contextlib
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.config import defaults
from css_jax.data import splits, streams
from css_jax.evaluation import evaluator, pictures, results, tables
from css_jax.parallel import cost
from css_jax.prepare import Run, prepare
from css_jax.run import checkpoint, diagnostics, memory, metrics, signals, wandb_run
from css_jax.run import folder as run_folder
from css_jax.run import progress as progresses

LOG = logging.getLogger('css_jax')
_COMPILING = 0.001  # seconds that a CPU of 2 cores takes for a line of a program, about


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Train one run, or resume it where DIR has its checkpoints, then evaluate it.

    Args:
        config: see `css_jax.config`.
        workdir: the run's folder; made if missing.

    Returns:
        The results, as written to DIR/results.json.

    Raises:
        ValueError: the configuration is impossible, cannot be trained or evaluated, or is not the
            one DIR was trained with.
        BlockingIOError: another process is training in DIR.
        FloatingPointError: a loss, gradient or update is not finite; the last checkpoint stays.
        css_jax.run.signals.Stopped: SIGTERM or Ctrl-C came; the last step is saved.
    """
    workdir = pathlib.Path(workdir)
    run = prepare(config, workdir)
    lock = contextlib.ExitStack()  # of process 0, held until the end
    parallel.on_primary(_claim, run.config, workdir, lock)
    _announce(run)
    tracker = wandb_run.WandbRun(
        run.config.wandb, workdir, run.config.to_dict(), parallel.primary()
    )
    with contextlib.closing(tracker):
        found = _trained(run, workdir, lock, tracker)
        tracker.results(found)
    return found


def _trained(
    run: Run, workdir: pathlib.Path, lock: contextlib.ExitStack, tracker: wandb_run.WandbRun
) -> dict[str, Any]:
    """Train a run that is prepared, see `train`; the lock is given back where training ends."""
    config, layout, every = run.config, run.layout, run.every
    needs: dict[str, float | None] = {}  # of the step that was compiled last
    with memory.start():
        current = run.make(np.uint32(config.seed), run.given)
    arrays = jax.tree.leaves(current.student.params)
    size = sum(array.nbytes for array in arrays) / 2**20
    LOG.info('network: %s parameters, %.1f MiB (--mode preview lists them)',
             f'{sum(array.size for array in arrays):,}', size)  # fmt: skip
    for line in run.batches:
        LOG.info('%s', line)

    with (
        lock,
        contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints,
        signals.caught() as asked,
    ):
        if checkpoints.latest_step is not None:
            current = checkpoints.restore(current)
            LOG.info('resuming from step %d', int(current.step))
            _warn_of_devices(config, layout, checkpoints)
        start = done = int(current.step)
        if start < config.steps:
            parallel.on_primary(run_folder.note_start, workdir, start, layout.devices)
        meta = {**run.split, 'devices': len(layout.devices)}
        progress = progresses.Progress(start, config.steps)
        primary = parallel.primary()

        def broken_off() -> bool:
            """Of an evaluation: several processes would have to agree at every batch."""
            return asked() > 0 and parallel.process()[1] == 1

        def save() -> None:
            with memory.training(config, needs):
                _finite(pending, writer)
            with progress.pause():
                checkpoints.save(done, current, meta)

        def score() -> dict[str, Any] | None:
            """Evaluate the state, which is saved already; None if that is broken off."""
            with progress.pause():
                with memory.evaluation(config):
                    scores = evaluator.evaluate(every, current, broken_off)
                if scores is not None:
                    writer.write(done, _evaluated(scores))
                    if primary:
                        for name, one in every.items():
                            picture = pictures.samples(one.samples, one.colours)
                            writer.picture(done, name, picture)
                    LOG.info('step %d: %s', done, _shown(scores, every))
                    if (miou := results.mean(scores)) is not None:
                        checkpoints.score(done, miou)
            return scores

        with (
            contextlib.closing(metrics.Writer(workdir, start, primary, tracker)) as writer,
            contextlib.closing(metrics.Profile(workdir, config.profile, primary)) as profile,
            contextlib.closing(progresses.Bar(start, config.steps, primary)) as bar,
        ):
            pending: dict[int, Mapping] = {}  # step -> metrics, still on the device
            # One that was broken off, or has failed, left its step saved but without a score.
            lacks_score = _due(start, config) and checkpoints.lacks_score(start)
            scores = score() if start and lacks_score else None
            stop, phase = bool(start and lacks_score and scores is None), None
            for t in range(start, start if stop else config.steps):
                if phase is None or t == phase.until:
                    phase = next(phase for phase in run.phases if t < phase.until)
                    with progress.pause():
                        batches = streams.train_batches(
                            config.data, config.seed, t, *parallel.process(),
                            names=phase.sizes, damaged=run.damaged,
                        )  # fmt: skip
                        with memory.training(config, needs):
                            batch = layout.place(next(batches))
                            step = _compile(phase.program, current, batch, needs)
                else:
                    with memory.training(config, needs):
                        batch = layout.place(next(batches))
                profile.before(t)
                with memory.training(config, needs):
                    with jax.profiler.StepTraceAnnotation('train', step_num=t):
                        current, pending[t + 1] = step(current, batch)
                    profile.after(t, pending[t + 1])
                    # The host is one step ahead, not fifty: those would hold their batches' memory,
                    # and be waited for when the run is to stop.
                    jax.block_until_ready(pending.get(t))

                done, scores = t + 1, None
                bar.step()
                due = _due(done, config)
                if done == config.steps or done % config.log_every == 0:
                    with memory.training(config, needs):  # where its error comes to light
                        values = _finite(pending, writer)
                    rates = {name: float(rate(t)) for name, rate in run.rates.items()}
                    speed = progress.update(done, sum(phase.sizes.values()))
                    record = {**values, **rates, **speed}
                    LOG.info(progresses.line(done, config.steps, record))
                    writer.write(done, record)
                    to_go = progresses.duration(record['seconds_to_go'])
                    bar.say(to_go=to_go, loss=f'{record["loss"]:.3f}')
                stop = parallel.stops(2 * done, asked() > 0)
                # Saved before it is scored: an evaluation that fails loses no step.
                kept = due or stop or done % config.checkpoint_every == 0
                if kept:
                    save()
                if due and not stop:  # after which seconds may be left
                    scores = score()
                    if scores and (miou := results.mean(scores)) is not None:
                        bar.say(mIoU=f'{100 * miou:.2f}')
                stop = parallel.stops(2 * done + 1, asked() > 0) or stop
                if stop:
                    if not kept:
                        save()
                    break
        best = checkpoints.best()

    if stop and (scores is None or done < config.steps):
        raise signals.Stopped(done, asked() or signal.SIGTERM)
    if scores is None:
        LOG.info('%s is trained to its last step %d already', workdir, start)
        with memory.evaluation(config):
            scores = evaluator.evaluate(every, current)
    found = results.report(workdir, config, every, scores, done, run.split, best)
    if primary:
        for name, records in run.damaged.items():
            if records:
                LOG.info('note: %d of the %d images of stream %s could not be read, and others '
                         'took their places', len(records), len(run.ids[name]), name)  # fmt: skip
        for note in diagnostics.notes(config, metrics.read(workdir), found):
            LOG.info('note: %s', note)
    return found


def _announce(run: Run) -> None:
    """Say what is trained on what, and what is odd about it."""
    config, method = run.config, run.method
    own = {path for path, key in method.keys.items() if callable(key.default)}
    changed = defaults.departures(config, (*method.defaults, *own))
    column = f', follow={config.follow}' if 'follow' in config else ''
    LOG.info('method %s%s; otherwise: %s', config.method, column, ', '.join(changed) or 'nothing')
    for warning in [*run.warnings, *splits.warnings(config.data, run.ids)]:
        LOG.warning('warning: %s', warning)
    for line in splits.report(config.data, run.ids):
        LOG.info('%s', line)
    LOG.info('split hash %s', run.split['split_hash'])


def _due(done: int, config: ConfigDict) -> bool:
    """Say whether the state after so many steps is to be evaluated."""
    every = config.eval.every
    return done == config.steps or (every > 0 and done % every == 0)


def _evaluated(scores: Mapping[str, Mapping]) -> dict[str, float]:
    """Return what the record has of scores: mean mIoU, of several each one, and numbers beside."""
    found = {'eval_miou': _number(results.mean(scores))}
    if len(scores) > 1:
        found |= {f'eval_miou_{name}': _number(one['miou']) for name, one in scores.items()}
    for name, one in scores.items():
        suffix = f'_{name}' if len(scores) > 1 else ''
        more = results.numbers(one)
        found |= {f'eval_{known}{suffix}': _number(value) for known, value in more.items()}
    return found


def _shown(scores: Mapping[str, Mapping], every: Mapping[str, evaluator.Evaluator]) -> str:
    shown = []
    for name, one in every.items():
        miou = f'mIoU {100 * _number(scores[name]["miou"]):.2f}' if one.masks else 'no mIoU'
        more = results.numbers(scores[name])
        shown += [f'{miou} on {one.name}']
        shown += [f'{known} {tables.number(value)}' for known, value in more.items()]
    return ', '.join(shown)


def _number(value: float | None) -> float:
    """Return NaN for a score of nothing, as of a split that is void everywhere."""
    return np.nan if value is None else value


def _claim(config: ConfigDict, workdir: pathlib.Path, lock: contextlib.ExitStack) -> None:
    run_folder.claim(config, workdir)
    lock.enter_context(run_folder.lock(workdir))


def _warn_of_devices(
    config: ConfigDict, layout: parallel.Layout, checkpoints: checkpoint.Checkpoints
) -> None:
    """Warn where another number of devices makes other micro-batches than before."""
    before = checkpoints.meta(checkpoints.latest_step).get('devices')
    if config.accumulate_steps > 1 and before not in (None, len(layout.devices)):
        LOG.warning(
            'warning: accumulate_steps cuts the batch of each device, so that on %d devices other '
            'images are normalised together than before on %d',
            len(layout.devices),
            before,
        )


def _compile(program: Callable, current: Any, batch: Any, needs: dict[str, float | None]) -> Any:
    """Compile a step, say how long that took and what memory it asks for, and note that."""
    began = time.perf_counter()
    lowered = program.lower(current, batch)
    wait = 'a minute or more'
    if jax.default_backend() == 'cpu':
        wait = f'about {max(1, round(_COMPILING * lowered.as_text().count(chr(10))))} s'
    LOG.info('compiling the step, %s where no earlier run has', wait)
    program = lowered.compile()
    LOG.info('compiled the step in %.1f s', time.perf_counter() - began)
    needs.update(cost.cost(program))
    LOG.info('%s', cost.line(needs))
    return program


def _finite(pending: dict[int, Mapping], writer: metrics.Writer) -> dict[str, float]:
    """Fetch the last step's metrics after checking, and forgetting, every step since the last.

    Raises:
        FloatingPointError: at the first step that is not finite, with its numbers, which are
            written to the record first. Loss, gradient and update finite: so are the weights.
    """
    values = {}
    for step, found in jax.device_get(pending).items():
        values = {name: float(value) for name, value in found.items()}
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
