"""Evaluation: the teacher with its running statistics, one confusion matrix over a split."""

import json
import os
import pathlib
from typing import Any

import flax
import jax
import numpy as np
from clu import metrics as clu_metrics
from ml_collections import ConfigDict

from css_jax import checkpoint, methods, monitor, parallel, state, stored
from css_jax import config as configs
from css_jax.data import sources, streams
from css_jax.methods import views
from css_jax.ops import losses, metrics
from css_jax.state import Variables

RESULTS = 'results.json'
PROTOCOL = 'EMA teacher, running statistics, whole image at its own size, void pixels left out'


@flax.struct.dataclass
class Confusion(clu_metrics.Metric):
    """Confusion matrix [C, C], rows true; merged on the host in int64."""

    matrix: jax.Array | np.ndarray

    @classmethod
    def from_model_output(cls, labels: jax.Array, logits: jax.Array, **_) -> 'Confusion':
        """Counts one batch: labels [B, H, W] with -1 for void, logits [B, H, W, C]."""
        return cls(metrics.confusion(labels, logits.argmax(-1), logits.shape[-1]))

    def merge(self, other: 'Confusion') -> 'Confusion':
        """Adds another batch's counts."""
        return Confusion(np.asarray(self.matrix, np.int64) + np.asarray(other.matrix, np.int64))

    def compute(self) -> dict[str, Any]:
        """Gives mIoU, IoU and pixel accuracy, see `css_jax.ops.metrics.scores`."""
        return metrics.scores(self.matrix)


@flax.struct.dataclass
class PixelLoss(clu_metrics.Metric):
    """Mean cross-entropy of the pixels that are not void; summed on the host in float64."""

    total: jax.Array | np.ndarray
    count: jax.Array | np.ndarray

    @classmethod
    def from_model_output(cls, labels: jax.Array, logits: jax.Array, **_) -> 'PixelLoss':
        """Sums one batch: labels [B, H, W] with -1 for void, logits [B, H, W, C]."""
        return cls(*losses.cross_entropy(logits, labels))

    def merge(self, other: 'PixelLoss') -> 'PixelLoss':
        """Adds another batch's sums."""
        return PixelLoss(
            np.float64(self.total) + np.float64(other.total),
            np.float64(self.count) + np.float64(other.count),
        )

    def compute(self) -> float:
        """Gives the mean."""
        return float(self.total / max(self.count, 1))


@flax.struct.dataclass
class Scores(clu_metrics.Collection):
    """What is measured over a split."""

    confusion: Confusion
    loss: PixelLoss


class Evaluator:
    """Evaluates a network's variables on `config.eval`; compiles once."""

    def __init__(self, config: ConfigDict):
        """Opens the split.

        Args:
            config: finalised, see `css_jax.config.finalise`.
        """
        c = config.eval
        self._config = c
        self._source = sources.load(c.dataset, c.split, config.data.dir)
        self.name = f'{self._source.dataset}:{c.split}'
        streams.eval_size(self._source, tuple(c.pad_to))  # refuses now what would not fit later
        names = self._source.class_names
        # A network may have more classes than the images: those of another dataset.
        self.class_names = (*names, *(f'class {i}' for i in range(len(names), config.num_classes)))
        ctx = methods.context(config)
        method = methods.get(config.method)

        def measure(variables: Variables, images: jax.Array, labels: jax.Array) -> Scores:
            logits = method.predict(variables, views.normalise(images, ctx), ctx)
            return Scores.single_from_model_output(labels=views.host_labels(labels), logits=logits)

        self._measure = parallel.compile(measure)

    def __call__(self, variables: Variables) -> dict[str, Any]:
        """Gives 'miou', 'iou', 'accuracy' in [0, 1] and 'loss' of the variables."""
        total = None
        for batch in streams.eval_batches(
            self._source, batch_size=self._config.batch_size, size=tuple(self._config.pad_to)
        ):
            part = self._measure(variables, batch['image'], batch['label'])
            total = part if total is None else total.merge(part)
        values = total.compute()
        return {**values['confusion'], 'loss': values['loss']}


def evaluate(
    config: ConfigDict, workdir: str | pathlib.Path, which: str = 'last'
) -> dict[str, Any]:
    """Restores a checkpoint's teacher and evaluates it.

    Args:
        config: the run's configuration; keys that do not change what was trained
            (`css_jax.config.FREE`), such as `eval`, may differ.
        workdir: the run's folder.
        which: 'last', 'best' or a step.

    Returns:
        The results, as written to DIR/results.json.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the configuration is not the one the run was trained with.
    """
    config = configs.finalise(config)
    stored.match(config, workdir)
    step = checkpoint.find(workdir, which)
    evaluator = Evaluator(config)
    teacher = checkpoint.restore_teacher(workdir, step, state.shapes(methods.context(config)))
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    best, split_hash = checkpoints.best(), checkpoints.meta(step)['split_hash']
    checkpoints.close()
    return report(workdir, config, evaluator, evaluator(teacher), step, split_hash, best)


def report(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    evaluator: Evaluator,
    scores: dict[str, Any],
    step: int,
    split_hash: str,
    best: tuple[int, float] | None,
) -> dict[str, Any]:
    """Prints scores per class and writes DIR/results.json.

    Args:
        workdir: the run's folder.
        config: the run's configuration.
        evaluator: what gave the scores.
        scores: as `Evaluator` gives them.
        step: iterations the evaluated weights were trained for.
        split_hash: hash of the training images' ids.
        best: step and mIoU of the best evaluated checkpoint.
    """
    names = evaluator.class_names
    results = {
        'method': config.method,
        'seed': config.seed,
        'split': evaluator.name,
        'step': step,
        'miou': scores['miou'],
        'accuracy': scores['accuracy'],
        'loss': scores['loss'],
        'iou': dict(zip(names, scores['iou'], strict=True)),
        'best': {'step': best[0], 'miou': best[1]} if best else None,
        'protocol': PROTOCOL,
        'eval': {key: config.eval[key] for key in ('dataset', 'split', 'pad_to')},
        'split_hash': split_hash,
    }
    path = pathlib.Path(workdir) / RESULTS
    draft = path.with_suffix('.tmp')
    draft.write_text(json.dumps(results, indent=2) + '\n')
    os.replace(draft, path)
    print(f'{config.method}, step {step}, {evaluator.name}')
    print(monitor.scores_table(names, {'IoU %': scores}))
    if best:
        print(f'best evaluated: step {best[0]}, mIoU {100 * best[1]:.2f}')
    return results
