"""Starting from a file of weights and from another run: what is taken, what is said, what not."""

import contextlib
import json
import logging
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from css_jax import config as configs
from css_jax import evaluate, methods, models, prepare, state, train
from css_jax.config import pixels
from css_jax.data import sources
from css_jax.models import layers
from css_jax.models.backbones import IMAGENET
from css_jax.modes import preview, sweep
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from css_jax.weights import files as weight_files
from css_jax.weights import initial, reference
from tests import tiny
from tests.small import small

pytestmark = pytest.mark.usefixtures('shallow')


def config_of(method='css_mix', **changes):
    c = tiny.get_config(method)
    for key, value in changes.items():
        c.update_from_flattened_dict({key.replace('__', '.'): value})
    return c


def context_of(config):
    config = configs.finalise(config)
    return config, methods.METHODS[config.method], methods.context(config)


def load(config):
    return initial.load(*context_of(config))


def created(config, given):
    config, method, ctx = context_of(config)
    return state.create(method, method.optimizer(config)[0], ctx, given)


@pytest.fixture(scope='module')
def source(shallow):
    """The tiny network's arrays, none of them as a fresh one has them, by the reference's names."""
    _, _, ctx = context_of(config_of())
    r = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: r.uniform(0.5, 1, s.shape).astype('f4'), state.shapes(ctx))
    return reference.to_reference(
        {'params': variables.params, 'batch_stats': variables.batch_stats}
    )


@pytest.fixture(scope='module')
def backbone_file(source, tmp_path_factory):
    """Its backbone by torchvision's names, with a classifier."""
    path = tmp_path_factory.mktemp('weights') / 'resnet18.npz'
    arrays = {k.removeprefix('resnet_'): v for k, v in source.items() if k.startswith('resnet_')}
    weight_files.write(path, arrays | {'fc.weight': np.ones((5, 64)), 'fc.bias': np.ones(5)})
    return path


def test_a_backbone_goes_into_student_and_teacher(source, backbone_file, caplog):
    config = config_of(model__pretrained=str(backbone_file))
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = load(config)
    count = sum(a.size for name, a in given['student'].items() if name.startswith('params/'))
    assert f'{backbone_file}: 60 arrays, {count:,} parameters' in caplog.text
    assert 'fresh: aspp, head_logits, head_representation, low_level_bn, low_l' in caplog.text
    assert 'not used: fc.weight, fc.bias' in caplog.text
    assert 'warning' not in caplog.text

    start, random = created(config, given), created(config_of(), {})
    expected = source['resnet_layer2.0.conv1.weight'].transpose(2, 3, 1, 0)
    for network in (start.student, start.teacher):
        backbone = network.params['backbone']
        np.testing.assert_array_equal(backbone['layer2_0']['conv1']['kernel'], expected)
        stats = network.batch_stats['backbone']['bn1']
        np.testing.assert_array_equal(stats['var'], source['resnet_bn1.running_var'])
    flat, flat_random = state.flat(start.student), state.flat(random.student)
    for path, leaf in flat.items():
        same = np.array_equal(leaf, flat_random[path])
        assert same == ('/backbone/' not in path), path
    # Nothing that a step gives away is there twice.
    pointers = [
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((start.student, start.teacher))
    ]
    assert len(set(pointers)) == len(pointers)


def test_a_reference_checkpoint_gives_its_teachers_backbone_alone(source, tmp_path, caplog):
    teacher = {name: array + 1 for name, array in source.items()}
    tree = {'model': source, 'ema_model': teacher, 'prototypes': np.ones((7, 16))}
    weight_files.write(tmp_path / 'reference.npz', tree)
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = load(config_of(model__pretrained=str(tmp_path / 'reference.npz')))
    assert 'found there as ema_model.resnet_*' in caplog.text
    assert list(given) == ['student'] and all('/backbone/' in path for path in given['student'])
    mean = given['student']['batch_stats/backbone/bn1/mean']
    np.testing.assert_array_equal(mean, teacher['resnet_bn1.running_mean'])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model__backbone': 'resnet34'}, r'backbone=resnet34.*missing: layer1.1.*another depth'),
        ({'model__stem': 'deep'}, r'stem=deep.*missing: conv1.0.weight.*another stem'),
        ({'model__width': 0.25}, r'width=0.25.*conv1.weight has \(7, 7, 3, 8\), expected .*width'),
        ({'model__backbone': 'mobilenet_v1'}, "no name ends in 'conv_dw_1/depthwise_kernel'"),
    ],
)
def test_a_file_of_another_network_is_refused(backbone_file, changes, message):
    with pytest.raises(ValueError, match=f'model.pretrained=.*{message}'):
        load(config_of(model__pretrained=str(backbone_file), **changes))


