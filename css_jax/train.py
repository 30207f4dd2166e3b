"""The training loop, from top to bottom."""

import contextlib
import functools
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from css_jax import checkpoint, evaluate, methods, monitor, optimizer, parallel, state
from css_jax import config as configs
from css_jax import step as steps
from css_jax.data import streams

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
        FloatingPointError: a loss or gradient is not finite; the last checkpoint stays.
    """
    config = configs.finalise(config)
    workdir = pathlib.Path(workdir)
    ids = streams.subsets(config.data)
    split_hash = streams.fingerprint(ids)
    evaluator = evaluate.Evaluator(config)
    configs.claim(config, workdir)
    for name, chosen in ids.items():
        LOG.info('stream %s: %d images', name, len(chosen))

    method = methods.get(config.method)
    tx = method.optimizer(config)
    ctx = methods.context(config)
    current = state.create(method, tx, ctx)
    LOG.info('\n%s', parameter_overview.get_parameter_overview(current.student.params))

    checkpoints = checkpoint.Checkpoints(workdir)
    if checkpoints.latest_step is not None:
        saved = checkpoints.meta(checkpoints.latest_step)
        if saved['split_hash'] != split_hash:
            raise ValueError(
                f'{workdir} was trained on other images: split hash {saved["split_hash"]}, now '
                f'{split_hash}. Take another --workdir, or the dataset it was trained on.'
            )
        current = checkpoints.restore(current)
        LOG.info('going on from step %d', int(current.step))
    start = int(current.step)

    step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    warm = functools.partial(step, method=methods.burn_in())
    step, warm = parallel.compile_step(step), parallel.compile_step(warm)
    rate = optimizer.learning_rate(config)
    writer = monitor.Writer(workdir, start)
    images = sum(s.batch_size for s in config.data.streams.values())
    progress = monitor.Progress(start, config.steps, images)
    batches = streams.train_batches(config.data, seed=config.seed, start_step=start)

    pending: dict[int, Mapping] = {}  # step -> metrics, still on the device
    for t in range(start, config.steps):
        run = warm if t < config.burn_in_steps else step
        first = t in (start, config.burn_in_steps)
        with progress.pause() if first else contextlib.nullcontext():  # compiles
            current, pending[t + 1] = run(current, next(batches))

        done = t + 1
        last = done == config.steps
        log = last or done % config.log_every == 0
        score = last or (config.eval.every and done % config.eval.every == 0)
        save = score or done % config.checkpoint_every == 0
        record, scores = {}, None
        if log or save:
            values = _finite(pending)
            pending.clear()
        if log:
            record = {**values, 'learning_rate': float(rate(t)), **progress.update(done)}
            LOG.info(monitor.line(done, config.steps, record))
        if score:
            with progress.pause():
                scores = evaluator(current.teacher)
            record['eval_miou'] = scores['miou']
            LOG.info('step %d: mIoU %.2f on %s', done, 100 * scores['miou'], evaluator.name)
        if record:
            writer.write(done, record)
        if save:
            meta = {'split_hash': split_hash}
            with progress.pause():
                checkpoints.save(done, current, meta, scores and {'miou': scores['miou']})

    best = checkpoints.best()
    checkpoints.close()
    writer.close()
    if start >= config.steps:
        LOG.info('%s is trained to its last step %d already', workdir, start)
        scores = evaluator(current.teacher)
    return evaluate.report(workdir, config, evaluator, scores, int(current.step), split_hash, best)


def _finite(pending: Mapping[int, Mapping]) -> dict[str, float]:
    """Fetches the last step's metrics after checking every step since the last check."""
    for step, metrics in jax.device_get(pending).items():
        values = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite([values['loss'], values['gradient_norm']]).all():
            raise FloatingPointError(
                f'step {step}: loss or gradient is not finite; the last checkpoint before it is '
                f'kept. The step: {json.dumps(values)}'
            )
    return values
