"""The keys of iMAS, and what its published runs have (arXiv 2211.11335, its authors' program).

An epoch is a pass over the unlabelled images. A run is counted in epochs: 80 on VOC, 240 on
Cityscapes, S steps each. The authors' loader deals N images out to the GPUs, padding to a multiple
of them, and drops what does not fill a batch: S = floor(ceil(N / G) / b) for G GPUs with b images
each, which are a group here. The supervised baseline counts passes over the labelled images, and
keeps the last batch on VOC.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import optimizer as optimizers
from css_jax.keys import Key, of_dataset, share
from css_jax.methods import epochs, views
from css_jax.models import published
from css_jax.models.backbones import PLAIN

_MANY = 10**9

# Of the supervised baseline; the method has them, too.
SUPERVISED_KEYS = {
    **views.SUPERVISED,
    'imas.epochs': Key(
        of_dataset(0, voc=80, cityscapes=240), 'of the run, which give `steps`; 0: none',
        like=80, range=(0, _MANY),
    ),
    'imas.images': Key(
        epochs.images('labelled'), 'in an epoch; the labelled ones, counted', like=1,
        range=(1, _MANY),
    ),
    'imas.head_rate': Key(
        of_dataset(1.0, voc=10.0), 'factor of the learning rate of all that is not the backbone',
        like=1.0, range=(0, 1e3),
    ),
    'imas.auxiliary_weight': Key(
        of_dataset(0.0, cityscapes=0.4), 'of the loss of a second head, on layer3; 0: none',
        like=0.4, range=(0, 1e3),
    ),
}  # fmt: skip
KEYS = {
    **SUPERVISED_KEYS,
    'imas.images': Key(
        epochs.images('unlabelled'), 'in an epoch; the unlabelled ones, counted', like=1,
        range=(1, _MANY),
    ),
    'imas.supervised_epochs': Key(
        0, 'first epochs with labels alone; the teacher is a copy then, and in the next one',
        range=(0, _MANY),
    ),
    'imas.group': Key(
        4, "images that mix with one another (the authors': of one GPU)", range=(1, _MANY)
    ),
    'imas.ignore_background': Key(True, 'class 0 has no weight in the IoU of both networks'),
    'imas.class_weights': Key(True, 'the IoU is weighted by classes; false: mean over classes'),
    'imas.normalised': Key(
        False, 'easiness is divided by the sum of the confident shares; false: by 2'
    ),
    'imas.blend': Key(
        True, 'the strong view is blended by easiness; false: it is strong by that probability'
    ),
    'imas.operations': Key(2, 'on the colours of the strong view, out of 12', range=(1, 12)),
    'imas.box': Key((0.1, 0.9), "sides of CutMix's boxes, of the image's", expected=share),
    'unsupervised.weight': views.UNSUPERVISED['unsupervised.weight']._replace(
        default=3.0, comment='lambda_u'
    ),
    'unsupervised.threshold': views.UNSUPERVISED['unsupervised.threshold']._replace(
        default=of_dataset(0.95, cityscapes=0.7), comment='tau', like=0.95
    ),
    'teacher.decay': Key(
        0.996, 'EMA of parameters and statistics, min(1 - 1/(t+1), decay)', range=(0, 1)
    ),
}  # fmt: skip


def steps_per_epoch(config: Any) -> int:
    """Return S of the method, at least 1."""
    group = config.imas.group
    groups = max(1, config.data.streams.unlabelled.batch_size // group)
    return max(1, -(-config.imas.images // groups) // group)


def supervised_steps_per_epoch(config: Any) -> int:
    """Return S of the supervised baseline, at least 1."""
    images, batch_size = config.imas.images, config.data.streams.labelled.batch_size
    drops = config.eval.dataset.partition('/')[0] == 'cityscapes'
    return max(1, images // batch_size if drops else -(-images // batch_size))


def _deep(value: Any) -> Callable[[Any], Any]:
    """Return a default of the authors' networks alone."""
    return lambda c: value if c.model.backbone in published.DEEP else None


