"""USSS, several datasets with label sets of their own on one encoder: DATASETS,LABELS,METHOD.

    python -m css_jax.main --mode stages --config configs/usss.py:quickstart --workdir runs/usss
    python -m css_jax.main --mode stages --config configs/usss.py:cityscapes+camvid,375 --workdir D
    python -m css_jax.main --config configs/usss.py:camvid+idd_lite,50,usss_basic --workdir D
    python -m css_jax.main --config configs/usss.py:camvid_half,50,usss_single --workdir D

`--mode stages` trains `usss_basic`, makes label embeddings from it, and trains METHOD (usss_full)
on these; without it a run starts from `usss.embeddings=FILE`, or from random ones.

mIoU on the authors' poster, where neither the backbone of the first and the last nor the seeds are
told (ResNet-18 is their name of DRN-D-22):

    cityscapes+camvid,375: basic 53.14 65.33, cross 56.36 63.34, full 55.92 64.72
    cityscapes+idd,100, ResNet-18: basic 37.94 25.21, full 36.48 27.45
    cityscapes+sun,1500: basic 58.01 31.55, full 57.91 43.12

DATASETS (quickstart) are words of `DATASETS` with + between them, in the order of the passes;
`quickstart` is shapes+figures, two drawn datasets on a small network. LABELS is how many images of
each are labelled (of a dataset that has fewer, all): 8 of the drawn ones, else 100. METHOD is one
of usss_single, usss_basic, usss_cross, usss_full.

`backbone=` is one of css_jax/models/backbones.py (drn_d_22; efficientnet_lite0 with camvid_half or
idd_lite, resnet18 at a quarter of its width with the drawn ones), `pretrained=` its weights.
`unlabelled_batches=M` has M unlabelled batches of each dataset in a step; without it that is the
authors' plan, all of them in each pass over the labelled images, and 1 with the small datasets.
`epochs=E` passes over the labelled images: 200, or with the small ones so many that there are 900
or 1,000 steps. `seed=S` (0) draws the labelled images, too. Any key of the table follows, see
configs/arguments.py.

The datasets' configs have the authors' sizes, so that nothing is resized here. `idd_lite` is the
folder dataset of that name: see docs/data.md.
"""

import logging
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs
from css_jax.methods import METHODS, usss
from css_jax.models import backbones
from css_jax.weights import named

LOG = logging.getLogger('css_jax')
FILE = 'configs/usss.py'
BATCH = 8


class Dataset(NamedTuple):
    """What a dataset is here.

    Attributes:
        name: in `css_jax.data.sources.DATASETS`, with '/config'.
        images: of its split train.
        crop: height and width.
        unlabelled: images of the split that are used without labels; 0: all.
        small: for CPUs.
    """

    name: str
    images: int
    crop: tuple[int, int]
    unlabelled: int = 0
    small: bool = False


