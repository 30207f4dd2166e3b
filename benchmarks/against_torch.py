"""Ours and PyTorch side by side on a CPU: the network with both heads, forward and backward.

    pip install -r requirements-bench.txt
    python -m benchmarks.against_torch --size real --threads 1
    python -m benchmarks.against_torch --size real --threads 2 --cases resnet18,mobilenet_v1

Our network under `jax.jit`, and benchmarks/torch_network.py in eager mode: the same numbers, shapes
and type (float32), on the same cores, which are chosen before either starts its threads. What they
give (outputs, gradients, running statistics) is compared first; where it is not equal, the command
fails. Then they are timed in turns, PyTorch with its maps in whichever layout of memory it is
faster with. 'jax / torch' is the median of the ratios of single turns, beside their quartiles; the
times are medians, the 'least' ones minima.

A difference is the largest over an array, by the array's largest value; of a gradient, by at least
a hundredth of the network's largest gradient, as one that is zero but for rounding has no correct
digits. 'small' is the quickstart's network, 'real' the others of CASES.
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
from css_jax.models import layers
from css_jax.state import Variables

# Images, their height and width, how the network differs from the quickstart's.
FULL = {'model.width': 1.0, 'model.representation_dim': 256}
CASES = {
    'quickstart': (8, (64, 64), {}),
    'resnet101': (4, (129, 129), FULL | {'model.backbone': 'resnet101'}),
    # What a practitioner begins with, on images of CamVid's shape.
    'resnet18': (8, (128, 160), FULL | {'model.backbone': 'resnet18'}),
    'mobilenet_v1': (
        *(8, (128, 160)),
        {'model.backbone': 'mobilenet_v1', 'model.width': 0.75, 'model.representation_dim': 256},
    ),
    'efficientnet_lite0': (
        *(8, (128, 160)),
        FULL | {'model.backbone': 'efficientnet_lite0', 'model.output_stride': 16},
    ),
}
# Rounding alone. What is left of much larger terms may differ more: the gradient of the kernel
# after image pooling, whose BatchNorm sees a value an image, and those of biases whose channels the
# next BatchNorm centres again (PyTorch adds up in pairs, XLA from the first to the last).
TOLERANCE = 3e-3
LOOSE = {
    'gradient/params/aspp/pool_conv/kernel': 2e-2,
    'gradient/params/backbone/layer4_0/bn2/bias': 2e-2,
    'gradient/params/backbone/layer4_0/downsample_bn/bias': 2e-2,
}
LAYOUTS = ('contiguous', 'channels_last')
SMALL = 0.01  # of the largest gradient
SECONDS = {'small': 4.0, 'real': 60.0}  # of timing a case; at least `LEAST` turns
LEAST = 5
PAUSE = 0.02  # s; threads that wait for work spin for a while, on the other program's cores


def configuration(**changes: Any) -> ConfigDict:
    """Return the quickstart's configuration in float32, but for some keys."""
    return step.configuration('small', **{'model.dtype': 'float32', **changes})


def programs(
    config: ConfigDict, batch: int, size: tuple[int, int]
) -> tuple[Callable[[], tuple], Callable[[str], Callable]]:
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
    images = rng.standard_normal((batch, *size, 3), np.float32)
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

        entries = {k: tensor(a) for k, a in in_torch_order(vars(variables)).items()}
        trained = torch_network.parameters(entries)
        for entry in trained.values():
            entry.requires_grad_(True)
        x = tensor(images.transpose(0, 3, 1, 2))
        wanted = {head: tensor(a.transpose(0, 3, 1, 2)) for head, a in cotangents.items()}

        def run() -> tuple:
            model = config.model
            out = torch_network.forward(entries, x, model.backbone, model.output_stride)
            heads = [wanted[head] for head in out]
            gradients = torch.autograd.grad(list(out.values()), list(trained.values()), heads)
            return out, {**entries, **dict(zip(trained, gradients, strict=True))}

        return run

    return lambda: jax.block_until_ready(program(*given)), theirs


def in_torch_order(variables: dict) -> dict[str, np.ndarray]:
    """Return path -> array, kernels as [out, in, h, w]."""
    arrays = {path: np.asarray(array) for path, array in state.flat(variables).items()}
    return {k: x.transpose(3, 2, 0, 1) if x.ndim == 4 else x for k, x in arrays.items()}


