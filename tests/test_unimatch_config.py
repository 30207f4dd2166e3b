"""configs/unimatch.py: the authors' numbers of every run, and each kind of run traced."""

import functools

import jax
import numpy as np
import pytest

from configs import unimatch as file
from css_jax import config as configs
from css_jax import methods, state
from css_jax import step as steps
from css_jax.config import warnings
from css_jax.data import splits
from css_jax.methods.method import streams as streams_of
from css_jax.models import backbones, dinov2
from tests.small import shallow


@pytest.fixture(autouse=True)
def _without_lists(tmp_path, monkeypatch):
    """Where the tests are run there may be lists of one layout alone."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _without_images(monkeypatch):
    """No number of a run needs its images."""

    def asked(data):
        raise AssertionError('the images were asked for')

    monkeypatch.setattr(splits, 'load', asked)


def final(argument):
    return configs.finalise(file.get_config(argument))


def find(config, path):
    return functools.reduce(lambda table, name: table[name], path.split('.'), config)


# Iterations of an epoch, by the authors' logs of V2, and what their loaders give on the others.
V2 = {
    'voc': {92: 655, 183: 650, 366: 638, 732: 615, 1464: 570},
    'blender': {662: 620, 1323: 578, 2646: 496},
    'cityscapes': {186: 349, 372: 325, 744: 279, 1488: 186},
    'ade20k': {316: 2487, 631: 2447, 1263: 2368, 2526: 2210, 5052: 1895},
    'coco': {232: 7378, 3697: 7162},
}
V1 = {
    'voc': {92: 1311, 183: 1300, 366: 1277, 732: 1231, 1464: 1140},
    'blender': {662: 1240, 1323: 1157, 2646: 992},
    'cityscapes': V2['cityscapes'],
    'coco': {232: 14_757},
}
# Crop, batch of either stream, epochs.
SETUPS = {
    'dinov2': {
        'voc': (518, 16, 60), 'blender': (518, 16, 60), 'cityscapes': (798, 8, 180),
        'ade20k': (518, 8, 60), 'coco': (518, 16, 20),
    },
    'resnet': {
        'voc': (321, 8, 80), 'blender': (513, 8, 80), 'cityscapes': (801, 8, 240),
        'coco': (513, 8, 30),
    },
}  # fmt: skip
DATASETS = {'blender': 'voc', 'coco': 'coco/2017_all'}
FOLDERS = {
    'voc': {count: f'pascal/{count}' for count in V2['voc']},
    'blender': {count: f'pascal/{count}' for count in V2['blender']},
    'cityscapes': {186: 'cityscapes/1_16', 372: 'cityscapes/1_8', 744: 'cityscapes/1_4',
                   1488: 'cityscapes/1_2'},
    'ade20k': {316: 'ade20k/1_64', 631: 'ade20k/1_32', 1263: 'ade20k/1_16', 2526: 'ade20k/1_8',
               5052: 'ade20k/1_4'},
    'coco': {232: 'coco/1_512', 3697: 'coco/1_32'},
}  # fmt: skip
COMMON = {
    'optimizer.power': 0.9, 'optimizer.floor': 0.0, 'optimizer.warmup_steps': 0,
    'data.resampling': 'pil', 'data.mean': (0.485, 0.456, 0.406),
    'data.std': (0.229, 0.224, 0.225), 'eval.split': 'val', 'eval.flip': False,
    'eval.scales': (1.0,), 'accumulate_steps': 1,
}  # fmt: skip
UNLABELLED = {
    'burn_in_steps': 0, 'unsupervised.weight': 1.0, 'unimatch.mix_prob': 0.5,
    'unimatch.box_area': (0.02, 0.4), 'unimatch.box_ratio': (0.3, 1 / 0.3),
    'augment.jitter_prob': 0.8, 'augment.brightness': 0.5, 'augment.contrast': 0.5,
    'augment.saturation': 0.5, 'augment.hue': 0.25, 'augment.grey_prob': 0.2,
    'augment.blur_prob': 0.5, 'augment.blur_sigma': (0.1, 2.0),
}  # fmt: skip
ADAMW = {
    'unimatch.optimizer': 'adamw', 'optimizer.learning_rate': 5e-6, 'unimatch.head_rate': 40.0,
    'optimizer.weight_decay': 0.01, 'model.family': 'dpt', 'eval.multiple': 14,
}  # fmt: skip
SGD = {
    'unimatch.optimizer': 'sgd', 'optimizer.momentum': 0.9, 'optimizer.nesterov': False,
    'optimizer.weight_decay': 1e-4, 'model.family': 'deeplab', 'model.output_stride': 16,
    'model.head_convs': 2, 'model.low_level_bias': False, 'model.first_dilation': 'previous',
    'model.multi_grid': (), 'model.stem_ceil_mode': False, 'eval.multiple': 1,
}  # fmt: skip
SGD_RATES = {'voc': (1e-3, 10.0), 'cityscapes': (5e-3, 1.0), 'coco': (4e-3, 10.0)}
STREAM = {
    'resize': (0.5, 2.0), 'resize_law': 'long_side', 'long_side': (0, 0), 'flip_prob': 0.5,
    'pad': 'black_corner', 'count': 0,
}  # fmt: skip


def check(config, dataset, labels, kind, batch):
    """Compare what all runs of a dataset on a kind of network have."""
    crop = SETUPS[kind][dataset][0]
    name = DATASETS.get(dataset, dataset)
    for path, value in (COMMON | (ADAMW if kind == 'dinov2' else SGD)).items():
        assert find(config, path) == value, path
    if kind == 'resnet':
        found = config.optimizer.learning_rate, config.unimatch.head_rate
        assert found == SGD_RATES[name.partition('/')[0]]
        assert config.model.stem == 'conv7' and config.model.pretrained == config.model.backbone
    assert config.eval.dataset == name
    ohem = dataset == 'cityscapes'
    assert config.supervised.loss == ('ohem' if ohem else 'ce')
    if ohem:
        alone = config.method == 'unimatch_supervised'
        # 200,000 of a GPU's two images, or of four.
        assert config.supervised.ohem_kept == (50_000 if alone else 100_000)
        assert config.supervised.ohem_threshold == 0.7
        assert config.eval.protocol == {'dinov2': 'sliding', 'resnet': 'sliding_cut'}[kind]
        assert tuple(config.eval.window) == (crop, crop)
    else:
        assert config.eval.protocol == 'whole_exact'
    for stream in config.data.streams.values():
        assert stream.dataset == name
        assert (tuple(stream.crop), stream.batch_size) == ((crop, crop), batch)
        assert {key: stream[key] for key in STREAM} == STREAM
    labelled = config.data.streams.labelled
    assert labelled.ids_file == f'splits/{FOLDERS[dataset][labels]}/labeled.txt'
    assert labelled.split == ('trainaug' if dataset == 'blender' else 'train')


@pytest.mark.parametrize('dataset', V2)
def test_v2_and_fixmatch_are_as_their_authors_ran_them(dataset):
    _, batch, epochs = SETUPS['dinov2'][dataset]
    for labels, iterations in V2[dataset].items():
        config = final(f'{dataset},{labels}')
        check(config, dataset, labels, 'dinov2', batch)
        assert (config.method, config.model.backbone) == ('unimatch', 'dinov2_base')
        assert config.model.pretrained == 'dinov2_base' and not config.model.frozen_backbone
        assert config.steps == epochs * iterations
        for path, value in UNLABELLED.items():
            assert find(config, path) == value, path
        assert (config.unsupervised.threshold, config.teacher.decay) == (0.95, 0.996)
        assert config.unimatch.dropout and config.unimatch.group == batch // 4
        assert config.eval.network == 'teacher'
        unlabelled = config.data.streams.unlabelled
        assert (unlabelled.reads, unlabelled.exclude) == ('none+valid', 'labelled')
        voc = dataset in ('voc', 'blender')
        assert unlabelled.split == ('trainaug' if voc else 'train')
    fixmatch = final(f'{dataset},{labels},fixmatch,dinov2_small')
    check(fixmatch, dataset, labels, 'dinov2', batch)
    assert (fixmatch.method, fixmatch.model.backbone) == ('fixmatch', 'dinov2_small')
    assert fixmatch.steps == config.steps
    assert (fixmatch.unsupervised.threshold, fixmatch.teacher.decay) == (0.95, 0.996)
    assert final(f'{dataset},{labels},frozen,dinov2_large').model.frozen_backbone


@pytest.mark.parametrize('dataset', V1)
def test_v1_is_as_its_authors_ran_it(dataset):
    _, batch, epochs = SETUPS['resnet'][dataset]
    for labels, iterations in V1[dataset].items():
        config = final(f'{dataset},{labels},unimatch_v1,resnet50')
        check(config, dataset, labels, 'resnet', batch)
        assert config.steps == epochs * iterations
        for path, value in UNLABELLED.items():
            assert find(config, path) == value, path
        assert config.unimatch.drop_prob == 0.5 and config.eval.network == 'student'
        assert config.unsupervised.threshold == (0.0 if dataset == 'cityscapes' else 0.95)
    deep = final(f'{dataset},{labels},unimatch_v1,resnet101,pretrained={{backbone}}.npz')
    assert (deep.model.stem, deep.model.pretrained) == ('deep', 'resnet101.npz')


@pytest.mark.parametrize('dataset', V2)
def test_v1_s_losses_on_dinov2_have_the_numbers_of_v2(dataset):
    labels = min(V2[dataset])
    _, batch, epochs = SETUPS['dinov2'][dataset]
    config = final(f'{dataset},{labels},unimatch_v1')
    check(config, dataset, labels, 'dinov2', batch)
    assert config.steps == epochs * V2[dataset][labels]
    assert (config.unsupervised.threshold, config.eval.network) == (0.95, 'student')


@pytest.mark.parametrize(
    ('dataset', 'labels', 'backbone', 'batch', 'length'),
    [
        ('voc', 92, 'dinov2_base', 32, 60 * 93),  # 3,000 images: 750 of a GPU, 8 at a time
        ('voc', 1464, 'dinov2_small', 32, 60 * 93),
        ('cityscapes', 1488, 'dinov2_base', 16, 180 * 187),
        ('ade20k', 5052, 'dinov2_base', 16, 60 * 375),
        ('coco', 232, 'dinov2_base', 32, 20 * 937),
        ('voc', 92, 'resnet101', 16, 80 * 5),
        ('cityscapes', 744, 'resnet50', 16, 240 * 46),
    ],
)
def test_labels_alone_are_as_their_authors_ran_them(dataset, labels, backbone, batch, length):
    config = final(f'{dataset},{labels},unimatch_supervised,{backbone}')
    check(config, dataset, labels, backbone.rstrip('015').partition('_')[0], batch)
    assert (config.steps, config.eval.network) == (length, 'student')
    assert list(config.data.streams) == ['labelled']


@pytest.mark.parametrize(
    ('dataset', 'total', 'length'),
    [
        ('voc', 10_582, 60 * 330),
        ('cityscapes', 2975, 360 * 187),  # 3,000 images
        ('ade20k', 20_210, 120 * 1263),
        ('coco', 118_287, 40 * 3696),
    ],
)
def test_all_labels_need_no_list(dataset, total, length):
    config = final(f'{dataset},{total},unimatch_supervised')
    labelled = config.data.streams.labelled
    assert (config.steps, labelled.ids_file, labelled.count) == (length, '', 0)
    assert labelled.split == ('trainaug' if dataset == 'voc' else 'train')
    with pytest.raises(ValueError, match=f'labels: got {total}, which are all images'):
        file.get_config(f'{dataset},{total}')


def test_words_and_what_is_not_said():
    assert file.get_config() == file.get_config('dinov2_base,unimatch,voc,92,seed=0')
    for dataset, labels in (('blender', 662), ('ade20k', 316), ('coco', 232)):
        assert file.get_config(dataset) == file.get_config(f'{labels},{dataset}')
    config = file.get_config('cityscapes,30,split=random,seed=2,optimizer.learning_rate=1e-5')
    labelled = config.data.streams.labelled
    assert (labelled.count, labelled.subset_seed, labelled.ids_file) == (30, 2, None)
    assert (config.seed, config.optimizer.learning_rate) == (2, 1e-5)
    assert final('cityscapes,30,split=random').steps == 180 * (-(-2945 // 4) // 2)
    lists = {
        'blender,662,layout=unimatch': 'splits/pascal/1_16/labeled.txt',
        'cityscapes,186,layout=u2pl,lists=/x': '/x/cityscapes/186/labeled.txt',
    }
    for argument, path in lists.items():
        assert file.get_config(argument).data.streams.labelled.ids_file == path
    for argument, weights in (
        ('dinov2_giant', ''), ('pretrained=', ''), ('pretrained={backbone}.pth', 'dinov2_base.pth'),
    ):  # fmt: skip
        assert final(argument).model.pretrained == weights


@pytest.mark.parametrize(
    ('argument', 'answer'),
    [
        ('vok', "did you mean 'voc'"),
        ('voc,css_mix', 'expected one of voc, blender, .*, a number of labelled images'),
        ('voc,frozen,resnet50', 'got voc and frozen with resnet50, expected one of dinov2_small'),
        ('ade20k,unimatch_v1,resnet101', 'got ade20k with resnet101, expected one of dinov2_small'),
        ('voc,93', 'labels: got 93, expected one of 92, .*split=random takes any'),
        ('ade20k,layout=u2pl', 'got u2pl, which has no lists of ade20k, expected unimatch'),
        ('coco,316', 'labels: got 316, expected one of 232, 463, 925, 1849, 3697'),
    ],
)
def test_mistakes_are_answered_in_one_line(argument, answer):
    with pytest.raises(ValueError, match=answer) as error:
        file.get_config(argument)
    assert str(error.value).startswith(file.FILE) and '\n' not in str(error.value)


def test_published_runs_have_no_warning_but_of_a_stem():
    for argument, count in (
        ('voc', 0), ('cityscapes', 0), ('ade20k,unimatch_supervised', 0), ('coco,fixmatch', 0),
        ('cityscapes,unimatch_v1,resnet50', 1), ('ade20k,pretrained=', 1),
    ):  # fmt: skip
        given = file.get_config(argument)
        config = configs.finalise(given)
        images = {'labelled': 92, 'unlabelled': config.unimatch.images}
        found = warnings.warnings(given, config, images)
        assert len(found) == count, found


# Colours are left out: they are most of what is traced, and other tests' to hold.
SMALL = {
    'eval.window': (28, 28),
    **dict.fromkeys(('augment.jitter_prob', 'augment.grey_prob', 'augment.blur_prob'), 0.0),
    **{f'data.streams.{name}.{key}': value for name in ('labelled', 'unlabelled')
       for key, value in (('crop', (56, 56)), ('batch_size', 4))},
}  # fmt: skip


@pytest.mark.parametrize(
    'argument',
    [
        'frozen',
        'cityscapes,unimatch_v1,resnet50',
        pytest.param('ade20k,unimatch_v1', marks=pytest.mark.soak),
        pytest.param('cityscapes,fixmatch', marks=pytest.mark.soak),
        'coco,unimatch_supervised',
    ],
)
def test_a_run_of_each_kind_is_traced(argument, monkeypatch):
    """On networks of a block, or four; the classes are the dataset's."""
    monkeypatch.setitem(backbones.BACKBONES, 'resnet50', shallow)
    monkeypatch.setitem(dinov2.SIZES, 'dinov2_base', dinov2.Size(1, 1, (0, 0, 0, 0)))
    given = file.get_config(argument)
    given.update_from_flattened_dict(SMALL)
    if 'unimatch_supervised' not in argument:
        given.unimatch.group = 2
    given.model.pretrained = ''
    config = configs.finalise(given)
    method = methods.METHODS[config.method]
    ctx = methods.context(config)
    optimizer, rates = method.optimizer(config)
    start = jax.eval_shape(state.maker(method, optimizer, ctx), np.uint32(0), {})
    batch = {}
    for name, reads in streams_of(method, config.data.streams).items():
        shape = (4, 56, 56)
        batch[name] = {'image': jax.ShapeDtypeStruct((*shape, 3), np.uint8)}
        if reads.startswith('mask'):
            batch[name]['label'] = jax.ShapeDtypeStruct(shape, np.uint8)
        if reads.endswith('valid'):
            batch[name]['valid'] = jax.ShapeDtypeStruct(shape, bool)
    step = functools.partial(steps.train_step, method=method, optimizer=optimizer, ctx=ctx)
    after, metrics = jax.eval_shape(step, start, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), start
    )
    assert {'loss', 'loss_supervised', 'gradient_norm'} <= metrics.keys()
    assert ('loss_perturbed' in metrics) == (config.method == 'unimatch_v1')
    assert ('loss_strong2' in metrics) == (config.method in ('unimatch', 'unimatch_v1'))
    dpt = config.model.family == 'dpt'
    assert rates['learning_rate'](1) == rates['learning_rate'](0) == config.optimizer.learning_rate
    assert ('learning_rate_heads' in rates) == dpt
