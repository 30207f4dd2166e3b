"""The rules of the house: who may import and name what, and methods that are nothing like CSS."""

import ast
import dataclasses
import json
import shutil

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import evaluate, main, methods, models, optimizer, predict, state, train
from css_jax.config import file as stored
from css_jax.data import sources
from css_jax.evaluation import evaluator, results
from css_jax.keys import Key
from css_jax.methods import Method
from css_jax.modes import report
from css_jax.run import checkpoint, metrics
from tests import golden
from tests.conftest import ROOT
from tests.small import small
from tests.toys import TOYS, datasets

PACKAGE = ROOT / 'css_jax'
FILES = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob('*.py')}


def imports(path):
    """Dotted names of all that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def words(path):
    """Names, attributes and whole strings of a file's code."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize('name', [n for n in sorted(FILES) if n.startswith('ops/')])
def test_ops_import_only_arrays_and_ops(name):
    standard = {'math', 'zlib', 'collections', 'dataclasses', 'functools', 'typing'}
    for module in imports(FILES[name]):
        top = module.split('.')[0]
        assert top in {'jax', 'numpy', *standard} or module.startswith('css_jax.ops'), module


@pytest.mark.parametrize('name', [n for n in sorted(FILES) if not n.startswith('parallel/')])
def test_only_parallel_knows_devices(name):
    assert not any('multihost_utils' in module for module in imports(FILES[name]))
    collectives = {'psum', 'pmean', 'all_gather', 'ppermute', 'axis_index', 'pcast', 'axis_size'}
    own = {'psum', 'gather', 'rank', 'varying', 'next_example'}  # the helpers of parallel/
    tree = ast.parse(FILES[name].read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id == 'parallel')
    }
    allowed = {'pmean', 'axis_size'} if name == 'models/layers.py' else set()  # BatchNorm
    assert not used & ((collectives | own | {'pmap', 'shard_map', 'Mesh'}) - allowed - {'rank'})
    assert name.startswith('ops/') or 'jit' not in used


@pytest.mark.parametrize('name', sorted(set(FILES) - {'run/checkpoint.py'}))
def test_only_checkpoint_knows_orbax(name):
    assert not any(module.startswith('orbax') for module in imports(FILES[name]))


@pytest.mark.parametrize('name', ['step.py', 'train.py', 'prepare.py', 'state.py'])
def test_the_loop_names_no_method_dataset_head_or_stream(name):
    heads = {'logits', 'representation', 'prototypes', 'labelled', 'unlabelled', 'contrastive'}
    assert not words(FILES[name]) & {*methods.METHODS, *sources.DATASETS, *heads}


def test_no_tensorflow():
    for path in [*FILES.values(), *(ROOT / 'data_prep').rglob('*.py')]:
        assert not any(m.split('.')[0] in ('tensorflow', 'torch') for m in imports(path)), path


# Who may import whom.

# Rooms are the folders of css_jax; a file of the top level is a room of its own.
BACK_ARROWS: set[tuple[str, str]] = set()


def arrows():
    """File of css_jax -> the files of css_jax that it imports, at the top or in a function."""
    modules = {}
    for name in FILES:
        dotted = 'css_jax.' + name.removesuffix('.py').replace('/', '.')
        modules[dotted.removesuffix('.__init__')] = name
    found = {}
    for name, path in FILES.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # What is no module of the package is a name in it.
                targets = [
                    dotted if (dotted := f'{node.module}.{alias.name}') in modules else node.module
                    for alias in node.names
                ]
            else:
                continue
            found[name] |= {modules[target] for target in targets if target in modules}
        found[name].discard(name)
    return found


def circle(graph):
    """A path from a node back to it, None if there is none."""
    done = set()

    def walk(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            done.add(node)
            for other in sorted(graph[node]):
                if found := walk(other, [*path, node]):
                    return found
        return None

    return next((found for node in sorted(graph) if (found := walk(node, []))), None)


def test_no_file_imports_in_a_circle():
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'a'}}) == ['a', 'b', 'c', 'a']
    assert circle(arrows()) is None


def test_no_room_imports_in_a_circle_but_by_the_back_arrows():
    rooms: dict[str, set[str]] = {}
    for name, others in arrows().items():
        room = name.split('/')[0]
        rooms.setdefault(room, set())
        for other in others:
            pair = room, other.split('/')[0]
            if pair[0] != pair[1] and pair not in BACK_ARROWS:
                rooms[room].add(pair[1])
    assert circle(rooms) is None