@pytest.mark.parametrize('number', [np.nan, np.inf])
def test_a_file_that_holds_nan_is_refused(number, backbone_file, tmp_path):
    with np.load(backbone_file) as file:
        arrays = {name: file[name].copy() for name in file.files}
    arrays['fc.bias'][0] = number  # not used, so that it does no harm
    weight_files.write(tmp_path / 'a.npz', arrays)
    load(config_of('supervised', model__pretrained=str(tmp_path / 'a.npz')))
    arrays['bn1.running_var'][3] = number
    weight_files.write(tmp_path / 'b.npz', arrays)
    with pytest.raises(
        ValueError,
        match=r'^model.pretrained=\S*b.npz: 1 arrays .*student/batch_stats/backbone/bn1/var',
    ):
        load(config_of('supervised', model__pretrained=str(tmp_path / 'b.npz')))


def test_a_run_that_holds_nan_is_read_with_a_warning_and_not_started_from(tmp_path, caplog):
    config = config_of('supervised')
    last = ended(config, tmp_path / 'run', bad='head_logits')
    with pytest.raises(
        ValueError, match=r'^init_from=\S*run: 2 arrays .*/head_logits/out/bias; exp'
    ):
        load(config_of('supervised', init_from=str(tmp_path / 'run')))
    caplog.clear()
    teacher = checkpoint.restore_network(tmp_path / 'run', 8, last.teacher)
    assert np.isnan(teacher.params['head_logits']['out']['bias'][0])
    (said,) = (r.getMessage() for r in caplog.records if r.name == 'css_jax')
    assert (
        'checkpoints/8: 1 arrays hold numbers that are not finite, such as teacher/params' in said
    )


