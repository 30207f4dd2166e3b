"""VOC and Cityscapes from their archives to a score, through the files of configs/."""

import json

import numpy as np
import pytest

from configs import cityscapes, voc
from css_jax import config as configs
from css_jax import models, train
from css_jax.data import splits
from css_jax.evaluation.results import RESULTS
from css_jax.run import metrics
from data_prep import records
from data_prep.cityscapes.builder import Builder as Cityscapes
from data_prep.voc import builder as voc_builder
from tests import fakes
from tests.small import small

SMALL = {
    'steps': 2,
    'model.representation_dim': 16,
    'log_every': 1,
    'augment.jitter_prob': 0.0,  # less to compile
    'augment.blur_prob': 0.0,
    'contrastive.anchors': 16,
    'contrastive.negatives': 32,
    'contrastive.bank': 16,
    'data.streams.labelled.batch_size': 2,
    'data.streams.unlabelled.batch_size': 2,
    'data.streams.labelled.crop': (32, 32),
    'data.streams.unlabelled.crop': (32, 32),
}


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(models, 'build', small)


def run(config, data_dir, workdir):
    config.update_from_flattened_dict(SMALL)
    config.data.dir = str(data_dir)
    return train.train(config, workdir)


@pytest.fixture
def voc_dir(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / voc_builder.VOC).write_bytes(fakes.tar(fakes.voc_members()))
    (source / voc_builder.SBD).write_bytes(fakes.tgz(fakes.sbd_members()))
    builder = voc_builder.Builder(
        source=str(source), splits=fakes.VOC_SPLITS, data_dir=tmp_path / 'prepared'
    )
    records.prepare(builder)
    return tmp_path / 'prepared'


def test_classic_voc(voc_dir, tmp_path):
    config = voc.get_config('classic,1,css_mix,seed=3,pretrained=')
    results = run(config, voc_dir, tmp_path / 'run')
    streams = results['streams']
    assert streams['labelled']['images'] == 1 and 'voc/full:train' in streams['labelled']['split']
    assert streams['unlabelled']['images'] == 4  # the rest of train and extra
    ids = splits.subsets(configs.finalise(config).data)
    assert set(ids['labelled']) | set(ids['unlabelled']) == {
        *fakes.VOC_IDS['train'],
        *fakes.VOC_IDS['extra'],
    }
    assert len(results['iou']) == 21 and 0 <= results['miou'] <= 1
    assert '512x512' in results['protocol'] and results['split'] == 'voc/full:val'
    assert all(np.isfinite(r['loss']) for r in metrics.read(tmp_path / 'run'))


def test_blender_voc_from_a_list(voc_dir, tmp_path):
    ids = (fakes.VOC_IDS['train'][0], fakes.VOC_IDS['extra'][1])
    (tmp_path / 'labeled.txt').write_text('\n'.join(ids))
    config = voc.get_config('blender,supervised,pretrained=')
    config.data.streams.labelled.ids_file = str(tmp_path / 'labeled.txt')
    results = run(config, voc_dir, tmp_path / 'run')
    assert results['streams'].keys() == {'labelled'}
    described = results['streams']['labelled']['split']
    assert described.endswith('/labeled.txt, 2 of 5 images (1 of train, 1 of extra)')
    assert set(splits.subsets(configs.finalise(config).data)['labelled']) == set(ids)


def test_cityscapes(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    images, labels = fakes.cityscapes_members()
    (source / 'leftImg8bit_trainvaltest.zip').write_bytes(fakes.zipped(images))
    (source / 'gtFine_trainvaltest.zip').write_bytes(fakes.zipped(labels))
    place = {'source': str(source), 'splits': fakes.CITYSCAPES_SPLITS}
    records.prepare(Cityscapes(**place, data_dir=tmp_path / 'prepared'))
    config = cityscapes.get_config('2,css_cross,split=random,pretrained=')
    results = run(config, tmp_path / 'prepared', tmp_path / 'run')
    assert 'sliding windows of 32x32 at stride 22x22' in results['protocol']
    assert results['streams']['unlabelled']['images'] == 1 and len(results['iou']) == 19
    stored = json.loads((tmp_path / 'run' / RESULTS).read_text())
    assert stored['eval']['protocol'] == 'sliding'
