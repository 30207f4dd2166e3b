"""The keys of CoSA, and what its published runs have (arXiv 2402.17891, its authors' program).

Where the program's defaults, its scripts and its logs disagree, these are the logs', which are of
versions before the published one: the paper's numbers are theirs.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import optimizer as optimizers
from css_jax.keys import Key, ascending, factors, of_dataset
from css_jax.methods import cosa_crf
from css_jax.models.backbones import PLAIN
from css_jax.ops import schedules

STREAM = 'images'
THRESHOLDS = ('fixed', 'three', 'two')
_MANY = 10**9


def _energy_side(c: Any) -> int:
    """Return the default of `cosa.energy_side`, from the sides of the crop."""
    height, width = c.data.streams[STREAM].crop
    return max(28, round((height * width) ** 0.5 / 8))


KEYS = {
    'cosa.warmup_steps': Key(
        of_dataset(6000, coco=10_000), 'after which the other losses begin; one step more by '
        'classification alone, as the authors count', like=6000, range=(0, _MANY),
    ),
    'cosa.scales': Key(
        (1.0, 0.5, 1.5), "of the assignment network's views, in this order", any_length=True,
        expected=factors,
    ),
    'cosa.aux_scales': Key(
        'last', "of the early layer's CAMs: last (of cosa.scales, as the authors have it) | all",
        choices=('last', 'all'),
    ),
    'cosa.thresholds': Key(
        'fixed', "fixed (low and high) | three (the authors' option) | two (our reading of the "
        'paper): dynamic, by a mixture of so many Gaussians', choices=THRESHOLDS,
    ),
    'cosa.low': Key(
        of_dataset(0.25, voc=0.2), 'CAM values under it are background', like=0.25, range=(0, 1)
    ),
    'cosa.high': Key(
        of_dataset(0.7, coco=0.65), 'CAM values above it are foreground', like=0.7, range=(0, 1)
    ),
    'cosa.aux_low': Key(0.25, "likewise, of the early layer's CAMs", range=(0, 1)),
    'cosa.aux_high': Key(0.7, 'likewise', range=(0, 1)),
    'cosa.shrink': Key(
        2, 'CAMs are compared with the thresholds at 1/shrink of the size', range=(1, 64)
    ),
    'cosa.weighting': Key(
        'none', 'none | perplexity: our reading of the weights of labels from CAMs',
        choices=('none', 'perplexity'),
    ),
    'cosa.temperature': Key(
        0.01, "of the assignment network's summed logits", range=(1e-6, 1e3)
    ),
    'cosa.cam2seg_weight': Key(0.1, 'of the segmentation by labels from CAMs', range=(0, 1e3)),
    'cosa.seg2cam_weight': Key(0.05, 'of the CAMs by the segmentation', range=(0, 1e3)),
    'cosa.energy_weight': Key(0.05, 'of the dense energy; 0: none', range=(0, 1e3)),
    'cosa.energy_side': Key(
        _energy_side, 'of a square with as many pixels as the energy is computed at; an eighth of '
        "the crop's, at least 28", like=56, range=(4, 1024),
        only=lambda c: c.cosa.energy_weight > 0,
    ),
    'cosa.separation': Key(
        0.0, 'weight of our reading of the contrastive separation; 0: none', range=(0, 1e3)
    ),
    'cosa.head_rate': Key(
        10.0, 'factor of the learning rate of all that is not the backbone', range=(0, 1e3)
    ),
    'cosa.strong_prob': Key(
        1.0, 'probability that colours are changed, by one of nine operations', range=(0, 1)
    ),
    'augment.blur_prob': Key(0.5, 'probability of a Gaussian blur', range=(0, 1)),
    'augment.blur_sigma': Key((0.1, 2.0), 'its deviation in pixels', expected=ascending),
    'eval.crf': Key(
        False, "also score the segmentation behind a fully connected CRF, 'miou_crf'; needs "
        'pydensecrf2',
    ),
    **optimizers.NOT_OF_ADAMW,
    'teacher.decay': Key(0.9994, 'EMA of the parameters, the same from step 0 on', range=(0, 1)),
}  # fmt: skip
DEFAULTS = {
    'steps': of_dataset(32_000, coco=60_000),
    'model.family': 'largefov',
    'model.backbone': 'vit_base',
    'model.output_stride': 16,
    'data.streams.*.batch_size': of_dataset(4, coco=8),
    'data.streams.*.crop': (448, 448),
    'data.streams.*.resize': (0.5, 2.0),
    'data.streams.*.flip_prob': 0.5,
    'data.streams.*.pad': 'black',
    'optimizer.learning_rate': 6e-5,
    'optimizer.warmup_steps': 1500,
    'optimizer.weight_decay': 0.01,
}


def optimizer(config: ConfigDict) -> optimizers.Optimizer:
    """Return AdamW with two rates; a table of positions stays as it is.

    The decay is on all that is trained, norms and biases too. A head whose loss is off has
    gradients of 0, not none: it decays, and Adam counts its steps.
    """
    c = config.optimizer
    floor = c.floor / c.learning_rate if c.learning_rate else 0.0
    rate = schedules.poly_from_warmup(
        c.learning_rate, config.steps, c.warmup_steps, power=c.power, floor=floor
    )
    groups = [optimizers.Group('head', '^head_', rate=config.cosa.head_rate)]
    if config.model.backbone in PLAIN:
        groups.append(optimizers.Group('positions', '^backbone/pos_embed', frozen=True))
    return optimizers.adamw(config, groups, rate=rate)


def check(config: ConfigDict) -> None:
    """Refuse values that contradict each other.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    c, stream = config.cosa, config.data.streams[STREAM]
    if config.model.family != 'largefov':
        raise ValueError(
            f"model.family: got {config.model.family!r}, expected 'largefov', which has the "
            'classifiers and the CAMs'
        )
    for low, high in (('low', 'high'), ('aux_low', 'aux_high')):
        if c[low] > c[high]:
            raise ValueError(f'cosa.{low}: got {c[low]}, expected at most cosa.{high}={c[high]}')
    if c.weighting == 'perplexity' and c.thresholds == 'three':
        raise ValueError(
            "cosa.weighting: got 'perplexity' with cosa.thresholds=three, expected "
            'cosa.thresholds=two or fixed: it has one threshold'
        )
    _check_crop(config, stream)
    if config.eval.crf:
        cosa_crf.check()


