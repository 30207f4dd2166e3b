"""CoSA: whole runs, and what is refused."""

import shutil

import jax
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import models, state, train
from css_jax.data import sources
from css_jax.evaluation import results
from css_jax.methods import (
    cosa,
)
from css_jax.modes import preview, report, sweep
from css_jax.run import checkpoint, metrics
from data_prep import records
from data_prep.shapes import builder as shapes
from tests import folders
from tests.cosa_small import batch, five, tiny


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Folders of `shapes`; in the second the training masks are others, of the same classes."""
    drawn = shapes.Builder._draw

    def others(builder, split):
        for index, (name, image, label) in enumerate(drawn(builder, split)):
            if split == 'train':
                there = np.unique(label)
                label = np.random.default_rng(index).choice(there, label.shape).astype(np.uint8)
                label.flat[: len(there)] = there
            yield name, image, label

    found = []
    for masks in (drawn, others):
        folder = tmp_path_factory.mktemp('prepared')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shapes.Builder, '_draw', masks)
            records.prepare(shapes.Builder(data_dir=folder, splits={'train': 12, 'val': 5}))
        found.append(str(folder))
    return found


def run_config(data_dir):
    return tiny(
        data_dir=data_dir, steps=6, cosa__warmup_steps=3, cosa__thresholds='three',
        optimizer__learning_rate=0.01, checkpoint_every=3, eval__protocol='resized',
        eval__window=(32, 32), eval__flip=True, cosa__scales=(1.0,),
    )  # fmt: skip


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    """The folder of a short run, and what it returned."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', five())
        return folder, train.train(run_config(prepared[0]), folder)


def arrays(workdir):
    parts = ['student', 'teacher', 'memory', 'opt_state']
    return checkpoint.restore_arrays(workdir, checkpoint.find(str(workdir), 'last'), parts)


def test_a_run_resumed_in_its_warm_up_on_other_masks_ends_with_the_same_bits(
    prepared, trained, tmp_path, monkeypatch
):
    """The masks never reach training: only which classes are in an image."""
    monkeypatch.setattr(models, 'build', five())
    whole, written = trained
    one, other = (sources.load('shapes', 'train', folder) for folder in prepared)
    assert (one.classes == other.classes).all() and (one.pixels != other.pixels).any()
    assert one.records[0]['label'] != other.records[0]['label']
    broken = tmp_path / 'broken'
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / checkpoint.FOLDER / '6')
    (broken / results.RESULTS).unlink()
    assert checkpoint.find(str(broken), 'last') == 3
    assert train.train(run_config(prepared[1]), broken) == written
    jax.tree.map(np.testing.assert_array_equal, arrays(whole), arrays(broken))
    seen = [[(r['step'], r['loss']) for r in metrics.read(folder)] for folder in (whole, broken)]
    assert seen[0] == seen[1] and [at for at, _ in seen[0]] == [1, 2, 3, 4, 5, 6]
    thresholds = state.flat(arrays(whole)['memory'])
    assert len(thresholds) == 6 and any('threshold' in path for path in thresholds)


def test_a_run_classifies_first_and_is_scored(trained):
    whole, written = trained
    terms = [{k for k in r if k.startswith('loss_')} for r in metrics.read(whole)]
    classes = {'loss_class', 'loss_class_aux'}
    regions = {f'{kind}2seg_{r}' for kind in ('cam', 'aux') for r in ('background', 'foreground')}
    every = classes | {f'loss_{name}' for name in (*regions, 'seg2cam', 'energy')}
    assert terms == [classes, classes, classes, classes, every, every]
    more = written['more']
    names = [f'{kind}_{what}' for kind in ('cam', 'cam_aux')
             for what in ('miou', 'miou_best', 'threshold_best', 'miou_swept')]  # fmt: skip
    assert set(more) == {'miou_masked', 'classifier_map', *names}
    for kind in ('cam', 'cam_aux'):
        swept = more[f'{kind}_miou_swept']
        assert len(swept) == 19 and swept[9] == more[f'{kind}_miou']
        assert max(swept) == more[f'{kind}_miou_best']
        assert swept[round(20 * more[f'{kind}_threshold_best']) - 1] == max(swept)
    assert metrics.read(whole)[-1]['eval_miou_masked'] == pytest.approx(more['miou_masked'])


