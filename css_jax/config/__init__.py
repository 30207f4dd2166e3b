"""Where a value comes from: the table of keys, and what fills in those that nobody sets."""

from css_jax.config.finalise import finalise, origins
from css_jax.config.table import default, keys, stream

__all__ = ['default', 'finalise', 'keys', 'origins', 'stream']
