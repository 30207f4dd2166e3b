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

The authors' numbers of iMAS, the best epoch of their logs:

    configs/voc.py:classic,732,imas                                  imas:classic: 79.74
    configs/voc.py:blender,662,imas,backbone=resnet50                imas:blended: 74.75

All cells are in configs/tables/; `--mode sweep --table N` runs them.

PROTOCOL (classic): *classic* labels some of the 1,464 finely annotated images, with ResNet-101 as
torchvision has it; *blender* some of all 10,582, with a deep stem. The rest of the 10,582 is
unlabelled. LABELS (92; blender 662) is how many; METHOD (css_mix) one of css_jax.methods.METHODS.

`backbone=resnet50` has ResNet-50 in place of ResNet-101. The first weights are torchvision's of
either, downloaded once; `pretrained=FILE` has others ('{backbone}' in its name stands for the
backbone's), `pretrained=` is for random ones. Those of a deep stem have no public address that was
verified, so *blender*, and iMAS on both, have the deep stem with `pretrained=FILE` (or
`pretrained=`), and torchvision's without.

`split=random` (classic) draws the labelled images by `seed=S` (0), which seeds the run, too: the
paper's three runs on *classic* are on three random splits. `split=list` (blender, and iMAS) takes
a published list, for the counts of the tables; `lists=FOLDER` (splits) has them, `python -m
data_prep.splits --target splits` fetches them. On *blender* there are two kinds, which are not the
same problem: `layout=u2pl` (all methods but iMAS) is pascal/662, finely annotated images first,
`layout=unimatch` (iMAS) is pascal/1_16, random ones of the 10,582. Any key of the configuration
follows, see configs/arguments.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs
from data_prep.splits import lists

FILE = 'configs/voc.py'
# Stem of the network, split with the labelled images, and how they are chosen.
PROTOCOLS = {
    'classic': {'stem': 'conv7', 'from': 'train', 'labels': 92, 'split': 'random'},
    'blender': {'stem': 'deep', 'from': 'trainaug', 'labels': 662, 'split': 'list'},
}
# iMAS has a deep stem and lists on both protocols.
IMAS = {'stem': 'deep', 'split': 'list', 'layout': 'unimatch'}
DEFAULTS = {
    'protocol': 'classic',
    'labels': 0,  # the protocol's
    'method': 'css_mix',
    'seed': 0,
    'backbone': 'resnet101',
    'split': '',  # the protocol's
    'lists': 'splits',
    'layout': '',  # the method's
    'pretrained': None,
}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one run on VOC, 21 classes.

    Raises:
        ValueError: a word, key or value of the argument is unknown, or there is no such list.
    """
    words = {
        'protocol': PROTOCOLS,
        'method': arguments.METHODS,
        'split': arguments.SPLITS,
        'backbone': arguments.BACKBONES,
        'layout': lists.LAYOUTS,
    }
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    protocol: dict[str, Any] = {'layout': 'u2pl', **PROTOCOLS[given['protocol']]}
    protocol |= IMAS if given['method'].startswith('imas') else {}
    labels, split, layout = (given[key] or protocol[key] for key in ('labels', 'split', 'layout'))

    c = configs.default()
    c.method = given['method']
    arguments.resnet(c, given, protocol['stem'])
    chosen = arguments.chosen(labels, split, f'{given["lists"]}/pascal', FILE, layout)
    c.data.streams.labelled = configs.stream('voc', split=protocol['from'], **chosen)
    c.data.streams.unlabelled = configs.stream('voc', split='trainaug', exclude='labelled')
    c.eval.dataset = 'voc'
    c.eval.pad_to = (512, 512)  # no side of an image is above 500
    c.eval.every = 4000
    rest = lists.TRAIN['pascal'] - labels
    c.update_from_flattened_dict(arguments.epochs(given['method'], labels, rest))
    return arguments.finish(c, given, settings, FILE)
