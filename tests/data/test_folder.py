"""Folders of images and masks in every layout, and everything that can be wrong with them."""

import fcntl
import json
import shutil
import sys
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from css_jax.data import sources
from data_prep.folder import __main__ as command
from data_prep.folder import layouts, reading
from data_prep.folder.reading import Settings

H, W = 24, 32


def ids(number, count=3):
    """A mask with all ids below `count`."""
    rng = np.random.default_rng(number)
    return rng.permutation(np.resize(np.arange(count), H * W)).reshape(H, W).astype(np.uint8)


def image(number):
    return np.random.default_rng([1, number]).integers(0, 256, (H, W, 3), np.uint8)


def put(file, content, **options):
    """Write an array, an image or text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        content = content if isinstance(content, Image.Image) else Image.fromarray(content)
        content.save(file, **options)


def pairs(root, *names, images='images', masks='masks', ending='.png', change=lambda mask: mask):
    """Write an image and a mask of each name; the name's place is the number of both."""
    for number, name in enumerate(names):
        put(root / images / f'{name}{ending}', image(number))
        put(root / masks / f'{name}.png', change(ids(number)))


def read(source, **settings):
    """Read a folder in which nothing is wrong."""
    plan, problems = reading.read(source, Settings(**settings))
    assert problems == []
    return plan


def split_ids(plan):
    return {split: list(named) for split, named in plan.splits.items()}


def labels(plan, split='train'):
    return {name: label for name, _, label in reading.items(plan, split)}


def text(plan):
    return '\n'.join(plan.report)


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
    pairs(root, 'train/a', 'train/b', 'valid/c', 'test/d')
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


COLOURS = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255]], np.uint8)


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
    inside: ('images/ + masks/: 4 labelled images, 1 unlabelled', {
        'train': ['a', 'b'], 'val': ['c'], 'test': ['d'], 'unlabelled': ['e']}),
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


