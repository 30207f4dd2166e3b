"""Where paper and reference differ: each point's value in each column, as the paper's text, the
reference's scripts and the notes on both have it; what methods add; what is refused.
"""

import pytest

from configs import arguments
from css_jax import config as configs
from css_jax import methods
from css_jax.config import defaults
from css_jax.data import splits
from css_jax.keys import Key

COLUMNS = ('default', 'reference', 'paper')
ALL = {  # key: default, reference, paper
    'contrastive.prototype_source': ('student', 'student', 'teacher'),
    'unsupervised.loss': ('weighted', 'weighted', 'thresholded'),
    'contrastive.valid_indicator': ('confidence', 'confidence', 'similarity'),
    'unsupervised.cross_indicator': ('confidence', 'similarity', 'confidence'),
    'contrastive.schedule': ('rampdown', 'reference', 'constant'),
    'teacher.labelled_pass': (True, True, True),
    'optimizer.floor': (1e-4, 1e-4, 0.0),
    'slips': (False, True, False),
    'augment.mixing': ('cutmix', 'cutmix', 'cutmix'),
    'contrastive.unseen': ('masked', 'zero', 'masked'),
    'contrastive.scope': ('global', 'device', 'global'),
    'contrastive.hard_threshold': (0.8, 0.8, 0.8),
    'contrastive.similarity_temperature': (0.5, 0.5, 0.1),
    'pseudo_label': ('mix', 'mix', 'mix'),
    'indicator': ('both', 'both', 'both'),
    'data.streams.unlabelled.resize': ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0)),
    'data.streams.unlabelled.pad': ('reflect', 'reflect', 'reflect'),
    'data.streams.labelled.pad': ('constant', 'constant', 'constant'),
}
VOC = {
    **ALL,
    'steps': (40_000, 80_000, 40_000),
    'optimizer.learning_rate': (0.0064, 0.0064, 0.0064),
    'eval.protocol': ('whole', 'whole', 'whole'),
    'data.streams.labelled.batch_size': (16, 32, 16),
    'data.streams.unlabelled.batch_size': (16, 32, 16),
    'data.streams.labelled.crop': ((512, 512), (512, 512), (512, 512)),
    'data.streams.unlabelled.crop': ((512, 512), (512, 512), (512, 512)),
    'data.streams.labelled.resize': ((0.5, 1.5), (0.5, 1.5), (0.5, 1.5)),
}
CITYSCAPES = {
    **ALL,
    'steps': (80_000, 80_000, 80_000),
    'optimizer.learning_rate': (0.0038, 0.0064, 0.0038),
    'eval.protocol': ('sliding', 'random_crop', 'sliding'),
    'data.streams.labelled.batch_size': (8, 16, 8),
    'data.streams.unlabelled.batch_size': (8, 16, 8),
    'data.streams.labelled.crop': ((768, 768), (769, 769), (768, 768)),
    'data.streams.unlabelled.crop': ((768, 768), (769, 769), (768, 768)),
    'data.streams.labelled.resize': ((0.5, 2.0), (1.0, 1.0), (0.5, 2.0)),
}
# A dataset that the paper does not have is treated as VOC.
DATASETS = {'voc': VOC, 'cityscapes': CITYSCAPES, 'camvid/half': VOC, 'shapes': VOC}


def resolved(dataset='voc', **settings):
    """A finalised configuration of css_mix, otherwise of the defaults, but for `settings`."""
    c = configs.default()
    c.eval.dataset = dataset
    c.data.streams.labelled = configs.stream(dataset)
    c.data.streams.unlabelled = configs.stream(dataset)
    c.update_from_flattened_dict({key.replace('__', '.'): v for key, v in settings.items()})
    return configs.finalise(c)


def rows(method):
    """The keys whose default is the method's, or follows from other keys."""
    record = methods.METHODS[method]
    return {*record.defaults, *(path for path, key in record.keys.items() if callable(key.default))}


def departures(config):
    return defaults.departures(config, tuple(rows(config.method)))


