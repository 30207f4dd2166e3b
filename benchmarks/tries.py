"""What was tried to make the step faster, each beside the form that the program has.

    python -m benchmarks.tries --size small

All forms of a table run in turns in one process; 'to ours' is a form's time over that of ours.
'difference' is that of the results, relative to the largest value of each array.

- BatchNorm, forward and backward over one map. 'ours' takes the variance about the batch's mean,
  whose own derivative by that mean, zero, is left out; 'automatic' leaves it in; 'closed form' is
  the textbook's gradient as a function of its own, which keeps the input in its own type and
  computes the ReLU's mask from it; 'one pass' sums values and squares about the running mean;
  'E[x^2] - E[x]^2' about zero, as Flax's does.
- The two heads' 3x3 convolutions of one map, apart or as one of twice the features.
- A 1x1 convolution as a product with its kernel, as ours, or as XLA's convolution.
- A 3x3 convolution with the channels last, as ours, or second.
- The pixels' order for L_c: one word of class, hardness and index sorted, as ours, or an argsort.
- Options of XLA for the whole step; those that this platform does not know are left out.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks import step, timing
from css_jax.models import layers
from css_jax.ops import contrastive

# Batch, side, channels of BatchNorm's map (layer1's last), those and features of the heads' map, of
# the 1x1 convolution (a block of layer3's), of the 3x3 (layer2's); pixels and classes of L_c.
SIZES = {
    'real': {
        'norm': (16, 128, 256),
        'heads': (16, 128, 304, 256),
        'pointwise': (16, 64, 1024, 256),
        'layout': (16, 64, 128),
        'order': (2 * 16 * 128 * 128, 21),
    },
    'small': {
        'norm': (8, 32, 64),
        'heads': (8, 16, 76, 64),
        'pointwise': (8, 16, 64, 64),
        'layout': (8, 16, 64),
        'order': (2 * 8 * 16 * 16, 7),
    },
}
OPTIONS = {
    'cpu': (
        {'xla_cpu_use_fusion_emitters': False},
        {'xla_cpu_enable_concurrency_optimized_scheduler': False},
        {'xla_cpu_enable_fast_min_max': True},
        {'xla_backend_optimization_level': 2},
    ),
    # Every option was accepted by this XLA; what they do on a GPU was not measured yet.
    'gpu': (
        {'xla_gpu_enable_latency_hiding_scheduler': True},
        {'xla_gpu_enable_triton_gemm': False},
        {'xla_gpu_enable_command_buffer': ''},
        {'xla_gpu_exhaustive_tiling_search': True},
        {'xla_gpu_autotune_level': 0},
    ),
    'tpu': (),
}
SECONDS = 3.0  # for the rounds of one table


def side_by_side(forms: Mapping[str, tuple]) -> Iterator[timing.Row]:
    """Compiles the forms of a function and runs them in turns; the first is ours.

    Args:
        forms: name -> (function that gives arrays, *its arguments).

    Yields:
        For each form its name, 'ms', 'to ours', 'difference' and what `timing.compiled` says.
    """
    programs = {k: timing.compiled(jax.jit(f), *given) for k, (f, *given) in forms.items()}
    runs = {k: functools.partial(p, *forms[k][1:]) for k, (p, _) in programs.items()}
    results = {k: jax.block_until_ready(run()) for k, run in runs.items()}
    times = timing.interleaved(runs, SECONDS)
    ours = next(iter(forms))
    for name, (_, account) in programs.items():
        yield {
            'form': name,
            'ms': times[name],
            'to ours': times[name] / times[ours],
            'difference': f'{difference(results[name], results[ours]):.0e}',
            **{key: account[key] for key in ('temporary MiB', 'compile s')},
        }


def difference(a: Any, b: Any) -> float:
    """Gives the largest difference of two pytrees, relative to each array's largest value."""

    def one(x: Array, y: Array) -> float:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        return float(jnp.abs(x - y).max() / jnp.maximum(jnp.abs(y).max(), 1e-30))

    return max(map(one, jax.tree.leaves(a), jax.tree.leaves(b)))


