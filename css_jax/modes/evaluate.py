"""--mode evaluate: restore a checkpoint of a run and score it."""

import contextlib
import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax.data import splits
from css_jax.evaluation import evaluator, protocols, results
from css_jax.run import checkpoint, memory
from css_jax.run import folder as run_folder

LOG = logging.getLogger('css_jax')


def evaluate(
    config: ConfigDict, workdir: str | pathlib.Path, which: str = 'last'
) -> dict[str, Any]:
    """Restore a checkpoint's networks and evaluate them.

    DIR/results.json is the run's own result, what reports and sweeps read: its last checkpoint
    under the protocol it was trained with. Any other evaluation has a file of its own, named by
    what differs, such as DIR/results_best_network=student.json; see
    `css_jax.evaluation.results.file_name`.

    Args:
        config: the run's configuration; keys that do not change what was trained
            (`css_jax.run.folder.FREE`), and `eval`, may differ.
        workdir: the run's folder.
        which: 'last', 'best' or a step.

    Returns:
        The results, as written.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the configuration is not the one the run was trained with.
    """
    with parallel.together():
        config = configs.finalise(config, workdir)
        run_folder.match(config, workdir, (*run_folder.FREE, 'eval.'))
        every = evaluator.evaluators(config)
        like = state.networks(methods.METHODS[config.method], methods.context(config))
        evaluator.check(config, every, like)
    parallel.agree('configuration', run_folder.lines(config))
    parallel.agree('checkpoint', which)
    step = checkpoint.find(workdir, which)
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        best, meta = checkpoints.best(), checkpoints.meta(step)
    trained = run_folder.load(workdir)
    if any(config.eval[key] != trained.eval[key] for key in protocols.keys(config)):
        best = None  # it was scored in another way
    if note := splits.changed_since(meta, config.data):
        LOG.warning('warning: %s', note)
    layout = parallel.Layout()
    networks = {
        name: checkpoint.restore_network(workdir, step, layout.replicas(like[name]), name)
        for name in sorted({one.network for one in every.values()})
    }
    with memory.evaluation(config):
        scores = evaluator.evaluate(every, networks)
    file = results.file_name(config, trained, which)
    return results.report(workdir, config, every, scores, step, meta, best, file)
