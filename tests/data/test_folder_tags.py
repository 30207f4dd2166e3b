"""Image-level labels of folders: labels.csv beside masks, and in place of all of them."""

import sys

import cv2
import numpy as np
import pytest

from css_jax.data import sources
from data_prep import records
from data_prep.folder import __main__ as command
from data_prep.folder import layouts, reading
from data_prep.folder.builder import Builder
from data_prep.folder.reading import Settings
from tests import folders
from tests.folders import ids, image, labels, pairs, put, read, split_ids, text

NAMES = 'background\ncat\ndog\n'


def photographs(root, *names, ending='.png'):
    for number, name in enumerate(names):
        put(root / f'{name}{ending}', image(100 + number))


def tagged(root, rows, *names):
    """Write a folder without masks; returns it."""
    photographs(root / 'images', *(names or 'abcd'))
    put(root / 'labels.csv', rows)
    return root


def mixed(root, rows, table=NAMES):
    """Write three pairs, a to c, and t, u and v without masks; returns the folder."""
    pairs(root, 'a', 'b', 'c')
    photographs(root / 'images', 't', 'u', 'v')
    put(root / 'classes.txt', table)
    put(root / 'labels.csv', rows)
    return root


def shown(plan):
    """Each tagged image -> the classes it shows but background, as one text."""
    found = {name: vector for named in plan.tags.values() for name, vector in named.items()}
    assert all(vector[0] == 1 for vector in found.values())
    return {
        name: '+'.join(c for c, yes in zip(plan.classes.names[1:], v[1:], strict=True) if yes)
        for name, v in sorted(found.items())
    }


def problems_of(source, **settings):
    return reading.read(source, Settings(**settings))[1]


def run(monkeypatch, *arguments):
    """Run the command here; returns what it ends with."""
    monkeypatch.setattr(sys, 'argv', ['folder', *map(str, arguments)])
    try:
        command.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


# Beside masks


def test_images_with_a_row_and_no_mask_are_tagged(tmp_path):
    plan = read(mixed(tmp_path, 'a,cat\nt,cat\nv,dog,cat\n'))
    assert plan.report[0] == (
        'images/ + masks/ with labels.csv: 3 labelled images, 2 tagged, 1 unlabelled'
    )
    assert split_ids(plan).keys() == {'train', 'val', 'tagged', 'unlabelled'}
    assert split_ids(plan)['tagged'] == ['t', 'v'] and split_ids(plan)['unlabelled'] == ['u']
    assert shown(plan) == {'t': 'cat', 'v': 'cat+dog'} and plan.tags.keys() == {'tagged'}
    assert all((label == 255).all() for label in labels(plan, 'tagged').values())
    said = text(plan)
    assert '1 images of labels.csv have masks, which count: their rows are not used' in said
    assert '\nweak: 4 images, those of train and tagged\n' in said
    assert '\n  tag             images\n  background           2\n  cat ' in said
    assert 'will be supervised' not in said


def test_a_labels_csv_of_images_with_masks_changes_nothing(tmp_path):
    pairs(tmp_path, 'a', 'b', 'c')
    put(tmp_path / 'classes.txt', NAMES)
    before = read(tmp_path)
    put(tmp_path / 'labels.csv', 'a,no class at all\n')
    plan = read(tmp_path, classes='dog,cat')  # the first need not be background: nothing is tagged
    assert split_ids(plan) == split_ids(before) and plan.tags == {}
    assert '1 images of labels.csv have masks' in text(plan) and 'weak' not in text(plan)


def test_what_lists_and_folders_make_unlabelled_is_tagged_by_a_row(tmp_path):
    source = mixed(tmp_path, 'b,cat\nv,dog\nx,cat\n')
    put(source / 'unlabelled/x.png', image(9))
    put(source / 'train.txt', 'a\n')
    put(source / 'val.txt', 'c\nv\n')
    plan = read(source)
    assert split_ids(plan) == {
        'train': ['a'], 'val': ['c'], 'tagged': ['b', 'v', 'x'], 'unlabelled': ['t', 'u'],
    }  # fmt: skip
    assert 'v.png: of val and without a mask, so tagged' in text(plan)
    put(source / 'unlabelled.txt', 't\n')  # now b, v, u are in no list
    put(source / 'val.txt', 'c\n')
    plan = read(source)
    assert split_ids(plan)['tagged'] == ['x'] and split_ids(plan)['unlabelled'] == ['t']
    assert '2 images of labels.csv are in no list: their rows are not used' in text(plan)


