"""CamVid at half size, 46 of 367 images labelled: photographs, on a CPU.

    python -m data_prep.camvid --source FOLDER --config half
    python -m css_jax.main --config configs/camvid.py --workdir runs/camvid_css
    python -m css_jax.main --config configs/camvid.py:supervised --workdir runs/camvid_supervised

`:METHOD` is css_mix (the default), cutmix or supervised. The network starts from random weights, so
burn-in, learning rate and thresholds are the quickstart's, not the paper's (see
configs/quickstart.py). It is evaluated on `test`.
"""

from ml_collections import ConfigDict

from configs import quickstart
from css_jax import config as configs


def get_config(method: str = 'css_mix') -> ConfigDict:
    """Gives the configuration of one method on `camvid/half` (240x180 pixels, 11 classes)."""
    if method not in ('css_mix', 'cutmix', 'supervised'):
        raise ValueError(f'configs/camvid.py:{method}: expected one of css_mix, cutmix, supervised')
    c = configs.default()
    c.method = method
    c.steps = 1000

    c.model.backbone = 'resnet18'
    c.model.output_stride = 8
    c.model.width = 0.25
    c.model.representation_dim = 64

    common = {'batch_size': 8, 'crop': (128, 160)}
    c.data.streams.labelled = configs.stream(
        'camvid/half', count=46, resize=(0.5, 1.5), min_per_class=8, **common
    )
    c.data.streams.unlabelled = configs.stream(
        'camvid/half',
        labels=False,
        exclude='labelled',
        resize=(1.0, 1.0),
        pad='reflect',
        **common,
    )
    c.eval.dataset = 'camvid/half'
    c.eval.split = 'test'
    c.eval.batch_size = 8

    c.unsupervised.loss = 'thresholded'
    c.unsupervised.threshold = 0.9
    c.optimizer.learning_rate = 0.1
    c.optimizer.warmup_steps = 20
    c.update_from_flattened_dict(quickstart.METHODS[method])
    c.log_every = 50
    c.checkpoint_every = 250
    return c