# BatchNorm and ReLU: (x [B, H, W, C], scale [C], bias [C], running mean [C]) -> [B, H, W, C].


def _ours(x, scale, bias, running):
    module = layers.BatchNorm(dtype=x.dtype)
    stats = {'mean': running, 'var': jnp.ones_like(running)}
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
    return nn.relu(module.apply(variables, x, train=True, mutable=['batch_stats'])[0])


def _by(statistics_of: Callable) -> Callable:
    def f(x, scale, bias, running):
        wide = x.astype(jnp.float32)
        mean, var = statistics_of(wide, running)
        y = (wide - mean) * (lax.rsqrt(var + 1e-5) * scale) + bias
        return nn.relu(y.astype(x.dtype))

    return f


def _automatic(x, running):
    del running
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - mean).mean((0, 1, 2))


def _about(x, centre):
    mean = (x - centre).mean((0, 1, 2))
    var = jnp.square(x - centre).mean((0, 1, 2)) - jnp.square(mean)
    return centre + mean, jnp.maximum(var, 0.0)


@jax.custom_vjp
def _closed_form(x, scale, bias, running):
    return _by(_automatic)(x, scale, bias, running)


def _closed_forward(x, scale, bias, running):
    mean, var = _automatic(x.astype(jnp.float32), running)
    factor = lax.rsqrt(var + 1e-5)
    y = (x.astype(jnp.float32) - mean) * (factor * scale) + bias
    return nn.relu(y.astype(x.dtype)), (x, mean, factor, scale, bias)


def _closed_backward(kept, g):
    x, mean, factor, scale, bias = kept
    normalised = (x.astype(jnp.float32) - mean) * factor
    g = jnp.where(normalised * scale + bias > 0, g.astype(jnp.float32), 0.0)
    sums = g.sum((0, 1, 2)), (g * normalised).sum((0, 1, 2))
    n = x.size // x.shape[-1]
    dx = scale * factor * (g - sums[0] / n - normalised * sums[1] / n)
    return dx.astype(x.dtype), sums[1], sums[0], None


_closed_form.defvjp(_closed_forward, _closed_backward)
NORMS = {
    'ours': _ours,
    'automatic': _by(_automatic),
    'closed form': _closed_form,
    'one pass': _by(_about),
    'E[x^2] - E[x]^2': _by(lambda x, running: _about(x, jnp.zeros_like(running))),
}


def both(function: Callable) -> Callable:
    """Gives (*arguments) -> gradients by the first three, for the output itself as cotangent."""

    def f(*arguments):
        y, backward = jax.vjp(function, *arguments)
        return backward(y)[:3]

    return f


def norms(size: str, dtype: str) -> Iterator[timing.Row]:
    """BatchNorm and ReLU."""
    batch, side, channels = SIZES[size]['norm']
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
    scale, bias, running = (jax.random.normal(key, (channels,)) for key in keys[1:])
    given = x, scale, bias, 0.1 * running
    yield from side_by_side({name: (both(form), *given) for name, form in NORMS.items()})


def heads(size: str, dtype: str) -> Iterator[timing.Row]:
    """Two convolutions of one map."""
    batch, side, channels, features = SIZES[size]['heads']
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
    kernels = [jax.random.normal(key, (3, 3, channels, features), dtype) for key in keys[1:]]

    def apart(x, a, b):
        return layers.convolve(x, a), layers.convolve(x, b)

    def as_one(x, a, b):
        y = layers.convolve(x, jnp.concatenate([a, b], axis=-1))
        return y[..., :features], y[..., features:]

    forms = {'ours: apart': apart, 'as one': as_one}
    yield from side_by_side({name: (both(form), x, *kernels) for name, form in forms.items()})