def test_other_layouts_have_tags_too(tmp_path):
    place = tmp_path / 'VOCdevkit/VOC2012'
    pairs(place, 'a', 'b', images='JPEGImages', masks='SegmentationClass')
    photographs(place / 'JPEGImages', 'c')
    put(place / 'classes.txt', NAMES)
    put(place / 'LABELS.csv', 'c.png,dog\n')
    plan = read(tmp_path)
    assert plan.report[0].startswith("VOC's folders with labels.csv: 2 labelled images, 1 tagged")
    assert shown(plan) == {'c': 'dog'}


def test_masks_without_names_have_none_for_tags(tmp_path):
    source = mixed(tmp_path, 't,class 2\nu,cat\n')
    (source / 'classes.txt').unlink()
    (problem,) = problems_of(source)
    assert "line 2: got 'cat', expected one of the 3 classes; the nearest is 'class" in problem
    assert 'no classes.txt names the values of the masks' in problem
    put(source / 'labels.csv', 't,class 2\n')
    assert shown(read(source)) == {'t': 'class 2'}


def test_an_image_that_is_tagged_and_elsewhere_is_named(tmp_path):
    source = mixed(tmp_path, 't,cat\nu,dog\n')
    put(source / 'images/u.png', image(1))  # b's
    put(source / 'images/t.png', image(2))  # c's
    put(source / 'val.txt', 'c\n')
    said = text(read(source))
    assert f'{source}/images/u.png of tagged is the same image as {source}/images/b.png of' in said
    assert f'{source}/images/c.png of val is the same image as {source}/images/t.png of' in said


# In place of masks


def test_images_without_masks_are_divided_as_those_with_masks(tmp_path):
    source = tagged(tmp_path, 'a,cat\nb,dog\nc,dog,cat\nd\nu,cat\n')
    put(source / 'unlabelled/u.png', image(9))
    plan = read(source)
    assert plan.report[0] == 'images/ + unlabelled/ with labels.csv: 4 tagged images, 1 unlabelled'
    assert len(plan.splits['val']) == 1 and split_ids(plan)['unlabelled'] == ['u']
    assert plan.tags.keys() == {'train', 'val'} and 'weak' not in text(plan)
    assert plan.classes.names == ('background', 'cat', 'dog')
    assert shown(plan) == {'a': 'cat', 'b': 'dog', 'c': 'cat+dog', 'd': ''}
    assert '1 images of labels.csv are unlabelled: their rows are not used' in text(plan)
    assert 'no val split: 1 of the 4 tagged images are it' in text(plan)
    assert 'one class alone' not in text(plan) and '%' not in text(plan)
    assert len(read(source, val_share=0.5).splits['val']) == 2
    put(source / 'val.txt', 'b\n')
    put(source / 'test.txt', 'c\n')
    assert split_ids(read(source)) == {
        'train': ['a', 'd'], 'val': ['b'], 'test': ['c'], 'unlabelled': ['u'],
    }  # fmt: skip


def test_images_without_a_row_are_background_and_said(tmp_path):
    plan = read(tagged(tmp_path, 'a,cat\n', *'abcdefgh'))
    assert shown(plan) == {'a': 'cat'} | dict.fromkeys('bcdefgh', '')
    said = '7 images have no row in labels.csv and count as background alone: b.png, c.png, d.png'
    assert said in text(plan) and 'classes in one image alone: cat' in text(plan)


def test_every_folder_of_images_may_have_its_own_file(tmp_path):
    for split, names in (('train', 'ab'), ('val', 'ac')):
        photographs(tmp_path / split / 'images', *names)
        put(tmp_path / split / 'labels.csv', f'a,{split}\n{names[1]},both\n')
    plan = read(tmp_path)
    assert plan.report[0].startswith('images/ in train/, val/ with labels.csv: 4 tagged images')
    assert shown(plan) == {'b': 'both', 'c': 'both', 'train/a': 'train', 'val/a': 'val'}


