"""iMAS held to three whole iterations of its authors' training loop, and its arithmetic."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import quickstart
from css_jax import config as configs
from css_jax import methods, models, parallel, state, step
from css_jax.methods import METHODS, imas, imas_settings
from css_jax.models.layers import BatchNorm, Conv
from css_jax.ops import intensity
from css_jax.state import Context, TrainState, Variables, flat
from tests import spread, tiny
from tests.small import Plain, small

GOLDEN = np.load(Path(__file__).parent / 'fixtures' / 'imas_steps.npz')
CASES = ('voc', 'cityscapes')
# Parameter in the golden file -> its path here.
PATHS = {
    'conv_kernel': 'params/backbone/conv/kernel',
    'bn_scale': 'params/backbone/bn/scale',
    'bn_bias': 'params/backbone/bn/bias',
    'bn_mean': 'batch_stats/backbone/bn/mean',
    'bn_var': 'batch_stats/backbone/bn/var',
    'logits_kernel': 'params/head_logits/kernel',
    'logits_bias': 'params/head_logits/bias',
    'aux_kernel': 'params/head_auxiliary/kernel',
    'aux_bias': 'params/head_auxiliary/bias',
}


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= tolerance * np.max(np.abs(theirs))


class Backbone(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        x = Conv(6, 3, name='conv')(x)
        return nn.relu(BatchNorm(self.axis_name, name='bn')(x, train))


class Network(nn.Module):
    """The golden file's: convolution, BatchNorm, ReLU, and a 1x1 convolution for each head."""

    outputs: tuple
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False, image_weights=None):
        train = image_weights if train and image_weights is not None else train
        x = Backbone(self.axis_name, name='backbone')(images, train)
        return {name: Conv(5, 1, use_bias=True, name=f'head_{name}')(x) for name in self.outputs}


class Golden:
    """A case of the golden file: arrays by name, and the configuration that it stands for."""

    def __init__(self, case):
        self._case = case

    def __call__(self, name):
        return GOLDEN[f'step_{self._case}_{name}']

    def has(self, name):
        return f'step_{self._case}_{name}' in GOLDEN

    def variables(self, network):
        """The network's arrays at the start; `network` is 'student_start' or 'teacher_start'."""
        tree = {'params': {}, 'batch_stats': {}}
        for name, path in PATHS.items():
            if self.has(f'{network}_{name}'):
                *groups, leaf = path.split('/')
                place = tree
                for group in groups:
                    place = place.setdefault(group, {})
                place[leaf] = jnp.asarray(self(f'{network}_{name}'))
        return Variables(tree['params'], tree['batch_stats'])

    def config(self):
        auxiliary = float(self('aux_weight')) if self.has('aux_weight') else 0.0
        supervised = {'loss': 'ce'}
        if auxiliary:
            supervised = {
                'loss': 'ohem',
                'ohem_threshold': float(self('ohem_threshold')),
                'ohem_kept': int(self('ohem_min_kept')) // 4,  # of an image; the threshold decides
            }
        return ConfigDict(
            {
                'num_classes': 5,
                'steps': int(self('total_steps')),
                'accumulate_steps': 1,
                'init_from': '',
                'supervised': supervised,
                'unsupervised': {
                    'threshold': float(self('threshold')),
                    'weight': float(self('weight')),
                },
                'teacher': {'decay': 0.996},
                'imas': {
                    'auxiliary_weight': auxiliary,
                    'blend': True,
                    'box': (0.1, 0.9),
                    'class_weights': True,
                    'group': 4,
                    'head_rate': float(self('head_factor')),
                    'ignore_background': bool(self('ignore_background')),
                    'images': 4,
                    'normalised': False,
                    'operations': 2,
                    'supervised_epochs': 0,
                },
                'optimizer': {
                    'learning_rate': float(self('base_rate')),
                    'power': 0.9,
                    'floor': 0.0,
                    'warmup_steps': 0,
                    'momentum': 0.9,
                    'nesterov': False,
                    'weight_decay': float(self('weight_decay')),
                },
                'data': {
                    'mean': (0.485, 0.456, 0.406),
                    'std': (0.229, 0.224, 0.225),
                    'streams': {'unlabelled': {'batch_size': 4}},
                },
            }
        )

    def draws(self, i):
        """Those of iteration i; where nothing is mixed the file has none."""
        box = self('box_uniform')[i]
        return imas.Draws(
            operations=jnp.zeros((4, 2), jnp.int32),
            levels=jnp.zeros((4, 2)),
            strong=jnp.zeros(4),
            trigger=jnp.float32(self('trigger_uniform')[i])[None],
            box=jnp.full(4, 0.5 if np.isnan(box) else box, jnp.float32),
            row=jnp.int32(np.maximum(self('centre_row')[i], 0)),
            column=jnp.int32(np.maximum(self('centre_column')[i], 0)),
        )


