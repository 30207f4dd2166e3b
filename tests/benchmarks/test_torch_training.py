"""The same training in PyTorch: with the same draws a step is ours. It needs torch."""

import functools
import json

import jax
import numpy as np
import pytest

pytest.importorskip('torch')
import torch

from benchmarks import against_torch, torch_step, torch_training, torch_views
from css_jax import config as configs
from css_jax import methods, parallel, state, step
from css_jax.evaluation import evaluator
from css_jax.methods import views
from css_jax.ops import draws
from css_jax.run import folder
from tests import tiny

pytestmark = pytest.mark.soak

OFF = {'augment.jitter_prob': 0.0, 'augment.blur_prob': 0.0, 'augment.flip_prob': 0.0}
PLAIN = {**OFF, 'augment.resize': (1.0, 1.0), 'joint_pass': True}


def configuration(method, **changes):
    c = tiny.get_config(method)
    c.optimizer.learning_rate = 0.01
    if method != 'supervised':
        changes |= {'unsupervised.loss': 'thresholded', 'unsupervised.threshold': 0.8}
    c.update_from_flattened_dict(changes)
    return configs.finalise(c)


def batch_of(config, rng):
    """Blocks of colours; labels of some classes and void."""
    batch = {}
    for name, stream in config.data.streams.items():
        shape = (stream.batch_size, *stream.crop)
        coarse = rng.integers(0, 256, (shape[0], 4, 4, 3), np.uint8)
        batch[name] = {'image': coarse.repeat(shape[1] // 4, 1).repeat(shape[2] // 4, 2)}
        if stream.reads == 'mask':
            batch[name]['label'] = rng.choice([0, 1, 5, 255], shape).astype(np.uint8)
    return batch


def drawn(keys):
    """Our numbers for the views in PyTorch; stream -> keys of its images."""

    def draw(stream, purpose, count):
        return torch.tensor(np.asarray(draws.uniform(keys[stream], purpose, count)))

    return draw


def keys_of(current, batch):
    keys = parallel.step_keys(current.key, current.step, batch, None)
    purposes = {'labelled': 'photometric', 'unlabelled': 'strong'}
    return {stream: keys(stream, purposes[stream]) for stream in batch}


@pytest.mark.parametrize(
    ('method', 'changes'), [('supervised', OFF), ('mean_teacher', PLAIN), ('cutmix', {})]
)
def test_steps_equal_ours(method, changes, shallow):
    config, rng = configuration(method, **changes), np.random.default_rng(0)
    ctx, of_method = methods.context(config), methods.METHODS[method]
    optimizer, _ = of_method.optimizer(config)
    first = state.create(of_method, optimizer, ctx)
    student = against_torch.decided(first.student, rng)
    out = student.params['head_logits']['out']
    out['kernel'] = 10 * out['kernel']  # the teacher is sure here and there, and of two classes
    first = current = first.replace(student=student, teacher=student)
    training = torch_step.start(config, first)
    ours = jax.jit(
        functools.partial(step.train_step, method=of_method, optimizer=optimizer, ctx=ctx)
    )
    for t in range(2):  # the second has a momentum, and a teacher that is no copy
        batch = batch_of(config, rng)
        draw = drawn(keys_of(current, batch))
        current, logged = ours(current, batch)
        loss = torch_step.step(training, t, batch, draw, config)
        assert loss == pytest.approx(float(logged['loss']), rel=1e-4)
        assert 'unlabelled' not in batch or 0.2 < logged['confident'] < 0.9
    for name in ('student', 'teacher'):
        begun, expected = (
            against_torch.in_torch_order(vars(getattr(of, name))) for of in (first, current)
        )
        got = {path: x.detach().numpy() for path, x in getattr(training, name).items()}
        moved = [
            {f'gradient/{path}': x - begun[path] for path, x in arrays.items()}
            for arrays in (expected, got)
        ]
        assert all(np.abs(x).max() > 0 for x in moved[0].values())
        for path, error in against_torch.differences(*moved).items():
            assert error < against_torch.TOLERANCE, (name, path)


@pytest.mark.parametrize('seed', range(4))
def test_views_equal_ours(seed):
    config, rng = configuration('cutmix'), np.random.default_rng(seed)
    ctx, batch = methods.context(config), batch_of(config, rng)
    shape = batch['unlabelled']['image'].shape[:3]
    given = {
        'label': rng.integers(0, 7, shape, np.int32),
        'indicator': rng.random(shape, np.float32),
    }
    keys = jax.random.split(jax.random.key(seed), shape[0])
    draw = functools.partial(drawn({'': keys}), '')
    labelled, weak = (torch_step.levels(batch[s]['image']) for s in ('labelled', 'unlabelled'))

    def same(images, expected):
        found = torch_views.normalise(images, config.data).permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    expected, labels = views.labelled(batch['labelled'], lambda *_: keys, ctx)
    as_given = torch.tensor(np.array(views.host_labels(batch['labelled']['label'])))
    images, found = torch_views.photometric(draw, labelled, [as_given], config.augment)
    same(images, expected)
    np.testing.assert_array_equal(found, labels)

    expected, maps = views.strong(batch['unlabelled']['image'], given, lambda *_: keys, ctx)
    of_torch = (torch.tensor(x) for x in given.values())
    images, *found = torch_views.strong(draw, weak, *of_torch, config.augment)
    same(images, expected)
    for name, got in zip(given, found, strict=True):
        # Rounding decides where a pixel's centre lies between two others.
        assert (got.numpy() != np.asarray(maps[name])).mean() < 0.03


@pytest.fixture(scope='module')
def command(data_dir, tmp_path_factory):
    """The command line of four steps, of which one is the burn-in's; and a folder."""
    out = tmp_path_factory.mktemp('torch')
    changes = {
        **{'data.dir': data_dir, 'model.backbone': 'mobilenet_v1', 'model.width': 0.125},
        **{'data.streams.labelled.crop': '32,32', 'data.streams.unlabelled.crop': '32,32'},
        **{'burn_in_steps': 1, 'unsupervised.loss': 'thresholded'},
    }
    given = ['--config', 'configs/quickstart.py:cutmix,steps=4', '--out', str(out / 'found.json')]
    return [*given, *(f'--config.{key}={value}' for key, value in changes.items())], out


def test_a_training_stands_beside_our_run(command, monkeypatch, capsys):
    given, out = command
    config, _ = torch_training.read(given)
    folder.save(config, out)
    records = [
        {'step': 1, 'loss': 0.7, 'images_per_second': 4.0},
        {'step': 3, 'loss': 0.6, 'images_per_second': 1.0},
        {'step': 4, 'loss': 0.5, 'images_per_second': 2.0},
        {'step': 4, 'eval_miou': 0.1},
    ]
    (out / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, records)))
    scored = dict.fromkeys(('iou', 'split', 'protocol', 'eval'), '')
    for miou, file in ((0.25, 'results.json'), (0.5, torch_training.STUDENT)):
        (out / file).write_text(json.dumps({'step': 4, 'miou': miou, **scored}))
    kept, score = [], torch_training.scores
    monkeypatch.setattr(torch_training, 'scores', lambda *x: kept.append(x[0]) or score(*x))
    torch_training.main([*given, '--ours', str(out)])

    found = json.loads((out / 'found.json').read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found['ours'] == {
        'seconds with data': {'supervised': 2.0, 'cutmix': 12.0},
        'loss': 0.5,
        'miou': {'teacher': 0.25, 'student': 0.5},
    }
    theirs = found['theirs']
    assert set(theirs['seconds']) == set(theirs['seconds of data']) == {'supervised', 'cutmix'}
    # What it scores is what our evaluator gives for the same arrays.
    (evaluate,) = evaluator.evaluators(config).values()
    like = state.networks(methods.METHODS['cutmix'], methods.context(config))
    for name, miou in theirs['miou'].items():
        arrays = {path: x.detach().numpy() for path, x in getattr(kept[0], name).items()}
        arrays = {path: x.transpose(2, 3, 1, 0) if x.ndim == 4 else x for path, x in arrays.items()}
        leaves = [arrays[path] for path in state.flat(like[name])]
        variables = jax.tree.unflatten(jax.tree.structure(like[name]), leaves)
        assert evaluate(variables)['miou'] == pytest.approx(miou, abs=1e-4)


def test_our_run_has_the_same_configuration(command):
    given, out = command
    (other := out / 'other').mkdir()
    folder.save(torch_training.read([*given, '--config.seed=1'])[0], other)
    with pytest.raises(ValueError, match='seed: 1 there, 0 now'):
        torch_training.ours(other, torch_training.read(given)[0])


def test_a_folder_that_is_not_there_is_known_before_training(command):
    with pytest.raises(ValueError, match='there is no folder'):
        torch_training.read([*command[0], '--out', str(command[1] / 'nowhere' / 'found.json')])


@pytest.mark.parametrize(
    ('key', 'text', 'expected'),
    [
        ('unsupervised.loss', 'weighted', "got 'weighted', expected 'thresholded'"),
        ('augment.mixing', 'classmix', "got 'classmix', expected 'none' or 'cutmix'"),
        ('eval.scales', '0.5,1.0', r'got \(0.5, 1.0\), expected \(1.0,\)'),
    ],
)
def test_what_is_not_written_in_pytorch_is_refused(key, text, expected, command):
    with pytest.raises(ValueError, match=f'^{key}: {expected}$'):
        torch_training.read([*command[0], f'--config.{key}={text}'])


def test_the_learning_rate_is_ours():
    config = configuration('supervised', **{'optimizer.warmup_steps': 3})
    rate = methods.METHODS['supervised'].optimizer(config)[1]['learning_rate']
    for t in range(config.steps):
        assert torch_step.learning_rate(config, t) == pytest.approx(float(rate(t)), rel=1e-5)
