"""Files of arrays: what is written is read back, and nothing else is opened or overwritten."""

import argparse
import contextlib
import pathlib
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from css_jax.weights import files as weight_files

TREE = {
    'model': {
        'conv1.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2).transpose(1, 0, 3, 2)
    },
    'ema_model': {'bn1.num_batches_tracked': np.asarray(np.int64(7))},
    'prototypes': np.float32([[1, 2], [0, 0]]),
}
ROOT = pathlib.Path(__file__).parents[1]
SERIALIZATION = SimpleNamespace(safe_globals=lambda _: contextlib.nullcontext())  # of torch
PACKAGES = {'.npz': 'numpy', '.safetensors': 'safetensors', '.pth': 'torch', '.pt': 'torch'}


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


def test_python_objects_are_not_opened(tmp_path):
    opened = []

    class Trap:
        def __reduce__(self):
            return opened.append, (1,)

    np.savez(tmp_path / 'a.npz', a=np.array([{1: 2}], object))
    with pytest.raises(ValueError, match=r'a.npz is not a .npz file of arrays'):
        weight_files.read(tmp_path / 'a.npz')
    pytest.importorskip('torch')
    (tmp_path / 'a.pth').write_bytes(pickle.dumps({'model': Trap()}))
    with pytest.raises(ValueError, match=r'a.pth'):
        weight_files.read(tmp_path / 'a.pth')
    assert opened == []


def test_torch_checkpoints_with_more_than_arrays(tmp_path):
    torch = pytest.importorskip('torch')
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    torch.save(
        {'epoch': 3, 'state_dict': {'a': torch.nn.Parameter(torch.ones(2)), 'b': half}, 'x': [1]},
        tmp_path / 'a.pth',
    )
    read = weight_files.read(tmp_path / 'a.pth')
    assert {k: v.tolist() for k, v in read.items()} == {
        'state_dict.a': [1, 1],
        'state_dict.b': [1.5, -2],
    }


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


def test_a_missing_package_is_said_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setitem(
        weight_files.FORMATS, '.pth', ('no_such_package.numpy', 'pip install torch')
    )
    with pytest.raises(ValueError, match=r'need no_such_package.*pip install torch') as error:
        weight_files.check('w.pth', 'model.pretrained')
    with pytest.raises(ValueError, match=r'\(pip install torch\)\. Or take .npz or .safetensors$'):
        weight_files.check_format('w.pth', '--target')

    # What is advised to do elsewhere works on dicts inside dicts, and needs numpy alone.
    torch = SimpleNamespace(load=lambda *_, **__: TREE, serialization=SERIALIZATION)
    monkeypatch.setitem(sys.modules, 'torch', torch)
    monkeypatch.setitem(weight_files.FORMATS, '.pth', ('torch', ''))
    monkeypatch.chdir(tmp_path)
    exec(advised(error), {})
    assert weight_files.read('w.npz').keys() == {
        'model.conv1.weight',
        'ema_model.bn1.num_batches_tracked',
        'prototypes',
    }
    others = 'import css_jax.weights.files, sys; print({"jax", "flax", "torch"} & {*sys.modules})'
    output = subprocess.check_output([sys.executable, '-c', others], cwd=ROOT, text=True)
    assert output == 'set()\n'


def test_a_refusal_names_the_object_and_gives_a_call_that_is_not_refused(monkeypatch, tmp_path):
    message = (
        'Weights only load failed. \x1b[1mdo those steps only if you trust it\x1b[0m.\n\t'
        'WeightsUnpickler error: Unsupported global: GLOBAL argparse.Namespace was not an allowed'
    )

    def load(file, device=None, *, weights_only, **_):
        if weights_only:
            raise pickle.UnpicklingError(message)
        return {**TREE, 'args': object()}

    saved = {}
    torch = SimpleNamespace(load=load, serialization=SERIALIZATION)
    torch.save = lambda tree, file: saved.update({file: tree})
    monkeypatch.setitem(sys.modules, 'torch', torch)
    with pytest.raises(ValueError, match=r'w.pth holds argparse.Namespace beside') as error:
        weight_files.read(tmp_path / 'w.pth')
    assert '\x1b' not in str(error.value) and 'weights_only=True' not in str(error.value)
    exec(advised(error), {})
    assert saved == {'w_arrays.pth': TREE}

    message = 'Weights only. \x1b[1mIn\x1b[0m.\nWeightsUnpickler error: \n\nUnsupported 60\n\nSee'
    with pytest.raises(ValueError, match=r'w.pth is not a .pth file of arrays: Unsupported 60$'):
        weight_files.read(tmp_path / 'w.pth')


def test_torch_opens_numpy_scalars_and_no_other_objects(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    scalars = {'a': np.float64(3), 'b': np.int64(3), 'c': np.bool_(True), 'd': np.str_('x')}
    torch.save({'model': {'w': torch.ones(2)}, **scalars}, tmp_path / 'scalars.pth')
    assert {k: v.tolist() for k, v in weight_files.read(tmp_path / 'scalars.pth').items()} == {
        'model.w': [1, 1]
    }
    monkeypatch.chdir(tmp_path)
    torch.save({'model': {'w': torch.ones(2)}, 'args': argparse.Namespace(x=1)}, 'w.pth')
    with pytest.raises(ValueError, match=r'holds argparse.Namespace beside') as error:
        weight_files.read('w.pth')
    exec(advised(error), {})
    assert weight_files.read('w_arrays.pth').keys() == {'model.w'}
