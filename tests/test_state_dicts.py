"""Files of arrays: what is written is read back, and nothing else is opened or overwritten."""

import argparse
import io
import os
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from css_jax.weights import files as weight_files
from css_jax.weights import torch_files

TREE = {
    'model': {
        'conv1.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2).transpose(1, 0, 3, 2)
    },
    'ema_model': {'bn1.num_batches_tracked': np.asarray(np.int64(7))},
    'prototypes': np.float32([[1, 2], [0, 0]]),
}
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {'.npz': 'numpy', '.safetensors': 'safetensors', '.pth': 'torch', '.pt': 'torch'}


class Named:
    """Pickled as the name of something: that is all a file has of torch's functions and classes."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, *given):
        return Called(self, given)


class Called:
    """Pickled as a call of a `Named`, and what is set on the result."""

    def __init__(self, function, given, state=None):
        self.function, self.given, self.state = function, given, state


class Storage:
    """A block of numbers; pickled by its key."""

    def __init__(self, key, kind, numbers):
        self.key, self.kind, self.numbers = key, kind, numbers


class Pickler(pickle._Pickler):
    """Writes the opcodes that torch writes, without torch."""

    def persistent_id(self, value):
        if isinstance(value, Storage):
            kind = Named('torch', value.kind)
            return ('storage', kind, value.key, 'cpu', len(value.numbers), *self.part)
        return None

    def save_named(self, value):
        self.write(f'c{value.module}\n{value.name}\n'.encode())

    def save_called(self, value):
        self.save(value.function)
        self.save(value.given)
        self.write(pickle.REDUCE)
        if value.state is not None:
            self.save(value.state)
            self.write(pickle.BUILD)

    dispatch = pickle._Pickler.dispatch | {Named: save_named, Called: save_called}


def pickled(value, part=()):
    file = io.BytesIO()
    pickler = Pickler(file, 2)
    pickler.part = part
    pickler.dump(value)
    return file.getvalue()


def storages(value):
    """All storages of calls inside dicts."""
    if isinstance(value, Storage):
        return {value.key: value}
    inner = value.given if isinstance(value, Called) else ()
    inner = value.values() if isinstance(value, dict) else inner
    return {k: s for part in inner for k, s in storages(part).items()}


def save(path, tree, form='zip'):
    """Writes a file as torch does, of `tensor`s in dicts."""
    found = storages(tree)
    if form == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', pickled(tree))
            archive.writestr('archive/byteorder', 'little')
            for key, storage in found.items():
                archive.writestr(f'archive/data/{key}', storage.numbers.tobytes())
        return
    system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}
    parts = [pickled(x) for x in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [pickled(tree, part=(None,)), pickled([*found])]
    for storage in found.values():
        parts += [len(storage.numbers).to_bytes(8, 'little'), storage.numbers.tobytes()]
    path.write_bytes(b''.join(parts))


def tensor(storage, size, stride, offset=0):
    rebuild = Named('torch._utils', '_rebuild_tensor_v2')
    hooks = Named('collections', 'OrderedDict')()
    return rebuild(storage, offset, size, stride, False, hooks)


@pytest.fixture(params=list(weight_files.FORMATS))
def ending(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def test_what_is_written_is_read_back(tmp_path, ending):
    path = tmp_path / 'new' / f'weights{ending}'
    weight_files.write(path, TREE)
    read = weight_files.read(path)
    expected = {
        'model.conv1.weight': TREE['model']['conv1.weight'],
        'ema_model.bn1.num_batches_tracked': np.int64(7),
        'prototypes': TREE['prototypes'],
    }
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no draft is left
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match='is there already'):
        weight_files.write(path, {'a': np.zeros(1)})
    assert path.read_bytes() == before


def test_a_damaged_file_is_named(tmp_path, ending):
    path = tmp_path / f'weights{ending}'
    path.write_bytes(b'<html>404</html>' * 9)
    with pytest.raises(ValueError, match=rf'weights\{ending}.*'):
        weight_files.read(path)


def test_other_damage_of_an_npz_is_named_too(tmp_path):
    path = tmp_path / 'a.npz'
    with path.open('wb') as file:
        np.save(file, np.ones(3))  # one array, of no name
    with pytest.raises(ValueError, match=r'a.npz is not a .npz file of arrays'):
        weight_files.read(path)
    np.savez_compressed(path, a=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'a.npz is not a .npz file of arrays'):
        weight_files.read(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    assert weight_files.read(path) == {}


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_npz(path, member):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', member)


def test_the_header_of_an_array_may_say_anything(tmp_path):
    """The zip's checksum is right here, so that numpy reads on."""
    whole, rng = npy(np.ones((2, 3), np.float32)), np.random.default_rng(0)
    headers = [b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }" % n.encode()
               for n in ('9' * 12, '9' * 30, '-1', '1e3', 'None', '(' * 300)]  # fmt: skip
    members = [whole[:8] + len(text).to_bytes(2, 'little') + text for text in headers]
    for _ in range(150):
        wrong = bytearray(whole)
        wrong[rng.integers(len(whole) - 24)] = rng.integers(256)
        members.append(bytes(wrong))
    refused = 0
    for member in members:
        write_npz(tmp_path / 'a.npz', member)
        try:
            weight_files.read(tmp_path / 'a.npz')
        except ValueError as error:
            assert re.match(r'\S*a.npz is not a .npz file of arrays: .', str(error))
            assert str(error).isprintable()
            refused += 1
    assert refused > 100


