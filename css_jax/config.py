"""The one table of defaults. A file in configs/ starts from it and changes what its run needs.

A `placeholder` is a key whose value follows from others: None until `finalise` fills it in, from
the table of css_jax/follow.py unless its comment says otherwise.
"""

import pathlib

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from css_jax import check, follow, methods, pretrained
from css_jax.data import sources


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
    c.batch_size = placeholder(int)  # over all devices
    c.crop = placeholder(tuple)  # height, width in pixels
    c.resize = placeholder(tuple)  # range of the random scale before the crop; (1.0, 1.0): none
    c.pad = 'constant'  # images smaller than the crop: 'constant' (mean colour) | 'reflect'
    c.update(overrides)
    return c


def model() -> ConfigDict:
    """Gives the network's table; the paper's values are the defaults."""
    c = ConfigDict()
    c.backbone = 'resnet101'  # resnet18 | 34 | 50 | 101 | mobilenet_v1
    c.stem = 'conv7'  # conv7 (torchvision's) | deep (three 3x3)
    c.output_stride = 8  # 8 | 16
    c.width = 1.0  # multiplies every channel count
    c.representation_dim = 256  # channels of the representation head
    c.dtype = 'float32'  # compute; parameters and statistics are always float32
    c.stem_ceil_mode = False  # deep stem: the reference's max-pool, which rounds up
    c.pretrained = ''  # file of backbone weights; '': random ones
    c.atrous = 'auto'  # dilated | space_to_batch, the same sums; auto: see docs/speed.md
    c.remat = ()  # stages computed anew in the backward pass, or all: see docs/memory.md
    return c


def default() -> ConfigDict:
    """Gives the whole table: CSS(mix) with the paper's values, on no dataset yet."""
    c = ConfigDict()
    c.seed = 0
    c.method = 'css_mix'  # name in css_jax.methods.METHODS
    c.num_classes = 0  # 0: as many as the evaluation dataset has
    c.follow = 'default'  # default | reference | paper: where they differ, see css_jax/follow.py
    c.pseudo_label = placeholder(str)  # logit | representation | mix | cross; the method's
    c.indicator = placeholder(str)  # confidence | similarity | both; the method's
    c.steps = placeholder(int)  # iterations
    c.parallel = 'jit'  # jit (one program over all devices) | pmap
    c.accumulate_steps = 1  # micro-batches a step is computed in, one after the other
    c.init_from = ''  # folder of another run whose student, teacher and memory this one starts with
    c.joint_pass = False  # the student's two views in one pass, sharing BatchNorm's statistics
    c.burn_in_steps = 0  # first steps that run the supervised method with the EMA teacher
    c.eight_bit_indicators = placeholder(bool)  # indicators rounded down to 255ths
    c.model = model()

    c.data = ConfigDict()
    c.data.dir = ''  # where prepared datasets lie; '': TFDS_DATA_DIR or ~/tensorflow_datasets
    c.data.streams = ConfigDict()  # name -> stream(...); methods ask for 'labelled', 'unlabelled'
    c.data.mean = placeholder(tuple)  # of RGB in [0, 1]; what the first weights expect, else
    c.data.std = placeholder(tuple)  # ImageNet's
    c.data.resampling = 'cv2'  # 'cv2' (fast) | 'pil' (the reference's filter, to compare with)
    c.data.threads = 4
    c.data.prefetch = 4  # batches read ahead

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = placeholder(float)
    c.optimizer.warmup_steps = 0  # linear, from 1/warmup_steps at step 0
    c.optimizer.power = 0.9  # poly: (1 - t/T)^power
    c.optimizer.floor = placeholder(float)  # smallest learning rate
    c.optimizer.momentum = 0.9
    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 5e-4  # coupled: added to the gradient, on every parameter

    c.teacher = ConfigDict()
    c.teacher.decay = 0.99  # EMA of the parameters, min(1 - 1/(t+1), decay)
    c.teacher.batch_norm = 'own'  # own: trains on its batches | ema: follows the student's
    c.teacher.labelled_pass = placeholder(bool)  # it sees the labelled batch too

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
    c.augment.mixing = placeholder(str)  # cutmix | classmix | cutout | none
    c.augment.partner = placeholder(str)  # mixed with the next image: next | first_device

    c.unsupervised = ConfigDict()
    c.unsupervised.loss = placeholder(str)  # weighted | thresholded (Eq. 8)
    c.unsupervised.weight = 1.0
    c.unsupervised.threshold = 0.97  # delta_u
    c.unsupervised.cross_indicator = placeholder(str)  # of cross: confidence | similarity
    c.unsupervised.warmup_passes = 20  # of cross: over the labelled images, y_lgt for L_u too

    c.contrastive = ConfigDict()
    c.contrastive.weight = 1.0  # lambda_c
    c.contrastive.schedule = placeholder(str)  # of lambda_c: rampdown | constant | reference
    c.contrastive.estimator = 'bank'  # bank | sampled
    c.contrastive.scope = placeholder(str)  # global: all devices' pixels (bank) | device: its own
    c.contrastive.prototype_source = placeholder(str)  # student | teacher
    c.contrastive.unseen = placeholder(str)  # classes without a prototype: masked | zero
    c.contrastive.valid_indicator = placeholder(str)  # of delta_w: confidence | similarity
    c.contrastive.valid_threshold = 0.7  # delta_w
    c.contrastive.hard_threshold = placeholder(float)  # delta_s
    c.contrastive.temperature = 0.5  # tau_c
    c.contrastive.similarity_temperature = placeholder(float)  # tau_sim
    c.contrastive.anchors = 256  # per class
    c.contrastive.negatives = 512  # per anchor
    c.contrastive.bank = 256  # pixels per class shared by all anchors
    c.contrastive.prototype_decay = 0.99

    c.eval = ConfigDict()
    c.eval.dataset = ''
    c.eval.split = 'val'
    c.eval.batch_size = 8
    c.eval.pad_to = (0, 0)  # static height, width, by reflection; (0, 0): the first image's size
    c.eval.protocol = placeholder(str)  # whole | whole_exact | sliding | random_crop
    c.eval.window = (0, 0)  # height, width of sliding and random_crop; (0, 0): a training crop's
    c.eval.flip = False  # average with the mirrored image
    c.eval.scales = (1.0,)  # average over the image at these scales
    c.eval.network = 'teacher'  # teacher | student
    c.eval.every = 0  # steps between evaluations; 0: at the end only

    c.profile = (0, 0)  # first step to trace into DIR/profile, and the one after the last
    c.log_every = 50
    c.checkpoint_every = 1000
    return c


def finalise(config: ConfigDict, workdir: str | pathlib.Path | None = None) -> ConfigDict:
    """Checks a configuration and fills in what follows from the rest of it.

    Args:
        config: a table as `default` gives it, changed by a file of configs/ or by flags.
        workdir: the run's folder, see `css_jax.pretrained.normalisation`.

    Returns:
        A frozen copy with `num_classes` set, and without streams that the method has no use for.

    Raises:
        ValueError: a value is impossible; names the key, what came and what was expected.
    """
    config = ConfigDict(config.to_dict())
    check.keys(config, default(), stream(''))
    check.choice('method', config.method, methods.METHODS)
    check.choice('follow', config.follow, follow.COLUMNS)
    follow.resolve(config, methods.get(config.method).DEFAULTS)
    if config.data.mean is None or config.data.std is None:
        mean, std = pretrained.normalisation(config, workdir)
        config.data.mean = mean if config.data.mean is None else config.data.mean
        config.data.std = std if config.data.std is None else config.data.std
    check.values(config)
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
