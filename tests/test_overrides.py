"""Keys and values of the command line: what is read, and how mistakes are answered."""

import pytest

from configs import quickstart
from css_jax import methods
from css_jax.config import command_line, table
from css_jax.keys import Key, at


def read(*argv):
    """The values that the quickstart's table gets from a command line."""
    others, changes = command_line.split(list(argv))
    assert others == []
    return command_line.values(quickstart.get_config(), changes)


@pytest.mark.parametrize(
    ('argv', 'key', 'value'),
    [
        (['--config.steps=7'], 'steps', 7),
        (['--config.steps', '7'], 'steps', 7),
        (['-config.steps=7'], 'steps', 7),
        (['--config.steps=7', '--config.steps=8'], 'steps', 8),
        (['--config.seed=-1'], 'seed', -1),
        (['--config.seed', '-1'], 'seed', -1),
        (['--config.optimizer.learning_rate=1'], 'optimizer.learning_rate', 1.0),
        (['--config.optimizer.floor=1e-4'], 'optimizer.floor', 1e-4),  # None in the table
        (['--config.eval.flip'], 'eval.flip', True),
        (['--config.eval.flip=true'], 'eval.flip', True),
        (['--config.eval.flip=False'], 'eval.flip', False),
        (['--config.eval.flip', 'false'], 'eval.flip', False),
        (['--noconfig.optimizer.nesterov'], 'optimizer.nesterov', False),
        (['--config.slips'], 'slips', True),  # None in the table
        (['--config.data.dir='], 'data.dir', ''),
        (['--config.data.dir=a=b,c'], 'data.dir', 'a=b,c'),
        (['--config.data.dir', 'a b'], 'data.dir', 'a b'),
        (['--config.pseudo_label=cross'], 'pseudo_label', 'cross'),
        (['--config.eval.pad_to=48,64'], 'eval.pad_to', (48, 64)),
        (['--config.eval.pad_to=(48, 64)'], 'eval.pad_to', (48, 64)),
        (['--config.eval.scales=1'], 'eval.scales', (1.0,)),
        (['--config.eval.scales=(1.0,)'], 'eval.scales', (1.0,)),
        (['--config.eval.scales=0.5,1,2,3'], 'eval.scales', (0.5, 1.0, 2.0, 3.0)),
        (['--config.augment.resize=0.5,1'], 'augment.resize', (0.5, 1.0)),
        (['--config.data.std=1,1,1'], 'data.std', (1.0, 1.0, 1.0)),
        (['--config.model.remat=layer3,layer4'], 'model.remat', ('layer3', 'layer4')),
        (["--config.model.remat=('layer3', 'layer4')"], 'model.remat', ('layer3', 'layer4')),
        (["--config.model.remat=('layer3',)"], 'model.remat', ('layer3',)),
        (['--config.model.remat=all'], 'model.remat', ('all',)),
        (['--config.model.remat=()'], 'model.remat', ()),
    ],
)
def test_values_have_the_types_of_the_table(argv, key, value):
    result = read(*argv)
    assert result == {key: value}
    assert type(result[key]) is type(value)
    if isinstance(value, tuple):
        assert [type(v) for v in result[key]] == [type(v) for v in value]


@pytest.mark.parametrize(
    ('argument', 'answer'),
    [
        ('stpes=3', "no key 'stpes'; did you mean 'steps'?"),
        ('optimizer.lerning_rate=1', "did you mean 'optimizer.learning_rate'? (optimizer has fl"),
        ('learning_rate=1', "did you mean 'optimizer.learning_rate'?"),
        (
            'data.streams.labeled.count=3',
            "no key 'data.streams.labeled.count'; did you mean 'data.streams.labelled.count'? "
            '(data.streams has labelled, unlabelled)',
        ),
        ('crop=3', "did you mean 'data.streams.labelled.crop' or 'data.streams.unlabelled.crop'?"),
        ('steps.x=3', "no key 'steps.x'; did you mean 'steps'?"),
        ('qqq=3', "no key 'qqq'"),
        ('=3', "'' is a table, expected one of its keys"),
        ('model=3', "'model' is a table, expected one of its keys: atrous, attention"),
        ('data.streams=3', "'data.streams' is a table, expected one of its keys: labelled"),
        ('steps=1e3', "steps: got '1e3', expected a whole number such as 1000"),
        ('steps=', "steps: got '', expected a whole number"),
        ('steps', "steps: got '', expected a whole number"),
        ('steps=None', "steps: got 'None', expected a whole number"),
        ('seed=', "seed: got '', expected a whole number"),
        ('optimizer.learning_rate=abc', "learning_rate: got 'abc', expected a number such as 0.1"),
        ('optimizer.learning_rate=nan', "learning_rate: got 'nan', expected a number"),
        ('optimizer.learning_rate=', "learning_rate: got '', expected a number"),
        ('eval.flip=maybe', "eval.flip: got 'maybe', expected true or false"),
        ('eval.flip=', "eval.flip: got '', expected true or false"),
        (
            'data.streams.labelled.crop=64',
            "data.streams.labelled.crop: got '64', expected 2 whole numbers such as 64,64",
        ),
        ('data.streams.labelled.crop=64,64,64', "got '64,64,64', expected 2 whole numbers"),
        ('data.streams.labelled.crop=64.5,64', "got '64.5,64', expected 2 whole numbers"),
        ('data.streams.labelled.resize=1', "resize: got '1', expected 2 numbers such as 0.5,1.5"),
        ('eval.pad_to=', "eval.pad_to: got '', expected 2 whole numbers"),
        ('eval.scales=', "eval.scales: got '', expected any number of numbers"),
        ('model.remat', "remat: got '', expected any number of names such as layer3,layer4"),
        ('model.remat=', "model.remat: got '', expected any number of names such as layer3,layer4"),
        ('model.remat=layer3,,layer4', "got 'layer3,,layer4', expected any number of names"),
        ('data.streams.labelled.crop=()', "crop: got '()', expected 2 whole numbers"),
        ('data.mean=0.5', "data.mean: got '0.5', expected 3 numbers"),
    ],
)
def test_mistakes_are_answered_in_words(argument, answer):
    with pytest.raises(ValueError) as caught:
        read(f'--config.{argument}')
    assert answer in str(caught.value)
    assert '\n' not in str(caught.value)


