"""The quickstart's configuration, made small for tests: seconds, every term of the loss alive."""

from ml_collections import ConfigDict

from configs import quickstart
from css_jax import config as configs


def get_config(method: str = 'css_mix') -> ConfigDict:
    """Gives the configuration of one method; `data.dir` is the test's to set."""
    c = quickstart.get_config(method)
    c.steps = 8
    c.burn_in_steps = 0
    c.model.width = 0.125
    c.model.representation_dim = 16
    common = {'batch_size': 4, 'crop': (32, 32)}
    c.data.streams.labelled = configs.stream('shapes', count=8, resize=(0.5, 1.5), **common)
    c.data.streams.unlabelled = configs.stream(
        'shapes', exclude='labelled', resize=(1.0, 1.0), pad='reflect', **common
    )
    c.eval.batch_size = 4
    c.optimizer.warmup_steps = 0
    c.unsupervised.threshold = 0.2
    c.contrastive.valid_threshold = 0.1
    c.contrastive.hard_threshold = 0.9
    c.contrastive.anchors = 16
    c.contrastive.negatives = 32
    c.contrastive.bank = 16
    c.log_every = 1
    c.checkpoint_every = 3
    return c
