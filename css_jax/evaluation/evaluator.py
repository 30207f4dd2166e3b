"""The evaluator: one pass over a split under a protocol, for a confusion matrix and more.

See `css_jax.evaluation.protocols` for what the network sees of an image.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from ml_collections import ConfigDict

from css_jax import methods, parallel
from css_jax.data import evaluation, sources, splits
from css_jax.evaluation import pictures, protocols
from css_jax.methods import Evaluation, views
from css_jax.methods.method import Seen, computing
from css_jax.ops import losses, metrics
from css_jax.run import progress
from css_jax.state import TrainState, Variables

LOG = logging.getLogger('css_jax')
_QUIET = 10.0  # seconds between lines of progress
_SAMPLES = 3  # images of a split that are kept with their predictions


@flax.struct.dataclass
class Confusion(clu_metrics.Metric):
    """Confusion matrix [C, C], rows true; merged on the host in int64."""

    matrix: jax.Array | np.ndarray

    @classmethod
    def from_model_output(cls, labels: jax.Array, logits: jax.Array, **_) -> 'Confusion':
        """Count one batch: labels [B, H, W] with -1 for void, logits [B, H, W, C]."""
        return cls(metrics.confusion(labels, logits.argmax(-1), logits.shape[-1]))

    def merge(self, other: 'Confusion') -> 'Confusion':
        """Add another batch's counts."""
        return Confusion(np.asarray(self.matrix, np.int64) + np.asarray(other.matrix, np.int64))

    def compute(self) -> np.ndarray:
        """Return the matrix."""
        return np.asarray(self.matrix, np.int64)


@flax.struct.dataclass
class PixelLoss(clu_metrics.Metric):
    """Mean cross-entropy of the pixels that are not void; summed on the host in float64."""

    total: jax.Array | np.ndarray
    count: jax.Array | np.ndarray

    @classmethod
    def from_model_output(cls, labels: jax.Array, logits: jax.Array, **_) -> 'PixelLoss':
        """Sum one batch: labels [B, H, W] with -1 for void, logits [B, H, W, C]."""
        return cls(*losses.cross_entropy(logits, labels))

    def merge(self, other: 'PixelLoss') -> 'PixelLoss':
        """Add another batch's sums."""
        return PixelLoss(
            np.float64(self.total) + np.float64(other.total),
            np.float64(self.count) + np.float64(other.count),
        )

    def compute(self) -> float | None:
        """Return the mean; None where all is void."""
        return float(self.total / self.count) if self.count else None


@flax.struct.dataclass
class Sums(clu_metrics.Metric):
    """What a method measures beside, by name; merged on the host in int64 and float64."""

    arrays: dict[str, jax.Array | np.ndarray]

    @classmethod
    def from_model_output(cls, measured: Mapping[str, jax.Array] | None = None, **_) -> 'Sums':
        """Take one batch's sums."""
        return cls(dict(measured or {}))

    def merge(self, other: 'Sums') -> 'Sums':
        """Add another batch's sums."""
        found, more = self.compute(), other.compute()
        return Sums({name: found[name] + more[name] for name in found})

    def compute(self) -> dict[str, np.ndarray]:
        """Return the sums."""
        return {name: _wide(array) for name, array in self.arrays.items()}


@flax.struct.dataclass
class First(clu_metrics.Metric):
    """Predicted classes of a batch's first image, [H, W] int32; merged, those of the first batch.

    It costs no program of its own: the sum over the devices is what the first one has.
    """

    labels: jax.Array | np.ndarray

    @classmethod
    def from_model_output(cls, logits: jax.Array, rank: jax.Array | int = 0, **_) -> 'First':
        """Take the first image of device 0: logits [B, H, W, C], rank of the device."""
        return cls(jnp.where(rank == 0, logits[0].argmax(-1), 0).astype(jnp.int32))

    def merge(self, other: 'First') -> 'First':
        """Keep one's own."""
        del other
        return self

    def compute(self) -> np.ndarray:
        """Return the classes."""
        return np.asarray(self.labels)


@flax.struct.dataclass
class Scores(clu_metrics.Collection):
    """What is measured over a split."""

    first: First

    confusion: Confusion
    loss: PixelLoss
    more: Sums


