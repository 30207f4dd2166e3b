"""The reference's checkpoints in and out: equal to the bit, evaluated, and refused in words."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import evaluate, methods, state
from css_jax.config import file as stored
from css_jax.evaluation import evaluator
from css_jax.models import dinov2
from css_jax.modes import convert
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from css_jax.weights import files as weight_files
from css_jax.weights import initial
from css_jax.weights import reference as names
from tests import dinov2_small, tiny

pytestmark = pytest.mark.usefixtures('shallow')


def made(config):
    """A state of random arrays, its teacher, statistics and memory another than the student's."""
    config = configs.finalise(config)
    method, ctx = methods.METHODS[config.method], methods.context(config)
    rng = np.random.default_rng(0)

    def values(path, s):
        x = rng.uniform(0.5, 1.5, s.shape) if path[-1].key == 'var' else rng.normal(size=s.shape)
        return jnp.asarray(x / 4, s.dtype)

    networks = jax.tree_util.tree_map_with_path(values, state.networks(method, ctx))
    memory = {}
    if method.init_memory(config):
        prototypes = np.arange(7 * 16, dtype=np.float32).reshape(7, 16)
        prototypes[2] = 0
        memory = {'prototypes': prototypes, 'seen': (prototypes != 0).any(1)}
    memory = jax.tree.map(jnp.asarray, memory)
    key = jax.random.key(0)
    return config, state.TrainState(jnp.int32(8), **networks, memory=memory, opt_state={}, key=key)


@pytest.fixture(scope='module')
def run(shallow, tmp_path_factory):
    """A folder as a CSS(mix) run leaves it, and its state."""
    workdir = tmp_path_factory.mktemp('runs') / 'source'
    config, ended = made(tiny.get_config())
    run_folder.claim(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(8, ended, {'split_hash': 'x'})
    checkpoints.close()
    return workdir, ended


@pytest.fixture(scope='module')
def reference(run, tmp_path_factory):
    """A checkpoint as the reference's program writes it, by its names, from several devices."""
    _, ended = run
    tree = {}
    for part, name in convert.REFERENCE.networks.items():
        network = getattr(ended, part)
        arrays = names.to_reference({'params': network.params, 'batch_stats': network.batch_stats})
        norms = [n.removesuffix('running_mean') for n in arrays if n.endswith('running_mean')]
        for i, norm in enumerate(norms):
            arrays[f'{norm}num_batches_tracked'] = np.asarray(np.int64(5 + i))
        tree[name] = {f'module.{k}': v for k, v in arrays.items()}
    tree['prototypes'] = np.asarray(ended.memory['prototypes'])
    path = tmp_path_factory.mktemp('reference') / 'reference.npz'
    weight_files.write(path, tree)
    return path


def assert_equal(a, b):
    a, b = state.flat(a), state.flat(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_a_checkpoint_of_unimatch_v2_goes_both_ways(tmp_path, caplog, monkeypatch):
    """A run to a checkpoint of its authors, and that to a run again; torch is not needed."""
    monkeypatch.setitem(dinov2.SIZES, 'dinov2_small', dinov2_small.SHALLOW)
    config = tiny.get_config('supervised')
    config.model.update(family='dpt', backbone='dinov2_small')
    for stream in config.data.streams.values():
        stream.crop = (28, 28)
    final, ended = made(config)
    workdir, target = tmp_path / 'source', tmp_path / 'v2.npz'
    run_folder.claim(final, workdir)
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        checkpoints.save(8, ended, {'split_hash': 'x'})
    convert.to_file(workdir, target)
    arrays = weight_files.read(target)
    assert {name.split('.')[0] for name in arrays} == {'model', 'model_ema'}
    assert 'model_ema.module.backbone.blocks.1.ls2.gamma' in arrays
    assert 'model.module.head.scratch.refinenet4.resConfUnit1.conv1.weight' in arrays
    # What their checkpoint has beside is left out.
    weight_files.write(tmp_path / 'more.npz', arrays | {'epoch': np.int64(3)})
    convert.to_run(config, tmp_path / 'more.npz', tmp_path / 'back')
    parts = ('student', 'teacher')
    back = checkpoint.restore_arrays(
        tmp_path / 'back', checkpoint.find(tmp_path / 'back', 'last'), parts
    )
    for part in parts:
        assert_equal(back[part], getattr(ended, part))
    student = {k: v for k, v in arrays.items() if k.startswith('model.')}
    weight_files.write(tmp_path / 'student.npz', student)
    with caplog.at_level(logging.INFO, 'css_jax'):
        convert.to_run(config, tmp_path / 'student.npz', tmp_path / 'alone')
    assert "no 'model_ema' in" in caplog.text
    run_folder.claim(final, tmp_path / 'untaught')
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / 'untaught')) as checkpoints:
        checkpoints.save(8, ended.replace(teacher=state.Variables({}, {})), {'split_hash': 'x'})
    alone = weight_files.read(convert.to_file(tmp_path / 'untaught', tmp_path / 'untaught.npz'))
    assert alone.keys() == student.keys()
    config.num_classes = 8
    message = r'model is of another network: params/head/head_logits/out/bias has \(7,\), expected'
    with pytest.raises(ValueError, match=message):
        convert.to_run(config, target, tmp_path / 'other')
    with pytest.raises(ValueError, match="model is not the reference's network: missing"):
        convert.to_run(tiny.get_config(), tmp_path / 'more.npz', tmp_path / 'other')


