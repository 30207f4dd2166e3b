"""The rules of the house: who may import and name what, and methods that are nothing like CSS."""

import ast
import pathlib
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, monitor, parallel, train
from css_jax.data import sources
from css_jax.methods import views
from css_jax.ops.losses import Term
from css_jax.state import Variables
from tests import tiny
from tests.conftest import ROOT

PACKAGE = ROOT / 'css_jax'
FILES = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob('*.py')}


def imports(path):
    """Dotted names of all that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def words(path):
    """Names, attributes and whole strings of a file's code."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize('name', [n for n in sorted(FILES) if n.startswith('ops/')])
def test_ops_import_only_arrays_and_ops(name):
    standard = {'math', 'zlib', 'collections', 'dataclasses', 'functools', 'typing'}
    for module in imports(FILES[name]):
        top = module.split('.')[0]
        assert top in {'jax', 'numpy', *standard} or module.startswith('css_jax.ops'), module


@pytest.mark.parametrize('name', [n for n in sorted(FILES) if not n.startswith('parallel/')])
def test_only_parallel_knows_devices(name):
    assert not any('multihost_utils' in module for module in imports(FILES[name]))
    collectives = {'psum', 'pmean', 'all_gather', 'ppermute', 'axis_index', 'pcast', 'axis_size'}
    own = {'psum', 'gather', 'rank', 'varying', 'next_example'}  # the helpers of parallel/
    tree = ast.parse(FILES[name].read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id == 'parallel')
    }
    allowed = {'pmean', 'axis_size'} if name == 'models/layers.py' else set()  # BatchNorm
    assert not used & ((collectives | own | {'pmap', 'shard_map', 'Mesh'}) - allowed - {'rank'})
    assert name.startswith('ops/') or 'jit' not in used


@pytest.mark.parametrize('name', sorted(set(FILES) - {'checkpoint.py'}))
def test_only_checkpoint_knows_orbax(name):
    assert not any(module.startswith('orbax') for module in imports(FILES[name]))


@pytest.mark.parametrize('name', ['step.py', 'train.py', 'state.py'])
def test_the_loop_names_no_method_dataset_head_or_stream(name):
    heads = {'logits', 'representation', 'prototypes', 'labelled', 'unlabelled', 'contrastive'}
    assert not words(FILES[name]) & {*methods.METHODS, *sources.DATASETS, *heads}


def test_no_tensorflow():
    for path in [*FILES.values(), *(ROOT / 'data_prep').rglob('*.py')]:
        assert not any(m.split('.')[0] in ('tensorflow', 'torch') for m in imports(path)), path


# Methods that are nothing like CSS, to hold the seam between step and method open.


class Patches(nn.Module):
    """A backbone of stride 14 without BatchNorm, as a vision transformer's patches are."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (14, 14), (14, 14))(x))
        return x, nn.Conv(8, (1, 1))(x)


def without_teacher():
    """Trains the student; what would be the teacher is not there."""

    def outputs(config):
        return {'scores': config.num_classes}

    def init_teacher(student, ctx):
        return Variables({}, {})

    def update_teacher(state, student, teacher_stats, ctx):
        return state.teacher

    def targets(state, batch, keys, ctx):
        images, labels = views.labelled(batch['labelled'], keys, ctx)
        return {'images': images, 'labels': labels}, {}

    def loss(params, state, prepared, keys, ctx):
        out, stats = ctx.train(Variables(params, state.student.batch_stats), prepared['images'])
        term = Term(*views.supervised_loss(out['scores'], prepared['labels'], ctx))
        return {'scores': term}, (stats, {}, {})

    return types.SimpleNamespace(STREAMS={'labelled': True}, **locals())


def two_datasets():
    """Two label sets of 3 and 5 classes on one encoder."""
    heads = {'first': 3, 'second': 5}

    def outputs(config):
        return {f'logits_{name}': count for name, count in heads.items()}

    def targets(state, batch, keys, ctx):
        prepared = {}
        for name, count in heads.items():
            labels = views.host_labels(batch[name]['label'])
            labels = jnp.where(labels >= count, -1, labels)
            prepared[name] = (views.normalise(batch[name]['image'], ctx), labels)
        return prepared, state.teacher.batch_stats

    def loss(params, state, prepared, keys, ctx):
        stats, terms = state.student.batch_stats, {}
        for name, (images, labels) in prepared.items():
            out, stats = ctx.train(Variables(params, stats), images)
            terms[name] = Term(*views.supervised_loss(out[f'logits_{name}'], labels, ctx))
        return terms, (stats, {}, {})

    return types.SimpleNamespace(STREAMS={'first': True, 'second': True}, **locals())


def queue():
    """Keeps the last image means in memory, and pulls the batch's towards them."""

    def outputs(config):
        return {'embedding': 4}

    def init_memory(config):
        return {'queue': jnp.zeros((6, 4))}

    def targets(state, batch, keys, ctx):
        prepared = {'images': views.normalise(batch['unlabelled']['image'], ctx)}
        return prepared, state.teacher.batch_stats

    def loss(params, state, prepared, keys, ctx):
        out, stats = ctx.train(Variables(params, state.student.batch_stats), prepared['images'])
        means = out['embedding'].mean((1, 2))
        distance = jnp.square(means[:, None] - state.memory['queue']).sum(-1)
        return {'pull': Term(distance.sum(), distance.size)}, (stats, means, {})

    def update_memory(memory, statistics, ctx):
        every = parallel.gather(statistics, ctx.axis).reshape(-1, 4)
        return {'queue': jnp.concatenate([every, memory['queue']])[:6]}

    return types.SimpleNamespace(STREAMS={'unlabelled': False}, **locals())


TOYS = {'without_teacher': without_teacher, 'two_datasets': two_datasets, 'queue': queue}


@pytest.mark.parametrize('name', TOYS)
def test_a_method_nothing_like_css_trains(name, monkeypatch, data_dir, tmp_path):
    monkeypatch.setitem(methods.METHODS, name, TOYS[name]())
    monkeypatch.setitem(models.BACKBONES, 'patches', lambda config, axis_name: Patches())
    monkeypatch.setattr(train.evaluate, 'Evaluator', NoEvaluation)
    monkeypatch.setattr(train.evaluate, 'report', lambda *args: {'miou': 0.0})
    config = tiny.get_config()
    config.method = name
    config.data.dir = data_dir
    config.steps = 2
    config.model.backbone = 'patches'
    common = {'count': 4, 'batch_size': 2, 'crop': (28, 42)}
    config.data.streams.first = configs.stream('shapes', **common)
    config.data.streams.second = configs.stream('shapes', **common, subset_seed=1)
    train.train(config, tmp_path)
    records = monitor.read(tmp_path)
    assert [r['step'] for r in records] == [1, 2]
    assert all(np.isfinite(r['loss']) and r['gradient_norm'] > 0 for r in records)


class NoEvaluation:
    """Stands for the evaluation, which asks for a teacher with one 'logits' head."""

    name = 'nothing'

    def __init__(self, config):
        del config

    def __call__(self, variables, broken_off):
        return {'miou': 0.0}


def test_paths_are_the_house_s():
    assert {'main.py', 'config.py', 'train.py', 'step.py', 'state.py', 'optimizer.py'} <= set(FILES)
    assert not list(pathlib.Path(PACKAGE).rglob('utils.py'))
