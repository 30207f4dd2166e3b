"""The contrastive baseline of Table 1 and the first rows of Tables 5-7: CSS on the logits alone.

Pseudo-labels come from the logit space and confidence is the indicator in both spaces, as in
earlier pixel-contrastive methods. As in the reference program lambda_c stays 1, delta_s is 0.97
(on confidence, see `css_jax.follow`) and the teacher does not see the labelled batch.
"""

from css_jax.methods.css import STREAMS, init_memory, loss, outputs, targets, update_memory

DEFAULTS = {
    'pseudo_label': 'logit',
    'indicator': 'confidence',
    'contrastive.schedule': 'constant',
    # Unless the prototypes are the teacher's, which need the labelled pixels.
    'teacher.labelled_pass': lambda c: c.contrastive.prototype_source == 'teacher',
}
CHOICES = {'pseudo_label': ('logit',), 'indicator': ('confidence',)}

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
