"""CSS(cross): each space learns from the other's pseudo-labels (Sec. 3.3).

L_u takes y_rep and L_c takes y_lgt. While the prototypes are still poor, in the first
`config.unsupervised.warmup_passes` passes over the labelled images (20 epochs in Sec. 4.1), L_u
takes y_lgt as well. `config.indicator` stays free, for the 'cross' row of Table 7.
"""

from css_jax.methods.css import STREAMS, init_memory, loss, outputs, targets, update_memory

DEFAULTS = {'pseudo_label': 'cross', 'indicator': 'both'}
CHOICES = {'pseudo_label': ('cross',), 'indicator': ('confidence', 'similarity', 'both')}

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
