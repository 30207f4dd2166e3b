"""What UniMatch V2, V1 and FixMatch share: labels of the weak view, strong views, dropped channels.

A strong view is drawn from its own keys, 'strong1' or 'strong2', so that two views are independent;
CutMix comes last, on images that are normalised. `strong`, `box`, `complementary` and `dropped` are
all that is drawn in a step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from css_jax import models, parallel
from css_jax.methods import supervised, views
from css_jax.methods.method import Method, no_weights
from css_jax.models.backbones import PLAIN
from css_jax.ops import augment, color, dropout, losses, pseudo_labels, resize
from css_jax.ops.losses import Term
from css_jax.state import Context, TrainState, Variables


def labelled(batch: dict, ctx: Context) -> dict[str, Array]:
    """Return 'images' [B, H, W, 3] normalised and 'labels', as the host has made them."""
    arrays = batch['labelled']
    images = views.normalise(arrays['image'], ctx)
    return {'images': images, 'labels': views.host_labels(arrays['label'])}


def labels(network: Variables, batch: dict, ctx: Context) -> dict[str, Array]:
    """Label the weak view in evaluation mode.

    Returns:
        'label' [B, H, W] int32, 'indicator' float32 in [0, 1], its confidence, and 'valid' bool,
        false in the padding.
    """
    weak = batch['unlabelled']['image']
    logits = ctx.evaluate(network, views.normalise(weak, ctx))['logits']
    label, indicator = pseudo_labels.from_logits(logits, weak.shape[1:3])
    return {'label': label, 'indicator': indicator, 'valid': batch['unlabelled']['valid']}


def strong(images: Array, view: str, keys: parallel.Keys, ctx: Context) -> Array:
    """Return a strong view of the colours, [B, H, W, 3] normalised, of uint8 images.

    Args:
        images: [B, H, W, 3] uint8, the weak view.
        view: 'strong1' or 'strong2', which are drawn independently.
        keys: of the step.
        ctx: configuration.
    """
    c, own = ctx.config.augment, keys('unlabelled', view)
    images = augment.to_float(images)
    if c.jitter_prob:  # else its operations would stay in the program, for nothing
        spread = {name: c[name] for name in ('brightness', 'contrast', 'saturation', 'hue')}
        images = color.color(own, images, jitter_prob=c.jitter_prob, **spread)
    if c.grey_prob:
        images = color.grey(own, images, c.grey_prob)
    if c.blur_prob:
        images = color.blur(own, images, prob=c.blur_prob, sigma=c.blur_sigma)
    return augment.normalise(images, ctx.config.data.mean, ctx.config.data.std)


def box(view: str, size: tuple[int, int], keys: parallel.Keys, ctx: Context) -> Array:
    """Return a box of each image, [B, H, W] bool, in which a strong view shows its partner."""
    c = ctx.config.unimatch
    own = keys('unlabelled', view)
    return augment.cutmix_box(own, size, c.mix_prob, tuple(c.box_area), tuple(c.box_ratio))


def complementary(keys: parallel.Keys, batch: dict, ctx: Context) -> Array | dict[str, Array]:
    """Return the factors of the first strong view: feature -> [B, C], of a transformer one [B, D].

    Features with as many channels as one another share them. All are of one draw, so that an image
    is spared in all features or in none. They are float32.
    """
    counts = _channels(batch, ctx)
    own, sizes = keys('unlabelled', 'dropout'), sorted(set(counts.values()))
    draw = functools.partial(dropout.complementary_scale, channels=sum(sizes))
    group = _group(len(own), ctx.config)
    scale = jax.vmap(draw)(own.reshape(-1, group)).reshape(len(own), -1)
    if ctx.config.model.backbone in PLAIN:
        return scale
    parts = dict(zip(sizes, jnp.split(scale, np.cumsum(sizes)[:-1], axis=1), strict=True))
    return {name: parts[count] for name, count in counts.items()}


def dropped(stream: str, keys: parallel.Keys, batch: dict, ctx: Context) -> dict[str, Array]:
    """Return V1's factors of a stream's images, of each feature by itself: [B, C] float32."""
    prob, own = ctx.config.unimatch.drop_prob, keys(stream, 'dropout')
    return {
        name: dropout.channels(own, count, prob, purpose=name)
        for name, count in _channels(batch, ctx).items()
    }


def partner(tree: Any, config: ConfigDict) -> Any:
    """Return arrays [B, ...] of the partner of each image: the group of images backwards.

    The middle one of an odd group has itself.

    Raises:
        ValueError: the group does not divide the images of a device.
    """
    count = len(jax.tree.leaves(tree)[0])
    group, place = _group(count, config), np.arange(count)
    first = place // group * group
    return jax.tree.map(lambda x: x[2 * first + group - 1 - place], tree)


def _group(count: int, config: ConfigDict) -> int:
    """Return the images of a group, of so many on a device."""
    group = config.unimatch.group or count
    if count % group:
        raise ValueError(
            f'unimatch.group: got {group}, expected a divisor of the {count} unlabelled images '
            'that a device has, or 0'
        )
    return group


def _channels(batch: dict, ctx: Context) -> dict[str, int]:
    """Return feature -> channels, of those that the network lets a method multiply."""
    names = models.FAMILIES[ctx.config.model.family].scaled
    return models.scaled_channels(ctx.module, names, batch['unlabelled']['image'].shape[1:3])


def mixed(
    view: str,
    batch: dict,
    maps: dict[str, Array],
    keys: parallel.Keys,
    ctx: Context,
    of_partner: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Return a strong view with boxes of the partners: 'strong1', 'label1' and so on.

    Args:
        view: 'strong1' or 'strong2'.
        batch: of the step.
        maps: of the image.
        keys: of the step.
        ctx: configuration.
        of_partner: of the image where it is a partner; None: `maps`.
    """
    weak = batch['unlabelled']['image']
    image = strong(weak, view, keys, ctx)
    other = partner({'strong': image, **(of_partner or maps)}, ctx.config)
    inside = box(view, weak.shape[1:3], keys, ctx)
    found = augment.paste(inside, {'strong': image, **maps}, other)
    return {f'{name}{view[-1]}': x for name, x in found.items()}


