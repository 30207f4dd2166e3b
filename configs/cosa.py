"""CoSA, segmentation from image-level labels alone: DATASET,METHOD,key=value.

    python -m css_jax.main --config configs/cosa.py:quickstart --workdir runs/cosa
    python -m css_jax.main --config configs/cosa.py:folder:NAME --workdir runs/NAME_cosa
    python -m css_jax.main --config configs/cosa.py:voc,pretrained=vit_base.pth --workdir DIR

mIoU on val in the paper, of ViT-B/16: VOC 76.2, COCO 2014 51.0. Both are of predictions from which
the classes that an image does not have, by its true labels, were removed first: here 'miou_masked',
beside 'miou', of predictions as they are. In the authors' logs the second is 2.0 (VOC) and 2.4
(COCO) lower, and the checkpoint is the best on val. `eval.protocol=resized` is their protocol.

DATASET (quickstart) is one of voc, coco, which is of 2014, coco2017, quickstart, which is `shapes`
on a small network, and folder:NAME, your own images as `python -m data_prep.folder` has prepared
them (of the split weak, where there is one, else train). METHOD (cosa) may be supervised, of
quickstart and folder: the same network with masks, of the same images where all have them, the
ceiling. `seed=S` (0) seeds the run. `backbone=` is one of css_jax/models/backbones.py (vit_base;
efficientnet_lite0 with folder, resnet18 at a quarter of its width with quickstart), `pretrained=`
its weights: a name of css_jax/models/published.py or a file. A number is how many images are used
(all). Any key of the table follows, see configs/arguments.py.

The image-level labels of an image are the classes in its mask, or the tags of labels.csv, see
docs/own_data.md; the training never sees a mask.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import arguments, folder
from css_jax import config as configs
from css_jax.data import sources
from css_jax.models import backbones, published

LOG = logging.getLogger('css_jax')

FILE = 'configs/cosa.py'
FOLDER = 'folder'
# Word -> dataset: those of the paper, and COCO's later split of the same images.
PUBLISHED = {'voc': 'voc', 'coco': 'coco', 'coco2017': 'coco/2017'}
DATASETS = ('quickstart', *PUBLISHED)
# Method -> its stream.
METHODS = {'cosa': 'images', 'supervised': 'labelled'}
BATCH = 8
DEFAULTS = {
    'dataset': 'quickstart',
    'method': 'cosa',
    'labels': 0,
    'seed': 0,
    'backbone': '',
    'pretrained': None,
}


def get_config(argument: str = '', changes: Mapping[str, str | None] | None = None) -> ConfigDict:
    """Return the configuration of one run.

    Args:
        argument: what follows the colon.
        changes: dotted key -> text of the command line; data.dir, eval.split and steps are read.

    Raises:
        ValueError: a word, key or value of the argument is unknown.
        FileNotFoundError: a dataset of `folder` is not prepared.
    """
    parts = [part.strip() for part in argument.split(',')]
    named = [part.removeprefix('dataset=') for part in parts]
    folders = [name for name in named if name.partition(':')[0] == FOLDER]
    words = {
        'dataset': [*DATASETS, *(folders or [f'{FOLDER}:NAME'])],
        'method': METHODS,
        'backbone': backbones.BACKBONES,
    }
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    told = settings | {key: text for key, text in (changes or {}).items() if text is not None}
    c = configs.default()
    c.method = given['method']
    c.model.family = 'largefov'
    c.log_every = 50
    if given['dataset'] == 'quickstart':
        _quickstart(c, given, told)
    elif given['dataset'] in DATASETS:
        _published(c, given)
    else:
        _folder(c, given, told)
    return arguments.finish(c, given, settings, FILE)


def _stream(c: ConfigDict, given: Mapping[str, Any], dataset: str, split: str, **keys: Any) -> None:
    """Add the stream of the method, with the same images whichever it is."""
    keys |= {'count': given['labels'], 'subset_seed': given['seed']}
    stream = configs.stream(dataset, split=split, **keys)
    c.data.streams[METHODS[c.method]] = stream
    c.eval.dataset = dataset


def _published(c: ConfigDict, given: Mapping[str, Any]) -> None:
    """Set what the paper has, beside the method's defaults."""
    name = given['dataset']
    if c.method != 'cosa':
        raise ValueError(
            f'{FILE}: got {c.method} with {name}, expected it with quickstart or folder'
        )
    voc = name == 'voc'
    _stream(c, given, PUBLISHED[name], 'trainaug' if voc else 'train')
    c.model.backbone = given['backbone'] or 'vit_base'
    c.model.output_stride = 16
    if given['pretrained'] is None and c.model.backbone in published.NAMES:
        c.model.pretrained = c.model.backbone
    c.data.resampling = 'pil'  # the authors' filter
    c.eval.protocol = 'resized'
    c.eval.pad_to = (512, 512) if voc else (640, 640)
    c.eval.window = (448, 448)
    c.eval.scales = (1.0, 0.5, 1.5, 0.75, 1.25)
    c.eval.flip = True
    c.eval.batch_size = 4
    c.eval.every = 2000 if voc else 6000


