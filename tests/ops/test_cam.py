"""CAMs and the pseudo-labels from them, against the authors' program of CoSA."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import cam, metrics

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'cosa_ops.npz')

# Jitted: a compiled whole costs less than dozens of small programs.
pseudo_labels = jax.jit(cam.pseudo_labels, static_argnames=('shrink', 'ignore'))
segmentation_labels = jax.jit(cam.segmentation_labels)
from_cam = jax.jit(cam.from_cam)
masked = jax.jit(cam.masked)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def raws(kind):
    return [GOLDEN[f'merge_raw{i}_{kind}'] for i in range(3)]


@jax.jit
def merged(raws, last):
    return tuple(cam.normalise(cam.merge(x, (32, 32))) for x in (raws, last))


def test_merged_cams_are_the_authors():
    ours, of_last = merged(raws('cam'), raws('cam_aux')[2:])
    close(ours, GOLDEN['merge_cam'])
    close(of_last, GOLDEN['merge_cam_aux'])
    negative = ~GOLDEN['merge_cam'].any((0, 1, 2))
    assert negative.sum() == 1 and not np.asarray(ours)[..., negative].any()


def test_merged_logits_are_the_authors():
    ours = jax.jit(partial(cam.merge_logits, size=(32, 32)))(raws('seg'))
    close(ours, GOLDEN['merge_seg'])


@pytest.mark.parametrize('row', range(4))
def test_labels_from_cams_are_the_authors(row):
    low, high, shrink = GOLDEN['cpl_thresholds'][row]
    given = GOLDEN['cpl_cam'], GOLDEN['cpl_labels'], low, high, GOLDEN['cpl_boxes']
    ours = pseudo_labels(*given, shrink=int(shrink))
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, GOLDEN[f'cpl_mask{row}'])
    assert len(np.unique(ours)) > 3  # classes, background and no label all occur


def test_a_tie_is_background_and_absent_classes_are_not_given():
    values = np.zeros((1, 4, 4, 2), np.float32)
    values[0, 0, :, 0], values[0, 1, :, 0], values[0, 2, :, 0] = 0.5, 0.25, 0.75
    values[..., 1] = 1  # absent
    labels, box = np.float32([[1, 0]]), np.int32([[0, 4, 0, 3]])
    ours = pseudo_labels(values, labels, 0.25, 0.5, box, shrink=1, ignore=9)
    # 0.5 is no more than `high`, 0.25 no more than `low`; the last column is padding.
    np.testing.assert_array_equal(ours[0, :, 0], [9, 0, 1, 0])
    np.testing.assert_array_equal(ours[0, :, 3], 9)


def test_an_image_without_a_label_is_background():
    given = GOLDEN['cpl_cam'], 0 * GOLDEN['cpl_labels'], 0.25, 0.7, GOLDEN['cpl_boxes']
    ours = np.asarray(pseudo_labels(*given, shrink=2))
    np.testing.assert_array_equal(ours, np.where(cam.inside(given[-1], (32, 32)), 0, -1))
    assert not from_cam(given[0], given[1]).any()
    probabilities = segmentation_labels(GOLDEN['spl_seg'], given[1])
    np.testing.assert_array_equal(probabilities[..., 0], 1)


def test_labels_from_segmentation_are_the_authors():
    ours = segmentation_labels(GOLDEN['spl_seg'], GOLDEN['cpl_labels'])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, GOLDEN['spl_prob'], atol=1e-4)
    absent = np.broadcast_to(GOLDEN['cpl_labels'][:, None, None] == 0, ours[..., 1:].shape)
    assert not np.asarray(ours[..., 1:])[absent].any()


@pytest.mark.parametrize('name', ['plain', 'masked', 'cam'])
def test_evaluation_is_the_authors(name):
    logits, labels = GOLDEN['eval_logits'], GOLDEN['eval_labels']
    if name == 'cam':
        ours = from_cam(GOLDEN['eval_cam'], labels, float(GOLDEN['eval_bkg']))
    else:
        ours = (masked(logits, labels) if name == 'masked' else logits).argmax(-1)
    np.testing.assert_array_equal(ours, GOLDEN[f'eval_pred_{name}'])
    matrix = metrics.confusion(GOLDEN['eval_truth'].astype(np.int32), np.asarray(ours), 6)
    iou = metrics.scores(np.asarray(matrix))['iou']  # None where theirs is NaN
    np.testing.assert_allclose(np.array(iou, float), GOLDEN[f'eval_iou_{name}'], rtol=1e-6)


def test_the_threshold_of_a_cam_is_background():
    values = np.full((1, 1, 3, 2), 0.5, np.float32)
    values[0, 0, 1, 1], values[0, 0, 2, 0] = 0.6, 0.9
    np.testing.assert_array_equal(from_cam(values, np.float32([[0, 1]])), [[[0, 2, 0]]])


def test_the_largest_value_is_of_present_classes():
    values, labels = GOLDEN['cpl_cam'], GOLDEN['cpl_labels']
    expected = [x[..., has > 0].max(-1) for x, has in zip(values, labels, strict=True)]
    np.testing.assert_array_equal(jax.jit(cam.largest)(values, labels), expected)
