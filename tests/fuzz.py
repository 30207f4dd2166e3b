"""Draws configurations, valid and not, and says what comes of one: a run, or one line.

    python -m tests.fuzz FIRST [COUNT] [--trace]

runs the cases of these seeds again, and prints what each of them is. A case is drawn from its seed
alone: a file of configs/ with an argument, and changes of keys by a command line, by Python or in
the configuration that a run has stored.
"""

import argparse
import contextlib
import functools
import json
import logging
import math
import pathlib
import random
import tempfile
import traceback
from typing import Any, NamedTuple
from unittest import mock

from ml_collections import ConfigDict

from configs import arguments, camvid, cosa, unimatch, usss, voc
from configs import folder as own
from css_jax import config as configs
from css_jax import models, prepare
from css_jax.config import command_line, table
from css_jax.data import sources, streams
from css_jax.keys import Key, at
from css_jax.models import backbones
from css_jax.run import folder as run_folder
from data_prep import records
from data_prep.figures.builder import Builder as Figures
from data_prep.shapes.builder import Builder as Shapes
from tests import folders

NAN, INF = float('nan'), float('inf')
# What a key is set to, whatever it is: as a text of a command line and as a value.
TEXTS = (
    *('', ' ', '0', '1', '-1', '2', '3.5', '1e9', '1e400', 'nan', 'inf', '-inf', 'None', 'true'),
    *('False', '()', '(1,)', '1,2', '1,2,3', ',', '1,nan', 'ü', '日本', '٣', 'a\nb', '\0', '%s'),
    *('x' * 300, '../..', '/', '{}', str(10**30), '0x10', '\udcff', '[]', 'all', 'none', '-0.0'),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 2.5, -0.0, NAN, INF, -INF, 1e300, 10**9, 10**30, '', ' '),
    *('ü', 'a\nb', '\0', 'x' * 300, (), (0,), (1,), (0, 0), (1, 2), (2, 1), (1, 2, 3), (NAN, NAN)),
    *((INF, INF), (1.0, NAN), (1e300, 1e300), ('a',), ('all',), (None, None), ((1, 2), 3), (-1,)),
    *((True, True), {}, {'a': 1}),
)
# Words behind the colon of --config, beside those of the file.
WORDS = (
    *('', ',', '0', '1', '-1', '8', '9999', '٣', 'ü', 'a\nb', '%s', '=', 'seed=', 'seed=1', 'x=1'),
    *('seed=-1', 'seed=99999999999', 'steps=7', 'steps=', 'pretrained=', 'pretrained=a.pth'),
    *('labels=3', 'method=', 'eval.flip=true', 'model.remat=a', 'seed=1,seed=2', 'split=random'),
    *('css_mix', 'dataset=', 'backbone=', '+', ':', 'lists=nowhere', 'name=pets'),
)
_METHODS = list(arguments.METHODS)
# File -> groups of words that stand for something there.
FILES = {
    'quickstart': [[*_METHODS, 'supervised_all'], ['8', '4', '']],
    'camvid': [_METHODS, ['46', '5', ''], [f'backbone={name}' for name in camvid.NETWORKS]],
    'voc': [
        _METHODS, [*voc.PROTOCOLS, ''], ['92', '183', ''], ['resnet50', 'resnet101', ''],
        ['split=random', ''], ['u2pl', 'unimatch', ''],
    ],
    'cityscapes': [_METHODS, ['186', '1488', ''], ['split=random', ''], arguments.BACKBONES],
    'cosa': [
        [*cosa.DATASETS, 'folder:pets', 'folder'], [*cosa.METHODS, ''],
        ['vit_tiny', 'drn_d_22', ''],
    ],
    'unimatch': [
        [*unimatch.DATASETS], [*unimatch.METHODS, ''], [*unimatch.TRANSFORMERS, 'resnet50', ''],
        ['frozen', '', ''], ['split=random', ''],
    ],
    'usss': [
        [*usss.PAIRS, *usss.DATASETS, 'shapes+figures', 'shapes+shapes'],
        ['usss_single', 'usss_basic', 'usss_cross', 'usss_full'], ['8', '100', ''],
    ],
    'folder': [['pets', ''], [*_METHODS], ['2', ''], [*own.NETWORKS, '']],
    'nowhere': [['']],
}  # fmt: skip


