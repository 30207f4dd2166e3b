"""Folders of images and masks in every layout are recognised."""

import json
import unicodedata

import numpy as np
import pytest

from data_prep.folder import reading
from data_prep.folder.reading import Settings
from tests.folders import COLOURS, H, W, ids, image, labels, pairs, put, read, split_ids, text

# Layouts: each is written by a function, and has the split of every id and the first line's begin.


def plain(root):
    pairs(root, 'a', 'b', masks='labels')
    put(root / 'images/c.jpg', image(7))
    put(root / 'unlabelled/deep/d e.JPG', image(8))
    for hidden in ('images/.DS_Store', 'images/._a.png', 'masks/.keep'):
        put(root / hidden, 'x')


def outside(root):
    pairs(root / 'train', 'a', 'b')
    pairs(root / 'Validation', 'c', images='Images', masks='Masks')
    put(root / 'test/images/a.png', image(4))
    put(root / 'train/unlabelled/x.png', image(5))
    put(root / 'unlabelled/images/y.png', image(6))


def inside(root):
    pairs(root, 'train/a', 'train/b', 'validation/c')
    (root / 'masks/validation').rename(root / 'masks/val')
    put(root / 'images/unlabelled/e.png', image(7))


def nested(root):
    plain(root / 'my photos')
    put(root / '__MACOSX/my photos/._a.png', 'x')
    put(root / 'README.md', 'x')


def voc(root):
    place = root / 'VOCdevkit/VOC2012'
    pairs(place, 'a', 'b', 'c', images='JPEGImages', masks='SegmentationClass', ending='.jpg')
    put(place / 'JPEGImages/d.jpg', image(8))
    for name, content in (('train', 'a\nb\n'), ('val', 'c\n'), ('trainval', 'a\nb\nc\n')):
        put(place / f'ImageSets/Segmentation/{name}.txt', content)


def cvat(root):
    put(root / 'labelmap.txt', '# label:color_rgb:parts:actions\nbackground:0,0,0::\n'
        'cat:250,50,83::\ndog:51,221,255::\n')  # fmt: skip
    put(root / 'ImageSets/Segmentation/default.txt', 'a\nb\n')
    folders = {'images': 'JPEGImages', 'masks': 'SegmentationClass'}
    pairs(root, 'a', 'b', **folders, change=lambda mask: COLOURS[mask])


def roboflow(root):
    for place, names in (('train', ('a_jpg.rf.1', 'b_mask')), ('valid', ('c',)), ('test', ('d',))):
        for number, name in enumerate(names):
            put(root / place / f'{name}.jpg', image(number))
            put(root / place / f'{name}_mask.png', ids(number))
        table = 'Pixel Value, Class\n0, background\n1, cat\n2, "big dog"\n'
        put(root / place / '_classes.csv', table)
    for place in ('train', 'valid'):  # of one name and without masks, both
        put(root / place / 'e.jpg', image(6))


def labelme(root):
    for number, place in enumerate(('a', 'b', 'val/c')):
        put(root / f'{place}.jpg', image(number))
        put(root / f'{place}.json', json.dumps(polygons()))
    put(root / 'd.jpg', image(5))


def polygons(**changes):
    shapes = [
        {'label': 'cat', 'points': [[2, 2], [12, 2], [12, 10], [2, 10]], 'shape_type': 'polygon'},
        {'label': 'dog', 'points': [[28, 20], [20, 4]], 'shape_type': 'rectangle'},
        {'label': '_background_', 'points': [[4, 4], [6, 6]], 'shape_type': 'rectangle'},
        {'label': 'dog', 'points': [[10, 18], [12, 18]], 'shape_type': 'circle'},
        {'label': '__ignore__', 'points': [[0, 22], [31, 22], [31, 23]], 'shape_type': None},
    ]
    return {'shapes': shapes, 'imageHeight': H, 'imageWidth': W} | changes


LAYOUTS = {
    plain: ('images/ + labels/ + unlabelled/: 2 labelled images, 2 unlabelled', {
        'train': ['b'], 'val': ['a'], 'unlabelled': ['c', 'd e']}),
    outside: ('images/ + masks/ in train/, Validation/, test/, unlabelled/: 3 labelled', {
        'train': ['train/a', 'b'], 'val': ['c'], 'unlabelled': ['unlabelled/a', 'x', 'y']}),
    inside: ('images/ + masks/ in images/train/, images/unlabelled/, images/validation/', {
        'train': ['a', 'b'], 'val': ['c'], 'unlabelled': ['e']}),
    nested: ('images/ + labels/ + unlabelled/: 2', {
        'train': ['b'], 'val': ['a'], 'unlabelled': ['c', 'd e']}),
    voc: ("VOC's folders with train.txt, val.txt: 3 labelled images, 1 unlabelled", {
        'train': ['a', 'b'], 'val': ['c'], 'unlabelled': ['d']}),
    cvat: ("CVAT's segmentation masks: 2 labelled images, 0 unlabelled", {
        'train': ['b'], 'val': ['a']}),
    roboflow: ("Roboflow's semantic masks: 4 labelled images, 2 unlabelled", {
        'train': ['a_jpg.rf.1', 'b_mask'], 'val': ['c'], 'test': ['d'],
        'unlabelled': ['train/e', 'valid/e']}),
    labelme: ("LabelMe's polygons: 3 labelled images, 1 unlabelled", {
        'train': ['a', 'b'], 'val': ['c'], 'unlabelled': ['d']}),
}  # fmt: skip


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(layout, tmp_path):
    layout(tmp_path)
    plan = read(tmp_path)
    first, splits = LAYOUTS[layout]
    assert plan.report[0].startswith(first)
    assert split_ids(plan) == splits
    if layout not in (labelme, outside):
        found = labels(plan)
        for name in set(found) & {'a', 'b', 'b_mask', 'a_jpg.rf.1'}:
            np.testing.assert_array_equal(found[name], ids('ab'.index(name[0])))
    for label in labels(plan, 'unlabelled').values() if 'unlabelled' in splits else ():
        assert (label == 255).all() and label.shape == (H, W)