def test_impossible_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'model.pretrained: .*no.npz is not there'):
        load(config_of(model__pretrained=str(tmp_path / 'no.npz')))
    frozen = FrozenConfigDict({'init_from': 'runs/a', 'model': {'pretrained': 'w.npz'}})
    with pytest.raises(ValueError, match=r'init_from=runs/a and model.pretrained=w.npz: expected'):
        initial.load(frozen, None, None)
    frozen = FrozenConfigDict({'init_from': str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r'init_from: .*config.json is missing'):
        pixels.normalisation(frozen)


@pytest.mark.parametrize(
    ('backbone', 'file', 'mean', 'std'),
    [
        ('resnet50', '', *IMAGENET),
        ('resnet50', 'gone.pth', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ('mobilenet_v1', '', *IMAGENET),
        ('mobilenet_v1', 'gone.npz', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_pixels_are_normalised_as_the_weights_expect(backbone, file, mean, std):
    config = {'init_from': '', 'model': {'backbone': backbone, 'pretrained': file}}
    assert pixels.normalisation(FrozenConfigDict(config)) == (mean, std)


def test_another_normalisation_is_warned_of(backbone_file, caplog):
    load(config_of(model__pretrained=str(backbone_file), data__mean=(0.5, 0.5, 0.5)))
    assert 'data.mean=(0.5, 0.5, 0.5)' in caplog.text
    assert 'these weights were trained with (0.485, 0.456, 0.406)' in caplog.text


def ended(config, workdir, bad=None):
    """Makes a folder as a run leaves it, every part of its state another; gives that state.

    The bias of the head `bad` holds NaN.
    """
    config, method, ctx = context_of(config)
    run_folder.claim(config, workdir)
    rng = np.random.default_rng(1)
    networks = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), state.networks(method, ctx)
    )
    if bad:
        for network in networks.values():
            bias = network.params[bad]['out']['bias']
            network.params[bad]['out']['bias'] = bias.at[0].set(jnp.nan)
    memory = {'prototypes': np.full((7, 16), 2.0, np.float32), 'seen': np.arange(7) < 5}
    memory = jax.tree.map(jnp.asarray, memory if method.init_memory(config) else {})
    key = jax.random.key(0)
    last = state.TrainState(jnp.int32(8), **networks, memory=memory, opt_state={}, key=key)
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        checkpoints.save(8, last, {'split_hash': 'x'})
    return last


@pytest.fixture(scope='module')
def run(shallow, tmp_path_factory):
    """The folder of a CSS(mix) run, and its last state."""
    workdir = tmp_path_factory.mktemp('runs') / 'source'
    return workdir, ended(config_of(), workdir)


def same(a, b):
    a, b = state.flat(a), state.flat(b)
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_a_run_starts_from_another(run, caplog):
    workdir, last = run
    with caplog.at_level(logging.INFO, 'css_jax'):
        config = config_of(init_from=str(workdir), seed=3)
        start = created(config, load(config))
    assert f'starting from {workdir}, step 8: student, teacher, memory' in caplog.text
    assert 'fresh' not in caplog.text
    assert int(start.step) == 0
    for part in ('student', 'teacher', 'memory'):
        assert same(getattr(start, part), getattr(last, part)), part
    assert not any(np.any(x) for x in jax.tree.leaves(start.opt_state) if x.ndim)


def test_heads_and_memory_that_the_source_lacks_are_fresh(run, tmp_path, caplog):
    workdir, last = run
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = load(config_of('supervised', init_from=str(workdir)))
    assert not any('head_representation' in path for path in given['student'])
    assert list(given) == ['student', 'teacher'] and 'fresh' not in caplog.text

    ended(config_of('supervised'), tmp_path / 'sup')
    caplog.clear()
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = load(config_of(init_from=str(tmp_path / 'sup')))
    assert 'fresh: head_representation, memory' in caplog.text
    fresh = state.flat(last.student).keys() - given['student'].keys()
    assert fresh and all('/head_representation/' in path for path in fresh)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model__width': 0.25}, r'of another network.*model.width=0.125.*model.width=0.25'),
        ({'model__backbone': 'resnet34'}, r'is missing.*There: .*resnet18.*Here: .*resnet34'),
        ({'data__mean': (0.5, 0.5, 0.5)}, r'was trained with data.mean=\(0.485, .*got \(0.5, '),
    ],
)
def test_a_run_of_another_network_is_refused(run, changes, message):
    with pytest.raises(ValueError, match=f'init_from=.*{message}'):
        load(config_of(init_from=str(run[0]), **changes))


def test_layers_of_classes_with_other_names_are_fresh_and_so_are_prototypes(
    run, caplog, monkeypatch
):
    workdir, last = run
    names = sources.class_names
    # The dataset of the run here has as many classes as that there, two of them in another order.
    there = run_folder.load(workdir).data.streams.labelled.dataset
    swapped = [names(there)[i] for i in (0, 2, 1, 3, 4, 5, 6)]
    monkeypatch.setattr(
        sources, 'class_names', lambda name, at='': swapped if '64' in name else names(name, at)
    )
    changes = {
        f'data__streams__{name}__dataset': 'shapes/64' for name in ('labelled', 'unlabelled')
    }
    config = config_of(init_from=str(workdir), eval__dataset='shapes/64', **changes)
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = load(config)
    line = "or other classes (class 1 is 'disc' there, 'square' here), so fresh: head_logits/out"
    assert line in caplog.text
    fresh = state.flat(last.student).keys() - given['student'].keys()
    assert fresh == {'params/head_logits/out/kernel', 'params/head_logits/out/bias'}
    assert list(given) == ['student', 'teacher']


def test_prototypes_of_another_representation_are_fresh(run, caplog):
    with caplog.at_level(logging.INFO, 'css_jax'):
        given = load(config_of(init_from=str(run[0]), model__head_convs=2))
    assert 'memory' not in given and 'head_representation/' in caplog.text


def test_class_layers_of_another_task_are_fresh_and_named(run, caplog):
    workdir, last = run
    with caplog.at_level(logging.INFO, 'css_jax'):
        config = config_of(init_from=str(workdir), num_classes=9, seed=3)
        given = load(config)
        start = created(config, given)
    assert 'another shape, so fresh: head_logits/out, memory' in caplog.text
    theirs = state.flat(last.student)
    for part in ('student', 'teacher'):
        fresh = theirs.keys() - given[part].keys()
        assert fresh == {'params/head_logits/out/kernel', 'params/head_logits/out/bias'}
    ours, followed = state.flat(start.student), state.flat(start.teacher)
    assert ours['params/head_logits/out/bias'].shape == (9,)
    # What the teacher lacks is the student's, as in any first state.
    kernel = 'params/head_logits/out/kernel'
    np.testing.assert_array_equal(ours[kernel], followed[kernel])
    assert not start.memory['seen'].any()


def test_its_pixels_are_normalised_as_the_source_runs(run, tmp_path):
    shutil.copytree(run[0], tmp_path / 'run')
    file = tmp_path / 'run' / 'config.json'
    values = json.loads(file.read_text())
    values['data']['mean'] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(values))
    config = configs.default()
    config.init_from = str(tmp_path / 'run')
    assert pixels.normalisation(config) == ((0.1, 0.2, 0.3), IMAGENET.std)

    # A run that has started from it knows them itself.
    begun = config_of(init_from=config.init_from)
    run_folder.claim(configs.finalise(begun), tmp_path / 'begun')
    shutil.rmtree(tmp_path / 'run')
    assert configs.finalise(begun, tmp_path / 'begun').data.mean == (0.1, 0.2, 0.3)
    begun.init_from += '/another'
    for workdir in (tmp_path / 'begun', tmp_path / 'new', None):
        with pytest.raises(FileNotFoundError, match=r'init_from: .*config.json is missing'):
            configs.finalise(begun, workdir)


