"""Files of named arrays: .npz, .safetensors and, where torch is installed, .pth and .pt."""

import importlib
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

# Ending -> (module that reads and writes it, how to get it).
FORMATS = {
    '.npz': ('numpy', ''),
    '.safetensors': ('safetensors.numpy', 'pip install safetensors'),
    '.pth': ('torch', "pip install 'torch>=2.6'"),
    '.pt': ('torch', "pip install 'torch>=2.6'"),
}
# What a checkpoint may have of use, where the rest of it is not opened.
PARTS = ('model', 'ema_model', 'prototypes', 'state_dict')


def check(path: str | pathlib.Path, key: str) -> None:
    """Make sure that a file can be read as far as its name tells, without opening it.

    Args:
        path: the file.
        key: what gave it, for the message.

    Raises:
        ValueError: its ending is none of `FORMATS`, or what reads these is not installed.
        FileNotFoundError: it is not there.
    """
    _check_ending(path, key)
    _module(path)
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f'{key}: {path} is not there; expected a file')


def check_format(path: str | pathlib.Path, key: str) -> None:
    """As `check`, of a file that has yet to be written."""
    _check_ending(path, key)
    _module(path, writes=True)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file.

    Dicts inside dicts, as in a training checkpoint, become names joined by dots:
    'model.module.conv1.weight'. What is neither dict nor array, such as a number, is left out.

    Args:
        path: a file of `FORMATS`.

    Returns:
        Name -> array, in the file's order.

    Raises:
        ValueError: the file is damaged, what reads it is not installed, or it holds Python objects
            beside arrays, which are never unpickled.
    """
    path, module = pathlib.Path(path), _module(path)
    damaged = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)
    try:
        if path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == '.safetensors':
            damaged = (importlib.import_module('safetensors').SafetensorError, *damaged)
            return module.load_file(path)
        with module.serialization.safe_globals(_numpy_scalars()):
            return _flat(module.load(path, map_location='cpu', weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path} {_refusal(path, str(error))}') from None
    except damaged as error:
        raise ValueError(f'{path} is not a {path.suffix} file of arrays: {error}') from None


def write(path: str | pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Write arrays to a new file, whole or not at all.

    Args:
        path: a file of `FORMATS`.
        tree: name -> array or a dict of such, which .pth keeps and the others join by dots.

    Raises:
        FileExistsError: the file is there already.
        ValueError: what writes this format is not installed.
    """
    path, module = pathlib.Path(path), _module(path, writes=True)
    if path.exists():
        raise FileExistsError(f'{path} is there already: expected the name of a new file')
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'{path.stem}.tmp{path.suffix}')
    if path.suffix == '.npz':
        np.savez(draft, **_flat(tree))
    elif path.suffix == '.safetensors':
        # It writes the buffer as it lies, whatever the strides say.
        module.save_file({k: np.ascontiguousarray(v) for k, v in _flat(tree).items()}, draft)
    else:
        module.save(_tensors(tree, module), draft)
    os.replace(draft, path)


def _check_ending(path: str | pathlib.Path, key: str) -> None:
    if pathlib.Path(path).suffix not in FORMATS:
        raise ValueError(f'{key}: got {str(path)!r}, expected a file ending in {list(FORMATS)}')


def _module(path: str | pathlib.Path, writes: bool = False) -> ModuleType:
    path = pathlib.Path(path)
    name, command = FORMATS[path.suffix]
    try:
        return importlib.import_module(name)  # here: none of them is needed to train
    except ModuleNotFoundError:
        package = name.split('.')[0]
        if writes:
            advice = 'Or take .npz or .safetensors'
        else:  # this file needs numpy alone, and what reads the format
            new = path.with_suffix('.npz').name
            advice = (
                f'Or, in a copy of this repository where {package} and numpy are: python -c "from '
                f"css_jax.weights import files as s; s.write('{new}', s.read('{path.name}'))\""
            )
        raise ValueError(
            f'{path}: files ending in {path.suffix} need {package}, which is not installed '
            f'({command}). {advice}'
        ) from None


def _numpy_scalars() -> list:
    """List what pickled numpy numbers and texts are made of; none of it runs a file's code."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = '?U' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    names = [f'numpy.{core}.multiarray.scalar' for core in ('core', '_core')]  # numpy 1 and 2
    types = {type(np.dtype(kind)) for kind in kinds}
    return [np.dtype, *types, *((scalar, name) for name in names)]


def _refusal(path: pathlib.Path, message: str) -> str:
    """Say why torch does not unpickle a file: for what it holds, or for what it is."""
    message = re.sub(r'\x1b\[\d*m', '', message)  # colours
    found = re.search(r"GLOBAL (\S+)|<class '(\S+)'>", message)
    if not found:
        reason = message.split('WeightsUnpickler error:')[-1].strip().partition('\n')[0]
        return f'is not a {path.suffix} file of arrays: {reason}'
    new = path.with_name(f'{path.stem}_arrays{path.suffix}').name
    return (
        f'holds {found[1] or found[2]} beside its arrays, which is not opened for safety. Open it '
        'yourself, if you trust it, and save its arrays alone: python -c "import torch; ck = '
        f"torch.load('{path.name}', 'cpu', weights_only=False); torch.save({{k: ck[k] for k in "
        f"{PARTS} if k in ck}}, '{new}')\""
    )


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, np.ndarray]:
    """Flatten dicts of numpy arrays or torch tensors."""
    if not isinstance(tree, Mapping):
        raise ValueError(f'expected a dict of arrays, got {type(tree).__name__}')
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{prefix}{name}.')
        elif isinstance(value, np.ndarray):
            flat[f'{prefix}{name}'] = value
        elif hasattr(value, 'is_floating_point'):
            value = value.float() if value.is_floating_point() else value  # bfloat16 is not numpy's
            flat[f'{prefix}{name}'] = value.detach().numpy()
    return flat


def _tensors(tree: Mapping[str, Any], torch: ModuleType) -> dict[str, Any]:
    return {
        name: _tensors(value, torch) if isinstance(value, Mapping) else torch.tensor(value)
        for name, value in tree.items()
    }
