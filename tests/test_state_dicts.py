"""Files of arrays: what is written is read back, and nothing else is opened or overwritten."""

import pickle

import numpy as np
import pytest

from css_jax import state_dicts

TREE = {
    'model': {
        'conv1.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2).transpose(1, 0, 3, 2)
    },
    'ema_model': {'bn1.num_batches_tracked': np.asarray(np.int64(7))},
    'prototypes': np.float32([[1, 2], [0, 0]]),
}
PACKAGES = {'.npz': 'numpy', '.safetensors': 'safetensors', '.pth': 'torch', '.pt': 'torch'}


@pytest.fixture(params=list(state_dicts.FORMATS))
def ending(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def test_what_is_written_is_read_back(tmp_path, ending):
    path = tmp_path / 'new' / f'weights{ending}'
    state_dicts.write(path, TREE)
    read = state_dicts.read(path)
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
        state_dicts.write(path, {'a': np.zeros(1)})
    assert path.read_bytes() == before


def test_a_damaged_file_is_named(tmp_path, ending):
    path = tmp_path / f'weights{ending}'
    path.write_bytes(b'<html>404</html>' * 9)
    with pytest.raises(ValueError, match=rf'weights\{ending}.*'):
        state_dicts.read(path)


def test_python_objects_are_not_opened(tmp_path):
    opened = []

    class Trap:
        def __reduce__(self):
            return opened.append, (1,)

    np.savez(tmp_path / 'a.npz', a=np.array([{1: 2}], object))
    with pytest.raises(ValueError, match=r'a.npz is not a .npz file of arrays'):
        state_dicts.read(tmp_path / 'a.npz')
    pytest.importorskip('torch')
    (tmp_path / 'a.pth').write_bytes(pickle.dumps({'model': Trap()}))
    with pytest.raises(ValueError, match=r'a.pth'):
        state_dicts.read(tmp_path / 'a.pth')
    assert opened == []


def test_torch_checkpoints_with_more_than_arrays(tmp_path):
    torch = pytest.importorskip('torch')
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    torch.save(
        {'epoch': 3, 'state_dict': {'a': torch.nn.Parameter(torch.ones(2)), 'b': half}, 'x': [1]},
        tmp_path / 'a.pth',
    )
    read = state_dicts.read(tmp_path / 'a.pth')
    assert {k: v.tolist() for k, v in read.items()} == {
        'state_dict.a': [1, 1],
        'state_dict.b': [1.5, -2],
    }


def test_paths_are_checked_by_name_alone(tmp_path):
    with pytest.raises(ValueError, match=r"model.pretrained: got 'w.h5', expected.*\.npz"):
        state_dicts.check('w.h5', 'model.pretrained')
    with pytest.raises(FileNotFoundError, match=r'model.pretrained: .*w.npz is not there'):
        state_dicts.check(tmp_path / 'w.npz', 'model.pretrained')
    with pytest.raises(FileNotFoundError, match='expected a file'):
        (tmp_path / 'folder.npz').mkdir()
        state_dicts.check(tmp_path / 'folder.npz', 'model.pretrained')
    state_dicts.check_format(tmp_path / 'new.npz', '--target')


def test_a_missing_package_is_said_with_the_way_out(monkeypatch):
    formats = {'.pth': ('no_such_package.numpy', 'pip install torch')}
    monkeypatch.setattr(state_dicts, 'FORMATS', formats)
    with pytest.raises(ValueError, match=r'need no_such_package.*pip install torch.*numpy\.savez'):
        state_dicts.check('w.pth', 'model.pretrained')
