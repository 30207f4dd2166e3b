import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from css_jax.data import geometry, sources
from data_prep import archives, command, images, records
from data_prep.idd import builder as idd
from data_prep.idd import polygons
from tests import fakes

# Level-3 id -> its labels, the one that names the class first.
LEVEL3 = {
    0: ['road'], 1: ['drivable fallback', 'parking'], 2: ['sidewalk'],
    3: ['non-drivable fallback', 'rail track'], 4: ['person', 'animal'], 5: ['rider'],
    6: ['motorcycle'], 7: ['bicycle'], 8: ['autorickshaw'], 9: ['car'], 10: ['truck'], 11: ['bus'],
    12: ['vehicle fallback', 'caravan', 'trailer', 'train'], 13: ['curb'], 14: ['wall'],
    15: ['fence'], 16: ['guard rail'], 17: ['billboard'], 18: ['traffic sign'],
    19: ['traffic light'], 20: ['pole', 'polegroup'], 21: ['obs-str-bar-fallback'],
    22: ['building'], 23: ['bridge', 'tunnel'], 24: ['vegetation'],
    25: ['sky', 'fallback background'],
    255: ['unlabeled', 'ego vehicle', 'rectification border', 'out of roi', 'license plate'],
}  # fmt: skip
SPLITS = {'train': 3, 'val': 2}
SIZES = {  # of the images, in an order that is not that of the archive
    'train/0/024541': (54, 96),
    'train/10/frame0029': (36, 64),
    'train/2/000001': (36, 64),
    'val/119/903127': (54, 96),
    'val/132/475092': (36, 64),
}
MASKED = 'train/10/frame0029'  # has a mask of IDD's tool beside its polygons
FIRST = 'gtFine/train/0/024541_gtFine_polygons.json'
FIRST_IMAGE = 'leftImg8bit/train/0/024541_leftImg8bit.png'
MASK = f'gtFine/{MASKED}_gtFine_labellevel3Ids.png'
COORDINATE = 'as a coordinate'


def box(label, left, top, right, bottom, **more):
    """A rectangle with its last row and column."""
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {'label': label, 'polygon': corners, **more}


def annotation(size, *objects):
    content = {'imgHeight': size[0], 'imgWidth': size[1], 'objects': list(objects)}
    return json.dumps(content).encode()


def objects(image_id):
    return [
        box('sky', 0, 0, 63, 15),
        box('road', 0, 16, 63, 30),
        box('license plate', 2, 2, 2 + len(image_id) % 7, 9),
    ]


def drawn(image_id):
    """What `objects` are, painted by hand."""
    label = np.full(SIZES[image_id], 255, np.uint8)
    label[0:16, 0:64] = 25
    label[16:31, 0:64] = 0
    label[2:10, 2 : 3 + len(image_id) % 7] = 255
    return label


def mask():
    rng = np.random.default_rng(3)
    return rng.permuted(np.resize([*range(26), 255], SIZES[MASKED]).astype(np.uint8))


def truth(image_id):
    return mask() if image_id == MASKED else drawn(image_id)


def members(root='IDD_Segmentation/'):
    """Gives the archive of part I: drives in any order, a test split without annotations."""
    files = {'README': b'not read', 'leftImg8bit/test/5/000003_leftImg8bit.png': b'not read'}
    for image_id in reversed(SIZES):
        size = SIZES[image_id]
        data = fakes.png(fakes.picture(image_id, size))
        files[f'leftImg8bit/{image_id}_leftImg8bit.png'] = data
        files[f'gtFine/{image_id}_gtFine_polygons.json'] = annotation(size, *objects(image_id))
        files[f'gtFine/{image_id}_gtFine_instancelevel3Ids.png'] = b'not read'
    files[MASK] = fakes.png(mask())
    # What macOS adds.
    files['leftImg8bit/train/0/._024541_leftImg8bit.png'] = b'not read'
    return {f'{root}{name}': data for name, data in files.items()}


