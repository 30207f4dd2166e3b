"""UniMatch V2, V1 and FixMatch held to iterations of the authors' loops, and on small networks."""

import functools
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, models, parallel, state, step, train
from css_jax.evaluation import targets
from css_jax.methods import METHODS, unimatch_v1, unimatch_views
from css_jax.models.layers import Conv
from css_jax.run import checkpoint, metrics
from css_jax.state import Context, TrainState, Variables, flat
from tests import spread, tiny
from tests.small import Named, small

GOLDEN = np.load(Path(__file__).parent / 'fixtures' / 'unimatch_ops.npz')
NAMES = ('unimatch', 'unimatch_v1', 'fixmatch')


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= tolerance * np.max(np.abs(theirs))


# The authors' iterations, from fixed logits.


class Given:
    """A network whose parameters are its logits: which of them, the number of images says."""

    def apply(self, arrays, images, train=False, mutable=(), channel_scale=None):
        params = arrays['params']
        if not train:
            return {'logits': params['evaluated']}
        copies = 1 if channel_scale is None else len(channel_scale['last']) // len(images)
        return {'logits': params[f'{copies * len(images)}']}, {}


class Iteration:
    """One iteration of V2 or V1 of the golden file, by the functions of the method."""

    def __init__(self, version, method, logits):
        self._version, self._method = version, METHODS[method]
        view = functools.partial(self.nhwc, 'img_u_s')
        valid = self('ignore_mask') != 255
        images = np.zeros((*valid.shape, 3), np.uint8)
        label = self('mask_x').astype(np.uint8)
        self.batch = {
            'labelled': {'image': images, 'label': label},
            'unlabelled': {'image': images, 'valid': valid},
        }
        config = ConfigDict(
            {
                'accumulate_steps': 1,
                'supervised': {'loss': 'ce'},
                'unsupervised': {'threshold': float(self('conf_thresh')), 'weight': 1.0},
                'unimatch': {'dropout': True, 'group': 0},
                'data': {'mean': (0.0,) * 3, 'std': (1.0,) * 3},
            }
        )
        self.ctx = Context(Given(), config)
        self.logits = {name: jnp.asarray(x) for name, x in logits(self).items()}
        both = Variables(self.logits, {})
        self.state = TrainState(jnp.int32(0), both, both, {}, None, jax.random.key(0))
        with pytest.MonkeyPatch.context() as patch:
            if version == 'v2':
                patch.setattr(unimatch_views, 'strong', lambda _, name, *__: view(name[-1]))
            else:
                patch.setattr(unimatch_views, 'strong', lambda images, *_: images / 1.0)
            patch.setattr(
                unimatch_views, 'box', lambda name, *_: self(f'cutmix_box{name[-1]}') == 1
            )
            one = {'last': np.ones((len(valid), 3), np.float32)}
            patch.setattr(unimatch_views, 'complementary', lambda *_: one)
            patch.setattr(unimatch_views, 'dropped', lambda *_: one)
            if version == 'v1':  # whose partners are others than the images backwards
                patch.setattr(unimatch_views, 'partner', self._partner)
            keys = parallel.step_keys(self.state.key, 0, self.batch, None)
            made = jax.jit(lambda: self._method.targets(self.state, self.batch, keys, self.ctx)[0])
            self.targets = made()
            loss = functools.partial(
                step.objective, state=self.state, prepared=self.targets, keys=keys,
                method=self._method, ctx=self.ctx,
            )  # fmt: skip
            found = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.logits)
        (self.loss, (_, _, self.metrics)), self.gradient = jax.device_get(found)

    def __call__(self, name):
        return GOLDEN[f'{self._version}_{name}']

    def nhwc(self, *name):
        return np.moveaxis(self(''.join(name)), 1, -1)

    def _partner(self, tree, config):
        del config
        softmax = jax.nn.softmax(self.nhwc('pred_u_w_mix'))
        maps = {
            'label': softmax.argmax(-1),
            'indicator': softmax.max(-1),
            'valid': self('ignore_mask_mix') != 255,
        }
        return {'strong': tree['strong'], **maps}


def v2(golden):
    strong = np.concatenate([golden.nhwc('pred_u_s1'), golden.nhwc('pred_u_s2')])
    return {'4': golden.nhwc('pred_x'), '8': strong, 'evaluated': golden.nhwc('pred_u_w')}


