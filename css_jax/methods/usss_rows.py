"""The file of label embeddings that USSS minimises entropies over (arXiv 1811.10323).

One .npz without pickles. `a` stands for a dataset's letter:

- `a/rows` [K C + 1, E] float32, K of each label, label after label, void's last; `a/valid` [K C]
  bool, false where no labelled pixel has the label; `a/names` [C] and `a/dataset`, text;
- `mean` [D] and `components` [D, E]: rows = (centroid - mean) components;
- `made_of`: JSON, what the embeddings were made of, for people.

`rows` of each dataset are enough: embeddings of label names by a language model, for instance.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from css_jax.ops.entropy import LabelEmbeddings

FILE = 'embeddings.npz'


class Embeddings(NamedTuple):
    """What such a file has, of the datasets asked for.

    Attributes:
        sets: letter of a dataset -> its rows, arrays of NumPy.
        mean: [D] float32, or None.
        components: [D, E] float32, or None.
    """

    sets: dict[str, LabelEmbeddings]
    mean: np.ndarray | None
    components: np.ndarray | None


def checked(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, ...]], config: Any
) -> Embeddings:
    """Return the label embeddings of a file, once it is sure that they fit.

    Args:
        arrays: of the file, by name.
        names: letter of a dataset -> its class names.
        config: `config.usss`, which names the file and says what it has to fit: embeddings,
            centroids, embedding_dim, projection_init.

    Returns:
        What it has.

    Raises:
        ValueError: it is of other datasets, classes, centroids or channels; says which.
    """
    key, sets = f'usss.embeddings={config.embeddings}', {}
    for name, classes in names.items():
        if (rows := arrays.get(f'{name}/rows')) is None:
            raise ValueError(f'{key}: there is no {name}/rows; it has {", ".join(sorted(arrays))}')
        theirs = tuple(map(str, np.ravel(arrays.get(f'{name}/names', classes))))
        if theirs != tuple(classes):
            raise ValueError(
                f'{key}: {name} has the classes {", ".join(theirs)}; expected {", ".join(classes)}'
            )
        expected = config.centroids * len(classes) + 1, config.embedding_dim
        if rows.shape != expected:
            raise ValueError(
                f'{key}: {name}/rows is {rows.shape}, expected {expected}: '
                f'usss.centroids={config.centroids} of {len(classes)} classes and void, '
                f'usss.embedding_dim={config.embedding_dim}'
            )
        if not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(f'{key}: {name}/rows is of type {rows.dtype}, expected float32')
        with np.errstate(over='ignore'):
            rows = rows.astype(np.float32)
        valid = arrays.get(f'{name}/valid', np.ones(len(rows) - 1, bool))
        if valid.shape != (len(rows) - 1,) or not valid.any() or not np.isfinite(rows).all():
            raise ValueError(
                f'{key}: {name} has rows that are not finite, or none that is valid; expected '
                f'finite rows and {name}/valid of {len(rows) - 1}'
            )
        sets[name] = LabelEmbeddings(rows, valid.astype(bool))
    mean, components = arrays.get('mean'), arrays.get('components')
    if config.projection_init == 'pca' and (mean is None or components is None):
        raise ValueError(
            f'{key}: there are no mean and components, expected them with usss.projection_init=pca'
        )
    if config.projection_init == 'pca':
        fits = mean.ndim == 1 and components.shape == (len(mean), config.embedding_dim)
        if not fits or not np.isfinite(mean).all() or not np.isfinite(components).all():
            raise ValueError(
                f'{key}: mean is {mean.shape} and components {components.shape}, expected finite '
                f'(D,) and (D, usss.embedding_dim={config.embedding_dim})'
            )
    return Embeddings(sets, mean, components)