def test_off_is_for_what_is_true_or_false():
    with pytest.raises(ValueError, match="steps: got 'false', expected a whole number"):
        read('--noconfig.steps')


def test_the_rest_of_a_command_line_stays_as_it_is():
    argv = [
        'main',
        '--config=f.py:a',
        '--config.eval.flip',
        '--workdir',
        'x',
        '--config.steps',
        '3',
    ]
    others, changes = command_line.split(argv)
    assert others == ['main', '--config=f.py:a', '--workdir', 'x']
    assert changes == {'eval.flip': None, 'steps': '3'}
    assert command_line.split(command_line.arguments(changes)) == ([], changes)


def test_every_key_can_be_set():
    config = quickstart.get_config()
    kinds = set()
    for path in table.paths(config):
        key = table.find(path)
        kind = type(key.example)
        kinds.add(kind)
        text = ','.join(map(str, key.example)) if kind is tuple else 'false'
        text = {int: '1', float: '0.5'}.get(kind, text)
        (value,) = command_line.values(config, {path: text}).values()
        config.update_from_flattened_dict({path: value})
        assert type(at(config, path)) is kind
        if kind is tuple:
            assert {*map(type, value)} == {*map(type, key.example)}, path
    assert kinds == {bool, int, float, str, tuple}


def test_a_tuple_of_a_method_s_own_can_be_set(monkeypatch):
    record = methods.METHODS['supervised']
    own = {'toy.sizes': Key((4, 6), 'rows, columns'), 'toy.name': Key('a', 'of it')}
    keys = {**record.keys, **own}
    monkeypatch.setitem(methods.METHODS, 'toy', record._replace(keys=keys))
    assert read('--config.toy.sizes=5,7') == {'toy.sizes': (5, 7)}
    with pytest.raises(ValueError, match="sizes: got '5', expected 2 whole numbers such as 4,6"):
        read('--config.toy.sizes=5')


def test_what_is_read_does_not_change_the_table():
    config = quickstart.get_config()
    before = config.to_json()
    command_line.values(config, {'steps': '3', 'eval.flip': 'true'})
    assert config.to_json() == before


def test_a_file_is_loaded_with_its_argument(tmp_path):
    config = command_line.load('configs/quickstart.py:supervised')
    assert config.method == 'supervised' and config.is_locked
    with pytest.raises(FileNotFoundError, match=r"no file 'configs/quikstart\.py'; did you mean '"):
        command_line.load('configs/quikstart.py')
    with pytest.raises(FileNotFoundError, match="there is no file ''"):
        command_line.load('')
    with pytest.raises(ValueError, match='expected one of'):
        command_line.load('configs/quickstart.py:css_mxi')
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(ValueError, match=r"empty\.py' has no function get_config"):
        command_line.load(f'{tmp_path}/empty.py')
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='expected a file of Python'):
        command_line.load(f'{tmp_path}/config.json')
    with pytest.raises(ValueError, match=r'expected configs/stored.py:ARGUMENT \(missing a req'):
        command_line.load('configs/stored.py')
    (tmp_path / 'alone.py').write_text('def get_config():\n    return int("x")\n')
    with pytest.raises(ValueError, match=r'expected .*alone\.py \(too many positional arg'):
        command_line.load(f'{tmp_path}/alone.py:3')


def test_a_file_that_asks_for_the_changes_gets_them(tmp_path):
    (tmp_path / 'asks.py').write_text(
        'from ml_collections import ConfigDict\n\n\n'
        "def get_config(argument='', changes=None):\n"
        "    return ConfigDict({'argument': argument, 'told': str(changes)})\n"
    )
    changes = {'data.dir': '/data', 'eval.flip': None}
    config = command_line.load(f'{tmp_path}/asks.py:a', changes)
    assert (config.argument, config.told) == ('a', str(changes))
    assert command_line.load(f'{tmp_path}/asks.py').told == '{}'
