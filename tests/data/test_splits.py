"""Choosing images: draws, lists, and what is said and stored of the choice."""

import dataclasses
import json
import logging
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from css_jax import models, train
from css_jax.data import sources, splits
from css_jax.data.sources import Source
from css_jax.run import checkpoint
from data_prep.splits import lists
from tests import filled, tiny
from tests.conftest import ROOT
from tests.small import small

IDS = tuple(f'train_{i:05d}' for i in range(24))
SHARED = ROOT.parent / 'shared' / 'splits'
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f'{SHARED} is not there: the published lists, see data_prep.splits'
)


def fake_source(split, ids, dataset='voc/full', pixels=None):
    """A source of which only the ids (and the pixels of two classes) are there."""
    sizes = np.full((len(ids), 2), 8)
    pixels = np.ones((len(ids), 2), int) if pixels is None else np.array(pixels)
    return Source(dataset, split, [], tuple(ids), sizes, pixels, ('background', 'sofa'))


def choose(loaded, **streams):
    """Subsets of streams whose sources are `loaded`; name -> overrides of a stream's table."""
    tables = {name: filled.stream('voc', **table) for name, table in streams.items()}
    return {name: splits.subset(name, tables, loaded) for name in tables}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


# Draws.


def test_subset_is_deterministic_and_grows_with_count(data):
    chosen = splits.subsets(data)
    assert chosen == splits.subsets(data)
    data.streams.labelled.update(min_per_class=0, subset_seed=1)
    small = splits.subsets(data)['labelled']
    assert small != chosen['labelled']
    data.streams.labelled.count = 12
    assert set(small) < set(splits.subsets(data)['labelled'])


def test_subset_shows_every_class_often_enough(data):
    data.streams.labelled.update(count=6, min_per_class=3)
    source = sources.load('shapes', 'train', data.dir)
    for data.streams.labelled.subset_seed in range(5):
        chosen = splits.subsets(data)['labelled']
        rows = [source.ids.index(image_id) for image_id in chosen]
        assert (source.pixels[rows] > 0).sum(0).min() >= 3
        assert rows == sorted(rows)


def test_impossible_draw_is_named(data, monkeypatch):
    monkeypatch.setattr(splits, '_MAX_DRAWS', 3)
    data.streams.labelled.update(count=3, min_per_class=3)
    with pytest.raises(ValueError, match=r'min_per_class = 3|min_per_class: got 3'):
        splits.subsets(data)


def test_streams_that_exclude_share_no_image(data):
    chosen = splits.subsets(data)
    assert len(chosen['labelled']) == 8
    assert not set(chosen['labelled']) & set(chosen['unlabelled'])
    assert len(set(chosen['labelled']) | set(chosen['unlabelled'])) == 24


def test_no_images_left_is_named(data):
    data.streams.labelled.update(count=0, min_per_class=0)
    with pytest.raises(ValueError, match=r'data.streams.unlabelled: got no images'):
        splits.subsets(data)


def test_classic_protocol_excludes_across_splits():
    """Labelled from `train`, unlabelled the rest of the larger `trainaug`: ids are the same."""
    ids = [f'2007_{i:06d}' for i in range(50)]
    loaded = {'few': fake_source('train', ids[::5]), 'many': fake_source('trainaug', ids)}
    chosen = choose(loaded, few={'split': 'train', 'count': 4}, many={'exclude': 'few'})
    assert len(chosen['few']) == 4 and set(chosen['few']) < set(ids[::5])
    assert set(chosen['many']) == set(ids) - set(chosen['few'])


# Lists.


@pytest.mark.parametrize(
    'text',
    [
        'train_00003\ntrain_00001\n',
        'train_00003\r\ntrain_00001',
        '\n\ntrain_00003\n   \ntrain_00001\n\n',
        '\ufefftrain_00003\ntrain_00001\n',
        'images/train_00003.png labels/train_00003.png\nimages/train_00001.png\tx\n',
    ],
)
def test_ids_file_names_the_images(data, tmp_path, text):
    path = write(tmp_path / 'ids.txt', text)
    data.streams.labelled.update(count=0, min_per_class=0, ids_file=path)
    chosen = splits.subsets(data)
    assert chosen['labelled'] == ('train_00001', 'train_00003')
    assert len(chosen['unlabelled']) == 22


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            b'train_00001\n\nimages/val_00001.png\ntrain_99999\n',
            r"ids_file: got 'val_00001' in line 3 of .*ids\.txt and 1 more .* shapes/64:train; "
            r"the nearest is 'train_000\d1'",
        ),
        (b'a\ntrain_00001\nb\nimages/train_00001.png\n', "'train_00001' in line 2 and .* line 4"),
        (b'\n  \n', r'ids_file: .*ids\.txt: got no images'),
        (b'\x89PNG\r\n\xff', r'ids_file: .*ids\.txt is no text'),
    ],
)
def test_wrong_lists_are_named(data, tmp_path, content, message):
    path = tmp_path / 'ids.txt'
    path.write_bytes(content)
    data.streams.labelled.update(count=0, min_per_class=0, ids_file=str(path))
    with pytest.raises(ValueError, match=message):
        splits.subsets(data)


