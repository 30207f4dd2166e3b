"""USSS held to its authors' training loop; its plan, streams, embeddings, and what is refused."""

import functools
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import quickstart
from configs import usss as file
from css_jax import config as configs
from css_jax import methods, models, parallel, state, step
from css_jax.methods import METHODS, usss, usss_rows
from css_jax.models.layers import BatchNorm, Conv
from css_jax.modes import embeddings as mode
from css_jax.modes import stages
from css_jax.run import checkpoint
from css_jax.state import Context, TrainState, Variables
from css_jax.weights import drn, initial
from data_prep import records
from data_prep.figures import builder as figures
from data_prep.shapes import builder as shapes
from tests.small import stored

GOLDEN = np.load(Path(__file__).parent / 'fixtures' / 'usss_loop.npz')
SHAPES = {
    name: tuple(map(int, shape.strip('()').replace(',', ' ').split()))
    for name, shape in zip(GOLDEN['names'], GOLDEN['shapes'], strict=True)
}


def close(ours, theirs, tolerance):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= tolerance * np.max(np.abs(theirs))


def loop_config():
    """That of the authors' loop: two epochs of one step, batches of 2."""
    batches = {'labelled_a': 2, 'unlabelled_a': 6, 'labelled_b': 2, 'unlabelled_b': 4}
    return ConfigDict(
        {
            'steps': 2,
            'accumulate_steps': 1,
            'usss': {'steps_per_epoch': 1, 'cross_weight': 1.0, 'within_weight': 1.0},
            'optimizer': {
                'learning_rate': 0.001,
                'power': 0.9,
                'floor': 0.0,
                'warmup_steps': 0,
                'momentum': 0.9,
                'nesterov': False,
                'weight_decay': 1e-4,
            },
            'data': {
                'mean': (0.0, 0.0, 0.0),
                'std': (1.0, 1.0, 1.0),
                'streams': {name: {'batch_size': size} for name, size in batches.items()},
            },
        }
    )


def loop_batch(iteration):
    batch = {}
    for name, letter in (('A', 'a'), ('B', 'b')):
        order = GOLDEN[f'order_labelled_{name}'].reshape(2, -1)[iteration]
        labels = GOLDEN[f'labels_{name}'][order].astype(np.uint8)
        void = len(GOLDEN[f'embeddings_{name}']) - 1
        batch[f'labelled_{letter}'] = {
            'image': GOLDEN[f'images_{name}'][order],
            'label': np.where(labels == void, 255, labels).astype(np.uint8),
        }
        order = GOLDEN[f'order_unlabelled_{name}'].reshape(2, -1)[iteration]
        batch[f'unlabelled_{letter}'] = {'image': GOLDEN[f'unlabelled_{name}'][order]}
    return batch


