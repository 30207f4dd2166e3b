"""Schedules: functions of the step, of Python or traced integers."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array


def poly(
    base: float,
    steps: int,
    power: float = 0.9,
    floor: float = 0.0,
    warmup_steps: int = 0,
    lag: int = 0,
) -> Callable[[Array | int], Array]:
    """Return poly learning rate, base · (1 - t/T)^power, never under `floor`.

    Args:
        base: learning rate at step 0.
        steps: T, the iterations of the whole run.
        power: exponent.
        floor: smallest value (the reference: 1e-4; the paper writes none).
        warmup_steps: steps over which a linear factor rises from 1/warmup_steps to 1; 0: none.
        lag: t is so many steps less, at least 0. With 1 it is the rate of programs that set it
            behind the update, such as UniMatch's.

    Returns:
        A function from the step, counted from 0, to a float32 scalar.
    """

    def schedule(step: Array | int) -> Array:
        t = jnp.maximum(step - lag, 0) if lag else step
        remaining = jnp.clip(1.0 - t / steps, 0.0, 1.0)
        rate = jnp.maximum(base * remaining**power, floor)
        return rate * jnp.minimum((step + 1) / warmup_steps, 1.0) if warmup_steps else rate

    return schedule


def poly_from_warmup(
    base: float,
    steps: int,
    warmup_steps: int,
    ratio: float = 1e-6,
    power: float = 0.9,
    floor: float = 0.0,
) -> Callable[[Array | int], Array]:
    """Return CoSA's learning rate: a linear rise to the base, then poly counted from step 0.

    base · (1 - (1 - t/W) (1 - r)) while t < W, then base · max((1 - t/T)^power, floor), which is
    below the base at once: `poly` multiplies both factors instead (arXiv 2402.17891, the authors'
    program).

    Args:
        base: learning rate at the end of the warm-up.
        steps: T, the iterations of the whole run; from then on the last rate stays.
        warmup_steps: W; 0: none.
        ratio: r, of the base at step 0.
        power: exponent.
        floor: smallest factor of the base after the warm-up.

    Returns:
        A function from the step t, counted from 0, to a float32 scalar.
    """

    def schedule(step: Array | int) -> Array:
        step = jnp.minimum(step, steps - 1)
        # What is left in whole steps, before it is divided: the last rates keep all digits.
        rate = jnp.maximum(((steps - step) / steps) ** power, floor)
        if warmup_steps:
            # Their formula, without the difference from 1 that loses the first rates' digits.
            rise = (step + (warmup_steps - step) * ratio) / warmup_steps
            rate = jnp.where(step < warmup_steps, rise, rate)
        return base * rate

    return schedule


def poly_by_epoch(
    base: float, epochs: int, steps_per_epoch: int, power: float = 0.9
) -> Callable[[Array | int], Array]:
    """Return USSS's learning rate, base · (1 - e/E)^power of epoch e = t // S, from 0.

    It is constant within an epoch, unlike `poly` (arXiv 1811.10323, the authors' program).

    Args:
        base: learning rate of the first epoch.
        epochs: E, those of the whole run.
        steps_per_epoch: S.
        power: exponent.

    Returns:
        A function from the step t, counted from 0, to a float32 scalar; 0 after the last epoch.
    """

    def schedule(step: Array | int) -> Array:
        # Whole epochs, subtracted before they are divided: the last ones keep all digits.
        remaining = jnp.clip(epochs - step // steps_per_epoch, 0, epochs) / epochs
        return base * remaining**power

    return schedule


def ema_decay(step: Array | int, limit: float) -> Array:
    """Return decay of the teacher, min(1 - 1/(t+1), limit), t from 0: the first update copies."""
    return jnp.minimum(1.0 - 1.0 / (step + 1.0), limit)


def ema_decay_after(
    step: Array | int, steps_per_epoch: int, copy_epochs: int, limit: float
) -> Array:
    """Return iMAS's decay of the teacher: copies of the student first, then a rising decay.

    0 while e <= k, then min(1 - 1/(t - k S + 1), limit), of step t in epoch e = t // S
    (arXiv 2211.11335, the authors' program).

    Args:
        step: t, counted from 0 over the whole run.
        steps_per_epoch: S.
        copy_epochs: k; the teacher is a copy in epochs 0 to k, thus in one epoch at least.
        limit: largest value.

    Returns:
        float32 scalar.
    """
    rising = ema_decay(jnp.maximum(step - copy_epochs * steps_per_epoch, 0), limit)
    return jnp.where(step // steps_per_epoch <= copy_epochs, 0.0, rising)


def rampdown(step: Array | int, steps: int) -> Array:
    """Return lambda_c's factor, exp(-5 (t/T)^2): the reference's curve, laid over the whole run."""
    return jnp.exp(-5.0 * (step / steps) ** 2)


def rampdown_by_pass(step: Array | int, steps_per_pass: int, passes: int = 200) -> Array:
    """The reference's factor of lambda_c: exp(-5 (e/200)^2), and 0 from e = 200 on.

    Args:
        step: iterations done.
        steps_per_pass: iterations in one pass over the labelled images.
        passes: after how many the factor is 0.

    Returns:
        float32 scalar; e is the number of whole passes done.
    """
    e = step // steps_per_pass
    return jnp.where(e < passes, jnp.exp(-5.0 * (e / passes) ** 2), 0.0)
