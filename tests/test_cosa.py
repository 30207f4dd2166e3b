"""CoSA: a step held to plain numpy, its phases, thresholds, scores, and what is refused."""

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cosa as file
from css_jax import config as configs
from css_jax import methods, models, parallel, state, step, train
from css_jax.data import sources
from css_jax.evaluation import protocols, results
from css_jax.methods import (
    METHODS,
    cosa,
    cosa_cams,
    cosa_scores,
    cosa_settings,
    cosa_thresholds,
    views,
)
from css_jax.methods.method import Seen
from css_jax.models import largefov, vit
from css_jax.models.layers import BatchNorm, Conv
from css_jax.modes import preview, report, sweep
from css_jax.ops import color, magnitudes, mixture
from css_jax.run import checkpoint, metrics
from css_jax.state import Context, TrainState, Variables
from css_jax.weights import timm
from data_prep import records
from data_prep.shapes import builder as shapes
from tests import folders
from tests.models.test_vit import GOLDEN, assert_close, authors, state_dict

METHOD = METHODS['cosa']
OPS = np.load(Path(__file__).parent / 'fixtures' / 'cosa_ops.npz')
HEADS = {'logits': 6, 'cam': 5, 'cam_aux': 5, 'class': 5, 'class_aux': 5}


class Backbone(nn.Module):
    """One convolution of stride 8, and one of single pixels."""

    axis_name: str | None
    norm: bool

    @nn.compact
    def __call__(self, x, train):
        x = Conv(6, 9, 8, use_bias=True, name='conv')(x)
        if self.norm:
            x = BatchNorm(self.axis_name, name='bn')(x, train)
        x = nn.relu(x)
        return {'layer3': x, 'last': nn.relu(Conv(8, 1, use_bias=True, name='out')(x))}


class Five(nn.Module):
    """Stands for family largefov: the five heads on that backbone."""

    outputs: tuple
    axis_name: str | None
    norm: bool

    @nn.compact
    def __call__(self, x, train=False, image_weights=None):
        features = Backbone(self.axis_name, self.norm, name='backbone')(x, train)
        count = dict(self.outputs)
        found = {'logits': Conv(count['logits'], 1, name='head_logits')(features['last'])}
        for name, (feature, *pair) in largefov.CLASSIFIERS.items():
            classifier = largefov.Classifier(count[pair[0]], 'mean', name=name)
            found |= dict(zip(pair, classifier(features[feature]), strict=True))
        return found


def five(norm=True):
    """Stands for `models.build`."""

    def build(config, num_classes, outputs, axis_name):
        return Five(tuple(outputs.items()), axis_name, norm)

    return build


def tiny(argument='quickstart', data_dir='', **changes):
    config = file.get_config(argument)
    for stream in config.data.streams.values():
        stream.update(crop=(32, 32), batch_size=4)
    config.update_from_flattened_dict(
        {'steps': 40, 'data.dir': data_dir, 'eval.batch_size': 4, 'log_every': 1,
         'checkpoint_every': 100, 'optimizer.warmup_steps': 0}
    )  # fmt: skip
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def images(rng, count=4, side=32):
    """Patches of colour with some noise, so that pixels are alike here and not there."""
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def batch(seed=0):
    """Four images, two of a device: of one class, two, all and none, two of them padded."""
    rng = np.random.default_rng(seed)
    classes = np.zeros((4, 7), bool)
    classes[:, 0] = True
    classes[0, 2] = classes[1, 1] = classes[1, 3] = True
    classes[2] = True
    box = np.int32([[0, 32, 0, 32], [3, 30, 2, 32], [0, 32, 0, 20], [0, 32, 0, 32]])
    return {'images': {'image': images(rng), 'classes': classes, 'box': box}}


