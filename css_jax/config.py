"""The one table of defaults. A file in configs/ starts from it and changes what its run needs."""

import difflib
import math
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from css_jax import methods, models
from css_jax.data import sources

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CHOICES = {
    'method': methods.METHODS,
    'model.backbone': models.BACKBONES,
    'model.stem': ('conv7', 'deep'),
    'model.output_stride': (8, 16),
    'model.dtype': ('float32', 'bfloat16'),
    'data.resampling': ('cv2', 'pil'),
    'supervised.loss': ('ce', 'ohem'),
    'augment.mixing': ('cutmix', 'classmix', 'cutout', 'none'),
    'unsupervised.loss': ('weighted', 'thresholded'),
    'contrastive.estimator': ('bank', 'sampled'),
    'contrastive.schedule': ('rampdown', 'constant'),
}
_MANY = 10**9
RANGES = {
    'steps': (1, _MANY),
    'burn_in_steps': (0, _MANY),
    'num_classes': (0, 255),
    'log_every': (1, _MANY),
    'checkpoint_every': (1, _MANY),
    'eval.every': (0, _MANY),
    'eval.batch_size': (1, _MANY),
    'data.threads': (1, 256),
    'data.prefetch': (1, 256),
    'model.width': (1e-3, 1e3),
    'model.representation_dim': (1, _MANY),
    'optimizer.learning_rate': (0, 1e3),
    'optimizer.power': (0, 1e3),
    'optimizer.floor': (0, 1e3),
    'optimizer.warmup_steps': (0, _MANY),
    'optimizer.momentum': (0, 1),
    'optimizer.weight_decay': (0, 1e3),
    'teacher.decay': (0, 1),
    'supervised.ohem_threshold': (0, 1),
    'supervised.ohem_kept': (1, _MANY),
    'augment.jitter_prob': (0, 1),
    'augment.blur_prob': (0, 1),
    'augment.flip_prob': (0, 1),
    'augment.brightness': (0, 1),
    'augment.contrast': (0, 1),
    'augment.saturation': (0, 1),
    'augment.hue': (0, 0.5),
    'unsupervised.weight': (0, 1e3),
    'unsupervised.threshold': (0, 1),
    'contrastive.weight': (0, 1e3),
    'contrastive.valid_threshold': (0, 1),
    'contrastive.hard_threshold': (0, 1),
    'contrastive.temperature': (1e-3, 1e3),
    'contrastive.similarity_temperature': (1e-3, 1e3),
    'contrastive.anchors': (1, _MANY),
    'contrastive.negatives': (1, _MANY),
    'contrastive.bank': (1, _MANY),
    'contrastive.prototype_decay': (0, 1),
}


def stream(dataset: str, **overrides) -> ConfigDict:
    """Gives the configuration of one stream of training images.

    Args:
        dataset: name in `css_jax.data.sources.DATASETS`, with '/config' where it has several.
        **overrides: any key of the table below.

    Returns:
        The stream's table; `config.data.streams` maps a stream's name to one of these.
    """
    c = ConfigDict()
    c.dataset = dataset
    c.split = 'train'
    c.labels = True  # False: the records' masks are not decoded; the stream is images alone
    c.count = 0  # images taken from the split; 0: all of them
    c.subset_seed = 0  # which `count` images
    c.min_per_class = 0  # with `count`: every class is in at least so many of the images taken
    c.ids_file = ''  # a text file of ids, one a line, instead of `count`
    c.exclude = ''  # name of another stream of the same dataset whose images are left out
    c.batch_size = 16  # over all devices
    c.crop = (512, 512)  # height, width in pixels
    c.resize = (0.5, 1.5)  # range of the random scale before the crop; (1.0, 1.0): none
    c.pad = 'constant'  # images smaller than the crop: 'constant' (mean colour, ignore) | 'reflect'
    c.update(overrides)
    return c


def model() -> ConfigDict:
    """Gives the network's table; the paper's values are the defaults."""
    c = ConfigDict()
    c.backbone = 'resnet101'  # resnet18 | resnet34 | resnet50 | resnet101
    c.stem = 'conv7'  # conv7 (torchvision's) | deep (three 3x3)
    c.output_stride = 8  # 8 | 16
    c.width = 1.0  # multiplies every channel count
    c.representation_dim = 256  # channels of the representation head
    c.dtype = 'float32'  # compute; parameters and statistics are always float32
    c.stem_ceil_mode = False  # deep stem: the reference's max-pool, which rounds up
    c.remat = False  # recompute each residual block's activations in the backward pass
    return c


