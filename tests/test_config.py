"""The configuration: what the quickstart compares, and how impossible values are answered."""

import json
import logging

import pytest
from ml_collections import ConfigDict

from configs import camvid, quickstart
from css_jax import config as configs
from css_jax.config import file as stored
from css_jax.run import folder as run_folder


def flat(config):
    return run_folder._flat(config.to_dict())


@pytest.mark.parametrize('method', ['mean_teacher', 'cutmix', 'baseline', 'css_cross', 'css_mix'])
def test_the_quickstart_compares_methods_alone(method):
    baseline, other = quickstart.get_config('supervised'), quickstart.get_config(method)
    differences = {key for key, _, _ in run_folder.diff(baseline, other)}
    # What the baseline has no use for, and what is to be compared.
    shared = {'unsupervised.loss', 'unsupervised.threshold', 'model.representation_dim'}
    allowed = {'method', 'burn_in_steps', 'contrastive.weight', *shared}
    print(f'supervised and {method} differ in', sorted(differences))
    assert differences <= allowed and 'method' in differences


def test_all_labels_differ_from_few_in_their_count_alone():
    few, every = quickstart.get_config('supervised'), quickstart.get_config('supervised_all')
    assert {key for key, _, _ in run_folder.diff(few, every)} == {
        'data.streams.labelled.count',
        'data.streams.labelled.min_per_class',
    }


def test_the_defaults_are_the_paper_s():
    c = configs.default()
    c.eval.dataset = 'shapes'
    c.data.streams.labelled = configs.stream('shapes')
    c.data.streams.unlabelled = configs.stream('shapes')
    c = configs.finalise(c)
    assert (c.steps, c.optimizer.learning_rate, c.optimizer.power) == (40_000, 0.0064, 0.9)
    assert (c.optimizer.weight_decay, c.optimizer.momentum, c.optimizer.floor) == (5e-4, 0.9, 1e-4)
    assert (c.teacher.decay, c.contrastive.prototype_decay) == (0.99, 0.99)
    k = c.contrastive
    assert (k.valid_threshold, k.hard_threshold, c.unsupervised.threshold) == (0.7, 0.8, 0.97)
    assert (k.temperature, k.similarity_temperature, k.anchors, k.negatives) == (0.5, 0.5, 256, 512)
    assert (c.burn_in_steps, k.weight) == (0, 1.0)


@pytest.mark.parametrize('module', [quickstart, camvid])
@pytest.mark.parametrize('method', ['supervised', 'cutmix', 'css_mix'])
def test_configurations_are_possible(module, method):
    config = configs.finalise(module.get_config(method))
    assert config.num_classes == {quickstart: 7, camvid: 11}[module]


def test_an_unknown_argument_of_a_configuration_is_named():
    with pytest.raises(ValueError, match=r'quickstart.py:csss: .*expected one of'):
        quickstart.get_config('csss')


@pytest.mark.parametrize(
    ('key', 'value', 'answer'),
    [
        ('method', 'css_mxi', r"method: got 'css_mxi'.*did you mean 'css_mix'"),
        ('unsupervised.loss', 'weigthed', "did you mean 'weighted'"),
        ('contrastive.estimator', 'banks', "did you mean 'bank'"),
        ('augment.mixing', 'mixup', 'expected one of'),
        ('unsupervised.threshold', 1.5, r'unsupervised\.threshold: got 1\.5, .* from 0 to 1'),
        ('contrastive.temperature', 0.0, r'contrastive\.temperature: got 0'),
        ('steps', 0, r'steps: got 0'),
        ('burn_in_steps', 10_000, r'burn_in_steps: got 10000, expected less than steps=900'),
        ('augment.resize', (1.5, 0.5), r'augment\.resize: got \(1\.5, 0\.5\)'),
        ('data.streams.labelled.crop', (64,), r'labelled\.crop: got \(64,\), expected \(height'),
        ('data.streams.labelled.long_side', (9, 8), r'long_side: got \(9, 8\), expected \(low'),
        ('data.streams.labelled.long_side', (0, 8), r'long_side: got \(0, 8\), expected \(low'),
        ('data.streams.labelled.long_side', (8,), r'long_side: got \(8,\), expected \(low, high'),
        ('data.streams.labelled.long_side', (8.5, 9.5), 'expected 2 whole numbers such as 250,'),
        ('data.streams.labelled.flip_prob', 1.5, r'flip_prob: got 1\.5, expected a number from 0'),
        ('data.streams.labelled.pad', 'floor', r"pad: got 'floor', expected one of"),
        ('data.streams.labelled.batch_size', 1, r'batch_size: got 1, expected at least 2'),
        ('data.streams.unlabelled.reads', 'mask', r"unlabelled\.reads: got 'mask', expected"),
        ('num_classes', 1, r'num_classes: got 1 \(set\), expected at least 2'),
        ('num_classes', 5, r'num_classes: got 5, but eval \(shapes\) has 7'),
        ('model.backbone', 'resnet110', r"model\.backbone: .*did you mean 'resnet101'"),
        ('data.std', (0.0, 1.0, 1.0), r'data\.std: got'),
        ('data.mean', (0.5,), r'data\.mean: got \(0\.5,\), expected three numbers'),
        ('data.mean', ('a', 'b', 'c'), r'data\.mean: got .*, expected 3 numbers such as'),
        ('eval.scales', (1.0, 'x'), r'eval\.scales: got .*, expected any number of numbers'),
        ('data.streams.labelled.crop', (32.5, 32.5), r'expected 2 whole numbers such as 64,64'),
        ('profile', ('a', 3), r'profile: got .*, expected 2 whole numbers'),
        ('optimizer.power', -3.0, r'optimizer\.power: got'),
        ('eval.pad_to', (-1, 3), r'eval\.pad_to: got'),
        ('eval.dataset', 'shape', r'eval\.dataset: .*shapes'),
        ('eval.pad_to', (10**6, 8), r'eval\.pad_to: got .*, expected .* at most 65535'),
        ('eval.scales', (float('inf'),), r'eval\.scales: got \(inf,\), expected any number of'),
        ('data.dir', 'a\nb', r"data\.dir: got 'a\\nb', expected a text of one line"),
        ('model.backbone', 'vit_tiny', r"model\.family is 'deeplab'; expected 'largefov' or 'dpt'"),
        ('model.output_stride', 32, r'model\.output_stride is 32; .*model\.backbone=resnet18'),
    ],
)
def test_impossible_values_are_answered_in_words(key, value, answer):
    config = quickstart.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=answer):
        configs.finalise(config)


