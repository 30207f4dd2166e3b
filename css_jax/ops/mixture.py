"""Thresholds of CAM values from a mixture of Gaussians, which is fitted to their histogram.

Source: CoSA's authors' program (arXiv 2402.17891), an option there. It fits the values themselves
with scikit-learn's GaussianMixture; the histogram moves thresholds by about a bin's width. Its
start (all variances 1) and its early stop belong to the result: fitted on, thresholds differ.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

BINS = 256
FLOOR = 0.05  # values up to this one are left out

_STEPS = 100
_TOLERANCE = 1e-3
_VARIANCE = 1e-6  # what is added to each variance


class Mixture(NamedTuple):
    """A mixture of k Gaussians.

    Attributes:
        weights: [k], which sum up to 1.
        means: [k].
        variances: [k].
    """

    weights: Array
    means: Array
    variances: Array


def histogram(values: Array) -> Array:
    """Return how many values larger than `FLOOR` lie in each bin.

    Args:
        values: of any shape, in [0, 1].

    Returns:
        [BINS] float32; histograms may be added up.
    """
    bins = jnp.clip(jnp.floor(values * BINS), 0, BINS - 1).astype(jnp.int32)
    counted = (values > FLOOR).astype(jnp.float32)
    return jnp.zeros(BINS, jnp.float32).at[bins.ravel()].add(counted.ravel())


def thresholds(counts: Array, components: int, otherwise: Array | float = 0.5) -> Array:
    """Return the CAM values that part foreground from background.

    Each value belongs to the component that most likely made it.

    Args:
        counts: [n], a histogram of n equal bins over [0, 1], see `histogram`; bins that end below
            `FLOOR` do not count.
        components: 2 or 3.
        otherwise: [] or of the shape returned, the thresholds where no value belongs to the
            component.

    Returns:
        [1] float32 with 2 components: the largest value of the first. [2] with 3, low and high: the
        largest value of the first and the smallest of the last.

    Raises:
        ValueError: `components` is neither 2 nor 3.
    """
    if components not in (2, 3):
        raise ValueError(f'components is {components}; expected 2 or 3')
    values, counts = _values(counts)
    fitted, _ = fit(counts, components)
    component = _log_parts(values, fitted).argmax(-1)
    first = (counts > 0) & (component == 0)
    last = (counts > 0) & (component == 2)
    low = jnp.where(first, values, -jnp.inf).max(keepdims=True)
    found = low
    if components == 3:
        high = jnp.where(last, values, jnp.inf).min(keepdims=True)
        found = jnp.concatenate([low, high])
    return jnp.where(jnp.isfinite(found), found, otherwise)


def smooth(previous: Array, found: Array, momentum: float = 0.99) -> Array:
    """Return thresholds that follow those found: momentum previous + (1 - momentum) found."""
    return momentum * previous + (1 - momentum) * found


def fit(counts: Array, components: int) -> tuple[Mixture, Array]:
    """Fit a mixture by expectation and maximisation, as scikit-learn 1.9 does.

    It starts from equal weights, variances of 1 and means at the smallest value, the median (of 3
    components) and the largest; it stops once the mean log-likelihood moves by less than 1e-3.

    Args:
        counts: as in `thresholds`.
        components: k, 2 or 3.

    Returns:
        The mixture, and the number of iterations, int32; of an empty histogram the mixture is
        finite and says nothing.
    """
    values, counts = _values(counts)
    total = counts.sum()
    shares = counts / jnp.where(total > 0, total, 1.0)
    zero = 0 * total  # what the loop starts with varies over devices where counts do
    start = Mixture(
        zero + jnp.full(components, 1 / components),
        _quantiles(values, counts, components),
        zero + jnp.ones(components),
    )

    def step(carry: tuple[Mixture, Array, Array, Array]) -> tuple[Mixture, Array, Array, Array]:
        mixture, before, _, count = carry
        parts = _log_parts(values, mixture)
        likelihood = jax.nn.logsumexp(parts, axis=-1)
        own = jnp.exp(parts - likelihood[:, None]) * shares[:, None]  # [n, k]
        weights = own.sum(0) + 1e-15  # no division by 0
        means = (own * values[:, None]).sum(0) / weights
        # Around the means: differences of squares would lose digits.
        variances = (own * jnp.square(values[:, None] - means)).sum(0) / weights + _VARIANCE
        bound = (shares * likelihood).sum()
        fitted = Mixture(weights / weights.sum(), means, variances)
        return fitted, bound, jnp.abs(bound - before), count + 1

    def unfinished(carry: tuple[Mixture, Array, Array, Array]) -> Array:
        return (carry[2] >= _TOLERANCE) & (carry[3] < _STEPS)

    infinite = zero + jnp.inf
    first = start, -infinite, infinite, jnp.int32(0)
    fitted, _, _, iterations = lax.while_loop(unfinished, step, first)
    return fitted, iterations


def _values(counts: Array) -> tuple[Array, Array]:
    """Return the middles of bins, and the counts, 0 of bins that end below `FLOOR`."""
    bins = len(counts)
    edges = jnp.arange(1, bins + 1) / bins
    values = (jnp.arange(bins) + 0.5) / bins
    return values, jnp.where(edges > FLOOR, counts.astype(jnp.float32), 0.0)


def _quantiles(values: Array, counts: Array, components: int) -> Array:
    """Return the smallest value, the median of 3 components, and the largest."""
    below = jnp.cumsum(counts)
    places = [(counts > 0).argmax()]
    if components == 3:
        places.append((2 * below >= below[-1]).argmax())
    places.append(len(counts) - 1 - (counts[::-1] > 0).argmax())
    return values[jnp.stack(places)]


def _log_parts(values: Array, mixture: Mixture) -> Array:
    """Return log(weight x density) of each value and component, [n, k]."""
    squares = jnp.square(values[:, None] - mixture.means) / mixture.variances
    return jnp.log(mixture.weights) - 0.5 * (squares + jnp.log(2 * jnp.pi * mixture.variances))
