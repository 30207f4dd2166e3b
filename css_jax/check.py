"""What configurations are possible, in words; css_jax/advice.py has what is possible but odd."""

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from css_jax import follow, methods, models, parallel

CHOICES = {
    'method': methods.METHODS,
    'follow': follow.COLUMNS,
    'parallel': parallel.MODES,
    'model.backbone': models.BACKBONES,
    'model.stem': ('conv7', 'deep'),
    'model.output_stride': (8, 16),
    'model.dtype': ('float32', 'bfloat16'),
    'model.atrous': ('auto', 'dilated', 'space_to_batch'),
    'data.resampling': ('cv2', 'pil'),
    'supervised.loss': ('ce', 'ohem'),
    'teacher.batch_norm': ('own', 'ema'),
    'augment.mixing': ('cutmix', 'classmix', 'cutout', 'none'),
    'augment.partner': ('next', 'first_device'),
    'unsupervised.loss': ('weighted', 'thresholded'),
    'unsupervised.cross_indicator': ('confidence', 'similarity'),
    'eval.protocol': ('whole', 'whole_exact', 'sliding', 'random_crop'),
    'eval.network': ('teacher', 'student'),
    'contrastive.estimator': ('bank', 'sampled'),
    'contrastive.scope': ('global', 'device'),
    'contrastive.schedule': ('rampdown', 'constant', 'reference'),
    'contrastive.prototype_source': ('student', 'teacher'),
    'contrastive.valid_indicator': ('confidence', 'similarity'),
    'contrastive.unseen': ('masked', 'zero'),
}
_MANY = 10**9
RANGES = {
    'seed': (0, 2**32 - 1),  # a larger one would be cut to these bits
    'steps': (1, _MANY),
    'burn_in_steps': (0, _MANY),
    'accumulate_steps': (1, _MANY),
    'num_classes': (0, 255),
    'log_every': (1, _MANY),
    'checkpoint_every': (1, _MANY),
    'eval.every': (0, _MANY),
    'eval.batch_size': (1, _MANY),
    'data.threads': (1, 256),
    'data.prefetch': (1, 256),
    'model.width': (1e-3, 1e3),
    'model.representation_dim': (1, _MANY),
    'optimizer.learning_rate': (0, 1e3),
    'optimizer.power': (0, 1e3),
    'optimizer.floor': (0, 1e3),
    'optimizer.warmup_steps': (0, _MANY),
    'optimizer.momentum': (0, 1),
    'optimizer.weight_decay': (0, 1e3),
    'teacher.decay': (0, 1),
    'supervised.ohem_threshold': (0, 1),
    'supervised.ohem_kept': (1, _MANY),
    'augment.jitter_prob': (0, 1),
    'augment.blur_prob': (0, 1),
    'augment.flip_prob': (0, 1),
    'augment.brightness': (0, 1),
    'augment.contrast': (0, 1),
    'augment.saturation': (0, 1),
    'augment.hue': (0, 0.5),
    'unsupervised.weight': (0, 1e3),
    'unsupervised.threshold': (0, 1),
    'unsupervised.warmup_passes': (0, _MANY),
    'contrastive.weight': (0, 1e3),
    'contrastive.valid_threshold': (0, 1),
    'contrastive.hard_threshold': (0, 1),
    'contrastive.temperature': (1e-3, 1e3),
    'contrastive.similarity_temperature': (1e-3, 1e3),
    'contrastive.anchors': (1, _MANY),
    'contrastive.negatives': (1, _MANY),
    'contrastive.bank': (1, _MANY),
    'contrastive.prototype_decay': (0, 1),
}


# Two images: the BatchNorm of the image pooling has one value of each.
STREAM_LEAST = {'batch_size': 2, 'count': 0, 'subset_seed': 0, 'min_per_class': 0}


def keys(config: ConfigDict, table: ConfigDict, stream: ConfigDict, where: str = '') -> None:
    """Refuses keys that nothing reads, as a slip in a file of configs/ makes them.

    Args:
        config: what was made of the table.
        table: of all keys.
        stream: of the keys of one stream, which `data.streams` has under any name.
        where: path of the table.

    Raises:
        ValueError: a key is not in the table; names the nearest.
    """
    for key in config:
        inside = stream if where == 'data.streams.' else table.get(key)
        if inside is None and key not in table:
            near = difflib.get_close_matches(key, list(table), n=1)
            hint = f'; did you mean {where}{near[0]}?' if near else ''
            raise ValueError(f'no key {where}{key}{hint}')
        if isinstance(inside, ConfigDict):
            keys(config[key], inside, stream, f'{where}{key}.')


