"""The keys of UniMatch, V2, V1 and FixMatch, and what the published runs have.

Those are of the authors' programs and logs (CVPR 2023; TPAMI 2025): V2 on DINOv2 by AdamW, V1 on
ResNets by SGD, so that the optimiser follows the backbone here. An epoch is a pass over the
unlabelled images, dealt out to four GPUs, without the last batch that is not full: of N images in
batches of B in all S = floor(ceil(N / 4) / (B / 4)) steps.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import models
from css_jax import optimizer as optimizers
from css_jax.keys import Key, ascending, of_dataset, share
from css_jax.methods import epochs, supervised, views
from css_jax.models import published
from css_jax.models.backbones import PLAIN
from css_jax.ops import schedules

_MANY = 10**9
_GPUS = 4  # the authors'
_FAST = 1e-2  # AdamW moves every weight by about the rate in a step: more is of SGD


def by_optimizer(adamw: Any, sgd: Any) -> Callable[[Any], Any]:
    """Return a default that depends on the optimiser: a value of each, or a function that gives it.

    None leaves it to the dataset.
    """

    def value(c: Any) -> Any:
        chosen = adamw if c.unimatch.optimizer == 'adamw' else sgd
        return chosen(c) if callable(chosen) else chosen

    return value


def _sgd(c: Any) -> bool:
    return c.unimatch.optimizer == 'sgd'


# Of the two strong views; what is missing here of `views.AUGMENT` is done on the host.
STRONG = {
    'augment.jitter_prob': views.AUGMENT['augment.jitter_prob'],
    **{
        f'augment.{name}': views.AUGMENT[f'augment.{name}']._replace(default=spread)
        for name, spread in
        {'brightness': 0.5, 'contrast': 0.5, 'saturation': 0.5, 'hue': 0.25}.items()
    },
    'augment.grey_prob': Key(0.2, 'probability that an image becomes grey', range=(0, 1)),
    'augment.blur_prob': views.AUGMENT['augment.blur_prob'],
    'augment.blur_sigma': views.AUGMENT['augment.blur_sigma']._replace(default=(0.1, 2.0)),
    'unimatch.mix_prob': Key(0.5, 'probability that an image gets a box of another', range=(0, 1)),
    'unimatch.box_area': Key(
        (0.02, 0.4), "of a box, as a share of the image's", expected=share
    ),
    'unimatch.box_ratio': Key(
        (0.3, 1 / 0.3), 'of a box, its height divided by its width', expected=ascending
    ),
    'unimatch.group': Key(
        0, 'images that mix with one another, and of which half are spared the dropout; 0: those '
        "that a device has (the authors': 4 or 2, of one GPU)", range=(0, _MANY),
    ),
}  # fmt: skip
# Of all three methods.
_COMMON = {
    **views.SUPERVISED,
    **supervised.BURN_IN,
    **STRONG,
    'unimatch.epochs': Key(
        of_dataset(0, voc=60, cityscapes=180, ade20k=60, coco=20),
        'of the run, which give `steps`; 0: none', like=60, range=(0, _MANY),
    ),
    'unimatch.images': Key(
        epochs.images('unlabelled'), 'in an epoch; the unlabelled ones, counted', like=1,
        range=(1, _MANY),
    ),
    'unimatch.optimizer': Key(
        lambda c: 'adamw' if c.model.backbone in PLAIN else 'sgd',
        'adamw | sgd; that of transformers is adamw', like='sgd', choices=('adamw', 'sgd'),
    ),
    'unimatch.head_rate': Key(
        by_optimizer(40.0, of_dataset(1.0, voc=10.0, coco=10.0)),
        'factor of the learning rate of all that is not the backbone', like=1.0, range=(0, 1e3),
    ),
    'unsupervised.weight': views.UNSUPERVISED['unsupervised.weight']._replace(
        comment='of the losses of unlabelled images together'
    ),
    'unsupervised.threshold': views.UNSUPERVISED['unsupervised.threshold']._replace(
        default=0.95, comment='tau'
    ),
    'optimizer.momentum': Key(0.9, 'of SGD', range=(0, 1), only=_sgd),
    'optimizer.nesterov': Key(False, 'of SGD', only=_sgd),
}  # fmt: skip
_DROPOUT = {
    'unimatch.dropout': Key(
        True, 'each channel of the features goes to one of the two views alone'
    ),
}
FIXMATCH_KEYS = {
    **_COMMON,
    'teacher.decay': Key(
        0.996, 'EMA of parameters and statistics, min(1 - 1/(t+1), decay)', range=(0, 1)
    ),
}
KEYS = FIXMATCH_KEYS | _DROPOUT
V1_KEYS = {
    **_COMMON,
    'unimatch.epochs': _COMMON['unimatch.epochs']._replace(
        default=of_dataset(0, voc=80, cityscapes=240, coco=30)
    ),
    'unimatch.drop_prob': Key(
        0.5, 'of a channel of the features, in the view that is perturbed', range=(0, 0.99)
    ),
    'unsupervised.threshold': _COMMON['unsupervised.threshold']._replace(
        default=of_dataset(0.95, cityscapes=0.0), like=0.95
    ),
}


def steps_per_epoch(config: Any) -> int:
    """Return S of the unlabelled images."""
    return loader_steps(config.unimatch.images, config.data.streams.unlabelled.batch_size)


def loader_steps(images: int, batch_size: int) -> int:
    """Return S of so many images, at least 1."""
    gpus = math.gcd(_GPUS, batch_size)
    return max(1, -(-images // gpus) // (batch_size // gpus))


def _cnn(value: Any) -> Callable[[Any], Any]:
    """Return a default of convolutional networks alone."""
    return lambda c: None if c.model.backbone in PLAIN else value


DEFAULTS = {
    'steps': epochs.steps('unimatch', steps_per_epoch),
    'optimizer.learning_rate': by_optimizer(5e-6, of_dataset(voc=1e-3, cityscapes=5e-3, coco=4e-3)),
    'optimizer.weight_decay': by_optimizer(0.01, of_dataset(voc=1e-4, cityscapes=1e-4, coco=1e-4)),
    'supervised.loss': of_dataset(cityscapes='ohem'),
    'supervised.ohem_kept': 100_000,
    'model.output_stride': _cnn(16),
    'model.stem': published.stem,
    'model.first_dilation': _cnn('previous'),
    'model.head_convs': 2,
    'data.streams.*.batch_size': of_dataset(voc=16, cityscapes=8, ade20k=8, coco=16),
    'data.streams.*.crop': of_dataset(
        voc=(518, 518), cityscapes=(798, 798), ade20k=(518, 518), coco=(518, 518)
    ),
    'data.streams.*.resize': (0.5, 2.0),
    'data.streams.*.resize_law': 'long_side',
    'data.streams.*.flip_prob': 0.5,
    'data.streams.*.pad': 'black_corner',
}
V1_DEFAULTS = {
    **DEFAULTS,
    'eval.network': 'student',
    'eval.protocol': of_dataset(cityscapes='sliding_cut'),
    'eval.window': of_dataset(cityscapes=(801, 801)),
    'data.streams.*.batch_size': of_dataset(voc=8, cityscapes=8, coco=8),
    'data.streams.*.crop': of_dataset(voc=(321, 321), cityscapes=(801, 801), coco=(513, 513)),
}


def optimizer(config: ConfigDict) -> optimizers.Optimizer:
    """Return AdamW or SGD, with a rate for the backbone and one for all else.

    The authors set the rate of a step behind it, so that the second step has that of the first.
    """
    c, factor = config.optimizer, config.unimatch.head_rate
    rate = schedules.poly(c.learning_rate, config.steps, c.power, c.floor, c.warmup_steps, lag=1)
    if config.unimatch.optimizer == 'adamw':
        return optimizers.adamw(config, head_factor=factor, rate=rate)
    return optimizers.sgd(config, optimizers.heads(factor), rate=rate)


def check(config: ConfigDict) -> None:
    """Refuse values of all three methods that contradict each other.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    supervised.check_burn_in(config)
    group, size = config.unimatch.group, config.data.streams.unlabelled.batch_size
    if group and size % group:
        raise ValueError(
            f'unimatch.group: got {group}, expected a divisor of '
            f'data.streams.unlabelled.batch_size={size}, or 0'
        )


