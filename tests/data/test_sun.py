import shutil
import subprocess
import sys

import numpy as np
import pytest

from css_jax.data import geometry, sources
from data_prep import images, records
from data_prep.splits import lists
from data_prep.sun import builder as sun
from tests import fakes

SPLITS = {'train': 3, 'test': 4, 'val': 2}
NUMBERS = {'train': range(1, 4), 'test': range(1, 5)}
VAL = ('test/img-000002', 'test/img-000004')
REST = ('test/img-000001', 'test/img-000003')
SIZES = ((53, 73), (44, 59), (42, 56))  # a tenth of the published ones
LABEL = 'label37/train/00000002.png'
IMAGE = 'image/train/img-000002.jpg'


def size_of(split, number):
    return SIZES[(len(split) + number) % 3]


def values(split, number):
    """A label as in the files: 0 (unlabelled) to 37 (bag), and 255."""
    rng = np.random.default_rng([*split.encode(), number])
    return rng.permuted(np.resize([*range(38), 255], size_of(split, number)).astype(np.uint8))


def truth(image_id):
    """Classes 0 to 36 and void, by another way than the builder's."""
    split, name = image_id.split('/')
    label = values(split, int(name.removeprefix('img-'))).astype(int)
    return np.where((label == 0) | (label == 255), 255, label - 1)


def photograph(image_id):
    split, name = image_id.split('/')
    return fakes.jpeg(image_id, size_of(split, int(name.removeprefix('img-'))))


def reorganised(given=('train37.txt', 'test37.txt', 'split/val37.txt'), root=''):
    """Gives the members of sun_rgbd.tgz, and lists as they stand beside it in the repository."""
    files = {}
    for split, numbers in NUMBERS.items():
        lines = []
        for number in reversed(numbers):
            image, label = f'image/{split}/img-{number:06d}.jpg', f'{number:08d}.png'
            files[image] = photograph(f'{split}/img-{number:06d}')
            files[f'depth/{split}/{label}'] = b'not read'
            files[f'label13/{split}/img13labels-{number:06d}.png'] = b'not read'
            files[f'label37/{split}/{label}'] = fakes.png(values(split, number))
            lines.append(f'{image} depth/{split}/{label} {label}\n')  # the label has no folder
        files[f'{split}37.txt'] = ''.join(sorted(lines)).encode()
    lines = [f'{image_id}.jpg depth/x.png label37/test/{image_id[-6:]:>08}.png' for image_id in VAL]
    files['split/val37.txt'] = '\n'.join(f'image/{line}' for line in lines).encode()
    return {
        f'{root}{name}': data
        for name, data in files.items()
        if not name.endswith('.txt') or name in given
    }


def first_release():
    """Gives the folders of the first release: labels are numbered through, test first."""
    files = {}
    for split, name, offset in (
        ('train', 'SUNRGBD-train_images', len(NUMBERS['test'])),
        ('test', 'SUNRGBD-test_images', 0),
    ):
        for number in NUMBERS[split]:
            files[f'{name}/img-{number:06d}.jpg'] = photograph(f'{split}/img-{number:06d}')
            label = f'sunrgbd_train_test_labels/img-{number + offset:06d}.png'
            files[label] = fakes.png(values(split, number))
    return files


def lay(folder, files):
    for name, data in files.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


@pytest.fixture
def prepare(tmp_path):
    """A function that prepares `sun` from a folder of these files: data_dir."""

    def prepared(files, splits=SPLITS, config='full', source='source'):
        lay(tmp_path / 'source', files)
        place = {'data_dir': tmp_path / 'prepared', 'splits': splits, 'config': config}
        records.prepare(sun.Builder(source=str(tmp_path / source), **place))
        shutil.rmtree(tmp_path / 'source')  # the records are all that is needed
        return str(tmp_path / 'prepared')

    return prepared


def check(source, ids):
    assert source.ids == tuple(ids)
    assert len(source.records) == len(ids)
    for image_id, record, pixels in zip(ids, source.records, source.pixels, strict=True):
        label = truth(image_id)
        assert record['image'] == photograph(image_id)
        np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
        counts = np.bincount(label.ravel(), minlength=256)
        np.testing.assert_array_equal(pixels, counts[:37])
        assert counts[36] > 0 and counts[255] > 0  # bag is a class, void is none


