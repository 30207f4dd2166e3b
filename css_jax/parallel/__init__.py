"""Devices and processes: the only place that knows of jit, meshes and collectives."""

from css_jax.parallel.collectives import (
    Keys,
    gather,
    next_example,
    next_of_first_device,
    psum,
    rank,
    size,
    step_keys,
    varying,
)
from css_jax.parallel.layout import AXIS, MODES, Layout, compile
from css_jax.parallel.processes import (
    agree,
    from_primary,
    leave,
    on_primary,
    primary,
    process,
    start,
    stops,
    together,
)

__all__ = [
    'AXIS',
    'MODES',
    'Keys',
    'Layout',
    'agree',
    'compile',
    'from_primary',
    'gather',
    'leave',
    'next_example',
    'next_of_first_device',
    'on_primary',
    'primary',
    'process',
    'psum',
    'rank',
    'size',
    'start',
    'step_keys',
    'stops',
    'together',
    'varying',
]