def _check_crop(config: ConfigDict, stream: ConfigDict) -> None:
    """Raise ValueError where a view of the crop has no whole number of cells."""
    stride, plain = config.model.output_stride, config.model.backbone in PLAIN
    if plain and any(side % stride for side in stream.crop):
        raise ValueError(
            f'data.streams.{STREAM}.crop: got {tuple(stream.crop)}, expected multiples of '
            f'{stride}, the side of a patch of {config.model.backbone}'
        )
    for scale in config.cosa.scales:
        if any(int(scale * side) < stride for side in stream.crop):
            raise ValueError(
                f'cosa.scales: got {scale} of a crop of {tuple(stream.crop)}, expected views of at '
                f'least {stride} pixels a side'
            )


def warnings(config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """Name what is odd: a warm-up as long as the run, two thresholds where one is used.

    Args:
        config: finalised.
        images: stream -> how many images it has.
    """
    del images
    found = []
    if config.cosa.warmup_steps + 1 >= config.steps:
        found.append(
            f'cosa.warmup_steps={config.cosa.warmup_steps} of steps={config.steps}: the run learns '
            'to classify and never to segment'
        )
    if config.cosa.weighting == 'perplexity' and config.cosa.thresholds == 'fixed':
        found.append(
            'cosa.weighting=perplexity has one threshold, the mean of cosa.low and cosa.high'
        )
    return found
