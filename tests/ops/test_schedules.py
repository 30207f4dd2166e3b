"""Schedules against the authors' programs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from css_jax.ops import schedules

FIXTURES = Path(__file__).parents[1] / 'fixtures'
GOLDEN = np.load(FIXTURES / 'imas_ops.npz')
COSA = np.load(FIXTURES / 'cosa_ops.npz')
USSS = np.load(FIXTURES / 'usss_ops.npz')

ema_decay_after = jax.jit(schedules.ema_decay_after)


def decays(case):
    steps, copies = (GOLDEN[f'ema_{case}_{x}'] for x in ('steps_per_epoch', 'sup_only_epoch'))
    return ema_decay_after(
        GOLDEN[f'ema_{case}_iteration'], steps, copies, GOLDEN[f'ema_{case}_limit']
    )


@pytest.mark.parametrize('case', ['default', 'voc_662', 'cityscapes_186'])
def test_decay_of_the_teacher_is_that_of_imas(case):
    np.testing.assert_allclose(decays(case), GOLDEN[f'ema_{case}_decay'], rtol=1e-5)


def test_the_teacher_is_that_of_imas():
    teacher, expected = GOLDEN['ema_default_teacher_start'], GOLDEN['ema_default_teacher']
    for decay, student, after in zip(
        np.asarray(decays('default')), GOLDEN['ema_default_student'], expected, strict=True
    ):
        teacher = decay * teacher + (1 - decay) * student
        np.testing.assert_allclose(teacher, after, atol=1e-5 * np.abs(expected).max())


def test_the_teacher_is_a_copy_in_one_epoch_more_than_the_supervised_ones():
    found = np.asarray(ema_decay_after(np.arange(40), 5, 2, 0.95))
    np.testing.assert_array_equal(found[:15], 0)
    np.testing.assert_allclose(found[15:], np.minimum(1 - 1 / (np.arange(15, 40) - 9), 0.95))
    for step in (0, 14, 15, 39):  # Python's integers, not compiled
        np.testing.assert_allclose(schedules.ema_decay_after(step, 5, 2, 0.95), found[step])


@pytest.mark.parametrize('epochs', [5, 200])
def test_the_rate_of_an_epoch_is_that_of_usss(epochs):
    expected = np.repeat(USSS[f'lr/base0.001_epochs{epochs}'], 3)
    schedule = schedules.poly_by_epoch(0.001, epochs, 3)
    rates = jax.jit(schedule)(np.arange(3 * epochs + 2))
    np.testing.assert_allclose(rates[: 3 * epochs], expected, rtol=1e-6)
    np.testing.assert_array_equal(rates[3 * epochs :], 0)  # after the last epoch
    for step in (0, 2, 3, 3 * epochs - 1):  # Python's integers, not compiled
        np.testing.assert_allclose(schedule(step), expected[step], rtol=1e-6)


def test_the_power_of_the_rate_is_a_parameter():
    rates = schedules.poly_by_epoch(2.0, 4, 1, power=2)(np.arange(5))
    np.testing.assert_allclose(rates, [2, 2 * 9 / 16, 0.5, 2 / 16, 0], rtol=1e-6)


@pytest.mark.parametrize('group', [0, 1])
def test_the_rate_with_a_warmup_is_that_of_cosa(group):
    config, steps = json.loads(str(COSA['lr_config'])), COSA['lr_steps']
    expected = COSA['lr_values'][:, group]
    schedule = schedules.poly_from_warmup(
        config['lr'] * (1, 10)[group],
        config['max'],
        config['warmup'],
        config['warmup_ratio'],
        config['power'],
        config['min_mult'],
    )
    np.testing.assert_allclose(jax.jit(schedule)(steps), expected, rtol=1e-5)
    for step, rate in zip(steps.tolist(), expected, strict=True):  # Python's integers
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5)


def test_the_short_rate_of_cosa_s_optimiser_stays_after_its_last_step():
    config, expected = json.loads(str(COSA['adamw_config'])), COSA['adamw_lr']
    assert len(expected) > config['max']
    schedule = schedules.poly_from_warmup(config['lr'], config['max'], config['warmup'])
    rates = np.asarray(jax.jit(schedule)(np.arange(len(expected))))
    np.testing.assert_allclose(rates, expected[:, 0], rtol=1e-5)


def test_without_a_warmup_the_rate_with_one_is_poly_until_its_last_step():
    found = schedules.poly_from_warmup(2.0, 10, 0, floor=0.25)(np.arange(12))
    expected = 2 * np.maximum((1 - np.arange(10) / 10) ** 0.9, 0.25)
    np.testing.assert_allclose(found, [*expected, expected[-1], expected[-1]], rtol=1e-6)
