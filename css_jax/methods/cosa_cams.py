"""CAMs and segmentations of a network by several views of an image, as CoSA merges them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from css_jax.ops import cam, resize
from css_jax.state import Context, Variables

KINDS = ('cam', 'cam_aux')  # of the last and of the early features


def passes(
    network: Variables, images: Array, scales: Sequence[float], ctx: Context
) -> list[dict[str, Array]]:
    """Run a network on images and on their mirror images, at each scale.

    Args:
        network: with its running statistics.
        images: [B, H, W, 3] normalised; at scale s they are int(s H) x int(s W).
        scales: in this order.
        ctx: network and configuration.

    Returns:
        Of each scale, head -> [2B, h, w, channels], of classifiers [2B, K]; the mirror images' maps
        are not mirrored back.
    """
    found = []
    for scale in scales:
        size = int(scale * images.shape[1]), int(scale * images.shape[2])
        view = resize.half_pixel(images, size)
        found.append(ctx.evaluate(network, jnp.concatenate([view, view[:, :, ::-1]])))
    return found


def cams(
    every: Sequence[dict[str, Array]], size: tuple[int, int], ctx: Context
) -> dict[str, Array]:
    """Return the merged CAMs of both kinds, [B, H, W, K] in [0, 1].

    Args:
        every: of `passes`.
        size: H, W.
        ctx: configuration. With `cosa.aux_scales=last` the early layer's CAMs are those of the last
            scale: the authors' program replaces a list that it means to extend.
    """
    early = every if ctx.config.cosa.aux_scales == 'all' else every[-1:]
    used = dict(zip(KINDS, (every, early), strict=True))
    return {
        kind: cam.normalise(cam.merge([one[kind] for one in passes_of], size))
        for kind, passes_of in used.items()
    }


def assignments(
    network: Variables, images: Array, present: Array, ctx: Context
) -> dict[str, Array]:
    """Return what the assignment network says of the weak view.

    Args:
        network: the assignment network.
        images: the weak view, [B, H, W, 3] normalised.
        present: image-level labels, [B, K].
        ctx: network and configuration.

    Returns:
        'cam' and 'cam_aux' [B, H, W, K] in [0, 1], and 'segmentation' [B, h, w, C], soft
        pseudo-labels on the network's own grid.
    """
    c, size = ctx.config.cosa, images.shape[1:3]
    grid = jax.eval_shape(ctx.evaluate, network, images)['cam'].shape[1:3]
    every = passes(network, images, c.scales, ctx)
    logits = cam.merge_logits([one['logits'] for one in every], size)
    soft = cam.segmentation_labels(logits, present, c.temperature)
    return {**cams(every, size, ctx), 'segmentation': resize.half_pixel(soft, grid)}