@pytest.mark.parametrize('ending', ['.npz', '.safetensors', '.pth'])
def test_a_run_comes_back_equal_to_the_bit(run, tmp_path, ending):
    pytest.importorskip({'.npz': 'numpy', '.safetensors': 'safetensors', '.pth': 'torch'}[ending])
    workdir, ended = run
    target = convert.to_file(workdir, tmp_path / f'out{ending}')
    convert.to_run(tiny.get_config(), target, tmp_path / 'back')
    step = checkpoint.find(tmp_path / 'back', 'last')
    back = checkpoint.restore_arrays(
        tmp_path / 'back', step, ('student', 'teacher', 'memory', 'step')
    )
    for part in ('student', 'teacher', 'memory'):
        assert_equal(back[part], getattr(ended, part))
    assert back['memory']['seen'].tolist() == [True, True, False, True, True, True, True]
    assert back['step'][''] == step >= 10_000  # the EMA counts as warm


def test_a_reference_checkpoint_comes_back_equal_to_the_bit(reference, tmp_path):
    convert.to_run(tiny.get_config(), reference, tmp_path / 'run')
    convert.to_file(tmp_path / 'run', tmp_path / 'back.npz')
    there = weight_files.read(reference)
    there = {name.replace('module.', ''): array for name, array in there.items()}
    back = weight_files.read(tmp_path / 'back.npz')
    assert back.keys() == there.keys()
    for name in there:
        np.testing.assert_array_equal(back[name], there[name], err_msg=name)
        assert back[name].dtype == there[name].dtype
    tracked = {name for name in back if name.endswith('num_batches_tracked')}
    # Every BatchNorm has its counter, so that torch's strict loading is content.
    assert {name.replace('num_batches_tracked', 'running_var') for name in tracked} == {
        name for name in back if name.endswith('running_var')
    }
    assert all(back[n].dtype == np.int64 and back[n].shape == () for n in tracked)


def test_a_converted_run_is_evaluated_and_started_from(reference, run, data_dir, tmp_path, capsys):
    config = tiny.get_config()
    config.data.dir = data_dir
    convert.to_run(config, reference, tmp_path / 'run')
    results = evaluate.evaluate(stored.read(tmp_path / 'run'), tmp_path / 'run')
    assert results['step'] == 10_000 and results['split_hash'] is None
    assert 'mIoU' in capsys.readouterr().out
    (every,) = evaluator.evaluators(configs.finalise(config)).values()
    expected = every(run[1].teacher)
    assert results['miou'] == expected['miou'] and results['loss'] == expected['loss']

    config.init_from = str(tmp_path / 'run')
    config = configs.finalise(config)
    given = initial.load(config, methods.METHODS[config.method], methods.context(config))
    assert_equal(given['memory'], run[1].memory)


