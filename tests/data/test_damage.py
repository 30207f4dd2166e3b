"""Prepared records that are damaged: one line, with dataset, file and what to do."""

import dataclasses
import shutil

import numpy as np
import pytest

from css_jax.data import evaluation, reading, sources
from data_prep import records
from data_prep.shapes import builder as shapes
from tests import folders

SHARD = 'shapes-train.array_record-00000-of-00001'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    records.prepare(shapes.Builder(data_dir=folder, splits={'train': 40, 'val': 2}))
    return folder


@pytest.fixture
def place(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'data')
    return tmp_path / 'data/shapes/64/1.0.0'


def load(place, split='train'):
    return sources.load('shapes/64', split, str(place.parents[2]))


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zeroed(file):
    data = file.read_bytes()
    middle = len(data) // 3
    file.write_bytes(data[:middle] + bytes(2000) + data[middle + 2000 :])


def gone(file):
    file.unlink()


def emptied(file):
    file.write_bytes(b'')


@pytest.mark.parametrize('name', [SHARD, 'metadata.json', 'dataset_info.json'])
@pytest.mark.parametrize('change', [gone, emptied, half])
def test_files_that_are_gone_or_cut_are_named_when_a_split_is_opened(place, name, change):
    change(place / name)
    with pytest.raises(ValueError, match=r"^dataset 'shapes/64'.*: .* are damaged") as caught:
        load(place)
    assert '\n' not in str(caught.value) and f'remove {place} and try again' in str(caught.value)


def test_a_damaged_record_is_named_when_it_is_read(place):
    zeroed(place / SHARD)
    source = load(place)
    with pytest.raises(ValueError, match=r"^shapes/64:train, image 'train_000\d\d': ") as caught:
        for index in range(len(source)):
            reading.read(source, index)
    assert '\n' not in str(caught.value) and f'array_record) are damaged: remove {place}' in str(
        caught.value
    )
    # Neither do threads that read ahead make anything else of it.
    images = evaluation.groups(source, 'whole', pad_to=(0, 0), window=(0, 0))
    with pytest.raises(ValueError, match=r"^shapes/64:train, image 'train_000\d\d': "):
        list(evaluation.eval_batches(source, images, batch_size=4))
    assert len(load(place, 'val')) == 2


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': b'no image'}, 'its image cannot be decoded'),
        ({'label': b''}, 'its label cannot be decoded'),
        ({'label': records.encode_png(np.zeros((3, 4), np.uint8))}, r'label \(3, 4\)'),
        (
            {'label': records.encode_png(np.full((64, 64), 7, np.uint8))},
            r'label value 7, expected a class, 0 to 6, or 255: void',
        ),
    ],
)
def test_what_is_in_a_record_is_checked(whole, change, message):
    source = load(whole / 'shapes/64/1.0.0', 'val')
    first, second = source.records[0], source.records[1]
    source = dataclasses.replace(source, records=[first, {**second, **change}])
    assert reading.read(source, 0)['label'].shape == (64, 64)
    with pytest.raises(ValueError, match=rf"^shapes/64:val, image 'val_00001': .*{message}"):
        reading.read(source, 1)


@pytest.mark.parametrize('text', ['{}', None])
def test_a_dataset_of_the_user_whose_class_names_are_gone_is_damaged(tmp_path, text):
    data_dir = folders.prepare(tmp_path, 'own', train=2)
    (file,) = tmp_path.rglob('metadata.json')
    file.write_text(text) if text else file.unlink()
    for read in (sources.class_names, sources.palette, sources.preparation):
        with pytest.raises(ValueError, match=r"^dataset 'folder/.*no class names; .* are damaged"):
            read('folder', data_dir)
