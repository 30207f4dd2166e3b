"""Evaluation: one confusion matrix over a split, under a protocol (see `css_jax.protocols`)."""

import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np
from clu import metrics as clu_metrics
from ml_collections import ConfigDict

from css_jax import checkpoint, methods, monitor, parallel, protocols, state, stored
from css_jax import config as configs
from css_jax.data import evaluation, sources, splits
from css_jax.methods import views
from css_jax.ops import losses, metrics
from css_jax.state import Variables

LOG = logging.getLogger('css_jax')
RESULTS = 'results.json'
_QUIET = 10.0  # seconds between lines of progress


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
    """Evaluates a network's variables on `config.eval`; compiles once for each size of image.

    Attributes:
        name: of the split, with its dataset.
        class_names: of the network's classes.
        protocol: how the split is scored, in words.
    """

    def __init__(self, config: ConfigDict):
        """Opens the split.

        Args:
            config: finalised, see `css_jax.config.finalise`.

        Raises:
            ValueError: an image is larger than `eval.pad_to`; see also `css_jax.data.sources.load`.
        """
        c = config.eval
        self._source = sources.load(c.dataset, c.split, config.data.dir)
        self._images = evaluation.groups(
            self._source, c.protocol, pad_to=tuple(c.pad_to), window=protocols.window(config)
        )
        # Sliding keeps a map of the whole image, so one image at a time: its windows are the batch.
        batch_size = 1 if c.protocol == 'sliding' else c.batch_size
        # A multiple of the devices: what is too many is filled with images that count nowhere.
        self._layout = parallel.Layout()
        devices = len(self._layout.devices)
        self._batch_size = -(-batch_size // devices) * devices
        self._crop = c.protocol == 'random_crop'
        self.name = f'{self._source.dataset}:{c.split}'
        self.protocol = protocols.describe(config, next(iter(self._images)))
        names = self._source.class_names
        # A network may have more classes than the images: those of another dataset.
        self.class_names = (*names, *(f'class {i}' for i in range(len(names), config.num_classes)))
        predict = protocols.prediction(config)

        def measure(variables: Variables, batch: Mapping[str, jax.Array]) -> Scores:
            logits, labels = predict(variables, batch['image']), views.host_labels(batch['label'])
            return Scores.single_from_model_output(labels=labels, logits=logits)

        self._measure = self._layout.compile_sums(measure)
        if (sizes := len(self._images)) > 1:
            count = f'{len(self._source)} images of {sizes} sizes, {sizes} compilations'
            LOG.info('evaluation on %s: %s', self.name, count)

    def __call__(
        self, variables: Variables, broken_off: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Gives 'miou', 'iou', 'accuracy' in [0, 1] and 'loss' of the variables.

        Args:
            variables: on all devices, as `css_jax.parallel.Layout.replicated` has them.
            broken_off: asked before every batch.

        Returns:
            The scores, None where it was broken off.
        """
        index, processes = parallel.process()
        total, count = None, evaluation.batch_count(self._images, self._batch_size)
        batches = evaluation.eval_batches(
            self._source,
            self._images,
            batch_size=self._batch_size,
            crop=self._crop,
            process_index=index,
            process_count=processes,
        )
        for done, batch in enumerate(batches, start=1):
            if broken_off():
                return None
            part = self._measure(variables, self._layout.place(batch))
            total = part if total is None else total.merge(part)
            now = time.perf_counter()
            if done == 1:  # has compiled: the speed is that of the batches after it
                start = told = now
            elif now - told > _QUIET and done < count:
                to_go = (now - start) / (done - 1) * (count - done)
                share = f'{100 * done // count}% of {self.name}'
                LOG.info('evaluated %s · to go %s', share, monitor.duration(to_go))
                told = now
        values = total.compute()
        return {**values['confusion'], 'loss': values['loss']}


def evaluate(
    config: ConfigDict, workdir: str | pathlib.Path, which: str = 'last'
) -> dict[str, Any]:
    """Restores a checkpoint's network and evaluates it.

    DIR/results.json is the run's own result, what reports and sweeps read: its last checkpoint
    under the protocol it was trained with. Any other evaluation has a file of its own, named by
    what differs, such as DIR/results_best_network=student.json; see `results_file`.

    Args:
        config: the run's configuration; keys that do not change what was trained
            (`css_jax.stored.FREE`), and `eval`, may differ.
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
        stored.match(config, workdir, (*stored.FREE, 'eval.'))
        evaluator = Evaluator(config)
    parallel.agree('configuration', stored.lines(config))
    parallel.agree('checkpoint', which)
    step = checkpoint.find(workdir, which)
    like = parallel.Layout().shapes(state.shapes(methods.context(config)))
    variables = checkpoint.restore_network(workdir, step, like, config.eval.network)
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    best, meta = checkpoints.best(), checkpoints.meta(step)
    checkpoints.close()
    trained = configs.finalise(stored.load(workdir))
    if any(config.eval[key] != trained.eval[key] for key in protocols.KEYS):
        best = None  # it was scored in another way
    if note := splits.changed_since(meta, config.data):
        LOG.warning('warning: %s', note)
    scores = evaluator(variables)
    file = results_file(config, trained, which)
    return report(workdir, config, evaluator, scores, step, meta, best, file)


def results_file(config: ConfigDict, trained: ConfigDict, which: str = 'last') -> str:
    """Names the file of an evaluation by how it differs from the run's own.

    Args:
        config: of the evaluation, finalised.
        trained: the run's, finalised.
        which: 'last', 'best' or a step.

    Returns:
        'results.json' for the last checkpoint under the run's own protocol; otherwise the
        checkpoint, if not the last, and every changed key of `css_jax.protocols.KEYS` with its
        value are added, as in 'results_best_flip=True_scales=0.5,1.0.json'.
    """
    parts = [] if which == 'last' else [which if which == 'best' else f'step{int(which)}']
    for key in protocols.KEYS:
        value = config.eval[key]
        if value != trained.eval[key]:
            shown = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f'{key}=' + re.sub(r'[^\w.,]+', '-', shown))
    return '_'.join(['results', *parts]) + '.json'


def report(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    evaluator: Evaluator,
    scores: dict[str, Any],
    step: int,
    split: Mapping[str, Any],
    best: tuple[int, float] | None,
    file: str = RESULTS,
) -> dict[str, Any]:
    """Prints scores per class and writes them to a file in DIR.

    Args:
        workdir: the run's folder.
        config: the run's configuration.
        evaluator: what gave the scores.
        scores: as `Evaluator` gives them.
        step: iterations the evaluated weights were trained for.
        split: the training images, as of `css_jax.data.splits.record`.
        best: step and mIoU of the best checkpoint evaluated while it was trained.
        file: see `results_file`.

    Returns:
        What is written.
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
        'protocol': evaluator.protocol,
        'eval': {key: config.eval[key] for key in protocols.KEYS},
        **{key: split[key] for key in ('split_hash', 'streams') if key in split},
    }
    if not parallel.primary():
        return results
    path = pathlib.Path(workdir) / file
    draft = path.with_suffix('.tmp')
    draft.write_text(json.dumps(results, indent=2) + '\n')
    os.replace(draft, path)
    print(f'{config.method}, step {step}, {evaluator.name}\n{evaluator.protocol}')
    print(monitor.scores_table(names, {'IoU %': scores}))
    if best:
        print(f'best evaluated: step {best[0]}, mIoU {100 * best[1]:.2f}')
    print(f'written: {path}')
    return results