class Case(NamedTuple):
    """One configuration.

    Attributes:
        seed: that it is drawn from.
        file: FILE[:ARGUMENT] of --config.
        road: how the keys are set: 'flags', 'values', or 'stored' in a run's config.json.
        changes: dotted key -> text (of 'flags') or value.
    """

    seed: int
    file: str
    road: str
    changes: dict[str, Any]


def prepared(folder: pathlib.Path) -> str:
    """Prepare small datasets, `shapes`, `figures` and `folder/pets`; return their folder."""
    sizes = {'train': 24, 'val': 6, 'fresh': 4}
    for builder in (Shapes, Figures):
        records.prepare(builder(config='64', data_dir=folder, splits=sizes))
    folders.prepare(folder, 'pets', train=6, unlabelled=6, val=4)
    return str(folder)


def opened_once() -> Any:
    """Return a context in which a dataset's description is read once: most of what a case takes."""
    return mock.patch.object(sources, '_builder', functools.cache(sources._builder))


def case(seed: int) -> Case:
    """Draw a case whose keys may have any value at all."""
    rng = random.Random(seed)
    file = rng.choices(list(FILES), [8, 2, 4, 2, 3, 3, 3, 3, 0.3])[0]
    groups = FILES[file]
    words = [rng.choice(group) for group in groups[: rng.randint(0, len(groups))]]
    words += [rng.choice(WORDS) for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2)))]
    road = rng.choice(('flags', 'flags', 'values', 'stored'))
    names = list(_names(file))
    changes = {}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 5))):
        path = rng.choice(names)
        if rng.random() < 0.03:
            path = rng.choice((path + 'x', path[:-1], path.split('.')[0], 'data.streams.a.crop'))
        value = _value(rng, path)
        changes[path] = _text(value) if road == 'flags' else value
        if rng.random() < 0.25 and path != 'data.dir':  # where `shapes` would be prepared
            changes[path] = rng.choice(TEXTS if road == 'flags' else VALUES)
    return Case(seed, f'{file}:{",".join(words)}' if words else file, road, changes)


def _names(file: str) -> list[str]:
    """Return the keys that may be set: every one, and those of the streams that are there."""
    found = {'cosa': ['images'], 'usss': ['labelled_a', 'unlabelled_b']}
    found = found.get(file, ['labelled', 'unlabelled'])
    return [
        *table.keys(),
        *(f'data.streams.{name}.{leaf}' for name in found for leaf in table.STREAM),
    ]


# What is a name of something rather than a choice.
_NAMES = {
    'dataset': ('shapes', 'shapes/64', 'figures', 'voc', 'cityscapes', 'coco/2017', 'folder/pets'),
    'split': ('train', 'val', 'fresh', 'unlabelled', 'trainaug'),
    'exclude': ('', 'labelled', 'unlabelled', 'labelled_a', 'images'),
    'ids_file': ('', 'nowhere.txt', '.'),
    'pretrained': ('', 'resnet18', 'resnet50', 'dinov2_small', 'nowhere.pth', 'nowhere.txt'),
    'init_from': ('', 'nowhere', '.'),
    'embeddings': ('', 'nowhere.npz'),
    'remat': ((), ('all',), ('layer1',), ('layer3', 'layer4'), ('blocks',)),
    'multi_grid': ((), (1, 1), (2, 2, 4), (1,), (0, 1)),
    'dir': ('a\nb', '\0'),
    'wandb': ('',),
}