def default() -> ConfigDict:
    """Gives the whole table: CSS(mix) with the paper's values, on no dataset yet."""
    c = ConfigDict()
    c.seed = 0
    c.method = 'css_mix'  # name in css_jax.methods.METHODS
    c.num_classes = 0  # 0: as many as the evaluation dataset has
    c.steps = 40_000  # iterations
    c.burn_in_steps = 0  # first steps that run the supervised method with the EMA teacher
    c.model = model()

    c.data = ConfigDict()
    c.data.dir = ''  # where prepared datasets lie; '': TFDS_DATA_DIR or ~/tensorflow_datasets
    c.data.streams = ConfigDict()  # name -> stream(...); methods ask for 'labelled', 'unlabelled'
    c.data.mean = IMAGENET_MEAN  # of RGB in [0, 1]
    c.data.std = IMAGENET_STD
    c.data.resampling = 'cv2'  # 'cv2' (fast) | 'pil' (the reference's filter, to compare with)
    c.data.threads = 4
    c.data.prefetch = 4  # batches read ahead

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 0.0064
    c.optimizer.warmup_steps = 0  # linear, from 1/warmup_steps at step 0
    c.optimizer.power = 0.9  # poly: (1 - t/T)^power
    c.optimizer.floor = 1e-4  # smallest learning rate (the paper writes none: 0)
    c.optimizer.momentum = 0.9
    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 5e-4  # coupled: added to the gradient, on every parameter

    c.teacher = ConfigDict()
    c.teacher.decay = 0.99  # EMA of the parameters, min(1 - 1/(t+1), decay)
    c.teacher.labelled_pass = True  # its BatchNorm sees the labelled batch too (supervised: always)

    c.supervised = ConfigDict()
    c.supervised.loss = 'ce'  # ce | ohem
    c.supervised.ohem_threshold = 0.7
    c.supervised.ohem_kept = 50_000  # pixels an image, times the batch of one device

    c.augment = ConfigDict()  # on the device: colour, blur, flip of labelled images and strong view
    c.augment.jitter_prob = 0.8
    c.augment.brightness = 0.25  # factors in [1-x, 1+x]
    c.augment.contrast = 0.25
    c.augment.saturation = 0.25
    c.augment.hue = 0.25  # shift in turns, [-x, x]
    c.augment.blur_prob = 0.5
    c.augment.blur_sigma = (0.15, 1.15)  # pixels
    c.augment.flip_prob = 0.5
    c.augment.resize = (0.5, 1.5)  # strong view's random scale
    c.augment.mixing = 'cutmix'  # cutmix | classmix | cutout | none

    c.unsupervised = ConfigDict()
    c.unsupervised.loss = 'weighted'  # weighted (reference) | thresholded (paper, Eq. 8)
    c.unsupervised.weight = 1.0
    c.unsupervised.threshold = 0.97  # delta_u

    c.contrastive = ConfigDict()
    c.contrastive.weight = 1.0  # lambda_c
    c.contrastive.schedule = 'rampdown'  # rampdown: exp(-5 (t/T)^2) | constant
    c.contrastive.estimator = 'bank'  # bank | sampled
    c.contrastive.valid_threshold = 0.7  # delta_w
    c.contrastive.hard_threshold = 0.8  # delta_s
    c.contrastive.temperature = 0.5  # tau_c
    c.contrastive.similarity_temperature = 0.5  # tau_sim
    c.contrastive.anchors = 256  # per class
    c.contrastive.negatives = 512  # per anchor
    c.contrastive.bank = 256  # pixels per class shared by all anchors
    c.contrastive.prototype_decay = 0.99

    c.eval = ConfigDict()
    c.eval.dataset = ''
    c.eval.split = 'val'
    c.eval.batch_size = 8
    c.eval.pad_to = (0, 0)  # static height, width, by reflection; (0, 0): the first image's size
    c.eval.every = 0  # steps between evaluations; 0: at the end only

    c.log_every = 50
    c.checkpoint_every = 1000
    return c