def test_a_missing_list_says_how_to_get_it(data):
    data.streams.labelled.update(count=0, min_per_class=0, ids_file='splits/pascal/29/labeled.txt')
    with pytest.raises(
        ValueError, match=r'29/labeled\.txt, expected .*python -m data_prep\.splits'
    ):
        splits.subsets(data)


@needs_shared
@pytest.mark.parametrize('folder', lists.COUNTS)
def test_published_lists_are_what_their_names_say(folder):
    """Counted without the code under test; then every list resolves in a source of that size."""
    text = {path: path.read_text().split() for path in sorted((SHARED / folder).rglob('*.txt'))}
    assert len(text) == 2 * len(lists.COUNTS[folder]) + 1
    val = set(text.pop(SHARED / folder / 'val.txt'))
    assert len(val) == {'pascal': 1449, 'cityscapes': 500}[folder]
    total = {'pascal': 10582, 'cityscapes': 2975}[folder]
    whole = set().union(*text.values())
    assert len(whole) == total and not whole & val
    ids = sorted(line.split('/')[-1].removesuffix('_leftImg8bit.png') for line in whole)
    assert len(set(ids)) == total
    source = fake_source('train', ids)
    for path in text:
        if path.stem == 'unlabeled':
            continue
        count, other = int(path.parent.name), path.with_name('unlabeled.txt')
        assert len(text[path]) == len(set(text[path])) == count
        assert set(text[path]) | set(text[other]) == whole
        assert len(text[other]) == total - count
        tables = {'few': {'ids_file': str(path)}, 'rest': {'ids_file': str(other)}}
        tables['other'] = {'exclude': 'few'}
        chosen = choose(dict.fromkeys(tables, source), **tables)
        assert len(chosen['few']) == count
        assert chosen['rest'] == chosen['other'] and not set(chosen['rest']) & set(chosen['few'])


# What is said and stored.


