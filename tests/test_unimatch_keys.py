"""The keys of UniMatch V2, V1 and FixMatch: published settings, what is refused, what is read."""

import json

import jax
import pytest
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import parallel
from css_jax.methods import METHODS, unimatch_settings, unimatch_views
from css_jax.ops import inference
from tests.test_flags import stepped
from tests.test_unimatch import BATCH, NAMES, configured

# (images without labels, batch) -> steps of an epoch, of the authors' logs.
EPOCHS = {
    (10_490, 16): 655, (10_399, 16): 650, (10_216, 16): 638, (9850, 16): 615, (9118, 16): 570,
    (2789, 8): 349, (2603, 8): 325, (2231, 8): 279, (1487, 8): 186,
    (19_894, 8): 2487, (19_579, 8): 2447, (18_947, 8): 2368, (17_684, 8): 2210, (15_158, 8): 1895,
    (118_056, 16): 7378,
}  # fmt: skip


@pytest.mark.parametrize(('images', 'batch'), EPOCHS)
def test_an_epoch_has_the_authors_steps(images, batch):
    streams = {'unlabelled': {'batch_size': batch}}
    config = ConfigDict({'unimatch': {'images': images}, 'data': {'streams': streams}})
    assert unimatch_settings.steps_per_epoch(config) == EPOCHS[images, batch]


def published(method, dataset, **changes):
    """The settings of a dataset, on V1's network unless told otherwise."""
    c = configs.default()
    c.method, c.eval.dataset = method, dataset
    for name in ('labelled', 'unlabelled'):
        c.data.streams[name] = configs.stream(dataset)
    c.update_from_flattened_dict({'unimatch.images': 10_490, **changes})
    return configs.finalise(c)


