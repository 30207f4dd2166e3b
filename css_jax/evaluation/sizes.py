"""At which sizes images of any size are seen when they are predicted, and how many at once.

- `whole` and `resized`: images that fit in the evaluation's static size are padded to it, as the
  evaluator does; the sides of larger ones are padded to multiples of `MULTIPLE`;
- `whole_exact`, `random_crop`, `sliding` and `sliding_cut`: at their own size.

An image of too many pixels for the memory goes through sliding windows; by `resized` it is made
smaller, as it is resized anyway. An image with a side above `max_side` is made smaller, too.
"""

import logging
from typing import NamedTuple

from ml_collections import ConfigDict

from css_jax.data import evaluation, sources
from css_jax.evaluation import protocols
from css_jax.methods import Evaluation
from css_jax.models.backbones import PLAIN

LOG = logging.getLogger('css_jax')
MULTIPLE = 64  # pixels; smaller ones would make for more shapes, each of which is compiled
_MEMORY = 2**32  # bytes of a batch, by the rule of `most_pixels`
_FEATURES = 640  # numbers of feature maps for each pixel: of a ResNet-101 at output stride 8
_MOST_ATTENDED = 1024**2  # pixels that a ViT sees: its attention grows with their square
_STATIC = ('whole', 'resized')


class Sizes(NamedTuple):
    """How images are seen.

    Attributes:
        protocol: of the run's evaluation.
        static: height and width that images are padded to; (0, 0) where there is none.
        window: height and width of a sliding window.
        most_pixels: that an image, or a batch of them, may have to be seen whole.
        max_side: pixels of the longer side, above which images are made smaller; 0: none is.
        most_images: of a batch.
    """

    protocol: str
    static: tuple[int, int]
    window: tuple[int, int]
    most_pixels: int
    max_side: int
    most_images: int

    def made_smaller(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is made smaller to; its own if it is not."""
        factor = self.max_side / max(height, width) if self.max_side else 1.0
        if self.protocol == 'resized':
            factor = min(factor, (self.most_pixels / (height * width)) ** 0.5)
        if factor >= 1:
            return height, width
        return max(1, round(height * factor)), max(1, round(width * factor))

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is padded to, right and bottom."""
        if self.protocol not in _STATIC:
            return height, width
        if height <= self.static[0] and width <= self.static[1]:
            return self.static
        return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE

    def of(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the height and width of the batch that an image is seen in; None: it is alone.

        What is alone is made smaller or goes through windows.
        """
        if self.made_smaller(height, width) != (height, width):
            return None
        size = self.padded(height, width)
        fits = size[0] * size[1] <= self.most_pixels or self.protocol == 'resized'
        return size if fits else None

    def at_once(self, size: tuple[int, int] | None) -> int:
        """Return the most images in a batch of a size, see `of`."""
        if size is None or self.protocol in protocols.SLIDING:
            return 1  # the batch is that of its windows
        if size == self.static:  # which the evaluation sees as many of
            return self.most_images
        return max(1, min(self.most_images, self.most_pixels // (size[0] * size[1])))


def sizes(config: ConfigDict, evaluated: Evaluation, max_side: int | None = None) -> Sizes:
    """Return how the images of one of a run's evaluations are seen.

    Args:
        config: of the run, finalised.
        evaluated: one of its evaluations.
        max_side: see `Sizes`; None: that of the images of the dataset.
    """
    c, own = config.eval, sources.preparation(evaluated.dataset, config.data.dir)
    static = _static(config, evaluated) if c.protocol in _STATIC else (0, 0)
    most = most_pixels(evaluated.classes, c.protocol, config.model.backbone in PLAIN)
    return Sizes(
        protocol=c.protocol,
        static=static,
        window=protocols.window(config, evaluated.dataset),
        most_pixels=max(most, static[0] * static[1]),
        max_side=own.max_side if max_side is None else max_side,
        most_images=c.batch_size,
    )


def most_pixels(classes: int, protocol: str, attention: bool = False) -> int:
    """Return how many pixels an image, or a batch of them, may have to be seen whole.

    A pixel takes 4 (3 C + 640) bytes: its logits and what is made of them, and the features of a
    ResNet-101 by the compiler's account. As many are seen as fit in 4 GiB, and those of the
    evaluation's static size. By the protocols of windows the features are those of windows, and a
    pixel takes 12 C bytes.

    Args:
        classes: C.
        protocol: of the run's evaluation.
        attention: whether the network is a ViT, which sees at most 1024 x 1024.
    """
    if protocol in protocols.SLIDING:
        return _MEMORY // (12 * classes)
    most = _MEMORY // (4 * (3 * classes + _FEATURES))
    return min(most, _MOST_ATTENDED) if attention else most


def _static(config: ConfigDict, evaluated: Evaluation) -> tuple[int, int]:
    """Return the static size of an evaluation; (0, 0), with a warning, where nobody knows it."""
    pad_to = tuple(config.eval.pad_to)
    if any(pad_to):
        return pad_to
    try:
        source = sources.load(evaluated.dataset, evaluated.split, config.data.dir)
        return evaluation.eval_size(source, pad_to)
    except (OSError, ValueError) as error:
        LOG.warning(
            'warning: images are padded to multiples of %d pixels: the size at which the run was '
            'scored is that of its images, and these cannot be read (%s)',
            MULTIPLE, str(error).splitlines()[0],
        )  # fmt: skip
        return (0, 0)