def test_a_run_says_and_keeps_its_split_and_refuses_another(
    data_dir, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(models, 'build', small)
    caplog.set_level(logging.INFO, 'css_jax')
    path = pathlib.Path(write(tmp_path / '4' / 'labeled.txt', '\n'.join(IDS[:4])))
    config = tiny.get_config('supervised')
    config.data.dir = data_dir
    config.steps = 1
    config.data.streams.labelled.update(count=0, ids_file=str(path))
    train.train(config, tmp_path / 'run')
    described = 'shapes/64:train, list 4/labeled.txt, 4 of 24 images'
    assert f'stream labelled: {described}' in caplog.text
    checkpoints = checkpoint.Checkpoints(tmp_path / 'run', read_only=True)
    meta = checkpoints.meta(1)
    checkpoints.close()
    assert meta['streams'] == {'labelled': {'split': described, 'images': 4}}
    assert meta['split_hash'] == splits.fingerprint({'labelled': IDS[:4]})
    assert f'split hash {meta["split_hash"]}' in caplog.text

    path.write_text('\n'.join(IDS[1:5]))
    other = splits.fingerprint({'labelled': IDS[1:5]})
    with pytest.raises(
        ValueError, match=f'other images: split hash {meta["split_hash"]} there, {other} now'
    ):
        train.train(config, tmp_path / 'run')


def test_fingerprint_follows_the_ids_only():
    ids = {'labelled': ('a', 'b'), 'unlabelled': ('c',)}
    print_ = splits.fingerprint(ids)
    assert print_ == splits.fingerprint(dict(reversed(ids.items())))
    assert print_ != splits.fingerprint({'labelled': ('a',), 'unlabelled': ('b', 'c')})
    assert len(print_) == 12 and int(print_, 16) >= 0


def test_record_names_the_split(data, tmp_path):
    record = splits.record(data, splits.subsets(data))
    assert record['streams'] == {
        'labelled': {
            'split': 'shapes/64:train, 8 of 24 images, subset_seed 0, min_per_class 2',
            'images': 8,
        },
        'unlabelled': {
            'split': 'shapes/64:train, 16 of 24 images, without labelled',
            'images': 16,
        },
    }
    assert record == json.loads(json.dumps(record))
    path = write(tmp_path / '2' / 'labeled.txt', 'train_00001\ntrain_00003\n')
    data.streams.labelled.update(count=0, min_per_class=0, ids_file=path)
    del data.streams['unlabelled']
    streams = splits.record(data, splits.subsets(data))['streams']
    expected = 'shapes/64:train, list 2/labeled.txt, 2 of 24 images'
    assert streams == {'labelled': {'split': expected, 'images': 2}}


def test_a_list_of_a_split_that_has_parts_says_how_many_images_are_of_each(tmp_path, monkeypatch):
    """Lists of one length differ in it: some of VOC's take the finely annotated images first."""
    ids = [f'2007_{i:06d}' for i in range(20)]
    parts = (('train', 4), ('extra', 16))
    source = dataclasses.replace(fake_source('trainaug', ids), parts=parts)
    monkeypatch.setattr(splits, 'load', lambda data: dict.fromkeys(data.streams, source))
    said = {}
    for folder, chosen in (('662', ids[:6]), ('1_16', ids[2:14:2])):
        path = write(tmp_path / folder / 'labeled.txt', '\n'.join(chosen))
        streams = {
            'labelled': filled.stream('voc', split='trainaug', ids_file=path),
            'unlabelled': filled.stream('voc', split='trainaug'),
        }
        data = ConfigDict({'streams': streams})
        said[folder] = splits.record(data, {'labelled': tuple(chosen), 'unlabelled': tuple(ids)})
    for folder, shown in (('662', '4 of train, 2 of extra'), ('1_16', '1 of train, 5 of extra')):
        assert said[folder]['streams'] == {
            'labelled': {
                'split': f'voc/full:trainaug, list {folder}/labeled.txt, 6 of 20 images ({shown})',
                'images': 6,
            },
            'unlabelled': {'split': 'voc/full:trainaug, all 20 images', 'images': 20},
        }


def test_lists_of_two_layouts_of_one_length_are_told_apart(tmp_path, monkeypatch):
    """U2PL's and UniMatch's 186 images of Cityscapes are others."""
    source = fake_source('train', [f'ulm_{i:06d}_000019' for i in range(20)])
    monkeypatch.setattr(splits, 'load', lambda data: dict.fromkeys(data.streams, source))
    records = {}
    for folder, chosen in (('186', source.ids[:6]), ('1_16', source.ids[6:12])):
        path = write(tmp_path / folder / 'labeled.txt', '\n'.join(chosen))
        stream = filled.stream('cityscapes', ids_file=path)
        data = ConfigDict({'streams': {'labelled': stream}})
        records[folder] = splits.record(data, {'labelled': chosen})
        shown = f'list {folder}/labeled.txt, 6 of 20 images'
        assert shown in records[folder]['streams']['labelled']['split']
    difference = splits.changed(records['186'], records['1_16'])
    assert 'list 186/labeled.txt' in difference and 'list 1_16/labeled.txt' in difference


def test_coverage_counts_images_not_pixels():
    source = fake_source('train', 'abc', pixels=[[9, 0], [5, 4], [9, 0]])
    assert splits.coverage(source, ('a', 'c')) == {'background': 2, 'sofa': 0}
    assert splits.coverage(source, ('b',)) == {'background': 1, 'sofa': 1}


def test_report_names_rare_classes_and_shared_images(data, monkeypatch):
    monkeypatch.setattr(splits, '_RARE', 9)
    data.streams.unlabelled.exclude = ''
    ids = splits.subsets(data)
    lines = splits.report(data, ids)
    assert [line.split(':')[0] for line in lines] == [
        'stream labelled',
        '  images that show each class',
        '  rare, in fewer than 9 images',
        'stream unlabelled',
        '  8 of its images are in stream labelled too',
    ]
    source = sources.load('shapes', 'train', data.dir)
    rows = [source.ids.index(image_id) for image_id in ids['labelled']]
    stars = (source.pixels[rows, source.class_names.index('star')] > 0).sum()
    assert f'star {stars}' in lines[1] and f'star {stars}' in lines[2]
    assert lines[3] == 'stream unlabelled: shapes/64:train, all 24 images'
    monkeypatch.setattr(splits, '_RARE', 0)
    assert not any('rare' in line for line in splits.report(data, ids))


def test_an_edited_list_is_noticed_and_a_missing_one_said(data, tmp_path):
    path = pathlib.Path(write(tmp_path / '2' / 'labeled.txt', 'train_00001\ntrain_00003\n'))
    data.streams.labelled.update(count=0, min_per_class=0, ids_file=str(path))
    saved = splits.record(data, splits.subsets(data))
    assert splits.changed_since(saved, data) == ''
    path.write_text('train_00003\n\ntrain_00001')  # the same images
    assert splits.changed_since(saved, data) == ''

    path.write_text('train_00001\ntrain_00002\n')  # another one, the same count
    now = splits.record(data, splits.subsets(data))
    hashes = f'split hash {saved["split_hash"]} there, {now["split_hash"]} now'
    assert splits.changed(saved, now) == hashes
    assert splits.changed_since(saved, data).endswith(f'no longer those trained on: {hashes}')

    path.write_text('train_00001\n')
    said = splits.changed_since(saved, data)
    assert '; labelled: shapes/64:train, list 2/labeled.txt, 2 of 24 images there, ' in said
    assert '1 of 24 images now; unlabelled: ' in said and '23 of 24' in said
    older = {'split_hash': saved['split_hash']}  # a checkpoint that has the hash alone
    assert 'labelled: None there' in splits.changed(older, now)
    assert splits.changed_since({'split_hash': None}, data) == ''  # weights from elsewhere

    path.unlink()
    assert 'could not be read again: data.streams.labelled.ids_file: got' in splits.changed_since(
        saved, data
    )
    data.streams.labelled.update(dataset='camvid', ids_file='')
    data.streams.unlabelled.exclude = ''
    assert "dataset 'camvid' is not prepared" in splits.changed_since(saved, data)
