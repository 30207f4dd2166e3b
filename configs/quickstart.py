"""The embedded default: a small procedural dataset, a narrow network, minutes on two cores.

    python -m css_jax.main --config configs/quickstart.py --workdir runs/css_mix
    python -m css_jax.main --config configs/quickstart.py:supervised --workdir runs/supervised
    python -m css_jax.main --config configs/quickstart.py:css,pseudo_label=logit,seed=1 --workdir D

METHOD is one of css_jax.methods.METHODS (css_mix), or supervised_all, which has the labels of all
500 training images. The methods share everything but what `METHODS` lists here. A number is how
many images are labelled (8); `seed=S` (0) draws them, too; `pretrained=FILE` and any key follow,
see configs/arguments.py.

8 of the 500 images are labelled. It starts from random weights, so it departs from the paper's
values, which start from ImageNet: a burn-in on the labelled images, a larger learning rate, a lower
delta_u, L_u as printed in the paper (Eq. 8), a small lambda_c, and no jitter or blur.
"""

from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs

FILE = 'configs/quickstart.py'
# What the methods that have it share.
COMMON = {
    'model.representation_dim': 64,
    'unsupervised.loss': 'thresholded',
    'unsupervised.threshold': 0.9,
}
# Colour tells the classes of `shapes` apart, so jitter and blur hurt every method here.
PLAIN = dict.fromkeys(('augment.jitter_prob', 'augment.grey_prob', 'augment.blur_prob'), 0.0)
# iMAS and UniMatch have a network and an optimiser of their own; here they have the others'.
_SHARED = {
    'model.head_convs': 1,
    'model.low_level_bias': False,
    'optimizer.nesterov': True,
}
_UNIMATCH = {'model.head_convs': 1, 'optimizer.nesterov': True, 'burn_in_steps': 200}
_CONTRASTIVE = {'burn_in_steps': 200, 'contrastive.weight': 0.1}
# What a method adds to the common table: its losses' weights and its burn-in, nothing else.
METHODS = {
    'supervised': {},
    'supervised_all': {'data.streams.labelled.count': 0, 'data.streams.labelled.min_per_class': 0},
    'mean_teacher': {'burn_in_steps': 200},
    'cutmix': {'burn_in_steps': 200},
    'baseline': _CONTRASTIVE,
    'css_cross': _CONTRASTIVE,
    'css_mix': _CONTRASTIVE,
    'css': _CONTRASTIVE,
    'imas': {
        **_SHARED,
        'teacher.decay': 0.99,
        'imas.supervised_epochs': 3,
        'unsupervised.threshold': 0.7,
        'unsupervised.weight': 1.0,
    },
    'imas_supervised': _SHARED,
    'unimatch': {**_UNIMATCH, 'teacher.decay': 0.99},
    'unimatch_v1': _UNIMATCH,
    'fixmatch': {**_UNIMATCH, 'teacher.decay': 0.99},
    'unimatch_supervised': {'model.head_convs': 1, 'optimizer.nesterov': True},
}
IMAGES = 500
DEFAULTS = {'method': 'css_mix', 'labels': 0, 'seed': 0, 'pretrained': None}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one method on `shapes`.

    Raises:
        ValueError: a word, key or value of the argument is unknown, or they contradict each other.
    """
    words = {'method': [*arguments.METHODS, 'supervised_all']}
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    method, labels = given['method'], given['labels'] or 8
    if method == 'supervised_all' and given['labels']:
        raise ValueError(f'{FILE}: got {labels} labels with supervised_all, which has all of them')
    c = configs.default()
    c.method = 'supervised' if method == 'supervised_all' else method
    c.steps = 900

    c.model.backbone = 'resnet18'
    c.model.output_stride = 8
    c.model.width = 0.25

    common = {'batch_size': 8, 'crop': (64, 64)}
    least = min(2, labels // 4)  # every class is in 2 of the 8, and fewer images can still have it
    c.data.streams.labelled = configs.stream(
        'shapes', count=labels, min_per_class=least, resize=(0.5, 1.5), **common
    )
    c.data.streams.unlabelled = configs.stream('shapes', exclude='labelled', **common)
    c.eval.dataset = 'shapes'
    c.eval.batch_size = 50

    c.optimizer.learning_rate = 0.05
    c.optimizer.warmup_steps = 20
    c.log_every = 50
    c.checkpoint_every = 300
    own = arguments.of_method(c.method, COMMON | PLAIN) | METHODS.get(method, {})
    own |= arguments.epochs(c.method, labels, IMAGES - labels)
    c.update_from_flattened_dict(own)
    return arguments.finish(c, given, settings, FILE)
