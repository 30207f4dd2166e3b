import io
import shutil
import subprocess
import sys

import numpy as np
import pytest

from css_jax.data import geometry, sources
from data_prep import archives, records
from data_prep.voc import builder as voc
from tests import fakes

FOLDER = 'VOCdevkit/VOC2012'
SBD_FOLDER = 'benchmark_RELEASE/dataset'


@pytest.fixture
def prepare(tmp_path):
    """A function that writes the given archives and prepares `voc` from them: data_dir."""

    def prepared(images=None, sbd=None, pngs=None, splits=fakes.VOC_SPLITS):
        source = tmp_path / 'source'
        source.mkdir()
        (source / voc.VOC).write_bytes(fakes.tar(images or fakes.voc_members()))
        if pngs is not None:
            (source / voc.SBD_AS_PNG).write_bytes(fakes.zipped(pngs))
        else:
            (source / voc.SBD).write_bytes(fakes.tgz(sbd or fakes.sbd_members()))
        place = {'data_dir': tmp_path / 'prepared', 'splits': splits}
        records.prepare(voc.Builder(source=str(source), **place))
        shutil.rmtree(source)  # the records are all that is needed
        return str(tmp_path / 'prepared')

    return prepared


@pytest.mark.parametrize('form', ['sbd', 'pngs'])
def test_either_form_of_the_additional_labels(form, prepare):
    members = fakes.sbd_members() if form == 'sbd' else fakes.png_members()
    data_dir = prepare(**{form: members})
    expected = {**fakes.VOC_IDS, 'trainaug': (*fakes.VOC_IDS['train'], *fakes.VOC_IDS['extra'])}
    images = fakes.voc_members()
    for split, ids in expected.items():
        source = sources.load('voc', split, data_dir)
        assert source.ids == ids
        assert len(source) == len(source.records) == len(ids)
        for index, image_id in enumerate(ids):
            record = source.records[index]
            author = 'sbd' if image_id in fakes.VOC_IDS['extra'] else 'voc'
            label = fakes.voc_label(image_id, author)
            assert record['image'] == images[f'{FOLDER}/JPEGImages/{image_id}.jpg']
            np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
            assert tuple(source.sizes[index]) == label.shape
            counts = np.bincount(label.ravel(), minlength=256)
            np.testing.assert_array_equal(source.pixels[index], counts[:21])
            assert (counts[255] > 0) == (author == 'voc')  # void survives
    assert source.class_names[0] == 'background'
    assert source.class_names[20] == 'tvmonitor'
    assert len(source.class_names) == 21


def test_report_and_records_tell_the_archives(prepare):
    builder = voc.Builder(data_dir=prepare())
    noted = builder.info.metadata['archives']
    assert set(noted) == {voc.VOC, voc.SBD}
    text = records.report(builder)
    for name, about in noted.items():
        line = f'from {name}: {about["bytes"]:,} bytes, SHA-256 {about["sha256"]}'
        assert f'{line}, NOT the published file' in text
    assert 'trainaug: 5 images, those of train and extra' in text


def test_a_split_that_does_not_exist_is_named(prepare):
    with pytest.raises(ValueError, match=r"no split 'trainag'; it has trainaug, train, "):
        sources.load('voc', 'trainag', prepare())


def test_derived_lists(tmp_path):
    images, sbd = tmp_path / voc.VOC, tmp_path / voc.SBD
    images.write_bytes(fakes.tar(fakes.voc_members()))
    sbd.write_bytes(fakes.tgz(fakes.sbd_members()))
    labels = voc.labels_by_split(images, archives.members(images), sbd)
    assert {split: tuple(found) for split, found in labels.items()} == fakes.VOC_IDS
    # A label that SBD's lists do not name is none of its train and val.
    members = fakes.sbd_members()
    members[f'{SBD_FOLDER}/cls/2011_000009.mat'] = members[f'{SBD_FOLDER}/cls/2008_000002.mat']
    sbd.write_bytes(fakes.tgz(members))
    assert '2011_000009' not in voc.sbd_labels(sbd, ())
    assert '2007_000033' in voc.sbd_labels(sbd, ())


def wrong_value(label):
    label = label.copy()
    label[3, 4] = 42
    return label


@pytest.mark.parametrize(
    ('kind', 'member', 'encode', 'author'),
    [
        ('images', f'{FOLDER}/SegmentationClass/2007_000033.png', fakes.png, 'voc'),
        ('sbd', f'{SBD_FOLDER}/cls/2008_000007.mat', fakes.mat, 'sbd'),
        ('pngs', 'SegmentationClassAug/2008_000007.png', fakes.png, 'sbd'),
    ],
)
def test_wrong_labels_are_named(kind, member, encode, author, prepare, tmp_path):
    make = {'images': fakes.voc_members, 'sbd': fakes.sbd_members, 'pngs': fakes.png_members}
    image_id = member[-15:-4]
    label = fakes.voc_label(image_id, author)
    faults = {
        'label value 42; expected 0..20, or 255 for void': encode(wrong_value(label)),
        'expected width x height': encode(label[:, 1:]),
        'readable': b'no label',
    }
    for words, data in faults.items():
        with pytest.raises(ValueError) as error:
            prepare(**{kind: {**make[kind](), member: data}})
        assert member in str(error.value)
        assert words in str(error.value)
        with pytest.raises(FileNotFoundError, match='not prepared'):
            sources.load('voc', 'train', str(tmp_path / 'prepared'))
        shutil.rmtree(tmp_path / 'source')