def test_a_method_s_keys_are_declared_where_nobody_else_lists_them():
    own = {path for path in configs.keys('css_mix') if path.startswith('contrastive.')}
    for name in ('config/table.py', 'config/defaults.py', 'config/check.py', 'config/warnings.py'):
        leaves = {path.split('.')[1] for path in own} - {'weight', 'schedule', 'temperature'}
        assert not words(FILES[name]) & leaves, name


# What a method is.


def test_a_misspelt_or_a_missing_hook_fails_at_import():
    given = {'streams': {}, 'outputs': None, 'targets': None, 'loss': None}
    with pytest.raises(TypeError, match="unexpected keyword argument 'update_memroy'"):
        Method(**given, update_memroy=None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'loss'"):
        Method(streams={}, outputs=None, targets=None)
    with pytest.raises(ValueError, match='unexpected field names'):
        methods.METHODS['css']._replace(optimiser=None)


class Patches(nn.Module):
    """A backbone of stride 14 without BatchNorm, as a vision transformer's patches are."""

    @nn.compact
    def __call__(self, x, train):
        if x.shape[1] % 14 or x.shape[2] % 14:
            raise ValueError(f'got {x.shape}, expected multiples of 14')
        x = nn.relu(nn.Conv(8, (14, 14), (14, 14))(x))
        return {'stride4': x, 'last': nn.Conv(8, (1, 1))(x)}


class Strided(nn.Module):
    """Heads on that backbone, without a decoder."""

    outputs: tuple

    @nn.compact
    def __call__(self, x, train=False):
        x = Patches()(x, train)['last']
        return {name: nn.Conv(channels, (1, 1), name=name)(x) for name, channels in self.outputs}


def strided(config, num_classes, outputs, axis_name):
    return Strided(tuple(outputs.items()))


BUILD = models.build


@pytest.fixture
def house(monkeypatch):
    """The toys as methods, their datasets, and the backbone of stride 14."""
    for name, toy in TOYS.items():
        monkeypatch.setitem(methods.METHODS, name, toy)
    for name, module in datasets.DATASETS.items():
        monkeypatch.setitem(sources.DATASETS, name, module)
    monkeypatch.setitem(models.BACKBONES, 'patches', lambda config, axis_name: Patches())
    # The toy of stride 14 holds its network to that; for the others any one will do.
    monkeypatch.setattr(
        models, 'build', lambda *a, **k: (strided if 'embedding' in a[2] else small)(*a, **k)
    )


def toy_config(name, data_dir):
    """Four steps on 28x42 pixels, a checkpoint after each second."""
    config = configs.default()
    config.method = name
    config.data.dir = data_dir
    config.steps, config.log_every, config.checkpoint_every = 4, 1, 2
    config.model.backbone, config.model.width = 'patches', 0.125
    common = {'count': 4, 'batch_size': 2, 'crop': (28, 42)}
    for stream in TOYS[name].streams:
        dataset = stream if stream in datasets.DATASETS else 'shapes'
        config.data.streams[stream] = configs.stream(dataset, **common)
    config.eval.batch_size = 4
    config.eval.pad_to = (70, 70)
    return config


def arrays(workdir):
    parts = list(state.TrainState.__dataclass_fields__)
    return checkpoint.restore_arrays(workdir, checkpoint.find(str(workdir), 'last'), parts)


@pytest.mark.parametrize('name', TOYS)
def test_a_method_nothing_like_css_is_at_home(name, house, data_dir, tmp_path, capsys):
    """Trains, resumes from its half to the same bits, is evaluated, reported and predicts."""
    config = toy_config(name, data_dir)
    whole, broken = tmp_path / 'runs' / 'whole', tmp_path / 'runs' / 'broken'
    written = train.train(config, whole)
    records = metrics.read(whole)
    assert [r['step'] for r in records] == [1, 2, 3, 4]
    assert all(np.isfinite(r['loss']) and r['gradient_norm'] > 0 for r in records)

    shutil.copytree(whole, broken)
    shutil.rmtree(broken / checkpoint.FOLDER / '4')
    (broken / results.RESULTS).unlink()
    train.train(config, broken)
    jax.tree.map(np.testing.assert_array_equal, arrays(whole), arrays(broken))
    assert [r['loss'] for r in metrics.read(broken)] == [r['loss'] for r in records]

    again = json.loads(json.dumps(evaluate.evaluate(stored.read(whole), whole)))
    assert again == json.loads((whole / results.RESULTS).read_text())
    assert again == json.loads(json.dumps(written))
    assert again['best'] == {'step': 4, 'miou': again['miou']}
    every = methods.METHODS[name].evaluations(configs.finalise(config))
    several = name == 'two_datasets'
    table = report.report(tmp_path / 'runs', examples=2, html=several)
    if several:
        page = (tmp_path / 'runs' / report.PAGE).read_text()
        for title in ('Scores of coarse', 'Images of fine'):
            assert page.count(f'>{title}</h2>') == 1
        parts = again['evaluations']
        assert {n: len(part['iou']) for n, part in parts.items()} == {'coarse': 3, 'fine': 5}
        assert again['miou'] == np.mean([part['miou'] for part in parts.values()])
        assert records[-1]['eval_miou'] == pytest.approx(again['miou'])
        assert records[-1]['eval_miou_fine'] == pytest.approx(parts['fine']['miou'])
        assert 'coarse/disc' in table and 'fine/disc' in table
        pictures = ['report_coarse.png', 'report_fine.png']
    else:
        assert 'evaluations' not in again and 'disc' in table
        pictures = ['report.png']
    if name == 'image_labels':
        more = again['more']
        assert more['images'] == 10 and len(more['precisions']) == 7
        assert more['miou_masked'] > again['miou']  # the network guesses
        assert records[-1]['eval_precision'] == pytest.approx(more['precision'])
        assert records[-1]['eval_images'] == 10 and 'eval_precisions' not in records[-1]
        shown = f'{100 * more["miou_masked"]:.2f}'
        assert f'\nmiou_masked: {shown}\n' in capsys.readouterr().out
        row = next(line for line in table.splitlines() if line.startswith('| miou_masked'))
        assert row.count(shown) == 2 and 'precisions' not in table
    else:
        assert 'more' not in again
    assert sorted(path.name for path in (tmp_path / 'runs').glob('*.png')) == pictures
    for evaluation in every:
        labels = predict.load(whole, evaluation=evaluation).predict(
            np.zeros((1, 28, 42, 3), np.uint8)
        )
        assert labels.shape == (1, 28, 42)
    with pytest.raises(ValueError, match="evaluation: got 'x', expected one of"):
        predict.load(whole, evaluation='x')


def test_tags_without_masks_are_evaluated_but_for_miou(
    house, data_dir, tmp_path, monkeypatch, capsys, caplog
):
    """A split of tags is trained on, evaluated and reported like any other."""
    load = sources.load

    def tagged(dataset, split, data_dir=''):
        source = load(dataset, split, data_dir)
        blank = cv2.imencode('.png', np.full((64, 64), 255, np.uint8))[1].tobytes()
        return dataclasses.replace(
            source,
            records=[{**source.records[i], 'label': blank} for i in range(len(source))],
            pixels=np.zeros_like(source.pixels),
            tags=source.classes,
        )

    monkeypatch.setattr(sources, 'load', tagged)
    config = toy_config('image_labels', data_dir)
    config.steps, config.image_labels.warmup = 1, 0
    with caplog.at_level('INFO', 'css_jax'):
        results = train.train(config, tmp_path / 'run')
    assert results['miou'] is results['accuracy'] is results['loss'] is results['best'] is None
    assert set(results['iou'].values()) == {None} and results['more']['miou_masked'] is None
    precision = results['more']['precision']
    assert 0 < precision < 1 and results['more']['images'] == 10
    said = f'no mIoU on shapes/64:val, precision {100 * precision:.2f}, miou_masked -, images 10'
    assert said in caplog.text
    out = capsys.readouterr().out
    assert 'no mIoU: no image of shapes/64:val has a mask\nprecision: ' in out
    assert '| mIoU' not in out
    record = metrics.read(tmp_path / 'run')[-1]
    assert record['eval_miou'] is None and record['eval_precision'] == pytest.approx(precision)
    assert f'{100 * precision:.2f}' in report.report(tmp_path, examples=1, html=False)
    config = toy_config('without_teacher', data_dir)
    with pytest.raises(ValueError, match=r'eval\.split: .*expected a split with masks$'):
        evaluator.evaluators(configs.finalise(config))


def test_the_rates_that_are_logged_are_the_optimiser_s(house, data_dir, tmp_path):
    config = toy_config('image_labels', data_dir)
    config.steps = 2
    train.train(config, tmp_path)
    first = metrics.read(tmp_path)[0]
    assert first['learning_rate'] == pytest.approx(1e-5)
    assert first['learning_rate_head'] == pytest.approx(1e-4)
    # Adam's first update is as long as the rate, whatever the gradient.
    before = state.create(*_made(config))
    after = arrays(tmp_path)['student']
    assert before.step == 0 and len(after) == len(state.flat(before.student))


def _made(config):
    config = configs.finalise(config)
    method = methods.METHODS[config.method]
    return method, method.optimizer(config)[0], methods.context(config)


def test_a_phase_ends_at_its_step(house, data_dir, tmp_path):
    config = toy_config('image_labels', data_dir)
    config.image_labels.warmup = 3
    train.train(config, tmp_path)
    assert ['loss_maps' in r for r in metrics.read(tmp_path)] == [False, False, False, True]


def test_the_default_of_any_key_is_the_method_s(house, data_dir):
    c = configs.finalise(toy_config('image_labels', data_dir))
    assert (c.teacher.decay, c.optimizer.weight_decay) == (0.9994, 0.01)
    assert c.data.streams.images.resize == (0.5, 0.5)
    assert (c.image_labels.warmup, c.image_labels.sizes) == (2, (3, 4))
    given = toy_config('image_labels', data_dir)
    given.teacher.decay, given.optimizer.weight_decay = 0.99, 5e-4  # the table's, but set
    c = configs.finalise(given)
    assert (c.teacher.decay, c.optimizer.weight_decay) == (0.99, 5e-4)
    assert configs.origins(given)['teacher.batch_norm'] == 'method image_labels'


@pytest.mark.parametrize('broken', ['head', 'teacher', 'weights', 'loss', 'memory', 'rates'])
def test_what_cannot_be_trained_or_evaluated_is_told_before_anything_is_written(
    broken, house, monkeypatch, data_dir, tmp_path
):
    toy = TOYS['without_teacher']
    groups = [optimizer.Group('nothing', 'no_such_path')]
    changed, answer = {
        'head': (
            toy._replace(evaluations=Method._field_defaults['evaluations']),
            "the evaluation 'shapes' of method toy, of its student cannot be computed: KeyError",
        ),
        'teacher': (
            toy._replace(defaults={}),
            "eval.network: got 'teacher', a network that method toy has not",
        ),
        'weights': (
            toy._replace(weights=lambda state, ctx: {'scroes': 2.0}),
            r"a step of method toy \(until step 4\) cannot be computed: .*got \['scroes'\], expec",
        ),
        'loss': (toy._replace(loss=lambda *args: 1 / 0), 'a step of .*: ZeroDivisionError'),
        'memory': (
            toy._replace(update_memory=lambda *args: {'queue': jnp.zeros(3)}),
            r'it makes memory/queue float32\[3\], expected nothing as before the step',
        ),
        'rates': (
            toy._replace(optimizer=lambda config: optimizer.sgd(config, groups)),
            r"optimiser groups \['nothing'\] have no parameter",
        ),
    }[broken]
    monkeypatch.setitem(methods.METHODS, 'toy', changed)
    config = toy_config('without_teacher', data_dir)
    config.method = 'toy'
    with pytest.raises(ValueError, match=answer):
        train.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_phase_of_streams_that_the_method_has_not_is_refused(house, monkeypatch, data_dir):
    burning = TOYS['queue']._replace(phases=lambda config: [(2, TOYS['without_teacher'])])
    monkeypatch.setitem(methods.METHODS, 'burning', burning)
    config = toy_config('queue', data_dir)
    config.method = 'burning'
    with pytest.raises(
        ValueError, match="its phase until step 2 reads 'mask' of stream 'labelled'"
    ):
        methods.phases(configs.finalise(config))


def test_a_burn_in_that_a_method_does_not_have_is_no_key_error(
    house, monkeypatch, data_dir, tmp_path, caplog
):
    monkeypatch.setattr(models, 'build', BUILD)  # with the decoder: of any stride, see Patches
    config = toy_config('queue', data_dir)
    config.burn_in_steps, config.steps = 2, 2
    with caplog.at_level('WARNING', 'css_jax'):
        train.train(config, tmp_path)
    assert 'burn_in_steps=2 has no effect: method queue does not read it' in caplog.text


@pytest.mark.parametrize(
    ('hook', 'answer'),
    [
        ('outputs', 'the heads of method toy cannot be computed: ZeroDivisionError'),
        ('optimizer', 'the optimiser of method toy cannot be computed: ZeroDivisionError'),
        ('evaluations', 'the evaluations of method toy cannot be computed: ZeroDivisionError'),
        ('phases', 'the phases of method toy cannot be computed: ZeroDivisionError'),
        ('check', 'the check of method toy cannot be computed: ZeroDivisionError'),
        ('warnings', 'the warnings of method toy cannot be computed: ZeroDivisionError'),
        ('init_teacher', 'the first state of method toy cannot be computed: ZeroDivisionError'),
    ],
)
def test_a_hook_that_fails_is_named_before_anything_is_written(
    hook, answer, house, monkeypatch, data_dir, tmp_path
):
    broken = TOYS['without_teacher']._replace(**{hook: lambda *args: 1 / 0})
    monkeypatch.setitem(methods.METHODS, 'toy', broken)
    config = toy_config('without_teacher', data_dir)
    config.method = 'toy'
    with pytest.raises(ValueError, match=answer):
        train.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('changes', 'answer'),
    [
        (
            {'defaults': {'teacher.decya': 0.9}},
            "'teacher.decya', expected .*'teacher.decay'",
        ),
        ({'defaults': {'unsupervised.weight': 3.0}}, "got a default for 'unsupervised.weight'"),
        ({'defaults': {'data.streams.*.corp': (8, 8)}}, r"did you mean 'data\.streams\."),
        ({'defaults': {'method': 'css'}}, "got a default for 'method'"),
        (
            {'defaults': {'seed': lambda c: c.sede}},
            'seed: its default cannot .*: Attrib.*no key sede',
        ),
        ({'keys': {'queue.x': Key(lambda c: 1, 'no type')}}, 'queue.x: declared with <function'),
        ({'keys': {'queue.x': Key((), 'no items')}}, r'queue.x: declared with \(\), expected'),
        (
            {'keys': {'steps': Key('a', 'of another type')}},
            'steps: method toy declares it with',
        ),
        ({'evaluations': lambda config: {}}, r'got the evaluations \[\], expected one or more'),
        ({'evaluations': lambda config: {'a/b': None}}, r"got the evaluations \['a/b'\]"),
    ],
)
def test_a_slip_in_a_method_s_tables_is_named(changes, answer, house, monkeypatch, data_dir):
    toy = TOYS['queue']
    changes = {name: value if name == 'evaluations' else {**getattr(toy, name), **value}
               for name, value in changes.items()}  # fmt: skip
    config = toy_config('queue', data_dir)
    config.method = 'toy'
    monkeypatch.setitem(methods.METHODS, 'toy', toy._replace(**changes))
    with pytest.raises(ValueError, match=answer):
        evaluator.evaluators(configs.finalise(config))