def filled(tree, seed):
    """Random arrays of these shapes; what a BatchNorm divides by is positive."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = rng.normal(size=leaf.shape) * (0.5 if leaf.ndim > 1 else 0.1)
        return np.float32(1 + abs(values) if path[-1].key in ('scale', 'var') else values)

    return jax.tree_util.tree_map_with_path(fill, tree)


class Steps:
    """Steps of the method itself, of the small network, from a state that has seen some.

    Adam's moments are not 0, so that its update is no sign, which rounding could turn.
    """

    def __init__(self, mode, devices, norm, changes):
        self.config = configs.finalise(tiny(optimizer__learning_rate=0.02, **changes))
        self.layout = parallel.Layout(mode, jax.devices()[:devices])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, 'build', five(norm))
            self.ctx = methods.context(self.config)
            inside = methods.context(self.config, parallel.AXIS)
        tx, _ = METHOD.optimizer(self.config)
        self._step = functools.partial(step.train_step, method=METHOD, optimizer=tx, ctx=inside)
        self._program = None
        like = state.shapes(self.ctx)
        memory = cosa_thresholds.init_memory(self.config)
        for queue, value in zip(memory, (0.35, 0.55), strict=False):
            around = [value - 0.1, value + 0.1] if len(memory[queue].thresholds) == 2 else [value]
            memory[queue] = memory[queue]._replace(thresholds=jnp.array(around))
        student = filled(like, 1)
        moments = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, 1e-5) if '.nu' in jax.tree_util.keystr(path) else x,
            tx.init(student.params),
        )
        start = TrainState(jnp.int32(30), student, filled(like, 2), memory, moments, None)
        self.start = jax.device_get(start)  # a step takes the arrays that it gets

    def __call__(self, current, batch):
        """The state after a step, and its metrics."""
        current = current.replace(key=jax.random.key(3))
        current = jax.device_put(current, self.layout.replicated)
        batch = self.layout.place(batch)
        self._program = self._program or self.layout.compile_step(self._step, current, batch)
        current, seen = self._program(current, batch)
        return jax.device_get((current.replace(key=None), seen))


@functools.cache
def steps(mode, devices, norm=False, **changes):
    return Steps(mode, devices, norm, changes)


@functools.cache
def walked(mode, devices, **changes):
    """The states and the metrics after each of two steps."""
    one = steps(mode, devices, **changes)
    current, found = one.start, []
    for seed in (0, 1):
        current, seen = one(current, batch(seed))
        found.append((current, seen))
    return found


FIXED = {'norm': True, 'cosa__separation': 0.1, 'cosa__low': 0.3, 'cosa__high': 0.6}
# What more there is to sum up over devices, and a view less to compile.
BOTH = {
    'cosa__thresholds': 'two',
    'cosa__weighting': 'perplexity',
    'cosa__scales': (0.5, 1.0),
}
THREE = {'cosa__thresholds': 'three', 'cosa__separation': 0.1, 'cosa__scales': (1.0,)}


# A step in numpy, from the outputs of the network alone.


def resized(x, size):
    """Bilinear, pixel centres at halves, not antialiased: [B, h, w, C] float64."""
    x = np.asarray(x, float)
    for axis, out in ((1, size[0]), (2, size[1])):
        n = x.shape[axis]
        place = np.clip((np.arange(out) + 0.5) * n / out - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, [a for a in range(4) if a != axis])
        high = np.minimum(low + 1, n - 1)
        x = (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)
    return x


def nearest(x, side):
    places = np.arange(side) * x.shape[1] // side
    return x[:, places][:, :, places]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


def normalised(images, config):
    return (images / 255 - np.array(config.data.mean)) / np.array(config.data.std)


def passes(network, ctx, images, scales):
    """Outputs of the network by images [B, H, W, 3] and their mirror images, at each scale."""
    run, found = jax.jit(lambda x: ctx.evaluate(network, x)), []
    for scale in scales:
        view = resized(images, [int(scale * side) for side in images.shape[1:3]])
        view = np.concatenate([view, view[:, :, ::-1]])
        found.append(jax.device_get(run(view.astype(np.float32))))
    return found


def pairs(raws, size):
    """Of each scale the maps of images and of mirror images, mirrored back, at this size."""
    for raw in raws:
        plain, mirror = np.split(resized(raw, size), 2)
        yield plain, mirror[:, :, ::-1]


def merged(raws, size):
    """CAMs [B, H, W, K] in [0, 1]."""
    found = sum(np.maximum(np.maximum(*pair), 0) for pair in pairs(raws, size))
    found = found - found.min((1, 2), keepdims=True)
    return found / (found.max((1, 2), keepdims=True) + 1e-5)


def summed(raws, size):
    return sum(plain + mirror for plain, mirror in pairs(raws, size))


def inside(box, side):
    found = np.zeros((len(box), side, side), bool)
    for i, (top, bottom, left, right) in enumerate(box):
        found[i, top:bottom, left:right] = True
    return found


def labels_of(cams, present, low, high, box):
    """Labels from CAMs; -1: none. Image by image, of the classes that it has alone."""
    side, found = cams.shape[1], []
    for image, has in zip(cams, present, strict=True):
        classes, winners = np.flatnonzero(has), []
        for threshold in (low, high):
            scores = resized(image[None, ..., classes], (side // 2, side // 2))
            background = np.full((*scores.shape[:3], 1), threshold)
            shares = softmax(np.concatenate([background, scores], -1))
            winner = resized(shares, (side, side))[0].argmax(-1)
            winners.append(np.array([0, *(classes + 1)])[winner])
        below, above = winners
        found.append(np.where(above > 0, above, np.where(below == 0, 0, -1)))
    return np.where(inside(box, side), found, -1)


def reciprocals(largest, threshold, box):
    """1 / perplexity, 0 in the padding."""
    above, below = (largest - threshold) / (1 - threshold), (threshold - largest) / threshold
    distance = np.clip(np.where(largest >= threshold, above, below), 1e-4, 1)
    return np.where(inside(box, largest.shape[1]), 1 / -np.log(0.9 * distance), 0)


def halves(logits, label, weight):
    """Weighted mean of the cross-entropy over background, and over foreground."""
    scores = resized(logits, label.shape[1:])
    shares = np.take_along_axis(softmax(scores), np.maximum(label, 0)[..., None], -1)[..., 0]
    found = []
    for region in (label == 0, label > 0):
        total = weight[region].sum()
        found.append(-(weight * np.log(shares))[region].sum() / total if total else 0.0)
    return found


def energy_of(strong, logits, label, box, config):
    """The dense energy pair by pair, weighed as at the authors' size."""
    side, full = config.cosa.energy_side, strong.shape[1]
    levels = 255 * (strong * np.array(config.data.std) + np.array(config.data.mean))
    colours, within = nearest(levels, side), nearest(inside(box, full), side).astype(float)
    shares = resized(softmax(resized(logits, (full, full))), (side, side))
    gate = np.maximum(within - shares.max(-1), 0)
    gate[nearest(label, side) == -1] = 1
    total, n = 0.0, side * side
    place = np.stack(np.meshgrid(range(side), range(side), indexing='ij'), -1).reshape(n, 2)
    place = place / (100 * full / 448 * side / full)
    for i in range(len(strong)):
        features = np.concatenate([place, colours[i].reshape(n, 3) / 15], 1)
        squares = (features**2).sum(1)
        kernel = np.exp(-(squares[:, None] + squares - 2 * features @ features.T) / 2)
        q = (shares[i] * within[i][..., None]).reshape(n, -1)
        total -= (gate[i].reshape(n, 1) * q * (kernel @ q)).sum()
    return 1e-7 * 0.57 * (224 / side) ** 4 * total / len(strong)


def separation_of(cams, region, present):
    found = []
    for image, regions, has in zip(cams, region, present, strict=True):
        for c in np.flatnonzero(has):
            values = 1 / (1 + np.exp(-image[..., c].ravel()))
            similar = (1 - abs(values[:, None] - values)) / 0.5
            own, other = regions.ravel() == c + 1, regions.ravel() == 0
            positive = own[:, None] & own | other[:, None] & other
            positive &= ~np.eye(len(own), dtype=bool)
            if own.any() and other.any():
                negative = np.exp(similar[own][:, other]).mean()
                s = similar[positive]
                found.append((np.log(np.exp(s) + negative) - s).mean())
    return np.mean(found)


