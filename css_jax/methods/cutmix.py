"""CutMix: the mean teacher on a mixed strong view (French et al., arXiv 1906.01916).

The 'CutMix' rows of Table 1. `config.augment.mixing` may name another mixing, such as classmix.
"""

from css_jax.methods import default
from css_jax.methods.mean_teacher import STREAMS, loss, outputs, targets

DEFAULTS = {'augment.mixing': 'cutmix', **default.DEFAULTS}
CHOICES = {
    'augment.mixing': ('cutmix', 'classmix', 'cutout'),
    'pseudo_label': ('logit',),
    'indicator': ('confidence',),
}

__all__ = ['CHOICES', 'DEFAULTS', 'STREAMS', 'loss', 'outputs', 'targets']
