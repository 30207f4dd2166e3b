"""Each sentence on a run: records that lead to it, and such as do not."""

import re

import pytest
from ml_collections import ConfigDict

from css_jax.run.diagnostics import LEAST, Measured, notes

CONFIG = ConfigDict({'num_classes': 3, 'pseudo_label': 'mix', 'unsupervised': {'threshold': 0.9}})
FINE = {
    'agreement': 0.8,
    'classes_with_prototype': 3.0,
    'confident': 0.5,
    'confident_foreground': 0.4,
    'loss_contrastive': 4.0,
    'loss_supervised': 0.2,
}


def records(count=LEAST, **changed):
    return [{'step': 10 * i, **FINE, **changed} for i in range(1, count + 1)]


def said(records=(), loss=0.3, measured=None, config=CONFIG):
    return notes(config, records, {'loss': loss}, measured)


def test_nothing_is_said_of_a_run_that_is_fine_or_that_nobody_knows():
    assert said(records()) == []
    assert said([]) == []
    assert notes(CONFIG, [{'step': 1}], None) == []
    assert said(records(LEAST - 1, loss_contrastive=0.0, agreement=0.0, confident=0.0)) == []
    assert said(records(confident=None, agreement=None, loss_supervised=None)) == []


@pytest.mark.parametrize(
    ('changed', 'sentence'),
    [
        ({'loss_contrastive': 0.0}, r'L_c is 0 in the last 5 records, of steps 10 to 50'),
        ({'classes_with_prototype': 1.0}, r'2 of 3 classes never got a prototype: '),
        ({'agreement': 0.04}, r'mix rejects nearly everything: .* to 4 % of the'),
        ({'confident': 0.002}, r'0\.2 % of the unlabelled pixels have a confident'),
        ({'confident_foreground': 0.001}, r'class 0 only: 0\.1 % of them .* 50 % of all'),
        ({'loss_supervised': 0.01}, r'may be memorised: cross-entropy 0\.01 .* 30\.0 times'),
    ],
)
def test_records_that_lead_to_a_sentence(changed, sentence):
    found = said(records(**changed))
    assert len(found) == 1 and re.search(sentence, found[0]), found


def test_what_is_said_is_of_the_last_records():
    early = records(20, loss_contrastive=0.0, agreement=0.0, confident_foreground=0.0)
    assert said([*early, *records()]) == []
    assert len(said([*records(), *early])) == 3
    # A single value again: L_c is not 0 throughout, whatever stands before it.
    assert said([*records(20, loss_contrastive=0.0), records(1)[0]]) == []


def test_mix_alone_rejects():
    config = ConfigDict({**CONFIG.to_dict(), 'pseudo_label': 'logit'})
    assert said(records(agreement=0.0), config=config) == []


def test_hardly_any_confident_pixel_says_nothing_of_their_classes():
    found = said(records(confident=0.001, confident_foreground=0.0))
    assert len(found) == 1 and 'class 0' not in found[0]


def test_labels_from_image_level_labels_can_be_background_only_too():
    found = said([{'step': i, 'labelled': 0.6, 'foreground': 0.0} for i in range(LEAST)])
    assert len(found) == 1 and 'class 0 only' in found[0]


def test_what_is_measured_comes_before_what_is_guessed():
    measured = Measured(labelled=0.9, validation=0.6, images=(40, 8))
    found = said(records(), measured=measured)
    assert 'mIoU 90.0 on 8 of them against 60.0 on 40 of the validation split' in found[0]
    measured = measured._replace(labelled=0.7)
    assert said(records(loss_supervised=0.001), measured=measured) == []


def test_classes_without_a_prototype_are_named():
    found = said(records(), measured=Measured(without_prototype=['disc', 'ring']))
    assert '2 of 3 classes never got a prototype (disc, ring)' in found[0]
    burn_in = [{'step': 1, 'loss_supervised': 0.2}]
    assert said(burn_in, measured=Measured(without_prototype=['disc', 'ring'])) == []
    # What is measured of the weights counts, and not the last record.
    assert said(records(classes_with_prototype=0.0), measured=Measured(without_prototype=[])) == []


def test_a_teacher_worse_than_its_student():
    measured = Measured(teacher=0.5, student=0.55, images=(48, 0))
    found = said(records(), measured=measured)
    assert 'mIoU 50.0 against 55.0 on 48 images' in found[0]
    assert said(records(), measured=measured._replace(student=0.505)) == []
    assert said(records(), measured=measured._replace(student=0.2)) == []
    assert said(records(), measured=measured._replace(student=None)) == []
