"""The results of an evaluation: printed as a table, and written to a file in the run's folder.

With one evaluation the file has its scores; 'more' are those that a method has beside, 'confusion'
counts pixels by true class (rows) and predicted class; older files have none. With several
'evaluations' has each one's by name, and what stands beside is of all together: 'miou', 'accuracy'
and 'loss' are means, the classes in 'iou' are named 'EVALUATION/CLASS'.
"""

import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from css_jax import parallel
from css_jax.evaluation import protocols, tables
from css_jax.evaluation.evaluator import Evaluator
from css_jax.run import files

LOG = logging.getLogger('css_jax')
RESULTS = 'results.json'
_NUMBERS = re.compile(r'\[[-+\w.,\s]*\]')


def file_name(config: ConfigDict, trained: ConfigDict, which: str = 'last') -> str:
    """Name the file of an evaluation by how it differs from the run's own.

    Args:
        config: of the evaluation, finalised.
        trained: the run's, finalised.
        which: 'last', 'best' or a step.

    Returns:
        'results.json' for the last checkpoint under the run's own protocol; otherwise the
        checkpoint, if not the last, and every changed key of `css_jax.evaluation.protocols.keys`
        with its value are added, as in 'results_best_flip=True_scales=0.5,1.0.json'.
    """
    parts = [] if which == 'last' else [which if which == 'best' else f'step{int(which)}']
    for key in protocols.keys(config):
        value = config.eval[key]
        if value != trained.eval[key]:
            shown = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f'{key}=' + re.sub(r'[^\w.,]+', '-', shown))
    return '_'.join(['results', *parts]) + '.json'


def mean(scores: Mapping[str, Mapping], key: str = 'miou') -> float | None:
    """Return the mean of a score over all evaluations that have it; None if none has."""
    known = [one[key] for one in scores.values() if one[key] is not None]
    return float(np.mean(known)) if known else None


def numbers(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scores beside mIoU that are numbers, or None, and no lists.

    Args:
        scores: of an evaluation, or its results.
    """
    more = scores.get('more', {})
    return {name: value for name, value in more.items() if not isinstance(value, list)}


def numbers_of_all(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return `numbers` of results, those of several evaluations named 'EVALUATION/NAME'."""
    return numbers(results) | {
        f'{name}/{known}': value
        for name, part in results.get('evaluations', {}).items()
        for known, value in numbers(part).items()
    }


def report(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    every: Mapping[str, Evaluator],
    scores: Mapping[str, Mapping[str, Any]],
    step: int,
    split: Mapping[str, Any],
    best: tuple[int, float] | None,
    file: str = RESULTS,
) -> dict[str, Any]:
    """Print scores per class and write them to a file in DIR.

    Args:
        workdir: the run's folder.
        config: the run's configuration.
        every: evaluation -> what gave its scores.
        scores: evaluation -> scores as `Evaluator` gives them.
        step: iterations the evaluated weights were trained for.
        split: the training images, as of `css_jax.data.splits.record`.
        best: step and mIoU of the best checkpoint evaluated while it was trained.
        file: see `file_name`.

    Returns:
        What is written.
    """
    parts = {
        name: {
            'split': one.name,
            **{key: scores[name][key] for key in ('miou', 'accuracy', 'loss')},
            'iou': dict(zip(one.class_names, scores[name]['iou'], strict=True)),
            'protocol': one.protocol,
            **{key: scores[name][key] for key in ('more', 'confusion') if scores[name].get(key)},
        }
        for name, one in every.items()
    }
    results = {
        'method': config.method,
        'seed': config.seed,
        **_together(parts),
        'step': step,
        'best': {'step': best[0], 'miou': best[1]} if best else None,
        'eval': {key: config.eval[key] for key in protocols.keys(config)},
        **{key: split[key] for key in ('split_hash', 'streams') if key in split},
    }
    if len(parts) > 1:
        results['evaluations'] = parts
    if not parallel.primary():
        return results
    path, unwritten = pathlib.Path(workdir) / file, None
    try:
        files.write(path, _text(results))
    except OSError as error:  # a full disk, or a folder that is only to be read
        unwritten = error.strerror or error
    for name, part in parts.items():
        shown = f', {name}' if len(parts) > 1 else ''
        print(f'{config.method}, step {step}, {part["split"]}{shown}\n{part["protocol"]}')
        if every[name].masks:
            print(tables.scores_table(every[name].class_names, {'IoU %': scores[name]}))
        else:
            print(f'no mIoU: no image of {part["split"]} has a mask')
        for line in tables.more_lines(part.get('more', {})):
            print(line)
    if len(parts) > 1:
        print(f'mean mIoU of {", ".join(parts)}: {_percent(results["miou"])}')
    if best:
        print(f'best evaluated: step {best[0]}, mIoU {100 * best[1]:.2f}')
    if unwritten:
        LOG.warning('warning: %s is not written: %s', path, unwritten)
    else:
        print(f'written: {path}')
    return results


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """Read the results that `report` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        values = json.loads(pathlib.Path(path).read_text())
        for key in ('step', 'miou', 'iou', 'split', 'protocol', 'eval'):
            values[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not the results of a run: {error!r}; --mode evaluate writes them anew'
        ) from None
    return values


def _text(results: Mapping[str, Any]) -> str:
    """Return results as JSON, a list of numbers on one line: matrices are to be read."""
    text = json.dumps(results, indent=2)
    return _NUMBERS.sub(lambda found: ' '.join(found[0].split()), text) + '\n'


def protocols_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the protocols of runs, a line each; with the runs' names where they differ.

    Args:
        results: run -> its results.
    """
    named: dict[str, list[str]] = {}
    for name, result in results.items():
        named.setdefault(result['protocol'], []).append(name)
    if len(named) < 2:
        return ''.join(named)
    return '\n'.join(f'{", ".join(names)}: {text}' for text, names in named.items())


def without_network(protocol: str) -> str:
    """Return a protocol without whose network it is of: a baseline may have no teacher."""
    return '; '.join(part.partition(', ')[2] for part in protocol.split('; '))


def _together(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if len(parts) == 1:
        return dict(next(iter(parts.values())))
    protocols = dict.fromkeys(part['protocol'] for part in parts.values())
    return {
        'split': ', '.join(f'{name}={part["split"]}' for name, part in parts.items()),
        **{key: mean(parts, key) for key in ('miou', 'accuracy', 'loss')},
        'iou': {
            f'{name}/{known}': iou
            for name, part in parts.items()
            for known, iou in part['iou'].items()
        },
        'protocol': '; '.join(protocols),
    }


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.2f}'