SUPERVISED_DEFAULTS = {
    'steps': epochs.steps('imas', supervised_steps_per_epoch),
    'optimizer.learning_rate': of_dataset(voc=0.001, cityscapes=0.01),
    'optimizer.weight_decay': of_dataset(voc=1e-4),
    'optimizer.nesterov': False,
    'supervised.loss': of_dataset(cityscapes='ohem'),
    'supervised.ohem_kept': 12_500,  # 100,000 of the eight images of a GPU
    'model.output_stride': 16,
    'model.stem': published.stem,
    'model.stem_ceil_mode': True,
    'model.first_dilation': lambda c: None if c.model.backbone in PLAIN else 'previous',
    'model.head_convs': 2,
    'model.low_level_bias': True,
    'eval.network': 'student',
    'eval.protocol': of_dataset(cityscapes='sliding_cut'),
    'eval.window': of_dataset(cityscapes=(769, 769)),
    'data.streams.*.batch_size': of_dataset(voc=16, cityscapes=16),
    'data.streams.*.crop': of_dataset(voc=(513, 513), cityscapes=(769, 769)),
    'data.streams.*.long_side': of_dataset(voc=(250, 1000)),
    'data.streams.*.resize': of_dataset(cityscapes=(0.5, 2.0)),
    'data.streams.*.flip_prob': 0.5,
    'data.streams.*.pad': 'constant_floor',
}
DEFAULTS = {
    **SUPERVISED_DEFAULTS,
    'steps': epochs.steps('imas', steps_per_epoch),
    'supervised.ohem_kept': lambda c: 100_000 // c.imas.group,
    'model.multi_grid': _deep((2, 2, 4)),
    'eval.network': 'teacher',
}


def optimizer(config: ConfigDict) -> optimizers.Optimizer:
    """Return SGD with a rate for the backbone and one for all else."""
    return optimizers.sgd(config, optimizers.heads(config.imas.head_rate))


def check(config: ConfigDict) -> None:
    """Refuse values that contradict each other.

    Raises:
        ValueError: names the key, what came and what was expected.
    """
    streams, group = config.data.streams, config.imas.group
    crops = {name: tuple(streams[name].crop) for name in ('labelled', 'unlabelled')}
    if len(set(crops.values())) > 1:
        raise ValueError(
            f'data.streams.*.crop: got {crops}, expected the same, as all views are one batch of '
            'the network'
        )
    if (size := streams.unlabelled.batch_size) % group:
        raise ValueError(
            f'imas.group: got {group}, expected a divisor of data.streams.unlabelled.batch_size='
            f'{size}'
        )
    if (until := config.imas.supervised_epochs * steps_per_epoch(config)) > config.steps:
        raise ValueError(
            f'imas.supervised_epochs: got {config.imas.supervised_epochs}, which are {until} '
            f'steps; expected at most steps={config.steps}'
        )


def warnings(config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    """Say where an epoch is not one pass over a stream, and where the network is not the authors'.

    Args:
        config: finalised.
        images: stream -> how many images it has.
    """
    found = []
    stream = 'unlabelled' if 'group' in config.imas else 'labelled'
    if images[stream] != config.imas.images:
        found.append(
            f'imas.images={config.imas.images} is what epochs are counted by, but stream {stream} '
            f'has {images[stream]} images'
        )
    per_epoch = steps_per_epoch if stream == 'unlabelled' else supervised_steps_per_epoch
    found += epochs.warnings(config, 'imas', per_epoch(config))
    # On Cityscapes and blender VOC every method is told so.
    classic = config.eval.dataset == 'voc' and config.data.streams.labelled.split == 'train'
    if classic and config.model.get('stem') == 'conv7':
        found.append(
            'model.stem=conv7: iMAS has a deep stem on classic VOC, too, for which no weights have '
            'a name; `pretrained=FILE` behind the colon of --config takes them'
        )
    return found