@pytest.mark.parametrize('case', CASES)
def test_three_iterations_are_the_authors(case, monkeypatch):
    golden = Golden(case)
    config = golden.config()
    ctx = Context(Network(tuple(imas.outputs(config))), config)
    optimizer, rates = METHODS['imas'].optimizer(config)
    student = golden.variables('student_start')
    current = TrainState(
        step=jnp.int32(0),
        student=student,
        teacher=golden.variables('teacher_start'),
        memory={},
        opt_state=optimizer.init(student.params),
        key=jax.random.key(0),
    )

    @jax.jit
    def iteration(current, batch, strong, draws):
        monkeypatch.setattr(intensity, 'strong', lambda *_: strong)
        monkeypatch.setattr(imas, 'draw', lambda *_: draws)
        keys = parallel.step_keys(current.key, current.step, batch, None)
        prepared, _ = imas.targets(current, batch, keys, ctx)
        after = step.train_step(
            current, batch, method=METHODS['imas'], optimizer=optimizer, ctx=ctx
        )
        return prepared, *after

    assert any(golden('mixed')) and not all(golden('mixed'))
    for i in range(3):
        batch = {
            'labelled': {
                'image': golden('labelled_image')[i],
                'label': golden('labelled_label')[i].astype(np.uint8),  # -1 is 255
            },
            'unlabelled': {'image': golden('weak_image')[i]},
        }
        found = [float(rate(i)) for rate in rates.values()] * (3 - len(rates))
        np.testing.assert_allclose(found, golden('rate')[i], rtol=1e-6)
        with jax.default_matmul_precision('highest'):
            prepared, current, metrics = iteration(
                current, batch, golden('strong_image')[i], golden.draws(i)
            )
        np.testing.assert_array_equal(prepared.label, golden('teacher_label')[i])
        close(prepared.easiness, golden('easiness')[i])
        assert prepared.triggered.tolist() == 4 * [bool(golden('mixed')[i])]
        supervised = metrics['loss_supervised']
        if 'auxiliary' in ctx.module.outputs:
            supervised += config.imas.auxiliary_weight * metrics['loss_auxiliary']
        close(supervised, golden('loss_supervised')[i])
        weighted = config.unsupervised.weight * metrics['loss_unsupervised']
        close(weighted, golden('loss_unsupervised_weighted')[i])
        close(
            metrics['loss'], golden('loss_supervised')[i] + golden('loss_unsupervised_weighted')[i]
        )
        for network in ('student', 'teacher'):
            arrays = flat(getattr(current, network))
            for name, path in PATHS.items():
                if golden.has(f'{network}_{name}'):
                    close(arrays[path], golden(f'{network}_{name}')[i])


@pytest.mark.parametrize('case', CASES)
def test_both_rates_are_the_authors(case):
    golden = {k.removeprefix(f'poly_{case}_'): GOLDEN[k] for k in GOLDEN if f'poly_{case}' in k}
    config = Golden(case).config()
    config.steps = int(golden['steps'])
    config.optimizer.learning_rate = float(golden['base'])
    config.optimizer.power = float(golden['power'])
    config.imas.head_rate = float(golden['head_factor'])
    _, rates = imas_settings.optimizer(config)
    assert list(rates) == ['learning_rate', 'learning_rate_heads'][: 1 + (case == 'voc')]
    for column, rate in enumerate([*rates.values()] * (3 - len(rates))):
        ours = rate(golden['iteration'])
        assert np.abs(ours - golden['rate'][:, column]).max() <= 1e-5 * golden['rate'].max()


# Section 7 of the authors' logs: (labelled of all images, group) -> steps of an epoch.
EPOCHS = {
    (662, 10_582, 4): 620, (1323, 10_582, 4): 578, (2646, 10_582, 4): 496, (92, 10_582, 4): 655,
    (183, 10_582, 4): 650, (366, 10_582, 4): 638, (732, 10_582, 4): 615, (1464, 10_582, 4): 570,
    (186, 2975, 4): 174, (372, 2975, 4): 162, (372, 2975, 2): 163, (744, 2975, 4): 139,
    (1488, 2975, 4): 93,
}  # fmt: skip


@pytest.mark.parametrize(('labelled', 'total', 'group'), EPOCHS)
def test_an_epoch_has_the_authors_steps(labelled, total, group):
    config = ConfigDict(
        {
            'imas': {'images': total - labelled, 'group': group},
            'data': {'streams': {'unlabelled': {'batch_size': 16}}},
        }
    )
    assert imas_settings.steps_per_epoch(config) == EPOCHS[labelled, total, group]


