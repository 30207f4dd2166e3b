"""Which features the heads of a network read, and what these are multiplied by."""

from collections.abc import Mapping, Sequence

import jax

# Head -> the feature of the backbone that it reads; those that are not in it read the network's.
READS = {'auxiliary': 'layer3'}


def read(
    outputs: Sequence[tuple[str, int]], features: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return the features that heads of READS read: head name -> [B, h, w, C].

    Args:
        outputs: pairs (head name, channels).
        features: all that the backbone gives.

    Raises:
        ValueError: a head reads a feature that the backbone does not have.
    """
    names = {name: READS[name] for name, _ in outputs if name in READS}
    for name, feature in names.items():
        if feature not in features:
            raise ValueError(
                f'head {name!r} reads {feature!r}; expected a feature that the backbone has, '
                f'one of {", ".join(features)}'
            )
    return {name: features[feature] for name, feature in names.items()}


def scaled(
    features: Mapping[str, jax.Array],
    names: Sequence[str],
    scale: Mapping[str, jax.Array] | None,
) -> dict[str, jax.Array]:
    """Return features whose channels are multiplied by factors of each image.

    Args:
        features: name -> [B, h, w, C].
        names: of the features that may be multiplied.
        scale: name -> factors [B, C]; None: there are none.

    Raises:
        ValueError: factors of another feature.
    """
    if unknown := set(scale or {}) - set(names):
        raise ValueError(
            f'channel_scale has {", ".join(sorted(unknown))}; expected features out of '
            f'{", ".join(names)}'
        )
    return dict(features) | {
        name: features[name] * factors[:, None, None].astype(features[name].dtype)
        for name, factors in (scale or {}).items()
    }
