"""The teacher's BatchNorm in its modes, and what the methods of Table 1 have in common."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, models, state
from css_jax import step as steps
from css_jax.methods import teacher, views
from css_jax.ops import pseudo_labels
from css_jax.state import Variables
from tests import tiny
from tests.small import small
from tests.test_step import BATCH, leaves

IMAGES = {'labelled': 8, 'unlabelled': 16}
WEAK = BATCH['unlabelled']['image']


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(models, 'build', small)


def configured(method, **changes):
    """Method, context and the first state."""
    config = tiny.get_config('supervised' if method == 'supervised' else 'cutmix')
    config.method = method
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    config = configs.finalise(config)
    found, ctx = methods.METHODS[method], methods.context(config, images=IMAGES)
    return found, ctx, state.create(found, found.optimizer(config)[0], ctx)


def run(method, **changes):
    """States before, between and after two steps, the last metrics, method and context."""
    found, ctx, current = configured(method, **changes)
    tx = found.optimizer(ctx.config)[0]
    step = jax.jit(functools.partial(steps.train_step, method=found, optimizer=tx, ctx=ctx))
    states = [current]
    for _ in range(2):
        after, metrics = step(states[-1], BATCH)
        states.append(after)
    return states, jax.device_get(metrics), found, ctx


def targets(current, found, ctx, then):
    """then(targets, statistics) of a step from this state, in one program."""

    def both(current):
        keys = steps.parallel.step_keys(current.key, current.step, BATCH, None)
        return then(*found.targets(current, BATCH, keys, ctx))

    return jax.device_get(jax.jit(both)(current))


def close(ours, theirs, **tolerance):
    ours, theirs = leaves(ours), leaves(theirs)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], err_msg=name, **tolerance)


@pytest.mark.parametrize('method', ['mean_teacher', 'css_mix'])
@pytest.mark.parametrize('labelled_pass', [False, True])
def test_statistics_of_its_own_come_from_the_passes_it_makes(method, labelled_pass):
    found, ctx, current = configured(method, teacher__labelled_pass=labelled_pass)
    other = jax.tree.map(lambda x: np.asarray(x) * 1.1 + 0.1, current.student)
    current = current.replace(teacher=other)

    def passes(prepared, ours):
        _, expected = ctx.train(current.teacher, views.normalise(WEAK, ctx))
        if labelled_pass:
            again = Variables(current.teacher.params, expected)
            _, expected = ctx.train(again, prepared.images)
        return ours, expected

    close(*targets(current, found, ctx, passes), rtol=1e-3, atol=1e-5)


def test_a_step_leaves_the_teacher_with_them():
    states, _, found, ctx = run('mean_teacher')
    expected = targets(states[1], found, ctx, lambda _, statistics: statistics)
    close(states[2].teacher.batch_stats, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('method', ['mean_teacher', 'supervised'])
def test_statistics_that_follow_the_student_s(method):
    states, _, found, ctx = run(method, teacher__batch_norm='ema')
    old, new, student = (
        leaves(v.batch_stats) for v in (states[1].teacher, states[2].teacher, states[2].student)
    )
    for name in old:  # second step: decay 1/2
        np.testing.assert_allclose(new[name], (old[name] + student[name]) / 2, rtol=1e-4, atol=1e-6)
        assert (old[name] != new[name]).any()
    if method == 'mean_teacher':  # and its pseudo-labels are of the running statistics

        def labels(prepared, _):
            logits = ctx.evaluate(states[1].teacher, views.normalise(WEAK, ctx))['logits']
            return prepared.weak_label, pseudo_labels.from_logits(logits, WEAK.shape[1:3])[0]

        np.testing.assert_array_equal(*targets(states[1], found, ctx, labels))


def test_a_teacher_of_another_run_is_not_copied_over():
    config = configs.finalise(tiny.get_config('supervised'))
    old, new = (Variables({'w': np.float32(x)}, {'mean': np.float32(x)}) for x in (1, 3))
    begin = SimpleNamespace(step=np.int32(0), teacher=old)
    for folder, expected in (('', 3.0), ('elsewhere', 0.99 * 1 + 0.01 * 3)):
        changed = ConfigDict(config.to_dict() | {'init_from': folder})
        ctx = state.Context(None, changed)
        updated = teacher.update(begin, new, old.batch_stats, ctx)
        np.testing.assert_allclose(updated.params['w'], expected, rtol=1e-6)
        assert updated.batch_stats['mean'] == 1


def test_the_mean_teacher_mixes_nothing_and_cutmix_does():
    found = {}
    still = {'augment__resize': (1.0, 1.0), 'augment__flip_prob': 0.0}
    for name in ('mean_teacher', 'cutmix'):
        method, ctx, current = configured(name, **still)
        found[name] = targets(
            current, method, ctx, lambda p, _, ctx=ctx: (p.strong, views.normalise(WEAK, ctx))
        )
    strong, weak = found['mean_teacher']
    np.testing.assert_allclose(strong, weak, atol=1e-5)
    mixed, _ = found['cutmix']
    own = np.isclose(mixed, weak, atol=1e-5).all(-1)
    partner = np.isclose(mixed, np.roll(weak, -1, 0), atol=1e-5).all(-1)
    assert (own | partner).all() and 0.3 < own.mean() < 0.7
    assert ctx.config.augment.mixing == 'cutmix'


def test_the_baseline_is_css_on_the_logits_without_its_own_constants():
    same = {'pseudo_label': 'logit', 'indicator': 'confidence'}
    same |= {'contrastive__schedule': 'constant', 'teacher__labelled_pass': False}
    small = {'contrastive__hard_threshold': 0.9}
    baseline, metrics, *_ = run('baseline', **small)
    css, others, *_ = run('css', **small, **same)
    assert metrics['weight_contrastive'] == 1 and metrics['loss_contrastive'] > 0
    assert metrics.keys() == others.keys()
    jax.tree.map(np.testing.assert_array_equal, baseline[2].student, css[2].student)


def test_two_of_table_1_have_no_second_head():
    heads = {}
    for name, method in methods.METHODS.items():
        if 'follow' not in method.keys:  # of another paper
            continue
        config = tiny.get_config('cutmix')
        config.method = name
        heads[name] = set(method.outputs(configs.finalise(config)))
    alone = {'supervised', 'mean_teacher', 'cutmix'}
    assert {name for name in heads if heads[name] == {'logits'}} == alone
    assert all(heads[name] == {'logits', 'representation'} for name in set(heads) - alone)