def test_a_share_of_the_labelled_images_is_drawn_for_val(tmp_path):
    pairs(tmp_path, *'abcdefghij')
    first, again, other = (read(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert len(first.splits['val']) == 2 and len(first.splits['train']) == 8
    assert split_ids(first) == split_ids(again) != split_ids(other)
    assert 'no val split: 2 of the 10 labelled images are it, drawn by seed 0' in text(first)
    assert 'no image is without a mask: training will be supervised' in text(first)
    assert len(read(tmp_path, val_share=0.5).splits['val']) == 5
    assert len(read(tmp_path, val_share=0.99).splits['train']) == 1


# Masks


PALETTE = np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes()


def with_palette(mask, palette=PALETTE):
    made = Image.fromarray(mask).convert('P')
    made.putpalette(palette)
    return made


@pytest.mark.parametrize(
    ('change', 'table'),
    [
        (lambda mask: mask, 'x\ny\nz\n'),
        (with_palette, '\ufeffx\r\n# a comment\r\ny\r\n\r\nz\r\n'),
        (with_palette, 'x 0 0 0\ny 250 50 83\nz 51 221 255\n'),
        (lambda mask: with_palette(mask, COLOURS.tobytes()), 'x 0 0 0\ny 250 50 83\nz 51 221 255'),
        (lambda mask: COLOURS[mask], 'x 0 0 0\ny 250 50 83\nz,51,221,255\n'),
        (lambda mask: np.stack([mask] * 3, -1), 'x\ny\nz\n'),
        (lambda mask: mask.astype(np.uint16), None),
        (lambda mask: COLOURS[[0, 2, 1]][mask], 'x 0 0 0\nz 51 221 255\ny 250 50 83'),
        (lambda mask: np.concatenate([COLOURS[mask], mask[..., None]], 2),
         'x 0 0 0\ny 250 50 83\nz 51 221 255\n'),
    ],
    ids=range(9),
)  # fmt: skip
def test_forms_of_masks(tmp_path, change, table):
    pairs(tmp_path, 'a', 'b', change=change)
    if table:
        put(tmp_path / 'classes.txt', table)
    plan = read(tmp_path)
    names = ('class 0', 'class 1', 'class 2') if not table else tuple(
        line.split()[0].split(',')[0] for line in table.strip('\ufeff').splitlines()
        if line and line[0] != '#')  # fmt: skip
    assert plan.classes.names == names
    np.testing.assert_array_equal(labels(plan)['b'], ids(1))


@pytest.mark.parametrize(('table', 'ignore', 'is_class'), [
    (None, (), True), ('background\nroof\n', (), True), (None, (255,), False),
    ('background\nroof\ndoor\n', (), False), ('roof\nvoid\n', (), False),
])  # fmt: skip
def test_masks_of_0_and_255(tmp_path, table, ignore, is_class):
    pairs(tmp_path, 'a', 'b', change=lambda mask: (mask > 0) * np.uint8(255))
    if table:
        put(tmp_path / 'classes.txt', table)
    plan = read(tmp_path, ignore=ignore)
    assert ('masks are 0 and 255: 255 is class 1' in plan.report[0]) == is_class
    assert set(np.unique(labels(plan)['b'])) == ({0, 1} if is_class else {0, 255})
    assert ('the masks show one class alone' in text(plan)) == (not is_class)


def test_values_that_are_void(tmp_path):
    pairs(tmp_path, 'a', 'b', change=lambda mask: np.uint8([0, 1, 9])[mask])
    plan = read(tmp_path, ignore=(9,))
    assert plan.classes.names == ('class 0', 'class 1')
    assert set(np.unique(labels(plan)['b'])) == {0, 1, 255}
    put(tmp_path / 'classes.txt', 'void\nx\n')
    plan = read(tmp_path, ignore=(9,))
    assert plan.classes.names == ('x',)
    assert set(np.unique(labels(plan)['b'])) == {0, 255}
    with pytest.raises(ValueError, match='no class is left'):
        read(tmp_path, ignore=(9, 1))


@pytest.mark.parametrize(('picked', 'names', 'new', 'said'), [
    ('dog,cat', ('dog', 'cat'), (255, 1, 0), 'void, as --classes does not name them: sky'),
    ('sky,pet=cat+dog', ('sky', 'pet'), (0, 1, 1), ''),
    ('cat=void,dog,sky', ('dog', 'sky'), (1, 255, 0), ''),
    ('cat,rest=void', ('cat',), (255, 0, 255), ''),
    ('cat,rest=other', ('cat', 'other'), (1, 0, 1), ''),
    ('void=sky+cat,dog', ('dog',), (255, 255, 0), ''),
])  # fmt: skip
def test_classes_are_picked(tmp_path, picked, names, new, said):
    pairs(tmp_path, 'a', 'b')
    put(tmp_path / 'classes.txt', 'sky\ncat\ndog\n')
    plan = read(tmp_path, classes=picked)
    assert plan.classes.names == names and said in text(plan)
    np.testing.assert_array_equal(labels(plan)['b'], np.uint8(new)[ids(1)])


@pytest.mark.parametrize('count', [1, 2, 255])
def test_numbers_of_classes(tmp_path, count):
    pairs(tmp_path, 'a', 'b', change=lambda _: ids(0, count))
    plan = read(tmp_path)
    assert len(plan.classes.names) == count
    np.testing.assert_array_equal(labels(plan)['b'], ids(0, count))


# What is wrong ends in one line.


def same_stem(root):
    put(root / 'images/a.jpg', image(1))


def bad_table(line, name='classes.txt'):
    return lambda root: put(root / name, line)


def without(folder):
    return lambda root: shutil.rmtree(root / folder)


def mask_of(change):
    return lambda root: put(root / 'masks/b.png', change(ids(1)))


WRONG = {  # how a folder of pairs is spoilt -> what the one line says
    'no folder': (shutil.rmtree, r'--source .*: there is no such folder'),
    'file': (lambda root: (shutil.rmtree(root), put(root, 'x')), 'this is a file'),
    'empty': (lambda root: (without('images')(root), without('masks')(root)),
              'there is nothing; expected one of\n'),
    'no images': (without('images'), 'there is masks; expected one of\n'),
    'no masks': (without('masks'), 'there is images/ but neither masks/ nor labels/ beside it'),
    'other names': (lambda root: [f.rename(f.with_name(f'{f.stem}_m.png'))
                                  for f in sorted(root.glob('masks/*'))],
                    r'no image has a mask, such as .*a\.png; .*a_m\.png and 2 more: a mask with'),
    'two of a stem': (same_stem, r'images/a\.jpg and a\.png have one stem'),
    'two folders': (lambda root: put(root / 'labels/a.png', ids(0)), 'masks/ and labels/; exp'),
    'mixed table': (bad_table('x 1 2 3\ny\nz'), r'classes\.txt: line 2: expected `name r g b`'),
    'no colour': (bad_table('x 1 2 300'), r'classes\.txt: line 1: colour \(1, 2, 300\)'),
    'name twice': (bad_table('x\ny\nx'), r"classes\.txt: the name 'x' is there twice"),
    'colour twice': (bad_table('x 0 0 0\ny 0 0 0'), r'classes\.txt: the colour \(0, 0, 0\) is'),
    'no class': (bad_table('\n'), r'classes\.txt: no classes'),
    'no text': (bad_table(b'\xff\xfe\xff'), r'classes\.txt is no text'),
    '256 classes': (bad_table('\n'.join(f'c{i}' for i in range(256))), '256 classes; .* most 255'),
    'labelmap': (bad_table('cat 1 2 3', 'labelmap.txt'), r'labelmap\.txt: line 1: expected `name:'),
    'large value': (mask_of(lambda m: m.astype(np.uint16) * 400),
                    r'masks/b\.png: a mask with the value 800; expected .* .--ignore N makes'),
    'colours': (mask_of(lambda m: COLOURS[m]), r'masks/b\.png: colours, and no table of them'),
    'size': (mask_of(lambda m: m[1:]), r'masks/b\.png: expected width x height 32x24 .* 32x23'),
    'value': (lambda root: (bad_table('x\ny\nz')(root), mask_of(lambda m: m * 3)(root)),
              r'masks/b\.png: 512 pixels of values 3, 6; expected 0 to 2, or 255 for void'),
    'unknown colour': (lambda root: [bad_table('x 0 0 0\ny 1 0 0')(root), *(
        put(root / f'masks/{n}.png', COLOURS[ids(1, 2)]) for n in 'abc')],
        r'masks/a\.png: 384 pixels of colours colour 250 50 83; .*`void r g b` makes'),
    'palette': (lambda root: [put(root / 'classes.txt', 'x 2 2 2\ny 1 1 1\nz 3 3 3'), *(
        put(root / f'masks/{n}.png', with_palette(ids(1), bytes([1] * 3 + [2] * 3 + [3] * 3)))
        for n in 'abc')], r'masks/a\.png: the numbers of its palette say other classes'),
    'turned': (lambda root: put(root / 'images/b.png', image(1), exif=turned(6)),
               r'masks/b\.png: expected .* 24x32 .* EXIF orientation 6 .*; turn the mask or'),
    'no image': (lambda root: put(root / 'images/b.png', 'x'), r'images/b\.png is no readable'),
    'one pair': (lambda root: [(root / f'masks/{n}.png').unlink() for n in 'bc'],
                 'to train on: got 1, expected at least 2'),
    'no UTF-8': (lambda root: put(root / 'images' / b'\xe9.png'.decode(errors='surrogateescape'),
                                  image(3)), r'udce9\.png.*no UTF-8'),
    'no JPEGImages': (lambda root: [put(root / 'SegmentationClass/a.png', ids(0)),
                                    put(root / 'labelmap.txt', 'a:1,2,3::')],
                      'but no JPEGImages .export again with its images'),
    'two datasets': (lambda root: [without('images')(root), *(put(
        root / f'VOC20{n}/SegmentationClass/a.png', ids(0)) for n in (10, 12))],
        'VOC2010 and .*VOC2012 are datasets of their own'),
}  # fmt: skip


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def run(monkeypatch, *arguments):
    """Run the command here; returns what it ends with."""
    monkeypatch.setattr(sys, 'argv', ['folder', *map(str, arguments)])
    try:
        command.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_ends_in_words_and_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    spoil, reason = WRONG[name]
    source = tmp_path / 'source'
    pairs(source, 'a', 'b', 'c')
    spoil(source)
    arguments = ('--source', source, '--data_dir', tmp_path / 'data')
    said = run(monkeypatch, *arguments)
    with pytest.raises(ValueError, match=f'^error: .*{reason}'):
        raise ValueError(said)
    assert said.count('\n') == (layouts.EXPECTED.count('\n') + 1 if '\n' in reason else 0)
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(('option', 'code'), [
    ('--val_share=0', 2), ('--val_share=nan', 2), ('--ignore=70000', 2), ('--skip_bad=-1', 2),
    ('--name=../x', 1), ('--name=css_mix', 1), ('--name=', 1), (f'--name={"a" * 101}', 1),
    ('--classes=bird', 1), ('--classes=class 0,class 0', 1), ('--classes=rest=void', 1),
])  # fmt: skip
def test_options_that_make_no_sense(option, code, tmp_path, monkeypatch, capsys):
    pairs(tmp_path / 'source', 'a', 'b')
    said = run(monkeypatch, '--source', tmp_path / 'source', '--data_dir', tmp_path, option)
    said = capsys.readouterr().err.splitlines()[-1] if code == 2 else said
    assert option.partition('=')[0] in said and '\n' not in said
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_what_is_left_unread_or_unlabelled_is_said(tmp_path):
    pairs(tmp_path, 'a', 'b', 'c')
    (tmp_path / 'masks/c.png').unlink()
    put(tmp_path / 'unlabelled/IMG_1.HEIC', 'x')
    put(tmp_path / 'train.txt', 'a\nb\n')
    put(tmp_path / 'val.txt', 'c\n')
    said = text(read(tmp_path, max_side=16))
    for part in ('IMG_1.HEIC: not read', 'c.png: of val and without a mask', 'at most 16 pixels'):
        assert part in said


def test_colours_of_a_palette_that_contradict_the_table_are_an_error(tmp_path):
    for name in ('a', 'b'):
        mask = Image.fromarray(ids(0)).convert('P')
        mask.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0])
        put(tmp_path / f'images/{name}.png', image(0))
        put(tmp_path / f'masks/{name}.png', mask)
    put(tmp_path / 'classes.txt', 'bg 1 7 7\na 0 200 0\nb 200 0 0\n')
    _, problems = reading.read(tmp_path, Settings())
    assert len(problems) == 2 and 'the numbers of its palette say other classes' in problems[0]


