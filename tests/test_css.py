"""CSS composed from the paper's words, in plain numpy, with every value off its default."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from css_jax.methods import css, views
from css_jax.ops import contrastive, resize
from css_jax.state import Variables
from tests import tiny
from tests.small import small
from tests.test_step import BATCH

CHANGES = {
    'method': 'css',
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
IMAGES = {'labelled': 8, 'unlabelled': 16}  # two steps a pass over the labelled images
CASES = {
    'mix': {'pseudo_label': 'mix', 'indicator': 'both'},
    'mix, paper': {
        'pseudo_label': 'mix',
        'indicator': 'both',
        'follow': 'paper',
        'unsupervised.loss': 'thresholded',
        'contrastive.schedule': 'rampdown',
    },
    'cross': {'pseudo_label': 'cross', 'unsupervised.warmup_passes': 2},
    'cross, reference': {
        'pseudo_label': 'cross',
        'indicator': 'both',
        'unsupervised.warmup_passes': 1,
        'unsupervised.cross_indicator': 'similarity',
        'contrastive.schedule': 'reference',
        'contrastive.unseen': 'zero',
    },
    'representation': {'pseudo_label': 'representation', 'indicator': 'similarity'},
    'logit': {
        'pseudo_label': 'logit',
        'indicator': 'confidence',
        'contrastive.hard_threshold': 0.22,
        'slips': True,
        'contrastive.schedule': 'constant',
    },
}
STEPS = dict.fromkeys(CASES, 4)
# The program of that case at a step before it begins to cross.
STEPS['cross, reference, warming up'] = 1
# Jitted: a compiled whole costs less than dozens of small programs.
bilinear = jax.jit(resize.bilinear, static_argnums=1)
contrast = jax.jit(
    functools.partial(
        contrastive.loss, temperature=0.7, num_anchors=16, num_negatives=32, bank_size=16
    )
)


@pytest.fixture(scope='module', autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', small)
        yield


@functools.cache
def first():
    """A state that has prototypes of all classes but one, and a teacher that is not the student."""
    config = tiny.get_config()
    config.method = 'css'
    config = configs.finalise(config)
    method = methods.METHODS[config.method]
    current = state.create(method, method.optimizer(config)[0], methods.context(config))
    rng = np.random.default_rng(0)
    memory = {'prototypes': rng.normal(size=(7, 16)).astype(np.float32), 'seen': np.arange(7) != 4}
    memory['prototypes'][4] = 0
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.05, x.shape).astype(np.float32),
        current.teacher.params,
    )
    return current.replace(memory=memory, teacher=current.teacher.replace(params=params))


@functools.cache
def program(case):
    """(finalised configuration, what says all that one loss is made of, and what it gives)."""
    config = tiny.get_config()
    config.update_from_flattened_dict(CHANGES | CASES[case])
    config = configs.finalise(config)
    method = methods.METHODS[config.method]
    ctx = methods.context(config, images=IMAGES)

    def everything(current, batch):
        keys = parallel.step_keys(current.key, current.step, batch, None)
        prepared, _ = method.targets(current, batch, keys, ctx)
        _, (_, memory, metrics) = steps.objective(
            current.student.params, current, prepared, keys, method=method, ctx=ctx
        )
        weak = views.normalise(batch['unlabelled']['image'], ctx)
        taught, _ = ctx.train(current.teacher, weak)
        taught_l, _ = ctx.train(current.teacher, prepared.images)
        out, stats = ctx.train(current.student, prepared.images)
        out_u, _ = ctx.train(Variables(current.student.params, stats), prepared.strong)
        return {
            'prepared': prepared,
            'memory': memory,
            'metrics': metrics,
            'taught': taught,
            'taught_l': taught_l,
            'out': out,
            'out_u': out_u,
            'key': jax.random.key_data(keys.shared('contrastive')),
        }

    return config, jax.jit(everything)


@pytest.fixture(scope='module', params=STEPS)
def seen(request):
    """All that one loss is made of, and what it gave, at a state that has prototypes."""
    step, case = STEPS[request.param], request.param.removesuffix(', warming up')
    config, everything = program(case)
    result = jax.device_get(everything(first().replace(step=np.int32(step)), BATCH))
    result |= {'config': config, 'old': first().memory, 'step': step}
    return result | expected_maps(config, result['old'], result)


def expected_maps(config, memory, result):
    """Labels and indicators of both losses on the weak view, by the words of the paper."""
    logits = np.asarray(bilinear(result['taught']['logits'], (32, 32)))
    y_lgt, j_lgt = logits.argmax(-1), softmax(logits).max(-1)
    similarity = cosines(np.asarray(result['taught']['representation']), memory['prototypes'])
    similarity = np.asarray(bilinear(similarity, (32, 32)))
    if config.contrastive.unseen == 'masked':
        similarity = np.where(memory['seen'], similarity, -np.inf)
    y_rep, j_rep = similarity.argmax(-1), softmax(similarity / 0.3).max(-1)

    warm = config.unsupervised.warmup_passes * 2 > result['step']
    label_u, label_c = {
        'logit': (y_lgt, y_lgt),
        'representation': (y_rep, y_rep),
        'mix': 2 * (np.where(y_lgt == y_rep, y_lgt, -1),),
        'cross': (y_lgt if warm else y_rep, y_lgt),
    }[config.pseudo_label]
    j_u = j_rep if config.indicator == 'similarity' else j_lgt
    j_c = j_u
    if config.indicator == 'both':
        if config.contrastive.valid_indicator == 'similarity':
            j_c = j_rep
        crossed = config.pseudo_label == 'cross' and not warm
        if crossed and config.unsupervised.cross_indicator == 'similarity':
            j_u = j_rep
    if config.slips:
        j_u = j_c = np.floor(j_u * 255) / 255
    agreement = (y_lgt == y_rep).mean()
    return {'label_u': label_u, 'label_c': label_c, 'j_u': j_u, 'j_c': j_c, 'agreement': agreement}


def shrunk(labels):
    """torch's nearest from 32 to 8 pixels: floor(i * 32 / 8)."""
    return np.asarray(labels)[:, ::4, ::4].ravel()


