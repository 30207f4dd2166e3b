"""UniMatch V2 and its forerunner, here V1, as their authors ran them: DATASET,LABELS,METHOD,BACKBONE.

    python -m data_prep.splits --target splits --layout unimatch
    python -m css_jax.main --config configs/unimatch.py:voc,183 --workdir DIR
    python -m css_jax.main --config configs/unimatch.py:cityscapes,186,unimatch,dinov2_small --workdir D
    python -m css_jax.main --config configs/unimatch.py:voc,183,unimatch_v1,resnet101 --workdir D

mIoU in the authors' logs, the best epoch on val:

    configs/unimatch.py:voc,92                                       unimatch:voc: 86.29
    configs/unimatch.py:voc,183,dinov2_small,frozen                  unimatch:voc: 83.84
    configs/unimatch.py:voc,92,unimatch_supervised                   unimatch:voc: 76.86
    configs/unimatch.py:voc,92,fixmatch                              unimatch:voc: 83.83
    configs/unimatch.py:cityscapes,186                               unimatch:cityscapes: 83.60
    configs/unimatch.py:ade20k,316                                   unimatch:ade20k: 38.70
    configs/unimatch.py:coco,232                                     unimatch:coco: 47.93
    configs/unimatch.py:voc,1464,unimatch_v1,resnet50                unimatch_v1:voc: 78.70
    configs/unimatch.py:cityscapes,744,unimatch_v1,resnet101         unimatch_v1:cityscapes: 79.22

All cells are in configs/tables/; `--mode sweep --table unimatch:voc` runs them.

DATASET (voc) is one of voc, whose labelled images are of the 1,464 finely annotated ones; blender,
where they are of all 10,582; cityscapes; ade20k; coco, the images of 2017 with or without instances
(`coco/2017_all`). LABELS is how many are labelled (the fewest of the tables); as many as there are
images: all, without a list, for `unimatch_supervised` alone. METHOD (unimatch) is one of unimatch,
which is V2, unimatch_v1, fixmatch and unimatch_supervised, labels alone.

BACKBONE (dinov2_base) says whose numbers of crops, epochs, batches and rates are taken: V2's with
dinov2_small, dinov2_base, dinov2_large and dinov2_giant under DPT, V1's with resnet50 and resnet101
under DeepLabV3+. `frozen` trains the decoder of a DINOv2 alone. The first weights are those of that
name where it has an address, else `pretrained=FILE` has them ('{backbone}' in its name stands for
the backbone's); `pretrained=` is for random ones.

A run has as many steps as the authors' on four GPUs, which deal the unlabelled images out and drop
what does not fill a batch. Theirs hold four or two images each, and pair images, spare half of them
and divide losses by themselves; here all images of a device are together.

`split=list` (the default) takes UniMatch's lists, of blender U2PL's (`layout=unimatch` for the
others), which `lists=FOLDER` (splits) has; `split=random` draws images by `seed=S` (0), which seeds
the run in either case. Any key of the table follows, see configs/arguments.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs
from css_jax.models import published
from data_prep.splits import lists

FILE = 'configs/unimatch.py'
GPUS = 4  # of the authors
METHODS = ('unimatch', 'unimatch_v1', 'fixmatch', 'unimatch_supervised')
TRANSFORMERS = ('dinov2_small', 'dinov2_base', 'dinov2_large', 'dinov2_giant')
ALONE = 'unimatch_supervised'


class Dataset(NamedTuple):
    """What a word stands for.

    Attributes:
        name: in `css_jax.data.sources.DATASETS`, with '/config'.
        lists: name of its lists, see data_prep/splits/lists.py.
        layout: of these.
        labelled: split of the labelled images.
        unlabelled: split of the others.
    """

    name: str
    lists: str
    layout: str = 'unimatch'
    labelled: str = 'train'
    unlabelled: str = 'train'


DATASETS = {
    'voc': Dataset('voc', 'pascal', 'unimatch', 'train', 'trainaug'),
    'blender': Dataset('voc', 'pascal', 'u2pl', 'trainaug', 'trainaug'),
    'cityscapes': Dataset('cityscapes', 'cityscapes'),
    'ade20k': Dataset('ade20k', 'ade20k'),
    'coco': Dataset('coco/2017_all', 'coco'),
}


class Setup(NamedTuple):
    """What the authors chose for a dataset.

    Attributes:
        crop: height and width in pixels.
        epochs: passes over the unlabelled images.
        batch: labelled images of all GPUs, and as many unlabelled ones; labels alone have twice as
            many.
        rate: learning rate of the backbone.
        head_rate: factor of it for all else.
        least: images of an epoch of labels alone, to which a shorter list is repeated; 0: it is
            not.
        epochs_of_all: passes over the labelled images where all are.
    """

    crop: int
    epochs: int
    batch: int
    rate: float
    head_rate: float
    least: int = 0
    epochs_of_all: int = 0


_VOC = Setup(518, 60, 16, 5e-6, 40.0, least=3000, epochs_of_all=60)
SETUPS = {
    'dinov2': {
        'voc': _VOC,
        'blender': _VOC,
        'cityscapes': Setup(798, 180, 8, 5e-6, 40.0, least=3000, epochs_of_all=360),
        'ade20k': Setup(518, 60, 8, 5e-6, 40.0, least=6000, epochs_of_all=120),
        'coco': Setup(518, 20, 16, 5e-6, 40.0, least=30_000, epochs_of_all=40),
    },
    'resnet': {
        'voc': Setup(321, 80, 8, 1e-3, 10.0),
        'blender': Setup(513, 80, 8, 1e-3, 10.0),
        'cityscapes': Setup(801, 240, 8, 5e-3, 1.0),
        'coco': Setup(513, 30, 8, 4e-3, 10.0),  # there of Xception-65
    },
}
DEFAULTS = {
    'dataset': 'voc',
    'labels': 0,  # the fewest
    'method': 'unimatch',
    'backbone': 'dinov2_base',
    'encoder': '',
    'seed': 0,
    'split': 'list',
    'lists': 'splits',
    'layout': '',  # the dataset's
    'pretrained': None,
}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        ValueError: a word, key or value of the argument is unknown, there is no such list, or the
            authors have no numbers for such a run.
    """
    words = {
        'dataset': DATASETS,
        'method': METHODS,
        'backbone': (*TRANSFORMERS, *arguments.BACKBONES),
        'encoder': ('frozen',),
        'split': arguments.SPLITS,
        'layout': lists.LAYOUTS,
    }
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    dataset, kind = DATASETS[given['dataset']], given['backbone'].rstrip('0123456789').split('_')[0]
    setup = SETUPS[kind].get(given['dataset'])
    if setup is None:
        raise ValueError(
            f'{FILE}: got {given["dataset"]} with {given["backbone"]}, expected one of '
            f'{", ".join(TRANSFORMERS)} with it'
        )
    if given['encoder'] and kind != 'dinov2':
        raise ValueError(
            f'{FILE}: got frozen with {given["backbone"]}, expected it with one of '
            f'{", ".join(TRANSFORMERS)}'
        )
    layout, total = given['layout'] or dataset.layout, lists.TRAIN[dataset.lists]
    labels = given['labels'] or min(lists.folders(dataset.lists, layout))
    c = configs.default()
    c.method = given['method']
    _streams(c, given, dataset, labels, layout)
    steps = steps_per_epoch(setup, labels, total, c.method == ALONE)
    everything = c.method == ALONE and labels == total
    c.steps = steps * ((setup.epochs_of_all if everything else 0) or setup.epochs)
    c.eval.every = max(1, c.steps // 10)
    return arguments.finish(c, given, settings, FILE)


def steps_per_epoch(setup: Setup, labels: int, total: int, alone: bool) -> int:
    """Return the steps of an epoch of the authors' loaders: floor(ceil(N / G) / b), 1 at least.

    G GPUs with b images each share N images, the unlabelled ones; of labels alone N is theirs, as
    often repeated as it takes, and b is doubled.

    Args:
        setup: of the dataset.
        labels: how many images are labelled.
        total: images, labelled or not.
        alone: whether the labelled images are all that is trained on.
    """
    images = max(labels, setup.least) if alone else total - labels
    each = setup.batch // GPUS * (2 if alone else 1)
    return max(1, -(-images // GPUS) // each)
