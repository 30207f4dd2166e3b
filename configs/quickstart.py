"""The embedded default: a small procedural dataset, a narrow network, minutes on two cores.

    python -m css_jax.main --config configs/quickstart.py --workdir runs/css_mix
    python -m css_jax.main --config configs/quickstart.py:supervised --workdir runs/supervised

`:METHOD` is css_mix (the default), cutmix, supervised, or supervised_all, which has the labels of
all 500 training images. The methods share everything but what `METHODS` lists here.

8 of the 500 images are labelled. It starts from random weights, so it departs from the paper's
values, which start from ImageNet: a burn-in on the labelled images, a larger learning rate, a lower
delta_u, L_u as printed in the paper (Eq. 8), a small lambda_c, and no jitter or blur.
"""

from ml_collections import ConfigDict

from css_jax import config as configs

# What a method adds to the common table: its losses' weights and its burn-in, nothing else.
METHODS = {
    'supervised': {},
    'supervised_all': {'data.streams.labelled.count': 0, 'data.streams.labelled.min_per_class': 0},
    'cutmix': {'burn_in_steps': 200},
    'css_mix': {'burn_in_steps': 200, 'contrastive.weight': 0.1},
}


def get_config(method: str = 'css_mix') -> ConfigDict:
    """Gives the configuration of one method on `shapes`."""
    if method not in METHODS:
        raise ValueError(f'configs/quickstart.py:{method}: expected one of {sorted(METHODS)}')
    c = configs.default()
    c.method = 'supervised' if method == 'supervised_all' else method
    c.steps = 900

    c.model.backbone = 'resnet18'
    c.model.output_stride = 8
    c.model.width = 0.25
    c.model.representation_dim = 64

    common = {'batch_size': 8, 'crop': (64, 64)}
    c.data.streams.labelled = configs.stream(
        'shapes', count=8, min_per_class=2, resize=(0.5, 1.5), **common
    )
    c.data.streams.unlabelled = configs.stream(
        'shapes', labels=False, exclude='labelled', resize=(1.0, 1.0), pad='reflect', **common
    )
    c.unsupervised.loss = 'thresholded'
    c.unsupervised.threshold = 0.9
    # Colour tells the classes of `shapes` apart, so jitter and blur hurt every method here.
    c.augment.jitter_prob = 0.0
    c.augment.blur_prob = 0.0
    c.eval.dataset = 'shapes'
    c.eval.batch_size = 50

    c.optimizer.learning_rate = 0.05
    c.optimizer.warmup_steps = 20
    c.log_every = 50
    c.checkpoint_every = 300
    c.update_from_flattened_dict(METHODS[method])
    return c