def test_colour_labels_and_broken_images_are_named(prepare, tmp_path):
    members = fakes.voc_members()
    colours = fakes.png(fakes.picture('x', fakes.voc_label('2007_000032').shape))
    image = f'{FOLDER}/JPEGImages/2009_000005.jpg'
    for member, data, words in (
        (f'{FOLDER}/SegmentationClass/2007_000032.png', colours, 'one channel of class ids'),
        (image, members[image][:-30], 'is no readable image: image file is truncated'),
    ):
        with pytest.raises(ValueError, match=f'{member}.*{words}'):
            prepare(images={**members, member: data})
        shutil.rmtree(tmp_path / 'source')


@pytest.mark.parametrize(
    ('kind', 'member'),
    [
        ('images', f'{FOLDER}/JPEGImages/2008_000002.jpg'),
        ('images', f'{FOLDER}/SegmentationClass/2007_000039.png'),
        ('images', f'{FOLDER}/ImageSets/Segmentation/val.txt'),
        ('sbd', f'{SBD_FOLDER}/cls/2009_000005.mat'),
        ('sbd', f'{SBD_FOLDER}/val.txt'),
    ],
)
def test_missing_members_are_named(kind, member, prepare):
    members = {'images': fakes.voc_members, 'sbd': fakes.sbd_members}[kind]()
    del members[member]
    with pytest.raises(ValueError, match=f'there is no {member} in it'):
        prepare(**{kind: members})


@pytest.mark.parametrize(
    ('kind', 'member'),
    [('images', f'{FOLDER}/ImageSets/Segmentation/train.txt'), ('sbd', f'{SBD_FOLDER}/val.txt')],
)
def test_lists_may_have_a_mark_and_must_be_text(kind, member, prepare, tmp_path):
    make = {'images': fakes.voc_members, 'sbd': fakes.sbd_members}
    members = make[kind]()
    with pytest.raises(ValueError, match=f'{member} is no text'):
        prepare(**{kind: {**members, member: members[member].decode().encode('utf-16')}})
    shutil.rmtree(tmp_path / 'source')
    data_dir = prepare(**{kind: {**members, member: b'\xef\xbb\xbf' + members[member]}})
    for split in ('train', 'extra'):
        assert sources.load('voc', split, data_dir).ids == fakes.VOC_IDS[split]


@pytest.mark.parametrize('split', ['train', 'trainaug', 'val'])
def test_wrong_counts_are_named(split, prepare):
    splits = {**fakes.VOC_SPLITS, split: 77}
    with pytest.raises(ValueError, match=f'split {split}: expected 77 images, found [25] in'):
        prepare(splits=splits)


def test_published_counts_are_the_default(prepare):
    assert voc.SPLITS == {'train': 1464, 'trainaug': 10_582, 'val': 1449}
    with pytest.raises(ValueError, match='split train: expected 1464 images, found 2'):
        prepare(splits=None)


@pytest.mark.parametrize('kind', ['images', 'sbd', 'pngs'])
def test_members_outside_their_folder_are_refused(kind, prepare, tmp_path):
    make = {'images': fakes.voc_members, 'sbd': fakes.sbd_members, 'pngs': fakes.png_members}
    with pytest.raises(ValueError, match=r"refused: its member '\.\./\.\./x' lies outside"):
        prepare(**{kind: {**make[kind](), '../../x': b''}})
    assert not list(tmp_path.glob('prepared/**/*.*record*'))


def test_structures_that_are_no_label_of_sbd_are_named():
    out = io.BytesIO()
    fakes.scipy.io.savemat(out, {'GTcls': {'Segmentation': np.zeros((4, 5))}})
    with pytest.raises(ValueError, match=r'x\.mat: expected .*uint8 \[H, W\], came float64'):
        voc.decode_mat(out.getvalue(), 'x.mat')
    with pytest.raises(ValueError, match=r'x\.mat is no readable label of SBD'):
        voc.decode_mat(fakes.mat(fakes.voc_label('2008_000002'))[:400], 'x.mat')


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(archives, 'download', lambda url, file, sha256: fetched.append(file.name))
    voc.download(tmp_path / 'new')
    assert fetched == [voc.VOC, voc.SBD]
    (tmp_path / voc.SBD_AS_PNG).touch()
    (tmp_path / voc.VOC).touch()
    voc.download(tmp_path)
    assert fetched == [voc.VOC, voc.SBD]


def test_command_says_what_is_missing(tmp_path):
    command = [sys.executable, '-m', 'data_prep.voc', '--source', str(tmp_path)]
    command += ['--data_dir', str(tmp_path / 'prepared')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'error: --source {tmp_path}: there is no {tmp_path / voc.VOC}' in done.stderr
    assert voc.PUBLISHED[voc.SBD][0] in done.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / voc.VOC).touch()
    with pytest.raises(FileNotFoundError, match=f'no .*{voc.SBD}, nor .*{voc.SBD_AS_PNG}'):
        voc.find_archives(tmp_path)


def test_unprepared_says_how_to_prepare(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'data_prep\.voc --source FOLDER --config full'):
        sources.load('voc', 'trainaug', str(tmp_path))


def test_an_interrupted_preparation_leaves_nothing_that_looks_finished(
    prepare, tmp_path, monkeypatch
):
    read = voc.read_item

    def interrupted(voc_file, images, image_id, *label):
        if image_id == '2008_000007':
            raise KeyboardInterrupt
        return read(voc_file, images, image_id, *label)

    monkeypatch.setattr(voc, 'read_item', interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('voc', 'train', str(tmp_path / 'prepared'))
    shutil.rmtree(tmp_path / 'source')
    monkeypatch.undo()
    prepared = prepare()
    union = sources.load('voc', 'trainaug', prepared)
    assert len(union) == 5 and union.parts == (('train', 2), ('extra', 3))
    assert sources.load('voc', 'train', prepared).parts == ()
