"""Features that a method multiplies, channel by channel, between the backbone and the heads."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def scale(
    features: Mapping[str, Array], factors: Mapping[str, Array] | Array | None
) -> dict[str, Array]:
    """Multiply features by factors of their channels.

    Args:
        features: name -> [B, h, w, C], all that the heads read.
        factors: name -> [k B, C]; None: nothing is done. With k > 1 the heads get k copies of the
            batch one after the other, each with factors of its own, while the backbone runs on it
            once. Features that are not named are copied as they are. One array is of all features.

    Returns:
        Name -> [k B, h, w, C].

    Raises:
        ValueError: a name that no feature has, or factors of another shape.
    """
    if factors is None:
        return dict(features)
    if not isinstance(factors, Mapping):
        factors = dict.fromkeys(features, factors)
    if unknown := sorted(set(factors) - set(features)):
        raise ValueError(
            f'channel_scale: got {unknown}, expected features out of {", ".join(features)}'
        )
    copies = max((len(x) // len(features[name]) for name, x in factors.items()), default=1)
    found = {
        name: jnp.tile(x, (copies, *[1] * (x.ndim - 1))) if copies > 1 else x
        for name, x in features.items()
    }
    for name, given in factors.items():
        x = found[name]
        if given.shape != (len(x), x.shape[-1]):
            raise ValueError(
                f'channel_scale: got {given.shape} for {name!r}, expected {(len(x), x.shape[-1])}'
            )
        found[name] = x * given[:, None, None].astype(x.dtype)
    return found


@functools.lru_cache(maxsize=16)
def channels(module: nn.Module, names: tuple[str, ...], crop: tuple[int, int]) -> dict[str, int]:
    """Return the channels of features of a network's backbone; nothing is computed.

    Args:
        module: a network with the attribute `backbone`, (images, train) -> features by name.
        names: of the features.
        crop: height and width of images that the network takes.

    Returns:
        Name -> C.
    """
    images = jax.ShapeDtypeStruct((1, *crop, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def features(key: Array, images: Array) -> dict[str, Array]:
        return module.backbone.init_with_output(key, images, False)[0]

    found = jax.eval_shape(features, key, images)
    return {name: found[name].shape[-1] for name in names}