def at(config, key):
    for name in key.split('.'):
        config = config[name]
    return config


@pytest.mark.parametrize('column', COLUMNS)
@pytest.mark.parametrize('dataset', DATASETS)
def test_every_point_has_the_column_s_value(dataset, column):
    config = resolved(dataset, follow=column)
    expected = {key: row[COLUMNS.index(column)] for key, row in DATASETS[dataset].items()}
    assert {key: at(config, key) for key in expected} == expected
    listed = {defaults.any_stream(key) for key in expected} | {'augment.resize'}
    assert rows('css_mix') <= listed  # every row is in the tables above
    assert departures(config) == []


def test_the_default_column_is_the_default():
    assert resolved() == resolved(follow='default')


def test_a_key_that_is_set_stays_and_is_named():
    for column in COLUMNS:
        config = resolved(follow=column, optimizer__floor=2e-4, unsupervised__loss='thresholded')
        assert config.optimizer.floor == 2e-4
        named = ['optimizer.floor=0.0002']
        named += ['unsupervised.loss=thresholded'] if column != 'paper' else []
        assert departures(config) == named


def test_a_key_of_a_stream_that_is_set_stays_and_is_named():
    config = resolved('cityscapes', data__streams__labelled__crop=(64, 96))
    assert config.data.streams.labelled.crop == (64, 96)
    assert config.data.streams.unlabelled.crop == (768, 768)
    assert departures(config) == ['data.streams.labelled.crop=(64, 96)']


def test_a_stream_s_crop_and_batch_are_of_its_own_dataset():
    other = {'eval__by_number': True, 'num_classes': 19}
    config = resolved('camvid/half', eval__dataset='cityscapes', **other)
    for stream in config.data.streams.values():
        assert (stream.crop, stream.batch_size) == ((512, 512), 16)
    assert config.data.streams.labelled.resize == (0.5, 1.5)
    assert config.eval.protocol == 'sliding' and config.steps == 80_000  # of the evaluation
    config = resolved('cityscapes', eval__dataset='camvid/half', **other)
    assert config.data.streams.labelled.crop == (768, 768)
    assert config.eval.protocol == 'whole' and config.steps == 40_000


def test_a_triple_of_numbers_is_a_value(monkeypatch):
    record = methods.METHODS['supervised']
    triples = {'data.mean': (0.1, 0.2, 0.3), 'data.std': (1.0, 1.0, 1.0), 'toy.three': (4, 5, 6)}
    keys = {**record.keys, 'toy.three': Key((1, 2, 3), 'of its own')}
    toy = record._replace(keys=keys, defaults=triples)
    monkeypatch.setitem(methods.METHODS, 'toy', toy)
    for column in COLUMNS:
        config = resolved(method='toy', follow=column)
        assert {key: at(config, key) for key in triples} == triples


@pytest.mark.parametrize('column', COLUMNS)
@pytest.mark.parametrize('method', arguments.METHODS)
def test_a_method_s_own_values_are_no_departures(method, column, monkeypatch):
    # What counts its images finds so many, though nothing is prepared.
    monkeypatch.setattr(splits, 'load', lambda data: {})
    monkeypatch.setattr(splits, 'subset', lambda *_: range(100))
    assert departures(resolved(method=method, follow=column)) == []


@pytest.mark.parametrize('column', COLUMNS)
def test_the_baseline_has_constants_of_its_own(column):
    c = resolved(method='baseline', follow=column)
    assert (c.pseudo_label, c.indicator) == ('logit', 'confidence')
    assert (c.contrastive.schedule, c.contrastive.weight) == ('constant', 1.0)
    assert c.contrastive.hard_threshold == 0.97
    # Without a pass on the labelled batch, but for prototypes that are taken from it.
    assert c.teacher.labelled_pass == (column == 'paper')