def _value(rng: random.Random, path: str, sure: float = 0.9) -> Any:
    """Draw a value of the type that a key has.

    Args:
        rng: draws.
        path: the key's.
        sure: how likely it is that a number is within the range of its key.
    """
    leaf = path.rpartition('.')[2]
    key = table.find(path) or Key(1, '')
    if leaf in _NAMES:
        return rng.choice(_NAMES[leaf])
    if key.choices is not None:
        return rng.choice(sorted(key.choices))
    example = key.example
    if isinstance(example, bool):
        return rng.random() < 0.5
    if isinstance(example, tuple):
        bounds = (0.1, 8) if isinstance(example[0], float) else (1, 512)
        count = len(example) if rng.random() < sure else rng.randint(0, 4)
        drawn = tuple(_number(rng, example[i % len(example)], bounds, sure) for i in range(count))
        return tuple(sorted(drawn)) if rng.random() < 0.7 else drawn
    if isinstance(example, int | float):
        return _number(rng, example, key.range, sure)
    return rng.choice(('', 'a'))


def _number(
    rng: random.Random, example: float, bounds: tuple[float, float] | None, sure: float
) -> float:
    low, high = bounds or (0, 512)
    near = [example, low, low + 1, 2, 8, 12, 33, 64, example * 2]
    near = [*filter(lambda n: low <= n <= high, near), rng.uniform(low, min(high, 512))]
    far = [low - 1, high, high + 1, 0, -1, 10**7]
    found = rng.choice(near) if rng.random() < sure else rng.choice(far)
    return int(found) if isinstance(example, int) else float(found)


def _text(value: Any) -> str:
    """Return a value as a command line has it."""
    if isinstance(value, tuple):
        return ','.join(map(str, value)) if value else '()'
    return str(value)


def configuration(drawn: Case, folder: pathlib.Path, data_dir: str) -> ConfigDict:
    """Return a case's configuration as it is before `finalise`.

    Args:
        drawn: the case.
        folder: where the one that a run has stored is written.
        data_dir: of `prepared`, for cases that set no other.
    """
    changes = {'data.dir': data_dir} | drawn.changes
    flags = changes if drawn.road == 'flags' else {'data.dir': data_dir}
    config = command_line.load(drawn.file, flags)
    if drawn.road == 'flags':
        config.update_from_flattened_dict(command_line.values(config, changes))
        return config
    tree = config.to_dict()
    for path, value in changes.items():
        _put(tree, path.split('.'), value)
    if drawn.road == 'values':
        return ConfigDict(tree)
    (folder / 'config.json').write_text(json.dumps(tree))
    return run_folder.file.read(folder)


def _put(tree: dict, names: list[str], value: Any) -> None:
    """Set a value of dicts in dicts; what stands in the way of one is replaced."""
    for name in names[:-1]:
        inner = tree.get(name)
        tree[name] = tree = inner if isinstance(inner, dict) else {}
    tree[names[-1]] = value


def outcome(drawn: Case, folder: pathlib.Path, data_dir: str, trace: bool = False) -> str:
    """Say what comes of a case: '' for a run, what is said of it, or a fault that begins with '!'.

    Args:
        drawn: the case.
        folder: for a run's files.
        data_dir: of `prepared`.
        trace: all that a run does before its first compilation is done too, and a batch is read.
    """
    try:
        config = configs.finalise(configuration(drawn, folder, data_dir))
        if wrong := [path for path in table.paths(config) if not _good(path, at(config, path))]:
            return f'!accepted with {", ".join(f"{path}={at(config, path)!r}" for path in wrong)}'
        if trace:
            begin(config, folder)
    except (ValueError, OSError) as error:
        return _fault(drawn, str(error)) or str(error)
    except Exception:
        return '!' + traceback.format_exc()
    return ''


def _good(path: str, value: Any) -> bool:
    """Say whether a value is of the type that its key has, and finite."""
    example = table.find(path).example
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(_is_a(one, example[0]) for one in value)
    return _is_a(value, example)


def _is_a(value: Any, example: Any) -> bool:
    kinds = (int, float) if isinstance(example, float) else (type(example),)
    return type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value))


