"""PASCAL VOC 2012, as in Tables 1, 2, 5, 6 and 7: PROTOCOL,LABELS,METHOD,key=value.

    python -m data_prep.voc --source FOLDER
    python -m css_jax.main --config configs/voc.py:classic,92,css_mix --workdir DIR

mIoU in the paper, of runs that start from ImageNet weights:

    configs/voc.py:classic,92,supervised                             Table 1: 51.57 ± 3.58
    configs/voc.py:classic,92,cutmix                                 Table 1: 65.82 ± 3.60
    configs/voc.py:classic,92,baseline                               Table 1: 66.91 ± 4.21
    configs/voc.py:classic,92,css_cross                              Table 1: 67.03 ± 4.58
    configs/voc.py:classic,92,css_mix                                Table 1: 68.09 ± 4.89
    configs/voc.py:classic,732,css_mix                               Table 1: 77.57 ± 0.73
    configs/voc.py:blender,662,css_mix                               Table 2: 78.73
    configs/voc.py:blender,5291,css_mix                              Table 2: 81.06
    configs/voc.py:classic,92,css,pseudo_label=representation        Table 5: 64.20
    configs/voc.py:classic,183,css,pseudo_label=logit,indicator=both Table 6: 71.50
    configs/voc.py:classic,183,css_cross,indicator=confidence        Table 7: 70.87

All cells are in configs/tables.py; `--mode sweep --table N` runs them.

PROTOCOL (classic): *classic* labels some of the 1,464 finely annotated images, with ResNet-101 as
torchvision has it; *blender* some of all 10,582, with a deep stem. The rest of the 10,582 is
unlabelled. LABELS (92; blender 662) is how many; METHOD (css_mix) one of css_jax.methods.METHODS.

The first weights are torchvision's of ResNet-101, downloaded once; `pretrained=FILE` has others,
`pretrained=` is for random ones. Those of a deep stem have no public address that was verified, so
*blender* has the deep stem with `pretrained=FILE` (or `pretrained=`), and torchvision's without.

`split=random` (classic) draws the labelled images by `seed=S` (0), which seeds the run, too: the
paper's three runs on *classic* are on three random splits. `split=list` (blender) takes one of the
lists that U2PL published, for the counts of Tables 1 and 2; `python -m data_prep.splits --target
splits` fetches them, `lists=FOLDER` (splits) has them. Any key of the configuration follows, see
configs/arguments.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs
from css_jax.methods import METHODS

FILE = 'configs/voc.py'
# Stem of the network, split with the labelled images, and how they are chosen.
PROTOCOLS = {
    'classic': {'stem': 'conv7', 'from': 'train', 'labels': 92, 'split': 'random'},
    'blender': {'stem': 'deep', 'from': 'trainaug', 'labels': 662, 'split': 'list'},
}
DEFAULTS = {
    'protocol': 'classic',
    'labels': 0,  # the protocol's
    'method': 'css_mix',
    'seed': 0,
    'split': '',  # the protocol's
    'lists': 'splits',
    'pretrained': None,
}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one run on VOC, 21 classes.

    Raises:
        ValueError: a word, key or value of the argument is unknown, or there is no such list.
    """
    words = {'protocol': PROTOCOLS, 'method': METHODS, 'split': arguments.SPLITS}
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    protocol: dict[str, Any] = PROTOCOLS[given['protocol']]
    labels, split = given['labels'] or protocol['labels'], given['split'] or protocol['split']

    c = configs.default()
    c.method = given['method']
    arguments.resnet101(c, given, protocol['stem'])
    chosen = arguments.chosen(labels, split, f'{given["lists"]}/pascal', FILE)
    c.data.streams.labelled = configs.stream('voc', split=protocol['from'], **chosen)
    c.data.streams.unlabelled = configs.stream(
        'voc', split='trainaug', exclude='labelled', pad='reflect'
    )
    c.eval.dataset = 'voc'
    c.eval.pad_to = (512, 512)  # no side of an image is above 500
    c.eval.every = 4000
    return arguments.finish(c, given, settings, FILE)
