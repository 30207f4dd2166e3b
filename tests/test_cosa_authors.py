"""CoSA's optimiser, EMA, pseudo-labels and scores, held to outputs of the authors' program."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax.evaluation import protocols
from css_jax.methods import (
    cosa_cams,
    cosa_scores,
    cosa_settings,
    views,
)
from css_jax.methods.method import Seen
from css_jax.models import largefov
from css_jax.state import Context, TrainState, Variables
from css_jax.weights import timm
from tests.cosa_numpy import merged, normalised, passes, resized, softmax, summed
from tests.cosa_small import FIXED, HEADS, METHOD, steps, tiny
from tests.models.test_vit import GOLDEN, assert_close, authors, state_dict

OPS = np.load(Path(__file__).parent / 'fixtures' / 'cosa_ops.npz')


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
