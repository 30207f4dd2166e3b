"""The views of spec section 3 and the supervised loss, as the methods share them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from css_jax import parallel
from css_jax.ops import augment, losses
from css_jax.state import Context


def host_labels(labels: Array) -> Array:
    """Turns the records' uint8 labels (255: void) into int32 labels (-1: ignore)."""
    return jnp.where(labels == 255, -1, labels.astype(jnp.int32))


def normalise(images: Array, ctx: Context) -> Array:
    """Standardises uint8 RGB images [B, H, W, 3] by `config.data.mean` and `std`."""
    data = ctx.config.data
    return augment.normalise(augment.to_float(images), data.mean, data.std)


def labelled(batch: Mapping[str, Array], keys: parallel.Keys, ctx: Context) -> tuple[Array, Array]:
    """The labelled view: colour jitter, blur and flip of what the host cropped.

    Returns:
        images [B, H, W, 3] normalised, labels [B, H, W] int32 with -1 for ignore.
    """
    images, maps = augment.photometric(
        keys('labelled', 'photometric'),
        augment.to_float(batch['image']),
        {'label': host_labels(batch['label'])},
        _augment(ctx),
        mean=ctx.config.data.mean,
        std=ctx.config.data.std,
    )
    return images, maps['label']


def strong(
    images: Array,
    maps: dict[str, Array],
    keys: parallel.Keys,
    ctx: Context,
    lead: str = 'label',
) -> tuple[Array, dict[str, Array]]:
    """The strong view of the unlabelled images, with their pseudo-labels and indicators.

    Args:
        images: [B, H, W, 3] uint8, the weak view.
        maps: name -> [B, H, W]; integers are labels, floats indicators.
        keys: the step's keys.
        ctx: configuration and axis.
        lead: the map whose classes ClassMix divides.

    Returns:
        images [B, H, W, 3] normalised, and the maps moved alike.
    """
    partner = {'next': parallel.next_example, 'first_device': parallel.next_of_first_device}
    images, maps = augment.strong_view(
        keys('unlabelled', 'strong'),
        augment.to_float(images),
        maps,
        _augment(ctx),
        label=lead,
        num_classes=ctx.config.num_classes,
        mean=ctx.config.data.mean,
        std=ctx.config.data.std,
        next_example=lambda tree: partner[ctx.config.augment.partner](tree, ctx.axis),
    )
    return jax.lax.stop_gradient((images, maps))


def _augment(ctx: Context) -> augment.Augment:
    values = {k: v for k, v in ctx.config.augment.items() if k != 'partner'}
    return augment.Augment(**values)


def stored_indicators(maps: dict[str, Array], ctx: Context) -> dict[str, Array]:
    """Rounds indicators down to 255ths if so configured: the reference keeps them as images.

    Args:
        maps: name -> [B, H, W]; labels, which are integers, stay.
        ctx: configuration.
    """
    if not ctx.config.eight_bit_indicators:
        return maps
    floats = {k for k, v in maps.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    return {k: jnp.floor(v * 255) / 255 if k in floats else v for k, v in maps.items()}


def supervised_loss(logits: Array, labels: Array, ctx: Context) -> tuple[Array, Array]:
    """L_s (Eq. 7) of logits [B, h, w, C] against labels [B, H, W]: (sum, count)."""
    c = ctx.config.supervised
    if c.loss == 'ohem':
        kept = c.ohem_kept * labels.shape[0]
        return losses.ohem_cross_entropy(logits, labels, c.ohem_threshold, kept)
    return losses.cross_entropy(logits, labels)


def unsupervised_loss(
    logits: Array, labels: Array, indicator: Array, ctx: Context
) -> tuple[Array, Array]:
    """L_u of logits [B, h, w, C] against pseudo-labels [B, H, W], unweighted: (sum, count)."""
    c = ctx.config.unsupervised
    loss = {
        'weighted': losses.weighted_unsupervised,
        'thresholded': losses.thresholded_unsupervised,
    }[c.loss]
    return loss(logits, labels, indicator, c.threshold)


def confidence_metrics(labels: Array, indicator: Array, ctx: Context) -> dict[str, Array]:
    """Shares for the log, over pixels of all devices.

    'confident' is the share of pixels that have a pseudo-label and indicator >= delta_u,
    'confident_foreground' the part of these whose class is not 0 (the background, or whatever
    a dataset has first).
    """
    confident = (indicator >= ctx.config.unsupervised.threshold) & (labels >= 0)
    return {
        'confident': fraction(confident, jnp.ones_like(confident), ctx),
        'confident_foreground': fraction(confident & (labels > 0), confident, ctx),
    }


def mean(values: Array, ctx: Context) -> Array:
    """Gives the mean of an array of every example, [B, ...], over all devices."""
    sums = values.sum(dtype=jnp.float32), jnp.float32(values.size)
    return losses.mean(*parallel.psum(sums, ctx.axis))


def fraction(part: Array, whole: Array, ctx: Context) -> Array:
    """Gives how much of the mask `whole` the mask `part`, inside it, is; over all devices."""
    sums = part.sum(dtype=jnp.float32), whole.sum(dtype=jnp.float32)
    return losses.mean(*parallel.psum(sums, ctx.axis))


def steps_per_pass(stream: str, ctx: Context) -> int:
    """Gives the full batches in a stream's images, at least 1, as the reference counts passes."""
    return max(1, ctx.images[stream] // ctx.config.data.streams[stream].batch_size)
