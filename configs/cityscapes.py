"""Cityscapes, as in Table 3: LABELS,METHOD,key=value.

    python -m data_prep.cityscapes --source FOLDER
    python -m data_prep.splits --target splits
    python -m css_jax.main --config configs/cityscapes.py:186,css_mix --workdir DIR

mIoU in the paper, of runs that start from ImageNet weights of a network with a deep stem:

    configs/cityscapes.py:186,css_mix                                Table 3: 74.02
    configs/cityscapes.py:372,css_mix                                Table 3: 76.93
    configs/cityscapes.py:744,css_mix                                Table 3: 77.94
    configs/cityscapes.py:1488,css_mix                               Table 3: 79.62

`--mode sweep --table 3` runs them. L_s keeps hard pixels (OHEM).

The authors' numbers of iMAS, the best epoch of their logs (`--table imas:cityscapes`):

    configs/cityscapes.py:186,imas,backbone=resnet50                 imas:cityscapes: 74.31

`backbone=resnet50` has ResNet-50 in place of ResNet-101. The first weights are torchvision's of
either, whose stem is the plain one; they are downloaded once. Those of a deep stem have no public
address that was verified: `pretrained=FILE` has them ('{backbone}' in its name stands for the
backbone's), and the network then has that stem (as with `pretrained=`, random weights).

LABELS (186) is how many of the 2,975 images are labelled, METHOD (css_mix) one of
css_jax.methods.METHODS. `split=list` (the default) takes one of the lists that U2PL published, for
the counts of Table 3, and so does iMAS; `lists=FOLDER` (splits) has them. `split=random` draws any
number of images by `seed=S` (0), which seeds the run in either case. Any key of
css_jax/config/table.py follows, see configs/arguments.py.
"""

from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs
from data_prep.splits import lists

FILE = 'configs/cityscapes.py'
DEFAULTS = {
    'labels': 186,
    'method': 'css_mix',
    'seed': 0,
    'backbone': 'resnet101',
    'split': 'list',
    'lists': 'splits',
    'pretrained': None,
}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one run on Cityscapes, 19 classes.

    Raises:
        ValueError: a word, key or value of the argument is unknown, or there is no such list.
    """
    words = {
        'method': arguments.METHODS,
        'split': arguments.SPLITS,
        'backbone': arguments.BACKBONES,
    }
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)

    c = configs.default()
    c.method = given['method']
    arguments.resnet(c, given, 'deep')
    c.supervised.loss = 'ohem'
    folder = f'{given["lists"]}/cityscapes'
    chosen = arguments.chosen(given['labels'], given['split'], folder, FILE)
    c.data.streams.labelled = configs.stream('cityscapes', **chosen)
    c.data.streams.unlabelled = configs.stream('cityscapes', exclude='labelled')
    if (given['method'], given['labels']) == ('imas_supervised', 1488):
        c.update_from_flattened_dict({'imas.auxiliary_weight': 0.0})  # as the authors' log has it
    c.eval.dataset = 'cityscapes'
    c.eval.every = 8000
    rest = lists.TRAIN['cityscapes'] - given['labels']
    c.update_from_flattened_dict(arguments.epochs(given['method'], given['labels'], rest))
    return arguments.finish(c, given, settings, FILE)