def values(config: ConfigDict) -> None:
    """Checks a configuration whose keys are all filled in.

    Raises:
        ValueError: a value is impossible; names the key, what came and what was expected.
    """
    for key, choices in CHOICES.items():
        choice(key, _at(config, key), choices)
    for key, choices in methods.get(config.method).CHOICES.items():
        any_of = _at(config, key) in methods.get('css').CHOICES.get(key, ())
        where = f' with method={config.method}' + (', or method=css' if any_of else '')
        choice(key, _at(config, key), choices, where)
    try:
        models.remat.stages(config.model.remat)
    except ValueError as error:
        raise ValueError(f'model.{error}') from None
    for key, (low, high) in RANGES.items():
        value = _at(config, key)
        if not low <= value <= high:
            raise ValueError(f'{key}: got {value!r}, expected a number from {low} to {high}')
    for key in ('augment.resize', 'augment.blur_sigma'):
        _range(key, _at(config, key))
    for key, least in (('data.mean', 0.0), ('data.std', 1e-3)):
        value = _at(config, key)
        if len(value) != 3 or not all(least <= v <= 1 for v in value):
            raise ValueError(f'{key}: got {value!r}, expected three numbers from {least} to 1')
    for key in ('eval.pad_to', 'eval.window'):
        value = tuple(_at(config, key))
        if value != (0, 0) and (len(value) != 2 or min(value) < 1):
            raise ValueError(f'{key}: got {value!r}, expected (height, width) or (0, 0)')
    profile = tuple(config.profile)
    if profile != (0, 0) and not (len(profile) == 2 and 0 <= profile[0] < profile[1]):
        raise ValueError(
            f'profile: got {profile!r}, expected (first step, the one after the last) or (0, 0)'
        )
    if not config.eval.scales or min(config.eval.scales) <= 0:
        raise ValueError(
            f'eval.scales: got {config.eval.scales!r}, expected one or more factors above 0'
        )
    if config.burn_in_steps > config.steps:
        raise ValueError(
            f'burn_in_steps: got {config.burn_in_steps}, expected at most steps={config.steps}'
        )

    _disputes(config)

    streams = config.data.streams
    for name, labels in methods.METHODS[config.method].STREAMS.items():
        if name not in streams:
            raise ValueError(
                f'data.streams: got {sorted(streams)}, but method {config.method} needs {name!r}'
            )
        if streams[name].labels != labels:
            raise ValueError(
                f'data.streams.{name}.labels: got {streams[name].labels}, expected {labels} for '
                f'method {config.method}'
            )
    for name, s in streams.items():
        _range(f'data.streams.{name}.resize', s.resize)
        if len(s.crop) != 2 or min(s.crop) < 8:
            raise ValueError(
                f'data.streams.{name}.crop: got {s.crop}, expected (height, width) of at least 8'
            )
        if s.batch_size % config.accumulate_steps:
            raise ValueError(
                f'data.streams.{name}.batch_size: got {s.batch_size}, expected a multiple of '
                f'accumulate_steps={config.accumulate_steps}'
            )
        for key, least in STREAM_LEAST.items():
            if s[key] < least:
                raise ValueError(
                    f'data.streams.{name}.{key}: got {s[key]}, expected at least {least}'
                )
    if config.joint_pass:
        _joint_pass(config)


def _joint_pass(config: ConfigDict) -> None:
    """Refuses `joint_pass` where there are no two views to put together."""
    streams = methods.METHODS[config.method].STREAMS
    if len(streams) == 1:
        raise ValueError(
            f'joint_pass: got True, expected False with method={config.method}, which has one view'
        )
    crops = {name: tuple(config.data.streams[name].crop) for name in streams}
    if len(set(crops.values())) > 1:
        raise ValueError(
            'joint_pass: got True, expected False or the same data.streams.*.crop, as both views '
            f'are one batch of the network; the crops are {crops}'
        )


def choice(key: str, value: Any, choices: Iterable, where: str = '') -> None:
    """Raises ValueError, with the nearest choice, unless `value` is one of `choices`."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'{key}: got {value!r}, expected one of {sorted(choices)}{where}{hint}')


def _disputes(config: ConfigDict) -> None:
    """Refuses values that contradict each other."""
    c, o, teacher = config.contrastive, config.optimizer, config.teacher
    if o.floor > o.learning_rate:
        raise ValueError(
            f'optimizer.floor: got {o.floor}, expected at most optimizer.learning_rate='
            f'{o.learning_rate}, which it would raise'
        )
    has_prototypes = 'representation' in methods.get(config.method).outputs(config)
    of_teacher = has_prototypes and c.prototype_source == 'teacher'
    if of_teacher and not teacher.labelled_pass:
        raise ValueError(
            'teacher.labelled_pass: got False, expected True with contrastive.prototype_source='
            'teacher: the prototypes are of the labelled images too'
        )
    if not of_teacher and teacher.batch_norm == 'ema' and teacher.labelled_pass:
        raise ValueError(
            'teacher.labelled_pass: got True, expected False with teacher.batch_norm=ema: only '
            'statistics of its own would feel it'
        )
    if has_prototypes and c.scope == 'global' and c.estimator == 'sampled':
        raise ValueError(
            'contrastive.scope: got global, expected device with contrastive.estimator=sampled, '
            'which draws from the pixels of one device'
        )


def _range(key: str, value: tuple[float, float]) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise ValueError(f'{key}: got {value!r}, expected (low, high) with 0 < low <= high')


def _at(config: ConfigDict, key: str) -> Any:
    for part in key.split('.'):
        config = config[part]
    return config
