"""The optimiser and schedules against the reference program's numbers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from css_jax import config as configs
from css_jax import optimizer
from css_jax.ops import schedules

GOLDEN = np.load(Path(__file__).parent / 'fixtures' / 'reference_small.npz')


def test_sgd_walks_as_torch_does():
    config = configs.default()
    config.update_from_flattened_dict(
        {
            'steps': 40_000,
            'optimizer.learning_rate': 0.0064,
            'optimizer.floor': 1e-4,
            'optimizer.power': 0.0,  # the trajectory has a constant rate
        }
    )
    tx = optimizer.sgd(config)
    params = {'w': jnp.asarray(GOLDEN['sgd_w0'])}
    state = tx.init(params)
    for grads, expected in zip(GOLDEN['sgd_grads'], GOLDEN['sgd_trajectory'], strict=True):
        updates, state = tx.update({'w': jnp.asarray(grads)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params['w'], expected, rtol=1e-5, atol=1e-6)


def test_poly_is_the_reference_s():
    rate = schedules.poly(0.0064, 40_000, 0.9, 1e-4)
    ours = [float(rate(step)) for step in range(0, 40_000, 1000)]
    np.testing.assert_allclose(ours, GOLDEN['poly_lr_every_1000'], rtol=1e-4)


def test_poly_ends_at_its_floor_and_starts_from_its_warm_up():
    rate = schedules.poly(1.0, 100, 0.9, 0.05, warmup_steps=10)
    assert float(rate(100)) == pytest.approx(0.05)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(9)) == pytest.approx((1 - 0.09) ** 0.9)


def test_the_first_update_of_the_teacher_copies():
    assert float(schedules.ema_decay(0, 0.99)) == 0
    assert float(schedules.ema_decay(1, 0.99)) == 0.5
    assert float(schedules.ema_decay(10_000, 0.99)) == pytest.approx(0.99)


def test_lambda_falls_over_the_whole_run():
    assert float(schedules.rampdown(0, 1000)) == 1
    assert float(schedules.rampdown(500, 1000)) == pytest.approx(np.exp(-1.25))