def strong_losses(logits: Array, p: Any, ctx: Context) -> tuple[dict, dict]:
    """Return L_k of each strong view, of logits one view after the other, and for the log.

    'agreement' is the share of the pixels of strong views where the student says the pseudo-label.
    """
    count = len(logits) // len(p.strong1)
    terms, agreed, there = {}, 0.0, 0.0
    for view, scores in enumerate(jnp.split(logits, count), 1):
        label, indicator, valid = (
            getattr(p, f'{name}{view}') for name in ('label', 'indicator', 'valid')
        )
        threshold = ctx.config.unsupervised.threshold
        terms[f'strong{view}'] = Term(
            *losses.confident_over_valid(scores, label, indicator, valid, threshold)
        )
        size = scores.shape[1:3]
        inside = resize.nearest(valid, size)
        same = views.share(inside & (scores.argmax(-1) == resize.nearest(label, size)), inside)
        agreed, there = agreed + same.total, there + same.count
    return terms, {'agreement': Term(agreed, there)}


def shares(label: Array, indicator: Array, valid: Array, ctx: Context) -> dict[str, Term]:
    """Return shares of the weak view for the log, without the padding; see `views`."""
    confident = valid & (indicator >= ctx.config.unsupervised.threshold)
    return {
        'confident': views.share(confident, valid),
        'confident_foreground': views.share(confident & (label > 0), confident),
    }


def burning_in(method: Method) -> Method:
    """Return a method with a burn-in: L = L_x, of the same images, and the same teacher."""
    by_labels = method._replace(
        streams={'labelled': 'mask'},
        targets=labels_alone,
        loss=supervised.loss,
        weights=no_weights,
    )

    def phases(config: ConfigDict) -> list[tuple[int, Method]]:
        return [(config.burn_in_steps, by_labels)] if config.burn_in_steps else []

    return method._replace(phases=phases)


def labels_alone(
    state: TrainState, batch: dict, keys: parallel.Keys, ctx: Context
) -> tuple[supervised.Targets, Any]:
    """Take the labelled images as they are."""
    del keys
    return supervised.Targets(**labelled(batch, ctx)), state.teacher.batch_stats