def test_an_iteration_of_v2_is_the_authors():
    golden = Iteration('v2', 'unimatch', v2)
    for view in '12':
        made = {name: getattr(golden.targets, f'{name}{view}') for name in (
            'strong', 'label', 'indicator', 'valid')}  # fmt: skip
        np.testing.assert_array_equal(made['strong'], golden.nhwc(f'mixed_img_u_s{view}'))
        np.testing.assert_array_equal(made['label'], golden(f'label{view}'))
        close(made['indicator'], golden(f'conf{view}'))
        np.testing.assert_array_equal(made['valid'], golden(f'ignore{view}') != 255)
        close(golden.metrics[f'loss_strong{view}'], golden(f'loss_u_s{view}'))
    close(golden.metrics['loss_supervised'], golden('loss_x'))
    mean = (golden.metrics['loss_strong1'] + golden.metrics['loss_strong2']) / 2
    close(mean, golden('loss_u_s'))
    close(golden.loss, golden('loss'))
    close(golden.metrics['confident'], golden('mask_ratio'))
    first, second = np.split(golden.gradient['8'], 2)
    for ours, name in ((golden.gradient['4'], 'x'), (first, 'u_s1'), (second, 'u_s2')):
        close(ours, golden.nhwc(f'grad_pred_{name}'))
    assert not golden.gradient['evaluated'].any()


def test_fixmatch_is_the_half_of_it():
    golden = Iteration('v2', 'fixmatch', lambda g: v2(g) | {'4': g.nhwc('pred_x')})
    # Both of its passes have four images: the strong view's logits are those of the labelled one.
    x, evaluated = jax.nn.log_softmax(golden.logits['4']), golden.targets
    label = -jnp.take_along_axis(x, evaluated.label1[..., None], -1)[..., 0]
    counted = evaluated.valid1 & (evaluated.indicator1 >= golden('conf_thresh'))
    expected = (label * counted).sum() / evaluated.valid1.sum()
    close(golden.metrics['loss_strong1'], expected)
    close(golden.loss, (golden('loss_x') + expected) / 2)
    np.testing.assert_array_equal(evaluated.label1, golden('label1'))


def v1(golden):
    names = ('pred_x', 'pred_u_w', 'pred_x', 'pred_u_w_fp')  # the third is in no loss
    first = np.concatenate([golden.nhwc(name) for name in names])
    strong = np.concatenate([golden.nhwc('pred_u_s1'), golden.nhwc('pred_u_s2')])
    return {'8': first, '4': strong, 'evaluated': golden.nhwc('pred_u_w_mix')}


def test_an_iteration_of_v1_is_the_authors():
    golden = Iteration('v1', 'unimatch_v1', v1)
    softmax = jax.nn.softmax(golden.nhwc('pred_u_w'))
    full = unimatch_v1.completed(golden.targets, softmax.argmax(-1), softmax.max(-1))
    for view in '12':
        np.testing.assert_array_equal(getattr(full, f'label{view}'), golden(f'label{view}'))
        valid = golden(f'ignore{view}') != 255
        np.testing.assert_array_equal(getattr(full, f'valid{view}'), valid)
        close(golden.metrics[f'loss_strong{view}'], golden(f'loss_u_s{view}'))
    close(golden.metrics['loss_supervised'], golden('loss_x'))
    close(golden.metrics['loss_perturbed'], golden('loss_u_w_fp'))
    close(golden.loss, golden('loss'))
    x, weak, unused, perturbed = np.split(golden.gradient['8'], 4)
    first, second = np.split(golden.gradient['4'], 2)
    for ours, name in ((x, 'x'), (perturbed, 'u_w_fp'), (first, 'u_s1'), (second, 'u_s2')):
        close(ours, golden.nhwc(f'grad_pred_{name}'))
    assert not golden('grad_pred_u_w').any()
    assert not weak.any() and not unused.any() and not golden.gradient['evaluated'].any()


# On small networks.

_RNG = np.random.default_rng(1)
VALID = np.ones((spread.BATCH, spread.SIDE, spread.SIDE), bool)
for _i in range(0, spread.BATCH, 3):
    VALID[_i, _RNG.integers(8, 32) :] = VALID[_i, :, _RNG.integers(8, 32) :] = False
VIVID = {'augment__jitter_prob': 0.8, 'augment__blur_prob': 0.5, 'augment__grey_prob': 0.5}


def batches():
    for batch in spread.batches():
        yield {**batch, 'unlabelled': {**batch['unlabelled'], 'valid': VALID}}


BATCH = next(batches())


def configured(method='unimatch', **changes):
    """Method and finalised configuration, of small batches."""
    config = tiny.get_config(method)
    config.steps = 40
    config.optimizer.learning_rate = 0.02
    for stream in config.data.streams.values():
        stream.batch_size = spread.BATCH
    config.update_from_flattened_dict({'unimatch.images': 160, 'unsupervised.threshold': 0.16})
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return METHODS[method], configs.finalise(config)


