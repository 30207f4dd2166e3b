"""Files of named arrays: .npz, .safetensors, and .pth and .pt; only writing these needs torch."""

import importlib
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from css_jax.weights import torch_files

FORMATS = ('.npz', '.safetensors', '.pth', '.pt')
# What a checkpoint may have of use, where the rest of it is not opened.
PARTS = ('model', 'ema_model', 'prototypes', 'state_dict')
_DAMAGE = (
    *(ValueError, LookupError, EOFError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile),
    *(ArithmeticError, AttributeError, MemoryError, SyntaxError, OSError),
    *(tokenize.TokenError, safetensors.SafetensorError),
)


def check(path: str | pathlib.Path, key: str, or_else: str = '') -> None:
    """Make sure that a file can be read as far as its name tells, without opening it.

    Args:
        path: the file.
        key: what gave it, for the message.
        or_else: what else could have been given, for the message, as in 'a name or '.

    Raises:
        ValueError: its ending is none of `FORMATS`.
        FileNotFoundError: it is not there.
    """
    _check_ending(path, key, or_else)
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f'{key}: {path} is not there; expected a file')


def check_format(path: str | pathlib.Path, key: str) -> None:
    """As `check`, of a file that has yet to be written; torch's need torch to be installed."""
    _check_ending(path, key)
    if pathlib.Path(path).suffix in ('.pth', '.pt'):
        _torch(path)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file.

    Dicts inside dicts, as in a training checkpoint, become names joined by dots:
    'model.module.conv1.weight'. What is neither dict nor array, such as a number, is left out.

    Args:
        path: a file of `FORMATS`.

    Returns:
        Name -> array, in the file's order.

    Raises:
        ValueError: the file is damaged, or it holds Python objects beside arrays, which are never
            made.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                return _flat({name: file[name] for name in file.files})
        if path.suffix == '.safetensors':
            return safetensors.numpy.load_file(path)
        return _flat(torch_files.read(path))
    except torch_files.Refused as refused:
        raise ValueError(f'{path} {_refusal(path, refused.name)}') from None
    except _DAMAGE as error:
        words = ' '.join(str(error).split()) or type(error).__name__
        words = ''.join(c if c.isprintable() else '?' for c in words)[:200]
        raise ValueError(f'{path} is not a {path.suffix} file of arrays: {words}') from None


def write(path: str | pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Write arrays to a new file, whole or not at all.

    Args:
        path: a file of `FORMATS`.
        tree: name -> array or a dict of such, which .pth keeps and the others join by dots.

    Raises:
        FileExistsError: the file is there already.
        ValueError: torch, which writes .pth and .pt, is not installed.
    """
    path = pathlib.Path(path)
    torch = _torch(path) if path.suffix in ('.pth', '.pt') else None
    if path.exists():
        raise FileExistsError(f'{path} is there already: expected the name of a new file')
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'{path.stem}.tmp{path.suffix}')
    if torch:
        torch.save(_tensors(tree, torch), draft)
    elif path.suffix == '.npz':
        np.savez(draft, **_flat(tree))
    else:
        # It writes the buffer as it lies, whatever the strides say.
        arrays = {name: np.ascontiguousarray(array) for name, array in _flat(tree).items()}
        safetensors.numpy.save_file(arrays, draft)
    os.replace(draft, path)


def _check_ending(path: str | pathlib.Path, key: str, or_else: str = '') -> None:
    if pathlib.Path(path).suffix not in FORMATS:
        raise ValueError(
            f'{key}: got {str(path)!r}, expected {or_else}a file ending in {list(FORMATS)}'
        )


def _torch(path: str | pathlib.Path) -> Any:
    try:
        return importlib.import_module('torch')  # here: all else does without
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: writing it needs torch, which is not installed (pip install 'torch>=2.6'). "
            'Or take .npz or .safetensors'
        ) from None


def _refusal(path: pathlib.Path, name: str) -> str:
    """Say why a file is not read, and what the user can do."""
    new = path.with_name(f'{path.stem}_arrays{path.suffix}').name
    return (
        f'holds {name} beside its arrays, which is not opened for safety. Open it yourself, where '
        'torch is, if you trust it, and save its arrays alone: python -c "import torch; ck = '
        f"torch.load('{path.name}', 'cpu', weights_only=False); torch.save({{k: ck[k] for k in "
        f"{PARTS} if k in ck}} or {{k: v for k, v in ck.items() if torch.is_tensor(v)}}, '{new}')\""
    )


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, np.ndarray]:
    """Join the names of dicts inside dicts."""
    if not isinstance(tree, Mapping):
        raise ValueError(f'expected a dict of arrays, got {type(tree).__name__}')
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{prefix}{name}.')
        elif isinstance(value, np.ndarray):
            flat[f'{prefix}{name}'] = value
    return flat


def _tensors(tree: Mapping[str, Any], torch: Any) -> dict[str, Any]:
    return {
        name: _tensors(value, torch) if isinstance(value, Mapping) else torch.tensor(value)
        for name, value in tree.items()
    }
