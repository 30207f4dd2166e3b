"""Every protocol of an evaluation, on a cheap network held to plain loops over images."""

import functools
import json
import logging

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods
from css_jax.data import geometry, sources
from css_jax.evaluation import evaluator as evaluators
from css_jax.evaluation import protocols, results, tables
from css_jax.methods import Evaluation, Method, views
from css_jax.methods.method import More
from css_jax.ops import resize
from css_jax.state import Variables
from tests import tiny

SIZES = [(20, 33), (24, 24), (20, 33), (20, 33), (17, 40)]


def png(array):
    return cv2.imencode('.png', array)[1].tobytes()


def toy_predict(variables, images, ctx):
    """Logits of a pixel's colour, its upper left neighbours' and its place in the image."""
    height, width = images.shape[1:3]
    place = jnp.linspace(-1, 1, height)[:, None] * jnp.linspace(0, 1, width)
    seen = images + jnp.roll(images, 1, 1) - 0.5 * jnp.roll(images, 1, 2) + place[..., None]
    return jnp.tensordot(seen, variables.params['w'], 1) - ctx.config.data.mean[0]


def sides(pair):
    return f'{pair[0]}x{pair[1]}'


def toy_method(predict=toy_predict, classes=7, **more):
    """A method of which only the evaluation is there."""

    def evaluations(config):
        c = config.eval
        return {'toy': Evaluation(c.dataset, c.split, classes, predict, c.network, **more)}

    return Method(
        streams={'labelled': 'mask'},
        outputs=lambda config: {'logits': 7},
        targets=None,
        loss=None,
        evaluations=evaluations,
    )


def opened(config):
    """The evaluator of its one evaluation."""
    return evaluators.evaluators(config)['toy']


@pytest.fixture
def toy(monkeypatch, data_dir):
    """A function of keys of `eval` to a finalised configuration of the cheap network."""
    monkeypatch.setitem(methods.METHODS, 'toy', toy_method())

    def make(seed=0, **keys):
        config = tiny.get_config()
        config.method, config.data.dir, config.seed = 'toy', data_dir, seed
        config.eval.update(keys)
        return configs.finalise(config)

    return make


@pytest.fixture(scope='module')
def weights():
    w = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    return Variables({'w': jnp.asarray(w)}, {})


def mixed_source():
    """Five noisy images of three sizes, as if prepared; void in every upper left corner."""
    rng = np.random.default_rng(0)
    records, pixels = [], []
    for size in SIZES:
        label = rng.integers(0, 7, size, np.uint8)
        label[:5, :5] = 255
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        records.append({'image': png(image), 'label': png(label)})
        pixels.append(np.bincount(label.ravel(), minlength=256)[:7])
    return sources.Source(
        dataset='mixed/x',
        split='val',
        records=records,
        ids=tuple(map(str, range(len(SIZES)))),
        sizes=np.array(SIZES),
        pixels=np.array(pixels),
        class_names=sources.class_names('shapes'),
    )


@pytest.fixture
def mixed(monkeypatch):
    """What is evaluated instead of `shapes`."""
    source = mixed_source()
    monkeypatch.setattr(sources, 'load', lambda *_: source)
    return source


def matrix(evaluator, variables, monkeypatch):
    """The confusion matrix behind the scores, [7, 7] int64, and the scores."""
    seen = []
    scores = evaluator._scores
    monkeypatch.setattr(evaluator, '_scores', lambda m: seen.append(np.asarray(m)) or scores(m))
    values = evaluator(variables)
    monkeypatch.setattr(evaluator, '_scores', scores)
    return seen[0], values