def check_v2(config: ConfigDict) -> None:
    """Refuse, too, dropout of a network whose features cannot be multiplied.

    Raises:
        ValueError: as `check`.
    """
    check(config)
    if config.unimatch.dropout:
        _check_scaled(config, ', or unimatch.dropout=False')


def check_v1(config: ConfigDict) -> None:
    """Refuse, too, such a network, and crops of two sizes.

    Raises:
        ValueError: as `check`.
    """
    check(config)
    _check_scaled(config)
    crops = {name: tuple(config.data.streams[name].crop) for name in ('labelled', 'unlabelled')}
    if len(set(crops.values())) > 1:
        raise ValueError(
            f'data.streams.*.crop: got {crops}, expected the same, as both are one batch of the '
            'network'
        )


def _check_scaled(config: ConfigDict, otherwise: str = '') -> None:
    """Raise ValueError where no feature of the network can be multiplied."""
    if not models.FAMILIES[config.model.family].scaled:
        able = ' or '.join(repr(name) for name, known in models.FAMILIES.items() if known.scaled)
        raise ValueError(
            f'model.family: got {config.model.family!r}, expected {able} with method '
            f'{config.method}, which drops channels of its features{otherwise}'
        )


def warnings(config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """Say where an epoch is not one pass over the unlabelled images.

    Args:
        config: finalised.
        images: stream -> how many images it has.
    """
    found, counted = [], config.unimatch.images
    if images['unlabelled'] != counted:
        found.append(
            f'unimatch.images={counted} is what epochs are counted by, but stream unlabelled has '
            f'{images["unlabelled"]} images'
        )
    return found + epochs.warnings(config, 'unimatch', steps_per_epoch(config)) + fast(config)


def fast(config: ConfigDict) -> list[str]:
    """Say where AdamW has a learning rate of SGD, as files of other backbones set it.

    Args:
        config: finalised.
    """
    rate, factor = config.optimizer.learning_rate, config.unimatch.head_rate
    if config.unimatch.optimizer != 'adamw' or max(rate, rate * factor) <= _FAST:
        return []
    return [
        f'optimizer.learning_rate={rate} and unimatch.head_rate={factor} are large for AdamW; '
        'published for DINOv2: 5e-6 and 40'
    ]