def context(method, build=small, **changes):
    """Method, context and the state at step 30, on one device."""
    found, config = configured(method, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', build)
        ctx = methods.context(config)
    return found, ctx, state.create(found, found.optimizer(config)[0], ctx).replace(
        step=jnp.int32(30)
    )  # fmt: skip


def targets_of(method, batch, then=lambda prepared, keys, ctx: prepared, **changes):
    """then(targets, keys, context) of a step, in one program."""
    found, ctx, current = context(method, **changes)

    @jax.jit
    def made(current):
        keys = parallel.step_keys(current.key, current.step, batch, None)
        return then(found.targets(current, batch, keys, ctx)[0], keys, ctx)

    return jax.device_get(made(current))


class Steps:
    """Steps from step 30, of networks that differ, on so many devices."""

    def __init__(self, method, mode, devices):
        found, config = configured(method, unimatch__group=4)
        self._layout = parallel.Layout(mode, jax.devices()[:devices])
        tx, _ = found.optimizer(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, 'build', small)
            current = state.create(found, tx, methods.context(config))
            ctx = methods.context(config, parallel.AXIS)
        self._step = functools.partial(step.train_step, method=found, optimizer=tx, ctx=ctx)
        self._program = None
        self._key = jax.random.key_data(current.key)
        other = jax.tree.map(lambda x: 0.9 * x, current.teacher)
        self.start = jax.device_get(
            current.replace(teacher=other, step=jnp.int32(30), key=None)
        )  # on the host: a step takes the arrays that it gets

    def __call__(self, current, batch):
        """The state after a step, and its metrics."""
        key = jax.random.wrap_key_data(np.array(self._key))
        current = jax.device_put(current.replace(key=key), self._layout.replicated)
        batch = self._layout.place(batch)
        if self._program is None:
            self._program = self._layout.compile_step(self._step, current, batch)
        current, metrics = self._program(current, batch)
        return jax.device_get((current.replace(key=None), metrics))


@functools.cache
def steps(method, mode='jit', devices=1):
    return Steps(method, mode, devices)


def walked(method, mode, devices):
    """The state and the metrics after two steps."""
    one = steps(method, mode, devices)
    current = one.start
    for batch in [*batches()][:2]:
        current, metrics = one(current, batch)
    return current, metrics


@pytest.mark.parametrize(
    ('method', 'mode'), [('unimatch', 'jit'), ('unimatch', 'pmap'), ('unimatch_v1', 'jit')]
)
def test_two_devices_leave_the_state_of_one(method, mode):
    (one, expected), (two, found) = walked(method, 'jit', 1), walked(method, mode, 2)
    assert expected['loss_strong1'] > 0 and 0 < expected['confident'] < 1
    assert 0 < expected['agreement'] < 1
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
    ours, theirs = flat(two), flat(one)
    for path in theirs:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-4, atol=2e-6, err_msg=path)
    assert (method == 'unimatch_v1') == (not any(path.startswith('teacher') for path in theirs))


@pytest.mark.parametrize('method', NAMES)
def test_a_batch_without_labels_and_confident_pixels_has_no_loss(method):
    one = steps(method)
    blank = {'image': BATCH['labelled']['image'], 'label': np.full(VALID.shape, 255, np.uint8)}
    nothing = jax.tree.map(np.zeros_like, (one.start.student, one.start.teacher))
    unsure = one.start.replace(student=nothing[0], teacher=nothing[1])  # all classes are alike
    padding = np.zeros_like(VALID)
    for current, valid in ((unsure, VALID), (one.start, padding), (unsure, padding)):
        batch = {'labelled': blank, 'unlabelled': {**BATCH['unlabelled'], 'valid': valid}}
        after, metrics = one(current, batch)
        assert metrics['loss'] == metrics['gradient_norm'] == metrics['confident'] == 0
        assert np.isfinite([*metrics.values()]).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