def by_hand(config, source, weights, pad=(0, 0)):
    """Confusion matrix of whole images, one after the other, in numpy."""
    predict = jax.jit(functools.partial(toy_predict, ctx=methods.context(config)))
    total = np.zeros((7, 7), np.int64)
    for record in source.records:
        image = geometry.decode_image(record['image'])
        label = geometry.decode_label(record['label'])
        down, right = (max(0, p - s) for p, s in zip(pad, label.shape, strict=True))
        image = np.pad(image, ((0, down), (0, right), (0, 0)), 'reflect')
        x = (image / 255 - config.data.mean) / config.data.std
        logits = np.asarray(predict(weights, x[None].astype(np.float32)))[0]
        predicted = logits[: label.shape[0], : label.shape[1]].argmax(-1)
        np.add.at(total, (label[label != 255], predicted[label != 255]), 1)
    return total


def test_whole_exact_equals_a_loop_over_images(toy, mixed, weights, monkeypatch):
    expected = by_hand(toy(), mixed, weights)
    assert expected.sum() == mixed.pixels.sum()
    for batch_size in (1, 50):  # 1 is made 2, as there are two devices
        config = toy(protocol='whole_exact', batch_size=batch_size)
        got, _ = matrix(opened(config), weights, monkeypatch)
        np.testing.assert_array_equal(got, expected)


def test_padding_changes_what_is_seen_but_never_counts(toy, mixed, weights, monkeypatch):
    evaluator = opened(toy(protocol='whole', pad_to=(30, 48)))
    padded, _ = matrix(evaluator, weights, monkeypatch)
    np.testing.assert_array_equal(padded, by_hand(toy(), mixed, weights, (30, 48)))
    np.testing.assert_array_equal(padded.sum(1), mixed.pixels.sum(0))
    assert (padded != by_hand(toy(), mixed, weights)).any()
    assert '30x48' in evaluator.protocol
    with pytest.raises(ValueError, match=r"eval.pad_to: got \(24, 33\).*\('4' has"):
        opened(toy(protocol='whole', pad_to=(24, 33)))


def test_one_window_over_the_image_is_the_whole_image(toy, data_dir, weights):
    def scores(**keys):
        return opened(toy(batch_size=1, **keys))(weights)

    whole = scores(protocol='whole_exact')
    assert scores(protocol='sliding', window=(64, 64)) == whole
    larger = scores(protocol='sliding', window=(80, 70))
    padded = scores(protocol='whole', pad_to=(80, 70))
    assert larger['iou'] == padded['iou'] != whole['iou']
    assert larger['loss'] == pytest.approx(padded['loss'], rel=1e-6)  # summed in another order
    assert scores(protocol='sliding')['iou'] != larger['iou']  # (0, 0): of the crop, 32x32


@pytest.mark.parametrize('cut_off', [False, True])
def test_sliding_over_mixed_sizes_equals_a_loop(toy, mixed, weights, monkeypatch, cut_off):
    window = (14, 16) if cut_off else (12, 15)
    stride = (9, 10) if cut_off else (8, 10)
    config = toy(protocol='sliding_cut' if cut_off else 'sliding', window=window, batch_size=4)
    ctx = methods.context(config)
    probabilities = jax.jit(lambda x: jax.nn.softmax(toy_predict(weights, x, ctx)[0]))
    expected = np.zeros((7, 7), np.int64)
    for record in mixed.records:
        image = geometry.decode_image(record['image'])
        label = geometry.decode_label(record['label'])
        x = ((image / 255 - config.data.mean) / config.data.std).astype(np.float32)
        total = np.zeros((*label.shape, 7))
        axes = []
        for length, part, step in zip(label.shape, window, stride, strict=True):
            begins = range(0, length, step)
            axes.append(begins if cut_off else {min(begin, length - part) for begin in begins})
        for top in axes[0]:
            for left in axes[1]:
                region = np.s_[top : top + window[0], left : left + window[1]]
                total[region] += np.asarray(probabilities(x[region][None]))
        # argmax needs no division by the number of windows over a pixel
        np.add.at(expected, (label[label != 255], total.argmax(-1)[label != 255]), 1)
    evaluator = opened(config)
    got, _ = matrix(evaluator, weights, monkeypatch)
    np.testing.assert_array_equal(got, expected)
    border = ' cut off at the border,' if cut_off else ','
    assert f'{sides(window)} at stride {sides(stride)}{border} mean' in evaluator.protocol


