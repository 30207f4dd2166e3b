"""What follows the colon of --config FILE:word,word,key=value, in every family."""

import re

import pytest

from configs import arguments, camvid, cityscapes, quickstart, voc
from css_jax import config as configs

FAMILIES = {'voc': voc, 'cityscapes': cityscapes, 'camvid': camvid, 'quickstart': quickstart}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_family_has_every_method_and_all_of_its_words_have_defaults(family):
    get_config = FAMILIES[family].get_config
    assert get_config() == get_config('') == get_config('css_mix,seed=0')
    for method in arguments.METHODS:
        config = configs.finalise(get_config(method))
        assert config.method == method
    config = get_config('css,seed=3,pretrained=w.npz,pseudo_label=cross,indicator=both')
    assert (config.seed, config.data.streams.labelled.subset_seed) == (3, 3)
    assert (config.method, config.pseudo_label, config.indicator) == ('css', 'cross', 'both')
    assert config.model.pretrained == 'w.npz'


def test_words_are_known_by_what_they_are():
    given = 'classic,183,css_cross,seed=1,steps=300'
    config = voc.get_config(given)
    for other in (
        'css_cross,steps=300,183,seed=1,classic',
        ' protocol=classic , labels=183, method=css_cross,seed=1,steps=300,',
    ):
        assert voc.get_config(other) == config
    assert (config.data.streams.labelled.count, config.steps) == (183, 300)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_key_that_is_called_like_an_option_is_a_key(family):
    config = FAMILIES[family].get_config('model.pretrained=w.npz,eval.split=fresh')
    assert (config.model.pretrained, config.eval.split) == ('w.npz', 'fresh')


def test_keys_are_read_as_what_the_table_has():
    config = voc.get_config(
        'eval.flip=true,optimizer.floor=1e-5,model.stem_ceil_mode=True,data.dir=/data,augment.hue=0'
    )
    assert config.eval.flip is True and config.model.stem_ceil_mode is True
    assert (config.optimizer.floor, config.augment.hue, config.data.dir) == (1e-5, 0.0, '/data')


def test_voc_s_labelled_images_are_drawn_or_listed():
    stream = voc.get_config('seed=2').data.streams.labelled
    assert (stream.split, stream.count, stream.subset_seed) == ('train', 92, 2)
    assert stream.ids_file is None
    stream = voc.get_config('732,split=list,lists=/data/lists').data.streams.labelled
    assert (stream.count, stream.ids_file) == (None, '/data/lists/pascal/732/labeled.txt')
    stream = voc.get_config('blender').data.streams.labelled
    assert (stream.split, stream.ids_file) == ('trainaug', 'splits/pascal/662/labeled.txt')
    stream = voc.get_config('blender,1000,split=random').data.streams.labelled
    assert (stream.split, stream.count, stream.ids_file) == ('trainaug', 1000, None)
    stream = voc.get_config('classic,1464').data.streams.labelled
    assert (stream.split, stream.count) == ('train', 1464)
    stream = cityscapes.get_config('30,split=random,seed=1').data.streams.labelled
    assert (stream.count, stream.subset_seed, stream.ids_file) == (30, 1, None)


def test_lists_of_blender_voc_are_of_two_layouts(tmp_path, monkeypatch):
    """iMAS's numbers are on random lists, whose folders UniMatch calls by their share."""
    monkeypatch.chdir(tmp_path)  # which has no lists
    imas = voc.get_config('blender,imas').data.streams.labelled
    assert (imas.split, imas.ids_file) == ('trainaug', 'splits/pascal/1_16/labeled.txt')
    alone = voc.get_config('blender,1323,imas_supervised,lists=/x').data.streams.labelled
    assert alone.ids_file == '/x/pascal/1_8/labeled.txt'
    for argument in ('blender,imas,layout=u2pl', 'imas,u2pl,blender,662', 'blender,cutmix'):
        labelled = voc.get_config(argument).data.streams.labelled
        assert labelled.ids_file == 'splits/pascal/662/labeled.txt'
    css = voc.get_config('blender,2646,css_mix,layout=unimatch').data.streams.labelled
    assert css.ids_file == 'splits/pascal/1_4/labeled.txt'
    # The classic lists are the same in both; iMAS has them, the others draw.
    imas = voc.get_config('183,imas,seed=2').data.streams.labelled
    assert (imas.split, imas.ids_file) == ('train', 'splits/pascal/183/labeled.txt')
    drawn = voc.get_config('183,imas,split=random').data.streams.labelled
    assert (drawn.count, drawn.ids_file) == (183, None)
    streets = cityscapes.get_config('744,imas').data.streams.labelled
    assert streets.ids_file == 'splits/cityscapes/744/labeled.txt'


def put_list(folder, name, form, images):
    path = folder / name / 'labeled.txt'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{form.format(i)}\n' for i in range(images)))


UNIMATCH = 'JPEGImages/2008_{0:06d}.jpg SegmentationClass/2008_{0:06d}.png'


def test_a_list_of_either_layout_is_read(tmp_path):
    put_list(tmp_path, 'pascal/1_16', UNIMATCH, 662)
    put_list(tmp_path, 'pascal/662', '2008_{:06d}', 662)
    assert voc.get_config(f'blender,imas,lists={tmp_path}')
    assert voc.get_config(f'blender,css_mix,lists={tmp_path}')