def test_a_network_that_a_run_has_not_is_named(house, data_dir, tmp_path):
    config = toy_config('without_teacher', data_dir)
    config.steps = 1
    train.train(config, tmp_path)
    with pytest.raises(ValueError, match=r"network: got 'teacher', expected one of \['student'\]"):
        predict.load(tmp_path, network='teacher')
    config = stored.read(tmp_path)
    config.eval.network = 'teacher'
    with pytest.raises(ValueError, match='a network that method without_teacher has not'):
        evaluate.evaluate(config, tmp_path)
    config = toy_config('two_datasets', data_dir)
    assert configs.finalise(config).num_classes == 5
    assert configs.origins(config)['num_classes'] == 'dataset fine'


def test_every_file_of_modes_is_a_mode_and_none_is_of_odds_and_ends():
    modes = {path.stem for path in (PACKAGE / 'modes').glob('*.py')} - {'__init__'}
    assert modes | {'train'} == set(main.MODES)
    assert not list(PACKAGE.rglob('utils.py'))


# What moves code must not move numbers.

GOLDEN = json.loads((ROOT / 'tests' / 'fixtures' / 'golden.json').read_text())


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return golden.Runs(tmp_path_factory.mktemp('golden'))


@pytest.mark.parametrize('method', GOLDEN)
def test_the_quickstart_s_losses_stay(method, runs):
    """The same on Python 3.11 and 3.12: the dataset and all draws are seeded."""
    found = runs.losses(method)
    assert [str(step) for step in found] == list(GOLDEN[method])
    for step, losses in GOLDEN[method].items():
        assert found[int(step)].keys() == losses.keys()
        for name, loss in losses.items():
            np.testing.assert_allclose(
                found[int(step)][name], loss, 1e-5, err_msg=f'step {step}: {name}'
            )
