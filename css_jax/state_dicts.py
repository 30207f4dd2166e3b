"""Files of named arrays: .npz, .safetensors and, where torch is installed, .pth and .pt."""

import importlib
import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

# Ending -> (module that reads and writes it, how to get it).
FORMATS = {
    '.npz': ('numpy', ''),
    '.safetensors': ('safetensors.numpy', 'pip install safetensors'),
    '.pth': ('torch', 'pip install torch'),
    '.pt': ('torch', 'pip install torch'),
}
_TO_NPZ = (
    "numpy.savez('weights.npz', **{k: v.numpy() for k, v in torch.load('weights.pth', "
    'weights_only=True).items()})'
)


def check(path: str | pathlib.Path, key: str) -> None:
    """Makes sure that a file can be read as far as its name tells, without opening it.

    Args:
        path: the file.
        key: what gave it, for the message.

    Raises:
        ValueError: its ending is none of `FORMATS`, or what reads these is not installed.
        FileNotFoundError: it is not there.
    """
    check_format(path, key)
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f'{key}: {path} is not there; expected a file')


def check_format(path: str | pathlib.Path, key: str) -> None:
    """As `check`, of a file that may yet have to be written."""
    if pathlib.Path(path).suffix not in FORMATS:
        raise ValueError(f'{key}: got {str(path)!r}, expected a file ending in {list(FORMATS)}')
    _module(path)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file.

    Dicts inside dicts, as in a training checkpoint, become names joined by dots:
    'model.module.conv1.weight'. What is neither dict nor array is left out.

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
        return _flat(module.load(path, map_location='cpu', weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path} has Python objects beside arrays, which are not opened for safety. Save its '
            f'arrays alone, as in {_TO_NPZ}. It said: {str(error).splitlines()[0]}'
        ) from None
    except damaged as error:
        raise ValueError(f'{path} is not a {path.suffix} file of arrays: {error}') from None


def write(path: str | pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes arrays to a new file, whole or not at all.

    Args:
        path: a file of `FORMATS`.
        tree: name -> array or a dict of such, which .pth keeps and the others join by dots.

    Raises:
        FileExistsError: the file is there already.
        ValueError: what writes this format is not installed.
    """
    path, module = pathlib.Path(path), _module(path)
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


def _module(path: str | pathlib.Path) -> ModuleType:
    name, command = FORMATS[pathlib.Path(path).suffix]
    try:
        return importlib.import_module(name)  # here: none of them is needed to train
    except ModuleNotFoundError:
        raise ValueError(
            f'{path}: files ending in {pathlib.Path(path).suffix} need {name.split(".")[0]}, which '
            f'is not installed ({command}). Or convert it where it is: {_TO_NPZ}'
        ) from None


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, np.ndarray]:
    """Flattens dicts of numpy arrays or torch tensors."""
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
