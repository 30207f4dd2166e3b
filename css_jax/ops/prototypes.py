"""Class prototypes of the representation space: Eq. 2 and 3 of the CSS paper."""

import jax
import jax.numpy as jnp

# Vectors shorter than this have no direction: cosines with them are 0, and so are the gradients.
_SMALLEST_NORM = 1e-8


def inverse_norm(vectors: jax.Array) -> jax.Array:
    """Return 1 / |v| along the last axis, and 0 (with zero gradient) for a zero vector.

    Args:
        vectors: [..., D], any float type.

    Returns:
        [...] float32.
    """
    square = jnp.sum(jnp.square(vectors.astype(jnp.float32)), axis=-1)
    nonzero = square >= _SMALLEST_NORM**2
    # Both branches of a where are differentiated: the unused one must be finite as well.
    return jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def normalise(vectors: jax.Array) -> jax.Array:
    """Return vectors [..., D] divided by their lengths, float32; zero vectors stay zero."""
    return vectors.astype(jnp.float32) * inverse_norm(vectors)[..., None]


def cosine(representations: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Return the cosine similarity of each representation with each prototype (Eq. 4).

    The prototypes are normalised before the product and the representations after it, so that no
    second copy of the representation map is made.

    Args:
        representations: [..., D], any float type.
        prototypes: [C, D].

    Returns:
        [..., C] float32 in [-1, 1]; 0 where either vector is zero.

    Raises:
        ValueError: the two do not have the same D.
    """
    if representations.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f'representations {representations.shape} and prototypes {prototypes.shape} differ '
            'in their last axis; both should have D channels'
        )
    products = jnp.einsum(
        '...d,cd->...c',
        representations,
        normalise(prototypes),
        precision='highest',
        preferred_element_type=jnp.float32,
    )
    return products * inverse_norm(representations)[..., None]


def class_sums(
    representations: jax.Array,
    labels: jax.Array,
    num_classes: int,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the raw representations of each class and its pixels (Eq. 2).

    Over several devices both are summed before they are divided, never the means.

    Args:
        representations: [..., D], any float type; not normalised.
        labels: [...] int; pixels outside [0, num_classes), such as ignore (-1), do not count.
        num_classes: C.
        mask: [...] bool, the pixels that count; None: all of them.

    Returns:
        sums [C, D] and counts [C], both float32.

    Raises:
        ValueError: labels or mask are not of the shape of the pixels.
    """
    check_pixels(representations, labels=labels)
    if mask is not None:
        check_pixels(representations, mask=mask)
        labels = jnp.where(mask, labels, -1)
    pixels = representations.reshape(-1, representations.shape[-1])
    member = labels.reshape(-1) == jnp.arange(num_classes)[:, None]  # [C, N]
    sums = jnp.matmul(
        member.astype(pixels.dtype),
        pixels,
        precision='highest',
        preferred_element_type=jnp.float32,
    )
    return sums, jnp.sum(member, axis=1).astype(jnp.float32)


def update(
    prototypes: jax.Array,
    seen: jax.Array,
    sums: jax.Array,
    counts: jax.Array,
    decay: float = 0.99,
) -> tuple[jax.Array, jax.Array]:
    """Move each class's prototype towards its mean of this iteration (Eq. 3).

    Args:
        prototypes: [C, D] float32.
        seen: [C] bool or float, the classes whose prototype has a value.
        sums: [C, D], over all devices, of `class_sums`.
        counts: [C], likewise.
        decay: weight of the old value.

    Returns:
        (prototypes, seen): decay * old + (1 - decay) * mean; the mean itself where the class is
        seen for the first time; unchanged where the class has no pixel.
    """
    present = counts > 0
    mean = sums / jnp.maximum(counts, 1)[:, None]
    moved = jnp.where(seen.astype(bool)[:, None], decay * prototypes + (1 - decay) * mean, mean)
    updated = jnp.where(present[:, None], moved, prototypes).astype(prototypes.dtype)
    return updated, jnp.maximum(seen, present.astype(seen.dtype))


def mean_cosine(prototypes: jax.Array, seen: jax.Array) -> jax.Array:
    """Return the mean cosine over the pairs of different classes seen, for the log.

    Args:
        prototypes: [C, D].
        seen: [C] bool or float.

    Returns:
        Scalar float32; 0 with fewer than two classes seen.
    """
    seen = seen.astype(bool)
    pairs = seen[:, None] & seen[None, :] & ~jnp.eye(len(seen), dtype=bool)
    total = jnp.sum(jnp.where(pairs, cosine(prototypes, prototypes), 0.0))
    return total / jnp.maximum(jnp.sum(pairs), 1)


def check_pixels(representations: jax.Array, **arrays: jax.Array) -> None:
    """Raise ValueError if an array is not [...] for representations [..., D]."""
    for name, array in arrays.items():
        if array.shape != representations.shape[:-1]:
            raise ValueError(
                f'{name} has shape {array.shape}; expected {representations.shape[:-1]}, one for '
                f'each pixel of representations {representations.shape}'
            )
