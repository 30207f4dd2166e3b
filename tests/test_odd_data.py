"""Images of odd sizes, fewer than a batch, in as many classes as can be, and one damaged."""

import dataclasses
import logging
import sys

import numpy as np

from css_jax import config as configs
from css_jax import models, train
from css_jax.data import sources
from css_jax.run import folder as run_folder
from css_jax.run import metrics
from data_prep.folder import __main__ as command
from tests import tiny
from tests.folders import put
from tests.small import small

SIZES = [(1, 70), (70, 1), (1, 1), (40, 52), (9, 9), (2, 3)]
CLASSES = 255  # most of which occur nowhere that is scored


def test_odd_data_is_prepared_trained_on_and_scored(tmp_path, monkeypatch, caplog):
    source, rng = tmp_path / 'source', np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        put(source / f'images/{number}.png', rng.integers(0, 256, (*size, 3), np.uint8))
        mask = rng.integers(0, CLASSES, size).astype(np.uint8)
        put(source / f'masks/{number}.png', mask if number < 5 else np.full(size, 255, np.uint8))
    put(source / 'unlabelled/u.png', np.zeros((1, 3, 3), np.uint8))
    put(source / 'val.txt', '0\n1\n')
    put(source / 'classes.txt', '\n'.join(f'c{i}' for i in range(CLASSES)))
    arguments = ['folder', f'--source={source}', '--name=odd', f'--data_dir={tmp_path}']
    monkeypatch.setattr(sys, 'argv', arguments)
    command.main()

    load = sources.load

    def spoilt(dataset, split, data_dir):
        found = load(dataset, split, data_dir)
        records = [{**r, 'image': b'x'} if r['id'] == b'3' else r for r in found.records]
        return dataclasses.replace(found, records=records)

    monkeypatch.setattr(sources, 'load', spoilt)
    monkeypatch.setattr(models, 'build', small)
    config = tiny.get_config('supervised')
    config.steps, config.data.dir, config.data.unreadable = 2, str(tmp_path), 1
    config.data.streams.labelled = configs.stream('folder/odd', batch_size=4, crop=(32, 32))
    config.eval.dataset, config.eval.pad_to = 'folder/odd', (70, 70)
    caplog.set_level(logging.INFO, 'css_jax')
    results = train.train(config, tmp_path / 'run')
    assert results['streams'] == {'labelled': {
        'split': 'folder/odd:train, all 4 images', 'images': 4, 'unreadable': 1,
    }}  # fmt: skip
    assert 'note: 1 of the 4 images of stream labelled could not be read' in caplog.text
    config.data.unreadable = 0
    run_folder.match(configs.finalise(config), tmp_path / 'run')  # may differ where a run resumes
    assert 0 <= results['miou'] <= 1 and len(results['iou']) == CLASSES
    records = [record for record in metrics.read(tmp_path / 'run') if 'loss' in record]
    assert len(records) == 2 and np.isfinite([record['loss'] for record in records]).all()
