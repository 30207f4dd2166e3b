"""The attributes of a backbone that has a stem and dilations of its own."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from css_jax.models import remat
from css_jax.models.layers import check_choice


def fixed(
    config: Any,
    axis_name: str | None,
    name: str,
    strides: Sequence[int] | None,
    first_dilation: str | None = 'previous',
) -> dict[str, Any]:
    """Return what `config` (config.model) says of such a backbone, but its output stride.

    Args:
        config: has stem, output_stride, width, dtype; may have atrous, remat, and of
            first_dilation and multi_grid what changes nothing.
        axis_name: of the devices whose BatchNorm statistics are shared, or None.
        name: of the network, for messages.
        strides: the output strides that there are; None: the key of this name is not read.
        first_dilation: what the key of this name calls the network's dilations; None: it has none.

    Raises:
        ValueError: an output stride, a stem, a first dilation, a multi-grid or a stage of remat
            that there is not.
    """
    if strides is not None:
        check_choice('output_stride', config.output_stride, strides)
    if config.stem != 'conv7':
        raise ValueError(
            f"stem is {config.stem!r}; expected 'conv7', the default: {name} has its own stem"
        )
    found = getattr(config, 'first_dilation', 'auto')
    check_choice('first_dilation', found, [c for c in ('auto', first_dilation) if c])
    if multi_grid := tuple(getattr(config, 'multi_grid', ())):
        raise ValueError(
            f'multi_grid is {multi_grid}; expected (), the default: {name} has no residual blocks '
            'of layer4, which it is for'
        )
    return {
        'width': config.width,
        'atrous': getattr(config, 'atrous', 'auto'),
        'remat': remat.stages(getattr(config, 'remat', ())),
        'dtype': jnp.dtype(config.dtype),
        'axis_name': axis_name,
    }
