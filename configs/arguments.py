"""How the files of configs/ read what follows their colon: FILE:word,word,key=value.

A word says what it is by itself: a number is how many images are labelled, a name is a method or
whatever else the file documents. `key=value` is one of the file's own options or any key of the
configuration, as in `optimizer.learning_rate=0.01`. All can be left out and come in any order.
A value with commas, such as a crop, cannot be given here: that is `--config.KEY=VALUE`.
"""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods
from css_jax.config import command_line, table
from css_jax.models import published
from data_prep.splits import lists

SPLITS = ('random', 'list')
BACKBONES = ('resnet101', 'resnet50')
# Those of labelled and unlabelled images of one dataset; configs/usss.py and configs/cosa.py have
# the others.
METHODS = [
    name
    for name, method in methods.METHODS.items()
    if method.streams.keys() <= {'labelled', 'unlabelled'}
]


def read(
    argument: str, file: str, words: Mapping[str, Collection[str]], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read an argument.

    Args:
        argument: what follows the colon.
        file: the file's path, for messages.
        words: option -> the words that stand for it; a number stands for the option 'labels'.
        defaults: option -> its value where it is not given; whole numbers are read as such.

    Returns:
        Option -> value for every option of `defaults`, and key -> text for what is no option.

    Raises:
        ValueError: a word, or the value of an option, is unknown, or something is given twice;
            names the file, what came and what is known.
    """
    given, settings = {}, {}
    for part in filter(None, map(str.strip, argument.split(','))):
        name, equals, value = part.partition('=')
        if not equals:
            name, value = _option(part, file, words), part
        target = given if name in defaults else settings
        if name in target:
            raise ValueError(f'{file}: {name} is given twice, {target[name]!r} and {value!r}')
        if name in words and value not in words[name]:
            raise ValueError(f'{file}: {name}={value}: {_expected(value, words[name])}')
        least = int(name == 'labels')
        if isinstance(defaults.get(name), int):
            if not value.isdecimal() or int(value) < least:
                raise ValueError(
                    f'{file}: {name}: got {value!r}, expected a whole number from {least}'
                )
            value = int(value)
        target[name] = value
    return {**defaults, **given}, settings


def of_method(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of key -> value that a method reads, for files that compare methods."""
    return {key: value for key, value in values.items() if key in configs.keys(method)}


def epochs(method: str, labelled: int, unlabelled: int) -> dict[str, int]:
    """Return the key by which a method counts epochs, of those that do.

    Args:
        method: name in `css_jax.methods.METHODS`.
        labelled: images.
        unlabelled: images, which count where the method has them.
    """
    learns = 'unlabelled' in methods.METHODS[method].streams
    counted = unlabelled if learns else labelled
    keys = ('imas.images', 'unimatch.images')
    return of_method(method, dict.fromkeys(keys, max(1, counted)))  # none: an error of the streams


def finish(
    config: ConfigDict, given: Mapping[str, Any], settings: Mapping[str, str], file: str
) -> ConfigDict:
    """Put what all files of configs/ understand into a configuration, in place.

    Args:
        config: the file's own, with a stream 'labelled', or several that are called 'labelled_...'.
        given: from `read`. 'seed' is that of the run and that of the draw of the labelled images,
            as the paper's three runs are on three splits (Sec. 4.2); 'pretrained' is the backbone's
            weights, '{backbone}' in it stands for its name, None: what the file of configs/ has.
        settings: from `read`: key of css_jax/config/table.py -> text.
        file: the file's path, for messages.

    Returns:
        The configuration.

    Raises:
        ValueError: there is no such key, or the text is not a value of it.
    """
    config.seed = given['seed']
    for name, stream in config.data.streams.items():
        if name.startswith('labelled'):
            stream.subset_seed = given['seed']
    if given['pretrained'] is not None:
        # Files of configs/ that have several backbones name each one's weights at once.
        weights = given['pretrained'].replace('{backbone}', config.model.backbone)
        config.model.pretrained = weights
    for key in settings:
        declared = table.find(key)
        if declared and isinstance(declared.example, tuple):
            raise ValueError(f'{file}: {key} has commas in its value: give it as --config.{key}=')
        near = difflib.get_close_matches(key, [*config, *given], n=1)
        if (
            not declared and near and near[0] not in config
        ):  # an option, which the table of keys does not know
            raise ValueError(f'{file}: no key {key!r}; did you mean {near[0]!r}?')
    try:
        config.update_from_flattened_dict(command_line.values(config, settings))
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from None
    return config


def resnet(config: ConfigDict, given: Mapping[str, Any], stem: str) -> None:
    """Set the backbone, its stem and its first weights, in place.

    Args:
        config: the file's own.
        given: from `read`, with 'backbone', one of `BACKBONES`, and 'pretrained'.
        stem: the paper's. It is there where a file of weights is given, or none; torchvision's,
            which are taken where nothing is said, are of the plain one.
    """
    config.model.backbone = given['backbone']
    if given['pretrained'] is None:
        config.model.pretrained = given['backbone']
    named = given['pretrained'] is None or given['pretrained'] in published.NAMES
    config.model.stem = 'conv7' if named else stem


def chosen(labels: int, split: str, folder: str, file: str, layout: str = 'u2pl') -> dict[str, Any]:
    """Return the keys of a stream that choose its labelled images.

    Args:
        labels: how many.
        split: 'random' | 'list'.
        folder: of the dataset's lists, as `python -m data_prep.splits` lays them out.
        file: the file's path, for messages.
        layout: of the lists, see data_prep/splits/lists.py.

    Returns:
        'count', or 'ids_file'.

    Raises:
        ValueError: there is no list of so many, the folder has the other layout, or the list that
            it has is of another number of images.
    """
    if split == 'random':
        return {'count': labels}
    dataset = folder.rpartition('/')[2]
    folders = lists.folders(dataset, layout)
    if not folders:
        raise ValueError(
            f'{file}: layout: got {layout}, which has no lists of {dataset}, expected '
            f'{next(name for name in lists.LAYOUTS if lists.folders(dataset, name))}'
        )
    if labels not in folders:
        listed = ', '.join(map(str, folders))
        raise ValueError(
            f'{file}: labels: got {labels}, expected one of {listed} with split=list (split=random '
            'takes any)'
        )
    path = f'{folder}/{folders[labels]}/labeled.txt'
    if Path(path).is_file():
        _check_count(path, labels, file)
    else:
        _check_layout(folder, labels, layout, file)
    return {'ids_file': path}


def _check_count(path: str, labels: int, file: str) -> None:
    """Raise ValueError where a list is not of so many images as its folder is called by."""
    try:
        images = len(lists.read(path))
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from None
    if images != labels:
        raise ValueError(f'{file}: {path}: got {images} images, expected {labels}')


def _check_layout(folder: str, labels: int, layout: str, file: str) -> None:
    """Raise ValueError where a folder has the list of so many images in the other layout."""
    (other,) = lists.LAYOUTS.keys() - {layout}
    dataset = folder.rpartition('/')[2]
    theirs, ours = (lists.folders(dataset, name).get(labels) for name in (other, layout))
    if theirs and Path(folder, theirs, 'labeled.txt').is_file():
        # Both have the same images where their folders have the same name, and on Cityscapes never.
        way_out = f'layout={other} takes it' if dataset == 'pascal' else 'its images are others'
        raise ValueError(
            f"{file}: {folder} has a list {theirs} ({lists.LAYOUTS[other]}'s layout), expected "
            f"{ours} ({lists.LAYOUTS[layout]}'s); {way_out}"
        )


def _option(word: str, file: str, words: Mapping[str, Collection[str]]) -> str:
    if word.isdecimal():
        return 'labels'
    for name, choices in words.items():
        if word in choices:
            return name
    known = [choice for choices in words.values() for choice in choices]
    raise ValueError(
        f'{file}:{word}: {_expected(word, known)}, a number of labelled images, or key=value'
    )


def _expected(wrong: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    meant = f'did you mean {near[0]!r}? ' if near else ''
    return f'{meant}expected one of {", ".join(known)}'