def test_without_a_teacher_it_is_the_student(reference, tmp_path, caplog):
    arrays = {k: v for k, v in weight_files.read(reference).items() if k.startswith('model.')}
    weight_files.write(tmp_path / 'student.npz', arrays)
    config = tiny.get_config()
    with caplog.at_level(logging.INFO, 'css_jax'):
        convert.to_run(config, tmp_path / 'student.npz', tmp_path / 'run')
    assert "no 'ema_model'" in caplog.text and 'no prototypes in' in caplog.text
    step = checkpoint.find(tmp_path / 'run', 'last')
    back = checkpoint.restore_arrays(tmp_path / 'run', step, ('student', 'teacher', 'memory'))
    assert_equal(back['student'], back['teacher'])
    assert not back['memory']['seen'].any()


def to_run(tmp_path, source, **changes):
    config = tiny.get_config(changes.pop('method', 'css_mix'))
    config.update_from_flattened_dict(changes)
    try:
        return convert.to_run(config, source, tmp_path / 'run')
    finally:
        assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_classes': 9}, r'model is of another network: .*\(7,\), expected \(9,\).*Here: .*=9'),
        ({'method': 'supervised'}, r'.*head_representation.* is not here.*Here: method=supervised'),
        ({'model.backbone': 'resnet34'}, r'.*layer1_1.* is missing.*Here: .*resnet34'),
        ({'model.representation_dim': 8}, r'.*expected \(8,\).*representation_dim=8'),
    ],
)
def test_another_network_is_refused(reference, tmp_path, changes, message):
    with pytest.raises(ValueError, match=f'reference.npz: {message}'):
        to_run(tmp_path, reference, **changes)


def test_other_files_are_refused(reference, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'--source: .*no.npz is not there'):
        to_run(tmp_path, tmp_path / 'no.npz')
    weight_files.write(tmp_path / 'a.npz', {'conv1.weight': np.zeros(2)})
    with pytest.raises(ValueError, match=r"a.npz has no 'model'.*there are conv1.weight"):
        to_run(tmp_path, tmp_path / 'a.npz')
    weight_files.write(tmp_path / 'b.npz', {'model.conv1.weight': np.zeros(2)})
    with pytest.raises(ValueError, match=r"b.npz: model is not the reference's network: missing"):
        to_run(tmp_path, tmp_path / 'b.npz')
    arrays = weight_files.read(reference) | {'prototypes': np.zeros((7, 3))}
    weight_files.write(tmp_path / 'c.npz', arrays)
    with pytest.raises(ValueError, match=r'c.npz: prototypes have \(7, 3\), expected \(7, 16\)'):
        to_run(tmp_path, tmp_path / 'c.npz')


def test_nothing_is_overwritten(run, reference, tmp_path):
    workdir, _ = run
    (tmp_path / 'out.npz').write_text('mine')
    with pytest.raises(FileExistsError, match=r'--target: .*out.npz is there already'):
        convert.to_file(workdir, tmp_path / 'out.npz')
    assert (tmp_path / 'out.npz').read_text() == 'mine'
    with pytest.raises(FileExistsError, match=r'has files in it: expected a new or empty folder'):
        convert.to_run(tiny.get_config(), reference, workdir)
    with pytest.raises(ValueError, match=r"--target: got '.*out.txt', expected a file ending in"):
        convert.to_file(workdir, tmp_path / 'out.txt')
    with pytest.raises(FileNotFoundError, match=r'config.json is missing'):
        convert.to_file(tmp_path / 'nowhere', tmp_path / 'new.npz')


def test_a_network_without_names_in_the_reference_is_refused(tmp_path):
    config = tiny.get_config('supervised')
    config.model.backbone = 'mobilenet_v1'
    run_folder.claim(configs.finalise(config), tmp_path / 'run')
    arrays = {'backbone': {'block1': {'depthwise': {'kernel': jnp.zeros((3, 3, 1, 8))}}}}
    network = state.Variables(arrays, {})
    key = jax.random.key(0)
    ended = state.TrainState(jnp.int32(8), network, network, {}, {}, key)
    checkpoints = checkpoint.Checkpoints(tmp_path / 'run')
    checkpoints.save(8, ended, {'split_hash': 'x'})
    checkpoints.close()
    with pytest.raises(ValueError, match=r'no name in the reference for: .*backbone/block1'):
        convert.to_file(tmp_path / 'run', tmp_path / 'out.npz')
    assert not (tmp_path / 'out.npz').exists()
