"""The record that a method is: all that the loop, the evaluator and the configuration ask of it."""

import contextlib
import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jax import Array
from ml_collections import ConfigDict

from css_jax import optimizer
from css_jax.keys import Key
from css_jax.methods import teacher
from css_jax.ops import metrics, resize
from css_jax.state import Context, TrainState, Variables

# What a stream reads of the records beside images, and what may follow any of them.
READS = ('mask', 'classes', 'none')
PADDING = ('+valid', '+box')
_NOTHING: Mapping = MappingProxyType({})


@contextlib.contextmanager
def computing(
    what: str, passes: tuple[type[Exception], ...] = (ValueError, OSError)
) -> Iterator[None]:
    """Turn what the code of a method raises into one line that says where it was.

    Args:
        what: is computed.
        passes: what goes through as it is, since it says already what came and what was expected.

    Raises:
        ValueError: in place of any other exception.
    """
    try:
        yield
    except passes:
        raise
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise ValueError(f'{what} cannot be computed: {reason}') from error


class Seen(NamedTuple):
    """One batch of an evaluation, as `More.measures` gets it.

    Attributes:
        images: [B, H, W, 3] normalised, padded right and bottom.
        logits: [B, H, W, C] float32, those of the protocol.
        labels: [B, H, W] int32, -1 for void and padding.
        classes: [B, C] bool, those of the WHOLE image: by its tags, else by its mask.
        sizes: [B, 2] int32, height and width of each image without padding; see
            `css_jax.ops.resize.part_to` and `to_part`.
        window: height and width that `eval.window` stands for.
    """

    images: Array
    logits: Array
    labels: Array
    classes: Array
    sizes: Array
    window: tuple[int, int]

    @property
    def counted(self) -> Array:
        """Which images count, bool [B]: not those that only fill the last batch.

        Those have no class, and their labels are all void. An image that is void everywhere does
        not count either.
        """
        return self.classes.any(-1)


class More(NamedTuple):
    """Scores beside mIoU, of the same pass over the split.

    Attributes:
        measures: (variables, `Seen`, ctx) -> name -> array: sums over the images of one batch that
            are `Seen.counted`. They are added up over devices, then over batches on the host in
            int64 and float64.
        scores: name -> numpy array, those sums -> name -> number, list of numbers or None. NaN
            becomes None. It is also called with zeros, before training. The name 'miou' is taken.
    """

    measures: Callable[[Variables, Seen, Context], dict[str, Array]]
    scores: Callable[[dict[str, Any]], dict[str, Any]]


class Evaluation(NamedTuple):
    """One thing that a method is scored on.

    Attributes:
        dataset: name in `css_jax.data.sources.DATASETS`, with '/config'.
        split: of the dataset.
        classes: C, channels of the logits; at least as many as the dataset has classes.
        predict: (variables, images [B, H, W, 3] normalised, ctx) -> logits [B, H, W, C] float32.
            Of the protocol 'resized' alone they may be of any size, such as that of the head.
        network: whose variables: 'teacher' or 'student'.
        scores: confusion matrix [C, C], rows true -> 'miou', 'iou' [classes that are scored] and
            'accuracy', see `css_jax.ops.metrics.scores`.
        more: scores beside these, None for none. With them a split that has tags in place of masks
            can be evaluated, without a mIoU.
    """

    dataset: str
    split: str
    classes: int
    predict: Callable[[Variables, Array, Context], Array]
    network: str
    scores: Callable[[Any], dict[str, Any]] = metrics.scores
    more: More | None = None


def no_memory(config: ConfigDict) -> dict:
    """Return no memory."""
    del config
    return {}


def keep_memory(memory: Any, statistics: Any, ctx: Context) -> Any:
    """Return the memory as it is."""
    del statistics, ctx
    return memory


def nothing_given(config: ConfigDict, read: Callable) -> dict:
    """Give nothing to start with."""
    del config, read
    return {}


def no_weights(state: TrainState, ctx: Context) -> dict[str, float]:
    """Weigh every term by 1."""
    del state, ctx
    return {}


def no_phases(config: ConfigDict) -> list:
    """Return no phase but the method itself."""
    del config
    return []


def predict_logits(variables: Variables, images: Array, ctx: Context) -> Array:
    """Return the head 'logits' at the images' size, with running statistics."""
    logits = ctx.evaluate(variables, images)['logits']
    return resize.bilinear(logits, images.shape[1:3])


def on_one_dataset(config: ConfigDict) -> dict[str, Evaluation]:
    """Evaluate the head 'logits' of `config.eval.network` on `config.eval.dataset`."""
    c = config.eval
    found = Evaluation(c.dataset, c.split, config.num_classes, predict_logits, c.network)
    return {c.dataset.partition('/')[0]: found}