def decided(variables: Variables, rng: np.random.Generator) -> Variables:
    """Return variables whose BatchNorms leave each channel all in 0 to 6 or all below 0.

    Where the argument of a ReLU is within rounding of 0 (of a ReLU6: or 6), two programs with other
    orders of summation may decide differently, and gradients then differ by percents. A residual
    block's last BatchNorm and the projection of its shortcut are above 0, so that their sum is.
    """
    last = 'bn3' if any('/bn3/' in path for path in state.flat(variables.params)) else 'bn2'

    def draw(path: tuple, leaf: Any) -> Any:
        module, name = jax.tree_util.keystr(path, simple=True, separator='/').split('/')[-2:]
        if name == 'scale':
            return rng.uniform(0.3, 0.5, leaf.shape).astype(np.float32)
        if name == 'bias' and 'bn' in module:
            residual = module in (last, 'downsample_bn')
            sign = 1 if residual else rng.choice([-1, 1], leaf.shape)
            return (sign * rng.uniform(2.9, 3.1, leaf.shape)).astype(np.float32)
        return leaf

    return variables.replace(params=jax.tree_util.tree_map_with_path(draw, variables.params))


def ours_named(result: tuple) -> dict[str, np.ndarray]:
    """Return our arrays by name, see `programs`."""
    out, gradients, stats = result
    found = in_torch_order({'params': gradients, 'batch_stats': stats})
    return jax.tree.map(np.asarray, out) | _grouped(found)


def torch_named(result: tuple) -> dict[str, np.ndarray]:
    """Return PyTorch's arrays by the same names, maps as [B, H, W, C]."""
    out, found = ({k: x.detach().numpy() for k, x in tree.items()} for tree in result)
    return {k: x.transpose(0, 2, 3, 1) for k, x in out.items()} | _grouped(found)


def _grouped(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f'gradient/{k}' if k.startswith('params/') else k: x for k, x in found.items()}


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


def rows(size: str, threads: str, cases: str) -> Iterator[tuple[str, timing.Row]]:
    """Give a row a case.

    Raises:
        ValueError: a case that there is not, or whose results are not equal.
    """
    names = (
        cases.split(',')
        if cases
        else [n for n in CASES if (n == 'quickstart') == (size == 'small')]
    )
    for name in names:
        layers.check_choice('--cases', name, CASES)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    jax.config.update('jax_platforms', 'cpu')
    import torch  # makes its threads for the cores of now

    torch.set_num_threads(int(threads))
    for name in names:
        yield f'float32, forward + backward, torch {torch.__version__}', row(name, size, threads)


def row(case: str, size: str, threads: str) -> timing.Row:
    """Compare, then time one of CASES.

    Raises:
        ValueError: the results are not equal.
    """
    batch, shape, changes = CASES[case]
    config = configuration(**changes)
    ours, theirs = programs(config, batch, shape)
    expected, runs = ours_named(ours()), {layout: theirs(layout) for layout in LAYOUTS}
    for layout, run in runs.items():
        errors = differences(expected, torch_named(run()))
        wrong = {k: error for k, error in errors.items() if error > LOOSE.get(k, TOLERANCE)}
        if wrong:
            raise ValueError(f'{case}, {layout}: not equal: {wrong}')
    trial = in_turns(list(runs.values()), SECONDS[size] / 4)
    layout = min(zip(map(statistics.median, trial), runs, strict=True))[1]
    times = in_turns([runs[layout], ours], SECONDS[size])
    ratios = [b / a for a, b in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return {
        'network': f'{config.model.backbone}, {batch} x {shape[0]} x {shape[1]}',
        'threads': int(threads),
        'torch ms': statistics.median(times[0]),
        'jax ms': statistics.median(times[1]),
        'torch least': min(times[0]),
        'jax least': min(times[1]),
        'jax / torch': statistics.median(ratios),
        'quartiles': f'{low:.2f}-{high:.2f}',
        'layout': layout,
        'difference': f'{max(e for k, e in errors.items() if k not in LOOSE):.0e}',
    }


if __name__ == '__main__':
    timing.main('Against PyTorch', rows, threads='1', cases='')
