"""Ours and PyTorch side by side on a CPU: the network with both heads, forward and backward.

    pip install -r requirements-bench.txt
    python -m benchmarks.against_torch --size real --threads 1

Our network under `jax.jit`, and benchmarks/torch_network.py in eager mode: the same numbers, shapes
and type (float32), on the same cores, which are chosen before either starts its threads. What they
give (outputs, gradients, running statistics) is compared first; where it is not equal, the command
fails. Then they are timed in turns, PyTorch with its maps in whichever layout of memory it is
faster with. 'jax / torch' is the median of the ratios of single turns, beside their quartiles.

A difference is the largest over an array, by the array's largest value; of a gradient, by at least
a hundredth of the network's largest gradient, as one that is zero but for rounding has no correct
digits. 'small' is the quickstart's network, 'real' ResNet-101 at 129 x 129.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import step, timing
from css_jax import methods, state
from css_jax.state import Variables
from css_jax.weights import reference

# Images, their side, how the network differs from the quickstart's.
RESNET101 = {'model.backbone': 'resnet101', 'model.width': 1.0, 'model.representation_dim': 256}
SIZES = {'small': (8, 64, {}), 'real': (4, 129, RESNET101)}
# Rounding alone: ResNet-101's largest, 1e-3, is PyTorch's own from its float64; ours from it is
# 6e-4. The gradient of the kernel after image pooling, whose BatchNorm sees a value an image, is
# what is left of much larger terms.
TOLERANCE, LOOSE = 3e-3, {'gradient/ASPP.convs.4.1.weight': 2e-2}
LAYOUTS = ('contiguous', 'channels_last')
SMALL = 0.01  # of the largest gradient
SECONDS = {'small': 4.0, 'real': 60.0}  # of timing; at least `LEAST` turns
LEAST = 5
PAUSE = 0.02  # s; threads that wait for work spin for a while, on the other program's cores


def configuration(**changes: Any) -> ConfigDict:
    """Return the quickstart's configuration in float32, but for some keys."""
    return step.configuration('small', **{'model.dtype': 'float32', **changes})


def programs(config: ConfigDict, batch: int, side: int) -> tuple[Callable, Callable]:
    """Return both programs, compiled, on random weights, images and output gradients.

    Returns:
        () -> our arrays, and layout of memory -> () -> PyTorch's; `ours_named` and `torch_named`
        make them alike. The first call of either is compared: PyTorch's moves its statistics.
    """
    import torch

    from benchmarks import torch_network

    ctx, rng = methods.context(config), np.random.default_rng(0)
    variables = decided(jax.jit(lambda key: state.variables(ctx, key))(jax.random.key(0)), rng)
    # Images of other brightness and contrast: BatchNorm after image pooling divides by how much
    # the images' means differ, which for noise alone is nothing but rounding.
    images = rng.standard_normal((batch, side, side, 3), np.float32)
    images *= np.linspace(0.5, 2, batch, dtype=np.float32)[:, None, None, None]
    images += rng.standard_normal((batch, 1, 1, 3), np.float32)
    shapes = jax.eval_shape(lambda: ctx.train(variables, images)[0])
    cotangents = {k: rng.standard_normal(x.shape, np.float32) for k, x in shapes.items()}

    def passes(variables: Variables, images: Any, cotangents: Any) -> tuple:
        def forward(params):
            return ctx.train(Variables(params, variables.batch_stats), images)

        out, backward, stats = jax.vjp(forward, variables.params, has_aux=True)
        return out, backward(cotangents)[0], stats

    given = jax.tree.map(jnp.asarray, (variables, images, cotangents))
    program = jax.jit(passes).lower(*given).compile()

    def theirs(layout: str) -> Callable[[], tuple]:
        kinds = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}

        def tensor(array: np.ndarray) -> torch.Tensor:
            found = torch.tensor(np.ascontiguousarray(array))
            return found.contiguous(memory_format=kinds[layout]) if array.ndim == 4 else found

        entries = {k: tensor(a) for k, a in reference.to_reference(vars(variables)).items()}
        trained = torch_network.parameters(entries)
        for entry in trained.values():
            entry.requires_grad_(True)
        x = tensor(images.transpose(0, 3, 1, 2))
        wanted = {head: tensor(a.transpose(0, 3, 1, 2)) for head, a in cotangents.items()}

        def run() -> tuple:
            out = torch_network.forward(entries, x, config.model.output_stride)
            heads = [wanted[head] for head in out]
            gradients = torch.autograd.grad(list(out.values()), list(trained.values()), heads)
            return out, {**entries, **dict(zip(trained, gradients, strict=True))}

        return run

    return lambda: jax.block_until_ready(program(*given)), theirs