def pointwise(size: str, dtype: str) -> Iterator[timing.Row]:
    """A convolution of kernel 1x1."""
    batch, side, channels, features = SIZES[size]['pointwise']
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
    kernel = jax.random.normal(keys[1], (1, 1, channels, features), dtype)

    def convolution(x, kernel):
        numbers = ('NHWC', 'HWIO', 'NHWC')
        return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)

    forms = {'ours: product': layers.convolve, 'convolution': convolution}
    yield from side_by_side({name: (both(form), x, kernel) for name, form in forms.items()})


def layout(size: str, dtype: str) -> Iterator[timing.Row]:
    """One convolution; with the channels second, the map is so before and after."""
    batch, side, channels = SIZES[size]['layout']
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, side, side, channels), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, channels, channels), dtype)

    def second(x, kernel):
        numbers = ('NCHW', 'HWIO', 'NCHW')
        return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)

    def summed(convolution):  # the map's gradient as a number, as the forms have it in other orders
        def f(x, kernel):
            dx, dk = both(convolution)(x, kernel)
            return jnp.square(dx).sum(), dk

        return f

    forms = {
        'ours: last': (summed(layers.convolve), x, kernel),
        'second': (summed(second), jnp.moveaxis(x, 3, 1), kernel),
    }
    yield from side_by_side(forms)


def order(size: str) -> Iterator[timing.Row]:
    """The sort of L_c."""
    pixels, classes = SIZES[size]['order']
    keys = jax.random.split(jax.random.key(0))
    labels = jax.random.randint(keys[0], (pixels,), -1, classes)
    hard = jax.random.bernoulli(keys[1], 0.3, (pixels,))

    def coded(labels, hard):
        return contrastive.order_pixels(labels, hard, classes)[0]

    def argsort(labels, hard):
        group = jnp.where(labels >= 0, 2 * labels + ~hard, 2 * classes)
        return jnp.argsort(group, stable=True).astype(jnp.int32)

    forms = {'ours: coded words': coded, 'argsort': argsort}
    yield from side_by_side({name: (form, labels, hard) for name, form in forms.items()})


def options(size: str) -> Iterator[timing.Row]:
    """The whole step under options of XLA, each alone."""
    run = step.setup(step.case_configuration(size, step.BOTH))
    programs = {}
    for chosen in ({}, *OPTIONS[jax.default_backend()]):
        name = ', '.join(f'{key}={value}' for key, value in chosen.items()) or 'ours: none'
        jitted = jax.jit(run.step, compiler_options=chosen)
        try:
            programs[name] = timing.compiled(jitted, run.state, run.batch)
        except Exception as error:  # each version of XLA knows others, and each says so differently
            print(f'{name}: {str(error).splitlines()[0]}', flush=True)
    runs = {k: functools.partial(p, run.state, run.batch) for k, (p, _) in programs.items()}
    times = timing.interleaved(runs, 5 * SECONDS)
    for name, (_, account) in programs.items():
        ratio = times[name] / times['ours: none']
        kept = {key: account[key] for key in ('temporary MiB', 'compile s')}
        yield {'form': name, 'ms': times[name], 'to ours': ratio, **kept}


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a form."""
    s = SIZES[size]
    for dtype in ('float32', 'bfloat16'):
        caption = f'BatchNorm and ReLU, forward and backward, {list(s["norm"])}, {dtype}'
        yield from ((caption, row) for row in norms(size, dtype))
    for dtype in ('float32', 'bfloat16'):
        caption = f"The heads' 3x3, forward and backward, {list(s['heads'])}, {dtype}"
        yield from ((caption, row) for row in heads(size, dtype))
        caption = f'1x1, forward and backward, {list(s["pointwise"])}, {dtype}'
        yield from ((caption, row) for row in pointwise(size, dtype))
        caption = f'3x3 by layout, forward and backward, {list(s["layout"])}, {dtype}'
        yield from ((caption, row) for row in layout(size, dtype))
    yield from ((f'Order of {s["order"][0]:,} pixels', row) for row in order(size))
    yield from ((f'Options of XLA, {step.CAPTION[size]}', row) for row in options(size))


if __name__ == '__main__':
    timing.main('What was tried', rows)
