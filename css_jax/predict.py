"""A trained run, loaded: label maps, probabilities and confidence of images of any size.

Images are seen as the run was scored, see `css_jax.evaluation.protocols`, in batches of few shapes,
see `css_jax.evaluation.sizes`.
"""

import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax.data import geometry, sources
from css_jax.evaluation import outputs, pictures, protocols
from css_jax.evaluation import sizes as size_rules
from css_jax.evaluation.outputs import Maps
from css_jax.methods import views
from css_jax.ops import inference
from css_jax.run import checkpoint, progress
from css_jax.run import folder as run_folder

LOG = logging.getLogger('css_jax')
_MAPS = ('labels', 'confidence', 'similarity')


class Predictor:
    """A network of a run, ready for images; see `load`.

    Attributes:
        config: the run's, finalised.
        step: iterations that the weights were trained for.
        evaluations: names of the method's evaluations.
        evaluation: the one whose classes are predicted.
        dataset: whose classes these are.
        num_classes: C.
        class_names: C of them, 'class i' where they are not known.
        colours: of the classes, uint8 [C, 3] RGB; PASCAL VOC's where they are not known.
        protocol: a sentence on how images are seen.
        sizes: at which images are seen.
        has_similarity: whether `maps` gives similarities.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        which: str | int = 'last',
        network: str | None = None,
        evaluation: str | None = None,
        max_side: int | None = None,
        config: ConfigDict | None = None,
    ):
        """Restore a checkpoint; for the arguments see `load`."""
        if max_side is not None and max_side < 0:
            raise ValueError(f'max_side: got {max_side}, expected pixels, or 0 for no limit')
        if config is None:
            self.config = run_folder.load(workdir)
        else:
            self.config = configs.finalise(config, workdir)
            run_folder.match(self.config, workdir, (*run_folder.FREE, 'eval.'))
        method, ctx = methods.METHODS[self.config.method], methods.context(self.config)
        every = method.evaluations(self.config)
        self.evaluations = tuple(every)
        if evaluation is not None and evaluation not in every:
            raise ValueError(f'evaluation: got {evaluation!r}, expected one of {list(every)}')
        self.evaluation = evaluation or self.evaluations[0]
        self._chosen = every[self.evaluation]
        self.dataset, self.num_classes = self._chosen.dataset, self._chosen.classes
        network = network or self._chosen.network
        like = state.networks(method, ctx)
        there = [name for name, shapes in like.items() if jax.tree.leaves(shapes)]
        if network not in there:
            raise ValueError(f'network: got {network!r}, expected one of {there}')
        self.has_similarity = method.similarity is not None
        self.step, *self._arrays = _restore(
            workdir, str(which), like[network], network, self.has_similarity
        )
        self._arrays = jax.device_put(self._arrays)
        self.sizes = size_rules.sizes(self.config, self._chosen, max_side)
        static = self.sizes.static if any(self.sizes.static) else 2 * (size_rules.MULTIPLE,)
        self.protocol = protocols.describe(self.config, static, self.sizes.window, network)
        self.class_names = _class_names(self.dataset, self.config.data.dir, self.num_classes)
        self.colours = _colours(self.dataset, self.config.data.dir, self.num_classes)
        self._ctx, self._method = ctx, method
        # One compiled program for what is asked for, and for each shape.
        self._program = functools.cache(
            lambda function, *given: parallel.compile(functools.partial(function, *given))
        )

    def predict(
        self, images: np.ndarray | Sequence[np.ndarray], probabilities: bool = False
    ) -> np.ndarray | list[np.ndarray]:
        """Return the class of each pixel, or the probabilities of all classes.

        Args:
            images: uint8 RGB: one image [H, W, 3], a batch [B, H, W, 3], or a list of images
                [H, W, 3] of any sizes, which are batched by size.
            probabilities: whether these are asked for in place of classes.

        Returns:
            int32 [H, W], [B, H, W] or a list of [H, W], in [0, num_classes); with `probabilities`
            float32 with a last axis of classes.

        Raises:
            ValueError: images of another shape or type.
        """
        wanted = 'probabilities' if probabilities else 'labels'
        found = [arrays[wanted] for arrays in self._all(_listed(images), (wanted,))]
        if isinstance(images, list | tuple):
            return found
        return np.stack(found) if np.ndim(images) == 4 else found[0]

    def maps(self, images: np.ndarray | Sequence[np.ndarray]) -> Maps | list[Maps]:
        """Return labels, confidence and similarity; only these maps leave the device.

        Args:
            images: as `predict` takes them.

        Returns:
            `Maps` of one image; a list of them for a batch or a list.

        Raises:
            ValueError: images of another shape or type.
        """
        wanted = _MAPS if self.has_similarity else _MAPS[:2]
        every = self._all(_listed(images), wanted)
        found = [Maps(*(arrays.get(name) for name in _MAPS)) for arrays in every]
        several = isinstance(images, list | tuple) or np.ndim(images) == 4
        return found if several else found[0]

    def _all(
        self, images: Sequence[np.ndarray], wanted: tuple[str, ...]
    ) -> list[dict[str, np.ndarray]]:
        """Predict images of any sizes: name of what is wanted -> array, for each."""
        groups: dict[tuple[int, int] | None, list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.sizes.of(*image.shape[:2]), []).append(i)
        found: dict[int, dict[str, np.ndarray]] = {}
        for size, indices in groups.items():
            most = self.sizes.at_once(size)
            for start in range(0, len(indices), most):
                some = indices[start : start + most]
                parts = [images[i] for i in some]
                seen = [self._alone(*parts, wanted)] if size is None else self._batch(
                    parts, size, wanted
                )  # fmt: skip
                found |= dict(zip(some, seen, strict=True))
        return [found[i] for i in range(len(images))]

    def _batch(
        self, images: Sequence[np.ndarray], size: tuple[int, int], wanted: tuple[str, ...]
    ) -> list[dict[str, np.ndarray]]:
        """Predict images that are padded to one size."""
        # Powers of two, so that the last images of a size are no further shape each time.
        count = min(self.sizes.at_once(size), 1 << (len(images) - 1).bit_length())
        batch = np.zeros((count, *size, 3), np.uint8)
        sizes = np.full((count, 2), size, np.int32)
        for i, image in enumerate(images):
            batch[i] = geometry.pad_to(image, size, 'reflect')
            sizes[i] = image.shape[:2]
        arrays = self._program(self._whole, wanted)(self._arrays, batch, sizes)
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        return [
            {name: array[i, :height, :width] for name, array in arrays.items()}
            for i, (height, width) in enumerate(sizes[: len(images)].tolist())
        ]

    def _whole(
        self, wanted: tuple[str, ...], arrays: Any, images: jax.Array, sizes: jax.Array
    ) -> dict[str, jax.Array]:
        """Predict a batch by the run's protocol."""
        predict = protocols.prediction(
            self.config, self._ctx, self._chosen.predict, self.sizes.window
        )
        similarity = None
        if 'similarity' in wanted:
            similarity = self._similarity(arrays, views.normalise(images, self._ctx))[..., 0]
        return outputs.asked(wanted, predict(arrays[0], images, sizes), similarity)

    def _similarity(self, arrays: Any, images: jax.Array) -> jax.Array:
        """Normalised images [B, H, W, 3] -> their similarity [B, H, W, 1]."""

        def channel(*given: Any) -> jax.Array:
            return self._method.similarity(*given)[..., None]

        return protocols.network(self.config, self._ctx, channel, *arrays)(images)

    def _alone(self, image: np.ndarray, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Predict an image that is made smaller, or is seen in windows."""
        height, width = image.shape[:2]
        smaller = self.sizes.made_smaller(height, width)
        if smaller == (height, width):
            return self._in_windows(image, wanted)
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
        more = ('similarity',) if 'similarity' in wanted else ()
        (found,) = self._all([image], ('probabilities', *more))
        return outputs.enlarged(found, (height, width), wanted)

    def _in_windows(self, image: np.ndarray, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Predict a large image in sliding windows.

        In memory lie the probabilities of one strip, as high as a window. A row of it is read once
        all windows that show it have been added.
        """
        (height, width), window = image.shape[:2], self.sizes.window
        image = geometry.pad_to(image, window, 'reflect')
        tops = inference.starts(image.shape[0], window[0], inference.default_stride(window)[0])
        similar = 'similarity' in wanted
        add, read = self._program(self._strip, similar), self._program(outputs.of_strip, wanted)
        count = np.zeros(image.shape[0], np.float32)
        sums = np.zeros((window[0], image.shape[1], self.num_classes + similar), np.float32)
        places = list(zip([tops[0], *tops], tops, [*tops[1:], image.shape[0]], strict=False))
        parts = []
        for before, top, end in progress.tracked(places, f'windows of {width}x{height}, strips'):
            rows = slice(top, top + window[0])
            count[rows] += 1
            sums = add(self._arrays, sums, np.int32(top - before), image[None, rows])
            found = read(sums, count[rows])
            parts.append({name: np.asarray(array)[: end - top] for name, array in found.items()})
        return {
            name: np.concatenate([part[name] for part in parts])[:height, :width] for name in wanted
        }

    def _strip(
        self, similar: bool, arrays: Any, sums: jax.Array, shift: jax.Array, strip: jax.Array
    ) -> jax.Array:
        """Move a strip's sums [h, W, C] up and add those of the windows of the next one.

        The views of the protocol, its mirror image and scales, are of each window.
        """
        c = self.config.eval
        network = protocols.network(self.config, self._ctx, self._chosen.predict, arrays[0])

        def values(images: jax.Array) -> jax.Array:
            each = functools.partial(inference.mirrored, network) if c.flip else network
            found = jax.nn.softmax(inference.multi_scale(each, images, tuple(c.scales)))
            if not similar:
                return found
            return jnp.concatenate([found, self._similarity(arrays, images)], -1)

        images = views.normalise(strip, self._ctx)
        window = self.sizes.window
        stride = inference.default_stride(window)
        mean = inference.windows_mean(values, images, window, stride, c.batch_size)[0]
        moved = jnp.concatenate([sums, jnp.zeros_like(sums)])
        return jax.lax.dynamic_slice(moved, (shift, 0, 0), sums.shape) + mean


def load(
    workdir: str | pathlib.Path,
    which: str | int = 'last',
    network: str | None = None,
    evaluation: str | None = None,
    max_side: int | None = None,
    config: ConfigDict | None = None,
) -> Predictor:
    """Load a trained run for `load(DIR).predict(images)`.

    Args:
        workdir: the run's folder.
        which: 'last', 'best' or a step.
        network: 'teacher' or 'student'; None: the one that is evaluated.
        evaluation: of a method with several, whose classes to predict; None: the first one's.
        max_side: images with a longer side are made smaller to it, and what is predicted is resized
            back; None: as the images of the run's dataset were prepared; 0: none is.
        config: the run's, in which keys of `eval` may differ: images are seen so; None: as stored.

    Raises:
        FileNotFoundError: DIR is not a run's folder, or has no such checkpoint.
        ValueError: there is no such network or evaluation, or the configuration is another run's.
    """
    return Predictor(workdir, which, network, evaluation, max_side, config)


def _listed(images: Any) -> list[np.ndarray]:
    """Return images as a list of uint8 [H, W, 3].

    Raises:
        ValueError: one is of another shape or type; names it.
    """
    several = isinstance(images, list | tuple)
    listed = [np.asarray(image) for image in (images if several else [images])]
    for i, image in enumerate(listed):
        good = image.ndim == 3 or (image.ndim == 4 and not several)
        if not good or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            name = f'images[{i}]' if several else 'images'
            expected = '[H, W, 3]' if several else '[H, W, 3], [B, H, W, 3] or a list of [H, W, 3]'
            raise ValueError(
                f'{name}: got {image.dtype} {image.shape}, expected uint8 RGB {expected}'
            )
    return list(listed[0]) if listed and listed[0].ndim == 4 else listed


def _class_names(dataset: str, data_dir: str, count: int) -> tuple[str, ...]:
    """Return a dataset's class names; 'class i' of others.

    So are all of a dataset that is not there, with a warning.
    """
    try:
        names = sources.class_names(dataset, data_dir)
    except FileNotFoundError:
        LOG.warning(
            'warning: %s is not there: its classes are class 0, class 1 and so on, and images keep '
            'their size; config.data.dir says where it is',
            dataset,
        )
        names = ()
    return (*names, *(f'class {i}' for i in range(len(names), count)))


def _restore(
    workdir: str | pathlib.Path, which: str, like: state.Variables, network: str, memory: bool
) -> tuple[int, state.Variables, dict[str, np.ndarray]]:
    """Return a checkpoint's step, its network, and the method's memory if that is asked for."""
    step = checkpoint.find(workdir, which)
    while True:
        try:
            variables = checkpoint.restore_network(workdir, step, like, network)
            parts = checkpoint.restore_arrays(workdir, step, ['memory']) if memory else {}
            return step, variables, parts.get('memory', {})
        except (OSError, ValueError):
            # A run that is trained meanwhile removes its older checkpoints.
            if (newer := checkpoint.find(workdir, which)) == step:
                raise
            step = newer


def _colours(dataset: str, data_dir: str, count: int) -> np.ndarray:
    """Return the colours of a dataset, and more where the network has more classes."""
    try:
        known = sources.palette(dataset, data_dir)
    except (FileNotFoundError, ValueError):
        known = np.zeros((0, 3), np.uint8)
    return pictures.palette(known[:count], count)
