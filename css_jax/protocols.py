"""What the network sees of an image when it is evaluated, and how its views are averaged.

`config.eval.protocol` (spec section 8) says what the network sees:

- `whole`: the image, padded right and bottom by reflection to one static size, `eval.pad_to`;
- `whole_exact`: each image at its own size, a compilation for every size;
- `sliding`: windows of `eval.window` that overlap by a third, averaged as probabilities;
- `random_crop`: one crop of `eval.window` an image, the same in every evaluation. The reference
  program scores Cityscapes so, by mistake; for comparison only.

`eval.flip` and `eval.scales` average over mirrored and resized images. Padding is void, and void
counts nowhere.
"""

import functools
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from css_jax import methods
from css_jax.methods import views
from css_jax.ops import inference
from css_jax.state import Variables

# Keys of `config.eval` that decide what a score is of.
KEYS = ('dataset', 'split', 'protocol', 'pad_to', 'window', 'flip', 'scales', 'network')


def window(config: ConfigDict) -> tuple[int, int]:
    """Gives height and width of `eval.window`; (0, 0) stands for a crop of the first stream."""
    if any(config.eval.window):
        return tuple(config.eval.window)
    first = next(iter(methods.METHODS[config.method].STREAMS))
    return tuple(config.data.streams[first].crop)


def prediction(config: ConfigDict) -> Callable[[Variables, jax.Array], jax.Array]:
    """Gives the function (variables, images) -> logits of the protocol in `config.eval`.

    Args:
        config: finalised.

    Returns:
        A pure function of uint8 RGB images [B, H, W, 3] to float32 logits [B, H, W, C].
    """
    c, ctx = config.eval, methods.context(config)
    method = methods.get(config.method)

    def predict(variables: Variables, images: jax.Array) -> jax.Array:
        network = functools.partial(method.predict, variables, ctx=ctx)
        if c.protocol == 'sliding':
            shape = window(config)
            network = functools.partial(
                inference.sliding,
                network,
                window=shape,
                stride=inference.default_stride(shape),
                batch_size=c.batch_size,
            )
        if c.flip:
            network = functools.partial(inference.mirrored, network)
        return inference.multi_scale(network, views.normalise(images, ctx), tuple(c.scales))

    return predict


def describe(config: ConfigDict, size: tuple[int, int]) -> str:
    """Says in words how a split is scored.

    Args:
        config: finalised.
        size: height and width of the images in the first batch.
    """

    def sides(pair: tuple[int, int]) -> str:
        return f'{pair[0]}x{pair[1]}'  # height first, as everywhere

    c, cut = config.eval, window(config)
    seen = {
        'whole': f'whole image reflect-padded to {sides(size)}',
        'whole_exact': 'whole image at its own size',
        'sliding': f'sliding windows of {sides(cut)} at stride '
        f'{sides(inference.default_stride(cut))}, mean probability where they overlap',
        'random_crop': f'one random crop of {sides(cut)} an image',
    }
    averaged = [f'scales {", ".join(map(str, c.scales))}'] if tuple(c.scales) != (1.0,) else []
    averaged += ['the mirror image'] if c.flip else []
    return ', '.join(
        [
            {'teacher': 'EMA teacher', 'student': 'student'}[c.network],
            'running statistics',
            seen[c.protocol],
            *([f'mean probability over {" and ".join(averaged)}'] if averaged else []),
            'void pixels left out',
        ]
    )