class Short(nn.Module):
    """Heads on a backbone, without a decoder."""

    backbone: nn.Module
    outputs: tuple

    @nn.compact
    def __call__(self, x, train=False):
        x = self.backbone(x, train)['last']
        return {name: layers.Conv(channels, 1, name=name)(x) for name, channels in self.outputs}


def short(config, num_classes, outputs, axis_name):
    backbone = models.BACKBONES[config.backbone](config, axis_name)
    return Short(backbone, tuple(outputs.items()))


def test_training_needs_the_file_only_to_start(backbone_file, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(models, 'build', short)
    file, workdir = tmp_path / 'weights.npz', tmp_path / 'run'
    shutil.copy(backbone_file, file)
    config = config_of('supervised', steps=2, model__pretrained=str(file), data__dir=data_dir)
    wrong = config.copy_and_resolve_references()
    wrong.model.stem = 'deep'
    with pytest.raises(ValueError, match='another stem'):
        train.train(wrong, workdir)
    assert not workdir.exists()  # refused before anything is written

    train.train(config, workdir)
    arrays = checkpoint.restore_arrays(workdir, 2, ('student', 'step'))
    file.unlink()
    assert prepare.prepare(config, workdir).given == {}
    with np.load(backbone_file) as weights_file:
        start = weights_file['conv1.weight'].transpose(2, 3, 1, 0)
    moved = arrays['student']['params/backbone/conv1/kernel'] - start
    assert 0 < np.abs(moved).max() < 0.1  # two steps from the file's values, 0.5 to 1


def test_training_needs_the_source_run_only_to_start(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    source, workdir = tmp_path / 'source', tmp_path / 'run'
    ended(config_of(), source)
    config = config_of('supervised', steps=2, init_from=str(source), data__dir=data_dir)
    results = train.train(config, workdir)
    shutil.rmtree(source)
    assert train.train(config, workdir) == results
    assert evaluate.evaluate(config, workdir)['miou'] == results['miou']
    with pytest.raises(FileNotFoundError, match=r'init_from: .*config.json is missing'):
        train.train(config, tmp_path / 'new')


def test_a_sweep_needs_the_source_run_only_to_start(run, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(run[0], source)

    def plan():
        changes = {'init_from': str(source)}
        config, folder = 'configs/quickstart.py', tmp_path / 'sweep'
        return sweep.plan(folder, '1', config=config, seeds=(0,), labels=(), changes=changes)

    begun = plan()
    for one in begun:
        run_folder.claim(one.config, one.folder)
    shutil.rmtree(source)
    assert plan() == begun


def test_a_preview_shows_the_weights_that_a_run_would_start_with(
    backbone_file, data_dir, tmp_path, monkeypatch
):
    class Created(Exception):
        pass

    def create(method, optimizer, ctx, given=None):
        raise Created(given)

    monkeypatch.setattr(preview.state, 'create', create)
    monkeypatch.setattr(preview, 'check', lambda *_: None)  # the step, which is not run here
    config = config_of(data__dir=data_dir, model__pretrained=str(backbone_file))
    with pytest.raises(Created) as created:
        preview.preview(config, tmp_path / 'new')
    given = created.value.args[0]['student']
    with np.load(backbone_file) as file:
        np.testing.assert_array_equal(
            given['params/backbone/conv1/kernel'], file['conv1.weight'].transpose(2, 3, 1, 0)
        )

    config.model.pretrained = str(tmp_path / 'gone.npz')
    with pytest.raises(FileNotFoundError, match=r'model.pretrained: .*gone.npz is not there'):
        preview.preview(config, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    run_folder.claim(configs.finalise(config), tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '8').mkdir(parents=True)
    with pytest.raises(Created) as created:  # restored, so the file is not needed
        preview.preview(config, tmp_path / 'run')
    assert created.value.args == (None,)