class Method(NamedTuple):
    """A published method, as one value of pure functions.

    A hook that there is not, or one of the first four left out, is an error when the method's file
    is imported.

    Attributes:
        streams: stream of `config.data.streams` -> what it reads of the records: 'mask' (labels
            [B, H, W] uint8), 'classes' (classes [B, C] bool, those of the WHOLE image) or 'none'
            (images alone). Each may be followed by '+valid', valid [B, H, W] bool, true where a
            pixel is of the image and not of the padding, or by '+box', which says the same as box
            [B, 4] int32: top, bottom, left, right, the ends exclusive. A name with '*', as in
            'labelled_*', is of every stream that it fits, one at least; see `streams`.
        outputs: config -> head name -> channels: the heads that the network gets.
        targets: (state, batch, keys, ctx) -> (prepared, teacher's batch_stats): all without
            gradient. `prepared` is a NamedTuple (or any pytree) of arrays [B, ...] with an entry an
            example: micro-batches are cut from it.
        loss: (params, state, prepared, keys, ctx) -> (terms, (batch_stats, statistics, metrics)):
            all that is differentiated, of one micro-batch. Terms is name ->
            `css_jax.ops.losses.Term`, this device's sums: the step adds up devices and
            micro-batches, divides once, weighs, and logs 'loss' and 'loss_NAME'. A term never psums
            what depends on the parameters. Metrics is name -> Term, `css_jax.ops.losses.Total` or
            an array that is equal on all devices.
        keys: the configuration's keys that the method reads, beside those of every run: path ->
            `css_jax.keys.Key`. Those of its phases are among them.
        defaults: key -> its value where nobody sets it, or a function of the configuration that
            gives it, None to leave it to the dataset. For any key of the table;
            'data.streams.*.crop' is of every stream, and its function gets the stream's table too.
        weights: (state, ctx) -> name of a term -> its weight, 1 where it is left out. It may
            depend on the step and the memory, never on the micro-batch. Traced ones are logged.
        init_memory: config -> the method's own pytree, such as prototypes or a queue.
        given: (config, read) -> 'student', 'teacher' or 'memory' -> path -> array: what a fresh run
            starts with beside its weights, from files that keys of the method name: read(path, key)
            -> name -> array. Raises ValueError where a file does not fit.
        update_memory: (memory, statistics, ctx) -> memory: once a step, by the statistics of all
            micro-batches, stacked [k, ...].
        init_teacher: (student, key, ctx) -> the teacher's first `Variables`.
        update_teacher: (state, student, batch_stats, ctx) -> teacher, after the optimiser.
        optimizer: config -> (transformation, {'learning_rate': schedule, ...}); what is logged is
            what is given here.
        evaluations: config -> name -> `Evaluation`; results and scores are by name.
        similarity: (variables, memory, images [B, H, W, 3] normalised, ctx) -> [B, H, W] float32 in
            [0, 1]: how near each pixel is to the nearest prototype; None for methods without
            prototypes. `css_jax.predict` shows it.
        phases: config -> [(until step, method)]: what runs before the method itself, such as a
            burn-in. Their streams are among the method's own; network, optimiser and memory are
            the method's.
        check: config -> None; raises ValueError where values contradict each other.
        warnings: (config, images of each stream) -> sentences on what is possible but odd.
    """

    streams: Mapping[str, str]
    outputs: Callable[[ConfigDict], dict[str, int]]
    targets: Callable[..., tuple[Any, Any]]
    loss: Callable[..., tuple[dict, tuple]]
    keys: Mapping[str, Key] = _NOTHING
    defaults: Mapping[str, Any] = _NOTHING
    weights: Callable[[TrainState, Context], Mapping[str, Any]] = no_weights
    init_memory: Callable[[ConfigDict], Any] = no_memory
    given: Callable[[ConfigDict, Callable], Mapping[str, Mapping[str, Any]]] = nothing_given
    update_memory: Callable[[Any, Any, Context], Any] = keep_memory
    init_teacher: Callable[[Variables, Array, Context], Variables] = teacher.copy
    update_teacher: Callable[..., Variables] = teacher.update
    optimizer: Callable[[ConfigDict], tuple[Any, dict]] = optimizer.sgd
    evaluations: Callable[[ConfigDict], dict[str, Evaluation]] = on_one_dataset
    similarity: Callable[[Variables, Any, Array, Context], Array] | None = None
    phases: Callable[[ConfigDict], list] = no_phases
    check: Callable[[ConfigDict], None] = lambda config: None
    warnings: Callable[[ConfigDict, Mapping[str, int]], list[str]] = lambda config, images: []


def streams(method: Method, there: Collection[str]) -> dict[str, str]:
    """Return the streams that a method reads: name -> what it reads, see `Method.streams`.

    Args:
        method: whose.
        there: names of the streams of a configuration.
    """
    found = {}
    for pattern, reads in method.streams.items():
        names = sorted(fnmatch.filter(there, pattern)) if '*' in pattern else [pattern]
        found |= dict.fromkeys(names, reads)
    return found