def assembled(one, batch, start, thresholds):
    """Every metric of a step from `start`, by the outputs of both networks; and the CAMs."""
    config, ctx, arrays = one.config, one.ctx, batch['images']
    present, box, size = arrays['classes'][:, 1:], arrays['box'], (32, 32)
    weak = normalised(arrays['image'], config)
    every = passes(start.teacher, ctx, weak, config.cosa.scales)
    cams = {
        'cam': merged([raw['cam'] for raw in every], size),
        'cam_aux': merged([every[-1]['cam_aux']], size),
    }
    logits = summed([raw['logits'] for raw in every], size)
    soft = softmax(np.where(arrays['classes'][:, None, None], logits, -1e5) / 0.01)
    out = jax.device_get(jax.jit(ctx.train)(start.student, weak.astype(np.float32))[0])
    out = {name: np.asarray(x, float) for name, x in out.items()}
    found, labels = {}, {}
    for head in ('class', 'class_aux'):
        x = out[head]
        found[head] = np.where(present, softplus(-x), softplus(x)).mean()
    for name, (low, high) in thresholds.items():
        labels[name] = label = labels_of(cams[name], present, low, high, box)
        weight = np.ones(label.shape)
        if config.cosa.weighting == 'perplexity':
            largest = (cams[name] * present[:, None, None]).max(-1)
            weight = reciprocals(largest, low, box)
        term = name.removeprefix('cam_') + '2seg'
        for region, value in zip(
            ('background', 'foreground'), halves(out['logits'], label, weight), strict=True
        ):
            found[f'{term}_{region}'] = value
    x, y = np.maximum(out['cam'], 0), resized(soft[..., 1:], (4, 4))
    found['seg2cam'] = (y * softplus(-x) + (1 - y) * softplus(x)).mean()
    found['energy'] = energy_of(weak, out['logits'], labels['cam'], box, config)
    total = found['class'] + found['class_aux'] + 0.05 * (found['seg2cam'] + found['energy'])
    total += 0.1 / 4 * sum(value for name, value in found.items() if '2seg_' in name)
    if config.cosa.separation:
        region = nearest(labels['cam_aux'], 4)
        found['separation'] = separation_of(out['cam'], region, present)
        total += config.cosa.separation * found['separation']
    found = {f'loss_{name}': value for name, value in found.items()} | {'loss': total}
    label, within = labels['cam'], inside(box, 32)
    coarse, guessed = nearest(label, 4), resized(soft, (4, 4)).argmax(-1)
    found['labelled'] = (label >= 0).sum() / within.sum()
    found['foreground'] = (label > 0).sum() / (label >= 0).sum()
    found['agreement'] = (coarse == guessed)[coarse >= 0].mean()
    return found, cams


def test_a_step_is_the_sum_of_its_terms_in_numpy():
    """BatchNorm is by the batch in the online network, by running statistics in the other."""
    one, given = steps('jit', 1, **FIXED), batch()
    end, found = one(one.start, given)
    limits = {'cam': (0.3, 0.6), 'cam_aux': (0.25, 0.7)}
    expected, _ = assembled(one, given, one.start, limits)
    assert found.keys() == expected.keys() | {'gradient_norm', 'update_norm'}
    assert 0.2 < expected['labelled'] < 0.9 and 0.1 < expected['foreground'] < 0.9
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
    before, after, ours = (
        state.flat(tree) for tree in (one.start.teacher, end.student, end.teacher)
    )
    decay = one.config.teacher.decay  # the same at step 30 as at any other
    for path, theirs in before.items():
        mean = decay * theirs + (1 - decay) * after[path]
        np.testing.assert_allclose(ours[path], mean, rtol=1e-5, atol=1e-7, err_msg=path)
    assert any('batch_stats' in path for path in before)


def test_weighted_means_and_one_threshold_in_numpy():
    one, given = steps('jit', 1, **BOTH), batch()
    end, found = walked('jit', 1, **BOTH)[0]
    limits = {'cam': (0.35, 0.35), 'cam_aux': (0.55, 0.55)}
    expected, cams = assembled(one, given, one.start, limits)
    thresholds = {'threshold_low': 0.35, 'threshold_aux_low': 0.55}
    assert found.keys() == expected.keys() | {'gradient_norm', 'update_norm', *thresholds}
    for name, value in {**expected, **thresholds}.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
    # The largest values on the network's grid go into the queue's next place.
    present = given['images']['classes'][:, 1:]
    for name, queue in end.memory.items():
        values = (resized(cams[name], (4, 4)) * present[:, None, None]).max(-1)
        counted = values[values > mixture.FLOOR]
        expected, _ = np.histogram(counted, mixture.BINS, (0, 1))
        assert np.abs(queue.counts[0] - expected).sum() <= 2 < expected.sum()  # at an edge of a bin
        np.testing.assert_array_equal(queue.counts[1:], one.start.memory[name].counts[1:])
        assert queue.place == 1


@pytest.mark.parametrize(
    ('mode', 'changes', 'more'),
    [('jit', BOTH, {}), ('pmap', BOTH, {'accumulate_steps': 2}), ('jit', THREE, {})],
    ids=['jit', 'pmap', 'three'],
)
def test_two_devices_and_micro_batches_leave_the_state_of_one(mode, changes, more):
    """The queues, weighted means and pairs are of all images, wherever they are."""
    one, two = walked('jit', 1, **changes), walked(mode, 2, **changes, **more)
    for (expected, their_metrics), (found, our_metrics) in zip(one, two, strict=True):
        for name, value in their_metrics.items():
            np.testing.assert_allclose(our_metrics[name], value, rtol=1e-4, err_msg=name)
        ours, theirs = state.flat(found), state.flat(expected)
        for path, value in theirs.items():
            if path.endswith('counts'):  # rounding moves a value at an edge of a bin to the next
                assert np.abs(ours[path] - value).sum() <= 4, path
                continue
            np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=2e-6, err_msg=path)
    moved = state.flat(expected.student)
    for path, before in state.flat(steps('jit', 1, **changes).start.student).items():
        assert np.abs(moved[path] - before).max() > 1e-4, path