class Plain(nn.Module):
    """A network without BatchNorm whose channels can be dropped."""

    outputs: tuple
    backbone = property(lambda self: Named())

    @nn.compact
    def __call__(self, x, train=False, image_weights=None, channel_scale=None):
        x = nn.relu(Conv(8, 3, 4)(x))
        for factors in (channel_scale or {}).values():
            x = jnp.tile(x, (len(factors) // len(x), 1, 1, 1)) * factors[:, None, None]
        return {name: Conv(channels, 1, name=name)(x) for name, channels in self.outputs}


@pytest.mark.parametrize('method', ['unimatch', 'unimatch_v1'])
def test_micro_batches_add_up_to_the_batch(method):
    def plain(config, num_classes, outputs, axis_name):
        return Plain((*outputs.items(),))

    found, ctx, current = context(method, plain)

    @jax.jit
    def losses(current):
        keys = parallel.step_keys(current.key, current.step, BATCH, None)
        prepared, _ = found.targets(current, BATCH, keys, ctx)
        logged = []
        for count in (1, 4):
            own = ConfigDict(ctx.config.to_dict() | {'accumulate_steps': count})
            given = current.student.params, current, prepared, keys
            _, (_, _, metrics) = step.objective(*given, method=found, ctx=Context(ctx.module, own))
            logged.append(metrics)
        return logged

    whole, parts = losses(current)
    assert {'loss_strong1', 'loss_strong2', 'confident', 'agreement'} < set(whole)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-5, err_msg=name)


# The views.


def test_the_views_of_a_step():
    """Labelled images are as they came; boxes show the strong view of the image's partner."""

    def unmixed(prepared, keys, ctx):
        weak = BATCH['unlabelled']['image']
        return prepared, [unimatch_views.strong(weak, f'strong{v}', keys, ctx) for v in '12']

    changes = {'unimatch__group': 4, 'unimatch__mix_prob': 1.0, **VIVID}
    t, alone = targets_of('unimatch', BATCH, unmixed, **changes)
    data = configured()[1].data
    plain = (np.float32(BATCH['labelled']['image']) / 255 - data.mean) / np.float32(data.std)
    np.testing.assert_allclose(t.images, plain, rtol=1e-4, atol=1e-5)
    apart = np.abs(alone[0] - alone[1]).max((1, 2, 3))
    assert (apart > 1e-3).sum() >= 14  # of 16, but of images that neither view changes

    def alike(x, y):
        return np.isclose(x, y, atol=1e-4).all(-1)

    boxed = 0
    for i in range(16):
        partner = i // 4 * 4 + 3 - i % 4
        for view, strong in zip('12', alone, strict=True):
            image = getattr(t, f'strong{view}')[i]
            own = alike(image, strong[i])
            assert (own | alike(image, strong[partner])).all()
            rows, columns = np.nonzero(~own)
            inside = np.zeros_like(own)
            inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            boxed += inside.mean() / 32
            for name in ('label', 'indicator', 'valid'):
                maps, weak = (getattr(t, x) for x in (f'{name}{view}', f'weak_{name}'))
                expected = np.where(inside, weak[partner], weak[i])
                # Where both images are alike, the box is larger than what can be seen of it.
                assert (maps[i] == expected).mean() > 0.9
    assert 0.1 < boxed < 0.3  # areas from 0.02 to 0.4


@pytest.mark.parametrize(('count', 'group'), [(1, 0), (3, 0), (6, 3), (4, 2)])
def test_the_middle_one_of_an_odd_group_is_its_own_partner(count, group):
    config = ConfigDict({'unimatch': {'group': group}})
    found = unimatch_views.partner({'x': np.arange(count)}, config)['x']
    assert found.tolist() == {1: [0], 3: [2, 1, 0], 6: [2, 1, 0, 5, 4, 3], 4: [1, 0, 3, 2]}[count]


@pytest.mark.parametrize('count', [1, 3])
def test_a_device_may_have_one_image_or_an_odd_number(count):
    t = targets_of('unimatch', jax.tree.map(lambda x: x[:count], BATCH))
    assert len(t.strong1) == count
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(t))
    assert (t.scale['last'] == 1).all(1).sum() == count // 2


