"""CSS(mix), the paper's best: a pixel is labelled where both spaces agree (Sec. 3.3).

`config.indicator` stays free, for the 'mix label' columns of Table 6.
"""

from css_jax.methods.css import STREAMS, init_memory, loss, outputs, targets, update_memory

DEFAULTS = {'pseudo_label': 'mix', 'indicator': 'both'}
CHOICES = {'pseudo_label': ('mix',), 'indicator': ('confidence', 'similarity', 'both')}

__all__ = [
    'CHOICES',
    'DEFAULTS',
    'STREAMS',
    'init_memory',
    'loss',
    'outputs',
    'targets',
    'update_memory',
]