def test_all_bad_files_are_listed_and_some_may_be_left_out(tmp_path, monkeypatch, capsys):
    pairs(tmp_path / 'source', *'abcdef')
    put(tmp_path / 'source/images/b.png', 'x')
    put(tmp_path / 'source/masks/d.png', ids(1)[2:])
    put(tmp_path / 'source/masks/e.png', '')
    arguments = ('--source', tmp_path / 'source', '--dry_run')
    said = run(monkeypatch, *arguments, '--skip_bad', 2)
    assert 'images/b.png' in said and 'and 2 more' in said and '--skip_bad 3' in said
    out = capsys.readouterr().out
    listed = [line for line in out.splitlines() if line.startswith('cannot be used')]
    for name, line in zip(('images/b.png', 'masks/d.png', 'masks/e.png'), listed, strict=True):
        assert name in line
    assert run(monkeypatch, *arguments, '--skip_bad', 3) == 0
    assert ': 3 labelled images, 0 unlabelled' in capsys.readouterr().out
    for name in 'af':
        put(tmp_path / f'source/images/{name}.png', 'x')
    # With too few images left the files are listed all the same.
    assert 'and 4 more' in run(monkeypatch, *arguments)
    assert 'got 1 and 5 that cannot be used' in run(monkeypatch, *arguments, '--skip_bad', 5)