def test_a_random_crop_is_another_score_and_always_the_same(toy, weights, monkeypatch):
    keys = {'protocol': 'random_crop', 'window': (32, 48)}
    got, scores = matrix(opened(toy(**keys)), weights, monkeypatch)
    assert 0.8 * 10 * 32 * 48 < got.sum() <= 10 * 32 * 48  # a part of each image, less void
    assert scores == opened(toy(seed=5, **keys))(weights)
    assert scores['miou'] != opened(toy())(weights)['miou']


def test_resized_images_equal_a_loop_over_them(toy, mixed, weights, monkeypatch):
    keys = {'window': (16, 18), 'scales': (1.0, 0.5), 'flip': True, 'pad_to': (24, 40)}
    config = toy(protocol='resized', batch_size=2, **keys)
    ctx, expected = methods.context(config), np.zeros((7, 7), np.int64)

    @functools.partial(jax.jit, static_argnums=1)
    def predict(x, size):
        whole, total = resize.half_pixel(x, (16, 18)), 0.0
        for view in (whole, resize.half_pixel(whole, (8, 9))):
            for mirror in (slice(None), slice(None, None, -1)):
                logits = toy_predict(weights, view[:, :, mirror], ctx)
                total += resize.half_pixel(logits, (16, 18))[:, :, mirror]
        return resize.half_pixel(total, size)[0].argmax(-1)

    for record in mixed.records:
        image = geometry.decode_image(record['image'])
        label = geometry.decode_label(record['label'])
        x = ((image / 255 - config.data.mean) / config.data.std).astype(np.float32)
        predicted = np.asarray(predict(x[None], label.shape))
        np.add.at(expected, (label[label != 255], predicted[label != 255]), 1)
    evaluator = opened(config)
    got, _ = matrix(evaluator, weights, monkeypatch)
    assert np.abs(got - expected).sum() <= 4  # of 3261 pixels: two where two classes tie
    assert (
        'image resized to 16x18 whatever its aspect, logits resized back, sum of logits over '
        'scales 1.0, 0.5 and the mirror image, void' in evaluator.protocol
    )


def whole_images(sizes, shape):
    """Mask of what is no padding, [B, H, W]."""
    rows, columns = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    return (rows < sizes[:, :1, None]) & (columns < sizes[:, 1:, None])


def toy_measures(variables, seen, ctx):
    inside = whole_images(seen.sizes, seen.labels.shape[1:])
    red = jnp.where(inside, seen.images[..., 0], 0.0).sum((1, 2))
    possible = jnp.where(seen.classes[:, None, None], seen.logits, -jnp.inf).argmax(-1)
    known = seen.labels >= 0
    return {
        'classes': (seen.classes & seen.counted[:, None]).sum(0),
        'red': jnp.where(seen.counted, red, 0.0).sum(),
        'hits': (known & (possible == seen.labels)).sum(),
        'pixels': known.sum(),
        'images': seen.counted.sum(),
    }


def toy_scores(sums):
    assert sums['classes'].dtype == np.int64 and sums['red'].dtype == np.float64
    return {
        'hits': sums['hits'] / sums['pixels'],
        'classes': sums['classes'],
        'red': sums['red'] / (sums['pixels'] + sums['images'] * 25),
        'images': int(sums['images']),
        'nothing': float('nan'),
    }


