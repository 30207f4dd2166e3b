"""The contrastive loss L_c of CSS (Eq. 9), with static shapes and without the paper's memory.

One sort orders the pixels by (class, hard before easy). A uniform draw with replacement is then an
index, start + floor(u * count), for anchors (the hard part of a class) and for negatives (all of
it) alike. Negatives and prototypes are constants, so the gradient with respect to the anchors is
computed with the loss, class by class; the backward pass neither stores nor repeats similarities.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd, log

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from css_jax.ops import prototypes as prototype_ops

# Sampled negatives are gathered for this many anchors at a time.
_ANCHORS_AT_ONCE = 32
# With more classes those without anchors are left out; to ask for each makes a GPU wait a moment.
_CLASSES_ALWAYS = 32
# Class probabilities of the negatives in whole units: a class of probability 0 has none at all,
# which sums of rounded floats would not promise.
_PROBABILITY_UNITS = 2**23


def order_pixels(
    labels: jax.Array, hard: jax.Array, num_classes: int, segments: Sequence[int] = ()
) -> tuple[jax.Array, jax.Array]:
    """Order the pixels by (class, hard before easy, index); pixels of no class come last.

    Args:
        labels: [N] int; pixels outside [0, num_classes) are not valid.
        hard: [N] bool.
        num_classes: C.
        segments: lengths of S consecutive parts of the pixels, counted apart; (): one.

    Returns:
        order [N] int32, pixel indices; counts [C, 2S] int32, each class's hard pixels in every
        segment, then its easy ones.
    """
    parts = max(len(segments), 1)
    segment = np.repeat(np.arange(parts), segments or (labels.size,))  # a constant
    groups = 2 * parts * num_classes
    valid = (labels >= 0) & (labels < num_classes)
    group = (2 * labels + ~hard.astype(bool)) * parts + segment
    group = jnp.where(valid, group, groups).astype(jnp.uint32)
    index_bits = max(1, (labels.size - 1).bit_length())
    if groups.bit_length() + index_bits <= 32:
        # Group and index in one word: sorting single words is four times as fast as an argsort.
        words = jnp.sort((group << index_bits) | jnp.arange(labels.size, dtype=jnp.uint32))
        order = (words & (2**index_bits - 1)).astype(jnp.int32)
        group = words >> index_bits
    else:
        order = jnp.argsort(group, stable=True).astype(jnp.int32)
        group = group[order]
    bounds = jnp.searchsorted(group, jnp.arange(groups + 1, dtype=jnp.uint32))
    return order, jnp.diff(bounds).astype(jnp.int32).reshape(num_classes, 2 * parts)


def draw(key: jax.Array, counts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw whole numbers uniformly from [0, counts), with replacement: floor(u * counts).

    Args:
        key: random key.
        counts: int, broadcastable to shape.
        shape: of the draws.

    Returns:
        int32 of that shape; 0 where the count is 0.
    """
    ranks = (jax.random.uniform(key, shape) * counts).astype(jnp.int32)
    # A product just below the count rounds up to it.
    return jnp.clip(ranks, 0, jnp.maximum(counts - 1, 0))


def log_class_probabilities(
    prototypes: jax.Array, present: jax.Array, temperature: float
) -> jax.Array:
    """Return log p(c'|c), the law of the negatives' classes: softmax(cos(rho_c, rho_c') / tau).

    Args:
        prototypes: [C, D].
        present: [C] bool.
        temperature: tau_c.

    Returns:
        [C, C] float32, row c over c'; -inf for c' = c and for absent classes. A row without any
        other present class is uniform: it is never used, but has to be finite.
    """
    allowed = present & ~jnp.eye(len(present), dtype=bool)
    cosines = prototype_ops.cosine(prototypes, prototypes)
    logits = jnp.where(allowed, cosines / temperature, -jnp.inf)
    return jax.nn.log_softmax(jnp.where(allowed.any(axis=1, keepdims=True), logits, 0.0))


