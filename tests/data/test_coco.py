import importlib.util
import io
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from css_jax.data import geometry, sources
from data_prep import archives, command, records
from data_prep.coco import builder as coco
from data_prep.coco import instances
from data_prep.splits import lists
from tests import fakes

PYCOCOTOOLS = importlib.util.find_spec('pycocotools') is not None
needs_pycocotools = pytest.mark.skipif(not PYCOCOTOOLS, reason='pycocotools is not installed')
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # category ids of none
PARTS = ('train', 'val', 'annotations')
SPLITS = {'train': 3, 'val': 1}
# Image id -> size; not in the order of the ids, one without instances in each split.
IMAGES = {
    'train': {9: (40, 50), 3: (30, 20), 7: (24, 32), 25: (10, 10)},
    'val': {42: (20, 30), 73: (10, 12)},
}
GREY = 7
SIZES = {**IMAGES['train'], **IMAGES['val']}


def name(image, split, year='2014'):
    return f'{image:012d}' if year == '2017' else f'COCO_{split}{year}_{image:012d}'


def box(left, top, right, bottom):
    """A polygon that has no pixels of column `right` and row `bottom`."""
    return [left, top, right, top, right, bottom, left, bottom]


def runs(mask, compressed=False):
    """A mask as COCO's runs, in either of their forms."""
    flat = mask.T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    counts = [0] * bool(flat[0]) + np.diff(edges).tolist()
    return {'counts': compress(counts) if compressed else counts, 'size': list(mask.shape)}


def compress(counts):
    text = ''
    for index, value in enumerate(counts):
        value -= counts[index - 2] if index > 2 else 0
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(ord('0') + bits + 32 * more)
    return text


def crowd(image, compressed):
    """Scattered pixels, the first and the last one among them."""
    mask = np.random.default_rng(image).random(SIZES[image]) < 0.3
    mask[0, 0] = mask[-1, -1] = True
    return mask, runs(mask, compressed)


def annotation(number, image, category, area, segmentation, iscrowd=0):
    return {
        'segmentation': segmentation, 'area': area, 'iscrowd': iscrowd, 'image_id': image,
        'bbox': [0, 0, 1, 1], 'category_id': category, 'id': number,
    }  # fmt: skip


def annotations(split):
    if split == 'val':
        return [annotation(100, 42, 90, 25.0, [box(1, 1, 6, 6)])]
    return [
        # Smaller over larger, whatever their order; the crowd at the bottom, though it is smallest.
        annotation(1, 9, 1, 100.5, [box(10, 10, 20, 20)]),
        annotation(2, 9, 13, 400.0, [box(5, 5, 25, 25)]),
        annotation(3, 9, 27, 2.0, crowd(9, compressed=False)[1], iscrowd=1),
        # Of two parts, one over the border; two corners are no polygon.
        annotation(4, 9, 90, 50.0, [box(30, 0, 40, 3), box(45, 35, 60, 60), [0, 0, 9, 9], []]),
        # Of equal areas the larger id is on top.
        annotation(6, 3, 11, 36.0, [box(3, 3, 9, 9)]),
        annotation(5, 3, 46, 36.0, [box(0, 0, 6, 6)]),
        annotation(900, 7, 3, 1.0, crowd(7, compressed=True)[1], iscrowd=1),
    ]


def truth(image):
    """The label, painted by hand."""
    label = np.zeros(SIZES[image], np.uint8)
    if image == 9:
        label[crowd(9, compressed=False)[0]] = 25  # backpack, id 27
        label[5:25, 5:25] = 12  # stop sign, id 13
        label[10:20, 10:20] = 1
        label[0:3, 30:40] = label[35:, 45:] = 80
    if image == 3:
        label[0:6, 0:6] = 41  # wine glass, id 46
        label[3:9, 3:9] = 11
    if image == 7:
        label[crowd(7, compressed=False)[0]] = 3
    if image == 42:
        label[1:6, 1:6] = 80
    return label


def jpeg(image):
    if image != GREY:
        return fakes.jpeg(str(image), SIZES[image])
    out = io.BytesIO()
    Image.fromarray(fakes.picture(str(image), SIZES[image])[..., 0]).save(out, 'JPEG')
    return out.getvalue()


def listed(split, year='2014'):
    """The content of a file of instances."""
    pictures = [
        {'license': 5, 'file_name': f'{name(image, split, year)}.jpg', 'height': size[0],
         'width': size[1], 'flickr_url': 'http://farm5.example/x.jpg', 'id': image}
        for image, size in IMAGES[split].items()
    ]  # fmt: skip
    known = [{'supercategory': 'person', 'id': 1, 'name': 'person'}]
    return {'info': {}, 'images': pictures, 'annotations': annotations(split), 'categories': known}


