"""The views of images and the pixel losses, as CSS and its baselines share them.

Each group of keys here is of the functions that read it; a method takes the groups it needs.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from css_jax import parallel
from css_jax.keys import Key, ascending
from css_jax.ops import augment, losses
from css_jax.ops.losses import Term
from css_jax.state import Context


def _ohem(config: Any) -> bool:
    return config.supervised.loss == 'ohem'


# Of `supervised_loss`.
SUPERVISED = {
    'supervised.loss': Key('ce', 'ce | ohem (hard pixels only)', choices=('ce', 'ohem')),
    'supervised.ohem_threshold': Key(
        0.7,
        'pixels whose true class has at most this probability are hard',
        range=(0, 1),
        only=_ohem,
    ),
    'supervised.ohem_kept': Key(
        50_000,
        'pixels an image kept at least, times the batch of one device',
        range=(1, 10**9),
        only=_ohem,
    ),
}
# Of `labelled` and `strong`: colour, blur and flip, on the device.
AUGMENT = {
    'augment.jitter_prob': Key(
        0.8, "probability that an image's colours are jittered", range=(0, 1)
    ),
    'augment.brightness': Key(0.25, 'factors in [1-x, 1+x]', range=(0, 1)),
    'augment.contrast': Key(0.25, 'likewise', range=(0, 1)),
    'augment.saturation': Key(0.25, 'likewise', range=(0, 1)),
    'augment.hue': Key(0.25, 'shift in turns, [-x, x]', range=(0, 0.5)),
    'augment.blur_prob': Key(0.5, 'probability of a Gaussian blur', range=(0, 1)),
    'augment.blur_sigma': Key((0.15, 1.15), 'its deviation in pixels', expected=ascending),
    'augment.flip_prob': Key(0.5, 'probability of the mirror image', range=(0, 1)),
}
# Of `strong` and `stored_indicators`.
STRONG = {
    'augment.resize': Key((0.5, 1.5), "the strong view's random scale", expected=ascending),
    'augment.mixing': Key(
        'cutmix', 'with the next image: cutmix | classmix | cutout | none', choices=augment.MIXING
    ),
    'slips': Key(
        False,
        "the reference program's slips: indicators rounded down to 255ths, as it keeps them "
        "as images, and mixing partners of the first device's images alone",
    ),
}
# Of `unsupervised_loss` and `confidence_metrics`.
UNSUPERVISED = {
    'unsupervised.loss': Key(
        'weighted',
        'weighted by the confident share | thresholded (Eq. 8)',
        choices=('weighted', 'thresholded'),
    ),
    'unsupervised.weight': Key(1.0, 'of L_u', range=(0, 1e3)),
    'unsupervised.threshold': Key(0.97, 'delta_u', range=(0, 1)),
}


def host_labels(labels: Array) -> Array:
    """Turn the records' uint8 labels (255: void) into int32 labels (-1: ignore)."""
    return jnp.where(labels == 255, -1, labels.astype(jnp.int32))


def normalise(images: Array, ctx: Context) -> Array:
    """Standardise uint8 RGB images [B, H, W, 3] by `config.data.mean` and `std`."""
    data = ctx.config.data
    return augment.normalise(augment.to_float(images), data.mean, data.std)


def levels(images: Array, ctx: Context) -> Array:
    """Return the RGB levels in 0..255, float32, of standardised images [B, H, W, 3]."""
    data = ctx.config.data
    return 255 * (images * jnp.asarray(data.std) + jnp.asarray(data.mean))


def labelled(batch: Mapping[str, Array], keys: parallel.Keys, ctx: Context) -> tuple[Array, Array]:
    """Make the labelled view: colour jitter, blur and flip of what the host cropped.

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
    """Make the strong view of the unlabelled images, with their pseudo-labels and indicators.

    Args:
        images: [B, H, W, 3] uint8, the weak view.
        maps: name -> [B, H, W]; integers are labels, floats indicators.
        keys: the step's keys.
        ctx: configuration and axis.
        lead: the map whose classes ClassMix divides.

    Returns:
        images [B, H, W, 3] normalised, and the maps moved alike.
    """
    # One of device 0's images is the reference's slip; on one device it is the same.
    partner = parallel.next_of_first_device if ctx.config.slips else parallel.next_example
    images, maps = augment.strong_view(
        keys('unlabelled', 'strong'),
        augment.to_float(images),
        maps,
        _augment(ctx),
        label=lead,
        num_classes=ctx.config.num_classes,
        mean=ctx.config.data.mean,
        std=ctx.config.data.std,
        next_example=lambda tree: partner(tree, ctx.axis),
    )
    return jax.lax.stop_gradient((images, maps))


def _augment(ctx: Context) -> augment.Augment:
    # A method without a strong view has no resize and no mixing of its own.
    return augment.Augment(**{'resize': (1.0, 1.0), 'mixing': 'none', **ctx.config.augment})


def stored_indicators(maps: dict[str, Array], ctx: Context) -> dict[str, Array]:
    """Round indicators down to 255ths with `config.slips`: the reference keeps them as images.

    Args:
        maps: name -> [B, H, W]; labels, which are integers, stay.
        ctx: configuration.
    """
    if not ctx.config.slips:
        return maps
    floats = {k for k, v in maps.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    return {k: jnp.floor(v * 255) / 255 if k in floats else v for k, v in maps.items()}


def supervised_loss(logits: Array, labels: Array, ctx: Context) -> tuple[Array, Array]:
    """Return L_s (Eq. 7) of logits [B, h, w, C] against labels [B, H, W]: (sum, count)."""
    c = ctx.config.supervised
    if c.loss == 'ohem':
        kept = c.ohem_kept * labels.shape[0]
        return losses.ohem_cross_entropy(logits, labels, c.ohem_threshold, kept)
    return losses.cross_entropy(logits, labels)


def unsupervised_loss(
    logits: Array, labels: Array, indicator: Array, ctx: Context
) -> tuple[Array, Array]:
    """Return L_u of logits [B, h, w, C] against pseudo-labels [B, H, W]: (sum, count)."""
    c = ctx.config.unsupervised
    loss = {
        'weighted': losses.weighted_unsupervised,
        'thresholded': losses.thresholded_unsupervised,
    }[c.loss]
    return loss(logits, labels, indicator, c.threshold)


def confidence_metrics(labels: Array, indicator: Array, ctx: Context) -> dict[str, Term]:
    """Return shares for the log.

    'confident' is the share of pixels that have a pseudo-label and indicator >= delta_u,
    'confident_foreground' the part of these whose class is not 0 (the background, or whatever
    a dataset has first).
    """
    confident = (indicator >= ctx.config.unsupervised.threshold) & (labels >= 0)
    return {
        'confident': share(confident, jnp.ones_like(confident)),
        'confident_foreground': share(confident & (labels > 0), confident),
    }


def share(part: Array, whole: Array) -> Term:
    """Return how much of the mask `whole` the mask `part`, inside it, is; for the log."""
    return Term(part.sum(dtype=jnp.float32), whole.sum(dtype=jnp.float32))


def mean(values: Array) -> Term:
    """Return the mean of an array of every example, [B, ...]; for the log."""
    return Term(values.sum(dtype=jnp.float32), jnp.float32(values.size))


def steps_per_pass(images: int, batch_size: int) -> int:
    """Return the full batches in so many images, at least 1, as the reference counts passes."""
    return max(1, images // batch_size)
