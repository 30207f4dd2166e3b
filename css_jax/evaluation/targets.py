"""What a method makes of a batch, as titled columns of pictures."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from css_jax.data import sources
from css_jax.evaluation import pictures


def palettes(config: ConfigDict) -> dict[str, np.ndarray]:
    """Return stream -> colours of the network's classes on it, uint8 [C, 3] RGB."""
    return {
        name: pictures.palette(sources.palette(stream.dataset, config.data.dir), config.num_classes)
        for name, stream in config.data.streams.items()
    }


def read(config: ConfigDict, batch: Mapping) -> dict[str, np.ndarray]:
    """Return title -> uint8 RGB [B, H, W, 3] of what the streams give.

    Args:
        config: finalised.
        batch: as `css_jax.data.streams.train_batches` gives it.
    """
    columns, colours = {}, palettes(config)
    for stream, arrays in batch.items():
        columns[f'{stream} crop'] = arrays['image']
        if 'label' in arrays:
            columns[f'{stream} mask'] = pictures.colourise(arrays['label'], colours[stream])
    return columns


def made(config: ConfigDict, batch: Mapping, prepared: Any) -> dict[str, np.ndarray]:
    """Return title -> uint8 RGB [B, H, W, 3] of what a method's targets have.

    Columns may differ in crop and batch size, as streams do.

    Args:
        config: finalised.
        batch: that the targets are of.
        prepared: the targets, on the host; see `css_jax.methods.method.Method.targets`.
    """
    # What a method makes of several streams is shown as the first one's classes.
    colours = functools.partial(pictures.colourise, colours=palettes(config)[next(iter(batch))])
    seen = functools.partial(pictures.denormalise, mean=config.data.mean, std=config.data.std)
    size = next(iter(batch.values()))['image'].shape[1:3]
    shown = {
        'weak_label': ('teacher, logit space', colours),
        'weak_label_rep': ('teacher, prototypes', colours),
        'images': ('student, labelled', seen),
        'labels': ('its mask', colours),
        'strong': ('student, strong', seen),
        'label': ('its pseudo-label', colours),
        'indicator': ('its indicator', pictures.grey),
        'mixed': ('student, mixed', seen),
        'mixed_label': ('mixed pseudo-label', colours),
        'mixed_indicator': ('mixed indicator', pictures.grey),
        **{
            f'{key}{view}': (f'{title} {view}', show)
            for view in (1, 2)
            for key, title, show in (
                ('strong', 'student, strong', seen),
                ('label', 'pseudo-label', colours),
                ('indicator', 'indicator', pictures.grey),
            )
        },
        'label_c': ("L_c's label", colours),
        'indicator_c': ("L_c's indicator", pictures.grey),
        'cam': ('largest CAM', pictures.grey),
        'cam_label': ('label from CAMs', colours),
        'aux_label': ('from early CAMs', colours),
        'segmentation': (
            'from segmentation', lambda x: colours(pictures.enlarge(x.argmax(-1), size))
        ),
    }  # fmt: skip
    if not _any(prepared, 'weak_label_rep'):  # white everywhere, which would need saying
        shown['weak_label_rep'] = ('no prototypes yet', colours)
    found = prepared._asdict() if hasattr(prepared, '_asdict') else {}
    for key in ('label', 'indicator'):  # L_c's are often those of L_u
        if f'{key}_c' in found and np.array_equal(found[key], found[f'{key}_c']):
            del found[f'{key}_c']
    return {title: show(found[key]) for key, (title, show) in shown.items() if key in found}


def _any(prepared: Any, name: str) -> bool:
    """Say whether a map of labels has any, if it is there."""
    labels = getattr(prepared, name, None)
    return labels is None or bool((np.asarray(labels) >= 0).any())