def finalise(config: ConfigDict) -> ConfigDict:
    """Checks a configuration and fills in what follows from the rest of it.

    Args:
        config: a table as `default` gives it, changed by a file of configs/ or by flags.

    Returns:
        A frozen copy with `num_classes` set, and without streams that the method has no use for.

    Raises:
        ValueError: a value is impossible; names the key, what came and what was expected.
    """
    config = config.copy_and_resolve_references().unlock()
    _check(config)
    needed = list(methods.METHODS[config.method].STREAMS)
    for name in needed:  # grows by what these leave out
        needed += {config.data.streams[name].exclude} & set(config.data.streams) - set(needed)
    for name in set(config.data.streams) - set(needed):
        del config.data.streams[name]
    datasets = {'eval': config.eval.dataset}
    datasets |= {f'data.streams.{name}': s.dataset for name, s in config.data.streams.items()}
    for key, dataset in datasets.items():
        try:
            count = len(sources.class_names(dataset))
        except ValueError as error:
            raise ValueError(f'{key}.dataset: {error}') from None
        config.num_classes = config.num_classes or count
        labelled = key == 'eval' or config.data.streams[key.split('.')[-1]].labels
        if labelled and count > config.num_classes:
            raise ValueError(
                f'num_classes: got {config.num_classes}, but {key} ({dataset}) has {count}'
            )
    return FrozenConfigDict(config)


def warnings(config: ConfigDict) -> list[str]:
    """Says what is possible but unlikely to be meant, a sentence each.

    Softmax similarity has an upper bound, as cosines have: 1 / (1 + (C-1) exp(-2/tau_sim)).
    """
    c = config.contrastive
    bound = 1 / (1 + (config.num_classes - 1) * math.exp(-2 / c.similarity_temperature))
    if config.method != 'css_mix' or c.hard_threshold <= bound:
        return []
    return [
        f'contrastive.hard_threshold={c.hard_threshold} is above the largest softmax similarity, '
        f'{bound:.3f} with {config.num_classes} classes at similarity_temperature='
        f'{c.similarity_temperature}: every valid pixel is hard (the reference runs so)'
    ]


def _check(config: ConfigDict) -> None:
    for key, choices in CHOICES.items():
        value = _at(config, key)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'{key}: got {value!r}, expected one of {sorted(choices)}{hint}')
    for key, (low, high) in RANGES.items():
        value = _at(config, key)
        if not low <= value <= high:
            raise ValueError(f'{key}: got {value!r}, expected a number from {low} to {high}')
    for key in ('augment.resize', 'augment.blur_sigma'):
        _check_range(key, _at(config, key))
    for key, least in (('data.mean', 0.0), ('data.std', 1e-3)):
        value = _at(config, key)
        if len(value) != 3 or not all(least <= v <= 1 for v in value):
            raise ValueError(f'{key}: got {value!r}, expected three numbers from {least} to 1')
    if len(config.eval.pad_to) != 2 or min(config.eval.pad_to) < 0:
        raise ValueError(f'eval.pad_to: got {config.eval.pad_to!r}, expected (height, width)')
    if config.burn_in_steps > config.steps:
        raise ValueError(
            f'burn_in_steps: got {config.burn_in_steps}, expected at most steps={config.steps}'
        )

    streams = config.data.streams
    for name, labels in methods.METHODS[config.method].STREAMS.items():
        if name not in streams:
            raise ValueError(
                f'data.streams: got {sorted(streams)}, but method {config.method} needs {name!r}'
            )
        if streams[name].labels != labels:
            raise ValueError(
                f'data.streams.{name}.labels: got {streams[name].labels}, expected {labels} for '
                f'method {config.method}'
            )
    for name, s in streams.items():
        _check_range(f'data.streams.{name}.resize', s.resize)
        if len(s.crop) != 2 or min(s.crop) < 8:
            raise ValueError(
                f'data.streams.{name}.crop: got {s.crop}, expected (height, width) of at least 8'
            )
        if s.batch_size < 1:
            raise ValueError(f'data.streams.{name}.batch_size: got {s.batch_size}, expected >= 1')


def _check_range(key: str, value: tuple[float, float]) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise ValueError(f'{key}: got {value!r}, expected (low, high) with 0 < low <= high')


def _at(config: ConfigDict, key: str) -> Any:
    for part in key.split('.'):
        config = config[part]
    return config