def test_report(tmp_path):
    pairs(tmp_path / 'train', 'a', 'b', change=lambda mask: np.minimum(mask, 1))
    pairs(tmp_path / 'val', 'a', 'c', change=lambda mask: np.minimum(mask, 1))
    put(tmp_path / 'train/masks/b.png', ids(1))
    put(tmp_path / 'train/masks/q.png', ids(1))
    put(tmp_path / 'train/images/b.png', image(9), exif=turned(3))
    put(tmp_path / 'unlabelled/u.png', np.full((H, 1600), 4000, np.uint16))
    put(tmp_path / 'classes.txt', 'x\ny\nz\nw\n')
    plan = read(tmp_path)
    assert split_ids(plan)['train'] == ['train/a', 'b'] and 'val/a' in plan.splits['val']
    said = text(plan)
    for line in (
        'train: 2 images, width x height 32x24',
        'unlabelled: 1 images, width x height 1600x24',
        'warning: classes in no image: w',
        'warning: classes in one image alone: z',
        f'val/images/a.png of val is the same image as {tmp_path}/train/images/a.png of train',
        'q.png: a mask without an image of its name',
        'EXIF orientation 3 turns it',
        'images of up to 1600 pixels a side',
        '16-bit images: their values 4000 to 4000 become 0 to 255',
    ):
        assert line in said


