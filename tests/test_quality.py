"""Pseudo-label quality: its arithmetic, and that the truth it reads never enters training."""

import json
import os

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, models, state, train
from css_jax.config import file
from css_jax.data import splits, streams
from css_jax.methods import css, views
from css_jax.modes import pseudo_labels
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from data_prep import records
from data_prep.camvid.builder import Builder
from tests import tiny
from tests.small import small

LABELLED = ('0', '3')
STEPS = 6


def prepare(folder, invert):
    """A dataset of 7 images; with `invert` the masks of the unlabelled ones are others."""
    rng = np.random.default_rng(0)
    counts = {'train': 7, 'val': 2, 'test': 1}
    for split, count in counts.items():
        for kind in ('images', 'labels'):
            (folder / 'source' / split / kind).mkdir(parents=True)
        for i in range(count):
            coarse = rng.integers(0, 11, (3, 4), np.uint8)
            label = np.kron(coarse, np.ones((12, 12), np.uint8))
            image = np.stack([label * 20, 255 - label * 20, rng.integers(0, 255, (36, 48))], -1)
            if invert and split == 'train' and str(i) not in LABELLED:
                label = 10 - label
            cv2.imwrite(str(folder / 'source' / split / 'images' / f'{i}.png'), image)
            cv2.imwrite(str(folder / 'source' / split / 'labels' / f'{i}.png'), label)
    builder = Builder(
        source=str(folder / 'source'), splits=counts, config='full', data_dir=folder / 'prepared'
    )
    records.prepare(builder)
    return str(folder / 'prepared')


def get_config(data_dir, ids_file, method='css_mix'):
    config = tiny.get_config(method)
    config.steps, config.checkpoint_every = STEPS, STEPS
    config.data.dir = data_dir
    config.data.streams.labelled.update({'dataset': 'camvid', 'count': 0, 'ids_file': ids_file})
    config.data.streams.unlabelled.dataset = 'camvid'
    config.eval.update({'dataset': 'camvid', 'split': 'val', 'batch_size': 2})
    return config


@pytest.fixture(scope='module', autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', small)
        yield


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The same run on true and on other masks of the unlabelled images."""
    folder = tmp_path_factory.mktemp('quality')
    ids_file = folder / 'labelled.txt'
    ids_file.write_text('\n'.join(LABELLED))
    workdirs = []
    for invert in (False, True):
        data_dir = prepare(folder / f'data{invert}', invert)
        workdirs.append(folder / f'run{invert}')
        train.train(get_config(data_dir, str(ids_file)), workdirs[-1])
    return workdirs


def test_the_truth_of_unlabelled_images_never_enters_training(runs):
    parts = ('student', 'teacher', 'memory')
    true, other = (checkpoint.restore_arrays(run, STEPS, parts) for run in runs)
    jax.tree.map(np.testing.assert_array_equal, true, other)
    results = [pseudo_labels.pseudo_labels(run_folder.load(run), run) for run in runs]
    assert results[0]['mix'] != results[1]['mix']  # while its measure does see it


def test_iou_and_coverage_are_of_the_labels_that_sampling_leaves(runs, capsys):
    config = run_folder.load(runs[0])
    config = configs.finalise(config)
    results = pseudo_labels.pseudo_labels(config, runs[0])
    table = capsys.readouterr().out
    assert json.loads((runs[0] / 'pseudo_labels.json').read_text()) == results
    assert (runs[0] / 'pseudo_labels.md').read_text() in table
    ids = splits.subsets(config.data)
    assert {key: value for key, value in results.items() if key not in pseudo_labels.KINDS} == {
        'step': STEPS,
        'split_hash': splits.fingerprint(ids),
        'images': 5,
        'delta_u': 0.2,
        'delta_w': 0.1,
        'tau_sim': 0.1,
    }

    ctx = methods.context(config)
    memory = checkpoint.restore_arrays(runs[0], STEPS, ['memory'])['memory']
    variables = checkpoint.restore_network(runs[0], STEPS, state.shapes(ctx))
    data = file.read(runs[0]).data
    data.streams.unlabelled.reads = 'mask'
    batches = streams.train_batches(data, seed=config.seed)
    rows = {kind: [] for kind in pseudo_labels.KINDS}
    truths = []
    for images in (4, 1):  # 5 unlabelled images in batches of 4
        batch = next(batches)['unlabelled']
        out, _ = ctx.train(variables, views.normalise(batch['image'], ctx))
        y_lgt, j_lgt, y_rep, _ = css.both_spaces(out, memory, (32, 32), config)
        *_, j_rep = css.both_spaces(out, memory, (32, 32), selective(config))
        left = {
            'logit': np.where(j_lgt >= 0.2, y_lgt, -1),
            'representation': np.where(j_rep >= 0.1, y_rep, -1),
            'mix': np.where((j_lgt >= 0.2) & (y_lgt == y_rep), y_lgt, -1),
        }
        truths.append(batch['label'][:images])
        for kind, labels in left.items():
            rows[kind].append(labels[:images])
    truth = np.concatenate(truths)
    for kind in pseudo_labels.KINDS:
        labels = np.concatenate(rows[kind])
        kept = (labels >= 0) & (truth != 255)
        np.testing.assert_allclose(results[kind]['coverage'], kept.sum() / (truth != 255).sum())
        for c in range(11):
            union = kept & ((labels == c) | (truth == c))
            iou = (kept & (labels == c) & (truth == c)).sum() / union.sum() if union.any() else None
            assert results[kind]['iou'][c] == pytest.approx(iou)
            true = truth == c
            covered = (kept & true).sum() / true.sum() if true.any() else None
            assert results[kind]['coverage_by_class'][c] == pytest.approx(covered)
    assert 0 < results['mix']['coverage'] < results['logit']['coverage']


def test_each_checkpoint_has_files_of_its_own(runs, monkeypatch):
    config = run_folder.load(runs[0])
    for name in ('pseudo_labels.json', 'pseudo_labels.md'):
        (runs[0] / name).write_text('of the last')
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda a, b: renamed.append(b) or replace(a, b))
    for which, name in ((str(STEPS), f'step{STEPS}'), ('best', 'best')):
        results = pseudo_labels.pseudo_labels(config, runs[0], which)
        paths = [runs[0] / f'pseudo_labels_{name}.{kind}' for kind in ('md', 'json')]
        assert json.loads(paths[1].read_text()) == results
        assert [path for path in renamed if path in paths] == paths  # whole or not at all
    for name in ('pseudo_labels.json', 'pseudo_labels.md'):
        assert (runs[0] / name).read_text() == 'of the last'


def test_the_labelled_images_are_not_read(runs, monkeypatch):
    decoded = []
    decode = streams._decode
    monkeypatch.setattr(
        streams, '_decode', lambda source, i, reads: decoded.append(i) or decode(source, i, reads)
    )
    pseudo_labels.pseudo_labels(run_folder.load(runs[0]), runs[0])
    ids = splits.load(run_folder.load(runs[0]).data)['unlabelled'].ids
    assert decoded and not {ids[i] for i in decoded} & set(LABELLED)


def selective(config):
    config = ConfigDict(config.to_dict())
    config.contrastive.similarity_temperature = 0.1
    return config


def test_a_method_of_one_space_is_refused(tmp_path):
    config = configs.finalise(tiny.get_config('cutmix'))
    run_folder.save(config, tmp_path)
    with pytest.raises(ValueError, match='got cutmix, expected one with a representation space'):
        pseudo_labels.pseudo_labels(config, tmp_path)