def test_the_settings_of_v1_are_the_authors():
    c = published('unimatch_v1', 'voc')
    assert (c.steps, c.unimatch.optimizer) == (80 * (-(-10_490 // 4) // 2), 'sgd')
    o = c.optimizer
    assert (o.learning_rate, o.weight_decay, o.momentum, o.nesterov) == (1e-3, 1e-4, 0.9, False)
    assert (c.unimatch.head_rate, c.unsupervised.threshold, c.eval.network) == (10, 0.95, 'student')
    m = c.model
    assert (m.stem, m.head_convs, m.output_stride, m.first_dilation) == ('deep', 2, 16, 'previous')
    assert not m.stem_ceil_mode and not m.low_level_bias and not m.multi_grid
    for stream in c.data.streams.values():
        assert (stream.crop, stream.batch_size, stream.resize) == ((321, 321), 8, (0.5, 2.0))
        assert (stream.flip_prob, stream.pad) == (0.5, 'black_corner')
    rates = METHODS['unimatch_v1'].optimizer(c)[1]
    assert float(rates['learning_rate_heads'](1)) == pytest.approx(0.01)
    a = c.augment
    assert (a.jitter_prob, a.brightness, a.contrast, a.saturation) == (0.8, 0.5, 0.5, 0.5)
    assert (a.hue, a.grey_prob, a.blur_prob, a.blur_sigma) == (0.25, 0.2, 0.5, (0.1, 2.0))
    c = published('unimatch_v1', 'cityscapes', **{'unimatch.images': 2789})
    assert (c.steps, c.unimatch.head_rate, c.unsupervised.threshold) == (240 * 349, 1, 0)
    assert (c.supervised.loss, c.supervised.ohem_kept) == ('ohem', 100_000)
    assert (c.eval.protocol, c.eval.window) == ('sliding_cut', (801, 801))
    assert inference.default_stride((801, 801), True) == (534, 534)
    assert list(METHODS['unimatch_v1'].optimizer(c)[1]) == ['learning_rate']


@pytest.mark.parametrize('method', ['unimatch', 'fixmatch'])
def test_the_settings_of_v2_are_the_authors(method):
    c = published(method, 'voc', **{'unimatch.optimizer': 'adamw'})
    o = c.optimizer
    assert (c.steps, o.learning_rate, o.weight_decay) == (60 * 655, 5e-6, 0.01)
    assert (c.unimatch.head_rate, c.unsupervised.threshold, c.teacher.decay) == (40, 0.95, 0.996)
    assert c.data.streams.unlabelled.crop == (518, 518) and c.eval.network == 'teacher'
    rates = METHODS[method].optimizer(c)[1]
    assert float(rates['learning_rate'](1)) == pytest.approx(5e-6)  # set behind the update
    assert float(rates['learning_rate_heads'](2)) == pytest.approx(
        2e-4 * (1 - 1 / c.steps) ** 0.9
    )  # fmt: skip
    c = published(method, 'cityscapes')
    assert (c.data.streams.labelled.batch_size, c.supervised.loss) == (8, 'ohem')
    assert c.unsupervised.threshold == 0.95
    assert inference.default_stride((798, 798), False) == (532, 532)


@pytest.mark.parametrize(
    ('method', 'changes', 'message'),
    [
        ('unimatch', {'unimatch__group': 5}, 'unimatch.group: got 5, expected a divisor of data.'),
        ('fixmatch', {'burn_in_steps': 40}, 'burn_in_steps: got 40, expected less than steps=40'),
        (
            'unimatch', {'model__family': 'fcn'},
            "model.family: got 'fcn', expected 'deeplab' .*channels of its features, or unimatch.d",
        ),
        (
            'unimatch_v1', {'model__family': 'largefov'},
            "model.family: got 'largefov', expected 'deeplab' .*channels of its features$",
        ),
        (
            'unimatch_v1', {'data__streams__labelled__crop': (64, 32)},
            r'data.streams.\*.crop: got .* the same',
        ),
        ('unimatch', {'unimatch__box_area': (0.5, 1.2)}, 'box_area: got .*high <= 1'),
        ('fixmatch', {'unimatch__box_ratio': (2.0, 1.0)}, 'box_ratio: got .*low <= high'),
        ('unimatch_v1', {'unimatch__drop_prob': 1.0}, 'drop_prob: got 1.0'),
        ('unimatch', {'unimatch__optimizer': 'adam'}, "did you mean 'adamw'"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused(method, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        configured(method, **changes)
    assert '\n' not in str(caught.value)


def test_what_is_not_refused():
    configured('fixmatch', model__family='fcn')
    _, config = configured('unimatch', model__family='fcn', unimatch__dropout=False)
    keys = parallel.step_keys(jax.random.key(0), 0, BATCH, None)
    message = r'unimatch\.group: got 16, expected a divisor of the 8 unlabelled images'
    config = ConfigDict(config.to_dict() | {'unimatch': {'group': 16}})
    with pytest.raises(ValueError, match=message):
        unimatch_views.partner(keys('unlabelled', 'x')[:8], config)


def test_an_epoch_that_is_no_pass_is_named():
    record, config = configured()
    assert not record.warnings(config, {'unlabelled': 160})
    (odd,) = record.warnings(config, {'unlabelled': 17})
    assert odd.startswith('unimatch.images=160 ') and odd.endswith('17 images')
    _, config = configured(unimatch__epochs=5)
    (odd,) = record.warnings(config, {'unlabelled': 160})
    assert odd == 'unimatch.epochs=5 has no effect: steps=40 is set, which is 4.0 epochs'


def test_a_rate_of_sgd_is_named_where_adamw_has_it():
    """Files of configs/ set the rates of their own backbones, and a flag names another one."""
    wrong = 'optimizer.learning_rate=0.05 and unimatch.head_rate=40.0 are large for AdamW'
    for method in NAMES:
        record, config = configured(
            method, optimizer__learning_rate=0.05, unimatch__optimizer='adamw'
        )
        assert record.warnings(config, {'unlabelled': 160})[-1].startswith(wrong)
        record, config = configured(method, optimizer__learning_rate=0.05)
        assert not record.warnings(config, {'unlabelled': 160})


# Key -> the method that shows it, and another value. Those of the host are read in `configured`.
KEYS = {
    'unimatch.group': ('unimatch', 2),
    'unimatch.mix_prob': ('fixmatch', 0.25),
    'unimatch.box_area': ('fixmatch', (0.1, 0.2)),
    'unimatch.box_ratio': ('fixmatch', (1.0, 2.0)),
    'unimatch.dropout': ('unimatch', False),
    'unimatch.drop_prob': ('unimatch_v1', 0.25),
    'unimatch.head_rate': ('fixmatch', 2.0),
    'unimatch.optimizer': ('fixmatch', 'adamw'),
    'augment.grey_prob': ('fixmatch', 0.5),
    'unsupervised.weight': ('unimatch_v1', 0.5),
    'unsupervised.threshold': ('unimatch_v1', 0.5),
    'teacher.decay': ('fixmatch', 0.9),
}
HOST = {'unimatch.epochs', 'unimatch.images'}


def test_every_key_of_its_own_is_listed():
    own = {key for name in NAMES for key in METHODS[name].keys if key.startswith('unimatch.')}
    assert own == {key for key in KEYS if key.startswith('unimatch.')} | HOST


@pytest.mark.parametrize('key', KEYS)
def test_a_key_changes_the_program_of_the_step(key):
    method, value = KEYS[key]
    still = {'unimatch.images': 160, 'steps': 40}
    plain, changed = (stepped(method, json.dumps(still | more)) for more in ({}, {key: value}))
    assert plain != changed