def archived(files, root=''):
    """Files as sun_rgbd.tgz, lists beside it."""
    beside = {name: data for name, data in files.items() if name.endswith('.txt')}
    inside = {f'{root}{name}': data for name, data in files.items() if name not in beside}
    return {sun.ARCHIVE: fakes.tgz(inside), **beside}


@pytest.mark.parametrize(
    'files',
    [
        reorganised(),
        reorganised(root='SUN_RGBD/'),
        archived(reorganised()),
        archived(reorganised(), root='SUN_RGBD/'),
        {sun.ARCHIVE: fakes.tgz(reorganised(root='./'))},
    ],
    ids=['folder', 'inner folder', 'archive', 'archive of a folder', 'lists in the archive'],
)
def test_the_reorganised_copy(files, prepare, tmp_path):
    data_dir = prepare(files)
    check(sources.load('sun/full', 'train', data_dir), [f'train/img-{n:06d}' for n in (1, 2, 3)])
    check(sources.load('sun/full', 'val', data_dir), VAL)
    test = sources.load('sun/full', 'test', data_dir)
    check(test, VAL + REST)
    assert test.parts == (('val', 2), ('rest', 2))  # no image is stored twice
    assert sources.class_names('sun')[0] == 'wall' and sources.class_names('sun')[36] == 'bag'
    assert len(list((tmp_path / 'prepared/sun/full').iterdir())) == 1
    builder = sun.Builder(config='full', data_dir=data_dir)
    assert set(builder.info.metadata['archives']) == {sun.ARCHIVE} & set(files)
    assert 'test: 4 images, those of val and rest' in records.report(builder)


def test_lines_of_the_lists_name_images():
    for name, split in (('train37.txt', 'train'), ('test37.txt', 'test')):
        known = {f'{split}/img-{number:06d}' for number in NUMBERS[split]}
        assert set(lists.parse(reorganised()[name], name, known)) == known
    assert set(lists.parse(reorganised()['split/val37.txt'], 'val', VAL + REST)) == set(VAL)


@pytest.mark.parametrize('given', [(), ('train37.txt', 'test37.txt')])
def test_without_its_list_there_is_no_val(given, prepare):
    data_dir = prepare(reorganised(given))
    assert sources.splits('sun/full', data_dir) == ['train', 'test']
    check(sources.load('sun/full', 'train', data_dir), [f'train/img-{n:06d}' for n in (1, 2, 3)])
    check(sources.load('sun/full', 'test', data_dir), sorted(VAL + REST))


def test_an_archive_by_its_own_name(prepare):
    data_dir = prepare({'any.tgz': fakes.tgz(reorganised())}, source='source/any.tgz')
    check(sources.load('sun/full', 'val', data_dir), VAL)


@pytest.mark.parametrize('form', ['folders', 'archives', 'other name'])
def test_the_first_release(form, prepare):
    files = first_release()
    if form == 'other name':
        old, new = sun._LABELS
        files = {name.replace(old, new): data for name, data in files.items()}
    if form == 'archives':
        parts = {}
        for name, data in files.items():
            folder, _, inside = name.partition('/')
            ending = '.tar.gz' if 'labels' in folder else '.tgz'
            parts.setdefault(f'{folder}{ending}', {})[inside] = data
        files = {name: fakes.tgz(part) for name, part in parts.items()}
    data_dir = prepare(files)
    check(sources.load('sun/full', 'train', data_dir), [f'train/img-{n:06d}' for n in (1, 2, 3)])
    check(sources.load('sun/full', 'test', data_dir), sorted(VAL + REST))


def test_default_records_have_the_size_of_usss(prepare):
    source = sources.load('sun', 'train', prepare(reorganised(), config='640x480'))
    assert source.dataset == 'sun/640x480'
    assert source.sizes.tolist() == [[480, 640]] * 3
    for image_id, record in zip(source.ids, source.records, strict=True):
        image, label = geometry.decode_image(photograph(image_id)), truth(image_id)
        image, _ = images.resize(image, label, (480, 640))
        difference = geometry.decode_image(record['image']).astype(int) - image
        assert np.abs(difference).max() <= 2  # two decoders of JPEG
        rows, columns = (
            ((np.arange(m) + 0.5) * n / m).astype(int)
            for n, m in zip(label.shape, (480, 640), strict=True)
        )
        np.testing.assert_array_equal(
            geometry.decode_label(record['label']), label[np.ix_(rows, columns)]
        )


