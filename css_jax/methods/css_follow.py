"""Where CSS's paper and its reference program differ, and what of its settings cannot work.

`config.follow` picks a column for every row: 'default' | 'reference' | 'paper'. A row is the
default of a key of its own, so that a file of configs/ or a flag may still choose otherwise. The
published numbers come from the reference, so our default mostly follows it, its slips aside
(arXiv 2307.09755; sections and equations are the paper's):

- `contrastive.prototype_source`: rho averages the teacher's representations (paper, Eq. 2: labelled
  images and weak view) or the student's (reference: labelled images and strong view).
- `teacher.labelled_pass`: the teacher sees the labelled batch too (reference: in mix and cross, not
  in the baseline). With prototypes of the teacher it must.
- `unsupervised.loss`: 'thresholded', the mean over confident pixels (paper, Eq. 8), or 'weighted',
  each image weighted by its confident share (reference).
- `contrastive.valid_indicator`: delta_w holds for j_rep (paper, Sec. 3.4) or j_lgt (reference),
  where `indicator` is 'both'.
- `unsupervised.cross_indicator`: cross's delta_u holds for j_lgt (paper, Sec. 3.3) or j_rep, which
  at the reference's tau_sim makes L_u exactly 0, where `indicator` is 'both'.
- `contrastive.schedule`: lambda_c is a constant (paper), exp(-5 (e/200)^2) over e passes through
  the labelled images (reference), or the same curve over the run.
- `optimizer.floor`: smallest learning rate; none in the paper, 1e-4 in the reference.
- `contrastive.scope`: L_c over the global batch, where that is cheap (the shared bank), or per
  device.
- `contrastive.hard_threshold`: delta_s, 0.8 on similarity and 0.97 on confidence (the baseline's).
- `contrastive.similarity_temperature`: tau_sim. At the reference's 0.5 j_rep stays under 0.73 with
  21 classes, so where it is thresholded from below the default is 0.1.
- `slips`: the reference keeps indicators as 8-bit images, so that 0.97 acts as 0.9725 and 0.7 as
  0.7020, and mixes with images of the first device alone. `contrastive.unseen` follows it: a class
  without a prototype takes part in the softmax as the zero vector.
- `steps`, `optimizer.learning_rate`, `eval.protocol`, a stream's `batch_size`, `crop`, `resize`:
  the numbers of Sec. 4.1 and of the reference's scripts, whose batches are 4 GPUs' in all. On
  Cityscapes the reference does not resize labelled images and validates on one random crop of each
  image (a slip).

What no column changes: the estimator of L_c (`contrastive.estimator=sampled` draws the paper's own
negatives), the host's filter (`data.resampling=pil`) and the rounding of the deep stem's pooling
(`model.stem_ceil_mode`) are the reference's where these are set.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax.keys import Key
from css_jax.methods import views

COLUMNS = ('default', 'reference', 'paper')
SELECTIVE_TEMPERATURE = 0.1  # tau_sim at which a threshold on j_rep from below can be met

KEYS = {
    'follow': Key(
        'default', 'default | reference | paper: where these differ, see '
        'css_jax/methods/css_follow.py', choices=COLUMNS,
    ),
}  # fmt: skip


def by_column(default: Any, reference: Any, paper: Any) -> Callable[..., Any]:
    """Return the default of a key that depends on `config.follow`.

    Each is a value, or a function of the configuration (and, of a stream's key, of its table) that
    gives it; None leaves it to the dataset.
    """
    columns = dict(zip(COLUMNS, (default, reference, paper), strict=True))

    def value(config: Any, *stream: Any) -> Any:
        chosen = columns[config.follow]
        return chosen(config, *stream) if callable(chosen) else chosen

    return value


def _on_cityscapes(there: Any, elsewhere: Any = None) -> Callable[..., Any]:
    """Return a default that depends on the dataset: a stream's own, else of the evaluation."""

    def value(config: Any, *stream: Any) -> Any:
        dataset = (stream[0] if stream else config.eval).dataset
        return there if dataset.partition('/')[0] == 'cityscapes' else elsewhere

    return value


def _labelled_resize(config: Any, stream: Any) -> Any:
    cityscapes = stream.dataset.partition('/')[0] == 'cityscapes'
    return (1.0, 1.0) if stream.reads == 'none' or cityscapes else None


def _weak_resize(config: Any, stream: Any) -> Any:
    return (1.0, 1.0) if stream.reads == 'none' else None  # the weak view has none


def _weak_pad(config: Any, stream: Any) -> Any:
    return 'reflect' if stream.reads == 'none' else None  # nor a border of one colour


# Of all methods of Table 1; a method adds its own.
DEFAULTS: dict[str, Any] = {
    'steps': by_column(None, 80_000, None),
    'optimizer.learning_rate': by_column(None, 0.0064, None),
    'optimizer.floor': by_column(1e-4, 1e-4, 0.0),
    'eval.protocol': by_column(None, _on_cityscapes('random_crop'), None),
    'data.streams.*.batch_size': by_column(None, _on_cityscapes(16, 32), None),
    'data.streams.*.crop': by_column(None, _on_cityscapes((769, 769)), None),
    'data.streams.*.resize': by_column(_weak_resize, _labelled_resize, _weak_resize),
    'data.streams.*.pad': _weak_pad,
}

# Of those that have unlabelled images.
UNLABELLED = {
    'slips': by_column(False, True, False),
    'unsupervised.loss': by_column('weighted', 'weighted', 'thresholded'),
    'augment.resize': _on_cityscapes((0.5, 2.0)),
}


def scope(c: Any) -> str:
    """Return the default of `contrastive.scope`."""
    return 'global' if c.contrastive.estimator == 'bank' else 'device'


def labelled_pass(c: Any) -> bool:
    """Return the default of `teacher.labelled_pass` with prototypes."""
    return c.teacher.batch_norm == 'own' or c.contrastive.prototype_source == 'teacher'


def hard_threshold(c: Any) -> float:
    """Return the default of delta_s."""
    return 0.97 if c.indicator == 'confidence' else 0.8


def similarity_temperature(c: Any) -> float:
    """Return the default of tau_sim."""
    disputed = [c.contrastive.valid_indicator]
    disputed += [c.unsupervised.cross_indicator] if c.pseudo_label == 'cross' else []
    from_below = c.indicator == 'both' and c.follow != 'reference' and 'similarity' in disputed
    selects = from_below or c.indicator == 'similarity'
    return SELECTIVE_TEMPERATURE if selects else 0.5


def check(config: ConfigDict) -> None:
    """Refuse values of CSS that contradict each other.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    c, teacher = config.contrastive, config.teacher
    of_teacher = c.prototype_source == 'teacher'
    if of_teacher and not teacher.labelled_pass:
        raise ValueError(
            'teacher.labelled_pass: got False, expected True with contrastive.prototype_source='
            'teacher: the prototypes are of the labelled images too'
        )
    if not of_teacher:
        check_labelled_pass(config)
    if c.scope == 'global' and c.estimator == 'sampled':
        raise ValueError(
            'contrastive.scope: got global, expected device with contrastive.estimator=sampled, '
            'which draws from the pixels of one device'
        )


def check_labelled_pass(config: ConfigDict) -> None:
    """Refuse a pass of the teacher that nothing feels.

    Raises:
        ValueError: see above.
    """
    if config.teacher.batch_norm == 'ema' and config.teacher.labelled_pass:
        raise ValueError(
            'teacher.labelled_pass: got True, expected False with teacher.batch_norm=ema: only '
            'statistics of its own would feel it'
        )


def warnings(config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """List what of CSS's settings has no effect or never begins, a sentence each.

    Args:
        config: finalised.
        images: stream -> how many images it has.
    """
    return [*_out_of_reach(config), *_never(config, images)]


def _out_of_reach(config: ConfigDict) -> Iterator[str]:
    """Name thresholds that no pixel can pass.

    Softmax similarity has an upper bound, as cosines have: 1 / (1 + (C-1) exp(-2/tau_sim)).
    """
    c = config.contrastive
    bound = 1 / (1 + (config.num_classes - 1) * math.exp(-2 / c.similarity_temperature))
    alone, both = config.indicator == 'similarity', config.indicator == 'both'
    crossed = config.pseudo_label == 'cross' and config.unsupervised.cross_indicator == 'similarity'
    thresholds = [
        (
            'unsupervised.threshold',
            config.unsupervised.threshold,
            alone or (both and crossed),
            'L_u is 0',
        ),
        (
            'contrastive.valid_threshold',
            c.valid_threshold,
            alone or (both and c.valid_indicator == 'similarity'),
            'no unlabelled pixel enters L_c',
        ),
        (
            'contrastive.hard_threshold',
            c.hard_threshold,
            alone or both,
            'every valid pixel is hard (the reference runs so)',
        ),
    ]
    for key, threshold, on_similarity, effect in thresholds:
        if on_similarity and threshold > bound:
            yield (
                f'{key}={threshold} is above the largest softmax similarity, {bound:.3f} with '
                f'{config.num_classes} classes at similarity_temperature='
                f'{c.similarity_temperature}: {effect}'
            )


def _never(config: ConfigDict, images: Mapping[str, int]) -> Iterator[str]:
    """Name terms that end early or never begin, as they count passes over the labelled images."""
    one_pass = views.steps_per_pass(images['labelled'], config.data.streams.labelled.batch_size)
    if config.contrastive.schedule == 'reference':
        end = config.burn_in_steps + 200 * one_pass
        if end < config.steps:
            yield f'lambda_c is 0 from step {end} of {config.steps} on, as in the reference'
    begin = config.burn_in_steps + config.unsupervised.warmup_passes * one_pass
    if config.pseudo_label == 'cross' and begin >= config.steps:
        yield f'the warm-up ends at step {begin}, after the last of {config.steps}: nothing crosses'