def test_preparing_again_and_over(tmp_path, monkeypatch, capsys):
    source, data = tmp_path / 'source', tmp_path / 'data'
    pairs(source, 'a 1', 'b', 'c', ending='.PNG')
    put(source / 'unlabelled/ü.webp', image(5), lossless=True)
    put(source / 'images/c.PNG', image(5), exif=turned(3))
    put(source / 'classes.txt', 'x\ny\nz\n')
    arguments = ('--source', source, '--data_dir', data, '--name', 'pets')
    assert run(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert 'images/ + masks/ + unlabelled/: 3 labelled images, 1 unlabelled' in out
    assert 'configs/folder.py:pets,css_mix' in out
    assert cv2.imread(str(data / 'folder/pets/1.0.0/samples.png')).shape[1] > 3 * 480

    def records():
        splits = ('train', 'val', 'unlabelled')
        read = [sources.load('folder/pets', split, str(data)) for split in splits]
        return {r['id'].decode(): r for source in read for r in source.records}

    def decoded(record, key, flags):
        return cv2.imdecode(np.frombuffer(record[key], np.uint8), flags)

    found = records()
    assert sorted(found) == ['a 1', 'b', 'c', 'ü']
    for number, name in enumerate(('a 1', 'b', 'c')):
        label = decoded(found[name], 'label', cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(label.squeeze(), ids(number))
    assert (decoded(found['ü'], 'label', cv2.IMREAD_UNCHANGED) == 255).all()
    assert found['b']['image'] == (source / 'images/b.PNG').read_bytes()
    np.testing.assert_array_equal(decoded(found['ü'], 'image', 1)[..., ::-1], image(5))
    np.testing.assert_array_equal(decoded(found['c'], 'image', 1)[::-1, ::-1, ::-1], image(5))

    assert run(monkeypatch, *arguments) == 0
    assert 'is prepared already, from the same files' in capsys.readouterr().out
    place = data / 'folder/pets/1.0.0'
    place.rename(place.with_name('1.0.0.replaced'))  # as a replacement killed half-way leaves it
    (place.with_name('1.0.0.replaced') / 'samples.png').unlink()
    assert run(monkeypatch, *arguments) == 0 and (place / 'samples.png').exists()
    with (place.parent / '.lock').open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert 'another process is preparing it' in run(monkeypatch, *arguments)
    put(source / 'classes.txt', 'x\ny\nother\n')
    assert '--overwrite' in run(monkeypatch, *arguments)

    def breaks(plan, split):
        yield from list(items(plan, split))[:1]
        raise OSError('the disk is full')

    items = reading.items
    with monkeypatch.context() as patch:
        patch.setattr(reading, 'items', breaks)
        assert run(patch, *arguments, '--overwrite') == 'error: the disk is full'
    assert {path.name for path in (data / 'folder/pets').iterdir()} == {'1.0.0', '.lock'}
    assert records().keys() == found.keys()
    assert sources.class_names('folder/pets', str(data)) == ('x', 'y', 'z')
    assert run(monkeypatch, *arguments, '--overwrite', '--max_side', 16) == 0
    assert sources.class_names('folder/pets', str(data)) == ('x', 'y', 'other')
    assert decoded(records()['b'], 'image', 1).shape == (12, 16, 3)
    assert {path.name for path in (data / 'folder/pets').iterdir()} == {'1.0.0', '.lock'}
