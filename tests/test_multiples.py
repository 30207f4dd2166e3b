"""Images whose sides the network does not take: scored and predicted at the nearest multiples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import evaluate, methods, models, predict
from css_jax.data import geometry, sources
from css_jax.evaluation import protocols
from css_jax.methods import css, views
from css_jax.ops import inference, metrics, resize
from tests import predicted, tiny
from tests.dinov2_small import GOLDEN, network
from tests.predicted import image
from tests.small import Small
from tests.test_predict import changed


class Patches(Small):
    """The network of tests/small.py, which takes multiples of 14 alone."""

    def __call__(self, x, train=False, image_weights=None):
        if not self.is_initializing() and (x.shape[1] % 14 or x.shape[2] % 14):
            raise ValueError(f'images are {x.shape[1]}x{x.shape[2]}')
        return super().__call__(x, train, image_weights)


def patches(config, num_classes, outputs, axis_name):
    return Patches(tuple(outputs.items()), axis_name)


@pytest.fixture(scope='module', autouse=True)
def network_of_patches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', patches)
        yield


def test_predictions_and_iou_are_the_authors():
    golden, (module, variables) = np.load(GOLDEN), network()

    @jax.jit
    def labels(x):
        def logits(x):
            found = module.apply(variables, x)['logits']
            return resize.bilinear(found, x.shape[1:3])

        with jax.default_matmul_precision('highest'):
            return inference.at_multiple(logits, x, 14).argmax(-1)

    total = np.zeros((5, 5), np.int64)
    for number in range(3):
        found = np.asarray(labels(golden[f'eval_image{number}_nchw'].transpose(0, 2, 3, 1)))
        np.testing.assert_array_equal(found, golden[f'eval_prediction{number}'])
        truth = golden[f'eval_label{number}']
        np.add.at(total, (truth[truth != 255], found[truth != 255]), 1)
    scores = metrics.scores(total)
    np.testing.assert_allclose(100 * np.array(scores['iou']), golden['eval_iou'], rtol=1e-6)
    assert 100 * scores['miou'] == pytest.approx(float(golden['eval_miou']))


@pytest.mark.parametrize(
    ('size', 'seen'),
    [((28, 42), (28, 42)), ((34, 35), (28, 42)), ((36, 3), (42, 14)), ((375, 500), (378, 504))],
)
def test_sides_are_the_nearest_multiples_and_halves_are_rounded_up(size, seen):
    found = []

    def logits(x):
        found.append(x.shape[1:3])
        return x

    x = jax.eval_shape(
        lambda x: inference.at_multiple(logits, x, 14),
        jax.ShapeDtypeStruct((1, *size, 3), 'float32'),
    )
    assert found == [seen] and x.shape == (1, *size, 3)


def test_windows_of_cityscapes_are_unimatch_v2s():
    """Of 798 pixels, the last ones moved inside; each is a multiple of 14 already."""
    window = (798, 798)
    stride = inference.default_stride(window)
    assert stride == (532, 532)
    assert inference.starts(1024, 798, 532) == [0, 226]
    assert inference.starts(2048, 798, 532) == [0, 532, 1064, 1250]


@pytest.fixture(scope='module')
def run(tmp_path_factory, data_dir):
    return predicted.save(tmp_path_factory.mktemp('run'), data_dir, multiple=14)


def test_what_is_scored_is_what_is_predicted(run, data_dir):
    """The split's images are 64x64, which 14 does not divide; nor does it at half the size."""
    config = changed(run, protocol='whole_exact', scales=(0.5, 1.0))
    scored = evaluate.evaluate(config, run)
    assert scored['eval']['multiple'] == 14
    assert (
        'at its own size, sides resized to the nearest multiples of 14, logits back'
        in scored['protocol']
    )
    predictor = predict.load(run, config=config)
    source = sources.load('shapes', 'val', data_dir)
    labels = predictor.predict([geometry.decode_image(r['image']) for r in source.records])
    total = np.zeros((7, 7), np.int64)
    for found, record in zip(labels, source.records, strict=True):
        truth = geometry.decode_label(record['label'])
        np.add.at(total, (truth[truth != 255], found[truth != 255]), 1)
    assert metrics.scores(total)['miou'] == pytest.approx(scored['miou'], abs=1e-4)


@pytest.mark.parametrize('protocol', ['whole', 'resized', 'sliding', 'sliding_cut'])
def test_every_protocol_takes_images_of_any_size(run, protocol):
    config = configs.finalise(changed(run, protocol=protocol, window=(20, 30), scales=(0.75, 1.0)))
    ctx = methods.context(config)
    (evaluated,) = methods.METHODS[config.method].evaluations(config).values()
    predict_images = protocols.prediction(config, ctx, evaluated.predict, (20, 30))
    variables = jax.eval_shape(lambda: ctx.module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    shapes = methods.method.Variables(variables['params'], variables['batch_stats'])
    images = jax.ShapeDtypeStruct((1, 45, 61, 3), np.uint8)
    assert jax.eval_shape(predict_images, shapes, images).shape == (1, 45, 61, 7)


def test_a_folder_s_images_of_any_size_are_predicted_with_their_similarity(run):
    predictor = predict.load(run)
    shapes = [(40, 50), (64, 64), (1, 1), (70, 33)]
    maps = predictor.maps([image(i, *shape) for i, shape in enumerate(shapes)])
    assert [found.labels.shape for found in maps] == shapes
    assert [found.similarity.shape for found in maps] == shapes
    # A large one goes through windows of the training crop, each at its nearest multiples.
    large = image(3, 75, 91)
    windows = predict.load(run)
    windows.sizes = predictor.sizes._replace(static=(16, 16), most_pixels=75 * 91 - 1)
    whole = predict.load(run, config=changed(run, protocol='sliding'))
    found, expected = windows.maps(large), whole.maps(large)
    np.testing.assert_array_equal(found.labels, expected.labels)
    ctx, (variables, memory) = methods.context(predictor.config), windows._arrays
    near = functools.partial(css.similarity, variables, memory, ctx=ctx)

    @jax.jit
    def mean(images):
        def each(x):
            return inference.at_multiple(lambda x: near(x)[..., None], x, 14)

        return inference.windows_mean(each, views.normalise(images, ctx), (32, 32), (22, 22), 4)

    np.testing.assert_allclose(found.similarity, mean(large[None])[0, ..., 0], atol=1e-5)


# The configuration.


def configured(**changes):
    config = tiny.get_config('cutmix')
    config.model.update(family='dpt', backbone='dinov2_small')
    for stream in config.data.streams.values():
        stream.crop = (28, 42)
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return configs.finalise(config)


def test_the_multiple_is_the_patch_where_there_is_one():
    assert configured().eval.multiple == 14
    assert configured(eval__multiple=28).eval.multiple == 28
    assert configs.finalise(tiny.get_config()).eval.multiple == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'data__streams__unlabelled__crop': (32, 42)},
            r'^data.streams.unlabelled.crop: got \(32, 42\), expected multiples of 14 with '
            'model.backbone=dinov2_small, such as 28,42$',
        ),
        (
            {'data__streams__labelled__crop': (8, 9)},
            r'^data.streams.labelled.crop: got \(8, 9\), .* such as 14,14$',
        ),
        (
            {'eval__multiple': 1},
            '^eval.multiple: got 1, expected a multiple of 14 with model.backbone=dinov2_small$',
        ),
    ],
)
def test_other_sizes_are_refused_before_anything_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        configured(**changes)
