"""A trained run, loaded: label maps for images."""

import pathlib

import jax
import numpy as np

from css_jax import checkpoint, methods, parallel, state, stored
from css_jax import config as configs
from css_jax.methods import views


class Predictor:
    """A network of a run, ready for images; see `load`."""

    def __init__(self, workdir: str | pathlib.Path, which: str = 'last', network: str = 'teacher'):
        """Restores a checkpoint.

        Args:
            workdir: the run's folder.
            which: 'last', 'best' or a step.
            network: 'teacher' or 'student'.
        """
        self.config = configs.finalise(stored.load(workdir))
        self.step = checkpoint.find(workdir, which)
        ctx = methods.context(self.config)
        method = methods.get(self.config.method)
        self._variables = checkpoint.restore_network(workdir, self.step, state.shapes(ctx), network)

        def labels(variables: state.Variables, images: jax.Array) -> jax.Array:
            return method.predict(variables, views.normalise(images, ctx), ctx).argmax(-1)

        self._labels = parallel.compile(labels)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Gives the class of each pixel, of images seen whole and at their own size.

        Args:
            images: [B, H, W, 3] uint8 RGB; each new shape is compiled once.

        Returns:
            [B, H, W] int32 in [0, num_classes).

        Raises:
            ValueError: images of another shape or type.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f'images: got {images.dtype} {images.shape}, expected uint8 [B, H, W, 3]'
            )
        return np.asarray(self._labels(self._variables, images), np.int32)


def load(workdir: str | pathlib.Path, which: str = 'last', network: str = 'teacher') -> Predictor:
    """Loads a trained run for `load(DIR).predict(images)`.

    Args:
        workdir: the run's folder.
        which: 'last', 'best' or a step.
        network: 'teacher' or 'student'.

    Raises:
        FileNotFoundError: DIR is not a run's folder, or has no such checkpoint.
    """
    return Predictor(workdir, which, network)
