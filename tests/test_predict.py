"""Predictions of images of any size are those that were scored, in few compiled shapes."""

import json

import jax
import numpy as np
import pytest

from css_jax import evaluate, methods, models, predict
from css_jax.config import file as stored
from css_jax.data import geometry, sources
from css_jax.evaluation import sizes
from css_jax.methods import css, views
from css_jax.ops import inference, metrics
from css_jax.run import checkpoint
from tests import folders, predicted
from tests.predicted import image
from tests.small import small


@pytest.fixture(scope='module')
def run(tmp_path_factory, data_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', small)
        yield predicted.save(tmp_path_factory.mktemp('run'), data_dir)


@pytest.fixture(scope='module')
def predictor(run):
    return predict.load(run)


def changed(run, **values):
    """The run's configuration, scored in another way."""
    config = stored.read(run)
    config.eval.update(values)
    return config


def test_an_image_a_batch_and_a_list_give_the_same(predictor):
    shapes = [(40, 50), (64, 64), (40, 50), (1, 1), (1, 30), (70, 33), (40, 50)]
    images = [image(i, *shape) for i, shape in enumerate(shapes)]
    images.append(np.zeros((9, 9, 3), np.uint8))
    labels = predictor.predict(images)
    assert [x.shape for x in labels] == [x.shape[:2] for x in images]
    assert {x.dtype for x in labels} == {np.dtype(np.int32)}
    assert len(np.unique(np.concatenate([x.ravel() for x in labels]))) > 2
    for one, expected in zip(images, labels, strict=True):
        np.testing.assert_array_equal(predictor.predict(one), expected)
    batch = predictor.predict(np.stack([images[0], images[2]]))
    np.testing.assert_array_equal(batch, [labels[0], labels[2]])
    assert predictor.predict([]) == []


def test_few_shapes_are_compiled_and_each_once(run):
    predictor = predict.load(run)  # batches of 4; the split's images are 64x64
    program = predictor._program(predictor._whole, ('labels',))
    for count in (4, 1, 2, 3, 9):
        predictor.predict([image(i, 20 + i, 60 - i) for i in range(count)])
    assert program._cache_size() == 3  # 1, 2 and 4 images of 64x64
    predictor.predict([image(i, 65 + i, 100 + i) for i in range(4)])
    assert program._cache_size() == 4  # 128x128
    assert predictor._program(predictor._whole, ('labels',)) is program


def test_maps_are_those_of_probabilities_and_of_prototypes(predictor):
    images = [image(0, 50, 64), image(1, 64, 64)]
    every = predictor.predict(images, probabilities=True)
    maps = predictor.maps(images)
    for found, given in zip(every, maps, strict=True):
        assert found.dtype == np.float32 and found.shape == (*given.labels.shape, 7)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(found.argmax(-1), given.labels)
        np.testing.assert_allclose(found.max(-1), given.confidence, rtol=1e-5)
    ctx = methods.context(predictor.config)
    variables, memory = predictor._arrays

    @jax.jit
    def both(image):
        out = ctx.evaluate(variables, views.normalise(image[None], ctx))
        return css.both_spaces(out, memory, (64, 64), predictor.config)

    expected = both(images[1])[3][0]
    np.testing.assert_allclose(maps[1].similarity, expected, rtol=1e-4)
    assert maps[1].similarity.std() > 1e-3
    assert isinstance(predictor.maps(images[0]), predict.Maps)


@pytest.mark.parametrize(
    'values',
    [
        {'pad_to': (72, 80)},
        {'protocol': 'whole_exact', 'scales': (0.5, 1.0)},
        {'protocol': 'sliding', 'window': (40, 48), 'flip': True},
        {'protocol': 'resized', 'pad_to': (72, 80), 'window': (40, 48), 'flip': True},
    ],
    ids=str,
)
def test_predictions_are_what_was_scored(values, run, data_dir):
    scored = evaluate.evaluate(changed(run, **values), run)
    predictor = predict.load(run, config=changed(run, **values))
    source = sources.load('shapes', 'val', data_dir)
    labels = predictor.predict([geometry.decode_image(r['image']) for r in source.records])
    total = np.zeros((7, 7), np.int64)
    for found, record in zip(labels, source.records, strict=True):
        truth = geometry.decode_label(record['label'])
        np.add.at(total, (truth[truth != 255], found[truth != 255]), 1)
    assert metrics.scores(total)['miou'] == pytest.approx(scored['miou'], abs=1e-4)
    assert predictor.protocol == scored['protocol']
    if values.get('protocol') == 'resized':
        assert 'sum of logits over the mirror image' in scored['protocol']


def test_large_images_go_through_windows_as_by_sliding(run, predictor):
    """A strip at a time gives the mean over all windows of the training crop."""
    large = image(3, 75, 91)
    windows = predict.load(run)
    windows.sizes = predictor.sizes._replace(static=(16, 16), most_pixels=75 * 91 - 1)
    assert windows.sizes.of(75, 91) is None and windows.sizes.window == (32, 32)
    whole = predict.load(run, config=changed(run, protocol='sliding'))
    assert whole.sizes.of(75, 91) == (75, 91)
    expected = whole.predict(large, probabilities=True)
    found = windows.predict(large, probabilities=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    maps = windows.maps(large)
    np.testing.assert_array_equal(maps.labels, found.argmax(-1))
    np.testing.assert_allclose(maps.confidence, found.max(-1), rtol=1e-4)

    ctx, (variables, memory) = methods.context(predictor.config), windows._arrays

    @jax.jit
    def mean(images):
        near = lambda x: css.similarity(variables, memory, x, ctx)[..., None]  # noqa: E731
        return inference.windows_mean(near, views.normalise(images, ctx), (32, 32), (22, 22), 4)

    similarity = mean(large[None])
    np.testing.assert_allclose(maps.similarity, similarity[0, ..., 0], atol=1e-5)


def test_what_is_above_max_side_is_made_smaller_and_resized_back(run, predictor):
    large = image(4, 90, 120)
    smaller = predict.load(run, max_side=60)
    small_one = geometry.resize(large, (45, 60))
    maps = smaller.maps(large)
    assert maps.labels.shape == maps.similarity.shape == (90, 120)
    expected = predictor.predict(small_one)
    same = maps.labels[::2, ::2] == expected  # but where classes meet
    assert same.mean() > 0.85 and len(np.unique(expected)) > 1
    found = smaller.predict(large, probabilities=True)
    np.testing.assert_array_equal(found.argmax(-1), maps.labels)
    np.testing.assert_array_equal(smaller.predict(small_one), expected)  # as it is
    with pytest.raises(ValueError, match='max_side: got -1, expected pixels'):
        predict.load(run, max_side=-1)


def test_a_folder_s_images_were_made_smaller_and_predictions_know(tmp_path):
    noted = {'settings': ['', [], 0.2, 0, 96], 'depth': [10, 900]}
    folders.prepare(tmp_path, 'plain', val=1, train=1)
    assert sources.preparation('folder/plain', str(tmp_path)) == sources.Preparation()
    assert sources.preparation('shapes/64', str(tmp_path)) == sources.Preparation()
    assert sources.preparation('folder/none', str(tmp_path)) == sources.Preparation()
    (file,) = tmp_path.glob('folder/plain/*/metadata.json')
    file.write_text(json.dumps(json.loads(file.read_text()) | {'made_from': noted}))
    assert sources.preparation('folder/plain', str(tmp_path)) == (96, (10, 900))


def test_the_most_pixels_follow_from_the_classes():
    assert sizes.most_pixels(21, 'whole') == 2**32 // (4 * (3 * 21 + 640)) == 1_527_371
    assert sizes.most_pixels(7, 'whole_exact', attention=True) == 1024**2
    many = sizes.most_pixels(150, 'whole', attention=True)
    assert many == sizes.most_pixels(150, 'whole') < 1024**2
    assert sizes.most_pixels(19, 'sliding_cut') > 2048 * 1024  # Cityscapes, as it is scored
    rule = sizes.Sizes('whole', (512, 512), (321, 321), 3_000_000, 0, 16)
    assert rule.of(375, 500) == (512, 512) and rule.at_once((512, 512)) == 16
    assert rule.of(600, 500) == (640, 512) and rule.at_once((640, 512)) == 9
    assert rule.of(4000, 5000) is None and rule.at_once(None) == 1
    assert rule._replace(protocol='sliding').at_once((512, 512)) == 1
    resized = rule._replace(protocol='resized')
    assert resized.made_smaller(4000, 5000) == (1549, 1936)
    assert resized.of(1549, 1936) == (1600, 1984)  # padding makes it no smaller once more
    assert rule._replace(max_side=1000).made_smaller(4000, 5000) == (800, 1000)
    assert rule._replace(protocol='whole_exact').of(37, 41) == (37, 41)


def test_images_of_other_kinds_are_refused(predictor):
    with pytest.raises(ValueError, match=r'images: got float64 \(4, 4, 3\), expected uint8 RGB'):
        predictor.predict(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r'images\[1\]: got uint8 \(4, 4\), expected uint8 RGB'):
        predictor.maps([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)])
    with pytest.raises(ValueError, match=r'images: got uint8 \(0, 4, 3\)'):
        predictor.predict(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r'images: got uint8 \(0, 4, 4, 3\)'):
        predictor.predict(np.zeros((0, 4, 4, 3), np.uint8))


def test_a_run_that_is_trained_meanwhile_is_read(run, monkeypatch):
    """The checkpoint that was found first may be gone when it is read."""
    found, restore = iter([1, 3, 3]), checkpoint.restore_network

    def removed(workdir, step, *given):
        if step == 1:
            raise FileNotFoundError(step)
        return restore(workdir, step, *given)

    monkeypatch.setattr(checkpoint, 'find', lambda *_: next(found))
    monkeypatch.setattr(checkpoint, 'restore_network', removed)
    assert predict.load(run).step == 3


def test_without_its_images_a_run_predicts_and_says_how(run, tmp_path, caplog):
    config = stored.read(run)
    config.data.dir = str(tmp_path)

    def missing(*given):
        raise FileNotFoundError('not prepared')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, 'load', missing)
        lone = predict.load(run, 3, config=config)
    assert lone.sizes.static == (0, 0)
    assert 'padded to multiples of 64 pixels' in caplog.text and 'not prepared' in caplog.text
    assert lone.sizes.of(40, 50) == (64, 64)
    assert predict._class_names('folder/gone', str(tmp_path), 2) == ('class 0', 'class 1')
    assert 'folder/gone is not there: its classes are class 0' in caplog.text
    with pytest.raises(ValueError, match=r'seed: 0 there, 7 now'):
        config.seed = 7
        predict.load(run, config=config)
