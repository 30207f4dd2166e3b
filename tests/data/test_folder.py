"""Masks, classes and reports of folders, and everything that can be wrong with them."""

import fcntl
import shutil
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from css_jax.data import sources
from data_prep.folder import __main__ as command
from data_prep.folder import classes, layouts, reading
from data_prep.folder.reading import Settings
from tests.folders import COLOURS, H, W, ids, image, labels, pairs, put, read, split_ids, text


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
    lines = [line.replace(',', ' ').split() for line in table.splitlines()] if table else []
    own = tuple(tuple(map(int, line[1:])) for line in lines if len(line) == 4)
    assert classes.colours(plan.found.table, plan.classes) == own


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
                 'to train on .*: got 1, expected at least 2'),
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
    ('--max_pixels=0', 2), ('--max_pixels=767', 1),
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


def test_masks_that_show_no_class_are_not_drawn_for_val(tmp_path):
    pairs(tmp_path, *'abcde')
    for name in 'bcd':
        put(tmp_path / f'masks/{name}.png', np.full((H, W), 255, np.uint8))
    for seed in range(3):
        plan = read(tmp_path, seed=seed)
        assert set(split_ids(plan)['val']) < {'a', 'e'} and len(plan.splits['train']) == 4
    put(tmp_path / 'val.txt', 'b\nc\n')
    with pytest.raises(ValueError, match='val: no mask shows a class'):
        read(tmp_path)


def test_values_far_apart_without_a_table_are_asked_about(tmp_path):
    pairs(tmp_path, 'a', 'b', change=lambda mask: (mask > 0) * np.uint8(128))
    said = text(read(tmp_path))
    assert 'no table of classes, and 127 of the 129' in said and 'class 10 and 117 more' in said


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
    put(source / 'classes.txt', 'x 1 2 3\ny 4 5 6\nother 7 8 9\n')
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
    assert sources.palette('folder/pets', str(data)).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert decoded(records()['b'], 'image', 1).shape == (12, 16, 3)
    assert {path.name for path in (data / 'folder/pets').iterdir()} == {'1.0.0', '.lock'}