@pytest.fixture
def prepare(tmp_path):
    """A function that lays out the files, with changes, and prepares `idd`: data_dir."""

    def prepared(form='folder', changes=None, splits=SPLITS, config='full'):
        files = {
            **members(),
            **{f'IDD_Segmentation/{name}': data for name, data in (changes or {}).items()},
        }
        files = {name: data for name, data in files.items() if data is not None}
        source = tmp_path / 'source'
        source.mkdir()
        if form in ('folder', 'inner folder'):
            for name, data in files.items():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(data)
            source = source / 'IDD_Segmentation' if form == 'inner folder' else source
        else:
            writer = {'.gz': fakes.tgz, '.tar': fakes.tar, '.zip': fakes.zipped}
            file = source / form
            file.write_bytes(writer[file.suffix](files))
            source = source if form == idd.ARCHIVE else file
        place = {'data_dir': tmp_path / 'prepared', 'splits': splits, 'config': config}
        records.prepare(idd.Builder(source=str(source), **place))
        shutil.rmtree(tmp_path / 'source')  # the records are all that is needed
        return str(tmp_path / 'prepared')

    return prepared


def test_every_label_has_its_class():
    assert {label: i for i, labels in LEVEL3.items() for label in labels} == idd.LABELS
    assert sources.class_names('idd') == tuple(LEVEL3[i][0] for i in range(26))


@pytest.mark.parametrize(
    'form', ['folder', 'inner folder', idd.ARCHIVE, 'renamed.tar.gz', 'x.tar', 'x.zip']
)
def test_images_and_labels_of_every_form(form, prepare, tmp_path):
    data_dir = prepare(form)
    assert sources.splits('idd/full', data_dir) == ['train', 'val']  # test has no annotations
    for split, count in SPLITS.items():
        source = sources.load('idd/full', split, data_dir)
        assert source.ids == tuple(sorted(key for key in SIZES if key.startswith(split)))
        assert len(source) == count
        for image_id, record, pixels in zip(source.ids, source.records, source.pixels, strict=True):
            label = truth(image_id)
            assert record['image'] == fakes.png(fakes.picture(image_id, SIZES[image_id]))
            np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
            np.testing.assert_array_equal(pixels, np.bincount(label.ravel(), minlength=256)[:26])
    assert len(list((tmp_path / 'prepared/idd/full').iterdir())) == 1  # nothing of the copy
    noted = idd.Builder(config='full', data_dir=data_dir).info.metadata['archives']
    assert set(noted) == (set() if 'folder' in form else {form})


def test_default_records_have_the_size_of_usss(prepare):
    source = sources.load('idd', 'train', prepare(config='1024x512'))
    assert source.dataset == 'idd/1024x512'
    assert source.sizes.tolist() == [[512, 1024]] * 3
    for image_id, record in zip(source.ids, source.records, strict=True):
        image, label = fakes.picture(image_id, SIZES[image_id]), truth(image_id)
        image, _ = images.resize(image, label, (512, 1024))
        np.testing.assert_array_equal(geometry.decode_image(record['image']), image)
        rows, columns = (
            ((np.arange(m) + 0.5) * n / m).astype(int)
            for n, m in zip(label.shape, (512, 1024), strict=True)
        )
        np.testing.assert_array_equal(
            geometry.decode_label(record['label']), label[np.ix_(rows, columns)]
        )