def published(year='2014'):
    """Gives the members of the three archives by the archive's name without its ending."""
    parts = {f'annotations_trainval{year}': {f'annotations/captions_val{year}.json': b'not read'}}
    for split in IMAGES:
        content = json.dumps(listed(split, year)).encode()
        parts[f'annotations_trainval{year}'][f'annotations/instances_{split}{year}.json'] = content
        parts[f'{split}{year}'] = {f'{split}{year}/': b''}
        for image in IMAGES[split]:
            parts[f'{split}{year}'][f'{split}{year}/{name(image, split, year)}.jpg'] = jpeg(image)
    # What macOS adds.
    parts[f'train{year}'][f'__MACOSX/train{year}/._{name(9, "train", year)}.jpg'] = b'not read'
    return parts


def lay(folder, parts, unpacked=()):
    for part, members in parts.items():
        if part not in unpacked:
            folder.mkdir(exist_ok=True)
            (folder / f'{part}.zip').write_bytes(fakes.zipped(members))
            continue
        for member, data in members.items():
            if not member.endswith('/'):
                (folder / member).parent.mkdir(parents=True, exist_ok=True)
                (folder / member).write_bytes(data)


@pytest.fixture
def prepare(tmp_path):
    """A function that prepares `coco` from these parts: data_dir."""
    pytest.importorskip('pycocotools', reason='pycocotools is not installed')

    def prepared(parts, unpacked=(), splits=SPLITS, config='2014'):
        lay(tmp_path / 'source', parts, unpacked)
        place = {'data_dir': tmp_path / 'prepared', 'splits': splits, 'config': config}
        records.prepare(coco.Builder(source=str(tmp_path / 'source'), **place))
        shutil.rmtree(tmp_path / 'source')  # the records are all that is needed
        return str(tmp_path / 'prepared')

    return prepared


def check(data_dir, config='2014'):
    year, every = config[:4], config.endswith('_all')
    empty = {'train': (25,) * every, 'val': (73,) * every}
    assert sources.splits(f'coco/{config}', data_dir) == ['train', 'val']
    for split, images in {'train': (3, 7, 9), 'val': (42,)}.items():
        images = (*images, *empty[split])
        source = sources.load(f'coco/{config}', split, data_dir)
        assert source.ids == tuple(name(image, split, year) for image in images)
        assert len(source.records) == len(images)
        for image, record, pixels in zip(images, source.records, source.pixels, strict=True):
            assert record['image'] == jpeg(image)
            assert geometry.decode_image(record['image']).shape == (*SIZES[image], 3)
            label = truth(image)
            np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
            np.testing.assert_array_equal(pixels, np.bincount(label.ravel(), minlength=81))


def test_categories_are_classes_without_gaps():
    assert list(coco.IDS) == [number for number in range(1, 91) if number not in GAPS]
    assert list(coco.IDS.values()) == list(range(1, 81))
    names = sources.class_names('coco')
    assert len(names) == len(set(names)) == 81
    known = {0: 'background', 1: 'person', 12: 'stop sign', 61: 'dining table', 80: 'toothbrush'}
    assert {index: names[index] for index in known} == known


@pytest.mark.parametrize('unpacked', [(), PARTS, ('annotations',), ('train',)], ids=str)
def test_images_and_labels_of_every_form(unpacked, prepare, tmp_path, caplog):
    folders = {f'{part}2014' if part in SPLITS else 'annotations_trainval2014' for part in unpacked}
    data_dir = prepare(published(), folders)
    check(data_dir)
    assert 'train: 1 of 4 images have no instance and are left out' in caplog.text
    assert 'val: 1 of 2 images have no instance and are left out' in caplog.text
    prepared = coco.Builder(data_dir=data_dir)  # 2014 is the default
    noted = {f'{part}.zip' for part in published()} - {f'{part}.zip' for part in folders}
    assert set(prepared.info.metadata['archives']) == noted
    assert 'toothbrush' in records.report(prepared)
    assert len(list((tmp_path / 'prepared/coco/2014').iterdir())) == 1


def test_the_release_of_2017(prepare, tmp_path):
    lay(tmp_path / 'source', published(), {'annotations_trainval2014'})  # beside it
    check(prepare(published('2017'), config='2017'), '2017')


def test_images_without_an_instance_are_background_in_one_config(prepare, caplog):
    """UniMatch's lists of COCO are of all images."""
    every = {'train': 4, 'val': 2}
    check(prepare(published('2017'), splits=every, config='2017_all'), '2017_all')
    assert 'left out' not in caplog.text
    assert sources.class_names('coco/2017_all') == sources.class_names('coco')
    assert sources.label_set('coco/2017_all') == sources.label_set('coco/2017')
    line = 'train2017/000000000025.jpg masks/000000000025.png'
    assert lists.image_id(line, {name(image, 'train', '2017') for image in IMAGES['train']}) == (
        '000000000025'
    )