@pytest.mark.parametrize(
    ('dataset', 'labelled', 'steps'), [('voc', 662, 42), ('cityscapes', 186, 11)]
)
def test_an_epoch_of_the_baseline_has_the_authors_steps(dataset, labelled, steps):
    config = ConfigDict(
        {
            'imas': {'images': labelled},
            'eval': {'dataset': dataset},
            'data': {'streams': {'labelled': {'batch_size': 16}}},
        }
    )
    assert imas_settings.supervised_steps_per_epoch(config) == steps


def configured(method='imas', build=small, **changes):
    """Method, finalised configuration and what makes its network, of small batches."""
    config = tiny.get_config(method)
    config.steps = 40
    config.optimizer.learning_rate = 0.02
    for stream in config.data.streams.values():
        stream.batch_size = spread.BATCH
    config.update_from_flattened_dict({'imas.images': 160, 'unsupervised.threshold': 0.16})
    if method == 'imas':
        config.imas.supervised_epochs = 0
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return METHODS[method], configs.finalise(config)


@functools.cache
def walked(mode, devices, **changes):
    """The state and the metrics after two steps, from a teacher that is not the student."""
    method, config = configured(imas__group=2, **changes)
    layout = parallel.Layout(mode, jax.devices()[:devices])
    tx, _ = method.optimizer(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', small)
        current = state.create(method, tx, methods.context(config), {}, layout.replicated)
        halved = jax.tree.map(lambda x: 0.9 * x, current.teacher)
        current = current.replace(
            teacher=jax.device_put(halved, layout.replicated),
            step=jax.device_put(jnp.int32(30), layout.replicated),
        )
        ctx = methods.context(config, parallel.AXIS)
        one = functools.partial(step.train_step, method=method, optimizer=tx, ctx=ctx)
        program = None
        for batch in [*spread.batches()][:2]:
            batch = layout.place(batch)
            program = program or layout.compile_step(one, current, batch)
            current, metrics = program(current, batch)
    return jax.device_get((current.replace(key=None), metrics))


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_two_devices_leave_the_state_of_one(mode):
    (one, expected), (two, found) = walked('jit', 1), walked(mode, 2)
    assert expected['loss_unsupervised'] > 0 and 0 < expected['mixed'] < 1
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
    ours, theirs = flat(two), flat(one)
    for path in theirs:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-4, atol=2e-6, err_msg=path)


def first(batch, function, build=small, **changes):
    """What function(method, optimiser, context, state, keys) gives at step 30, on one device."""
    method, config = configured(**changes)
    tx, _ = method.optimizer(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', build)
        ctx = methods.context(config)
        current = state.create(method, tx, ctx).replace(step=jnp.int32(30))

        @jax.jit
        def compiled(current):
            keys = parallel.step_keys(current.key, current.step, batch, None)
            return function(method, tx, ctx, current, keys)

        return jax.device_get(compiled(current))


def targets_of(batch, **changes):
    return first(
        batch, lambda m, tx, ctx, now, keys: m.targets(now, batch, keys, ctx)[0], **changes
    )


def metrics_of(batch, build=small, **changes):
    def stepped(method, tx, ctx, now, keys):
        return step.train_step(now, batch, method=method, optimizer=tx, ctx=ctx)[1]

    return first(batch, stepped, build, **changes)


BATCH = next(spread.batches())


def test_a_batch_without_labels_and_without_confident_pixels_has_no_loss():
    empty = {'image': BATCH['labelled']['image'], 'label': np.full((16, 32, 32), 255, np.uint8)}
    batch = {'labelled': empty, 'unlabelled': BATCH['unlabelled']}
    metrics = metrics_of(batch, unsupervised__threshold=1.0)
    assert metrics['loss'] == 0 and metrics['gradient_norm'] == 0
    assert metrics['easiness'] == 0 and metrics['mixed'] == 0


def test_the_strong_view_follows_easiness():
    prepared = targets_of(BATCH, imas__group=4)
    easy, other = prepared.easiness, prepared.strong != prepared.weak
    assert easy.min() < 0.3 < easy.max() <= 1
    # What an operation does to an image is scaled by h, so that where h is 0 nothing changes.
    assert not other[easy == 0].any() and other[easy > 0].any()
    prepared = targets_of(BATCH, imas__blend=False)
    data = configured()[1].data
    levels = prepared.strong * np.float32(data.std) + np.float32(data.mean)
    np.testing.assert_allclose(255 * levels, np.round(255 * levels), atol=1e-2)  # not blended


def test_only_images_of_a_group_mix_and_only_the_box_changes():
    prepared = targets_of(BATCH, imas__group=4, imas__box=(0.9, 0.9))
    for i in range(16):
        first = i // 4 * 4
        order = np.argsort(prepared.easiness[first : first + 4], kind='stable')
        partner = first + order[3 - list(order).index(i - first)]
        own = (prepared.mixed[i] == prepared.weak[i]).all(-1)
        theirs = (prepared.mixed[i] == prepared.weak[partner]).all(-1)
        assert (own | theirs).all() and not own.all()
        expected = np.where(own, prepared.label[i], prepared.label[partner])
        np.testing.assert_array_equal(prepared.mixed_label[i], expected)
    assert len(set(prepared.triggered.reshape(4, 4).sum(1)) - {0, 4}) == 0


def test_micro_batches_add_up_to_the_batch():
    def plain(config, num_classes, outputs, axis_name):
        class Weighted(Plain):
            @nn.compact
            def __call__(self, x, train=False, image_weights=None):
                return Plain.__call__(self, x, train)

        return Weighted((*outputs.items(),))

    losses = [metrics_of(BATCH, plain, accumulate_steps=k) for k in (1, 4)]
    for name in ('loss_supervised', 'loss_unsupervised', 'gradient_norm', 'easiness'):
        np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=1e-5)