def test_tables_of_the_exports(tmp_path):
    cvat(tmp_path / 'cvat')
    roboflow(tmp_path / 'roboflow')
    assert read(tmp_path / 'cvat').classes.names == ('background', 'cat', 'dog')
    assert read(tmp_path / 'roboflow').classes.names == ('background', 'cat', 'big dog')


def test_polygons_are_drawn_in_order(tmp_path):
    labelme(tmp_path)
    plan = read(tmp_path)
    label = labels(plan)['a']
    assert plan.classes.names == ('background', 'cat', 'dog')
    assert [label[y, x] for y, x in ((0, 0), (3, 3), (5, 5), (12, 24), (18, 10))] == [0, 1, 0, 2, 2]
    assert label[23, 31] == 255 and (label == 1).sum() == 11 * 9 - 9
    put(tmp_path / 'classes.txt', '_background_\ndog\ncat\n')
    assert labels(read(tmp_path))['a'][3, 3] == 2
    labelme(tmp_path / 'other/images')  # images/ with polygons, and no masks/
    assert read(tmp_path / 'other').report[0].startswith("LabelMe's polygons: 3")


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('{', r"none of LabelMe's files"),
        (json.dumps({'shapes': [{'label': 'cat', 'points': [[1, None]]}]}), 'without|none of'),
        (json.dumps({'shapes': [{'points': []}]}), "none of LabelMe's files: KeyError"),
        (json.dumps(polygons(imageWidth=W + 1)), 'on an image of width x height 33x24, came 32x24'),
        (json.dumps({'shapes': [{'label': 'cat', 'points': [[1, 1]], 'shape_type': 'point'}]}),
         'a point of 1 points; expected polygons, rectangles, circles'),
    ],
    ids=range(5),
)  # fmt: skip
def test_damaged_polygons_are_named_and_can_be_left_out(tmp_path, content, reason):
    labelme(tmp_path)
    put(tmp_path / 'b.json', content)
    plan, problems = reading.read(tmp_path, Settings(skip_bad=1))
    assert len(problems) == 1
    with pytest.raises(ValueError, match=rf'b\.json.*({reason})'):
        raise ValueError(problems[0])
    assert split_ids(plan)['train'] == ['a']


# Lists, names and splits


@pytest.mark.parametrize('written', [
    'a b\nπ\n', '\ufeffa b.PNG\r\nπ\r\n', 'images/a b.png\n\nimages/π.png\n',
    '"a b.png" masks/a b.png\nπ.png masks/π.png\n',
])  # fmt: skip
def test_lists_name_images_in_any_way(tmp_path, written):
    pairs(tmp_path, 'a b', 'π', 'c', 'site 1/d', ending='.PNG')
    put(tmp_path / 'train.txt', written)
    put(tmp_path / 'validation.txt', 'd\n')
    plan = read(tmp_path)
    assert 'with train.txt, validation.txt: 3 labelled images, 1 unlabelled' in plan.report[0]
    assert 'warning: 1 masks are not used' in text(plan)
    assert split_ids(plan) == {'train': ['a b', 'π'], 'val': ['d'], 'unlabelled': ['c']}
    put(tmp_path / 'unlabelled.txt', 'a b')
    with pytest.raises(ValueError, match=r"unlabelled\.txt: line 1 names 'a b', as .*train\.txt"):
        read(tmp_path)
    (tmp_path / 'unlabelled.txt').unlink()
    put(tmp_path / 'validation.txt', 'd\nq\n')
    with pytest.raises(ValueError, match=r"validation\.txt: line 2 names 'q', of which .* 0 im"):
        read(tmp_path)


def test_lists_that_name_some_images_alone(tmp_path):
    pairs(tmp_path, 'a', 'b', 'c', 'd')
    put(tmp_path / 'val.txt', 'c\n')
    assert split_ids(read(tmp_path)) == {'train': ['a', 'b', 'd'], 'val': ['c']}
    put(tmp_path / 'train.txt', 'a\n')
    put(tmp_path / 'unlabelled.txt', 'b\n')
    assert split_ids(read(tmp_path)) == {'train': ['a'], 'val': ['c'], 'unlabelled': ['b']}

    name, other = 'é', unicodedata.normalize('NFD', 'é')  # letters written in two ways
    put(tmp_path / f'images/{other}.png', image(1))
    put(tmp_path / f'masks/{name}.png', ids(1))
    put(tmp_path / 'train.txt', f'{other}\n')
    assert split_ids(read(tmp_path))['train'] == [name]
