import shutil
import subprocess
import sys

import numpy as np
import pytest

from css_jax.data import geometry, sources
from data_prep import records
from data_prep.cityscapes import builder as cityscapes
from tests import fakes

# trainId of the label ids 0..33, as cityscapesScripts' labels.py has them.
TRAIN_IDS = [
    255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255,
    5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18,
]  # fmt: skip
LABEL = 'gtFine/train/hamburg/hamburg_000000_080169_gtFine_labelIds.png'
IMAGE = 'leftImg8bit/train/hamburg/hamburg_000000_080169_leftImg8bit.png'


@pytest.fixture
def prepare(tmp_path):
    """A function that writes the archives, with changes, and prepares `cityscapes`: data_dir."""

    def prepared(images=None, labels=None, splits=fakes.CITYSCAPES_SPLITS, config='full'):
        source = tmp_path / 'source'
        source.mkdir()
        for name, members, changes in zip(
            (cityscapes.IMAGES, cityscapes.LABELS),
            fakes.cityscapes_members(),
            (images, labels),
            strict=True,
        ):
            members = {k: v for k, v in {**members, **(changes or {})}.items() if v is not None}
            (source / name).write_bytes(fakes.zipped(members))
        place = {'data_dir': tmp_path / 'prepared', 'splits': splits, 'config': config}
        records.prepare(cityscapes.Builder(source=str(source), **place))
        shutil.rmtree(source)  # the records are all that is needed
        return str(tmp_path / 'prepared')

    return prepared


def classes(image_id):
    return np.array([*TRAIN_IDS, *[255] * 222], np.uint8)[fakes.cityscapes_label_ids(image_id)]


def test_full_images_and_train_ids(prepare):
    data_dir = prepare()
    for split, ids in fakes.CITYSCAPES_IDS.items():
        source = sources.load('cityscapes', split, data_dir)
        assert source.ids == ids
        for index, image_id in enumerate(ids):
            record = source.records[index]
            label = classes(image_id)
            assert record['image'] == fakes.png(fakes.picture(image_id, (20, 40)))
            np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
            counts = np.bincount(label.ravel(), minlength=256)
            np.testing.assert_array_equal(source.pixels[index], counts[:19])
            assert counts[255] > 0
    assert source.dataset == 'cityscapes/full'
    assert source.class_names[13] == 'car'
    assert len(source.class_names) == 19


def test_half_averages_images_and_picks_labels(prepare):
    source = sources.load('cityscapes/half', 'val', prepare(config='half'))
    for index, image_id in enumerate(fakes.CITYSCAPES_IDS['val']):
        record = source.records[index]
        means = fakes.picture(image_id, (20, 40)).reshape(10, 2, 20, 2, 3).mean((1, 3))
        assert np.abs(geometry.decode_image(record['image']) - means).max() <= 0.5
        label = geometry.resize_label(classes(image_id), (10, 20))
        np.testing.assert_array_equal(geometry.decode_label(record['label']), label)
    assert source.sizes.tolist() == [[10, 20]] * 2


def test_half_by_pillow_weighs_four_pixels_a_side(prepare):
    source = sources.load('cityscapes/half_pil', 'val', prepare(config='half_pil'))
    for index, image_id in enumerate(fakes.CITYSCAPES_IDS['val']):
        record = source.records[index]
        image = fakes.picture(image_id, (20, 40)).astype(float)
        for axis in (0, 1):  # 1, 3, 3, 1 eighths inside
            first, *others = (np.take(image, range(k, k + 14, 2), axis) for k in range(1, 5))
            image = (first + 3 * others[0] + 3 * others[1] + others[2]) / 8
        inside = geometry.decode_image(record['image'])[1:8, 1:8]
        assert np.abs(inside - image).max() <= 1
        label = geometry.decode_label(record['label'])
        np.testing.assert_array_equal(label, classes(image_id)[1::2, 1::2])
    assert source.sizes.tolist() == [[10, 20]] * 2


def test_report_tells_the_archives(prepare):
    builder = cityscapes.Builder(data_dir=prepare())
    noted = builder.info.metadata['archives']
    assert set(noted) == {cityscapes.IMAGES, cityscapes.LABELS}
    text = records.report(builder)
    assert all(f'SHA-256 {about["sha256"]}\n' in text for about in noted.values())
    assert 'train: 3 images, width x height 40x20' in text


def test_wrong_files_are_named(prepare, tmp_path):
    label = fakes.cityscapes_label_ids('hamburg_000000_080169')
    label[5, 6] = 34
    for changes, words in (
        ({'labels': {LABEL: fakes.png(label)}}, f'{LABEL}: label value 34; expected a label id'),
        ({'labels': {LABEL: fakes.png(label[1:])}}, f'{LABEL}: expected width x height 40x20'),
        ({'labels': {LABEL: b'x'}}, f'{LABEL} is no readable image'),
        ({'images': {IMAGE: b'x'}}, f'{IMAGE} is no readable image'),
        ({'labels': {LABEL: None}}, f'there is no {LABEL} in it'),
        ({'images': {IMAGE: None}}, 'split train: expected 3 images, found 2'),
        ({'images': {'../x': b''}}, "refused: its member '../x' lies outside its folder"),
        ({'labels': {'/x': b''}}, "refused: its member '/x' lies outside its folder"),
    ):
        with pytest.raises(ValueError) as error:
            prepare(**changes)
        assert words in str(error.value)
        with pytest.raises(FileNotFoundError, match='not prepared'):
            sources.load('cityscapes', 'train', str(tmp_path / 'prepared'))
        shutil.rmtree(tmp_path / 'source')


def test_published_counts_are_the_default(prepare):
    assert cityscapes.SPLITS == {'train': 2975, 'val': 500}
    with pytest.raises(ValueError, match='split train: expected 2975 images, found 3'):
        prepare(splits=None)


def test_command_says_what_is_missing(tmp_path):
    (tmp_path / cityscapes.IMAGES).touch()
    command = [sys.executable, '-m', 'data_prep.cityscapes', '--source', str(tmp_path)]
    command += ['--config', 'half', '--data_dir', str(tmp_path / 'prepared')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert f'there is no {tmp_path / cityscapes.LABELS}' in done.stderr
    assert 'https://www.cityscapes-dataset.com/downloads/' in done.stderr
    assert not (tmp_path / 'prepared').exists()