def test_channels_are_shared_out_between_the_views(monkeypatch):
    counts = {'a': 8, 'b': 8, 'c': 300}
    monkeypatch.setattr(unimatch_views, '_channels', lambda *_: dict(counts))
    config = {'unimatch': {'group': 4, 'drop_prob': 0.75}, 'model': {'backbone': 'resnet18'}}
    ctx = Context(None, ConfigDict(config))

    @jax.jit
    def drawn(key):
        keys = parallel.step_keys(key, 0, BATCH, None)
        dropped = [unimatch_views.dropped(name, keys, BATCH, ctx) for name in BATCH]
        return unimatch_views.complementary(keys, BATCH, ctx), dropped

    scale, (labelled, weak) = jax.device_get(drawn(jax.random.key(0)))
    assert {name: x.shape for name, x in scale.items()} == {n: (16, c) for n, c in counts.items()}
    np.testing.assert_array_equal(scale['a'], scale['b'])  # of as many channels
    spared = (scale['c'] == 1).all(1)
    assert spared.reshape(4, 4).sum(1).tolist() == [2, 2, 2, 2]
    np.testing.assert_array_equal((scale['a'] == 1).all(1), spared)
    for x in (*labelled.values(), *weak.values()):
        assert set(np.unique(x)) <= {0.0, 4.0} and not (x == 1).any()
    assert (weak['a'] != weak['b']).any() and (weak['c'] != labelled['c']).any()
    counts = {'tap1': 8, 'tap2': 8}
    ctx.config.model.backbone = 'dinov2_small'
    one = unimatch_views.complementary(parallel.step_keys(jax.random.key(0), 0, BATCH, None),
                                       BATCH, ctx)  # fmt: skip
    assert one.shape == (16, 8) and (one == 1).all(1).sum() == 8


# The teacher and the burn-in.


@pytest.mark.parametrize('method', ['unimatch', 'fixmatch'])
def test_the_teacher_follows_parameters_and_statistics(method):
    record, config = configured(method, teacher__decay=0.8)
    old, new = Variables(1.0, 2.0), Variables(3.0, 6.0)
    for t, folder, decay in ((0, '', 0.0), (1, '', 0.5), (9, '', 0.8), (0, 'elsewhere', 0.8)):
        given = ConfigDict(config.to_dict() | {'init_from': folder})
        before = TrainState(jnp.int32(t), None, old, {}, None, None)
        found = record.update_teacher(before, new, None, Context(None, given))
        expected = decay * 1 + (1 - decay) * 3, decay * 2 + (1 - decay) * 6
        np.testing.assert_allclose([found.params, found.batch_stats], expected, rtol=1e-6)


@pytest.mark.parametrize('method', NAMES)
def test_the_first_steps_may_have_labels_alone(method):
    record, config = configured(method, burn_in_steps=10)
    (until, phase), last = methods.phases(config)
    assert until == 10 and last == (40, record) and set(phase.streams) == {'labelled'}
    assert phase.update_teacher == record.update_teacher
    _, ctx, current = context(method, burn_in_steps=10)
    keys = parallel.step_keys(current.key, current.step, BATCH, None)
    prepared = phase.targets(current, BATCH, keys, ctx)[0]
    given = current.student.params, current, prepared, keys
    _, (_, _, metrics) = jax.jit(lambda: step.objective(*given, method=phase, ctx=ctx))()
    assert metrics['loss'] == metrics['loss_supervised'] > 0  # not a half of it


@pytest.mark.parametrize('method', NAMES)
def test_what_is_made_can_be_looked_at(method):
    found, ctx, current = context(method)
    config = ctx.config

    def made(current):
        keys = parallel.step_keys(current.key, current.step, BATCH, None)
        return found.targets(current, BATCH, keys, ctx)[0]

    prepared = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(made, current))
    columns = targets.made(config, BATCH, prepared)
    views = '1' if method == 'fixmatch' else '12'
    expected = {f'{what} {v}' for v in views for what in (
        'student, strong', 'pseudo-label', 'indicator')}  # fmt: skip
    assert expected <= set(columns)
    assert ('teacher, logit space' in columns) == (method != 'unimatch_v1')
    assert all(x.shape == (16, 32, 32, 3) and x.dtype == np.uint8 for x in columns.values())
    assert ('student, strong 2' in columns) == (method != 'fixmatch')


# A run.


def test_a_run_without_a_teacher_resumes_to_the_same_bits(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    config = tiny.get_config('unimatch_v1')
    config.update_from_flattened_dict(
        {'data.dir': data_dir, 'steps': 4, 'burn_in_steps': 1, 'checkpoint_every': 2}
    )
    for stream in config.data.streams.values():
        stream.update(resize=(0.3, 1.0), pad='black_corner')
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    written = train.train(config, whole)
    assert written['protocol'].startswith('student, ')
    records = metrics.read(whole)
    assert 'confident' not in records[0] and all('confident' in r for r in records[1:])
    assert all(np.isfinite(r['loss']) for r in records)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / checkpoint.FOLDER / '4')
    train.train(config, broken)
    parts = list(state.TrainState.__dataclass_fields__)
    arrays = (
        checkpoint.restore_arrays(run, checkpoint.find(str(run), 'last'), parts)
        for run in (whole, broken)
    )
    jax.tree.map(np.testing.assert_array_equal, *arrays)
    assert [r['loss'] for r in metrics.read(broken)] == [r['loss'] for r in records]