@pytest.mark.parametrize(
    'keys',
    [
        {'protocol': 'whole', 'pad_to': (24, 40), 'batch_size': 4},
        {'protocol': 'whole_exact', 'batch_size': 2},
    ],
)
def test_more_scores_are_of_every_image_once(toy, mixed, weights, monkeypatch, keys):
    """Of two devices, of batches that are filled up, and of a network with more classes."""

    def nine(variables, images, ctx):  # the last two classes are in no image
        logits = toy_predict(variables, images, ctx)
        return jnp.pad(logits, ((0, 0), (0, 0), (0, 0), (0, 2)), constant_values=99.0)

    made = toy_method(nine, 9, more=More(toy_measures, toy_scores))
    monkeypatch.setitem(methods.METHODS, 'toy', made)
    config = toy(**keys)
    evaluator = opened(config)
    evaluator.check(jax.eval_shape(lambda: weights))
    scores = evaluator(weights)
    reds = [geometry.decode_image(record['image'])[..., 0] / 255 for record in mixed.records]
    red = np.mean(np.concatenate([red.ravel() for red in reds]) - config.data.mean[0])
    assert scores['miou'] == 0 and scores['more']['images'] == len(SIZES)
    assert scores['more']['red'] == pytest.approx(red / config.data.std[0], abs=1e-5)
    assert scores['more']['classes'] == [*(mixed.pixels > 0).sum(0).tolist(), 0, 0]
    assert scores['more']['nothing'] is None
    monkeypatch.setitem(methods.METHODS, 'toy', toy_method())
    exact = np.trace(by_hand(toy(), mixed, weights, keys.get('pad_to', (0, 0))))
    assert scores['more']['hits'] == pytest.approx(exact / mixed.pixels.sum(), abs=1e-9)
    assert json.loads(json.dumps(scores)) == scores


def test_more_scores_that_cannot_be_computed_are_named_before_training(toy, monkeypatch, weights):
    shapes = {'teacher': jax.eval_shape(lambda: weights)}
    for more, answer in (
        (More(toy_measures, lambda sums: {'x': sums['y']}), "be computed: KeyError: 'y'"),
        (More(lambda *_: 1 / 0, toy_scores), 'be computed: ZeroDivisionError'),
        (More(toy_measures, lambda sums: {'miou': 0.5}), "more scores of the name 'miou'"),
    ):
        monkeypatch.setitem(methods.METHODS, 'toy', toy_method(more=more))
        config = toy()
        every = evaluators.evaluators(config)
        with pytest.raises(ValueError, match=answer):
            evaluators.check(config, every, shapes)


def test_numbers_are_shown_in_percent_where_they_are_fractions():
    more = {'ap': 0.5, 'images': 3, 'loss': 2.34567, 'none': None, 'each': [0.25, None, 1]}
    assert tables.more_lines(more) == [
        'ap: 50.00', 'images: 3', 'loss: 2.346', 'none: -', 'each: 25.00, -, 1',
    ]  # fmt: skip
    result = {'evaluations': {'a': {'more': more}, 'b': {}}}
    numbers = results.numbers_of_all(result)
    assert numbers == {'a/ap': 0.5, 'a/images': 3, 'a/loss': 2.34567, 'a/none': None}
    assert '| a/ap     | 50.00 |   - |' in tables.more_table({'one': numbers, 'two': {}})


def test_flip_and_scales_change_the_score_and_are_named(toy, weights):
    plain = opened(toy())
    scores = {
        name: opened(toy(**keys))
        for name, keys in {
            'flip': {'flip': True},
            'scales': {'scales': (0.5, 1.0, 1.5)},
            'both': {'flip': True, 'scales': (0.5, 1.0), 'protocol': 'sliding'},
            'cut': {'flip': True, 'scales': (0.5, 1.0), 'protocol': 'sliding_cut'},
        }.items()
    }
    losses = {round(evaluator(weights)['loss'], 5) for evaluator in (plain, *scores.values())}
    assert len(losses) == 5
    assert scores['flip'].protocol.count('mean probability over the mirror image') == 1
    assert 'mean probability over scales 0.5, 1.0, 1.5' in scores['scales'].protocol
    assert 'scales' not in plain.protocol and 'mirror' not in plain.protocol


def test_the_plain_path_is_the_network_bit_for_bit(toy, weights):
    config = toy()
    ctx = methods.context(config)
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3), np.uint8)
    expected = jax.jit(lambda v, x: toy_predict(v, views.normalise(x, ctx), ctx))
    got = jax.jit(protocols.prediction(config, ctx, toy_predict, (32, 32)))(weights, images)
    np.testing.assert_array_equal(got, expected(weights, images))