def test_a_release_that_is_not_there_is_named(prepare, tmp_path):
    lay(tmp_path / 'source', published('2017'))
    assert coco.find_source(tmp_path / 'source')['val'].name == 'val2017.zip'
    with pytest.raises(FileNotFoundError, match=r'is no .*/train2014\.zip and no .*/val2014\.zip'):
        prepare({})
    del (parts := published())['val2014']
    shutil.rmtree(tmp_path / 'source')
    with pytest.raises(FileNotFoundError, match=r'there is no \S*/val2014\.zip\. In --source'):
        prepare(parts)
    with pytest.raises(FileNotFoundError, match=r'there is no \S*/val2014\.zip\. In --source'):
        coco.find_source(tmp_path / 'source')


def changed(split='train', **changes):
    """A file of instances, the first annotation changed."""
    content = listed(split)
    content['annotations'][0] |= changes
    return json.dumps(content).encode()


def without(key, index, field):
    content = listed('train')
    del content[key][index][field]
    return json.dumps(content).encode()


def twice(**changes):
    """A file of instances with its first image once more."""
    content = listed('train')
    content['images'].append(content['images'][0] | changes)
    for each in content['annotations'][:1]:
        content['annotations'].append(each | {'image_id': content['images'][-1]['id']})
    return json.dumps(content).encode()


JSON = 'annotations/instances_train2014.json'
IMAGE = f'train2014/{name(9, "train")}.jpg'
UNREADABLE = '/instances_train2014.json: annotation 1: its segmentation cannot be read: '


