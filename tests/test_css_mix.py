"""CSS(mix) composed from spec sections 3-5, in plain numpy, with every value off its default."""

import jax
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax.methods import css_mix, views
from css_jax.ops import contrastive, pseudo_labels, resize
from css_jax.state import Variables
from tests import tiny
from tests.test_step import BATCH

CHANGES = {
    'unsupervised.loss': 'weighted',
    'unsupervised.threshold': 0.22,
    'unsupervised.weight': 0.5,
    'contrastive.valid_threshold': 0.21,
    'contrastive.hard_threshold': 0.3,
    'contrastive.temperature': 0.7,
    'contrastive.similarity_temperature': 0.3,
    'contrastive.prototype_decay': 0.9,
    'contrastive.weight': 2.0,
    # The strong view is the weak one, so that its pseudo-labels can be told.
    'augment.resize': (1.0, 1.0),
    'augment.mixing': 'none',
    'augment.flip_prob': 0.0,
}


@pytest.fixture(scope='module')
def seen():
    """All that one loss is made of, and what it gave, at a state that has prototypes."""
    config = tiny.get_config()
    config.update_from_flattened_dict(CHANGES)
    config = configs.finalise(config)
    method = methods.get('css_mix')
    ctx = methods.context(config)
    current = state.create(method, method.optimizer(config), ctx)
    rng = np.random.default_rng(0)
    # Prototypes of all classes but one; a teacher that is not the student.
    memory = {
        'prototypes': rng.normal(size=(7, 16)).astype(np.float32),
        'seen': np.arange(7) != 4,
    }
    teacher = current.teacher.replace(
        params=jax.tree.map(
            lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), current.teacher.params
        )
    )
    current = current.replace(step=current.step + 4, memory=memory, teacher=teacher)

    def everything(current, batch):
        keys = parallel.step_keys(current.key, current.step, batch, None)
        prepared, _ = method.targets(current, batch, keys, ctx)
        _, (_, memory, metrics) = method.loss(current.student.params, current, prepared, keys, ctx)
        weak = views.normalise(batch['unlabelled']['image'], ctx)
        taught, _ = ctx.train(current.teacher, weak)
        out, stats = ctx.train(current.student, prepared['images'])
        out_u, _ = ctx.train(Variables(current.student.params, stats), prepared['strong'])
        return prepared, memory, metrics, taught, out, out_u, keys.shared('contrastive')

    result = jax.jit(everything)(current, BATCH)
    return config, current, *result


def small(labels):
    """torch's nearest from 32 to 8 pixels: floor(i * 32 / 8)."""
    return np.asarray(labels)[:, ::4, ::4].ravel()


def cosines(z, rho):
    norm = np.linalg.norm(z, axis=-1, keepdims=True) * np.linalg.norm(rho, axis=-1)
    return z @ rho.T / norm


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_pseudo_labels_are_the_teacher_s_where_both_spaces_agree(seen):
    _, current, prepared, _, metrics, taught, *_ = seen
    y_lgt, j_lgt = pseudo_labels.from_logits(taught['logits'], (32, 32))
    similarity = resize.bilinear(
        cosines(np.asarray(taught['representation']), current.memory['prototypes']), (32, 32)
    )
    y_rep = np.where(current.memory['seen'], similarity, -np.inf).argmax(-1)
    expected = np.where(y_lgt == y_rep, y_lgt, -1)
    assert 0 < np.mean(expected >= 0) < 1
    np.testing.assert_array_equal(prepared['label'], expected)
    np.testing.assert_allclose(prepared['indicator'], j_lgt, rtol=1e-5)
    np.testing.assert_allclose(metrics['agreement'], np.mean(expected >= 0), rtol=1e-6)
    confident = (j_lgt >= 0.22) & (expected >= 0)
    np.testing.assert_allclose(metrics['confident'], confident.mean(), rtol=1e-6)


def test_l_u_weighs_images_by_their_confident_share(seen):
    _, _, prepared, _, metrics, _, _, out_u, _ = seen
    logits = np.asarray(resize.bilinear(out_u['logits'], (32, 32)), np.float64)
    label, indicator = np.asarray(prepared['label']), np.asarray(prepared['indicator'])
    log_p = np.log(softmax(logits))
    total, pixels = 0.0, 0
    for i in range(len(label)):
        weight = (indicator[i] >= 0.22).sum() / max((label[i] >= 0).sum(), 1)
        for y, x in np.argwhere(label[i] >= 0):
            total -= weight * log_p[i, y, x, label[i, y, x]]
            pixels += 1
    np.testing.assert_allclose(metrics['loss_unsupervised'], total / pixels, rtol=1e-4)


def test_l_c_sees_the_valid_and_hard_pixels_of_both_views(seen):
    _, current, prepared, memory, metrics, _, out, out_u, key = seen
    z = np.concatenate([np.asarray(o['representation']).reshape(-1, 16) for o in (out, out_u)])
    confident = np.where(np.asarray(prepared['indicator']) >= 0.21, prepared['label'], -1)
    labels = np.concatenate([small(prepared['labels']), small(confident)])
    valid = labels >= 0
    np.testing.assert_allclose(metrics['valid'], valid.mean(), rtol=1e-6)

    old = current.memory['prototypes']
    masked = np.where(current.memory['seen'], cosines(z, old) / 0.3, -np.inf)
    hard = valid & (softmax(masked)[np.arange(len(z)), labels] < 0.3)
    np.testing.assert_allclose(metrics['hard'], hard.mean(), atol=2 / len(z))
    assert 0.05 < hard.mean() < 0.95 * valid.mean()

    for c in range(7):  # Eq. 2 and 3: the mean of raw representations; a new class is copied
        mean = z[labels == c].mean(0)
        expected = 0.9 * old[c] + 0.1 * mean if current.memory['seen'][c] else mean
        np.testing.assert_allclose(memory['prototypes'][c], expected, rtol=1e-3, atol=1e-5)
    assert memory['seen'].all()

    expected, _ = contrastive.loss(
        key,
        z,
        labels,
        hard,
        memory['prototypes'],
        temperature=0.7,
        num_anchors=16,
        num_negatives=32,
        bank_size=16,
    )
    np.testing.assert_allclose(metrics['loss_contrastive'], expected, rtol=2e-2)


def test_the_parts_add_up_with_their_weights(seen):
    config, _, _, _, metrics, *_ = seen
    weight = 2.0 * np.exp(-5 * (4 / config.steps) ** 2)  # at step 4
    np.testing.assert_allclose(metrics['weight_contrastive'], weight, rtol=1e-5)
    total = metrics['loss_supervised'] + 0.5 * metrics['loss_unsupervised']
    total += weight * metrics['loss_contrastive']
    np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)


def test_streams_may_differ_in_crop_and_batch_size():
    config = tiny.get_config()
    config.data.streams.labelled.crop = (48, 40)
    config.data.streams.labelled.batch_size = 2
    config = configs.finalise(config)
    method, ctx = methods.get('css_mix'), methods.context(config)
    batch = {
        'labelled': {'image': np.zeros((2, 48, 40, 3), np.uint8), 'label': np.zeros((2, 48, 40))},
        'unlabelled': BATCH['unlabelled'],
    }

    def loss(current):
        keys = parallel.step_keys(current.key, current.step, batch, None)
        prepared, _ = method.targets(current, batch, keys, ctx)
        return method.loss(current.student.params, current, prepared, keys, ctx)[0]

    shape = jax.eval_shape(lambda: loss(state.create(method, method.optimizer(config), ctx)))
    assert shape.shape == ()
    assert css_mix.STREAMS == {'labelled': True, 'unlabelled': False}