def draw_negatives(
    key: jax.Array, log_probabilities: jax.Array, counts: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Draw positions in the pixels' order: a class by its probability, then one of its pixels.

    Args:
        key: random key.
        log_probabilities: [C], a row of `log_class_probabilities`.
        counts: [C, 2S] of `order_pixels`.
        shape: of the draws.

    Returns:
        int32 positions of that shape, into `order`.
    """
    class_key, pixel_key = jax.random.split(key)
    sizes = counts.sum(axis=1)
    units = jnp.cumsum(jnp.round(jnp.exp(log_probabilities) * _PROBABILITY_UNITS).astype(jnp.int32))
    drawn = draw(class_key, units[-1], shape)
    classes = jnp.sum(drawn[..., None] >= units, axis=-1)
    return (jnp.cumsum(sizes) - sizes)[classes] + draw(pixel_key, sizes[classes], shape)


def locate(ranks: jax.Array, counts: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find pixels by their place among the pixels of a class on all devices.

    A class's pixels are ordered: hard pixels of all devices, segment by segment and device after
    device, then the easy ones likewise. That is the order of one device with the whole batch.

    Args:
        ranks: [C, n] int, places within each class.
        counts: [P, C, G] int, `order_pixels`'s of every device.
        rank: this device's row.

    Returns:
        positions [C, n] int32 into this device's order, and owned [C, n] bool, whether the pixel
        is one of this device's; the position of one that is not has no meaning, but is in range.
    """
    own, total = counts[rank], counts.sum(axis=0)  # [C, G]
    first = jnp.cumsum(total, axis=1) - total  # where each group begins in its class, globally
    first += (jnp.cumsum(counts, axis=0) - counts)[rank]  # and this device's part of it
    place = ranks[..., None] - first[:, None]  # [C, n, G]
    inside = (place >= 0) & (place < own[:, None])
    start = (jnp.cumsum(own) - own.reshape(-1)).reshape(own.shape)  # in this device's order
    positions = jnp.where(inside, start[:, None] + place, 0).sum(axis=-1)
    return positions, inside.any(axis=-1)


def loss(
    key: jax.Array,
    representations: jax.Array,
    labels: jax.Array,
    hard: jax.Array,
    prototypes: jax.Array,
    *,
    temperature: float = 0.5,
    num_anchors: int = 256,
    num_negatives: int = 512,
    bank_size: int = 256,
    estimator: str = 'bank',
    scope: str | None = None,
    segments: Sequence[int] = (),
    gather: Callable[[jax.Array], jax.Array] = lambda x: x[None],
    psum: Callable[[jax.Array], jax.Array] | None = None,
    rank: jax.Array | int = 0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return L_c (Eq. 9, whose printed numerator lacks its temperature) and what is logged of it.

    For each present class c (one with a valid pixel): anchors z drawn uniformly from its hard
    pixels, the positive rho_c, and for each anchor M negatives, each a class c' != c drawn from
    softmax(cos(rho_c, rho_c') / tau) over the present classes, then a pixel of c':

        -log( e^{cos(z, rho_c)/tau} / (e^{cos(z, rho_c)/tau} + sum_m e^{cos(z, z-_m)/tau}) ),

    mean over the anchors, summed over the classes that have hard pixels, divided by the number of
    present classes; 0 with fewer than two of them. The gradient flows through the anchors only.

    'sampled' draws the negatives as above. 'bank' draws K pixels b of each class, shared by all
    anchors, and replaces the sum over m by its expectation given the bank,
    M * sum_{c'} p(c'|c) * mean_k e^{cos(z, b_c'k)/tau}: one matrix product instead of a gather of
    C * A * M vectors.

    Several devices: the sum over devices of the returned loss is the loss, and the sum of its
    gradients the gradient. With scope 'global', which 'bank' alone can have, it is over the global
    batch: with one key on all devices it draws the same pixels as one device holding the
    concatenated batch. With scope 'device' each device takes its own pixels alone, as in the
    authors' program, and the loss is the mean over devices: it depends on their number.

    Args:
        key: random key, the same on every device.
        representations: [..., D], this device's pixels, raw, any float type.
        labels: [...] int, -1 where a pixel is not valid.
        hard: [...] bool; only valid pixels count.
        prototypes: [C, D], after this iteration's update.
        temperature: tau_c.
        num_anchors: A, per class.
        num_negatives: M, per anchor.
        bank_size: K, per class; 'sampled' does not use it.
        estimator: 'bank' or 'sampled'.
        scope: 'global' or 'device'; None: global for 'bank', device for 'sampled'.
        segments: lengths of the consecutive parts of this device's pixels, where a batch has
            parts that are each spread over the devices (its streams); (): one part.
        gather: maps an array to the stack [P, ...] of every device's.
        psum: maps an array to its sum over the devices; None: sums what gather gives, which
            holds every device's share of the bank at once.
        rank: this device's row of a gathered stack.

    Returns:
        The loss, and {'anchors': how many were drawn, 'classes_present'}; float32 scalars, and of
        each the sum over devices is the number (with scope 'device', of classes_present the mean
        over devices of each one's own).

    Raises:
        ValueError: an unknown estimator, shapes that do not fit, or a size below 1.
    """
    scope = scope or {'bank': 'global', 'sampled': 'device'}.get(estimator)
    _check(representations, labels, hard, prototypes, estimator, scope)
    _check_positive(
        temperature=temperature,
        num_anchors=num_anchors,
        num_negatives=num_negatives,
        bank_size=bank_size,
    )
    pixels = representations.reshape(-1, representations.shape[-1])  # [N, D]
    constants = lax.stop_gradient(pixels)
    prototypes = lax.stop_gradient(prototypes.astype(jnp.float32))
    parts = max(len(segments), 1)
    order, own_counts = order_pixels(
        labels.reshape(-1), hard.reshape(-1), len(prototypes), tuple(segments)
    )

    counts = gather(own_counts)  # [P, C, 2S]
    devices = len(counts)
    if scope == 'device':  # this device alone, with draws of its own
        key, counts, rank = jax.random.fold_in(key, rank), own_counts[None], 0
        gather, psum = (lambda x: x[None]), None
    anchor_key, negative_key = jax.random.split(key)
    hard_count, valid_count = counts[..., :parts].sum(axis=(0, 2)), counts.sum(axis=(0, 2))  # [C]
    present = valid_count > 0
    num_present = present.sum()

    ranks = draw(anchor_key, hard_count[:, None], (len(prototypes), num_anchors))
    positions, owned = locate(ranks, counts, rank)
    used = owned & (hard_count > 0)[:, None] & (num_present > 1)  # [C, A]
    anchors = prototype_ops.normalise(pixels[order[positions]])  # [C, A, D]
    weights = used / (num_anchors * jnp.maximum(num_present, 1))
    log_probabilities = log_class_probabilities(prototypes, present, temperature)
    positives = prototype_ops.normalise(prototypes)
    skip = len(prototypes) > _CLASSES_ALWAYS

    if estimator == 'bank':
        ranks = draw(negative_key, valid_count[:, None], (len(prototypes), bank_size))
        positions, owned = locate(ranks, counts, rank)
        bank = prototype_ops.normalise(constants[order[positions]]) * owned[..., None]
        bank = gather(bank).sum(axis=0) if psum is None else psum(bank)  # [C, K, D]
        log_weights = log_probabilities + log(num_negatives / bank_size)
        total = _streamed(
            partial(_bank_loss, temperature), skip, anchors, (weights, positives, log_weights), bank
        )
    else:
        at_once = gcd(num_anchors, _ANCHORS_AT_ONCE)
        repeats = num_anchors // at_once
        chunks = len(prototypes) * repeats
        total = _streamed(
            partial(_sampled_loss, temperature, num_negatives),
            skip,
            anchors.reshape(chunks, at_once, -1),
            (
                weights.reshape(chunks, at_once),
                jnp.repeat(positives, repeats, axis=0),
                jnp.repeat(log_probabilities, repeats, axis=0),
                jax.random.split(negative_key, chunks),
            ),
            (constants, prototype_ops.inverse_norm(constants), order, own_counts),
        )
    if scope == 'device':
        total = total / devices
    return total, {
        'anchors': used.sum().astype(jnp.float32),
        'classes_present': num_present / devices,
    }


def _bank_loss(temperature, anchors, streamed, bank):
    """Return weighted sum of one class's losses: anchors [A, D], bank [C, K, D]."""
    weights, positive, log_weights = streamed
    dot = partial(jnp.einsum, precision='highest')
    positive = dot('ad,d->a', anchors, positive) / temperature
    negatives = dot('ad,ckd->ack', anchors, bank) / temperature + log_weights[:, None]
    negatives = jax.nn.logsumexp(negatives, axis=(1, 2))
    return jnp.sum(weights * (jnp.logaddexp(positive, negatives) - positive))


def _sampled_loss(temperature, num_negatives, anchors, streamed, shared):
    """Return weighted sum of the losses of some anchors [a, D] of one class."""
    weights, positive, log_probabilities, key = streamed
    pixels, inverse_norms, order, counts = shared
    dot = partial(jnp.einsum, precision='highest')
    drawn = draw_negatives(key, log_probabilities, counts, (len(anchors), num_negatives))
    # Where no negative exists the weights are 0 and the position may be one past the last.
    drawn = jnp.take(order, drawn, mode='clip')
    positive = dot('ad,d->a', anchors, positive) / temperature
    negatives = dot('ad,amd->am', anchors, pixels[drawn].astype(jnp.float32))
    negatives = jax.nn.logsumexp(negatives * inverse_norms[drawn] / temperature, axis=1)
    return jnp.sum(weights * (jnp.logaddexp(positive, negatives) - positive))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _streamed(chunk_loss, skip, anchors, streamed, shared):
    """Sum chunk_loss(anchors[i], streamed[i], shared) over i; differentiable by anchors alone.

    With `skip` no gradient is computed where all weights, the first of `streamed`, are 0.
    """
    return lax.map(lambda chunk: chunk_loss(*chunk, shared), (anchors, streamed)).sum()


def _streamed_forward(chunk_loss, skip, anchors, streamed, shared):
    def work(chunk):
        return jax.value_and_grad(chunk_loss)(*chunk, shared)

    def ask(chunk):
        own, (weights, *_) = chunk
        return lax.cond(weights.any(), work, lambda _: (0 * own.sum(), 0 * own), chunk)

    losses, gradient = lax.map(ask if skip else work, (anchors, streamed))
    return losses.sum(), gradient


def _streamed_backward(chunk_loss, skip, gradient, cotangent):
    return cotangent * gradient, None, None


_streamed.defvjp(_streamed_forward, _streamed_backward)


def _check(representations, labels, hard, prototypes, estimator, scope):
    if estimator not in ('bank', 'sampled'):
        raise ValueError(f"estimator is {estimator!r}; expected 'bank' or 'sampled'")
    if scope not in (('global', 'device') if estimator == 'bank' else ('device',)):
        raise ValueError(
            f"scope is {scope!r}; expected 'device', or 'global' with the estimator 'bank'"
        )
    prototype_ops.check_pixels(representations, labels=labels, hard=hard)
    if prototypes.ndim != 2 or prototypes.shape[1] != representations.shape[-1]:
        raise ValueError(
            f'prototypes has shape {prototypes.shape}; expected [C, {representations.shape[-1]}]'
        )


def _check_positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f'{name} is {value}; expected more than 0')
