"""The configuration in a run's folder: written once, read back, and held against the one given."""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from css_jax import config as configs

FILE = 'config.json'
# What a run leaves in its folder and would be lost if another one took it.
TRACES = ('checkpoints', 'metrics.jsonl', 'results*.json', 'events.out.tfevents.*')
# Keys under which a run may be gone on with: none changes what is trained.
FREE = ('log_every', 'checkpoint_every', 'eval.', 'data.dir', 'data.threads', 'data.prefetch')


def save(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Writes DIR/config.json, whole or not at all."""
    path = pathlib.Path(workdir) / FILE
    draft = path.with_suffix('.tmp')
    draft.write_text(json.dumps(config.to_dict(), indent=2) + '\n')
    os.replace(draft, path)


def load(workdir: str | pathlib.Path) -> ConfigDict:
    """Reads the configuration a run was trained with from DIR/config.json.

    Raises:
        FileNotFoundError: DIR is not a run's folder.
        ValueError: the file is damaged.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is missing: expected the folder of a run that --mode train has written to'
        )
    config = configs.default()  # has what a run of an older version does not know
    try:
        values = _tuples(json.loads(path.read_text()))
        for name, stream in values['data'].pop('streams').items():
            config.data.streams[name] = configs.stream(**stream)
        config.update(values)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is not the configuration of a run: {error!r}') from None
    return config


def claim(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Makes DIR the folder of this run, or makes sure that it is already.

    Args:
        config: finalised.
        workdir: a new or empty folder, or one whose run was trained with the same configuration.

    Raises:
        ValueError: see `match`; or DIR has checkpoints of nobody knows what.
    """
    workdir = pathlib.Path(workdir)
    if (workdir / FILE).exists():
        match(config, workdir)
    else:
        there = [path.name for pattern in TRACES for path in sorted(workdir.glob(pattern))]
        if there:
            raise ValueError(
                f"{workdir} has {', '.join(there)} but no {FILE}: expected a new folder or a run's"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    save(config, workdir)


def match(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Makes sure that a configuration is the one the run in DIR was trained with.

    Args:
        config: finalised; keys that do not change what is trained (`FREE`) may differ.
        workdir: the run's folder.

    Raises:
        ValueError: the run was trained with other values; names them.
        FileNotFoundError: DIR is not a run's folder.
    """
    wrong = [d for d in diff(load(workdir), config) if not d[0].startswith(FREE)]
    if wrong:
        listed = ', '.join(f'{key}: {old!r} there, {new!r} now' for key, old, new in wrong)
        raise ValueError(
            f'{workdir} has a run with another configuration ({listed}). Take another --workdir, '
            'or give the same values.'
        )


def diff(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """Lists (dotted key, old value, new value) of all keys that differ; a missing one is None."""
    flat_old, flat_new = _flat(old.to_dict()), _flat(new.to_dict())
    keys = sorted(flat_old.keys() | flat_new.keys())
    pairs = [(key, flat_old.get(key), flat_new.get(key)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _flat(tree: dict, prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        path = f'{prefix}{key}'
        flat.update(_flat(value, f'{path}.') if isinstance(value, dict) else {path: value})
    return flat


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