def _quickstart(c: ConfigDict, given: Mapping[str, Any], told: Mapping[str, str]) -> None:
    """Set `shapes` and a small network, which starts from random weights."""
    _stream(c, given, 'shapes', 'train', crop=(64, 64), batch_size=BATCH, resize=(0.75, 1.5))
    c.steps = 900
    c.model.backbone = given['backbone'] or 'resnet18'
    c.model.width = 0.25
    c.model.output_stride = 8
    c.model.fov_dilation = 2
    c.eval.batch_size = 50
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 20
    c.checkpoint_every = 300
    if c.method == 'cosa':
        _schedule(c, _steps(c.steps, told))
        c.cosa.head_rate = 1.0
        # Colour tells the classes of `shapes` apart.
        c.cosa.strong_prob = 0.0
        c.augment.blur_prob = 0.0
    else:
        c.optimizer.learning_rate = 0.1


def _folder(c: ConfigDict, given: Mapping[str, Any], told: Mapping[str, str]) -> None:
    """Set what follows from a dataset of `folder`, by the rules of configs/folder.py."""
    data_dir = told.get('data.dir', '')
    asked = given['dataset'].partition(':')[2]
    dataset = f'{FOLDER}/{asked}'.removesuffix('/')
    there = sources.splits(dataset, data_dir)
    weak = 'weak' in there and c.method == 'cosa'
    train = sources.load(dataset, 'weak' if weak else 'train', data_dir)
    evaluated = sources.load(dataset, told.get('eval.split', 'val'), data_dir)
    crop = folder.crop(train.sizes)
    _stream(c, given, train.dataset, train.split, crop=crop, batch_size=BATCH)
    c.data.streams[METHODS[c.method]].resize = (0.5, 1.5)
    c.data.dir = data_dir

    c.model.backbone = given['backbone'] or 'efficientnet_lite0'
    c.model.update(folder.NETWORKS.get(c.model.backbone, {}))
    if given['pretrained'] is None and 'model.pretrained' not in told:
        plain = c.model.backbone in backbones.PLAIN  # whose weights are downloaded
        name = c.model.backbone if plain else folder.installed(c.model.get('pretrained'))
        c.model.pretrained = name
    weights = told.get('model.pretrained', given['pretrained'])
    weights = c.model.get('pretrained') if weights is None else weights
    stride = folder.output_stride(crop)
    stride = 16 if c.model.backbone in backbones.PLAIN else stride
    stride = 8 if c.model.backbone.startswith('drn') else stride
    c.model.output_stride = stride
    # As much of the map as the authors' 5 of 28 cells: outside it no tap would be trained.
    c.model.fov_dilation = max(1, round(5 / 28 * min(crop) / stride))
    images = min(given['labels'] or len(train), len(train))
    c.steps = steps(images)
    total = _steps(c.steps, told)
    c.optimizer.warmup_steps = 20
    c.checkpoint_every = max(1, total // 4)
    c.eval.batch_size = BATCH
    c.eval.pad_to = tuple(evaluated.sizes.max(axis=0).tolist())
    if c.method == 'cosa':
        _schedule(c, total)
        # Random weights have no features yet that a backbone's rate should spare.
        c.cosa.head_rate = 10.0 if weights else 1.0
        c.optimizer.learning_rate = 1e-4 if weights else 1e-3
    else:
        c.optimizer.learning_rate = 0.02 if weights else 0.1
    LOG.info(
        '%s: %d images of %s, %d in %s, %d classes; crop %dx%d, batch_size %d, steps %d, backbone '
        '%s',
        train.dataset, images, train.split, len(evaluated), evaluated.split,
        len(train.class_names), *crop, BATCH, total, c.model.backbone,
    )  # fmt: skip


def steps(images: int) -> int:
    """Return how many steps to train for: 20 passes, in whole hundreds, from 600 to 20,000."""
    return min(max(-(-20 * images // (100 * BATCH)) * 100, 600), 20_000)


def _steps(rule: int, told: Mapping[str, str]) -> int:
    """Return the steps that the user asks for, else those of the rule."""
    text = told.get('steps', '')
    return int(text) if text.isdecimal() and int(text) else rule


def _schedule(c: ConfigDict, total: int) -> None:
    """Divide a run as the authors' 32,000 steps are: a fifth of warm-up, an EMA of a twentieth."""
    c.cosa.warmup_steps = total // 5
    c.teacher.decay = max(0.9, 1 - 20 / total)
