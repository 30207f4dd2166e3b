"""configs/cosa.py: the published settings, what follows from one's own images, and its words."""

import importlib.metadata
import re

import numpy as np
import pytest

from configs import cosa as file
from css_jax import config as configs
from css_jax.config import command_line
from css_jax.data import splits
from css_jax.methods import METHODS
from tests import folders


@pytest.fixture(scope='module')
def several(tmp_path_factory):
    """A folder with `cells`, of masks alone, and `roofs`, which has tagged images beside them."""
    data_dir = tmp_path_factory.mktemp('prepared')
    folders.prepare(data_dir, 'cells', 3, size=(150, 400), train=20, val=3)
    folders.prepare(data_dir, 'roofs', 4, train=3, tagged=[(70, 99)] * 6, val=[(40, 90), (60, 50)])
    return str(data_dir)


@pytest.fixture
def bare(monkeypatch):
    """No package of weights is installed."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'distribution', missing)


def get(data_dir, argument, **changes):
    return file.get_config(argument, {'data.dir': data_dir, **changes})


def final(data_dir, argument, **changes):
    return configs.finalise(get(data_dir, argument, **changes))


# Of each dataset what its runs have, by the authors' logs.
PUBLISHED = {
    'voc': {
        'num_classes': 21, 'steps': 32_000, 'cosa.warmup_steps': 6000, 'cosa.low': 0.2,
        'cosa.high': 0.7, 'eval.pad_to': (512, 512), 'eval.every': 2000, 'batch_size': 4,
        'split': 'trainaug',
    },
    'coco': {
        'num_classes': 81, 'steps': 60_000, 'cosa.warmup_steps': 10_000, 'cosa.low': 0.25,
        'cosa.high': 0.65, 'eval.pad_to': (640, 640), 'eval.every': 6000, 'batch_size': 8,
        'split': 'train',
    },
}  # fmt: skip
PUBLISHED['coco2017'] = PUBLISHED['coco'] | {'dataset': 'coco/2017'}
COMMON = {
    'method': 'cosa', 'model.family': 'largefov', 'model.backbone': 'vit_base',
    'model.pretrained': 'vit_base', 'model.output_stride': 16, 'model.width': 1.0,
    'model.pool': 'max', 'model.aux_layer': -3, 'model.fov_dilation': 0,
    'cosa.scales': (1.0, 0.5, 1.5), 'cosa.aux_scales': 'last', 'cosa.thresholds': 'fixed',
    'cosa.weighting': 'none', 'cosa.separation': 0.0, 'cosa.aux_low': 0.25, 'cosa.aux_high': 0.7,
    'cosa.shrink': 2, 'cosa.temperature': 0.01, 'cosa.cam2seg_weight': 0.1,
    'cosa.seg2cam_weight': 0.05, 'cosa.energy_weight': 0.05, 'cosa.energy_side': 56,
    'cosa.head_rate': 10.0, 'cosa.strong_prob': 1.0, 'augment.blur_prob': 0.5,
    'augment.blur_sigma': (0.1, 2.0), 'teacher.decay': 0.9994, 'data.resampling': 'pil',
    'data.mean': (0.485, 0.456, 0.406), 'data.std': (0.229, 0.224, 0.225),
    'optimizer.learning_rate': 6e-5, 'optimizer.warmup_steps': 1500, 'optimizer.power': 0.9,
    'optimizer.floor': 0.0, 'optimizer.weight_decay': 0.01, 'accumulate_steps': 1,
    'eval.protocol': 'resized', 'eval.window': (448, 448), 'eval.flip': True, 'eval.split': 'val',
    'eval.scales': (1.0, 0.5, 1.5, 0.75, 1.25), 'eval.network': 'teacher',
}  # fmt: skip
STREAM = {
    'crop': (448, 448), 'resize': (0.5, 2.0), 'flip_prob': 0.5, 'pad': 'black', 'count': 0,
    'reads': 'classes+box', 'long_side': (0, 0),
}  # fmt: skip


@pytest.mark.parametrize('dataset', PUBLISHED)
def test_the_published_runs(dataset):
    config = configs.finalise(file.get_config(dataset))
    given = dict(PUBLISHED[dataset])
    dataset = given.pop('dataset', dataset)
    expected = STREAM | {'dataset': dataset} | {key: given.pop(key) for key in (
        'batch_size', 'split')}  # fmt: skip
    (stream,) = config.data.streams.values()
    assert {key: stream[key] for key in expected} == expected
    assert list(config.data.streams) == ['images'] and config.eval.dataset == dataset
    for path, value in (COMMON | given).items():
        found = config
        for part in path.split('.'):
            found = found[part]
        assert found == value, path
    heads = METHODS['cosa'].outputs(config)
    few = given['num_classes'] - 1
    assert heads == {
        'logits': few + 1, 'class': few, 'cam': few, 'class_aux': few, 'cam_aux': few
    }  # fmt: skip
    assert not METHODS['cosa'].warnings(config, {'images': 9})


def test_other_backbones_and_weights():
    for argument, backbone, weights in (
        ('voc,pretrained=vit_base.pth', 'vit_base', 'vit_base.pth'),
        ('coco,backbone=vit_small', 'vit_small', 'vit_small'),
        ('voc,pretrained=', 'vit_base', ''),
        ('voc,backbone=mobilenet_v1', 'mobilenet_v1', ''),
        ('voc,backbone=resnet50,seed=2', 'resnet50', 'resnet50'),
    ):
        config = configs.finalise(file.get_config(argument))
        assert (config.model.backbone, config.model.pretrained) == (backbone, weights)
    assert config.seed == 2
    config = configs.finalise(file.get_config('voc,cosa.thresholds=two,cosa.weighting=perplexity'))
    assert (config.cosa.thresholds, config.cosa.weighting) == ('two', 'perplexity')


def test_the_quickstart_and_its_ceiling():
    assert file.get_config() == file.get_config('quickstart,cosa,seed=0')
    ours = configs.finalise(file.get_config())
    ceiling = configs.finalise(file.get_config('supervised'))
    assert (ours.method, ceiling.method) == ('cosa', 'supervised')
    assert ours.model == ceiling.model and ours.steps == ceiling.steps == 900
    one, other = ours.data.streams.images, ceiling.data.streams.labelled
    for key in ('dataset', 'split', 'count', 'subset_seed', 'batch_size', 'crop', 'resize'):
        assert one[key] == other[key], key
    assert (one.reads, other.reads) == ('classes+box', 'mask')
    # A fifth of the steps, and an EMA of a twentieth.
    assert ours.cosa.warmup_steps == 180 and ours.cosa.energy_side == 28
    np.testing.assert_allclose(ours.teacher.decay, 1 - 20 / 900)


def test_images_and_masks_are_of_the_same_images(several):
    chosen = {}
    for seed in (0, 1):
        found = [
            splits.subsets(final(several, f'folder:cells,{method},5,seed={seed}').data)
            for method in ('cosa', 'supervised')
        ]
        assert found[0]['images'] == found[1]['labelled'] and len(found[0]['images']) == 5
        chosen[seed] = found[0]['images']
    assert chosen[0] != chosen[1]


def test_a_configuration_follows_from_the_images(several, bare, caplog):
    caplog.set_level('INFO', 'css_jax')
    config = final(several, 'folder:cells')
    (stream,) = config.data.streams.values()
    assert (stream.dataset, stream.split) == ('folder/cells', 'train')
    assert (stream.crop, stream.batch_size, stream.resize) == ((128, 320), 8, (0.5, 1.5))
    assert (config.num_classes, config.eval.dataset) == (3, 'folder/cells')
    assert (config.steps, config.checkpoint_every, config.data.dir) == (600, 150, several)
    assert (config.cosa.warmup_steps, config.eval.pad_to) == (120, (150, 400))
    assert (config.model.backbone, config.model.output_stride) == ('efficientnet_lite0', 16)
    assert (config.model.pretrained, config.optimizer.learning_rate) == ('', 1e-3)
    np.testing.assert_allclose(config.teacher.decay, 1 - 20 / 600)
    assert 'folder/cells: 20 images of train, 3 in val, 3 classes; crop 128x320' in caplog.text
    config = final(several, 'folder:cells,steps=40,backbone=vit_tiny')
    assert (config.steps, config.cosa.warmup_steps, config.checkpoint_every) == (40, 8, 10)
    assert (config.teacher.decay, config.model.output_stride) == (0.9, 16)


def test_tagged_images_are_trained_on_too_but_not_by_masks(several):
    config = final(several, 'folder:roofs')
    assert config.data.streams.images.split == 'weak' and config.eval.pad_to == (60, 90)
    assert config.data.streams.images.crop == (64, 96)
    ceiling = final(several, 'supervised,folder:roofs')
    assert ceiling.data.streams.labelled.split == 'train'
    assert ceiling.data.streams.labelled.crop == (32, 32)


def test_more_images_have_more_steps():
    assert [file.steps(n) for n in (1, 240, 241, 10_000)] == [600, 600, 700, 20_000]


def test_the_command_line_tells_the_file_where_the_records_are(several):
    path = f'configs/cosa.py:folder:cells,data.dir={several}'
    assert command_line.load(path).data.dir == several
    config = command_line.load('configs/cosa.py:folder:cells', {'data.dir': several, 'steps': '50'})
    assert config.cosa.warmup_steps == 10


@pytest.mark.parametrize(
    ('argument', 'rate'),
    [
        ('backbone=resnet18,pretrained=w.npz', 1e-4),
        ('pretrained=', 1e-3),
        ('model.pretrained=', 1e-3),
        ('backbone=resnet18,model.pretrained=w.npz', 1e-4),
        ('supervised,pretrained=', 0.1),
        ('supervised,backbone=resnet18,pretrained=w.npz', 0.02),
    ],
)
def test_the_rate_is_that_of_the_weights_it_starts_with(several, argument, rate, monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'distribution', lambda name: name)
    assert final(several, 'folder:cells').model.pretrained == 'efficientnet_lite0'
    assert final(several, 'folder:cells').optimizer.learning_rate == 1e-4
    config = final(several, f'folder:cells,{argument}')
    assert config.model.pretrained == ('w.npz' if 'w.npz' in argument else '')
    assert config.optimizer.learning_rate == rate


@pytest.mark.parametrize(
    ('argument', 'error', 'message'),
    [
        ('quickstat', ValueError, r"cosa\.py:quickstat: did you mean 'quickstart'\?"),
        (
            'cityscapes',
            ValueError,
            r'cosa\.py:cityscapes: .*expected one of quickstart, voc, coco, ',
        ),
        ('voc,coco', ValueError, r"cosa\.py: dataset is given twice, 'voc' and 'coco'"),
        ('voc,supervised', ValueError, r'got supervised with voc, expected it with quickstart or'),
        ('css_mix', ValueError, r'cosa\.py:css_mix: .*cosa, supervised'),
        ('backbone=vit_smal', ValueError, r"backbone=vit_smal: did you mean 'vit_small'\?"),
        ('cosa.lwo=0.2', ValueError, r'cosa\.py: .*cosa\.lwo.*cosa\.low'),
        ('cosa.low=a', ValueError, r'cosa\.low'),
        (
            'cosa.scales=1',
            ValueError,
            r'has commas in its value: give it as --config\.cosa\.scales',
        ),
        ('0', ValueError, r'labels: got .0., expected a whole number from 1'),
        ('folder:cels', FileNotFoundError, r"'folder/cels' is not prepared.* --name cels --data_d"),
        ('folder', ValueError, r"'folder': several are prepared in .*folder/cells, folder/roofs"),
        ('folder:cells,eval.split=fresh', ValueError, r"'folder/cells' has no split 'fresh'"),
    ],
)
def test_mistakes_are_answered_in_one_line(several, argument, error, message):
    with pytest.raises(error, match=message) as caught:
        get(several, argument)
    assert '\n' not in str(caught.value)


def test_every_command_of_its_help_is_read(several):
    said = re.findall(r'--config configs/cosa\.py:(\S+)', file.__doc__)
    assert len(said) == 3
    for argument in said:
        get(several, argument.replace('NAME', 'cells'))
