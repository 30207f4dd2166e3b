"""Reads torch's files of tensors (.pth, .pt) without torch, and without running a file's code.

Both of torch's forms are pickles that stand for tensors by (storage, offset, size, stride) and keep
the storages' bytes apart: the zip form (torch 1.6 and later) in members of their own, the legacy
form behind the pickle. `pickle` itself runs whatever function a file names; here a file may name
what `_KNOWN` has and nothing else, and what stands there only collects numbers.
"""

import collections
import io
import os
import pathlib
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the legacy form
_PROTOCOL = 1001
_STORAGES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}


class Refused(ValueError):
    """A file names an object that is no tensor.

    Attributes:
        name: the object's, as in 'argparse.Namespace'.
    """

    def __init__(self, name: str):
        # It is printed, whatever the file says.
        self.name = ''.join(c if c.isprintable() else '?' for c in name)[:80]
        super().__init__(f'it holds {self.name}')


class _Kind(NamedTuple):
    """Stands for a class of storages."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """One block of numbers: what it is called in the file, their type, and how many they are."""

    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """Read what `torch.save` has written.

    Args:
        path: a file of the zip or the legacy form.

    Returns:
        The dict that was saved, with numpy arrays in place of tensors (bfloat16 is widened to
        float32) and None in place of single numpy numbers.

    Raises:
        Refused: it holds objects beside dicts, lists, numbers, texts and tensors. None of them was
            made.
        ValueError: it is cut off or damaged, or no file of torch's; says how.
    """
    with open(path, 'rb') as file:
        try:
            found = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        except Refused:
            raise
        except _DAMAGE as error:
            words = str(error) or type(error).__name__
            if isinstance(error, LookupError):  # its words are what was looked up alone
                words = f'broken at {words}'
            raise ValueError(''.join(c if c.isprintable() else '?' for c in words)[:200]) from None
    return found


# What broken pickles and zips raise.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, EOFError, MemoryError, OverflowError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError),
    struct.error,
)


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError('compressed, which torch does not do')
        index = next((name for name in names if name.endswith('/data.pkl')), '')
        if not index:
            raise ValueError('a zip file without the data.pkl of torch')
        folder = index.removesuffix('data.pkl')
        order = f'{folder}byteorder'
        if order in names and archive.read(order) != b'little':
            raise ValueError('its numbers are big-endian, expected little-endian')

        def load(storage: _Storage) -> np.ndarray:
            member, size = f'{folder}data/{storage.key}', storage.count * storage.dtype.itemsize
            if member not in names:
                raise ValueError(f'{member} is missing')
            if archive.getinfo(member).file_size != size:
                have = archive.getinfo(member).file_size
                raise ValueError(f'{member} has {have} bytes, expected {size}')
            return np.frombuffer(archive.read(member), storage.dtype)

        tree = _Unpickler(io.BytesIO(archive.read(index))).load()
        return _filled(tree, load)


def _read_legacy(file: BinaryIO) -> Any:
    file.seek(0)
    try:
        start = _Unpickler(file).load()
    except Refused:
        raise
    except _DAMAGE:
        start = None
    if start != _MAGIC:
        raise ValueError('it begins as no file of torch 0.4 or later does')
    protocol, system = _Unpickler(file).load(), _Unpickler(file).load()
    if protocol != _PROTOCOL or not system.get('little_endian', True):
        raise ValueError(f'protocol {protocol}, {system}: expected {_PROTOCOL}, little-endian')
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    arrays = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages.get(key)
        if storage is None:
            raise ValueError(f'storage {key!r} is of no tensor')
        count = int.from_bytes(file.read(8), 'little')
        size = storage.count * storage.dtype.itemsize
        left = os.fstat(file.fileno()).st_size - file.tell()
        if count != storage.count or size > left:
            raise ValueError(f'storage {key} has {count} numbers in {left} bytes, expected {size}')
        arrays[key] = np.frombuffer(file.read(size), storage.dtype)
    if missing := unpickler.storages.keys() - arrays.keys():
        raise ValueError(f'storage {min(missing)!r} is missing')
    return _filled(tree, lambda storage: arrays[storage.key])


# Opcodes that torch has no use for: sets, whose items are hashed, registered extensions, arrays of
# bytes of any length, and objects that are made in other ways than by a name that is called.
_UNUSED = {
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
}


class _Unpickler(pickle._Unpickler):
    """Reads a pickle in which `_KNOWN` stands for all names.

    In Python: the one in C takes memory for as many places as a file claims, and hashes tuples
    nested so deep that the process ends.

    Attributes:
        storages: key -> storage, of all that tensors have named so far.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding='utf-8')
        self.storages: dict[str, _Storage] = {}

    def load_dict(self) -> None:
        """Make a dict of what lies behind the last mark."""
        _check_keys(self.stack[::2])
        pickle._Unpickler.load_dict(self)

    def load_setitem(self) -> None:
        """Put the last pair into the dict before it."""
        _check_keys(self.stack[-2:-1])
        pickle._Unpickler.load_setitem(self)

    def load_setitems(self) -> None:
        """Put the pairs behind the last mark into the dict before it."""
        _check_keys(self.stack[::2])
        pickle._Unpickler.load_setitems(self)

    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in _UNUSED
    } | {
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; the pickle may call it, and set attributes of it."""
        found = _KNOWN.get(f'{module}.{name}')
        if found is None:
            raise Refused(f'{module}.{name}')
        # A function anew, so that what a file sets there is gone with it.
        return found if isinstance(found, (type, _Kind)) else lambda *given: found(*given)

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage: ('storage', type, key, device, count) or, legacy, one more: its part.

        A part (key, offset, count) is of another storage; torch writes None there since 2017.
        """
        name, kind, key, _device, count, *part = pid
        if name != 'storage' or not isinstance(kind, _Kind) or any(part):
            raise ValueError(f'a tensor is stored as {str(pid)[:80]}, which is not known')
        if not (isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise ValueError(f'a storage is called {key!r} with {count!r} numbers')
        return self.storages.setdefault(key, _Storage(key, kind.dtype, count))


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys that are no texts or numbers: anything else may take for ever to be hashed."""
    for key in keys:
        if not isinstance(key, str | int | float | bytes | None):
            raise ValueError(f'a dict has a {type(key).__name__} for a key')


def _ordered(pairs: Iterable[tuple[Any, Any]] = ()) -> collections.OrderedDict:
    """Stand for collections.OrderedDict; of Python 2 it comes with its pairs."""
    pairs = [(name, value) for name, value in pairs]
    _check_keys(name for name, _ in pairs)
    return collections.OrderedDict(pairs)


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
    """Stand for torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise ValueError('a tensor without a storage, or with axes of which some have no stride')
    if any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)):
        raise ValueError(f'a tensor at {offset} of size {size}, stride {stride}')
    tensor, last = _Tensor(storage, offset, tuple(size), tuple(stride)), -1
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A view that repeats its numbers may be of any size at all: none of a state dict does.
    if last >= storage.count or np.prod(size, dtype=object) > storage.count:
        raise ValueError(f'a tensor of size {size} at {offset} in {storage.count} numbers')
    return tensor


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    """Stand for torch._utils._rebuild_parameter."""
    return tensor


