"""The network by the forms of its dilated convolutions: python -m benchmarks.convolutions.

The student in training mode, for each pair of forms: of the backbone's layers and of ASPP, the two
entries that `css_jax.models.atrous.AUTO` has for a platform. Each is timed in turns with the
network that is dilated throughout; 'to dilated' is the ratio of that run.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import jax

from benchmarks import timing
from css_jax import models
from css_jax.models import atrous

# Backbone, width, channels of the representation, type, batch, side of the images.
NETWORKS = {
    'real': ('resnet101', 1.0, 256, 'bfloat16', 16, 512),
    'small': ('resnet18', 0.25, 64, 'float32', 8, 64),
}
SECONDS = {'real': 10, 'small': 3}  # that a pair is timed for, each way


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give a row for each pair of forms, dilated first."""
    backbone, width, dim, dtype, batch, side = NETWORKS[size]
    config = {'backbone': backbone, 'width': width, 'representation_dim': dim, 'dtype': dtype}
    config |= {'stem': 'conv7', 'output_stride': 8, 'atrous': 'dilated'}
    direct = models.build(config, num_classes=21)
    images = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    variables = jax.jit(direct.init)(jax.random.key(1), images)
    given, first = (variables['params'], images), None
    for pair in itertools.product(atrous.FORMS, atrous.FORMS):
        module = direct.clone(backbone=direct.backbone.clone(atrous=pair[0]), atrous=pair[1])

        def apply(params, images, module=module):
            own = variables | {'params': params}
            return module.apply(own, images, True, mutable=['batch_stats'])[0]

        def both(params, images, cotangent, apply=apply):
            y, backward = jax.vjp(partial(apply, images=images), params)
            return y, backward(cotangent)

        forward = timing.compiled(jax.jit(apply), *given)
        output = forward.call(*given)
        backward = timing.compiled(jax.jit(both), *given, output)
        runs = partial(forward.call, *given), partial(backward.call, *given, output)
        first = first or runs
        row = {'layers': pair[0], 'ASPP': atrous.FORMS[pair[1]].pyramid}
        for name, run, plain in zip(('', ' with backward'), runs, first, strict=True):
            times = timing.interleaved({'this': run, 'dilated': plain}, SECONDS[size])
            row |= {f'ms{name}': times['this']}
            row |= {f'to dilated{name}': times['this'] / times['dilated']}
        row['compile s'] = forward.row['compile s'] + backward.row['compile s']
        yield f'{backbone}, width {width:g}, {batch} x {side} x {side}, {dtype}', row


if __name__ == '__main__':
    timing.main('The network by the forms of its dilated convolutions', rows)