def decided(variables: Variables, rng: np.random.Generator) -> Variables:
    """Return variables whose BatchNorms leave each channel all above 0 or all below.

    Where a ReLU's argument is within rounding of 0, two programs with other orders of summation
    may decide differently, and gradients then differ by percents. A residual block's last one and
    the projection of its shortcut are above 0, so that their sum is.
    """
    last = 'bn3' if any('/bn3/' in path for path in state.flat(variables.params)) else 'bn2'

    def draw(path: tuple, leaf: Any) -> Any:
        module, name = jax.tree_util.keystr(path, simple=True, separator='/').split('/')[-2:]
        if name == 'scale':
            return rng.uniform(0.5, 1, leaf.shape).astype(np.float32)
        if name == 'bias' and 'bn' in module:
            residual = module in (last, 'downsample_bn')
            sign = 1 if residual else rng.choice([-1, 1], leaf.shape)
            return (sign * rng.uniform(5, 6, leaf.shape)).astype(np.float32)
        return leaf

    return variables.replace(params=jax.tree_util.tree_map_with_path(draw, variables.params))


def ours_named(result: tuple) -> dict[str, np.ndarray]:
    """Return our arrays by name, see `programs`."""
    out, gradients, stats = result
    found = reference.to_reference({'params': gradients, 'batch_stats': stats})
    return jax.tree.map(np.asarray, out) | _grouped(found)


def torch_named(result: tuple) -> dict[str, np.ndarray]:
    """Return PyTorch's arrays by the same names, maps as [B, H, W, C]."""
    out, found = ({k: x.detach().numpy() for k, x in tree.items()} for tree in result)
    return {k: x.transpose(0, 2, 3, 1) for k, x in out.items()} | _grouped(found)


def _grouped(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k if '.running_' in k else f'gradient/{k}': x for k, x in found.items()}


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the differences by name; infinite where an array lacks or is not finite."""
    gradients = [np.abs(x).max() for name, x in theirs.items() if name.startswith('gradient/')]
    found = dict.fromkeys([*ours, *theirs], float('inf'))
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        least = SMALL * max(gradients) if name.startswith('gradient/') else 1e-30
        if a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all():
            found[name] = float(np.abs(a - b).max() / max(np.abs(b).max(), least))
    return found


def in_turns(runs: list[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Time functions one after the other, again and again: for each its milliseconds."""
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while len(times[0]) < LEAST or time.perf_counter() < end:
        for run, spent in zip(runs, times, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            spent.append(1e3 * (time.perf_counter() - start))
    return times


def rows(size: str, threads: str) -> Iterator[tuple[str, timing.Row]]:
    """Give one row.

    Raises:
        ValueError: the results are not equal.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    jax.config.update('jax_platforms', 'cpu')
    import torch  # makes its threads for the cores of now

    torch.set_num_threads(int(threads))
    batch, side, changes = SIZES[size]
    config = configuration(**changes)
    ours, theirs = programs(config, batch, side)
    expected, runs = ours_named(ours()), {layout: theirs(layout) for layout in LAYOUTS}
    for layout, run in runs.items():
        errors = differences(expected, torch_named(run()))
        wrong = {k: error for k, error in errors.items() if error > LOOSE.get(k, TOLERANCE)}
        if wrong:
            raise ValueError(f'{layout}: not equal: {wrong}')
    trial = in_turns(list(runs.values()), SECONDS[size] / 4)
    layout = min(zip(map(statistics.median, trial), runs, strict=True))[1]
    times = in_turns([runs[layout], ours], SECONDS[size])
    ratios = [b / a for a, b in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method='inclusive')
    yield (
        f'{config.model.backbone}, {batch} x {side} x {side}, float32, forward + backward',
        {
            'threads': int(threads),
            'torch ms': statistics.median(times[0]),
            'jax ms': statistics.median(times[1]),
            'jax / torch': statistics.median(ratios),
            'quartiles': f'{low:.2f}-{high:.2f}',
            'layout': layout,
            'difference': f'{max(e for k, e in errors.items() if k not in LOOSE):.0e}',
            'torch': torch.__version__,
        },
    )


if __name__ == '__main__':
    timing.main('Against PyTorch', rows, threads='1')
