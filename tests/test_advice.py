"""Warnings at start-up: what has no effect, cannot be reached, or never begins."""

import pytest

from configs import quickstart, voc
from css_jax import config as configs
from css_jax.config import warnings


def warned(argument, family=voc, images=92, **changes):
    config = family.get_config(argument)
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    config.model.pretrained = 'resnet101.npz'
    images = {'labelled': images, 'unlabelled': 10_000}
    return warnings.warnings(config, configs.finalise(config), images)


def test_a_threshold_above_the_bound_of_softmax_similarity():
    (warning,) = warned('css_mix')
    assert 'hard_threshold=0.8 is above' in warning and '0.732 with 21 classes' in warning
    assert warned('css_mix', contrastive__similarity_temperature=0.1) == []
    cross = warned('css_cross', follow='reference')
    assert any('unsupervised.threshold=0.97 is above' in w and 'L_u is 0' in w for w in cross)
    low = warned('css_mix,indicator=similarity', contrastive__similarity_temperature=0.5)
    assert any('no unlabelled pixel enters L_c' in w for w in low) is False  # 0.7 < 0.732
    low = warned('css_mix,indicator=similarity', contrastive__similarity_temperature=0.6)
    assert any('no unlabelled pixel enters L_c' in w for w in low)


@pytest.mark.parametrize(
    ('argument', 'key', 'value'),
    [
        ('css,pseudo_label=mix,indicator=similarity', 'contrastive.valid_indicator', 'similarity'),
        ('css_cross,indicator=confidence', 'unsupervised.cross_indicator', 'similarity'),
        ('baseline', 'unsupervised.warmup_passes', 5),
        ('baseline', 'contrastive.bank', 16),
        ('baseline', 'supervised.ohem_kept', 5),
    ],
)
def test_a_changed_key_that_nothing_reads(argument, key, value):
    changes = {key: value}
    if key == 'contrastive.bank':
        changes['contrastive.estimator'] = 'sampled'
    found = warned(argument, **changes)
    assert found == [f'{key}={value} has no effect in this configuration']
    assert warned(argument) == []


def test_a_key_of_another_method_is_named():
    (found,) = warned('cutmix', contrastive__temperature=0.2)
    assert found == 'contrastive.temperature=0.2 has no effect: method cutmix does not read it'
    (found,) = warned('supervised', burn_in_steps=7)
    assert found == 'burn_in_steps=7 has no effect: method supervised does not read it'
    assert warned('supervised', burn_in_steps=0) == []


def test_a_scale_beside_a_range_of_the_long_side_is_named():
    long_side = {'data__streams__labelled__long_side': (250, 1000)}
    assert warned('cutmix', **long_side) == []
    (found,) = warned('cutmix', **long_side, data__streams__labelled__resize=(0.7, 0.8))
    assert found == (
        'data.streams.labelled.resize=(0.7, 0.8) has no effect: data.streams.labelled.long_side '
        'takes its place'
    )
    assert warned('cutmix', data__streams__labelled__resize=(0.7, 0.8)) == []


def test_what_ends_early_or_never_begins():
    # 92 // 32 = 2 steps a pass, 200 passes of lambda_c, 20 of warm-up.
    found = warned('baseline,follow=reference,contrastive.schedule=reference')
    assert 'lambda_c is 0 from step 400 of 80000 on, as in the reference' in found
    found = warned('css_cross,indicator=confidence', steps=100)  # 5 a pass at batch 16
    assert found == ['the warm-up ends at step 100, after the last of 100: nothing crosses']
    assert warned('css_cross,indicator=confidence', steps=101) == []


def test_random_weights_where_the_paper_has_none():
    config = voc.get_config('supervised,pretrained=')
    (found,) = warnings.warnings(config, configs.finalise(config), {'labelled': 92})
    assert 'this run starts from random weights' in found


@pytest.mark.parametrize('method', ['supervised', 'mean_teacher', 'cutmix', 'baseline'])
def test_the_quickstart_warns_of_nothing(method):
    assert warned(method, family=quickstart, images=8) == []


def test_remat_on_a_cpu_is_warned_of(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    (warning,) = warned('css_mix', quickstart, model__remat=('layer3',))
    assert 'model.remat saves nothing on a CPU' in warning
    monkeypatch.setenv('XLA_FLAGS', '--xla_disable_hlo_passes=cse_barrier_expander')
    assert warned('css_mix', quickstart, model__remat=('layer3',)) == []
