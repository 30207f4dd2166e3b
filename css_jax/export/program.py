"""What an exported file computes: images as they are decoded in, labels and confidence out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from css_jax import methods, state
from css_jax.data import evaluation, sources
from css_jax.evaluation import protocols
from css_jax.methods import Evaluation, views
from css_jax.methods.method import computing
from css_jax.ops import resize
from css_jax.run import checkpoint

INPUT = 'image'
OUTPUTS = ('label', 'confidence')


class Program(NamedTuple):
    """A network of a run with its preprocessing, for images of one size.

    Attributes:
        function: images [B, H, W, 3] uint8 RGB -> labels [B, H, W] int32, the probability of these
            [B, H, W] float32. B is any number.
        size: H and W.
        about: what is said of it in the file: texts, numbers and lists of these.
    """

    function: Callable[[Array], tuple[Array, Array]]
    size: tuple[int, int]
    about: Mapping[str, Any]


def chosen(config: ConfigDict, name: str | None) -> Evaluation:
    """Return the evaluation whose network is exported.

    Args:
        config: finalised.
        name: of the evaluation; None: the first one's.

    Raises:
        ValueError: there is no such evaluation.
    """
    every = methods.METHODS[config.method].evaluations(config)
    if name is not None and name not in every:
        raise ValueError(f'--evaluation: got {name!r}, expected one of {list(every)}')
    return every[name or next(iter(every))]


def load(
    workdir: str,
    config: ConfigDict,
    step: int,
    evaluated: Evaluation,
    size: tuple[int, int] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Program:
    """Restore a network of a run, as a program.

    The image is seen whole and once, whatever the views that the run is evaluated with. Of the
    protocol 'resized' it is resized to `eval.window` on the way in, and the logits back.

    Args:
        workdir: the run's folder.
        config: the run's, finalised.
        step: a step that is there.
        evaluated: see `chosen`.
        size: height and width of the images; None: `eval.pad_to`, else those of the first image
            that the run is evaluated on.
        changes: key of `config.model` -> its value in the program, beside plain convolutions, which
            every runtime knows. They give the same numbers but for rounding.

    Raises:
        ValueError: the network cannot take images of this size.
        FileNotFoundError: the size is to be that of images that are not there.
    """
    size = size or default_size(config, evaluated)
    window = protocols.window(config, evaluated.dataset)
    exported = ConfigDict(config.to_dict())
    plain = {'atrous': 'dilated', 'attention': 'xla', 'remat': ()}
    exported.model.update({**plain, **(changes or {})})
    ctx = methods.context(exported)
    like = state.networks(methods.METHODS[config.method], ctx)[evaluated.network]
    variables = checkpoint.restore_network(workdir, step, like, evaluated.network)
    predict = protocols.network(config, ctx, evaluated.predict, variables)

    def function(images: Array) -> tuple[Array, Array]:
        seen = views.normalise(images, ctx)
        if config.eval.protocol == 'resized':
            logits = resize.half_pixel(predict(resize.half_pixel(seen, window)), window)
            logits = resize.half_pixel(logits, size)
        else:
            logits = predict(seen)
        return logits.argmax(-1).astype(jnp.int32), jax.nn.softmax(logits).max(-1)

    with computing(f'images of {size[0]}x{size[1]}', passes=()):
        jax.eval_shape(function, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8))
    about = {
        'method': config.method,
        'step': step,
        'network': evaluated.network,
        'classes': class_names(config, evaluated),
        'input': f'{INPUT}: uint8 RGB, [batch, {size[0]}, {size[1]}, 3]',
        'outputs': f'{OUTPUTS[0]}: int32 class of each pixel, [batch, {size[0]}, {size[1]}]; '
        f'{OUTPUTS[1]}: float32, its probability, likewise',
        'preprocessing': f'(x / 255 - mean) / std, mean {_short(config.data.mean)}, std '
        f'{_short(config.data.std)}; it is in the file',
        'protocol': described(config, evaluated, size, window),
    }
    return Program(function, size, about)


def default_size(config: ConfigDict, evaluated: Evaluation) -> tuple[int, int]:
    """Return the height and width that a run is evaluated at, see `load`."""
    if any(config.eval.pad_to):
        return tuple(config.eval.pad_to)
    try:
        source = sources.load(evaluated.dataset, evaluated.split, config.data.dir)
    except (ValueError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f'the size of the images that {evaluated.dataset}:{evaluated.split} has is not known '
            f'({str(error).splitlines()[0]}); give --export_size=HEIGHT,WIDTH'
        ) from None
    return evaluation.eval_size(source, source.sizes[0])


def class_names(config: ConfigDict, evaluated: Evaluation) -> list[str]:
    """Return a name for each label; those that the dataset has no name for are 'class 7'.

    A dataset of the user that is not there has no names at all.
    """
    try:
        names = sources.class_names(evaluated.dataset, config.data.dir)
    except (ValueError, FileNotFoundError):
        names = ()
    return [*names, *(f'class {i}' for i in range(len(names), evaluated.classes))]


def described(
    config: ConfigDict, evaluated: Evaluation, size: tuple[int, int], window: tuple[int, int]
) -> str:
    """Say in words what the network sees of an image, and what of the run's own evaluation not."""
    c = config.eval
    seen = f'{evaluated.network}, whole image of {size[0]}x{size[1]}'
    seen += f' resized to {window[0]}x{window[1]} and back' if c.protocol == 'resized' else ''
    seen += f', {protocols.multiples(config)}' if c.multiple > 1 else ''
    left_out = {
        'whole': ['padding'],
        'sliding': [f'windows of {window[0]}x{window[1]}'],
        'sliding_cut': [f'windows of {window[0]}x{window[1]}'],
        'random_crop': [f'crop of {window[0]}x{window[1]}'],
    }.get(c.protocol, [])
    left_out += ['mirror image'] if c.flip else []
    scales = ', '.join(map(str, c.scales))
    left_out += [f'scales {scales}'] if tuple(c.scales) != (1.0,) else []
    told = f'; without what the run is evaluated with beside: {", ".join(left_out)}'
    return f'{seen}, one view{told if left_out else ""}'


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