def unrolled(function, carry, arrays):
    """Stands for `lax.scan`: unoptimised, as tests compile, a loop's convolutions take minutes."""
    results = []
    for i in range(len(arrays)):
        carry, result = function(carry, arrays[i])
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def test_two_iterations_are_the_authors(monkeypatch):
    monkeypatch.setattr(jax.lax, 'scan', unrolled)
    network = {
        'family': 'fcn', 'backbone': 'drn_d_22', 'stem': 'conv7', 'output_stride': 8,
        'width': 1.0, 'dtype': 'float32',
    }  # fmt: skip
    outputs = {'logits_a': 6, 'logits_b': 4, 'embedding': 10}
    config = loop_config()
    ctx = Context(models.build(network, outputs=outputs), config)
    start = {name: stored(name, shape) for name, shape in SHAPES.items() if shape}
    first = drn.from_torch(start)
    student = jax.tree.map(jnp.asarray, Variables(first['params'], first['batch_stats']))
    optimizer, rates = METHODS['usss_full'].optimizer(config)
    memory = {
        letter: {
            'rows': jnp.asarray(GOLDEN[f'embeddings_{name}']),
            'valid': jnp.ones(len(GOLDEN[f'embeddings_{name}']) - 1, bool),
        }
        for name, letter in (('A', 'a'), ('B', 'b'))
    }
    current = TrainState(
        step=jnp.int32(0),
        student=student,
        teacher=Variables({}, {}),
        memory=memory,
        opt_state=optimizer.init(student.params),
        key=jax.random.key(0),
    )
    method = METHODS['usss_full']
    one = jax.jit(functools.partial(step.train_step, method=method, optimizer=optimizer, ctx=ctx))
    losses = GOLDEN['losses'].reshape(2, 7)
    for i in range(2):
        np.testing.assert_allclose(rates['learning_rate'](i), GOLDEN['learning_rates'][i], 1e-5)
        with jax.default_matmul_precision('highest'):
            current, metrics = one(current, loop_batch(i))
        theirs = losses[i]
        close(metrics['loss_supervised_a'], theirs[0], 1e-3)
        close(metrics['loss_cross_a'] + metrics['loss_within_a'], theirs[1:4].sum(), 1e-3)
        close(metrics['loss_supervised_b'], theirs[4], 1e-3)
        close(metrics['loss_cross_b'] + metrics['loss_within_b'], theirs[5:].sum(), 1e-3)
        close(metrics['loss'], theirs.sum(), 1e-3)
    before, after = state.flat(student), state.flat(current.student)
    named = drn.from_torch({n: np.full(s, k, np.float32) for k, (n, s) in enumerate(SHAPES.items())
                            if s})  # fmt: skip
    places = {k: int(v.flat[0]) for k, v in state.flat(named).items()}
    assert len(places) > 100
    for path, k in places.items():
        change = np.linalg.norm(np.asarray(after[path]) - np.asarray(before[path]))
        np.testing.assert_allclose(change, GOLDEN['change_norms'][k], rtol=3e-2, err_msg=path)
    bias = 'params/head_logits_a/bias'
    close(after[bias], GOLDEN['after/seg.0.bias'], 1e-3)
    mean = 'batch_stats/backbone/level8/bn/mean'
    close(after[mean], GOLDEN['after/base.8.1.running_mean'], 1e-3)


# Section 5's table: labelled of each -> steps of an epoch, unlabelled batches of each dataset.
UNLABELLED = {'cityscapes': 2975, 'camvid': 367, 'idd': 4000, 'sun': 5285}
PLANS = {
    50: (7, [53, 6, 71, 94]), 100: (13, [28, 3, 38, 50]), 300: (38, [9, 1, 13, 17]),
    375: (47, [7, 0, 10, 14]), 1500: (188, [1, 0, 2, 3]),
}  # fmt: skip


@pytest.mark.parametrize('labelled', PLANS)
def test_an_epoch_is_planned_as_the_authors(labelled):
    steps, batches = usss.plan(dict.fromkeys(UNLABELLED, labelled), UNLABELLED, 8)
    assert (steps, list(batches.values())) == PLANS[labelled]


def tiny(argument='quickstart', data_dir='', **changes):
    config = file.get_config(argument)
    for stream in config.data.streams.values():
        stream.update(crop=(32, 32), batch_size=4)
        stream.count, stream.min_per_class = min(stream.count, 4), 0
    config.model.update(width=0.125)
    config.update_from_flattened_dict(
        {'data.dir': data_dir, 'usss.embedding_dim': 6, 'usss.centroids': 2, 'usss.epochs': 4,
         'eval.batch_size': 4, 'optimizer.learning_rate': 0.01, 'log_every': 1,
         'checkpoint_every': 100}
    )  # fmt: skip
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def two_steps(mode, devices, passes=2):
    """State and metrics after two steps of a small network."""
    config = tiny()
    for name, stream in config.data.streams.items():
        stream.batch_size = 4 * (passes if name.startswith('unlabelled') else 1)
    config = configs.finalise(config)
    method, layout = METHODS[config.method], parallel.Layout(mode, jax.devices()[:devices])
    tx, _ = method.optimizer(config)
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', fcn_of_one_convolution)
        current = state.create(method, tx, methods.context(config), {}, layout.replicated)
        ctx = methods.context(config, parallel.AXIS)
        one = functools.partial(step.train_step, method=method, optimizer=tx, ctx=ctx)
        program = None
        for _ in range(2):
            batch = {}
            for name, stream in config.data.streams.items():
                shape = stream.batch_size, *stream.crop
                batch[name] = {'image': rng.integers(0, 256, (*shape, 3), np.uint8)}
                if name.startswith('labelled'):
                    batch[name]['label'] = rng.integers(0, 6, shape).astype(np.uint8)
            batch = layout.place(batch)
            program = program or layout.compile_step(one, current, batch)
            current, metrics = program(current, batch)
    return jax.device_get((current.replace(key=None), metrics))


