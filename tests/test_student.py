"""The student's two views in one pass: what it shares with two passes, and what it does not."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, parallel, state
from css_jax import step as steps
from css_jax.methods import student
from css_jax.state import Variables
from tests import spread, tiny
from tests.small import Plain, drawn, small

BATCH = next(spread.batches())  # 16 images a stream
RNG = np.random.default_rng(0)
VIEWS = {  # of different brightness, so that statistics tell one from the other
    'images': RNG.normal(0, 1, (4, 32, 32, 3)).astype(np.float32),
    'strong': RNG.normal(2, 3, (4, 32, 32, 3)).astype(np.float32),
}


def configuration(method='cutmix', **changes):
    c = tiny.get_config('supervised' if method == 'supervised' else 'cutmix')
    c.method = method
    c.optimizer.learning_rate = 0.02
    c.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return configs.finalise(c)


def contexts():
    """The context of two passes, that of one, and arrays with a variance of 1."""
    ctxs = [methods.context(configuration(joint_pass=joint)) for joint in (False, True)]
    return *ctxs, drawn(state.shapes(ctxs[0]), 1, 1)


def test_with_frozen_statistics_one_pass_is_two(monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    two, one, variables = contexts()

    @jax.jit
    def both(params, batch_stats, views):
        found = []
        for ctx in (two, one):
            frozen = SimpleNamespace(
                config=ctx.config,
                train=lambda v, x, ctx=ctx: (ctx.evaluate(v, x), v.batch_stats),
            )
            found.append(student.run(params, batch_stats, **views, ctx=frozen))
        return found

    found = both(variables.params, variables.batch_stats, VIEWS)
    assert [len(out['logits']) for out in found[1][:2]] == [4, 4]
    assert not np.allclose(found[1][0]['logits'], found[1][1]['logits'], atol=0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *found)


def test_statistics_are_those_of_both_views_together_and_move_once(monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    _, one, variables = contexts()

    def moved(images):
        return one.train(variables, images)[1]['BatchNorm_0']

    @jax.jit
    def everything():
        joint = student.run(variables.params, variables.batch_stats, **VIEWS, ctx=one)[2]
        return joint['BatchNorm_0'], moved(VIEWS['images']), moved(VIEWS['strong'])

    joint, labelled, strong = jax.device_get(everything())
    # What each pass adds, from a mean of 0 and a variance of 1: a tenth of its own batch's.
    means = [10 * part['mean'] for part in (labelled, strong)]
    # Each is an estimate of 256 values, n/(n-1) times their variance; the joint one is of 512.
    variances = [10 * (part['var'] - 0.9) * 255 / 256 for part in (labelled, strong)]
    mean = sum(means) / 2
    variance = sum(variances) / 2 + sum((m - mean) ** 2 for m in means) / 2
    assert np.abs(means[0] - means[1]).max() > 0.1
    np.testing.assert_allclose(joint['mean'], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(joint['var'], 0.9 + 0.1 * variance * 512 / 511, rtol=1e-4)


@functools.cache
def stepped(build, joint, parts=1, devices=1):
    """State and metrics after a step of CutMix on 16 + 16 images."""
    config = configuration(
        joint_pass=joint,
        accumulate_steps=parts,
        data__streams__labelled__batch_size=16,
        data__streams__unlabelled__batch_size=16,
    )
    method, layout = methods.METHODS['cutmix'], parallel.Layout('jit', jax.devices()[:devices])
    ctx = methods.context(config, parallel.AXIS, spread.IMAGES)
    tx = method.optimizer(config)[0]
    step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    current = state.create(method, tx, methods.context(config), {}, layout.replicated)
    batch = layout.place(BATCH)
    return spread.ended(*layout.compile_step(step, current, batch)(current, batch))


def plain(config, num_classes, outputs, axis_name):
    return Plain(tuple(outputs.items()))


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        difference = np.abs(ours[path].astype(np.float64) - expected).max()
        assert difference <= 1e-5 * (np.abs(expected).max() or 1e-30), path


def test_without_batch_norm_a_step_is_that_of_two_passes(monkeypatch):
    monkeypatch.setattr(models, 'build', plain)
    expected = stepped(plain, False)
    assert expected['metrics/loss_unsupervised'] > 0 and expected['metrics/loss_supervised'] > 0
    close(stepped(plain, True, parts=2, devices=2), expected)  # the shares in the log, too


def test_two_devices_are_one(monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    close(stepped(small, True, devices=2), stepped(small, True))


def test_css_has_the_pass_too(monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    passes = []
    for joint in (False, True):
        config = configuration('css_mix', joint_pass=joint)
        ctx, method = methods.context(config, images=spread.IMAGES), methods.METHODS['css_mix']
        shapes = []

        class Counted(type(ctx)):
            def train(self, variables, images, shapes=shapes):
                shapes.append(images.shape[0])
                return super().train(variables, images)

        counted = Counted(**{f.name: getattr(ctx, f.name) for f in dataclasses.fields(ctx)})

        def loss(current, ctx=counted, method=method):
            keys = parallel.step_keys(current.key, current.step, BATCH, None)
            prepared, _ = method.targets(current, BATCH, keys, ctx)
            return method.loss(current.student.params, current, prepared, keys, ctx)[0]

        tx = method.optimizer(config)[0]
        jax.eval_shape(lambda f=loss, m=method, t=tx, c=ctx: f(state.create(m, t, c)))
        passes.append(shapes)
    assert passes == [[16, 16, 16, 16], [16, 16, 32]]  # the teacher's two, then the student's


@pytest.mark.parametrize(
    ('method', 'changes', 'words'),
    [
        ('cutmix', {'data__streams__labelled__crop': (32, 40)}, r'crops are .*\(32, 40\)'),
    ],
)
def test_what_cannot_be_put_together_is_refused(method, changes, words):
    assert not configuration(method, **changes).joint_pass
    with pytest.raises(ValueError, match=words):
        configuration(method, joint_pass=True, **changes)


def test_batches_may_differ(monkeypatch):
    monkeypatch.setattr(models, 'build', small)
    _, one, variables = contexts()
    views = {'images': VIEWS['images'][:1], 'strong': VIEWS['strong']}

    @jax.jit
    def everything(params, batch_stats, views):
        joint = student.run(params, batch_stats, **views, ctx=one)[:2]
        every = jax.numpy.concatenate([*views.values()])
        return *joint, one.train(Variables(params, batch_stats), every)[0]

    out, out_u, expected = everything(variables.params, variables.batch_stats, views)
    assert (len(out['logits']), len(out_u['logits'])) == (1, 4)
    np.testing.assert_allclose(out['logits'], expected['logits'][:1], rtol=1e-6)
    np.testing.assert_allclose(out_u['logits'], expected['logits'][1:], rtol=1e-6)