def test_an_empty_folder_of_masks_is_as_none(tmp_path):
    source = tagged(tmp_path, 'a,cat\n')
    (source / 'masks').mkdir()
    assert read(source).report[0].startswith('images/ + masks/ with labels.csv: 4 tagged')
    put(source / 'masks/a_mask.png', ids(0))  # but a slip in its name is named as ever
    with pytest.raises(ValueError, match=r'no image has a mask, .*a_mask\.png: a mask without'):
        read(source)


# Rows


@pytest.mark.parametrize('rows', [
    'a.png,cat\nsub/b.png,dog,cat\nc,dog\n',
    '\ufeffimage,class\r\na,cat\r\nb,cat,dog\r\n\r\nc.jpg,dog\r\n',
    'Image;1;2\na ; cat;\nb.PNG;dog ; cat\nc.png;dog;;\n',
    '"a", "cat"\n"images/sub/b.png","dog","cat"\n./c.png,dog,dog\n',
    'a,CAT\nsub\\b,dog,Cat\nc,background,dog\nc.png,dog\n',
], ids=range(5))  # fmt: skip
def test_forms_of_rows(tmp_path, rows):
    source = tagged(tmp_path, rows, 'a', 'sub/b', 'c')
    put(source / 'classes.txt', NAMES)
    assert shown(read(source)) == {'a': 'cat', 'b': 'cat+dog', 'c': 'dog'}


def test_names_of_images_and_classes_may_have_what_separates_them(tmp_path):
    rows = '"a;1.png","cat, black"\n"b, 2",Äpfel\nimage,sky\n'
    source = tagged(tmp_path, rows, 'a;1', 'b, 2', 'image')
    assert shown(read(source)) == {'a;1': 'cat, black', 'b, 2': 'Äpfel', 'image': 'sky'}


def test_a_path_goes_before_a_name(tmp_path):
    source = tagged(tmp_path, 'a.png,cat\nsub/a,dog\n', 'a', 'sub/a')
    assert shown(read(source)) == {'val/a': 'cat', 'sub/a': 'dog'}


# Classes


def test_names_are_a_class_each_in_whatever_letters(tmp_path):
    plan = read(tagged(tmp_path, 'a,cat\nb,Cat,Dog\nc,cat,void\nd,BACKGROUND\n'))
    assert plan.classes.names == ('background', 'cat', 'Dog')
    assert shown(plan) == {'a': 'cat', 'b': 'cat+Dog', 'c': 'cat', 'd': ''}


def test_classes_are_picked_and_merged(tmp_path):
    source = tagged(tmp_path, 'a,cat\nb,dog\nc,cow\nd,ox,dog\n')
    plan = read(source, classes='background,cattle=cow+ox,cat,rest=void')
    assert plan.classes.names == ('background', 'cattle', 'cat')
    assert shown(plan) == {'a': 'cat', 'b': '', 'c': 'cattle', 'd': 'cattle'}
    plan = read(source, classes='none=background+dog,cat,cow')
    assert shown(plan) == {'a': 'cat', 'b': '', 'c': 'cow', 'd': ''}
    assert 'void, as --classes does not name them: ox' in text(plan)
    for picked, came in (('cat,background', 'another'), ('cat,rest=void', 'no such class')):
        with pytest.raises(ValueError, match=f"first class must be 'background'.*; came {came} "):
            read(source, classes=picked)
    source = mixed(tmp_path / 'mixed', 't,cat\nu,dog\n')
    assert shown(read(source, classes='background,pet=cat+dog')) == {'t': 'pet', 'u': 'pet'}
    assert shown(read(source, ignore=(1,))) == {'t': '', 'u': 'dog'}


# What is wrong ends in one line, before anything is written.