class Eighth(nn.Module):
    """Stands for FCN: one convolution of stride 8, and its heads."""

    outputs: tuple
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train=False, image_weights=None):
        x = nn.relu(BatchNorm(self.axis_name)(Conv(8, 9, 8)(x), train))
        self.sow('intermediates', 'features', x)
        return {
            name: Conv(count, 1, use_bias=True, name=f'head_{name}')(x)
            for name, count in self.outputs
        }


def fcn_of_one_convolution(config, num_classes, outputs, axis_name):
    return Eighth(tuple(outputs.items()), axis_name)


def test_two_devices_and_both_modes_leave_the_state_of_one():
    # The micro-batches of two devices are other images than those of one, so that BatchNorm sees
    # others; with one unlabelled batch a step they are the same.
    single, expected = two_steps('jit', 1, passes=1)
    for compiled in ('jit', 'pmap'):
        double, found = two_steps(compiled, 2, passes=1)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, err_msg=name)
        ours, theirs = state.flat(double), state.flat(single)
        for path in theirs:
            np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_the_methods_are_points_of_one_loss():
    weights = {}
    for name in ('usss_basic', 'usss_cross', 'usss_full'):
        config = configs.finalise(tiny(f'quickstart,{name}'))
        ctx = Context(None, config)
        weights[name] = METHODS[name].weights(None, ctx)
        assert ('unlabelled_a' in config.data.streams) == (name != 'usss_basic')
    assert weights['usss_basic'] == {}
    assert set(weights['usss_cross'].values()) == {0.0, 1.0}
    assert weights['usss_cross']['cross_a'] == 1.0 and weights['usss_cross']['within_b'] == 0.0
    assert set(weights['usss_full'].values()) == {1.0}


@pytest.mark.parametrize(
    ('argument', 'changes', 'message'),
    [
        ('shapes', {}, r'got labelled images of shapes, expected two or more \(usss_single'),
        ('quickstart,usss_single', {}, 'got labelled images of shapes, figures, expected one'),
        ('quickstart', {'data__streams__labelled_b__dataset': 'shapes'}, 'each once'),
        ('quickstart', {'data__streams__unlabelled_b__dataset': 'shapes'}, "'figures' as of lab"),
        ('quickstart', {'data__streams__labelled_a__crop': (36, 32)}, 'multiples of 8'),
        ('quickstart', {'data__streams__unlabelled_a__batch_size': 6}, 'a multiple of 4'),
        ('quickstart', {'accumulate_steps': 2}, 'expected 1: every'),
        ('quickstart', {'eval.dataset': 'voc'}, "eval.dataset: got 'voc', expected one of shapes"),
    ],
)
def test_streams_that_do_not_go_together_are_refused(argument, changes, message):
    with pytest.raises(ValueError, match=message):
        configs.finalise(tiny(argument, **changes))


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('shapes+shapes', 'each dataset once'),
        ('shapes+figurs', r"got 'figurs', expected cityscapes"),
    ],
)
def test_arguments_that_are_no_datasets_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        file.get_config(argument)