@pytest.mark.parametrize(
    ('member', 'data', 'words'),
    [
        (JSON, changed(category_id=12), 'annotation 1 has category 12; expected one of 80'),
        (JSON, changed(category_id='1'), 'annotation 1: expected id, image_id, category_id'),
        (JSON, changed(image_id=8), 'annotation 1 is of image 8, which is not in its images'),
        (JSON, changed(area='large'), 'annotation 1: expected id, .*area and iscrowd; came'),
        (JSON, without('annotations', 0, 'iscrowd'), "annotation 1: .*KeyError.'iscrowd'"),
        (JSON, without('annotations', 0, 'segmentation'), "'id': 1.* as an annotation"),
        (JSON, without('images', 0, 'height'), "is no readable annotation: .*KeyError.'height'"),
        (JSON, changed(segmentation=None), UNREADABLE),
        (JSON, changed(segmentation=[1, 2, 3, 4, 5, 6]), UNREADABLE),
        (JSON, changed(segmentation='text'), UNREADABLE),
        (JSON, changed(segmentation=[['1', '2', '3', '4', '5', '6']]), UNREADABLE),
        (JSON, changed(segmentation=[[1] * 7]), f'{UNREADABLE}.*a polygon of 7 numbers'),
        (JSON, changed(segmentation=[[1, 2, 3, 4, 5, float('nan')]]), f'{UNREADABLE}.*coordinate'),
        (JSON, changed(segmentation=[[1, 2, 3, 4, 5, 1e9]]), f'{UNREADABLE}.*coordinate'),
        (JSON, changed(segmentation=[[1, 2, 3, 4, 5, 10**400]]), f'{UNREADABLE}OverflowError'),
        (JSON, changed(segmentation={'counts': [2000]}), f"{UNREADABLE}KeyError.'size'"),
        (
            JSON,
            changed(segmentation={'counts': [1, 2], 'size': [40, 50]}),
            f'{UNREADABLE}.*runs of 3 pixels for 40 times 50',
        ),
        (JSON, changed(segmentation={'counts': [2003, -3], 'size': [40, 50]}), UNREADABLE),
        (JSON, changed(segmentation={'counts': 'P', 'size': [40, 50]}), f'{UNREADABLE}.*cut short'),
        (JSON, changed(segmentation={'counts': '0~', 'size': [40, 50]}), f"{UNREADABLE}.*'~' amon"),
        (
            JSON,
            changed(segmentation={'counts': [2000], 'size': [50, 40]}),
            r'annotation 1: its segmentation has height and width \(50, 40\), expected \(40, 50\)',
        ),
        (JSON, changed()[:-9], 'is no readable annotation: '),
        (JSON, b'', 'is no readable annotation: '),
        (JSON, b'\xff\xfe\xfd', 'is no readable annotation: '),
        (JSON, b'[1, 2]', 'is no readable annotation: expected images'),
        (JSON, twice(), 'two images with the id 9'),
        (JSON, twice(id=90), f'has the image {name(9, "train")}.jpg twice'),
        (JSON, None, 'there is no instances_train2014.json in it'),
        (
            JSON,
            json.dumps(listed('val')).encode(),
            'there is no COCO_val2014_0*42.jpg in it, which',
        ),
        (IMAGE, None, f'there is no {name(9, "train")}.jpg in it, which .*train2014.json names'),
        (IMAGE, fakes.jpeg('x', (40, 49)), 'expected width x height 49x40 as in .*, came 50x40'),
        (IMAGE, b'x', 'is no readable image'),
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's, of damaged files
def test_wrong_files_are_named_in_one_line(member, data, words, prepare, tmp_path):
    parts = published()
    part = next(part for part in parts if member in parts[part])
    parts[part][member] = data
    if data is None:
        del parts[part][member]
    with pytest.raises(ValueError, match=words) as error:
        prepare(parts)
    assert '\n' not in str(error.value)
    assert str(tmp_path / 'source') in str(error.value)
    assert member in str(error.value) or data is None or 'COCO_val' in words
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('coco', 'train', str(tmp_path / 'prepared'))
    assert not list(tmp_path.glob('prepared/coco/2014/*'))


@pytest.mark.parametrize('part', published())
def test_damaged_archives_are_named(part, prepare, tmp_path, monkeypatch):
    whole = fakes.zipped
    cut = whole(published()[part])[:-30]
    monkeypatch.setattr(
        fakes,
        'zipped',
        lambda members: cut if [*members] == [*published()[part]] else whole(members),
    )
    with pytest.raises(ValueError, match=rf'{part}\.zip is damaged or cut short'):
        prepare(published())
    assert not list(tmp_path.glob('prepared/coco/2014/*'))


def test_published_counts_are_the_default(prepare, tmp_path):
    assert coco.SPLITS['2014'] == {'train': 82783 - 702, 'val': 40504 - 367}
    assert coco.SPLITS['2017'] == {'train': 118287 - 1021, 'val': 5000 - 48}
    assert coco.SPLITS['2017_all'] == {'train': 118287, 'val': 5000}
    with pytest.raises(ValueError, match='expected 82081 images with an instance, found 3 among 4'):
        prepare(published(), splits=None)
    shutil.rmtree(tmp_path / 'source')
    with pytest.raises(ValueError, match='split train: expected 118287 images, found 4 among 4'):
        prepare(published('2017'), splits=None, config='2017_all')
    shutil.rmtree(tmp_path / 'source')
    empty = json.dumps({'images': [], 'annotations': []}).encode()
    parts = published()
    parts['annotations_trainval2014'][JSON] = empty
    with pytest.raises(ValueError, match='train: expected images with an instance, found none'):
        prepare(parts, splits={'train': None})


@needs_pycocotools
def test_polygons_are_as_pycocotools_fills_them():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    polygons = rng.uniform(-5, 45, (3, 10)).round(2).tolist()
    content = {
        'images': [{'id': 1, 'file_name': 'x.jpg', 'height': 30, 'width': 40}],
        'annotations': [annotation(1, 1, 2, 5, polygons)],
    }
    entry = archives.Entry('x.json', json.dumps(content).encode)
    drawing = instances.draw(instances.parse(entry, coco.IDS)[0])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # pycocotools', with NumPy 2.4
        filled = mask.decode(mask.frPyObjects(polygons, 30, 40)).any(axis=2)
    np.testing.assert_array_equal(drawing, 2 * filled)
    assert drawing.dtype == np.uint8 and 100 < filled.sum() < 1000


def test_compressed_runs():
    assert instances.uncompressed('') == []
    assert instances.uncompressed('Q12P11O') == [33, 2, 32, 2 + 1, 32 - 1]


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 1])
def test_runs_are_read_back(share):
    mask = np.random.default_rng(5).random((300, 400)) < share
    assert instances.uncompressed(runs(mask, compressed=True)['counts']) == runs(mask)['counts']
    if PYCOCOTOOLS:
        from pycocotools.mask import encode

        encoded = encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encoded['counts'].decode() == runs(mask, compressed=True)['counts']


def test_without_pycocotools_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools.mask', None)
    arguments = ['coco', '--source', str(tmp_path), '--data_dir', str(tmp_path / 'prepared')]
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit) as stopped:
        command.run('coco', 'Prepares.', coco, check=coco.find_source)
    assert stopped.value.code.startswith('error: ')
    assert stopped.value.code.endswith('is not installed: pip install pycocotools')
    assert '\n' not in stopped.value.code
    assert not (tmp_path / 'prepared').exists()


@needs_pycocotools
def test_command_says_what_is_missing(tmp_path):
    program = [sys.executable, '-m', 'data_prep.coco', '--source', str(tmp_path)]
    program += ['--data_dir', str(tmp_path / 'prepared')]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'error: --source {tmp_path}: there is no {tmp_path}/train2014.zip and' in done.stderr
    assert 'https://cocodataset.org/#download' in done.stderr
    assert not (tmp_path / 'prepared').exists()
