"""CoSA: what happens when, and what the networks see."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import config as configs
from css_jax import methods, models, parallel, state, step
from css_jax.methods import (
    cosa,
    cosa_cams,
    cosa_scores,
    cosa_thresholds,
)
from css_jax.models import largefov, vit
from css_jax.ops import color, magnitudes, mixture
from css_jax.state import Context, TrainState, Variables
from tests.cosa_numpy import resized
from tests.cosa_small import METHOD, batch, tiny

# What happens when.


def test_a_vision_transformer_in_the_warm_up(monkeypatch):
    """Its table stays, a head without a loss decays and is counted, its EMA follows at once."""

    def build(config, num_classes, outputs, axis_name):
        return largefov.LargeFOV(vit.ViT(12, 1, 2, 16, 2, -1), tuple(outputs.items()), width=0.1)

    monkeypatch.setattr(models, 'build', build)
    config = tiny('quickstart,backbone=vit_tiny', optimizer__learning_rate=0.01)
    config.update_from_flattened_dict(
        {'model.output_stride': 16, 'cosa.head_rate': 10.0, 'teacher.decay': 0.9994}
    )
    config = configs.finalise(config)
    (_, phase), _ = methods.phases(config)
    ctx, (tx, _) = methods.context(config), METHOD.optimizer(config)
    make = state.maker(METHOD, tx, ctx)

    @jax.jit
    def begun():
        start = make(np.uint32(0), {})
        return start, step.train_step(start, batch(), method=phase, optimizer=tx, ctx=ctx)

    start, (end, found) = begun()
    before, first = state.flat(start.student), state.flat(start.teacher)
    for path, array in first.items():
        same = np.array_equal(array, before[path])
        assert same == path.startswith('params/backbone/'), path

    assert {name for name in found if name.startswith('loss')} == {
        'loss', 'loss_class', 'loss_class_aux'
    }  # fmt: skip
    np.testing.assert_allclose(found['loss'], found['loss_class'] + found['loss_class_aux'], 1e-6)
    moved, followed = state.flat(end.student), state.flat(end.teacher)
    for path, array in before.items():
        if 'head_logits' in path:
            decayed = (1 - 10 * 0.01 * config.optimizer.weight_decay) * array
            np.testing.assert_allclose(moved[path], decayed, rtol=1e-6, err_msg=path)
        assert np.array_equal(moved[path], array) == path.endswith('pos_embed'), path
        mean = 0.9994 * first[path] + (1 - 0.9994) * moved[path]
        np.testing.assert_allclose(followed[path], mean, rtol=1e-5, atol=1e-7, err_msg=path)
    counts = {k: v for k, v in state.flat(end.opt_state).items() if k.endswith('count')}
    assert len(counts) >= 2 and set(map(int, counts.values())) == {1}


def test_the_warm_up_has_a_step_more_than_its_number():
    config = configs.finalise(tiny(cosa__warmup_steps=6))
    (until, phase), last = methods.phases(config)
    assert until == 7 and last == (40, METHOD)  # steps 0 to 6
    assert phase.weights(None, None) == {} and not METHOD.warnings(config, {})
    for steps in (40, 41):
        config = configs.finalise(tiny(cosa__warmup_steps=steps))
        assert [until for until, _ in methods.phases(config)] == [40, 40]
        (odd,) = METHOD.warnings(config, {})
        assert odd.startswith(f'cosa.warmup_steps={steps} of steps=40: ')
    config = configs.finalise(tiny(cosa__weighting='perplexity', cosa__warmup_steps=6))
    (odd,) = METHOD.warnings(config, {})
    assert 'one threshold, the mean of cosa.low and cosa.high' in odd


@pytest.mark.parametrize('thresholds', ['two', 'three'])
def test_thresholds_start_as_configured_and_settle_between_clusters(thresholds):
    config = configs.finalise(
        tiny(cosa__thresholds=thresholds, cosa__low=0.1, cosa__high=0.5, cosa__aux_high=0.95)
    )
    memory = METHOD.init_memory(config)
    for name, ends in {'cam': (0.1, 0.5), 'cam_aux': (0.25, 0.95)}.items():
        expected = ends if thresholds == 'three' else [np.mean(ends)]
        np.testing.assert_allclose(memory[name].thresholds, expected, rtol=1e-6)
        np.testing.assert_allclose(memory[name].counts.sum(1), 4 * 4 * 4, rtol=1e-6)
    values, clusters = (np.arange(mixture.BINS) + 0.5) / mixture.BINS, {}
    for name, means in {'cam': (0.3, 0.8), 'cam_aux': (0.15, 0.6)}.items():
        clusters[name] = sum(np.exp(-(((values - mean) / 0.04) ** 2) / 2) for mean in means)
    given = {name: jnp.float32(np.round(100 * x))[None] for name, x in clusters.items()}
    ctx = Context(None, config)

    @jax.jit
    def updated(memory, times):
        return jax.lax.fori_loop(
            0, times, lambda _, m: cosa_thresholds.update_memory(m, given, ctx), memory
        )

    once, often = updated(memory, 1), updated(memory, 603)
    for name, (low, high) in {'cam': (0.3, 0.8), 'cam_aux': (0.15, 0.6)}.items():
        moved = np.abs(once[name].thresholds - memory[name].thresholds)
        assert (moved <= 0.01).all()
        found = np.asarray(often[name].thresholds)
        assert low < found[0] < found[-1] + 1e-6 and found[-1] < high + 0.04, found
        assert often[name].place == 3
        np.testing.assert_array_equal(often[name].counts, np.tile(given[name], (100, 1)))


def test_one_threshold_is_the_mean():
    config = configs.finalise(tiny(cosa__weighting='perplexity', cosa__low=0.1, cosa__high=0.5))
    assert METHOD.init_memory(config) == {}
    np.testing.assert_allclose(cosa_thresholds._first(config, ('low', 'high')), [0.3], rtol=1e-6)


# What the networks see.


def keys(count):
    return parallel.Keys(jax.random.key(0), {'images': count}, 0)


def test_the_strong_view_is_one_of_nine_operations_at_one_of_nine_magnitudes(monkeypatch):
    def noted(images, chosen, magnitude):
        return jnp.broadcast_to(10 * chosen + magnitude, images.shape[::-1]).T.astype(jnp.uint8)

    monkeypatch.setattr(magnitudes, 'strong', noted)
    config = configs.finalise(tiny(cosa__strong_prob=0.75))
    view = cosa._strong(np.zeros((4000, 1, 1, 3), np.uint8), keys(4000), Context(None, config))
    code = 255 * (view[:, 0, 0] * np.array(config.data.std) + np.array(config.data.mean))
    code = np.round(np.asarray(code[:, 0])).astype(int)
    assert set(code % 10) == set(range(1, 10))
    expected = np.full(9, 0.75 / 9)
    expected[magnitudes.NAMES.index('identity')] += 0.25
    shares = np.bincount(code // 10, minlength=9) / len(code)
    np.testing.assert_allclose(shares, expected, atol=0.02)


def test_both_views_are_of_one_blurred_image_and_labels_are_of_all_classes(monkeypatch):
    def assignments(network, images, present, ctx):
        maps = {kind: jnp.zeros((4, 32, 32, 8)) for kind in cosa_cams.KINDS}
        return maps | {'segmentation': images}

    monkeypatch.setattr(cosa_cams, 'assignments', assignments)
    given = batch()
    start = TrainState(jnp.int32(0), None, Variables({}, {}), {}, None, None)
    config = tiny(num_classes=9, augment__blur_prob=1.0, augment__blur_sigma=(0.4, 0.7))
    config = configs.finalise(config)

    @jax.jit
    def made(given):
        own, floats = keys(4)('images', 'weak'), given['images']['image'] / 255
        blurred = color.blur(own, floats, prob=1.0, sigma=config.augment.blur_sigma)
        return cosa.targets(start, given, keys(4), Context(None, config))[0], 255 * blurred

    prepared, blurred = jax.device_get(made(given))
    weak = prepared.segmentation
    np.testing.assert_array_equal(prepared.strong, weak)
    levels = 255 * (weak * np.array(config.data.std) + np.array(config.data.mean))
    assert np.abs(levels - given['images']['image']).max() > 20
    assert np.abs(levels - blurred).max() < 0.51  # rounded to 8 bits again
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    expected = np.pad(given['images']['classes'][:, 1:], ((0, 0), (0, 2)))
    np.testing.assert_array_equal(prepared.present, expected)


def test_the_energy_is_about_the_same_at_any_side():
    rng = np.random.default_rng(0)
    smooth = resized(rng.uniform(0, 1, (1, 4, 4, 3)), (112, 112))
    logits = jnp.float32(3 * rng.normal(size=(1, 7, 7, 4)))
    found = {}
    for side in (28, 56):
        config = configs.finalise(tiny(cosa__energy_side=side))
        data = config.data
        strong = jnp.float32((smooth - np.array(data.mean)) / np.array(data.std))
        label = jnp.full((1, 112, 112), -1)
        given = SimpleNamespace(strong=strong, cam_label=label, box=np.int32([[0, 112, 0, 112]]))
        energy = jax.jit(lambda x, c=config, g=given: cosa._energy(x, g, Context(None, c)))
        total, count = energy(logits)
        found[side] = float(total / count)
    assert found[28] < 0
    np.testing.assert_allclose(found[28], found[56], rtol=0.15)


def test_the_energy_of_a_turned_image_is_the_same():
    rng = np.random.default_rng(0)
    smooth = resized(rng.uniform(0, 1, (1, 4, 8, 3)), (64, 128))
    logits = jnp.float32(3 * rng.normal(size=(1, 4, 8, 4)))
    config = configs.finalise(tiny(cosa__energy_side=28))
    data, found = config.data, []
    for turned in (False, True):
        strong = jnp.float32((smooth - np.array(data.mean)) / np.array(data.std))
        size = strong.shape[1:3][::-1] if turned else strong.shape[1:3]
        turn = (lambda x: x.swapaxes(1, 2)) if turned else (lambda x: x)
        given = SimpleNamespace(
            strong=turn(strong),
            cam_label=jnp.full((1, *size), -1),
            box=np.int32([[0, size[0], 0, size[1]]]),
        )
        total, _ = cosa._energy(turn(logits), given, Context(None, config))
        found.append(float(total))
    assert found[0] < 0
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_a_patch_that_does_not_divide_an_image_moves_nothing(monkeypatch):
    """A network that says of each patch how bright it is."""

    def evaluate(variables, images):
        batch, height, width = (images.shape[0], images.shape[1] // 16, images.shape[2] // 16)
        cut = images[:, : 16 * height, : 16 * width]
        patches = cut.reshape(batch, height, 16, width, 16, 3).mean((2, 4, 5))
        return {'logits': jnp.stack([0.5 - patches, patches - 0.5], axis=-1)}

    config = SimpleNamespace(
        eval=SimpleNamespace(protocol='whole'),
        model=SimpleNamespace(backbone='vit_tiny', output_stride=16),
    )
    ctx = SimpleNamespace(config=config, evaluate=evaluate)
    images = np.zeros((1, 107, 160, 3), np.float32)
    images[:, 64:80] = 1
    rows = np.asarray(cosa_scores.predict(None, images, ctx))[0, :, 80].argmax(-1).nonzero()[0]
    assert (rows[0], rows[-1]) == (64, 79)