def test_a_dataset_without_a_full_batch_a_step_has_no_entropy_term(caplog):
    config = file.get_config('cityscapes+camvid,375')
    assert 'camvid has no entropy term: its 367 unlabelled images are 45' in caplog.text
    assert config.data.streams.unlabelled_a.batch_size == 56
    assert 'unlabelled_b' not in config.data.streams
    found = configs.finalise(config)
    (odd, _) = METHODS['usss_full'].warnings(found, {'labelled_b': 367})
    assert odd.startswith('dataset camvid has no stream unlabelled_b')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder with a few images of both drawn datasets."""
    folder = tmp_path_factory.mktemp('pair')
    for module in (shapes, figures):
        splits = {'train': 12, 'val': 4}
        records.prepare(module.Builder(data_dir=folder, splits=splits, config='64'))
    return str(folder)


@pytest.fixture(scope='module')
def staged(prepared, tmp_path_factory):
    """The folder of a whole `--mode stages`, its results, and those of the command once more.

    The second time by another path: what is there is found, and not trained again.
    """
    folder = tmp_path_factory.mktemp('stages') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', fcn_of_one_convolution)
        results = stages.stages(tiny(data_dir=prepared), folder)
        patch.chdir(folder.parent)
        again = stages.stages(tiny(data_dir=prepared), folder.name)
    return folder, results, again


def test_the_stages_train_embed_and_train(staged):
    folder, results, again = staged
    assert results == again and set(results['evaluations']) == {'shapes', 'figures'}
    shown = [part['miou'] for part in results['evaluations'].values()]
    np.testing.assert_allclose(results['miou'], np.mean(shown))
    arrays = np.load(folder / 'embeddings.npz')
    assert arrays['a/rows'].shape == (2 * 7 + 1, 6) and arrays['b/rows'].shape == (2 * 6 + 1, 6)
    assert not arrays['a/rows'][-1].any()
    assert list(arrays['b/names'])[1] == 'circle' and str(arrays['a/dataset']) == 'shapes'
    assert (folder / 'embeddings.png').stat().st_size > 1000
    step_of = checkpoint.find(folder / 'stage2', 'last')
    memory = checkpoint.restore_arrays(folder / 'stage2', step_of, ['memory'])['memory']
    np.testing.assert_array_equal(memory['a/rows'], arrays['a/rows'])  # fixed, and stored


def test_embeddings_are_made_alike_again(staged, prepared, tmp_path):
    folder, *_ = staged
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', fcn_of_one_convolution)
        config = tiny('quickstart,usss_basic', data_dir=prepared)
        made = mode.make(config, folder / 'stage1', tmp_path / 'again.npz')
        first, second = np.load(folder / 'embeddings.npz'), np.load(made)
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        with pytest.raises(FileExistsError, match='there already'):
            mode.make(config, folder / 'stage1', made)
        with pytest.raises(ValueError, match='is a run of supervised, expected one of usss_basic'):
            other = quickstart.get_config('supervised')
            mode.make(other, folder / 'stage1', tmp_path / 'other.npz')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data__streams__unlabelled_a__batch_size': 6}, 'got 6, expected a multiple of 4'),
        ({'usss__embedding_dim': 9}, 'got 9, expected at most the 8 channels'),
        ({'usss__embeddings': 'x.npz'}, 'expected nothing with --mode stages'),
    ],
)
def test_what_the_second_stage_cannot_do_is_known_before_the_first(
    prepared, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(models, 'build', fcn_of_one_convolution)
    with pytest.raises(ValueError, match=message):
        stages.stages(tiny(data_dir=prepared, **changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_file_for_another_network_is_refused(prepared, monkeypatch):
    monkeypatch.setattr(models, 'build', fcn_of_one_convolution)
    config = configs.finalise(tiny(data_dir=prepared))
    wrong = {'student': {'params/head_embedding/kernel': np.zeros((1, 1, 9, 6))}}
    method = METHODS['usss_full']._replace(given=lambda config, read: wrong)
    with pytest.raises(ValueError, match=r'kernel: got \(1, 1, 9, 6\), expected \(1, 1, 8, 6\)'):
        initial.load(config, method, methods.context(config))


NAMES = {'a': ('one', 'two'), 'b': ('three',)}


def rows_file(**changes):
    arrays = {
        'a/rows': np.ones((5, 3), np.float32), 'a/names': np.array(NAMES['a']),
        'b/rows': np.ones((3, 3), np.float32), 'b/names': np.array(NAMES['b']),
    }  # fmt: skip
    return {k: v for k, v in (arrays | changes).items() if v is not None}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'b/rows': None}, 'there is no b/rows; it has a/names'),
        (
            {'a/names': np.array(['one', 'other'])},
            'a has the classes one, other; expected one, two',
        ),
        ({'a/rows': np.ones((5, 4))}, r'a/rows is \(5, 4\), expected \(5, 3\)'),
        ({'a/rows': np.ones((4, 3))}, r'a/rows is \(4, 3\), expected \(5, 3\)'),
        ({'a/rows': np.full((5, 3), np.nan)}, 'not finite'),
        ({'a/rows': np.full((5, 3), 1e300)}, 'not finite'),
        ({'a/rows': np.ones((5, 3), complex)}, 'of type complex128, expected float32'),
        ({'a/valid': np.zeros(4, bool)}, 'none that is valid'),
    ],
)
def test_label_embeddings_that_do_not_fit_are_refused(changes, message):
    config = ConfigDict(
        {'embeddings': 'x.npz', 'centroids': 2, 'embedding_dim': 3, 'projection_init': 'random'}
    )
    assert set(usss_rows.checked(rows_file(), NAMES, config).sets) == {'a', 'b'}
    with pytest.raises(ValueError, match=message):
        usss_rows.checked(rows_file(**changes), NAMES, config)


def test_the_projection_can_start_where_the_rows_are():
    config = configs.finalise(tiny(usss__projection_init='pca', usss__embeddings='x.npz'))
    rng = np.random.default_rng(0)
    mean, components = rng.normal(size=8), rng.normal(size=(8, 6))
    arrays = {'mean': mean, 'components': components}
    arrays |= {'a/rows': np.ones((15, 6)), 'b/rows': np.ones((13, 6))}
    found = usss.given(config, lambda path, key: arrays)
    features = rng.normal(size=(5, 8))
    kernel, bias = (found['student'][f'params/head_embedding/{x}'] for x in ('kernel', 'bias'))
    np.testing.assert_allclose(features @ kernel[0, 0] + bias, (features - mean) @ components, 1e-5)
    with pytest.raises(ValueError, match=r'mean is \(7,\) and components \(8, 6\), expected'):
        usss.given(config, lambda path, key: arrays | {'mean': mean[:7]})
    with pytest.raises(ValueError, match='no mean and components'):
        usss.given(config, lambda path, key: {k: v for k, v in arrays.items() if '/' in k})


def test_void_is_masked_or_a_miss():
    images = jnp.zeros((1, 8, 16, 3))
    logits = jnp.stack([jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 2)), 2 * jnp.ones((1, 1, 2))], -1)
    ctx = SimpleNamespace(evaluate=lambda *_: {'logits_a': logits})
    ours = usss.predict('a', False, None, images, ctx)
    theirs = usss.predict('a', True, None, images, ctx)
    assert ours.shape == (1, 8, 16, 2) and theirs.shape == (1, 8, 16, 3)
    assert (ours.argmax(-1) == 1).all() and (theirs.argmax(-1) == 2).all()
    for how, classes in (('ours', 7), ('authors', 8)):
        config = configs.finalise(tiny(eval__scores=how))
        one = METHODS['usss_full'].evaluations(config)['shapes']
        assert one.classes == classes
        matrix = np.zeros((classes, classes), int)
        matrix[0, 0], matrix[1, -1] = 3, 1  # of class 1, a pixel called the last one
        found = one.scores(matrix)
        assert len(found['iou']) == 7
        # Ours: classes 0, 1 and 6, the last one, are true or predicted.
        np.testing.assert_allclose(found['miou'], 1 / 3 if how == 'ours' else 1 / 7)
