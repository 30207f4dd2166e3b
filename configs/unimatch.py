"""UniMatch V2, and V1, as their authors ran them: DATASET,LABELS,METHOD,BACKBONE,key=value.

    python -m data_prep.splits --target splits
    python -m data_prep.splits --target splits --layout unimatch
    python -m css_jax.main --config configs/unimatch.py:voc,183 --workdir DIR
    python -m css_jax.main --config configs/unimatch.py:cityscapes,186,dinov2_small --workdir D
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
(`coco/2017_all`). LABELS is how many are labelled (92, 662, 186, 316, 232); as many as there are
images: all, without a list, for `unimatch_supervised` alone. METHOD (unimatch) is one of unimatch,
which is V2, unimatch_v1, fixmatch and unimatch_supervised, labels alone.

BACKBONE (dinov2_base) says whose numbers of crops, epochs, batches and rates are taken: V2's with
dinov2_small, dinov2_base, dinov2_large and dinov2_giant under DPT, V1's with resnet50 and resnet101
under DeepLabV3+. `frozen` trains the decoder of a DINOv2 alone. The first weights are those of that
name where it has an address, else `pretrained=FILE` has them ('{backbone}' in its name stands for
the backbone's); `pretrained=` is for random ones.

A run has as many steps as the authors' on four GPUs, which deal the unlabelled images out and drop
what does not fill a batch. As there, images mix, and half of them are spared, in groups of a
quarter of the batch: `unimatch.group=0` has one group of all images of a device.

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


class Dataset(NamedTuple):
    """What a word stands for.

    Attributes:
        name: in `css_jax.data.sources.DATASETS`, with '/config'.
        labels: how many images are labelled where nobody says; the fewest of the tables.
        lists: name of its lists, see data_prep/splits/lists.py.
        layout: of these.
        labelled: split of the labelled images.
        unlabelled: split of the others.
    """

    name: str
    labels: int
    lists: str
    layout: str = 'unimatch'
    labelled: str = 'train'
    unlabelled: str = 'train'


DATASETS = {
    'voc': Dataset('voc', 92, 'pascal', unlabelled='trainaug'),
    'blender': Dataset('voc', 662, 'pascal', 'u2pl', 'trainaug', 'trainaug'),
    'cityscapes': Dataset('cityscapes', 186, 'cityscapes'),
    'ade20k': Dataset('ade20k', 316, 'ade20k'),
    'coco': Dataset('coco/2017_all', 232, 'coco'),
}


class Setup(NamedTuple):
    """What the authors chose for a dataset and a kind of network.

    Attributes:
        crop: height and width in pixels.
        batch: labelled images, and as many unlabelled ones; labels alone have twice as many.
        epochs: passes over the unlabelled images; of labels alone over these.
        epochs_of_all: instead of `epochs` where all images are labelled.
    """

    crop: int
    batch: int
    epochs: int
    epochs_of_all: int = 0


# The rates, the optimiser, the decay and the images of an epoch of labels alone are of the method.
SETUPS = {
    'dinov2': {
        'voc': Setup(518, 16, 60),
        'blender': Setup(518, 16, 60),
        'cityscapes': Setup(798, 8, 180, 360),
        'ade20k': Setup(518, 8, 60, 120),
        'coco': Setup(518, 16, 20, 40),
    },
    'resnet': {
        'voc': Setup(321, 8, 80),
        'blender': Setup(513, 8, 80),
        'cityscapes': Setup(801, 8, 240),
        'coco': Setup(513, 8, 30),  # with Xception-65 there
    },
}
# Windows of Cityscapes; other images are seen whole, at their own size or one that DINOv2 takes.
SLIDING = {'dinov2': 'sliding', 'resnet': 'sliding_cut'}
DEFAULTS = {
    'dataset': 'voc',
    'labels': 0,  # the dataset's
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
    kind = 'dinov2' if given['backbone'] in TRANSFORMERS else 'resnet'
    wanted = [word for word in (given['dataset'], given['encoder']) if word]
    if given['dataset'] not in SETUPS[kind] or (given['encoder'] and kind != 'dinov2'):
        raise ValueError(
            f'{FILE}: got {" and ".join(wanted)} with {given["backbone"]}, expected one of '
            f'{", ".join(TRANSFORMERS)}'
        )
    setup = SETUPS[kind][given['dataset']]

    c = configs.default()
    c.method = given['method']
    labelled = _streams(c, given, setup)
    total = lists.TRAIN[DATASETS[given['dataset']].lists]
    c.unimatch.epochs = setup.epochs if labelled < total else setup.epochs_of_all or setup.epochs
    counted = arguments.epochs(c.method, labelled, total - labelled)
    groups = arguments.of_method(c.method, {'unimatch.group': setup.batch // GPUS})
    c.update_from_flattened_dict(counted | groups)
    _network(c, given, kind)
    _evaluation(c, kind, setup)
    c.eval.every = 5000
    if kind == 'dinov2' and c.method == 'unimatch_v1':
        c.unsupervised.threshold = 0.95  # V2's on all datasets
    c.data.resampling = 'pil'  # the authors' filter
    return arguments.finish(c, given, settings, FILE)


def _streams(c: ConfigDict, given: Mapping[str, Any], setup: Setup) -> int:
    """Add the streams; return how many images are labelled."""
    dataset = DATASETS[given['dataset']]
    layout, total = given['layout'] or dataset.layout, lists.TRAIN[dataset.lists]
    alone = c.method == 'unimatch_supervised'
    labels = given['labels'] or dataset.labels
    common = {'crop': (setup.crop, setup.crop), 'batch_size': setup.batch * (2 if alone else 1)}
    if labels == total:
        if not alone:
            raise ValueError(
                f'{FILE}: labels: got {labels}, which are all images, expected fewer with method '
                f'{c.method}'
            )
        split, chosen = dataset.unlabelled, {}
    else:
        folder = f'{given["lists"]}/{dataset.lists}'
        split = dataset.labelled
        chosen = arguments.chosen(labels, given['split'], folder, FILE, layout)
    c.data.streams.labelled = configs.stream(dataset.name, split=split, **chosen, **common)
    c.data.streams.unlabelled = configs.stream(
        dataset.name, split=dataset.unlabelled, exclude='labelled', **common
    )
    c.eval.dataset = dataset.name
    return labels


def _network(c: ConfigDict, given: Mapping[str, Any], kind: str) -> None:
    """Set the network and its first weights."""
    if kind == 'resnet':
        return arguments.resnet(c, given, 'deep')
    c.model.family = 'dpt'
    c.model.backbone = given['backbone']
    if given['encoder'] == 'frozen':
        c.model.frozen_backbone = True
    if given['backbone'] in published.NAMES:
        c.model.pretrained = given['backbone']


def _evaluation(c: ConfigDict, kind: str, setup: Setup) -> None:
    """Set what the network sees of the images of val, one at a time."""
    if c.eval.dataset == 'cityscapes':
        c.eval.protocol = SLIDING[kind]
        c.eval.window = (setup.crop, setup.crop)
    else:
        c.eval.protocol = 'whole_exact'  # DINOv2 resizes to its `eval.multiple`