@pytest.mark.parametrize(
    ('key', 'answer'),
    [
        ('stpes', 'no key stpes; did you mean steps'),
        ('optimizer.momentun', r'no key optimizer\.momentun; did you mean optimizer\.momentum'),
        ('data.streams.labelled.cuont', r'labelled\.cuont; did you mean .*labelled\.count'),
    ],
)
def test_a_key_that_nothing_reads_is_refused(key, answer):
    config = top = quickstart.get_config().unlock()
    *tables, leaf = key.split('.')
    for part in tables:
        config = config[part]
    config[leaf] = 3
    with pytest.raises(ValueError, match=answer):
        configs.finalise(top)


def test_classes_of_other_names_are_scored_by_number_alone():
    config = quickstart.get_config('supervised')
    config.update_from_flattened_dict({'eval.dataset': 'figures', 'num_classes': 11})
    message = r"^eval\.dataset: figures has other classes than shapes, .*: class 1 is '\w+' in"
    with pytest.raises(ValueError, match=message) as caught:
        configs.finalise(config)
    assert '\n' not in str(caught.value) and 'eval.by_number=True' in str(caught.value)
    config.eval.by_number = True
    assert configs.finalise(config).eval.dataset == 'figures'


def test_a_configuration_without_streams_is_answered():
    config = quickstart.get_config().unlock()
    config.data = ConfigDict()
    with pytest.raises(ValueError, match=r"data\.streams: got \[\], but method css_mix needs 'lab"):
        configs.finalise(config)
    config.method = ''
    with pytest.raises(ValueError, match="method: got '', expected one of"):
        configs.finalise(config)


def test_the_slips_of_an_old_run_stay(tmp_path, caplog):
    values = json.loads(json.dumps(configs.finalise(quickstart.get_config()).to_dict()))
    del values['slips']
    for partner, bits, slips in (('first_device', True, True), ('next', False, False)):
        values['eight_bit_indicators'], values['augment']['partner'] = bits, partner
        (tmp_path / stored.NAME).write_text(json.dumps(values))
        assert run_folder.load(tmp_path).slips == slips
    assert 'one of the slips alone' not in caplog.text
    values['eight_bit_indicators'] = True
    (tmp_path / stored.NAME).write_text(json.dumps(values))
    with caplog.at_level(logging.INFO, 'css_jax'):
        assert run_folder.load(tmp_path).slips
    assert 'this run had one of the slips alone, and slips=True has all' in caplog.text


def test_a_missing_stream_is_named():
    config = quickstart.get_config().unlock()
    del config.data.streams.unlabelled
    with pytest.raises(ValueError, match="method css_mix needs 'unlabelled'"):
        configs.finalise(config)


def test_a_saved_configuration_is_read_back_alike(tmp_path):
    config = configs.finalise(quickstart.get_config())
    run_folder.save(config, tmp_path)
    stored_keys = flat(stored.read(tmp_path))  # those of other methods are there, and not set
    assert {k: v for k, v in stored_keys.items() if v is not None} == flat(config)
    assert run_folder.diff(stored.read(tmp_path), config) == []
    with pytest.raises(FileNotFoundError, match=r'config\.json is missing'):
        stored.read(tmp_path / 'nowhere')


@pytest.mark.parametrize('name', ['checkpoints', 'metrics.jsonl', 'events.out.tfevents.1.x'])
def test_a_folder_with_a_run_of_nobody_knows_what_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf'has {name} but no config\.json'):
        run_folder.claim(configs.finalise(quickstart.get_config()), tmp_path)


@pytest.mark.parametrize('text', ['{"a"', '{}', '[]'])
def test_a_damaged_configuration_of_a_run_is_named(text, tmp_path):
    (tmp_path / run_folder.FILE).write_text(text)
    with pytest.raises(ValueError, match=r'config\.json is not the configuration of a run'):
        stored.read(tmp_path)


def test_a_run_of_an_older_version_that_was_scored_by_number_is_read(tmp_path):
    config = quickstart.get_config('supervised')
    config.update_from_flattened_dict({'eval.dataset': 'figures', 'num_classes': 11})
    config.eval.by_number = True
    old = configs.finalise(config).to_dict()
    del old['eval']['by_number']
    (tmp_path / 'config.json').write_text(json.dumps(old))
    assert run_folder.load(tmp_path).eval.dataset == 'figures'
    run_folder.match(configs.finalise(config), tmp_path)
    # One that was scored on what it learned asks before it is scored on another dataset.
    old['eval']['dataset'] = old['data']['streams']['labelled']['dataset']
    (tmp_path / 'config.json').write_text(json.dumps(old))
    assert not run_folder.load(tmp_path).eval.by_number
