"""What `benchmarks.against_torch` compares: pairs of functions, and the pairs of whole networks."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from benchmarks import torch_network
from configs import quickstart
from css_jax import config as configs
from css_jax import methods, state
from css_jax.state import Variables
from css_jax.weights import reference

# Images, crop, classes and channels of the representations, of the parts.
SHAPES = {'small': (8, 64, 7, 64), 'real': (4, 512, 21, 256)}
RESNET101 = {'backbone': 'resnet101', 'width': 1.0, 'representation_dim': 256}
# Name, images, crop, and how the network differs from the quickstart's.
NETWORKS = {
    'small': [("the quickstart's network, 8 x 64 x 64", 8, 64, {})],
    'real': [
        ('ResNet-101, 4 x 129 x 129', 4, 129, RESNET101),
        ("the quickstart's network, 8 x 64 x 64", 8, 64, {}),
    ],
}
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
# Rounding alone. The gradient of image pooling's kernel, whose BatchNorm sees a value an image, is
# what is left of much larger terms.
TOLERANCE = 1e-4
# ResNet-101's largest difference, 1e-3, is PyTorch's own from its float64; ours from it is 6e-4.
NETWORK_TOLERANCE = 3e-3
LOOSE = {'gradient/ASPP.convs.4.1.weight': 2e-2}


def arrays(tree: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Gives tensors as arrays, maps [B, C, H, W] as [B, H, W, C]."""
    found = {name: tensor.detach().numpy() for name, tensor in tree.items()}
    return {k: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for k, x in found.items()}


class Pair(NamedTuple):
    """Two functions that give the same.

    Attributes:
        name: of the row.
        ours: gives what XLA computes.
        theirs: layout of memory, see `FORMATS` -> a function that gives what PyTorch computes; its
            first call is compared.
        tolerance: of the difference of an array.
        named: what ours gives -> name -> array.
        torch_named: what theirs gives -> the same names -> array.
        loose: names of arrays that have another tolerance -> it.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[str], Callable[[], Any]]
    tolerance: float = TOLERANCE
    named: Callable[[Any], dict[str, np.ndarray]] = lambda tree: jax.tree.map(np.asarray, tree)
    torch_named: Callable[[Any], dict[str, np.ndarray]] = arrays
    loose: Mapping[str, float] = MappingProxyType({})


def configuration(size: str, **model: Any) -> ConfigDict:
    """Gives the paper's configuration, but for the quickstart's network, of which `model` differs.

    The learning rate is constant, and tau_sim such that some pixels are hard and some are not.
    """
    batch, crop, classes, dim = SHAPES[size]
    c = configs.default()
    c.method, c.num_classes, c.eval.dataset = 'css_mix', classes, 'shapes'
    small = quickstart.get_config('css_mix').model
    c.model.update({**small.to_dict(), 'representation_dim': dim, **model})
    common = {'batch_size': batch, 'crop': (crop, crop)}
    c.data.streams.labelled = configs.stream('shapes', **common)
    c.data.streams.unlabelled = configs.stream('shapes', **common)
    c.contrastive.similarity_temperature = 0.1
    c.optimizer.power = 0.0
    return configs.finalise(c)


def tensors(tree: Any, layout: str = 'contiguous') -> Any:
    """Gives arrays as tensors, maps [B, H, W, C] as [B, C, H, W] in a layout of memory."""

    def tensor(array: Any) -> Tensor:
        array = np.asarray(array)
        if array.dtype == np.int32:
            array = array.astype(np.int64)  # which PyTorch's losses want
        if array.ndim < 4:
            return torch.tensor(array)
        return laid(array.transpose(0, 3, 1, 2), layout)

    return jax.tree.map(tensor, tree)


def laid(array: np.ndarray, layout: str) -> Tensor:
    """Gives an array as a tensor, one of four axes in a layout of memory."""
    tensor = torch.tensor(np.ascontiguousarray(array))
    return tensor.contiguous(memory_format=FORMATS[layout]) if array.ndim == 4 else tensor


def compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    """Compiles ours; the arrays go in as arguments, so that nothing is computed beforehand."""
    arguments = jax.tree.map(jnp.asarray, arguments)
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: program(*arguments)


def network(size: str) -> Iterator[Pair]:
    """Gives networks: outputs, gradients and running statistics."""
    for name, batch, crop, model in NETWORKS[size]:
        config = configuration('real' if model else 'small', **model)
        yield network_pair(name, config, batch, crop)


def network_pair(name: str, config: ConfigDict, batch: int, crop: int) -> Pair:
    """Gives the network of a configuration, with random weights, images and output gradients."""
    ctx = methods.context(config)
    rng = np.random.default_rng(0)
    variables = decided(jax.jit(lambda key: state.variables(ctx, key))(jax.random.key(0)), rng)
    # Images of other brightness and contrast: BatchNorm after image pooling divides by how much
    # the images' means differ, which for noise alone is nothing but rounding.
    images = rng.standard_normal((batch, crop, crop, 3), np.float32)
    images *= np.linspace(0.5, 2, batch, dtype=np.float32)[:, None, None, None]
    images += rng.standard_normal((batch, 1, 1, 3), np.float32)
    shapes = jax.eval_shape(lambda: ctx.train(variables, images)[0])
    cotangents = {k: rng.standard_normal(x.shape, np.float32) for k, x in shapes.items()}

    def passes(variables: Variables, images: Any, cotangents: Any) -> tuple:
        def forward(params):
            return ctx.train(Variables(params, variables.batch_stats), images)

        out, backward, stats = jax.vjp(forward, variables.params, has_aux=True)
        return out, backward(cotangents)[0], stats

    def theirs(layout: str) -> Callable[[], tuple]:
        entries = reference.to_reference(vars(variables))
        entries = {key: laid(array, layout) for key, array in entries.items()}
        trained = torch_network.parameters(entries)
        for tensor in trained.values():
            tensor.requires_grad_(True)
        x, given = tensors(images, layout), tensors(cotangents, layout)

        def run():
            out = torch_network.forward(entries, x, config.model.output_stride)
            wanted = [given[head] for head in out]
            gradients = torch.autograd.grad(list(out.values()), list(trained.values()), wanted)
            return out, gradients, entries

        return run

    def named(result: tuple) -> dict[str, np.ndarray]:
        out, gradients, stats = result
        found = reference.to_reference({'params': gradients, 'batch_stats': stats})
        return {**jax.tree.map(np.asarray, out), **grouped(found)}

    def torch_named(result: tuple) -> dict[str, np.ndarray]:
        out, gradients, entries = result
        trained = torch_network.parameters(entries)
        found = {**entries, **dict(zip(trained, gradients, strict=True))}
        return {**arrays(out), **grouped({k: x.detach().numpy() for k, x in found.items()})}

    def grouped(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {f'gradient/{k}' if '.running_' not in k else k: x for k, x in found.items()}

    ours = compiled(passes, variables, images, cotangents)
    return Pair(name, ours, theirs, NETWORK_TOLERANCE, named, torch_named, LOOSE)


def decided(variables: Variables, rng: np.random.Generator) -> Variables:
    """Gives random BatchNorms of which each channel is all above 0 or all below, to be compared.

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

    params = jax.tree_util.tree_map_with_path(draw, variables.params)
    return variables.replace(params=params)