DATASETS = {
    'cityscapes': Dataset('cityscapes/half_pil', 2975, (512, 512)),
    'camvid': Dataset('camvid/full', 367, (360, 480)),
    'idd': Dataset('idd', 6993, (512, 512), unlabelled=4000),
    'sun': Dataset('sun', 5285, (480, 640)),
    'camvid_half': Dataset('camvid/half', 367, (176, 240), small=True),
    'idd_lite': Dataset('folder/idd_lite', 1403, (224, 320), small=True),
    'shapes': Dataset('shapes', 500, (64, 64), small=True),
    'figures': Dataset('figures', 500, (64, 64), small=True),
}
DRAWN = ('shapes', 'figures')
PAIRS = {'quickstart': 'shapes+figures', 'camvid+idd_lite': 'camvid_half+idd_lite'}
NETWORKS = {  # model.*
    'efficientnet_lite0': {'pretrained': 'efficientnet_lite0'},
    'resnet18': {'width': 0.25},
}
DEFAULTS: dict[str, Any] = {
    'datasets': 'quickstart',
    'labels': 0,
    'method': 'usss_full',
    'seed': 0,
    'backbone': '',
    'pretrained': None,
    'unlabelled_batches': 0,
    'epochs': 0,
}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        ValueError: a word, key or value of the argument is unknown.
    """
    own = [name for name in METHODS if name.startswith('usss')]
    bare = [part.strip() for part in argument.split(',')]
    pairs = [part for part in bare if '+' in part and '=' not in part]
    words = {
        'datasets': [*PAIRS, *DATASETS, *pairs],
        'method': own,
        'backbone': backbones.BACKBONES,
    }
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    chosen = _datasets(given['datasets'])
    drawn = all(name in DRAWN for name in chosen)
    small = all(one.small for one in chosen.values())
    labels = given['labels'] or (8 if drawn else 100)

    c = configs.default()
    c.method = given['method']
    c.model.backbone = given['backbone'] or (
        'resnet18' if drawn else 'efficientnet_lite0' if small else 'drn_d_22'
    )
    c.model.output_stride = usss.STRIDE
    if small:
        c.model.update(NETWORKS.get(c.model.backbone, {}))
        if given['pretrained'] is None and c.model.get('pretrained'):
            name = c.model.pretrained
            c.model.pretrained = name if named.installed(name) else ''

    labelled = {name: min(labels, one.images) for name, one in chosen.items()}
    unlabelled = {name: one.unlabelled or one.images for name, one in chosen.items()}
    per_epoch, batches = usss.plan(labelled, unlabelled, BATCH)
    wanted = given['unlabelled_batches'] or int(small)
    for letter, (name, one) in zip('abcdefgh', chosen.items(), strict=False):
        common = {'crop': one.crop}
        count = 0 if labelled[name] == one.images else labelled[name]
        least = min(2, count // 4) if drawn else 0
        c.data.streams[f'labelled_{letter}'] = configs.stream(
            one.name, count=count, min_per_class=least, subset_seed=given['seed'],
            batch_size=BATCH, **common,
        )  # fmt: skip
        if 'usss.cross_weight' not in configs.keys(c.method):
            continue
        if not (passes := wanted or batches[name]):
            LOG.warning(
                'warning: %s has no entropy term: its %d unlabelled images are %d batches, fewer '
                'than the %d steps of an epoch of %d labelled images (m = 0)',
                name, unlabelled[name], unlabelled[name] // BATCH, per_epoch,
                max(labelled.values()),
            )  # fmt: skip
            continue
        c.data.streams[f'unlabelled_{letter}'] = configs.stream(
            one.name, count=one.unlabelled, batch_size=BATCH * passes, **common
        )
    c.usss.steps_per_epoch = per_epoch
    if given['epochs'] or not small:
        c.usss.epochs = given['epochs'] or 200
    else:
        steps = 900 if drawn else 1000
        c.usss.epochs = -(-steps // per_epoch)
    c.eval.batch_size = 50 if drawn else BATCH
    if not small:
        c.eval.every = 5 * per_epoch  # as the authors choose their best checkpoint
    if drawn:
        c.optimizer.learning_rate = 0.05
        c.usss.embedding_dim = 32
    elif small:
        c.optimizer.learning_rate = 0.02
    c.log_every = 50
    c.checkpoint_every = 250
    return arguments.finish(c, given, settings, FILE)


def _datasets(text: str) -> dict[str, Dataset]:
    """Return the datasets of words with + between them, by name."""
    names = [PAIRS.get(text, text)]
    names = [name.strip() for part in names for name in part.split('+')]
    for name in names:
        if name not in DATASETS:
            raise ValueError(
                f'{FILE}: datasets: got {name!r}, expected {", ".join(DATASETS)}, with + between '
                f'them, or {", ".join(PAIRS)}'
            )
    if len(set(names)) < len(names):
        raise ValueError(f'{FILE}: datasets: got {text!r}, expected each dataset once')
    return {name: DATASETS[name] for name in names}