def cosines(z, rho):
    norm = np.linalg.norm(z, axis=-1, keepdims=True) * np.linalg.norm(rho, axis=-1)
    return z @ rho.T / np.where(norm > 0, norm, 1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def pixels(*outs, head='representation'):
    return np.concatenate([np.asarray(o[head]).reshape(-1, o[head].shape[-1]) for o in outs])


def test_labels_and_indicators_are_of_the_spaces_that_the_paper_says(seen):
    prepared, metrics = seen['prepared'], seen['metrics']
    np.testing.assert_array_equal(prepared.label, seen['label_u'])
    np.testing.assert_array_equal(prepared.label_c, seen['label_c'])
    close = {'atol': 1.01 / 255 if seen['config'].slips else 2e-6}
    np.testing.assert_allclose(prepared.indicator, seen['j_u'], **close)
    j_c = prepared.indicator_c
    np.testing.assert_allclose(j_c, seen['j_c'], **close)
    np.testing.assert_allclose(metrics['agreement'], seen['agreement'], rtol=1e-6)
    assert 0 < seen['agreement'] < 1
    confident = (prepared.indicator >= 0.22) & (seen['label_u'] >= 0)
    np.testing.assert_allclose(metrics['confident'], confident.mean(), rtol=1e-6)
    if seen['config'].slips:
        steps = np.asarray(prepared.indicator) * 255
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        assert (steps <= np.asarray(softmax_of(seen)) * 255 + 1e-3).all()  # rounded down


def softmax_of(seen):
    """The confidence before it was rounded."""
    return softmax(np.asarray(bilinear(seen['taught']['logits'], (32, 32)))).max(-1)


def test_l_u_is_the_mean_that_is_asked_for(seen):
    logits = np.asarray(bilinear(seen['out_u']['logits'], (32, 32)), np.float64)
    label, indicator = np.asarray(seen['prepared'].label), seen['prepared'].indicator
    losses = -np.log(np.take_along_axis(softmax(logits), label[..., None].clip(0), -1)[..., 0])
    passed, labelled = np.asarray(indicator) >= 0.22, label >= 0
    if seen['config'].unsupervised.loss == 'thresholded':
        expected = losses[passed & labelled].mean()
    else:
        weights = passed.sum((1, 2)) / np.maximum(labelled.sum((1, 2)), 1)
        expected = (weights[:, None, None] * losses)[labelled].mean()
    np.testing.assert_allclose(seen['metrics']['loss_unsupervised'], expected, rtol=1e-4)


def test_l_c_sees_the_valid_and_hard_pixels_of_both_views(seen):
    config, prepared, metrics, memory = (
        seen[k] for k in ('config', 'prepared', 'metrics', 'memory')
    )
    z = pixels(seen['out'], seen['out_u'])
    j_c = np.asarray(prepared.indicator_c)
    confident = shrunk(np.where(j_c >= 0.21, seen['label_c'], -1))
    labels = np.concatenate([shrunk(prepared.labels), confident])
    valid = labels >= 0
    np.testing.assert_allclose(metrics['valid'], (confident >= 0).mean(), rtol=1e-6)

    old, known = seen['old']['prototypes'], seen['old']['seen']
    scores = cosines(z, old) / 0.3
    if config.contrastive.unseen == 'masked':
        scores = np.where(known, scores, -np.inf)
    if config.indicator == 'confidence':
        scores = pixels(seen['out'], seen['out_u'], head='logits')
    own = softmax(scores)[np.arange(len(z)), labels]
    hard = valid & (own < config.contrastive.hard_threshold)
    np.testing.assert_allclose(metrics['hard'], hard.sum() / valid.sum(), atol=2 / valid.sum())
    assert 0.05 < hard.sum() / valid.sum() < 0.98

    source, where = z, labels  # Eq. 2 and 3: the mean of raw representations; a new one is copied
    if config.contrastive.prototype_source == 'teacher':
        source = pixels(seen['taught_l'], seen['taught'])
    for c in range(7):
        if not (where == c).any():
            continue
        mean = source[where == c].mean(0)
        expected = 0.9 * old[c] + 0.1 * mean if known[c] else mean
        np.testing.assert_allclose(memory['prototypes'][c], expected, rtol=1e-3, atol=1e-5)
    assert memory['seen'].all()

    key = jax.random.wrap_key_data(seen['key'])
    expected, _ = contrast(key, z, labels, hard, memory['prototypes'])
    np.testing.assert_allclose(metrics['loss_contrastive'], expected, rtol=2e-2)


def test_the_parts_add_up_with_their_weights(seen):
    config, metrics = seen['config'], seen['metrics']
    step = seen['step']
    factor = {
        'rampdown': np.exp(-5 * (step / config.steps) ** 2),
        'reference': np.exp(-5 * (step // 2 / 200) ** 2),  # by passes of two steps
        'constant': 1.0,
    }[config.contrastive.schedule]
    np.testing.assert_allclose(metrics['weight_contrastive'], 2.0 * factor, rtol=1e-5)
    total = metrics['loss_supervised'] + 0.5 * metrics['loss_unsupervised']
    total += 2.0 * factor * metrics['loss_contrastive']
    np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)


def test_streams_may_differ_in_crop_and_batch_size():
    config = tiny.get_config()
    config.data.streams.labelled.crop = (48, 40)
    config.data.streams.labelled.batch_size = 2
    config = configs.finalise(config)
    method, ctx = methods.METHODS['css_mix'], methods.context(config)
    batch = {
        'labelled': {'image': np.zeros((2, 48, 40, 3), np.uint8), 'label': np.zeros((2, 48, 40))},
        'unlabelled': BATCH['unlabelled'],
    }

    def loss(current):
        keys = parallel.step_keys(current.key, current.step, batch, None)
        prepared, _ = method.targets(current, batch, keys, ctx)
        where = {'method': method, 'ctx': ctx}
        return steps.objective(current.student.params, current, prepared, keys, **where)[0]

    shape = jax.eval_shape(lambda: loss(state.create(method, method.optimizer(config)[0], ctx)))
    assert shape.shape == ()
    assert css.METHOD.streams == {'labelled': 'mask', 'unlabelled': 'none'}


def test_the_warm_up_begins_after_the_burn_in():
    """In the burn-in no prototype moves, so that its passes would be none of cross's."""
    config = tiny.get_config()
    config.update_from_flattened_dict({'method': 'css_cross', 'burn_in_steps': 5, 'steps': 30})
    config.unsupervised.warmup_passes = 3
    config.contrastive.schedule = 'reference'
    ctx = methods.context(configs.finalise(config), images=IMAGES)  # two steps a pass
    assert css._warmup_end(ctx) == 5 + 3 * 2
    states = [SimpleNamespace(step=np.int32(t)) for t in (5, 6, 7, 404, 405)]
    weights = [float(css.weights(state, ctx)['contrastive']) for state in states]
    first = config.contrastive.weight
    later = first * np.exp(-5 * (1 / 200) ** 2)
    np.testing.assert_allclose(weights[:3], [first, first, later], rtol=1e-6)
    assert 0 < weights[3] < 0.01 * first and weights[4] == 0


def test_classmix_divides_the_logit_space_s_labels_where_spaces_exchange_theirs(monkeypatch):
    leads = []
    monkeypatch.setattr(
        views, 'strong', lambda images, maps, keys, ctx, lead='label': leads.append(lead) or 0 / 0
    )
    for method in ('css_cross', 'css_mix'):
        config = tiny.get_config()
        config.method = method
        config = configs.finalise(config)
        ctx, found = methods.context(config, images=IMAGES), methods.METHODS[method]

        def targets(current, ctx=ctx, found=found):
            keys = parallel.step_keys(current.key, current.step, BATCH, None)
            return found.targets(current, BATCH, keys, ctx)

        with pytest.raises(ZeroDivisionError):
            jax.eval_shape(
                lambda run=targets, f=found, c=ctx, o=config: run(
                    state.create(f, f.optimizer(o)[0], c)
                )
            )
    assert leads == ['label_c', 'label']


def test_eight_bits_move_a_threshold_up():
    config = tiny.get_config()
    config.slips = True
    ctx = methods.context(configs.finalise(config))
    maps = {'j': np.float32([0.971, 0.9726, 0.7, 0.703]), 'y': np.int32([-1, 0, 1, 2])}
    rounded = views.stored_indicators(maps, ctx)
    assert (rounded['j'] >= np.float32([0.97, 0.97, 0.7, 0.7])).tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(rounded['y'], maps['y'])