@pytest.mark.parametrize('changes', [FIXED, BOTH], ids=['fixed', 'two'])
@pytest.mark.parametrize('case', ['no classes', 'boxes of one pixel', 'constant images', 'all'])
def test_what_leaves_nothing_to_learn_is_finite(case, changes):
    given = batch()['images']
    if case in ('no classes', 'all'):
        given['classes'][:, 1:] = False
    if case in ('boxes of one pixel', 'all'):
        given['box'] = np.int32([[5, 6, 7, 8]] * 4)
    if case in ('constant images', 'all'):
        given['image'][:] = 77
    one = steps('jit', 1, **changes)
    end, found = one(one.start, {'images': given})
    assert all(np.isfinite(value) for value in found.values()), found
    for path, array in state.flat(end).items():
        assert np.isfinite(array).all(), path
    if case == 'no classes':
        assert found['foreground'] == 0 == found['loss_cam2seg_foreground']
        assert found['loss_cam2seg_background'] > 0


# The authors' numbers.


def test_the_optimiser_is_the_authors():
    """Of two rates; the gradients of the heads are 0 at first, which Adam counts."""
    theirs = json.loads(OPS['adamw_config'].item())
    config = ConfigDict(
        {
            'steps': theirs['max'],
            'model': {'backbone': 'resnet18'},
            'cosa': {'head_rate': 10.0},
            'optimizer': {
                'learning_rate': theirs['lr'],
                'warmup_steps': theirs['warmup'],
                'power': 0.9,
                'floor': 0.0,
                'weight_decay': theirs['weight_decay'],
            },
        }
    )
    tx, rates = cosa_settings.optimizer(config)

    def tree(six):
        return {'backbone': {'x': jnp.float32(six[:3])}, 'head_x': {'y': jnp.float32(six[3:])}}

    @jax.jit
    def moved(params, opt_state, gradients):
        updates, opt_state = tx.update(gradients, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    params = tree(OPS['adamw_start'])
    opt_state, gradients = tx.init(params), OPS['adamw_grads']
    assert not gradients[0, 3:].any() and gradients[-1, 3:].all()
    for t, expected in enumerate(OPS['adamw_params']):
        found = [rates['learning_rate'](t), rates['learning_rate_head'](t)]
        np.testing.assert_allclose(found, OPS['adamw_lr'][t], rtol=1e-5)
        params, opt_state = moved(params, opt_state, tree(gradients[t]))
        ours = np.concatenate([params['backbone']['x'], params['head_x']['y']])
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_assignment_network_follows_as_the_authors():
    theirs = json.loads(OPS['adamw_config'].item())
    ctx = Context(None, ConfigDict({'teacher': {'decay': theirs['momentum']}}))
    teacher = Variables({'x': jnp.float32(OPS['ema_start'])}, {'mean': jnp.zeros(6)})
    for t, expected in enumerate(OPS['ema_params']):
        student = Variables({'x': jnp.float32(OPS['adamw_params'][t])}, {'mean': jnp.ones(6)})
        before = TrainState(jnp.int32(t), None, teacher, {}, None, None)
        teacher = METHOD.update_teacher(before, student, teacher.batch_stats, ctx)
        np.testing.assert_allclose(teacher.params['x'], expected, rtol=1e-5)
        mean = 1 - theirs['momentum'] ** (t + 1)  # statistics alike, without a ramp
        np.testing.assert_allclose(teacher.batch_stats['mean'], mean, rtol=1e-4)


def test_pseudo_labels_by_several_scales_are_the_authors():
    golden = np.load(GOLDEN)
    module = largefov.LargeFOV(authors(golden), tuple(HEADS.items()))
    params = timm.from_torch(state_dict(golden))['params']
    scales = tuple(golden['ms_scales'].tolist())
    c = {'aux_scales': 'last', 'scales': scales, 'temperature': 0.5}

    def evaluate(network, x):
        return module.apply({'params': network.params}, x)

    ctx = SimpleNamespace(evaluate=evaluate, config=ConfigDict({'cosa': c}))
    network, seen, present = Variables(params, {}), golden['ms_images'], np.ones((1, 5), bool)
    with jax.default_matmul_precision('highest'):
        found = jax.jit(lambda *given: cosa_cams.assignments(*given, ctx))(network, seen, present)
    assert_close(found['cam'], golden['ms_cam'])
    assert_close(found['cam_aux'], golden['ms_cam_aux'])
    soft = softmax(golden['ms_seg'].astype(float) / c['temperature'])
    assert_close(found['segmentation'], resized(soft, found['segmentation'].shape[1:3]), 2e-4)


def test_scores_are_the_authors(monkeypatch):
    """From their logits and CAMs: of masked predictions, and of CAMs above one half."""
    maps = dict.fromkeys(cosa_cams.KINDS, OPS['eval_cam'])
    scored = np.float32([[3, 2, 0, 0, 0], [0, 1, 0, 0, 2]])
    monkeypatch.setattr(cosa_cams, 'passes', lambda *_: [{'class': np.vstack([scored, -scored])}])
    monkeypatch.setattr(cosa_cams, 'cams', lambda *_: maps)
    labels, truth = OPS['eval_labels'] > 0, OPS['eval_truth'].astype(np.int32)
    config = ConfigDict({'eval': {'protocol': 'whole', 'scales': (1.0,), 'crf': False}})
    seen = Seen(np.zeros((2, 20, 24, 3)), OPS['eval_logits'], truth, np.pad(labels, (
        (0, 0), (1, 0)), constant_values=True), np.int32([[20, 24]] * 2), (20, 24))  # fmt: skip
    sums = jax.device_get(cosa_scores.measures(None, seen, Context(None, config)))
    for kind, matrix in {
        'masked': sums['masked'],
        'cam': cosa_scores.confusions(sums['cam'])[list(cosa_scores.THRESHOLDS).index(0.5)],
    }.items():
        np.testing.assert_array_equal(matrix, tallied(truth, OPS[f'eval_pred_{kind}'], 6))
    assert OPS['eval_bkg'] == 0.5
    found = cosa_scores.scores(sums)
    np.testing.assert_allclose(found['miou_masked'], np.nanmean(OPS['eval_iou_masked']), 1e-6)
    for kind in ('cam', 'cam_aux'):
        np.testing.assert_allclose(found[f'{kind}_miou'], np.nanmean(OPS['eval_iou_cam']), 1e-6)


def tallied(truth, guesses, count):
    """Confusion matrix of the pixels that are not -1."""
    found = np.zeros((count, count), int)
    np.add.at(found, (truth[truth >= 0], guesses[truth >= 0]), 1)
    return found


def mean_iou(matrix):
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return (hits[union > 0] / union[union > 0]).mean()


def by_cams(maps, present, threshold):
    """The class with the largest CAM of those that an image has, up to the threshold background."""
    found = np.zeros(maps.shape[:3], int)
    for i, has in enumerate(present):
        classes = np.flatnonzero(has)
        if len(classes):
            own = maps[i][..., classes]
            found[i] = np.where(own.max(-1) > threshold, classes[own.argmax(-1)] + 1, 0)
    return found


def test_cams_are_swept_as_at_each_threshold_alone():
    rng = np.random.default_rng(0)
    maps = np.float32(rng.integers(0, 41, (3, 10, 12, 5)) / 40)  # on the thresholds, and between
    present = rng.random((3, 5)) < 0.6
    present[1] = False
    labels = rng.integers(-1, 6, (3, 10, 12)).astype(np.int32)
    found = cosa_scores.confusions(np.asarray(cosa_scores.swept(maps, present, labels)))
    assert len(found) == 19 and cosa_scores.THRESHOLDS[9] == 0.5
    for threshold, matrix in zip(cosa_scores.THRESHOLDS, found, strict=True):
        expected = tallied(labels, by_cams(maps, present, threshold), 6)
        np.testing.assert_array_equal(matrix, expected, err_msg=str(threshold))


def test_the_authors_protocol_is_that_of_each_image_in_its_window():
    """Images of two sizes, and one that only fills the batch; what is not theirs is not seen."""
    config = tiny(eval__protocol='resized', eval__window=(32, 40), eval__flip=True)
    config.update_from_flattened_dict({'eval.scales': (1.0, 0.5), 'cosa.aux_scales': 'all'})
    config, one = configs.finalise(config), steps('jit', 1, **FIXED)
    ctx, window, network = Context(one.ctx.module, config), (32, 40), one.start.student
    rng, sizes = np.random.default_rng(1), np.int32([[20, 33], [36, 24], [36, 40]])
    seen = rng.integers(0, 256, (3, 36, 40, 3)).astype(np.uint8)
    labels, classes = np.full((3, 36, 40), -1, np.int32), np.zeros((3, 7), bool)
    classes[0, [0, 2, 3]] = classes[1, [0, 1, 2, 6]] = True
    for i, (height, width) in enumerate(sizes[:2]):
        labels[i, :height, :width] = rng.choice(np.flatnonzero(classes[i]), (height, width))
        labels[i, :3, :3] = -1
    predict = protocols.prediction(config, ctx, cosa_scores.predict, window)

    @jax.jit
    def measured(variables):
        logits = predict(variables, seen, sizes)
        given = Seen(views.normalise(seen, ctx), logits, labels, classes, sizes, window)
        return cosa_scores.measures(variables, given, ctx)

    sums = jax.device_get(measured(network))
    whole = [
        resized(normalised(seen[i : i + 1, :height, :width], config), window)
        for i, (height, width) in enumerate(sizes[:2])
    ]
    every = passes(network, ctx, np.concatenate(whole), (1.0, 0.5))
    present = classes[:2, 1:]
    guessed = summed([raw['logits'] for raw in every], window)
    maps = {kind: merged([raw[kind] for raw in every], window) for kind in cosa_cams.KINDS}
    masked, swept = 0, dict.fromkeys(maps, 0)
    for i, (height, width) in enumerate(sizes[:2]):
        own = slice(i, i + 1)
        truth, logits = labels[own, :height, :width], resized(guessed[own], (height, width))
        logits[..., ~classes[i]] = -np.inf
        masked = masked + tallied(truth, logits.argmax(-1), 7)
        for kind, one in maps.items():
            values = resized(one[own], (height, width))
            swept[kind] = swept[kind] + np.stack([
                tallied(truth, by_cams(values, present[own], t), 7) for t in cosa_scores.THRESHOLDS
            ])  # fmt: skip
    np.testing.assert_array_equal(sums['masked'], masked)
    for kind, expected in swept.items():
        np.testing.assert_array_equal(cosa_scores.confusions(sums[kind]), expected)
    found = cosa_scores.scores(sums)
    np.testing.assert_allclose(found['miou_masked'], mean_iou(masked), rtol=1e-6)
    for kind, expected in swept.items():
        every_miou = [mean_iou(matrix) for matrix in expected]
        np.testing.assert_allclose(found[f'{kind}_miou_swept'], every_miou, rtol=1e-6)
        assert found[f'{kind}_miou'] == found[f'{kind}_miou_swept'][9]
        assert found[f'{kind}_threshold_best'] == pytest.approx((1 + np.argmax(every_miou)) / 20)
        assert found[f'{kind}_miou_best'] == pytest.approx(max(every_miou))
    scored = every[0]['class'][:2]  # of the images at the first scale, not of their mirror images
    for k in range(6):
        bins = np.sort(np.nonzero(sums['classifier'][:, k])[1])
        np.testing.assert_allclose(bins, np.floor(100 * (np.sort(scored[:, k]) + 20)), atol=1)
    precisions = [
        1.0 if has.all() or (scored[has, k] > scored[~has, k]).all() else 0.5
        for k, has in enumerate(present.T) if has.any()
    ]  # fmt: skip
    assert found['classifier_map'] == pytest.approx(np.mean(precisions))
    assert {1.0, 0.5} == set(precisions)


# What happens when.


def test_a_vision_transformer_in_the_warm_up(monkeypatch):
    """Its table stays, a head without a loss decays and is counted, its EMA follows at once."""

    def build(config, num_classes, outputs, axis_name):
        return largefov.LargeFOV(vit.ViT(12, 1, 2, 16, 2, -1), tuple(outputs.items()), width=0.1)

    monkeypatch.setattr(models, 'build', build)
    config = tiny('quickstart,backbone=vit_tiny', optimizer__learning_rate=0.01)
    config.update_from_flattened_dict(
        {'model.output_stride': 16, 'cosa.head_rate': 10.0, 'teacher.decay': 0.9994}
    )
    config = configs.finalise(config)
    (_, phase), _ = methods.phases(config)
    ctx, (tx, _) = methods.context(config), METHOD.optimizer(config)
    make = state.maker(METHOD, tx, ctx)

    @jax.jit
    def begun():
        start = make(np.uint32(0), {})
        return start, step.train_step(start, batch(), method=phase, optimizer=tx, ctx=ctx)

    start, (end, found) = begun()
    before, first = state.flat(start.student), state.flat(start.teacher)
    for path, array in first.items():
        same = np.array_equal(array, before[path])
        assert same == path.startswith('params/backbone/'), path

    assert {name for name in found if name.startswith('loss')} == {
        'loss', 'loss_class', 'loss_class_aux'
    }  # fmt: skip
    np.testing.assert_allclose(found['loss'], found['loss_class'] + found['loss_class_aux'], 1e-6)
    moved, followed = state.flat(end.student), state.flat(end.teacher)
    for path, array in before.items():
        if 'head_logits' in path:
            decayed = (1 - 10 * 0.01 * config.optimizer.weight_decay) * array
            np.testing.assert_allclose(moved[path], decayed, rtol=1e-6, err_msg=path)
        assert np.array_equal(moved[path], array) == path.endswith('pos_embed'), path
        mean = 0.9994 * first[path] + (1 - 0.9994) * moved[path]
        np.testing.assert_allclose(followed[path], mean, rtol=1e-5, atol=1e-7, err_msg=path)
    counts = {k: v for k, v in state.flat(end.opt_state).items() if k.endswith('count')}
    assert len(counts) >= 2 and set(map(int, counts.values())) == {1}


def test_the_warm_up_has_a_step_more_than_its_number():
    config = configs.finalise(tiny(cosa__warmup_steps=6))
    (until, phase), last = methods.phases(config)
    assert until == 7 and last == (40, METHOD)  # steps 0 to 6
    assert phase.weights(None, None) == {} and not METHOD.warnings(config, {})
    for steps in (40, 41):
        config = configs.finalise(tiny(cosa__warmup_steps=steps))
        assert [until for until, _ in methods.phases(config)] == [40, 40]
        (odd,) = METHOD.warnings(config, {})
        assert odd.startswith(f'cosa.warmup_steps={steps} of steps=40: ')
    config = configs.finalise(tiny(cosa__weighting='perplexity', cosa__warmup_steps=6))
    (odd,) = METHOD.warnings(config, {})
    assert 'one threshold, the mean of cosa.low and cosa.high' in odd


@pytest.mark.parametrize('thresholds', ['two', 'three'])
def test_thresholds_start_as_configured_and_settle_between_clusters(thresholds):
    config = configs.finalise(
        tiny(cosa__thresholds=thresholds, cosa__low=0.1, cosa__high=0.5, cosa__aux_high=0.95)
    )
    memory = METHOD.init_memory(config)
    for name, ends in {'cam': (0.1, 0.5), 'cam_aux': (0.25, 0.95)}.items():
        expected = ends if thresholds == 'three' else [np.mean(ends)]
        np.testing.assert_allclose(memory[name].thresholds, expected, rtol=1e-6)
        np.testing.assert_allclose(memory[name].counts.sum(1), 4 * 4 * 4, rtol=1e-6)
    values, clusters = (np.arange(mixture.BINS) + 0.5) / mixture.BINS, {}
    for name, means in {'cam': (0.3, 0.8), 'cam_aux': (0.15, 0.6)}.items():
        clusters[name] = sum(np.exp(-(((values - mean) / 0.04) ** 2) / 2) for mean in means)
    given = {name: jnp.float32(np.round(100 * x))[None] for name, x in clusters.items()}
    ctx = Context(None, config)

    @jax.jit
    def updated(memory, times):
        return jax.lax.fori_loop(
            0, times, lambda _, m: cosa_thresholds.update_memory(m, given, ctx), memory
        )

    once, often = updated(memory, 1), updated(memory, 603)
    for name, (low, high) in {'cam': (0.3, 0.8), 'cam_aux': (0.15, 0.6)}.items():
        moved = np.abs(once[name].thresholds - memory[name].thresholds)
        assert (moved <= 0.01).all()
        found = np.asarray(often[name].thresholds)
        assert low < found[0] < found[-1] + 1e-6 and found[-1] < high + 0.04, found
        assert often[name].place == 3
        np.testing.assert_array_equal(often[name].counts, np.tile(given[name], (100, 1)))


def test_one_threshold_is_the_mean():
    config = configs.finalise(tiny(cosa__weighting='perplexity', cosa__low=0.1, cosa__high=0.5))
    assert METHOD.init_memory(config) == {}
    np.testing.assert_allclose(cosa_thresholds._first(config, ('low', 'high')), [0.3], rtol=1e-6)


# What the networks see.


def keys(count):
    return parallel.Keys(jax.random.key(0), {'images': count}, 0)


def test_the_strong_view_is_one_of_nine_operations_at_one_of_nine_magnitudes(monkeypatch):
    def noted(images, chosen, magnitude):
        return jnp.broadcast_to(10 * chosen + magnitude, images.shape[::-1]).T.astype(jnp.uint8)

    monkeypatch.setattr(magnitudes, 'strong', noted)
    config = configs.finalise(tiny(cosa__strong_prob=0.75))
    view = cosa._strong(np.zeros((4000, 1, 1, 3), np.uint8), keys(4000), Context(None, config))
    code = 255 * (view[:, 0, 0] * np.array(config.data.std) + np.array(config.data.mean))
    code = np.round(np.asarray(code[:, 0])).astype(int)
    assert set(code % 10) == set(range(1, 10))
    expected = np.full(9, 0.75 / 9)
    expected[magnitudes.NAMES.index('identity')] += 0.25
    shares = np.bincount(code // 10, minlength=9) / len(code)
    np.testing.assert_allclose(shares, expected, atol=0.02)


def test_both_views_are_of_one_blurred_image_and_labels_are_of_all_classes(monkeypatch):
    def assignments(network, images, present, ctx):
        maps = {kind: jnp.zeros((4, 32, 32, 8)) for kind in cosa_cams.KINDS}
        return maps | {'segmentation': images}

    monkeypatch.setattr(cosa_cams, 'assignments', assignments)
    given = batch()
    start = TrainState(jnp.int32(0), None, Variables({}, {}), {}, None, None)
    config = tiny(num_classes=9, augment__blur_prob=1.0, augment__blur_sigma=(0.4, 0.7))
    config = configs.finalise(config)

    @jax.jit
    def made(given):
        own, floats = keys(4)('images', 'weak'), given['images']['image'] / 255
        blurred = color.blur(own, floats, prob=1.0, sigma=config.augment.blur_sigma)
        return cosa.targets(start, given, keys(4), Context(None, config))[0], 255 * blurred

    prepared, blurred = jax.device_get(made(given))
    weak = prepared.segmentation
    np.testing.assert_array_equal(prepared.strong, weak)
    levels = 255 * (weak * np.array(config.data.std) + np.array(config.data.mean))
    assert np.abs(levels - given['images']['image']).max() > 20
    assert np.abs(levels - blurred).max() < 0.51  # rounded to 8 bits again
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    expected = np.pad(given['images']['classes'][:, 1:], ((0, 0), (0, 2)))
    np.testing.assert_array_equal(prepared.present, expected)


def test_the_energy_is_about_the_same_at_any_side():
    rng = np.random.default_rng(0)
    smooth = resized(rng.uniform(0, 1, (1, 4, 4, 3)), (112, 112))
    logits = jnp.float32(3 * rng.normal(size=(1, 7, 7, 4)))
    found = {}
    for side in (28, 56):
        config = configs.finalise(tiny(cosa__energy_side=side))
        data = config.data
        strong = jnp.float32((smooth - np.array(data.mean)) / np.array(data.std))
        label = jnp.full((1, 112, 112), -1)
        given = SimpleNamespace(strong=strong, cam_label=label, box=np.int32([[0, 112, 0, 112]]))
        energy = jax.jit(lambda x, c=config, g=given: cosa._energy(x, g, Context(None, c)))
        total, count = energy(logits)
        found[side] = float(total / count)
    assert found[28] < 0
    np.testing.assert_allclose(found[28], found[56], rtol=0.15)


def test_the_energy_of_a_turned_image_is_the_same():
    rng = np.random.default_rng(0)
    smooth = resized(rng.uniform(0, 1, (1, 4, 8, 3)), (64, 128))
    logits = jnp.float32(3 * rng.normal(size=(1, 4, 8, 4)))
    config = configs.finalise(tiny(cosa__energy_side=28))
    data, found = config.data, []
    for turned in (False, True):
        strong = jnp.float32((smooth - np.array(data.mean)) / np.array(data.std))
        size = strong.shape[1:3][::-1] if turned else strong.shape[1:3]
        turn = (lambda x: x.swapaxes(1, 2)) if turned else (lambda x: x)
        given = SimpleNamespace(
            strong=turn(strong),
            cam_label=jnp.full((1, *size), -1),
            box=np.int32([[0, size[0], 0, size[1]]]),
        )
        total, _ = cosa._energy(turn(logits), given, Context(None, config))
        found.append(float(total))
    assert found[0] < 0
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_a_patch_that_does_not_divide_an_image_moves_nothing(monkeypatch):
    """A network that says of each patch how bright it is."""

    def evaluate(variables, images):
        batch, height, width = (images.shape[0], images.shape[1] // 16, images.shape[2] // 16)
        cut = images[:, : 16 * height, : 16 * width]
        patches = cut.reshape(batch, height, 16, width, 16, 3).mean((2, 4, 5))
        return {'logits': jnp.stack([0.5 - patches, patches - 0.5], axis=-1)}

    config = SimpleNamespace(
        eval=SimpleNamespace(protocol='whole'),
        model=SimpleNamespace(backbone='vit_tiny', output_stride=16),
    )
    ctx = SimpleNamespace(config=config, evaluate=evaluate)
    images = np.zeros((1, 107, 160, 3), np.float32)
    images[:, 64:80] = 1
    rows = np.asarray(cosa_scores.predict(None, images, ctx))[0, :, 80].argmax(-1).nonzero()[0]
    assert (rows[0], rows[-1]) == (64, 79)


# Whole runs.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Folders of `shapes`; in the second the training masks are others, of the same classes."""
    drawn = shapes.Builder._draw

    def others(builder, split):
        for index, (name, image, label) in enumerate(drawn(builder, split)):
            if split == 'train':
                there = np.unique(label)
                label = np.random.default_rng(index).choice(there, label.shape).astype(np.uint8)
                label.flat[: len(there)] = there
            yield name, image, label

    found = []
    for masks in (drawn, others):
        folder = tmp_path_factory.mktemp('prepared')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shapes.Builder, '_draw', masks)
            records.prepare(shapes.Builder(data_dir=folder, splits={'train': 12, 'val': 5}))
        found.append(str(folder))
    return found


def run_config(data_dir):
    return tiny(
        data_dir=data_dir, steps=6, cosa__warmup_steps=3, cosa__thresholds='three',
        optimizer__learning_rate=0.01, checkpoint_every=3, eval__protocol='resized',
        eval__window=(32, 32), eval__flip=True, cosa__scales=(1.0,),
    )  # fmt: skip


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    """The folder of a short run, and what it returned."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', five())
        return folder, train.train(run_config(prepared[0]), folder)


def arrays(workdir):
    parts = ['student', 'teacher', 'memory', 'opt_state']
    return checkpoint.restore_arrays(workdir, checkpoint.find(str(workdir), 'last'), parts)


def test_a_run_resumed_in_its_warm_up_on_other_masks_ends_with_the_same_bits(
    prepared, trained, tmp_path, monkeypatch
):
    """The masks never reach training: only which classes are in an image."""
    monkeypatch.setattr(models, 'build', five())
    whole, written = trained
    one, other = (sources.load('shapes', 'train', folder) for folder in prepared)
    assert (one.classes == other.classes).all() and (one.pixels != other.pixels).any()
    assert one.records[0]['label'] != other.records[0]['label']
    broken = tmp_path / 'broken'
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / checkpoint.FOLDER / '6')
    (broken / results.RESULTS).unlink()
    assert checkpoint.find(str(broken), 'last') == 3
    assert train.train(run_config(prepared[1]), broken) == written
    jax.tree.map(np.testing.assert_array_equal, arrays(whole), arrays(broken))
    seen = [[(r['step'], r['loss']) for r in metrics.read(folder)] for folder in (whole, broken)]
    assert seen[0] == seen[1] and [at for at, _ in seen[0]] == [1, 2, 3, 4, 5, 6]
    thresholds = state.flat(arrays(whole)['memory'])
    assert len(thresholds) == 6 and any('threshold' in path for path in thresholds)


def test_a_run_classifies_first_and_is_scored(trained):
    whole, written = trained
    terms = [{k for k in r if k.startswith('loss_')} for r in metrics.read(whole)]
    classes = {'loss_class', 'loss_class_aux'}
    regions = {f'{kind}2seg_{r}' for kind in ('cam', 'aux') for r in ('background', 'foreground')}
    every = classes | {f'loss_{name}' for name in (*regions, 'seg2cam', 'energy')}
    assert terms == [classes, classes, classes, classes, every, every]
    more = written['more']
    names = [f'{kind}_{what}' for kind in ('cam', 'cam_aux')
             for what in ('miou', 'miou_best', 'threshold_best', 'miou_swept')]  # fmt: skip
    assert set(more) == {'miou_masked', 'classifier_map', *names}
    for kind in ('cam', 'cam_aux'):
        swept = more[f'{kind}_miou_swept']
        assert len(swept) == 19 and swept[9] == more[f'{kind}_miou']
        assert max(swept) == more[f'{kind}_miou_best']
        assert swept[round(20 * more[f'{kind}_threshold_best']) - 1] == max(swept)
    assert metrics.read(whole)[-1]['eval_miou_masked'] == pytest.approx(more['miou_masked'])


def test_the_other_modes_know_such_a_run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(models, 'build', five())
    whole, written = trained
    table = report.report(whole.parent, examples=1)
    row = next(line for line in table.splitlines() if line.startswith('| miou_masked'))
    assert f'{100 * written["more"]["miou_masked"]:.2f}' in row
    assert (whole.parent / report.PICTURE).stat().st_size > 1000
    config = configs.finalise(run_config(''))
    given = batch()
    soft, some = np.full((4, 4, 4, 7), 1 / 7), np.zeros((4, 32, 32))
    prepared = cosa.Targets(
        strong=np.zeros((4, 32, 32, 3)), present=None, counts={}, box=None, cam=some,
        cam_label=some.astype(int) - 1, cam_weight=some, aux_label=some.astype(int),
        aux_weight=some, segmentation=soft,
    )  # fmt: skip
    preview._picture(tmp_path / 'x.png', config, given, prepared)
    assert (tmp_path / 'x.png').stat().st_size > 1000
    # No table is of CoSA; those of others need methods that its file does not have.
    with pytest.raises(ValueError, match=r'^configs/cosa.py:baseline: expected one of') as caught:
        sweep.sweep(tmp_path / 'sweep', 6, config='configs/cosa.py:quickstart')
    assert '\n' not in str(caught.value) and not (tmp_path / 'sweep').exists()


# What is refused.


@pytest.mark.parametrize(
    ('argument', 'changes', 'message'),
    [
        (
            'quickstart,backbone=vit_tiny',
            {'data__streams__images__crop': (40, 48), 'model__output_stride': 16},
            r'data\.streams\.images\.crop: got \(40, 48\), expected multiples of 16, the side of a',
        ),
        ('', {'cosa__low': 0.8}, r'cosa\.low: got 0\.8, expected at most cosa\.high=0\.7'),
        ('', {'cosa__aux_low': 0.8}, r'cosa\.aux_low: got 0\.8, expected at most cosa\.aux_high'),
        (
            '',
            {'cosa__weighting': 'perplexity', 'cosa__thresholds': 'three'},
            r"cosa\.weighting: got 'perplexity' with cosa\.thresholds=three, expected",
        ),
        ('', {'model__family': 'deeplab'}, r"model\.family: got 'deeplab', expected 'largefov'"),
        ('', {'cosa__scales': (1.0, 0.2)}, r'cosa\.scales: got 0\.2 .*at least 8 pixels a side'),
        ('', {'cosa__scales': ()}, r'cosa\.scales: got \(\), expected one or more factors above'),
        ('', {'cosa__thresholds': 'tow'}, r"cosa\.thresholds: got 'tow'.* did you mean 'two'"),
        ('', {'augment__blur_sigma': (0.0, 1.0)}, r'augment\.blur_sigma: got \(0\.0, 1\.0\)'),
    ],
)
def test_values_that_make_no_sense_are_refused_in_one_line(argument, changes, message, tmp_path):
    config = tiny(argument, **changes)
    with pytest.raises(ValueError, match=f'^{message}') as caught:
        train.train(config, tmp_path / 'run')
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def test_a_dataset_of_background_alone_is_refused(tmp_path):
    folders.prepare(tmp_path, 'one', 1, train=4, val=2)
    config = tiny(f'folder:one,data.dir={tmp_path}', data_dir=str(tmp_path))
    with pytest.raises(ValueError, match='num_classes: got 1, expected at least 2') as caught:
        train.train(config, tmp_path / 'run')
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()
