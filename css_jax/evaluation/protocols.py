"""What the network sees of an image when it is evaluated, and how its views are averaged.

`config.eval.protocol` says what the network sees:

- `whole`: the image, padded right and bottom by reflection to one static size, `eval.pad_to`;
- `whole_exact`: each image at its own size, a compilation for every size;
- `sliding`: windows of `eval.window` that overlap by a third, averaged as probabilities; the
  last ones are moved back to end at the border, a smaller image is padded;
- `sliding_cut`: likewise, but windows are cut off at the border, and their stride is rounded down.
  iMAS (arXiv 2211.11335) is evaluated so, with windows of 769 whatever the training crop;
- `resized`: the image resized to `eval.window` whatever its aspect, and from there to each of
  `eval.scales`; the logits of all views are added up at the window's size, then resized to the
  image's. CoSA (arXiv 2402.17891) is evaluated so. The loss is that of the sums;
- `random_crop`: one crop of `eval.window` an image, the same in every evaluation. The reference
  program scores Cityscapes so, by mistake; for comparison only.

`eval.flip` and `eval.scales` average over mirrored and resized images. Padding is void, and void
counts nowhere. `whole` and `resized` batch all images of a split in one shape.

With `eval.multiple` each side of what the network sees, be it a whole image or a window, is resized
to its nearest multiple of that number, and its logits back: a network of patches takes no other
size. UniMatch V2 is evaluated so on PASCAL VOC, by `whole_exact`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from css_jax import methods
from css_jax.methods import views
from css_jax.methods.method import streams as streams_of
from css_jax.ops import inference
from css_jax.state import Context, Variables

# Keys of `config.eval` that decide what a score is of; the last two are of some methods alone.
_KEYS = (
    *('dataset', 'split', 'protocol', 'pad_to', 'window', 'multiple', 'flip', 'scales', 'network'),
    *('scores', 'crf'),
)

# Protocols of windows -> whether these are cut off at the border.
SLIDING = {'sliding': False, 'sliding_cut': True}


def keys(config: ConfigDict) -> list[str]:
    """Return the keys of `config.eval` that decide what a score is of."""
    return [key for key in _KEYS if key in config.eval]


def window(config: ConfigDict, dataset: str) -> tuple[int, int]:
    """Return height and width of `eval.window`; (0, 0) stands for a training crop.

    Args:
        config: finalised.
        dataset: that is evaluated; the crop is that of its first stream, else of the first one.
    """
    if any(config.eval.window):
        return tuple(config.eval.window)
    read = streams_of(methods.METHODS[config.method], config.data.streams)
    streams = [config.data.streams[name] for name in read]
    own = [stream for stream in streams if stream.dataset == dataset]
    return tuple((own or streams)[0].crop)


def network(
    config: ConfigDict,
    ctx: Context,
    predict_views: Callable[..., jax.Array],
    *arrays: Any,
) -> Callable[[jax.Array], jax.Array]:
    """Return the function images -> logits that all views of an image go through.

    Args:
        config: finalised.
        ctx: network and configuration.
        predict_views: see `css_jax.methods.Evaluation.predict`, or the like with more arrays before
            the images.
        *arrays: what goes before the images, such as the network's variables.

    Returns:
        A function of normalised images [B, H, W, 3] of any size, with `eval.multiple`, to [B, H, W,
        C].
    """

    def predict(images: jax.Array) -> jax.Array:
        return predict_views(*arrays, images, ctx)

    return functools.partial(inference.at_multiple, predict, multiple=config.eval.multiple)


def prediction(
    config: ConfigDict,
    ctx: Context,
    predict_views: Callable[[Variables, jax.Array, Context], jax.Array],
    window: tuple[int, int],
) -> Callable[..., jax.Array]:
    """Return the function (variables, images, sizes) -> logits of the protocol in `config.eval`.

    Args:
        config: finalised.
        ctx: network and configuration.
        predict_views: see `css_jax.methods.Evaluation.predict`.
        window: see `window`.

    Returns:
        A pure function of uint8 RGB images [B, H, W, 3], and of their sizes without padding
        [B, 2] int32, to float32 logits [B, H, W, C]. Without sizes there is no padding; 'resized'
        alone reads them.
    """
    c = config.eval

    def predict(
        variables: Variables, images: jax.Array, sizes: jax.Array | None = None
    ) -> jax.Array:
        seen = network(config, ctx, predict_views, variables)
        if c.protocol == 'resized':
            if sizes is None:
                sizes = jnp.broadcast_to(jnp.array(images.shape[1:3]), (len(images), 2))
            images = views.normalise(images, ctx)
            return inference.resized(seen, images, sizes, window, tuple(c.scales), c.flip)
        if c.protocol in SLIDING:
            cut_off = SLIDING[c.protocol]
            seen = functools.partial(
                inference.sliding,
                seen,
                window=window,
                stride=inference.default_stride(window, cut_off),
                batch_size=c.batch_size,
                cut_off=cut_off,
            )
        if c.flip:
            seen = functools.partial(inference.mirrored, seen)
        return inference.multi_scale(seen, views.normalise(images, ctx), tuple(c.scales))

    return predict


def multiples(config: ConfigDict) -> str:
    """Say in words what `eval.multiple` does."""
    return f'sides resized to the nearest multiples of {config.eval.multiple}, logits back'


def describe(config: ConfigDict, size: tuple[int, int], window: tuple[int, int], name: str) -> str:
    """Say in words how a split is scored.

    Args:
        config: finalised.
        size: height and width of the images in the first batch.
        window: see `window`.
        name: of the network, 'teacher' or 'student'.
    """

    def sides(pair: tuple[int, int]) -> str:
        return f'{pair[0]}x{pair[1]}'  # height first, as everywhere

    def windows(cut_off: bool) -> str:
        stride = sides(inference.default_stride(window, cut_off))
        border = ' cut off at the border' if cut_off else ''
        return (
            f'sliding windows of {sides(window)} at stride {stride}{border}, mean probability '
            'where they overlap'
        )

    c = config.eval
    seen = {
        'whole': f'whole image reflect-padded to {sides(size)}',
        'whole_exact': 'whole image at its own size',
        'resized': f'image resized to {sides(window)} whatever its aspect, logits resized back',
        **{name: windows(cut_off) for name, cut_off in SLIDING.items()},
        'random_crop': f'one random crop of {sides(window)} an image',
    }
    averaged = [f'scales {", ".join(map(str, c.scales))}'] if tuple(c.scales) != (1.0,) else []
    averaged += ['the mirror image'] if c.flip else []
    how = 'sum of logits' if c.protocol == 'resized' else 'mean probability'
    return ', '.join(
        [
            {'teacher': 'EMA teacher', 'student': 'student'}[name],
            'running statistics',
            seen[c.protocol],
            *([multiples(config)] if c.multiple > 1 else []),
            *([f'{how} over {" and ".join(averaged)}'] if averaged else []),
            'void pixels left out',
            *(['void a miss, absent classes 0'] if c.get('scores') == 'authors' else []),
        ]
    )
