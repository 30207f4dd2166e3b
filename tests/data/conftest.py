"""Streams on the small `shapes` of ../conftest.py, and a tiny CamVid."""

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_prep import records
from data_prep.camvid.builder import Builder as CamVid
from tests import filled

CAMVID_SPLITS = {'train': 3, 'val': 2, 'test': 1}


@pytest.fixture
def data(data_dir) -> ConfigDict:
    """`config.data` with a labelled and an unlabelled stream of `shapes`."""
    data = filled.data()
    data.dir = data_dir
    data.mean, data.std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    common = {'batch_size': 4, 'crop': (48, 40)}
    data.streams.labelled = filled.stream(
        'shapes', count=8, min_per_class=2, resize=(0.5, 1.5), **common
    )
    data.streams.unlabelled = filled.stream(
        'shapes', reads='none', exclude='labelled', resize=(1.0, 1.0), pad='reflect', **common
    )
    return data


@pytest.fixture
def camvid_source(tmp_path):
    """A folder in the layout {split}/{images,labels}: 12x16 pixels, every class and void."""
    return write_camvid(tmp_path / 'source', '{}/images', '{}/labels', void=255)


@pytest.fixture
def camvid_original(tmp_path):
    """The same images in the layout of the public repository, void being 11."""
    return write_camvid(tmp_path / 'CamVid', '{}', '{}annot', void=11)


@pytest.fixture
def prepare_camvid(tmp_path):
    """A function (source, config) -> data_dir that prepares a `camvid` of `CAMVID_SPLITS`."""

    def prepare(source, config='full'):
        builder = CamVid(
            source=str(source), splits=CAMVID_SPLITS, config=config, data_dir=tmp_path / 'prepared'
        )
        records.prepare(builder)
        return str(tmp_path / 'prepared')

    return prepare


@pytest.fixture
def camvid_arrays():
    """The function (split, index) -> image, label that drew the tiny CamVid."""
    return draw_camvid


def write_camvid(folder, images, labels, void):
    """Writes a tiny CamVid; the same split and index always give the same pixels."""
    for split, count in CAMVID_SPLITS.items():
        image_folder, label_folder = folder / images.format(split), folder / labels.format(split)
        image_folder.mkdir(parents=True)
        label_folder.mkdir(parents=True)
        for index in range(count):
            image, label = draw_camvid(split, index)
            cv2.imwrite(str(image_folder / f'{split}{index}.png'), image[..., ::-1])
            label = np.where(label == 255, void, label).astype(np.uint8)
            cv2.imwrite(str(label_folder / f'{split}{index}.png'), label)
    return folder


def draw_camvid(split, index):
    """Gives image uint8 [12, 16, 3] (RGB) and label uint8 [12, 16] with 255 for void."""
    rng = np.random.default_rng([*split.encode(), index])
    label = np.resize([*range(11), 255], (12, 16)).astype(np.uint8)
    return rng.integers(0, 256, (12, 16, 3), np.uint8), rng.permuted(label)