class _Nothing:
    """Stands for what is known and left out: single numpy numbers and what they are made of."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN: Mapping[str, Any] = {
    'collections.OrderedDict': _ordered,
    'torch._utils._rebuild_tensor': _tensor,  # before 2018
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    **{f'torch.{name}': _Kind(np.dtype(kind)) for name, kind in _STORAGES.items()},
    **dict.fromkeys(
        (
            'torch.Size',
            'torch.device',
            'numpy.dtype',
            'numpy.core.multiarray.scalar',
            'numpy._core.multiarray.scalar',
            '_codecs.encode',
        ),
        _Nothing,
    ),
}


def _filled(tree: Any, load: Callable[[_Storage], np.ndarray]) -> Any:
    """Put arrays in place of the tensors of dicts inside dicts; what else there is stays."""
    loaded: dict[str, np.ndarray] = {}

    def fill(value: Any) -> Any:
        if isinstance(value, _Tensor):
            storage = value.storage
            if storage.key not in loaded:
                loaded[storage.key] = load(storage)
            return _array(loaded[storage.key], value)
        if isinstance(value, Mapping):
            return {name: fill(part) for name, part in value.items()}
        return value

    assert sys.byteorder == 'little'
    return fill(tree)


def _array(numbers: np.ndarray, tensor: _Tensor) -> np.ndarray:
    strides = tuple(step * numbers.itemsize for step in tensor.stride)
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.size, strides)
    return view.astype(np.float32) if numbers.dtype == ml_dtypes.bfloat16 else view.copy()