def test_the_first_epochs_have_labels_alone_and_copy():
    method, config = configured(imas__supervised_epochs=2, imas__images=48)  # 3 steps each
    (until, phase), last = methods.phases(config)
    assert until == 6 and last == (40, method) and set(phase.streams) == {'labelled'}
    rng = np.random.default_rng(0)
    old, new = (Variables(*rng.normal(size=(2, 3))) for _ in range(2))
    for t, copies in ((0, True), (5, True), (8, True), (9, False)):
        for update in (phase.update_teacher, method.update_teacher):
            before = TrainState(jnp.int32(t), old, old, {}, None, None)
            found = update(before, new, None, Context(None, config))
            assert np.allclose(found.params, new.params) == copies
            assert np.allclose(found.batch_stats, new.batch_stats) == copies


def test_a_teacher_of_another_run_is_not_copied_over():
    method, config = configured()
    config = ConfigDict(config.to_dict() | {'init_from': 'elsewhere'})
    before = TrainState(jnp.int32(0), None, Variables(1.0, 1.0), {}, None, None)
    found = method.update_teacher(before, Variables(2.0, 2.0), None, Context(None, config))
    np.testing.assert_allclose([found.params, found.batch_stats], 1.01, rtol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'imas__group': 5}, 'imas.group: got 5, expected a divisor of data.streams.unlabelled'),
        ({'data__streams__labelled__crop': (64, 32)}, r'data.streams.\*.crop: got .* the same'),
        ({'imas__supervised_epochs': 5}, 'imas.supervised_epochs: got 5, which are 50 steps'),
        ({'imas__box': (0.0, 0.9)}, r'imas.box: got \(0.0, 0.9\)'),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        configured(**changes)


def test_a_group_that_does_not_divide_a_device_s_batch_is_refused():
    _, config = configured(imas__group=16)
    with pytest.raises(ValueError, match=r'imas\.group: got 16, expected a divisor of the 8 unlab'):
        imas._group(np.zeros((8, 4, 4, 3)), config)


def test_multi_grid_is_for_residual_blocks():
    config = quickstart.get_config('imas')
    config.model.backbone, config.model.width = 'efficientnet_lite0', 1.0
    config.model.multi_grid = (2, 2, 4)
    with pytest.raises(ValueError, match=r'multi_grid is \(2, 2, 4\); expected \(\)'):
        methods.context(configs.finalise(config))


def test_an_epoch_is_counted_where_nobody_says(data_dir):
    config = tiny.get_config('imas')
    config.update_from_flattened_dict({'data.dir': data_dir, 'imas.supervised_epochs': 0})
    config.imas.images, config.imas.epochs, config.steps = None, 5, None
    found = configs.finalise(config)
    assert found.imas.images == 16  # of 24, 8 of which are labelled
    assert found.steps == 5 * 4
    assert not METHODS['imas'].warnings(found, {'labelled': 8, 'unlabelled': 16})
    (odd,) = METHODS['imas'].warnings(found, {'labelled': 8, 'unlabelled': 17})
    assert odd.startswith('imas.images=16 ') and odd.endswith('17 images')
    config.steps = 30
    (odd,) = METHODS['imas'].warnings(configs.finalise(config), {'unlabelled': 16})
    assert odd == 'imas.epochs=5 has no effect: steps=30 is set, which is 7.5 epochs'