@pytest.mark.parametrize(
    ('argument', 'name', 'images', 'answer'),
    [
        ('voc:blender,imas', 'pascal/1_16', 661, '1_16/labeled.txt: got 661 images, expected 662'),
        ('voc:blender,cutmix', 'pascal/662', 92, '662/labeled.txt: got 92 images, expected 662'),
        ('voc:blender,imas', 'pascal/1_16', 0, '1_16/labeled.txt: got no images, expected one a l'),
        (
            'voc:blender,imas', 'pascal/662', 662,
            "pascal has a list 662 (U2PL's layout), expected 1_16 (UniMatch's); layout=u2pl takes "
            'it',
        ),
        (
            'voc:blender,1323,css_mix', 'pascal/1_8', 1323,
            "pascal has a list 1_8 (UniMatch's layout), expected 1323 (U2PL's); layout=unimatch "
            'takes it',
        ),
        (
            'cityscapes:744,imas', 'cityscapes/1_4', 744,
            "cityscapes has a list 1_4 (UniMatch's layout), expected 744 (U2PL's); its images are "
            'others',
        ),
        ('voc:blender,5291,imas', 'pascal/1_4', 9, 'got 5291, expected one of 92, .*, 2646 with'),
    ],
)  # fmt: skip
def test_a_list_that_is_not_what_was_asked_for(argument, name, images, answer, tmp_path):
    put_list(tmp_path, name, UNIMATCH, images)
    family, _, words = argument.partition(':')
    with pytest.raises(ValueError) as error:
        FAMILIES[family].get_config(f'{words},lists={tmp_path}')
    said = str(error.value)
    assert re.search(answer if '.*' in answer else re.escape(answer), said)
    assert said.startswith(f'configs/{family}.py: ') and '\n' not in said


@pytest.mark.parametrize('family', ['voc', 'cityscapes'])
def test_the_backbone_has_the_weights_of_its_name(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which has no lists
    get_config = FAMILIES[family].get_config
    for argument, backbone in (('', 'resnet101'), ('backbone=resnet50', 'resnet50')):
        model = configs.finalise(get_config(argument)).model
        assert (model.backbone, model.pretrained) == (backbone, backbone)
        assert model.stem == 'conv7'
        model = get_config(f'{argument},pretrained=deep-{{backbone}}.npz').model
        assert model.pretrained == f'deep-{backbone}.npz'
    deep = get_config('blender,imas,pretrained=x.npz' if family == 'voc' else 'pretrained=x.npz')
    assert deep.model.stem == 'deep'
    assert voc.get_config('classic,imas,pretrained=x.npz').model.stem == 'deep'


def test_the_small_families_take_numbers_of_labels_too():
    for family, count, least in ((camvid, 46, 8), (camvid, 30, 6), (quickstart, 8, 2)):
        stream = family.get_config(str(count)).data.streams.labelled
        assert (stream.count, stream.min_per_class) == (count, least)
    assert camvid.get_config('46') == camvid.get_config()
    assert quickstart.get_config('3').data.streams.labelled.min_per_class == 0
    config = camvid.get_config('backbone=mobilenet_v1')
    assert (config.model.backbone, config.model.width) == ('mobilenet_v1', 0.75)


@pytest.mark.parametrize(
    ('family', 'argument', 'answer'),
    [
        ('voc', 'classik', r"voc\.py:classik: did you mean 'classic'\?"),
        ('voc', 'css_mxi', "did you mean 'css_mix'"),
        ('voc', 'xyz', r'expected one of classic, blender, supervised, .*, a number of labelled'),
        ('voc', 'protocol=blendr', "protocol=blendr: did you mean 'blender'"),
        ('voc', 'classic,92,183', "labels is given twice, 92 and '183'"),
        ('voc', 'seed=0,seed=0', 'seed is given twice'),
        ('voc', 'steps=1,steps=2', 'steps is given twice'),
        ('voc', 'backbone=resnet34', 'backbone=resnet34: .*expected one of resnet101, resnet50'),
        ('voc', 'layout=imas', 'layout=imas: .*expected one of u2pl, unimatch'),
        ('cityscapes', 'layout=unimatch', "no key 'layout'"),
        ('voc', 'seed=', "seed: got '', expected a whole number from 0"),
        ('voc', 'seed=-1', "seed: got '-1'"),
        ('voc', '0', "labels: got '0', expected a whole number from 1"),
        ('voc', 'blender,100', 'labels: got 100, expected one of 92, .*split=random takes any'),
        ('voc', 'lable=92', "no key 'lable'; did you mean 'labels'"),
        ('voc', 'stpes=3', "no key 'stpes'; did you mean 'steps'"),
        ('voc', 'optimizer.lerning_rate=1', "did you mean 'optimizer.learning_rate'"),
        ('voc', 'steps=1e3', "steps: got '1e3', expected a whole number"),
        ('voc', 'eval.flip=maybe', "eval.flip: got 'maybe', expected true or false"),
        ('voc', 'augment.resize=1', r'give it as --config\.augment\.resize='),
        ('voc', 'eval.scales=1,2', r'give it as --config\.eval\.scales='),
        ('voc', 'model=3', 'model'),
        ('cityscapes', 'classic', 'cityscapes.py:classic: .*expected one of supervised'),
        ('cityscapes', '92', 'labels: got 92, expected one of 186, 372, 744, 1488'),
        ('camvid', 'backbone=resnet101', 'backbone=resnet101: .*expected one of resnet18'),
        ('quickstart', 'supervised_all,16', 'got 16 labels with supervised_all'),
    ],
)
def test_mistakes_are_answered_in_words(family, argument, answer):
    with pytest.raises(ValueError, match=answer) as error:
        FAMILIES[family].get_config(argument)
    assert f'configs/{family}.py' in str(error.value)