def lines(name, change):
    """The lines of a list, changed."""
    return {name: change(reorganised()[name].decode()).encode()}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({LABEL: fakes.png(values('train', 2) // 4 + 30)}, 'label value .*; expected 1..37, or 0'),
        ({LABEL: fakes.png(values('train', 2)[1:])}, 'expected width x height'),
        ({LABEL: fakes.png(fakes.picture('x', (42, 56)))}, 'one channel of class ids'),
        ({LABEL: b'x'}, 'is no readable image'),
        ({IMAGE: b'x'}, 'is no readable image'),
        ({LABEL: None}, f'line 2 names {LABEL}: there is no {LABEL} in'),
        ({IMAGE: None}, f'line 2 names {IMAGE}: there is no {IMAGE} in'),
        (
            lines('train37.txt', lambda text: text.replace('03', '02')),
            'line 3 names .*02.jpg again',
        ),
        (lines('train37.txt', lambda text: text.partition('\n')[0]), 'train: expected 3.*found 1'),
        (
            lines('train37.txt', lambda text: 'a b c\n' + text),
            "line 1: got 'a b c', expected image",
        ),
        (lines('train37.txt', lambda text: text.replace(' ', ';')), 'line 1: got .*, expected ima'),
        ({'train37.txt': b'\xff\xfe'}, 'train37.txt is no text'),
        (
            lines(
                'split/val37.txt', lambda text: text.replace('test', 'train').replace('04', '03')
            ),
            'not in the test sp',
        ),
        (lines('split/val37.txt', lambda text: text + '\n' + text), 'names .* again'),
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's, of damaged files
def test_wrong_files_are_named_in_one_line(changes, words, prepare, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        prepare({**reorganised(), **changes})
    assert '\n' not in str(error.value)
    assert str(tmp_path / 'source') in str(error.value)
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('sun/full', 'train', str(tmp_path / 'prepared'))
    assert not list(tmp_path.glob('prepared/sun/full/*'))


def test_missing_labels_are_named_without_lists_too(prepare, tmp_path):
    with pytest.raises(ValueError, match=rf'{IMAGE} has no label: there is no {LABEL} in'):
        prepare({**reorganised(given=()), LABEL: None})
    shutil.rmtree(tmp_path / 'source')
    files = {**first_release(), 'sunrgbd_train_test_labels/img-000006.png': None}
    with pytest.raises(ValueError, match=rf'img-000002.jpg has no label: there is no {LABEL} in'):
        prepare(files)


def test_published_counts_are_the_default(prepare):
    assert sun.SPLITS == {'train': 5285, 'test': 5050, 'val': 475}
    with pytest.raises(ValueError, match='split train: expected 5285 images, found 3'):
        prepare(reorganised(), splits=None)


def test_archives_are_read_safely(prepare, tmp_path):
    files = {sun.ARCHIVE: fakes.tgz(reorganised(), links={'image/train/x.jpg': '/etc/passwd'})}
    with pytest.raises(ValueError, match=r"refused: its member 'image/train/x\.jpg' is a link"):
        prepare(files)
    assert not list(tmp_path.glob('prepared/sun/full/*'))


def test_command_says_what_is_missing(tmp_path):
    command = [sys.executable, '-m', 'data_prep.sun', '--source', str(tmp_path)]
    command += ['--data_dir', str(tmp_path / 'prepared')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'error: --source {tmp_path}: there is neither {tmp_path}/image' in done.stderr
    assert 'https://github.com/chrischoy/SUN_RGBD' in done.stderr
    assert not (tmp_path / 'prepared').exists()
    (tmp_path / 'SUNRGBD-train_images').mkdir()
    with pytest.raises(FileNotFoundError, match=r'is no .*-test_images and no .*_test_labels\. In'):
        sun.find_source(tmp_path)
