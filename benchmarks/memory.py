"""What `config.model.remat` is worth: memory of a network's forward and backward pass by stages.

    python -m benchmarks.memory --size real

Nothing is run, so 'real' (ResNet-101 at stride 8, 4 images of 256 x 256) takes any machine a few
minutes of compiling. 'kept' is what the forward pass leaves to the backward by jax's own account,
arrays with an axis of images alone, on any device; 'temporary' is the compiler's account of all
that the compiled program needs at once beside arguments and results.

On a CPU the pass that removes the barriers around recomputation is left out: with it XLA finds the
same computation twice, does it once and keeps the result, so that every row is as the first.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from css_jax import models
from css_jax.models.remat import STAGES

# Backbone, width, images, their side; types.
SIZES = {'real': ('resnet101', 1.0, 4, 256), 'small': ('resnet50', 0.25, 2, 64)}
TYPES = {'real': ('float32', 'bfloat16'), 'small': ('float32',)}
REMAT = ((), STAGES[1:3], STAGES[3:4], STAGES[3:5], STAGES[1:5], STAGES)
CPU_OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


def setup(size: str, dtype: str, remat: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """Gives (module, shapes of its variables, shape of the images)."""
    backbone, width, count, side = SIZES[size]
    config = {'backbone': backbone, 'stem': 'conv7', 'output_stride': 8, 'width': width}
    config |= {'representation_dim': round(256 * width), 'dtype': dtype, 'remat': remat}
    module = models.build(config, num_classes=21)
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
    return module, jax.eval_shape(module.init, jax.random.key(0), images), images


def passes(module: Any, variables: Any, images: Any) -> tuple[Any, Any, Any]:
    """Runs the forward pass: (outputs, the backward pass, batch_stats)."""

    def forward(params):
        given = {**variables, 'params': params}
        return module.apply(given, images, train=True, mutable=['batch_stats'])

    return jax.vjp(forward, variables['params'], has_aux=True)


def account(size: str, dtype: str, remat: tuple[str, ...]) -> timing.Row:
    """Compiles both passes; the outputs' gradients are arguments."""
    module, variables, images = setup(size, dtype, remat)

    def both(variables, images, cotangents):
        _, backward, stats = passes(module, variables, images)
        return backward(cotangents), stats

    def left(variables, images):
        outputs, backward, _ = passes(module, variables, images)
        return outputs, backward

    outputs, backward = jax.eval_shape(left, variables, images)
    kept = [a for a in jax.tree.leaves(backward) if a.shape[:1] == images.shape[:1]]
    options = CPU_OPTIONS if jax.default_backend() == 'cpu' else {}
    program = jax.jit(both, compiler_options=options)
    _, row = timing.compiled(program, variables, images, outputs)
    return {
        'kept MiB': sum(a.size * a.dtype.itemsize for a in kept) / timing.MIB,
        'temporary MiB': row['temporary MiB'],
        'GFLOP': row['GFLOP'],
        'compile s': row['compile s'],
    }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    backbone, width, count, side = SIZES[size]
    for dtype in TYPES[size]:
        caption = f'{backbone}, width {width}, output stride 8, {count} images of {side} x {side}'
        for remat in REMAT:
            name = 'all' if remat == STAGES else ', '.join(remat) or '()'
            yield f'{caption}, {dtype}', {'remat': name, **account(size, dtype, remat)}


if __name__ == '__main__':
    timing.main('Memory of the forward and backward pass', rows)
