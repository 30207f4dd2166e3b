"""A trained run, loaded: label maps for images."""

import pathlib

import jax
import numpy as np

from css_jax import methods, parallel, state
from css_jax.evaluation import protocols
from css_jax.methods import views
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder


class Predictor:
    """A network of a run, ready for images; see `load`.

    Attributes:
        config: the run's, finalised.
        step: iterations that the weights were trained for.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        which: str = 'last',
        network: str | None = None,
        evaluation: str | None = None,
    ):
        """Restore a checkpoint; for the arguments see `load`."""
        self.config = run_folder.load(workdir)
        self.step = checkpoint.find(workdir, which)
        method, ctx = methods.METHODS[self.config.method], methods.context(self.config)
        every = method.evaluations(self.config)
        if evaluation is not None and evaluation not in every:
            raise ValueError(f'evaluation: got {evaluation!r}, expected one of {list(every)}')
        chosen = every[evaluation or next(iter(every))]
        network = network or chosen.network
        like = state.networks(method, ctx)
        there = [name for name, shapes in like.items() if jax.tree.leaves(shapes)]
        if network not in there:
            raise ValueError(f'network: got {network!r}, expected one of {there}')
        self._variables = checkpoint.restore_network(workdir, self.step, like[network], network)
        window = protocols.window(self.config, chosen.dataset)
        resized = protocols.prediction(self.config, ctx, chosen.predict, window)

        def labels(variables: state.Variables, images: jax.Array) -> jax.Array:
            if self.config.eval.protocol == 'resized':  # else the network takes any size as it is
                return resized(variables, images).argmax(-1)
            return chosen.predict(variables, views.normalise(images, ctx), ctx).argmax(-1)

        self._labels = parallel.compile(labels)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the class of each pixel, of images seen whole.

        They are seen at their own size, without the views that an evaluation averages over. A run
        that is evaluated by the protocol 'resized' predicts by it as well, with all its views.

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


def load(
    workdir: str | pathlib.Path,
    which: str = 'last',
    network: str | None = None,
    evaluation: str | None = None,
) -> Predictor:
    """Load a trained run for `load(DIR).predict(images)`.

    Args:
        workdir: the run's folder.
        which: 'last', 'best' or a step.
        network: 'teacher' or 'student'; None: the one that is evaluated.
        evaluation: of a method with several, whose classes to predict; None: the first one's.

    Raises:
        FileNotFoundError: DIR is not a run's folder, or has no such checkpoint.
        ValueError: there is no such network or evaluation.
    """
    return Predictor(workdir, which, network, evaluation)
