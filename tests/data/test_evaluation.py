"""Every image once, whatever its size, in batches of static shapes."""

import dataclasses

import cv2
import numpy as np
import pytest

from css_jax.data import evaluation, geometry, sources

SIZES = [(6, 9), (8, 5), (6, 9), (6, 9), (8, 5), (11, 4), (6, 9)]


@pytest.fixture
def mixed():
    """A source of seven images of three sizes; image i shows i everywhere, its label i % 3."""

    def png(array):
        return cv2.imencode('.png', array)[1].tobytes()

    arrays = [(np.full((*size, 3), i, np.uint8), np.full(size, i % 3, np.uint8))
              for i, size in enumerate(SIZES)]  # fmt: skip
    return sources.Source(
        dataset='mixed/x',
        split='val',
        records=[{'image': png(image), 'label': png(label)} for image, label in arrays],
        ids=tuple(f'image{i}' for i in range(len(SIZES))),
        sizes=np.array(SIZES),
        pixels=np.array([np.bincount(label.ravel(), minlength=3) for _, label in arrays]),
        class_names=('a', 'b', 'c'),
    )


def whole(source, size=(0, 0)):
    return evaluation.groups(source, 'whole', pad_to=size)


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_every_pixel_is_counted_once(data_dir, process_count):
    source = sources.load('shapes', 'val', data_dir)  # 10 images: the third batch holds 2
    images = whole(source, (70, 64))
    parts = [
        list(
            evaluation.eval_batches(
                source, images, batch_size=4, process_index=p, process_count=process_count
            )
        )
        for p in range(process_count)
    ]
    assert evaluation.batch_count(images, 4) == 3
    assert [len(part) for part in parts] == [3] * process_count
    labels = np.concatenate(
        [batch['label'] for blocks in zip(*parts, strict=True) for batch in blocks]
    )
    assert labels.shape == (12, 70, 64)
    counted = [np.bincount(label.ravel(), minlength=256)[:7] for label in labels]
    np.testing.assert_array_equal(counted[:10], source.pixels)
    assert (labels[10:] == 255).all()
    assert (labels[:, 64:] == 255).all()


def test_images_are_padded_by_reflection(data_dir):
    source = sources.load('shapes', 'val', data_dir)
    batches = evaluation.eval_batches(source, whole(source, (150, 70)), batch_size=2)
    original = geometry.decode_image(source.records[1]['image'])
    expected = np.pad(original, ((0, 150 - 64), (0, 6), (0, 0)), mode='reflect')
    np.testing.assert_array_equal(next(batches)['image'][1], expected)


@pytest.mark.parametrize('protocol', ['whole_exact', 'sliding', 'sliding_cut'])
def test_images_of_one_size_share_batches(mixed, protocol):
    images = evaluation.groups(mixed, protocol)
    assert images == {(6, 9): [0, 2, 3, 6], (8, 5): [1, 4], (11, 4): [5]}
    batches = list(evaluation.eval_batches(mixed, images, batch_size=3))
    shapes = [(3, 6, 9), (3, 6, 9), (3, 8, 5), (3, 11, 4)]  # each full, one shape a size
    assert [batch['label'].shape for batch in batches] == shapes
    assert evaluation.batch_count(images, 3) == 4
    shown = [int(image.max()) for batch in batches for image in batch['image']]
    assert shown == [0, 2, 3, 6, 0, 0, 1, 4, 0, 5, 0, 0]
    counted = [label[label != 255] for batch in batches for label in batch['label']]
    np.testing.assert_array_equal(
        np.bincount(np.concatenate(counted), minlength=3), mixed.pixels.sum(0)
    )


def test_whole_pads_mixed_sizes_to_one(mixed):
    images = whole(mixed, (11, 9))
    labels = np.concatenate(
        [batch['label'] for batch in evaluation.eval_batches(mixed, images, batch_size=4)]
    )
    assert labels.shape == (8, 11, 9)
    np.testing.assert_array_equal((labels != 255).sum((1, 2))[:7], mixed.pixels.sum(1))


def test_batches_tell_the_classes_and_sizes_of_the_images(mixed):
    tagged = dataclasses.replace(mixed, tags=np.arange(21).reshape(7, 3) % 2 == 0)
    for source, classes in ((mixed, mixed.pixels > 0), (tagged, tagged.tags)):
        images = evaluation.groups(source, 'resized', pad_to=(11, 9))
        assert images == {(11, 9): list(range(7))}
        batches = list(evaluation.eval_batches(source, images, batch_size=4))
        found = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        np.testing.assert_array_equal(found['classes'][:7], classes)
        assert found['classes'].dtype == bool and not found['classes'][7].any()
        assert found['size'].dtype == np.int32 and found['size'][:7].tolist() == list(
            map(list, SIZES)
        )
    crops = evaluation.groups(mixed, 'random_crop', window=(7, 7))
    batch = next(evaluation.eval_batches(mixed, crops, batch_size=7, crop=True))
    assert batch['size'].tolist() == [[6, 7], [7, 5], [6, 7], [6, 7], [7, 5], [7, 4], [6, 7]]


def test_a_random_crop_is_the_same_in_every_evaluation(data_dir):
    source = sources.load('shapes', 'val', data_dir)
    images = evaluation.groups(source, 'random_crop', window=(40, 80))
    assert list(images) == [(40, 80)]  # smaller than the images in height, larger in width
    first, again = (
        next(evaluation.eval_batches(source, images, batch_size=size, crop=True))
        for size in (10, 5)
    )
    np.testing.assert_array_equal(first['image'][:5], again['image'])
    assert (first['label'][:, :, 64:] == 255).all() and (first['label'][:, :, :64] != 255).any()
    tops = []
    for i in range(10):
        original = geometry.decode_label(source.records[i]['label'])
        matches = [
            top for top in range(25)
            if (original[top : top + 40] == first['label'][i, :, :64]).all()
        ]  # fmt: skip
        assert matches, f'image {i} is not a crop of itself'
        tops.append(matches[0])
    assert len(set(tops)) > 3


def test_bad_settings_are_named(data_dir, mixed):
    source = sources.load('shapes', 'val', data_dir)
    with pytest.raises(ValueError, match=r"got \(64, 63\).*'val_00000' has \(64, 64\)"):
        whole(source, (64, 63))
    with pytest.raises(ValueError, match=r"pad_to: got \(6, 9\).*'image1' has \(8, 5\)"):
        whole(mixed)  # the first image's size
    with pytest.raises(ValueError, match=r"eval.protocol: got 'exact', expected whole, "):
        evaluation.groups(source, 'exact')
    with pytest.raises(ValueError, match=r'eval.batch_size: got 3, expected a positive multiple'):
        evaluation.eval_batches(source, whole(source), batch_size=3, process_count=2)
    with pytest.raises(ValueError, match=r'process_index: got 2, expected 0 to .* 1'):
        evaluation.eval_batches(
            source, whole(source), batch_size=2, process_index=2, process_count=2
        )


def test_sizes_are_those_of_the_records(data_dir):
    source = sources.load('shapes', 'val', data_dir)
    wrong = dataclasses.replace(source, sizes=source.sizes[::-1])
    assert evaluation.eval_size(wrong, (0, 0)) == (64, 64)
    assert evaluation.example(source, 0)['image'].shape == (64, 64, 3)
