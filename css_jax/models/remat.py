"""Rematerialisation: stages whose activations are computed anew in the backward pass, not kept.

Of a named stage only the inputs of its runs are kept from the forward pass. A run is about sqrt(n)
of a layer's n blocks (Chen et al., arXiv 1604.06174) and has its activations back alone: of
ResNet-101's layer3 runs of one block would keep 23 maps, and runs of four keep 6. Each block is
computed once more whatever the length of the runs. ASPP, decoder and a ResNet's stem are one each.

XLA's compiler for CPUs takes the second computation out again, as a common subexpression; those for
GPU and TPU do not (docs/memory.md).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from css_jax.models.layers import Train, check_choice

# In the order of the forward pass; the same for every backbone: layer1 ends at stride 4, and each
# further layer begins where the network for classification has its next stride. The decoder is all
# behind ASPP, heads included.
STAGES = ('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'aspp', 'decoder')
ALL = 'all'


def stages(names: Any) -> tuple[str, ...]:
    """Return the stages that `config.model.remat` names.

    Args:
        names: a tuple of STAGES, or with ALL.

    Returns:
        The stages, all of them for ALL.

    Raises:
        ValueError: not a tuple, or a stage that there is not.
    """
    if not isinstance(names, (tuple, list)):
        raise ValueError(
            f'remat is {names!r}; expected a tuple of stages, out of {", ".join(STAGES)}, or '
            f'({ALL!r},)'
        )
    for name in names:
        check_choice('remat', name, (*STAGES, ALL))
    return STAGES if ALL in names else tuple(names)


def run(module: nn.Module, stage: str, function: Callable, *arrays: Any) -> Any:
    """Call `function` on the arrays; what it computes is not kept if `module.remat` has the stage.

    Args:
        module: in whose `__call__` this is.
        stage: one of STAGES.
        function: (module, *arrays) -> pytree of arrays. It makes its submodules itself, with names
            of their own, so that the parameters' paths are the same either way.
        *arrays: all of its inputs that a gradient may flow to, arrays or pytrees of them.
    """
    return (nn.remat(function) if stage in module.remat else function)(module, *arrays)


def chain(
    module: nn.Module,
    stage: str,
    blocks: Sequence[Callable[[], nn.Module]],
    x: jax.Array,
    train: Train,
) -> jax.Array:
    """Apply the blocks of a stage one after the other, as runs if `module.remat` has the stage.

    Args:
        module: in whose `__call__` this is.
        stage: one of STAGES.
        blocks: make the submodules, (x, train) -> x, each with a name of its own.
        x: [B, H, W, C].
        train: given to every block.
    """
    length = math.isqrt(len(blocks))
    for i in range(0, len(blocks), length):

        def apply(_: nn.Module, x: jax.Array, part: Sequence = blocks[i : i + length]) -> jax.Array:
            for block in part:
                x = block()(x, train)
            return x

        x = run(module, stage, apply, x)
    return x