def begin(config: ConfigDict, folder: pathlib.Path) -> None:
    """Trace a run's steps and evaluations, and read its first batch."""
    run = prepare.prepare(config, folder / 'run')
    for phase in run.phases:
        next(streams.train_batches(config.data, config.seed, names=list(phase.sizes)))


def _fault(drawn: Case, said: str) -> str:
    """Return what is wrong with what is said of a case, '' if nothing is."""
    text = said.removesuffix('\n')
    unprepared = 'is not prepared' in text  # has the commands in lines of their own
    if '\n' in text and not unprepared:
        return f'!more than one line: {said}'
    if (
        unprepared
        or 'has no split' in text
        or any(word in text for word in ('configs/', '--config', 'config.json'))
    ):
        return ''
    known = [*drawn.changes, *_names(drawn.file.partition(':')[0]), 'data.streams', 'model.']
    marked = [path for path in known if '.' in path or f'{path}:' in text or repr(path) in text]
    if not any(path in text for path in marked):
        traced = 'known when it is traced alone' if 'cannot be computed' in text else 'names no key'
        return f'!{traced}: {said}'
    return ''


# Cases that are traced.

_FROM_ELSEWHERE = ('dir', 'init_from', 'pretrained', 'embeddings', 'ids_file', 'method')
_SMALL = ('quickstart', 'cosa:quickstart', 'usss:quickstart')


def small(seed: int) -> Case:
    """Draw a case of a small network and small crops, whose keys have possible values."""
    rng = random.Random(seed)
    file = rng.choices(_SMALL, (6, 2, 2))[0]
    if file == 'quickstart':
        file += ':' + rng.choice([*_METHODS, 'supervised_all'])
    if file.startswith('usss'):
        file += ',' + rng.choice(('usss_basic', 'usss_cross', 'usss_full'))
    changes: dict[str, Any] = {'model.width': rng.choice((0.0625, 0.125))}
    crop, batch = rng.choice((32, 40, 56, 64)), rng.choice((4, 4, 2, 8))
    streams_there = {'c': ['images'], 'u': ['labelled_a', 'labelled_b']}.get(file[0], ['labelled'])
    streams_there += ['unlabelled'] if file[0] == 'q' else []
    streams_there += ['unlabelled_a', 'unlabelled_b'] if file[-4:] in ('ross', 'full') else []
    if rng.random() < 0.5:
        backbone = rng.choice(sorted(models.BACKBONES))
        changes['model.backbone'] = backbone
        fitting = [name for name, known in models.FAMILIES.items() if known.takes(backbone)]
        changes['model.family'] = rng.choice(fitting)
        changes['model.output_stride'] = 16 if backbone.startswith('vit') else 8
        if backbone in backbones.MULTIPLES:
            crop = crop // 14 * 14
    for name in streams_there:
        changes[f'data.streams.{name}.crop'] = (crop, crop)
        changes[f'data.streams.{name}.batch_size'] = batch
    method = command_line.load(file).method
    own = table.keys(method)
    names = [path for path in _names(file.partition(':')[0]) if path in own or '.streams.' in path]
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(names)
        if path.rpartition('.')[2] not in _FROM_ELSEWHERE:
            changes[path] = _value(rng, path, 1.0)
    return Case(seed, file, 'values', changes)


def main() -> None:
    """Run cases again, by their seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('first', type=int)
    parser.add_argument('count', type=int, nargs='?', default=1)
    parser.add_argument('--trace', action='store_true')
    parser.add_argument('--faults', action='store_true', help='print these alone')
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = pathlib.Path(name)
        data_dir = prepared(folder / 'data')
        (folder / 'run').mkdir()
        with opened_once():
            for seed in range(given.first, given.first + given.count):
                drawn = small(seed) if given.trace else case(seed)
                found = outcome(drawn, folder / 'run', data_dir, given.trace)
                if found.startswith('!') or not given.faults:
                    print(f'{drawn}\n    {found or "accepted"}', flush=True)


if __name__ == '__main__':
    main()
