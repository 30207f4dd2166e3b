"""The one table of keys. A file in configs/ starts from it and sets what its run needs.

A key that nobody has set is None until `css_jax.config.finalise` fills it in. The declarations here
are of keys that every run has; those of a method stand in its file, those of a network in
css_jax/models/.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from css_jax import methods, models, parallel
from css_jax.keys import SIDE, Key, ascending, declared, factors, size_or_none
from css_jax.methods.method import PADDING, READS
from css_jax.models import backbones

_MANY = 10**9
_STREAMS = 'data.streams.'


def _expected_rgb(least: float) -> Any:
    def expected(value: tuple[float, ...]) -> str:
        good = len(value) == 3 and all(least <= v <= 1 for v in value)
        return '' if good else f'three numbers from {least} to 1'

    return expected


def _expected_crop(value: tuple[int, ...]) -> str:
    good = len(value) == 2 and min(value) >= 8 and max(value) <= SIDE
    return '' if good else f'(height, width) of at least 8, at most {SIDE}'


def _expected_side(value: tuple[int, ...]) -> str:
    good = tuple(value) == (0, 0) or (len(value) == 2 and 0 < value[0] <= value[1] <= SIDE)
    return '' if good else f'(low, high) with 0 < low <= high, at most {SIDE}, or (0, 0)'


def _expected_trace(value: tuple[int, ...]) -> str:
    good = tuple(value) == (0, 0) or (len(value) == 2 and 0 <= value[0] < value[1])
    return '' if good else '(first step, the one after the last) or (0, 0)'


def _at_least(least: int) -> Any:
    return lambda value: '' if value >= least else f'at least {least}'


# Of one stream; `config.data.streams` maps a stream's name to a table of these.
STREAM = {
    'dataset': Key('', "name in css_jax.data.sources.DATASETS, with '/config' for one of several"),
    'split': Key('train', 'of the dataset'),
    'reads': Key(
        '', "what is read beside images; the method's",
        choices=[what + more for what in READS for more in ('', *PADDING)],
    ),
    'count': Key(0, 'images taken from the split; 0: all of them', expected=_at_least(0)),
    'subset_seed': Key(0, 'which `count` images', expected=_at_least(0)),
    'min_per_class': Key(
        0, 'with `count`: every class is in at least so many of the images', expected=_at_least(0)
    ),
    'ids_file': Key('', 'a text file of ids, one a line, instead of `count`'),
    'exclude': Key('', 'another stream of the same dataset whose images are left out'),
    # Two images: the BatchNorm of the image pooling has one value of each.
    'batch_size': Key(16, 'images, over all devices', expected=_at_least(2)),
    'crop': Key(
        (512, 512), 'height, width in pixels', like=(64, 64), expected=_expected_crop
    ),
    'resize': Key(
        (0.5, 1.5), 'range of the random scale before the crop; 1,1: none', expected=ascending
    ),
    'resize_law': Key(
        'factor', 'factor (of both sides, rounded down) | long_side (the long side is a whole '
        'number, each as likely; the short one is rounded)', choices=('factor', 'long_side'),
    ),
    'long_side': Key(
        (0, 0), 'instead of `resize`: range of the long side in pixels, whatever the image has; '
        '0,0: none', like=(250, 1000), expected=_expected_side,
    ),
    'flip_prob': Key(
        0.0, 'of mirroring left-right on the host, before the crop: the teacher sees it too',
        range=(0, 1),
    ),
    'pad': Key(
        'constant', 'of images smaller than the crop: constant (mean colour) | constant_floor '
        '(rounded down) | reflect | black (on all sides, the image anywhere) | black_corner (right '
        'and below or, of a mirrored image, left and below)',
        choices=('constant', 'constant_floor', 'reflect', 'black', 'black_corner'),
    ),
}  # fmt: skip
KEYS = {
    'seed': Key(0, 'of the run; the same seed gives the same run', range=(0, 2**32 - 1)),
    'method': Key('css_mix', 'name in css_jax.methods.METHODS', choices=methods.METHODS),
    'num_classes': Key(0, '0: as many as the evaluation dataset has', range=(0, 255)),
    'steps': Key(40_000, 'iterations', range=(1, _MANY)),
    'parallel': Key('jit', 'jit (one program over all devices) | pmap', choices=parallel.MODES),
    'accumulate_steps': Key(1, 'micro-batches a step is computed in', range=(1, _MANY)),
    'init_from': Key('', 'folder of another run whose networks and memory this one starts with'),
    **models.KEYS,
    'model.pretrained': Key(
        '', 'backbone weights: a file, or a name of css_jax/models/published.py; empty: random ones'
    ),
    'data.dir': Key('', 'of prepared datasets; empty: TFDS_DATA_DIR or ~/tensorflow_datasets'),
    'data.mean': Key(
        lambda c: backbones.pixels(c.model).mean,
        'of RGB in [0, 1]; what the first weights expect', like=(0.485, 0.456, 0.406),
        expected=_expected_rgb(0.0),
    ),
    'data.std': Key(
        lambda c: backbones.pixels(c.model).std,
        "likewise; without weights ImageNet's", like=(0.229, 0.224, 0.225),
        expected=_expected_rgb(1e-3),
    ),
    'data.resampling': Key(
        'cv2', "cv2 (fast) | pil (the reference's filter, to compare with)", choices=('cv2', 'pil')
    ),
    'data.threads': Key(4, 'that read and crop', range=(1, 256)),
    'data.prefetch': Key(4, 'batches read ahead', range=(1, 256)),
    'data.unreadable': Key(
        0, 'records of the streams that may be damaged: all are read before the first step, and '
        'the next image of its stream takes the place of one that cannot be; 0: the first one '
        'ends the run', range=(0, _MANY),
    ),
    'optimizer.learning_rate': Key(0.0064, 'at step 0', range=(0, 1e3)),
    'optimizer.warmup_steps': Key(0, 'linear, from 1/warmup_steps at step 0', range=(0, _MANY)),
    'optimizer.power': Key(0.9, 'poly: (1 - t/T)^power', range=(0, 1e3)),
    'optimizer.floor': Key(0.0, 'smallest learning rate', range=(0, 1e3)),
    'optimizer.momentum': Key(0.9, 'of SGD', range=(0, 1)),
    'optimizer.nesterov': Key(True, 'of SGD'),
    'optimizer.weight_decay': Key(
        5e-4, 'on every parameter; of SGD added to the gradient, of AdamW decoupled', range=(0, 1e3)
    ),
    'eval.dataset': Key(
        lambda c: next(iter(c.data.streams.values())).dataset,
        'as of a stream; of the first one', like='',
    ),
    'eval.split': Key('val', 'of the dataset'),
    'eval.by_number': Key(
        False, 'score a dataset whose classes have other names than those learned, by their numbers'
    ),
    'eval.batch_size': Key(8, 'images, over all devices', range=(1, _MANY)),
    'eval.pad_to': Key(
        (0, 0), "static height, width of whole and resized, by reflection; 0,0: the first image's",
        expected=size_or_none,
    ),
    'eval.protocol': Key(
        'whole', 'whole | whole_exact | resized | sliding | sliding_cut | random_crop',
        choices=('whole', 'whole_exact', 'resized', 'sliding', 'sliding_cut', 'random_crop'),
    ),
    'eval.window': Key(
        (0, 0), "height, width of all but whole and whole_exact; 0,0: a training crop's",
        expected=size_or_none,
    ),
    'eval.multiple': Key(
        lambda c: backbones.MULTIPLES.get(c.model.backbone, 1),
        'what the network sees is resized to sides that are the nearest multiples of this, and its '
        'logits back; 1: nothing is', like=1, range=(1, 1024),
    ),
    'eval.flip': Key(False, 'average with the mirrored image'),
    'eval.scales': Key(
        (1.0,), 'average over the image at these scales', any_length=True,
        expected=factors,
    ),
    'eval.network': Key('teacher', 'teacher | student', choices=('teacher', 'student')),
    'eval.every': Key(0, 'steps between evaluations; 0: at the end only', range=(0, _MANY)),
    'profile': Key(
        (0, 0), 'first step to trace into DIR/profile, and the one after the last',
        expected=_expected_trace,
    ),
    'wandb': Key('', 'project of Weights & Biases that gets every number too; empty: none'),
    'log_every': Key(50, 'steps', range=(1, _MANY)),
    'checkpoint_every': Key(1000, 'steps', range=(1, _MANY)),
}  # fmt: skip


def default() -> ConfigDict:
    """Return the whole table, with every method's keys; nothing is set, and no stream is there."""
    return _table(keys() | {'data.streams': None})


