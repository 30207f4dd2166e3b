"""Easiness against the authors' program, and where its shares would divide by zero."""

from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import hardness, pseudo_labels

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'imas_ops.npz')
CASES = ('random', 'cases')

# Jitted: a compiled whole costs less than dozens of small programs.
confusion = jax.jit(hardness.confusion, static_argnums=2)
weighted_iou = jax.jit(hardness.weighted_iou, static_argnums=1)
easiness = jax.jit(hardness.easiness, static_argnums=3)
easiness_of_maps = jax.jit(hardness.easiness_of_maps, static_argnums=(4, 6))


def golden(case, name):
    return GOLDEN[f'easiness_{case}_{name}']


def close(ours, theirs):
    assert np.max(np.abs(ours - theirs)) <= 1e-5 * np.max(np.abs(theirs))


def one_hot(labels, classes, sure):
    """Logits whose arg-max are the labels, and whose softmax is near 1 where `sure`, else small."""
    return np.where(sure, 50, 0.1)[..., None] * np.eye(classes, dtype=np.float32)[labels]


@pytest.mark.parametrize('case', CASES)
def test_confusion_is_the_authors(case):
    student, teacher = golden(case, 'student_logits'), golden(case, 'teacher_logits')
    counts = confusion(student.argmax(-1), teacher.argmax(-1), student.shape[-1])
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts, golden(case, 'confusion'))
    np.testing.assert_array_equal(counts.sum(2), golden(case, 'count_teacher'))
    np.testing.assert_array_equal(counts.sum(1), golden(case, 'count_student'))


@pytest.mark.parametrize('ignore_background', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_weighted_iou_is_the_authors(case, ignore_background):
    teacher, student = weighted_iou(golden(case, 'confusion'), ignore_background)
    close(teacher, golden(case, 'wiou_teacher')[int(ignore_background)])
    close(student, golden(case, 'wiou_student')[int(ignore_background)])


@pytest.mark.parametrize('case', CASES)
def test_easiness_is_the_authors(case):
    @jax.jit
    def found(student, teacher, threshold):
        """Easiness in both ways, with class 0 and without, and the shares of confident pixels."""
        maps = [pseudo_labels.from_logits(x, x.shape[1:3]) for x in (student, teacher)]
        rest = student.shape[-1], threshold
        whole = [hardness.easiness(student, teacher, threshold, b) for b in (False, True)]
        parts = [hardness.easiness_of_maps(*maps[0], *maps[1], *rest, b) for b in (False, True)]
        return whole, parts, [(sure >= threshold).mean((1, 2)) for _, sure in maps]

    logits = golden(case, 'student_logits'), golden(case, 'teacher_logits')
    for i, threshold in enumerate(golden(case, 'thresholds')):
        whole, parts, shares = found(*logits, threshold)
        close(np.array(whole), golden(case, 'easiness')[i])
        close(np.array(parts), golden(case, 'easiness')[i])
        close(shares[0], golden(case, 'rho_student')[i])
        close(shares[1], golden(case, 'rho_teacher')[i])


@pytest.mark.parametrize('case', CASES)
def test_the_variants_that_are_off_are_the_authors(case):
    @jax.jit
    def found(student, teacher, threshold):
        args = student, teacher, threshold
        divided = [hardness.easiness(*args, b, normalised=True) for b in (False, True)]
        return divided, hardness.easiness(*args, True, class_weights=False)

    logits = golden(case, 'student_logits'), golden(case, 'teacher_logits')
    for i, threshold in enumerate(golden(case, 'thresholds')):
        divided, unweighted = found(*logits, threshold)
        theirs = golden(case, 'easiness_ratio')[i]
        nobody = np.isnan(theirs)  # no pixel is confident: theirs divides by 0
        assert (np.array(divided)[nobody] == 0).all()
        close(np.array(divided)[~nobody], theirs[~nobody])
        close(unweighted, golden(case, 'easiness_unweighted')[i])


def test_pixels_without_a_label_do_not_count():
    student, teacher = np.array([[[0, 1, -1, 2]]]), np.array([[[0, -1, 1, 3]]])
    counts = np.asarray(confusion(student, teacher, 3))  # 3 is no class
    assert counts.sum() == 1 and counts[0, 0, 0] == 1


def test_confusion_is_of_each_image():
    labels = np.random.default_rng(0).integers(0, 5, (2, 3, 4, 6))
    counts = np.asarray(confusion(*labels, 5))
    for image in range(3):
        np.testing.assert_array_equal(counts[image : image + 1], confusion(*labels[:, [image]], 5))


@pytest.mark.parametrize('which', ['both', 'student', 'teacher'])
def test_all_background_is_hardest_where_it_is_ignored(which):
    labels = np.random.default_rng(0).integers(0, 3, (1, 6, 6))
    student = labels if which == 'teacher' else 0 * labels
    teacher = labels if which == 'student' else 0 * labels
    logits = [one_hot(x, 3, True) for x in (student, teacher)]
    assert easiness(*logits, 0.9, True) == 0
    kept = easiness(*logits, 0.9, False)
    assert kept == 1 if which == 'both' else 0 < kept < 0.5


def test_equal_networks_have_the_share_of_confident_pixels():
    labels = np.arange(36).reshape(1, 6, 6) % 4
    sure = labels != 2
    logits = one_hot(labels, 4, sure)
    np.testing.assert_allclose(easiness(logits, logits, 0.9, True), [0.75], rtol=1e-6)
    assert easiness(logits, logits, 0.9, False) == easiness(logits, logits, 0.9, True)


def test_no_confident_pixel_is_hardest():
    logits = one_hot(np.ones((2, 4, 4), int), 3, False)
    np.testing.assert_array_equal(easiness(logits, logits, 0.9, True), 0)


def test_the_threshold_is_inclusive():
    labels, sure = np.ones((1, 2, 2), int), np.float32([[[0.7, 0.7], [0.6, 0.6]]])
    assert easiness_of_maps(labels, sure, labels, sure, 2, 0.7, True) == 0.5


def test_it_runs_uncompiled():
    rng = np.random.default_rng(0)
    labels, sure = rng.integers(0, 3, (2, 2, 4, 5)), rng.random((2, 2, 4, 5), np.float32)
    maps = labels[0], sure[0], labels[1], sure[1]
    np.testing.assert_allclose(
        hardness.easiness_of_maps(*maps, 3, 0.5, True), easiness_of_maps(*maps, 3, 0.5, True), 1e-6
    )


def test_it_has_no_gradient():
    logits = golden('random', 'student_logits'), golden('random', 'teacher_logits')
    gradient = jax.jit(jax.grad(lambda x, y: hardness.easiness(x, y, 0.5, True).sum(), (0, 1)))
    for grad in gradient(*logits):
        np.testing.assert_array_equal(grad, 0)