class Evaluator:
    """Evaluates networks on one split; compiles once for each size of image.

    Attributes:
        name: of the split, with its dataset.
        class_names: of the network's classes.
        colours: theirs, uint8 [C, 3] RGB.
        protocol: a sentence on how the split is scored.
        network: which of a state's networks it is for.
        masks: whether any image of the split has a mask; without there is no mIoU.
        samples: of the latest evaluation, up to three images of the split, always the same, each
            with its true and predicted classes: uint8 [H, W, 3], uint8 [H, W], int32 [H, W].
    """

    def __init__(self, config: ConfigDict, evaluated: Evaluation):
        """Open the split.

        Args:
            config: finalised; `config.eval` says how it is scored.
            evaluated: one of the method's evaluations.

        Raises:
            ValueError: an image is larger than `eval.pad_to`, or the split has no labels or more
                classes than the network; tags are labels where more than mIoU is asked for. See
                also `css_jax.data.sources.load`.
        """
        c = config.eval
        self.network = evaluated.network
        self._source = sources.load(evaluated.dataset, evaluated.split, config.data.dir)
        splits.check_labels('eval.split', self._source, tags=evaluated.more is not None)
        self.masks = bool(self._source.pixels.any())
        window = protocols.window(config, evaluated.dataset)
        self._images = evaluation.groups(
            self._source, c.protocol, pad_to=tuple(c.pad_to), window=window
        )
        # Windows add up in a map of the whole image, so one image at a time: they are the batch.
        batch_size = 1 if c.protocol in protocols.SLIDING else c.batch_size
        # A multiple of the devices: what is too many is filled with images that count nowhere.
        self._layout = parallel.Layout()
        devices = len(self._layout.devices)
        self._batch_size = -(-batch_size // devices) * devices
        self._crop = c.protocol == 'random_crop'
        self.name = f'{self._source.dataset}:{evaluated.split}'
        size = next(iter(self._images))
        self.protocol = protocols.describe(config, size, window, evaluated.network)
        names, classes = self._source.class_names, evaluated.classes
        if len(names) > classes:
            raise ValueError(
                f'evaluation on {self.name}: the network has {classes} classes, expected at least '
                f'{len(names)}'
            )
        # A network may have more classes than the images: those of another dataset.
        self._scores, self._more = evaluated.scores, evaluated.more
        scored = len(self._scores(np.zeros((classes, classes), np.int64))['iou'])
        self.class_names = (*names, *(f'class {i}' for i in range(len(names), scored)))
        own = sources.palette(evaluated.dataset, config.data.dir)
        self.colours = pictures.palette(own, classes)
        ctx = methods.context(config)
        predict = protocols.prediction(config, ctx, evaluated.predict, window)

        def measure(variables: Variables, batch: Mapping[str, jax.Array]) -> Scores:
            logits = predict(variables, batch['image'], batch['size'])
            labels, measured = views.host_labels(batch['label']), {}
            if self._more is not None:
                present = jnp.pad(batch['classes'], ((0, 0), (0, classes - len(names))))
                images = views.normalise(batch['image'], ctx)
                seen = Seen(images, logits, labels, present, batch['size'], window)
                measured = self._more.measures(variables, seen, ctx)
            return Scores.single_from_model_output(
                labels=labels,
                logits=logits,
                measured=measured,
                rank=parallel.rank(parallel.AXIS),
            )

        self.samples: list[tuple[np.ndarray, ...]] = []
        self._measure = self._layout.compile_sums(measure)
        if (sizes := len(self._images)) > 1:
            count = f'{len(self._source)} images of {sizes} sizes, {sizes} compilations'
            LOG.info('evaluation on %s: %s', self.name, count)

    def check(self, shapes: Variables) -> None:
        """Trace the evaluation of one batch, so that what it cannot do is known before training.

        Args:
            shapes: of the network's arrays.
        """
        size = next(iter(self._images))
        batch = {
            'image': jax.ShapeDtypeStruct((self._batch_size, *size, 3), np.uint8),
            'label': jax.ShapeDtypeStruct((self._batch_size, *size), np.uint8),
            'classes': jax.ShapeDtypeStruct(
                (self._batch_size, len(self._source.class_names)), np.bool_
            ),
            'size': jax.ShapeDtypeStruct((self._batch_size, 2), np.int32),
        }
        shapes = self._layout.replicas(shapes)
        measured = jax.eval_shape(self._measure, shapes, self._layout.placed(batch)).more
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), measured)
        with warnings.catch_warnings():  # of divisions by zero
            warnings.simplefilter('ignore')
            found = self._more_scores(zeros.compute())
        if 'miou' in found:
            raise ValueError("got more scores of the name 'miou', expected another name")

    def __call__(
        self, variables: Variables, broken_off: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Return 'miou', 'iou', 'accuracy' in [0, 1] and 'loss' of the variables.

        And 'more', name -> number, list or None, where the method has more scores. 'confusion' is
        the matrix, lists of counts, rows true; None without masks. See also `samples`.

        Args:
            variables: on all devices, as `css_jax.parallel.Layout.replicated` has them.
            broken_off: asked before every batch.

        Returns:
            The scores, None where it was broken off. Without masks all but 'more' are None.
        """
        index, processes = parallel.process()
        total, count = None, evaluation.batch_count(self._images, self._batch_size)
        shown = set(np.linspace(1, count, _SAMPLES).astype(int).tolist())
        self.samples = []
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
            if done in shown:
                self.samples.append(_sample(batch, part.first.compute()))
            now = time.perf_counter()
            if done == 1:  # has compiled: the speed is that of the batches after it
                start = told = now
            elif now - told > _QUIET and done < count:
                to_go = (now - start) / (done - 1) * (count - done)
                share = f'{100 * done // count}% of {self.name}'
                LOG.info('evaluated %s · to go %s', share, progress.duration(to_go))
                told = now
        values = total.compute()
        scores = {**self._scores(values['confusion']), 'loss': values['loss']}
        scores['confusion'] = values['confusion'].tolist() if self.masks else None
        if not self.masks:  # a method may score a class that is nowhere as 0
            scores |= {'miou': None, 'accuracy': None, 'iou': [None] * len(scores['iou'])}
        more = self._more_scores(values['more'])
        return {**scores, 'more': more} if more else scores

    def _more_scores(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the method's scores of its sums, as JSON has them."""
        if self._more is None:
            return {}
        return {name: _plain(value) for name, value in self._more.scores(dict(sums)).items()}


def _sample(batch: Mapping[str, np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return image, true and predicted classes of a batch's first image, without padding."""
    height, width = batch['size'][0]
    found = batch['image'][0], batch['label'][0], labels
    return tuple(x[:height, :width] for x in found)


def _wide(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return an array of the host in float64, or in int64 where it has whole numbers."""
    array = np.asarray(array)
    return array.astype(np.float64 if jnp.issubdtype(array.dtype, jnp.floating) else np.int64)


def _plain(value: Any) -> Any:
    """Return a number, a list of numbers or None, as JSON has it: without numpy and NaN."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if value is None or not math.isfinite(value) else value


def evaluators(config: ConfigDict) -> dict[str, Evaluator]:
    """Open all evaluations of the configuration's method, by name.

    Raises:
        ValueError: see `Evaluator`.
    """
    with computing(f'the evaluations of method {config.method}'):
        found = methods.METHODS[config.method].evaluations(config)
    if not found or any(not name or '/' in name for name in found):  # they name files
        raise ValueError(
            f'method {config.method}: got the evaluations {list(found)}, expected one or more, '
            "with names without '/'"
        )
    return {name: Evaluator(config, evaluated) for name, evaluated in found.items()}


def check(
    config: ConfigDict, every: Mapping[str, Evaluator], networks: Mapping[str, Variables]
) -> None:
    """Trace every evaluation, of a batch of its first size of images.

    Args:
        config: finalised.
        every: from `evaluators`.
        networks: shapes of 'student' and 'teacher', see `css_jax.state.networks`.

    Raises:
        ValueError: one cannot be computed; says which, and what went wrong.
    """
    for name, one in every.items():
        what = f'the evaluation {name!r} of method {config.method}, of its {one.network}'
        if not jax.tree.leaves(networks[one.network]):
            raise ValueError(
                f'eval.network: got {one.network!r}, a network that method {config.method} has not '
                f'(its evaluation {name!r})'
            )
        with computing(what, passes=()):
            one.check(networks[one.network])


def evaluate(
    every: Mapping[str, Evaluator],
    state: TrainState | Mapping[str, Variables],
    broken_off: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]] | None:
    """Return the scores of all evaluations by name, see `Evaluator`; None if broken off.

    Args:
        every: from `evaluators`.
        state: has the networks, by name.
        broken_off: asked before every batch.
    """
    networks = state if isinstance(state, Mapping) else vars(state)
    scores = {}
    for name, one in every.items():
        if (found := one(networks[one.network], broken_off)) is None:
            return None
        scores[name] = found
    return scores