def test_polygons_are_drawn_in_their_order():
    size = (30, 40)
    data = annotation(
        size,
        box('road', 0, 0, 39, 19),
        box('car', 10, 5, 20, 15),
        box('bus', 15, 10, 25, 25),  # over the car
        box('truck', 0, 0, 39, 29, deleted=1),
        box('sidewalk', 0, 0, 39, 29, deleted=True),
        box('no label at all', 0, 0, 39, 29, deleted=1),
        {'label': 'sky', 'polygon': [[0, 0], [39, 29]]},
        {'label': 'sky', 'polygon': []},
        box('persongroup', 30, 22, 33, 24, deleted=0),
        box('polegroup', 34, 22, 35, 24),
        box('ego vehicle', -5, 17, 5, 60),  # void over the road, and beyond the image
    )
    expected = np.full(size, 255, np.uint8)
    expected[0:20] = 0
    expected[5:16, 10:21] = 9
    expected[10:26, 15:26] = 11
    expected[22:25, 30:34] = 4
    expected[22:25, 34:36] = 20
    expected[17:, :6] = 255
    drawing = polygons.draw(polygons.parse(data, 'x.json', idd.LABELS))
    np.testing.assert_array_equal(drawing, expected)
    assert drawing.dtype == np.uint8


def test_slanted_polygons_and_fractions_are_as_pillow_fills_them():
    corners = [[1.5, 0], [8.9, 3], [1.5, 7]]
    data = annotation((9, 10), {'label': 'sky', 'polygon': corners})
    drawing = polygons.draw(polygons.parse(data, 'x.json', idd.LABELS))
    image = polygons.Image.new('L', (10, 9), 255)
    polygons.ImageDraw.Draw(image).polygon([tuple(c) for c in corners], fill=25)
    np.testing.assert_array_equal(drawing, image)
    assert drawing[3, 7] == 25
    assert drawing[0, 7] == 255


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({FIRST: annotation((54, 96), box('rickshaw', 0, 0, 5, 5))}, "label 'rickshaw' is not kno"),
        ({FIRST: annotation((54, 96), box('rickgroup', 0, 0, 5, 5))}, "label 'rickgroup' is not k"),
        ({FIRST: annotation((54, 96), box('group', 0, 0, 5, 5))}, "label 'group' is not known"),
        ({FIRST: annotation((36, 64))}, 'expected width x height 96x54 as in .*, came 64x36'),
        ({FIRST: annotation((54, 96))[:-9]}, 'is no readable annotation: '),
        ({FIRST: b''}, 'is no readable annotation: '),
        ({FIRST: b'\xff\xfe\xfd'}, 'is no readable annotation: '),
        ({FIRST: b'[1, 2]'}, 'is no readable annotation: expected imgHeight'),
        ({FIRST: annotation((54, 96.5))}, '96.5 as a size'),
        ({FIRST: annotation((54, 0))}, '0 as a size'),
        ({FIRST: annotation((54, 96), 'sky')}, 'is no readable annotation: expected imgHeight'),
        ({FIRST: annotation((54, 96), {'label': 'sky'})}, "KeyError.'polygon'"),
        ({FIRST: annotation((54, 96), box(7, 0, 0, 5, 5))}, '7 as a label'),
        ({FIRST: annotation((54, 96), box('sky', 0, 0, 1e30, 5))}, COORDINATE),
        ({FIRST: annotation((54, 96), box('sky', 0, float('nan'), 5, 5))}, COORDINATE),
        ({FIRST: annotation((54, 96), box('sky', 0, 10**400, 5, 5))}, 'OverflowError'),
        ({FIRST: annotation((54, 96), box('sky', 0, '4', 5, 5))}, 'is no readable annotation'),
        ({MASK: fakes.png(np.full(SIZES[MASKED], 26, np.uint8))}, 'label value 26; expected a lev'),
        ({MASK: fakes.png(mask()[1:])}, 'expected width x height 64x36'),
        ({MASK: b'x'}, 'is no readable image'),
        ({FIRST_IMAGE: b'x'}, 'is no readable image'),
        ({FIRST_IMAGE: None}, 'split train: expected 3 images, .*FRAME_leftImg8bit.png, found 2'),
        ({FIRST: None}, f'024541_leftImg8bit.png has no annotation: there is neither {FIRST} nor'),
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's, of damaged files
def test_wrong_files_are_named_in_one_line(changes, words, prepare, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        prepare(changes=changes)
    assert '\n' not in str(error.value)
    assert str(tmp_path / 'source/IDD_Segmentation') in str(error.value)
    name = next(iter(changes))
    assert name in str(error.value) or changes[name] is None
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('idd/full', 'train', str(tmp_path / 'prepared'))
    assert not list(tmp_path.glob('prepared/idd/full/*'))


@pytest.mark.parametrize('form', [idd.ARCHIVE, 'x.zip'])
def test_archives_are_read_safely(form, prepare, tmp_path):
    for changes, words in (
        ({'../../x': b''}, r"refused: its member '.*\.\./\.\./x' lies outside"),
        ({FIRST: b'{'}, rf'{form}: IDD_Segmentation/{FIRST} is no readable annotation'),
    ):
        with pytest.raises(ValueError, match=words):
            prepare(form, changes)
        assert not list(tmp_path.glob('prepared/idd/full/*'))
        shutil.rmtree(tmp_path / 'source')


def test_counts(prepare, tmp_path, caplog):
    assert idd.SPLITS == {'train': 6993, 'val': None}
    with pytest.raises(ValueError, match=r'split train: expected 6993 images, .* found 3'):
        prepare(splits=None)
    shutil.rmtree(tmp_path / 'source')
    # The number of val's images is only said, not known.
    data_dir = prepare(splits={'train': 3, 'val': None})
    assert len(sources.load('idd/full', 'val', data_dir)) == 2
    assert 'split val: found 2 images, others count 981' in caplog.text
    without = {
        name.removeprefix('IDD_Segmentation/'): None for name in members() if '/val/' in name
    }
    shutil.rmtree(data_dir)
    with pytest.raises(ValueError, match=r'split val: expected images, .* found none'):
        prepare(changes=without, splits={'train': 3, 'val': None})


def test_an_interrupted_preparation_leaves_nothing(prepare, tmp_path, monkeypatch):
    read = idd.read_item

    def interrupted(image_id, *rest):
        if image_id == 'val/119/903127':
            raise KeyboardInterrupt
        return read(image_id, *rest)

    monkeypatch.setattr(idd, 'read_item', interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(idd.ARCHIVE)
    assert not list((tmp_path / 'prepared/idd/full').iterdir())


def test_an_interrupted_copy_leaves_nothing(prepare, tmp_path, monkeypatch):
    walk = archives.walk

    def interrupted(file, wanted):
        yield next(walk(file, wanted))
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, 'walk', interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(idd.ARCHIVE)
    assert not list((tmp_path / 'prepared/idd/full').iterdir())


def test_command_says_what_is_missing(tmp_path):
    program = [sys.executable, '-m', 'data_prep.idd', '--source', str(tmp_path)]
    program += ['--data_dir', str(tmp_path / 'prepared')]
    (tmp_path / 'leftImg8bit').mkdir()
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'error: --source {tmp_path}: there are neither {tmp_path}/leftImg8bit' in done.stderr
    assert 'https://idd.insaan.iiit.ac.in' in done.stderr
    assert not (tmp_path / 'prepared').exists()


@pytest.mark.parametrize('form', ['other', 'text.tar.gz', 'other.tar.gz'])
def test_what_is_no_idd_is_named(form, tmp_path, monkeypatch):
    source = tmp_path / form
    words = f'{source}: split train: expected 6993 images'
    if form == 'other':
        for name in ('leftImg8bit', 'gtFine'):
            (source / name).mkdir(parents=True)
    elif form == 'text.tar.gz':
        source.write_text('no archive')
        words = f'{source} is damaged or cut short'
    else:  # part II has JPEG
        source.write_bytes(fakes.tgz({'idd20kII/leftImg8bit/train/1/1_leftImg8bit.jpg': b''}))
    arguments = ['idd', '--source', str(source), '--data_dir', str(tmp_path / 'prepared')]
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit) as stopped:
        command.run('idd', 'Prepares.', idd, check=idd.find_source)
    assert stopped.value.code.startswith(f'error: {words}')
    assert '\n' not in stopped.value.code
    assert not list((tmp_path / 'prepared/idd/1024x512').iterdir())
