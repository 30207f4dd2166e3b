"""A fully connected CRF behind CoSA's segmentation (arXiv 1210.5644), an option of its evaluation.

It runs on the host, image by image, by the package pydensecrf2, with the settings of CoSA's authors
(arXiv 2402.17891): one step of mean field, which moves the borders of a segmentation to those of
the image's colours.
"""

import importlib.util

import jax
import numpy as np
from jax import Array

PACKAGE = 'pydensecrf'  # as it is imported
_STEPS = 1
_GAUSSIAN = {'sxy': 1, 'compat': 1}
_BILATERAL = {'sxy': 121, 'srgb': 5, 'compat': 4}


def check() -> None:
    """Raise ValueError where the package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            'eval.crf: got True, but there is no pydensecrf; expected it installed: pip install '
            'pydensecrf2 (which compiles it: a C++ compiler is needed)'
        )


def refined(images: Array, probabilities: Array, sizes: Array) -> Array:
    """Return the classes that the CRF gives.

    Args:
        images: [B, H, W, 3] uint8 RGB.
        probabilities: [B, H, W, C] float32.
        sizes: [B, 2] int32, height and width of each image without padding.

    Returns:
        [B, H, W] int32; 0 in the padding.
    """
    shape = jax.ShapeDtypeStruct(probabilities.shape[:3], np.int32)
    return jax.pure_callback(_batch, shape, images, probabilities, sizes)


def _batch(images: Array, probabilities: Array, sizes: Array) -> np.ndarray:
    images, probabilities = np.asarray(images), np.asarray(probabilities)
    labels = np.zeros(probabilities.shape[:3], np.int32)
    for b, (height, width) in enumerate(np.asarray(sizes).tolist()):
        part = np.s_[b, :height, :width]
        labels[part] = _image(images[part], probabilities[part])
    return labels


def _image(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the classes [H, W] of one image."""
    from pydensecrf import densecrf, utils

    height, width, classes = probabilities.shape
    field = densecrf.DenseCRF2D(width, height, classes)
    unary = utils.unary_from_softmax(np.ascontiguousarray(probabilities.transpose(2, 0, 1)))
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    field.addPairwiseGaussian(**_GAUSSIAN)
    field.addPairwiseBilateral(rgbim=np.array(image), **_BILATERAL)
    found = np.asarray(field.inference(_STEPS))
    return found.argmax(0).reshape(height, width)