@pytest.mark.parametrize(
    ('method', 'expected'),
    [
        ('supervised', (None, None, None)),
        ('mean_teacher', (None, None, 'none')),
        ('cutmix', (None, None, 'cutmix')),
        ('baseline', ('logit', 'confidence', 'cutmix')),
        ('css_cross', ('cross', 'both', 'cutmix')),
        ('css_mix', ('mix', 'both', 'cutmix')),
        ('css', ('mix', 'both', 'cutmix')),
    ],
)
def test_methods_are_points_on_the_axes_of_the_ablations(method, expected):
    c = resolved(method=method)
    assert (c.get('pseudo_label'), c.get('indicator'), c.augment.get('mixing')) == expected


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'indicator': 'confidence'}, 0.5),
        ({'indicator': 'both'}, 0.5),
        ({'indicator': 'similarity'}, 0.1),
        ({'indicator': 'similarity', 'follow': 'reference'}, 0.1),
        ({'contrastive__valid_indicator': 'similarity'}, 0.1),
        ({'contrastive__valid_indicator': 'similarity', 'follow': 'reference'}, 0.5),
        ({'unsupervised__cross_indicator': 'similarity'}, 0.5),  # of mix, nothing takes it
        ({'unsupervised__cross_indicator': 'similarity', 'method': 'css_cross'}, 0.1),
        ({'method': 'css_cross', 'follow': 'reference'}, 0.5),
        ({'contrastive__similarity_temperature': 0.3, 'follow': 'paper'}, 0.3),
    ],
)
def test_tau_sim_is_small_where_similarity_is_thresholded_from_below(settings, expected):
    assert resolved(**settings).contrastive.similarity_temperature == expected


def test_values_follow_from_others_that_are_set():
    assert resolved(indicator='confidence').contrastive.hard_threshold == 0.97
    assert resolved(contrastive__estimator='sampled').contrastive.scope == 'device'
    for column in ('default', 'reference'):
        ema = resolved(follow=column, teacher__batch_norm='ema')
        assert not ema.teacher.labelled_pass
    assert resolved(follow='paper', teacher__batch_norm='ema').teacher.labelled_pass


@pytest.mark.parametrize(
    ('settings', 'answer'),
    [
        ({'pseudo_label': 'logit'}, r"pseudo_label: got 'logit', .*'mix'.* with method=css_mix"),
        ({'method': 'baseline', 'indicator': 'both'}, 'indicator: .* with method=baseline'),
        ({'method': 'css_cross', 'pseudo_label': 'mix'}, 'pseudo_label: .* method=css_cross'),
        ({'method': 'mean_teacher', 'augment__mixing': 'cutmix'}, 'augment.mixing: got'),
        ({'method': 'cutmix', 'augment__mixing': 'none'}, 'augment.mixing: got'),
        ({'method': 'css', 'pseudo_label': 'represent'}, "did you mean 'representation'"),
        (
            {'contrastive__prototype_source': 'teacher', 'teacher__labelled_pass': False},
            'teacher.labelled_pass: got False, expected True with contrastive.prototype_source=',
        ),
        (
            {'teacher__batch_norm': 'ema', 'teacher__labelled_pass': True},
            'teacher.labelled_pass: got True, expected False with teacher.batch_norm=ema',
        ),
        (
            {'contrastive__estimator': 'sampled', 'contrastive__scope': 'global'},
            'contrastive.scope: got global, expected device with contrastive.estimator=sampled',
        ),
        ({'follow': 'papers'}, "follow: got 'papers', .*did you mean 'paper'"),
        ({'data__streams__unlabelled__reads': 'mask'}, r"reads: got 'mask', expected 'none'"),
        ({'seed': -1}, 'seed: got -1, expected a number from 0 to 4294967295'),
        ({'data__streams__labelled__subset_seed': -1}, 'labelled.subset_seed: got -1'),
        ({'data__streams__labelled__min_per_class': -1}, 'labelled.min_per_class: got -1'),
    ],
)
def test_the_impossible_is_refused_in_words(settings, answer):
    with pytest.raises(ValueError, match=answer):
        resolved(**settings)
