"""`ade20k`: classes 0 to 149 and void of files that have 1 to 150 and 0, and what is answered."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from css_jax.data import geometry, sources, splits
from data_prep import archives, records
from data_prep.ade20k import builder as ade20k
from data_prep.splits import lists
from tests import fakes, filled

ROOT = 'ADEChallengeData2016'
IMAGE = f'{ROOT}/images/training/ADE_train_00000002.jpg'
LABEL = f'{ROOT}/annotations/training/ADE_train_00000002.png'


def lay(folder, members, form='zip'):
    """Write the archive, or what it unpacks to, below a folder of its own or not."""
    folder.mkdir()
    if form == 'zip':
        return (folder / ade20k.ARCHIVE).write_bytes(fakes.zipped(members))
    for name, data in members.items():
        if not name.endswith('/'):
            path = folder / (name if form == 'folder' else name.removeprefix(f'{ROOT}/'))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture
def prepare(tmp_path):
    """A function that writes the files, with changes, and prepares `ade20k`: data_dir."""

    def prepared(changes=None, splits=fakes.ADE20K_SPLITS, form='zip', source='source'):
        members = {**fakes.ade20k_members(), **(changes or {})}
        members = {name: data for name, data in members.items() if data is not None}
        lay(tmp_path / 'source', members, form)
        place = {'data_dir': tmp_path / 'prepared', 'splits': splits}
        records.prepare(ade20k.Builder(source=str(tmp_path / source), **place))
        shutil.rmtree(tmp_path / 'source')  # the records are all that is needed
        return str(tmp_path / 'prepared')

    return prepared


@pytest.mark.parametrize('form', ['zip', 'folder', 'parts', 'archive'])
def test_every_form_gives_the_same_records(form, prepare):
    if form == 'archive':
        data_dir = prepare(source=f'source/{ade20k.ARCHIVE}')
    else:
        data_dir = prepare(form=form)
    for split, ids in fakes.ADE20K_IDS.items():
        source = sources.load('ade20k', split, data_dir)
        assert source.ids == ids
        for image_id, record, pixels in zip(ids, source.records, source.pixels, strict=True):
            values = fakes.ade20k_label(image_id).astype(int)
            label = np.where(values == 0, 255, values - 1)
            assert record['image'] == fakes.jpeg(image_id, values.shape)
            np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
            counts = np.bincount(label.ravel(), minlength=256)
            np.testing.assert_array_equal(pixels, counts[:150])
            assert counts[149] and counts[255] and not counts[150:255].any()
    noted = ade20k.Builder(data_dir=data_dir).info.metadata['archives']
    assert set(noted) == ({ade20k.ARCHIVE} if form in ('zip', 'archive') else set())
    assert all(each['published'] is False for each in noted.values())


def test_classes_are_the_benchmark_s():
    names, colours = sources.class_names('ade20k'), sources.palette('ade20k')
    assert len(names) == len(set(names)) == 150
    known = {0: 'wall', 2: 'sky', 12: 'person', 20: 'car', 89: 'television', 149: 'flag'}
    assert {index: names[index] for index in known} == known
    assert colours.shape == (150, 3)
    assert colours[[0, 2, 149]].tolist() == [[120, 120, 120], [6, 230, 230], [92, 0, 255]]
    assert len({tuple(colour) for colour in colours.tolist()}) == 149
    assert colours[names.index('road')].tolist() == colours[names.index('skyscraper')].tolist()


def test_a_list_of_unimatch_names_its_images(prepare, tmp_path):
    data_dir = prepare()
    path = tmp_path / 'labeled.txt'
    lines = [
        f'images/training/{each}.jpg annotations/training/{each}.png'
        for each in fakes.ADE20K_IDS['train'][::2]
    ]
    path.write_text('\n'.join(lines))  # without an end of the last line
    data = filled.data()
    data.dir = data_dir
    data.streams.labelled = filled.stream('ade20k', ids_file=str(path))
    data.streams.unlabelled = filled.stream('ade20k', reads='none', exclude='labelled')
    chosen = splits.subsets(data)
    assert chosen == {
        'labelled': ('ADE_train_00000001', 'ADE_train_00020210'),
        'unlabelled': ('ADE_train_00000002',),
    }
    assert all(lists.re.fullmatch(lists.IDS['ade20k'], each) for each in chosen['labelled'])
    assert 'list ' in splits.record(data, chosen)['streams']['labelled']['split']


def changed(value):
    label = fakes.ade20k_label('ADE_train_00000002')
    label[3, 4] = value
    return fakes.png(label)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({LABEL: changed(151)}, f'{LABEL}: label value 151; expected 1..150, or 0 for void'),
        ({LABEL: changed(255)}, f'{LABEL}: label value 255; expected 1..150, or 0 for void'),
        (
            {LABEL: fakes.png(fakes.ade20k_label('ADE_train_00000002')[1:])},
            f'{LABEL}: expected width x height 16x14',
        ),
        ({LABEL: b'x'}, f'{LABEL} is no readable image'),
        ({LABEL: b''}, f'{LABEL} is no readable image: it is empty'),
        ({IMAGE: fakes.jpeg('x', (14, 16))[:200]}, f'{IMAGE} is no readable image'),
        ({LABEL: fakes.png(fakes.picture('x', (14, 16)))}, 'expected one channel of class ids'),
        (
            {LABEL: None},
            f'there is no {LABEL.removeprefix(f"{ROOT}/")} in it, but ',
        ),
        ({IMAGE: None}, f'there is no {IMAGE.removeprefix(f"{ROOT}/")} in it, but '),
        ({IMAGE: None, LABEL: None}, 'split train: expected 3 images, found 2'),
        ({'../x': b''}, "refused: its member '../x' lies outside its folder"),
    ],
    ids=str,
)
def test_wrong_files_are_named_in_one_line(changes, words, prepare, tmp_path):
    with pytest.raises(ValueError) as error:
        prepare(changes)
    assert words in str(error.value) and '\n' not in str(error.value)
    assert str(tmp_path / 'source') in str(error.value)
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('ade20k', 'train', str(tmp_path / 'prepared'))
    assert not list(tmp_path.glob('prepared/ade20k/full/*'))


def test_a_damaged_archive_is_named(prepare, monkeypatch):
    cut = fakes.zipped(fakes.ade20k_members())[:-30]
    monkeypatch.setattr(fakes, 'zipped', lambda members: cut)
    with pytest.raises(ValueError, match=rf'{ade20k.ARCHIVE} is damaged or cut short'):
        prepare()


def test_published_counts_are_the_default(prepare):
    assert ade20k.SPLITS == {'train': 20_210, 'val': 2000}
    with pytest.raises(ValueError, match='split train: expected 20210 images, found 3'):
        prepare(splits=None)


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(archives, 'download', lambda *given: fetched.append(given))
    ade20k.download(tmp_path / 'new')
    assert fetched == [(ade20k.URL, tmp_path / 'new' / ade20k.ARCHIVE, ade20k.SHA1)]
    assert ade20k.URL.endswith('/ADEChallengeData2016.zip') and len(ade20k.SHA1) == 40
    lay(tmp_path / 'source', fakes.ade20k_members(), 'parts')
    ade20k.download(tmp_path / 'source')
    (tmp_path / 'new' / ade20k.ARCHIVE).touch()
    ade20k.download(tmp_path / 'new')
    assert len(fetched) == 1


def test_another_archive_than_the_published_one_is_not_kept(tmp_path, monkeypatch):
    other = fakes.zipped(fakes.ade20k_members())
    monkeypatch.setattr(archives, '_fetch', lambda url, part: part.write_bytes(other))
    with pytest.raises(ValueError, match=rf'expected SHA-1 {ade20k.SHA1}, came .*; removed'):
        ade20k.download(tmp_path / 'new')
    assert not list((tmp_path / 'new').iterdir())


def test_command_says_what_is_missing(tmp_path):
    command = [sys.executable, '-m', 'data_prep.ade20k', '--source', str(tmp_path)]
    command += ['--data_dir', str(tmp_path / 'prepared')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'error: --source {tmp_path}: there is no {tmp_path / ade20k.ARCHIVE}' in done.stderr
    assert ade20k.URL in done.stderr and '--download' in done.stderr
    assert not (tmp_path / 'prepared').exists()