def test_the_other_modes_know_such_a_run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(models, 'build', five())
    whole, written = trained
    table = report.report(whole.parent, examples=1, html=False)
    row = next(line for line in table.splitlines() if line.startswith('| miou_masked'))
    assert f'{100 * written["more"]["miou_masked"]:.2f}' in row
    assert (whole.parent / report.PICTURE).stat().st_size > 1000
    config = configs.finalise(run_config(''))
    given = batch()
    soft, some = np.full((4, 4, 4, 7), 1 / 7), np.zeros((4, 32, 32))
    prepared = cosa.Targets(
        strong=np.zeros((4, 32, 32, 3)), present=None, counts={}, box=None, cam=some,
        cam_label=some.astype(int) - 1, cam_weight=some, aux_label=some.astype(int),
        aux_weight=some, segmentation=soft,
    )  # fmt: skip
    preview._picture(tmp_path / 'x.png', config, given, prepared)
    assert (tmp_path / 'x.png').stat().st_size > 1000
    # No table is of CoSA; those of others need methods that its file does not have.
    with pytest.raises(ValueError, match=r'^configs/cosa.py:baseline: expected one of') as caught:
        sweep.sweep(tmp_path / 'sweep', 6, config='configs/cosa.py:quickstart')
    assert '\n' not in str(caught.value) and not (tmp_path / 'sweep').exists()


# What is refused.


@pytest.mark.parametrize(
    ('argument', 'changes', 'message'),
    [
        (
            'quickstart,backbone=vit_tiny',
            {'data__streams__images__crop': (40, 48), 'model__output_stride': 16},
            r'data\.streams\.images\.crop: got \(40, 48\), expected multiples of 16, the side of a',
        ),
        ('', {'cosa__low': 0.8}, r'cosa\.low: got 0\.8, expected at most cosa\.high=0\.7'),
        ('', {'cosa__aux_low': 0.8}, r'cosa\.aux_low: got 0\.8, expected at most cosa\.aux_high'),
        (
            '',
            {'cosa__weighting': 'perplexity', 'cosa__thresholds': 'three'},
            r"cosa\.weighting: got 'perplexity' with cosa\.thresholds=three, expected",
        ),
        ('', {'model__family': 'deeplab'}, r"model\.family: got 'deeplab', expected 'largefov'"),
        ('', {'cosa__scales': (1.0, 0.2)}, r'cosa\.scales: got 0\.2 .*at least 8 pixels a side'),
        ('', {'cosa__scales': ()}, r'cosa\.scales: got \(\), expected one or more factors above'),
        ('', {'cosa__thresholds': 'tow'}, r"cosa\.thresholds: got 'tow'.* did you mean 'two'"),
        ('', {'augment__blur_sigma': (0.0, 1.0)}, r'augment\.blur_sigma: got \(0\.0, 1\.0\)'),
    ],
)
def test_values_that_make_no_sense_are_refused_in_one_line(argument, changes, message, tmp_path):
    config = tiny(argument, **changes)
    with pytest.raises(ValueError, match=f'^{message}') as caught:
        train.train(config, tmp_path / 'run')
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def test_a_dataset_of_background_alone_is_refused(tmp_path):
    folders.prepare(tmp_path, 'one', 1, train=4, val=2)
    config = tiny(f'folder:one,data.dir={tmp_path}', data_dir=str(tmp_path))
    message = r'num_classes: got 1 \(dataset folder/one\), expected at least 2'
    with pytest.raises(ValueError, match=message) as caught:
        train.train(config, tmp_path / 'run')
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()