WRONG = {  # rows of a folder without masks -> what the one line says
    'unknown image': ('a,cat\nb1.png,dog\n', r"csv: line 2: there is no image 'b1\.png'; "
                      r"the nearest is 'b\.png'"),
    'headings': ('file,class\na,cat\n', r"line 1: .*'file'.* \(a line of headings begins with"),
    'several': ('x,cat\n', r"labels\.csv: line 1: 'x' may be images/m/x\.png or images/n/x\.png"),
    'no image': (',cat\na,cat\n', r"line 1: no image before 'cat'; expected lines of `image, cla"),
    'twice': ('a,cat\nb\na.png,dog\n', r"line 3: 'a\.png' is there twice, with dog and, in .*labels"
              r'\.csv: line 1, cat; expected one line, perhaps `a\.png, cat, dog`'),
    'empty': ('', r'labels\.csv has no rows; expected lines of `image, class, class, \.\.\.`'),
    'headings alone': ('image,class\n\n,,\n', r'labels\.csv has no rows'),
    'no UTF-8': ('a,K\xf6ter\n'.encode('latin-1'), r'labels\.csv is no text in UTF-8'),
    'UTF-16': ('a,cat\n'.encode('utf-16'), r'labels\.csv is no text in UTF-8'),
    'columns': ('image,cat,dog\na,0,1\n', r"line 2: '0' as a class; expected the names of the c"),
    'no class': ('a\nb\n', r"labels\.csv: no image has a class but 'background'; expected at le"),
    '256 classes': ('a,' + ','.join(f'c{i}' for i in range(255)), r'256 classes; .* most 255'),
    'long cell': (f'a,"{"c" * 140_000}"\n', r'labels\.csv: line 1: field larger than'),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_ends_in_words_and_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    rows, reason = WRONG[name]
    source = tagged(tmp_path / 'source', rows, 'a', 'b', 'm/x', 'n/x')
    said = run(monkeypatch, '--source', source, '--data_dir', tmp_path / 'data')
    with pytest.raises(ValueError, match=f'^error: .*{reason}'):
        raise ValueError(said)
    assert '\n' not in said and not (tmp_path / 'data').exists()


def test_too_few_images_and_no_labels_at_all(tmp_path):
    source = tagged(tmp_path, 'a,cat\n', 'a')
    with pytest.raises(ValueError, match='images to train on: got 1, expected at least 2, one of'):
        read(source)
    (source / 'labels.csv').unlink()
    with pytest.raises(ValueError, match=r'neither masks/ nor .* nor the file labels\.csv'):
        read(source)


def test_bad_rows_are_counted_and_may_be_left_out(tmp_path, monkeypatch, capsys):
    rows = 'a,cat\nb,kat\nq,cat\nx,cat\nc,dog\nd,cat\nd,dog\n'
    source = tagged(tmp_path, rows, *'abcde', 'm/x', 'n/x')
    put(source / 'classes.txt', NAMES)
    put(source / 'images/e.png', 'x')
    arguments = ('--source', source, '--dry_run', '--skip_bad')
    said = run(monkeypatch, *arguments, 4)
    assert said.startswith('error: ') and 'and 4 more' in said and '--skip_bad 5' in said
    listed = [line for line in capsys.readouterr().out.splitlines() if line[:6] == 'cannot']
    begins = ('line 3: ', 'line 4: ', "line 2: got 'kat', expected one of the 3 classes; the near",
              'line 7: ', 'e.png')  # fmt: skip
    assert len(listed) == 5 and all(b in line for b, line in zip(begins, listed, strict=True))
    assert "nearest is 'cat'" in listed[2]
    assert run(monkeypatch, *arguments, 5) == 0
    assert ': 2 tagged images, 0 unlabelled' in capsys.readouterr().out
    # No image is taken for one of background alone because its row cannot be used.
    assert shown(reading.read(source, Settings(skip_bad=5))[0]) == {'a': 'cat', 'c': 'dog'}


def test_bad_rows_beside_masks(tmp_path):
    source = mixed(tmp_path, 't,bird\nu,dog\na,bird\nw,cat\n')
    found = problems_of(source)
    assert ["line 4: there is no image 'w'" in found[0], "line 1: got 'bird'" in found[1]] == [
        True
    ] * 2
    assert len(found) == 2  # the row of an image with a mask is not looked at
    plan, _ = reading.read(source, Settings(skip_bad=2))
    assert split_ids(plan)['tagged'] == ['u'] and split_ids(plan)['unlabelled'] == ['v']


def test_help_has_the_file():
    assert 'labels.csv' in layouts.EXPECTED and layouts.EXPECTED in command._DETAILS


# Records


def test_prepared_tags_are_read_back(tmp_path, monkeypatch, capsys):
    source, data = mixed(tmp_path / 'source', 't,cat\nu.png,dog,cat\n'), tmp_path / 'data'
    arguments = ('--source', source, '--data_dir', data, '--name', 'pets')
    assert run(monkeypatch, *arguments, '--dry_run') == 0 and not data.exists()
    assert run(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('configs/')[1] for line in lines[-2:]] == [
        f'folder.py:pets,css_mix,data.dir={data} --workdir runs/pets',
        f'cosa.py:folder:pets,data.dir={data} --workdir runs/pets_cosa',
    ]
    source_of = {s: sources.load('folder/pets', s, str(data)) for s in ('train', 'tagged', 'weak')}
    assert source_of['train'].tags is None and len(source_of['weak']) == 4
    assert source_of['tagged'].ids == ('t', 'u') and source_of['tagged'].pixels.sum() == 0
    assert source_of['tagged'].classes.tolist() == [[True, True, False], [True, True, True]]
    assert source_of['weak'].classes[2:].tolist() == source_of['tagged'].classes.tolist()
    stored = cv2.imdecode(np.frombuffer(source_of['tagged'].records[0]['label'], np.uint8), -1)
    assert (stored == 255).all()

    assert run(monkeypatch, *arguments) == 0
    assert 'is prepared already, from the same files' in capsys.readouterr().out
    put(source / 'labels.csv', 't,cat\nu.png,cat\n')
    assert '--overwrite' in run(monkeypatch, *arguments)
    (source / 'labels.csv').unlink()
    assert '--overwrite' in run(monkeypatch, *arguments)


def test_a_dataset_of_tags_alone(tmp_path, monkeypatch, capsys):
    source, data = tagged(tmp_path / 'source', 'a,cat\nb,dog,Äpfel\nc,cat\n'), tmp_path / 'data'
    arguments = ('--source', source, '--data_dir', data, '--name', 'pets')
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert 'configs/folder.py' not in said and f'cosa.py:folder:pets,data.dir={data}' in said
    parts = [sources.load('folder/pets', split, str(data)) for split in ('train', 'val')]
    found = {i: row for part in parts for i, row in zip(part.ids, part.classes, strict=True)}
    assert parts[0].class_names == ('background', 'cat', 'dog', 'Äpfel')
    assert {i: row.astype(int).tolist() for i, row in sorted(found.items())} == {
        'a': [1, 1, 0, 0], 'b': [1, 0, 1, 1], 'c': [1, 1, 0, 0], 'd': [1, 0, 0, 0],
    }  # fmt: skip
    picture = cv2.imread(str(data / 'folder/pets/1.0.0/samples.png'))
    assert picture.shape[0] == 2 * 188 and (picture[:180, 260:480] < 128).any()  # rows, and names
    put(source / 'labels.csv', 'a,cat\nb,dog,Äpfel\nc,cat\nd\n')
    assert '--overwrite' in run(monkeypatch, *arguments)


def test_a_report_of_prepared_tags(tmp_path):
    data = folders.prepare(tmp_path, 'pets', 3, masks=False, train=4, val=2, unlabelled=1)
    said = records.report(Builder(config='pets', data_dir=data))
    assert (
        '\n  tag             images\n  background           4\n  class1               1\n' in said
    )
    assert 'one class alone' not in said
    folders.prepare(tmp_path, 'both', 3, train=2, tagged=2)
    said = records.report(Builder(config='both', data_dir=data))
    assert said.endswith('weak: 4 images, those of train and tagged')
    with pytest.raises(KeyError, match='b'):
        metadata = {'class_names': ['x'], 'splits': {}}
        items = [('b', b'', np.zeros((2, 2), np.uint8))]
        list(records.examples(metadata, 'train', items, {'a': [1]}))