def stream(dataset: str, **overrides: Any) -> ConfigDict:
    """Return the configuration of one stream of training images.

    Args:
        dataset: name in `css_jax.data.sources.DATASETS`, with '/config' where it has several.
        **overrides: any key of `STREAM`.

    Returns:
        The stream's table; `config.data.streams` maps a stream's name to one of these.
    """
    table = _table(STREAM)
    table.update(dataset=dataset, **overrides)
    return table


def keys(method: str | None = None) -> dict[str, Key]:
    """Return path -> declaration of all keys but the streams'.

    Args:
        method: whose keys are among them, by its own declarations; None: all methods' keys.

    Raises:
        ValueError: two methods declare a key of two types.
    """
    if method is not None:
        return KEYS | dict(methods.METHODS[method].keys)
    found = dict(KEYS)
    for name, record in methods.METHODS.items():
        for path, key in record.keys.items():
            known = found.setdefault(path, declared(path, key))
            if type(known.example) is not type(key.example):
                raise ValueError(
                    f'{path}: method {name} declares it with {key.example!r}, expected a value '
                    f'like {known.example!r}, as it is declared elsewhere'
                )
    return found


def find(path: str, method: str | None = None) -> Key | None:
    """Return the declaration of a key, of a stream or of `keys(method)`; None if there is none."""
    if path.startswith(_STREAMS):
        _, _, leaf = path.removeprefix(_STREAMS).partition('.')
        return STREAM.get(leaf)
    return keys(method).get(path)


def paths(config: ConfigDict, prefix: str = '') -> Iterable[str]:
    """Yield the dotted paths of all keys that a configuration has, whatever they are."""
    for name, value in config.items():
        path = f'{prefix}{name}'
        if isinstance(value, ConfigDict):
            yield from paths(value, f'{path}.')
        else:
            yield path


def add(config: ConfigDict, path: str, value: Any) -> None:
    """Set the value at a dotted path, making the tables on the way, if the key is not there."""
    *groups, leaf = path.split('.')
    for group in groups:
        if group not in config:
            config[group] = ConfigDict()
        config = config[group]
    if leaf not in config:
        config[leaf] = value


def _table(entries: dict[str, Key | None]) -> ConfigDict:
    table = ConfigDict()
    for path, key in entries.items():
        add(table, path, placeholder(type(key.example)) if key else ConfigDict())
    return table