def test_a_class_that_is_nowhere_is_left_out(toy, mixed, monkeypatch, capsys, tmp_path):
    """Images of class 0 alone and one that is all void, of which 0 and 1 are predicted."""
    for record, size in zip(mixed.records, SIZES, strict=True):
        record['label'] = png(np.zeros(size, np.uint8))
    mixed.records[1]['label'] = png(np.full(SIZES[1], 255, np.uint8))
    two = Variables({'w': jnp.zeros((3, 7)).at[:, 0].set(1.0).at[:, 2:].set(jnp.nan)}, {})
    config = toy(protocol='whole_exact')

    def first_two(variables, images, ctx):
        logits = toy_predict(variables, images, ctx)
        return jnp.where(jnp.arange(7) < 2, logits, -1e9)

    monkeypatch.setitem(methods.METHODS, 'toy', toy_method(first_two))
    evaluator = opened(config)
    got, scores = matrix(evaluator, two, monkeypatch)
    assert got.sum() == sum(h * w for i, (h, w) in enumerate(SIZES) if i != 1)
    assert scores['iou'][2:] == [None] * 5 and scores['iou'][1] == 0
    assert scores['miou'] == pytest.approx(scores['iou'][0] / 2)
    every = {'toy': evaluator}
    results.report(tmp_path, config, every, {'toy': scores}, 1, {'split_hash': 'x'}, None)
    assert capsys.readouterr().out.count('     - |') == 5
    assert list(json.loads((tmp_path / results.RESULTS).read_text())['iou'].values())[2] is None


def test_a_long_evaluation_says_how_long(toy, mixed, weights, monkeypatch, caplog):
    caplog.set_level(logging.INFO, 'css_jax')
    opened(toy(protocol='whole', pad_to=(64, 64), batch_size=1))(weights)
    assert caplog.messages == []
    monkeypatch.setattr(evaluators, '_QUIET', 0.0)
    evaluator = opened(toy(protocol='whole_exact', batch_size=1))
    assert 'mixed/x:val: 5 images of 3 sizes, 3 compilations' in caplog.messages[0]
    evaluator(weights)
    shares = [message.split('%')[0] for message in caplog.messages[1:]]
    # The tests have two devices, so that a batch is of two: four batches.
    assert shares == ['evaluated 50', 'evaluated 75']
    assert all('to go 00:0' in message for message in caplog.messages[1:])


def test_the_windows_are_of_the_first_stream_s_crop(toy):
    assert protocols.window(toy(), 'shapes') == (32, 32)
    assert protocols.window(toy(window=(7, 9)), 'shapes') == (7, 9)


@pytest.mark.parametrize(
    ('keys', 'answer'),
    [
        ({'window': (0, 8)}, r'eval\.window: got \(0, 8\), expected \(height, width\)'),
        ({'window': (8,)}, r'eval\.window: got \(8,\)'),
        ({'scales': ()}, r'eval\.scales: got \(\), expected one or more factors above 0'),
        ({'scales': (1.0, 0.0)}, r'eval\.scales: got \(1\.0, 0\.0\)'),
        ({'protocol': 'slide'}, r"eval\.protocol: got 'slide', .*did you mean 'sliding'"),
        ({'network': 'ema'}, r"eval\.network: got 'ema', expected one of"),
    ],
)
def test_impossible_protocols_are_answered_in_words(toy, keys, answer):
    with pytest.raises(ValueError, match=answer):
        toy(**keys)


def test_results_are_named_by_what_differs_from_the_run(toy):
    run = toy()
    assert results.file_name(run, run) == 'results.json'
    assert results.file_name(run, run, 'best') == 'results_best.json'
    assert results.file_name(run, run, '300') == 'results_step300.json'
    assert results.file_name(toy(batch_size=1, every=3), run) == 'results.json'
    other = toy(dataset='shapes/64', flip=True, scales=(0.5, 1.0), network='student')
    assert results.file_name(other, run, 'best') == (
        'results_best_dataset=shapes-64_flip=True_scales=0.5,1.0_network=student.json'
    )
