"""Which features the heads of a network read."""

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