@pytest.mark.parametrize('form', ['zip', 'legacy'])
def test_torch_s_files_are_read_without_torch(form, tmp_path):
    numbers = Storage('0', 'FloatStorage', np.arange(24, dtype=np.float32))
    halves = Storage('1', 'BFloat16Storage', np.array([0x3FC0, 0xC000], np.uint16))
    parameter = Named('torch._utils', '_rebuild_parameter')
    metadata = Named('collections', 'OrderedDict')()
    metadata.state = {'_metadata': {'version': 1}}  # as every state dict has it
    scalar = Named('numpy.core.multiarray', 'scalar')
    kind = Called(Named('numpy', 'dtype'), ('f8', False, True), (3, '<', None, None, None, -1))
    raw = Named('_codecs', 'encode')('\x00\x00', 'latin1')
    tree = {
        'whole': tensor(numbers, (2, 3, 4), (12, 4, 1)),
        'turned': parameter(tensor(numbers, (3, 2), (1, 3), 6), True, metadata),
        'single': tensor(numbers, (), (), 5),
        'none': tensor(numbers, (0, 3), (3, 1), 24),
        'half': {'b': tensor(halves, (2,), (1,))},
        'epoch': 3,
        'score': scalar(kind, raw),
        'list': [1, 'x', None, (2.5, True)],
    }
    save(tmp_path / 'a.pth', tree, form)
    found = weight_files.read(tmp_path / 'a.pth')
    expected = {
        'whole': np.arange(24).reshape(2, 3, 4),
        'turned': np.arange(6, 12).reshape(2, 3).T,
        'single': np.float32(5),
        'none': np.zeros((0, 3)),
        'half.b': np.float32([1.5, -2]),
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and found[name].flags.owndata
        np.testing.assert_array_equal(found[name], array)


class Trap:
    """Runs a function where it is unpickled."""

    def __init__(self, function, *given):
        self.call = function, given

    def __reduce__(self):
        return self.call


# Names that a file could call, or what it could make of what is known.
PLANTED = {
    'a function': pickle.dumps({'model': Trap(os.system, 'touch planted')}, 2),
    'builtins': pickle.dumps({'model': Trap(eval, "open('planted', 'w')")}, 2),
    'the old form': b"cos\nsystem\n(S'touch planted'\ntR.",
    'inst': b"(S'touch planted'\nios\nsystem\n.",
    'obj': b"(cos\nsystem\nS'touch planted'\no.",
    'by protocol 4': pickle.dumps({'model': Trap(os.system, 'touch planted')}, 4),
    'an attribute of what is known': b'\x80\x04\x8c\x0bcollections\x8c\x1aOrderedDict.__init__'
    b'.__globals__\x93.',
    'of a module of ours': b'ccss_jax.weights.torch_files\nos\n.',
    'an extension': b'\x80\x02\x82\x01.',
}


@pytest.mark.parametrize('form', ['zip', 'legacy'])
@pytest.mark.parametrize('planted', PLANTED)
def test_planted_code_is_not_run(planted, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'a.pth'
    if form == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', PLANTED[planted])
    else:  # in place of the dict, and of all that stands before it
        start = [pickled(x) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
        for i in range(4):
            path.write_bytes(b''.join([*start[:i], PLANTED[planted]]))
            with pytest.raises(ValueError, match=r'^\S*a.pth (holds|is not)'):
                weight_files.read(path)
    path.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r'^\S*a.pth (holds|is not)'):
        weight_files.read(path)
    assert [file.name for file in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize('ending', ['.npz', '.safetensors'])
def test_planted_code_is_not_run_in_other_formats(ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trap, path = Trap(os.system, 'touch planted'), tmp_path / f'a{ending}'
    objects = np.empty(1, object)
    objects[0] = trap
    np.savez(tmp_path / 'b.npz', a=objects)
    files = [(tmp_path / 'b.npz').read_bytes(), pickle.dumps(trap), npy(objects)]
    (tmp_path / 'b.npz').unlink()
    for content in files:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf'a\{ending} is not a \{ending} file of arrays'):
            weight_files.read(path)
    write_npz(tmp_path / 'a.npz', pickle.dumps(trap))  # a member that is no array is left out
    assert weight_files.read(tmp_path / 'a.npz') == {}
    assert not (tmp_path / 'planted').exists()


def test_nothing_else_here_opens_a_pickle():
    opens = (
        r'\b(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|torch\.load|allow_pickle=True)\b'
    )
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ('css_jax', 'configs', 'data_prep')
        for path in (ROOT / folder).rglob('*.py')
        if re.search(opens, path.read_text())
    }
    # The second has a command in its message, for the user to run.
    assert found == {'css_jax/weights/torch_files.py', 'css_jax/weights/files.py'}


DEPTH = 100_000
HOSTILE = {
    'a key of tuples in tuples': b'\x80\x02})' + b'\x85' * DEPTH + b'K\x01s.',
    'the same in pairs': b'\x80\x02})' + b'N\x86' * DEPTH + b'K\x01s.',
    'the same behind a mark': b'\x80\x02}()' + b'\x85' * DEPTH + b'K\x01u.',
    'the same in a call': b'\x80\x02ccollections\nOrderedDict\n])'
    + b'\x85' * DEPTH
    + b'K\x01\x86a\x85R.',
    'the same in a set': b'\x80\x04\x8f()' + b'\x85' * DEPTH + b'\x90.',
    'dicts in dicts': b'\x80\x02' + b'}K\x01' * DEPTH + b'N' + b's' * DEPTH + b'.',
    'four billion places': b'\x80\x02Nr\xff\xff\xff\xff.',
    'bytes without end': b'\x80\x05\x96' + (2**40).to_bytes(8, 'little') + b'.',
    'a name that moves the cursor': b'cos\x1b[2J\nsystem\x07\n.',
}


@pytest.mark.parametrize('hostile', HOSTILE)
def test_hostile_files_end_in_one_line(hostile, tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', HOSTILE[hostile])
    with pytest.raises(ValueError, match=r'a.pth (holds|is not)') as error:
        weight_files.read(tmp_path / 'a.pth')
    assert str(error.value).isprintable()


def test_what_a_file_sets_on_a_function_does_not_stay(tmp_path):
    """BUILD sets attributes of what it is given, functions included."""
    rebuild = Named('torch._utils', '_rebuild_tensor_v2')
    numbers = Storage('0', 'FloatStorage', np.ones(4, np.float32))
    # (function, state) BUILD: the slots' state of a pair goes through setattr.
    body = pickled(rebuild)[:-1] + pickled((None, {'__defaults__': (1,)}))[2:-1] + b'b.'
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', body)
    before = vars(torch_files._tensor).copy(), torch_files._tensor.__defaults__
    with pytest.raises(ValueError, match='expected a dict of arrays'):
        weight_files.read(tmp_path / 'a.pth')
    assert before == (vars(torch_files._tensor), torch_files._tensor.__defaults__)
    save(tmp_path / 'b.pth', {'a': tensor(numbers, (4,), (1,))})
    assert weight_files.read(tmp_path / 'b.pth')['a'].tolist() == [1] * 4


@pytest.mark.parametrize(
    ('size', 'stride', 'offset'),
    [
        ((5,), (1,), 0),  # more than there is
        ((2, 2), (3, 1), 1),
        ((10**6, 10**6), (0, 0), 0),  # the same number for ever
        ((2,), (-1,), 3),
        ((2,), (1, 1), 0),
        ((2.0,), (1,), 0),
        ((1,), (1,), 4),
    ],
)
def test_tensors_stay_within_their_storage(size, stride, offset, tmp_path):
    numbers = Storage('0', 'FloatStorage', np.ones(4, np.float32))
    save(tmp_path / 'a.pth', {'a': tensor(numbers, size, stride, offset)})
    with pytest.raises(ValueError, match=r'a.pth is not a .pth file of arrays: a tensor'):
        weight_files.read(tmp_path / 'a.pth')


@pytest.mark.parametrize('form', ['zip', 'legacy', '.npz', '.safetensors'])
def test_a_file_cut_off_anywhere_is_no_file(form, tmp_path):
    path = tmp_path / ('a' + (form if form[0] == '.' else '.pth'))
    if form[0] == '.':
        weight_files.write(path, {'a': np.ones(40, np.float32)})
    else:
        numbers = Storage('0', 'FloatStorage', np.ones(40, np.float32))
        save(path, {'a': tensor(numbers, (40,), (1,))}, form)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=rf'a\{path.suffix} (is not a \{path.suffix} fi|holds)'
        ):
            weight_files.read(path)


def test_numbers_of_the_other_byte_order_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', pickled({}))
        archive.writestr('archive/byteorder', 'big')
    with pytest.raises(ValueError, match='big-endian'):
        weight_files.read(tmp_path / 'a.pth')


@pytest.mark.parametrize('zipped', [True, False])
def test_torch_s_own_files_are_read(zipped, tmp_path):
    torch = pytest.importorskip('torch')
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    kinds = ('float64', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')
    tree = {
        'epoch': 3,
        'state_dict': torch.nn.Conv2d(2, 3, 1).state_dict(),
        'a': torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T),
        'half': half,
        'x': [1],
        'scalars': [np.float64(3), np.int64(3), np.bool_(True), np.str_('x')],
        **{kind: torch.ones(2, dtype=getattr(torch, kind)) for kind in kinds},
    }
    torch.save(tree, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    read = weight_files.read(tmp_path / 'a.pth')
    assert read['a'].tolist() == tree['a'].tolist() and read['half'].tolist() == [1.5, -2]
    for name, value in tree['state_dict'].items():
        np.testing.assert_array_equal(read[f'state_dict.{name}'], value.numpy())
    for kind in kinds:
        assert read[kind].dtype == kind and read[kind].tolist() == [1, 1]
    assert len(read) == 4 + len(kinds)


def test_paths_are_checked_by_name_alone(tmp_path):
    with pytest.raises(ValueError, match=r"model.pretrained: got 'w.h5', expected.*\.npz"):
        weight_files.check('w.h5', 'model.pretrained')
    with pytest.raises(FileNotFoundError, match=r'model.pretrained: .*w.npz is not there'):
        weight_files.check(tmp_path / 'w.npz', 'model.pretrained')
    with pytest.raises(FileNotFoundError, match='expected a file'):
        (tmp_path / 'folder.npz').mkdir()
        weight_files.check(tmp_path / 'folder.npz', 'model.pretrained')
    weight_files.check_format(tmp_path / 'new.npz', '--target')


def advised(error):
    """The program that a message gives: what is in double quotes after python -c."""
    return re.search(r'python -c "(.*)"', str(error.value))[1]


def test_writing_torch_s_files_needs_torch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch', None)
    for call in (
        lambda: weight_files.check_format('w.pth', '--target'),
        lambda: weight_files.write(tmp_path / 'w.pth', TREE),
    ):
        with pytest.raises(ValueError, match=r"torch>=2.6'\)\. Or take .npz or .safetensors$"):
            call()
    assert not list(tmp_path.iterdir())


def test_files_are_read_without_jax():
    others = 'import css_jax.weights.files, sys; print({"jax", "flax", "torch"} & {*sys.modules})'
    output = subprocess.check_output([sys.executable, '-c', others], cwd=ROOT, text=True)
    assert output == 'set()\n'


def test_a_refusal_names_the_object_and_gives_a_call_that_is_not_refused(monkeypatch, tmp_path):
    numbers = Storage('0', 'FloatStorage', np.ones(4, np.float32))
    arguments = Named('argparse', 'Namespace')()
    save(tmp_path / 'w.pth', {'model': {'a': tensor(numbers, (4,), (1,))}, 'args': arguments})
    with pytest.raises(ValueError, match=r'w.pth holds argparse.Namespace beside') as error:
        weight_files.read(tmp_path / 'w.pth')
    saved = {}
    torch = SimpleNamespace(
        load=lambda file, device, weights_only: {**TREE, 'args': argparse.Namespace()},
        save=lambda tree, file: saved.update({file: tree}),
    )
    monkeypatch.setitem(sys.modules, 'torch', torch)
    torch.is_tensor = lambda value: isinstance(value, np.ndarray)
    advice = re.search(r'python -c "(.*)"', str(error.value))[1]
    exec(advice, {})
    assert saved == {'w_arrays.pth': TREE}
    flat = {'conv1.weight': np.ones(3), 'arch': 'resnet'}
    torch.load = lambda file, device, weights_only: flat
    exec(advice, {})
    assert saved['w_arrays.pth'].keys() == {'conv1.weight'}
