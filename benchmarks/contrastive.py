"""Time and memory of the contrastive loss, forward and backward, by estimator.

    python -m benchmarks.contrastive --size real

'peak MiB' is the highest mark of the device's allocator, the inputs included; '-' where a row
before had a higher one, and on a CPU.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from css_jax.ops import contrastive

SIZES = {  # representation map and classes; the rest is the paper's
    'real': ((16, 128, 128, 256), 21),
    'small': ((2, 32, 32, 64), 7),
}


def arrays(size: str) -> tuple[np.ndarray, ...]:
    """Make representations, labels (one in C + 1 is ignored), hard (0.3 of them), prototypes."""
    shape, classes = SIZES[size]
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal(shape, np.float32),
        rng.integers(-1, classes, shape[:3], np.int32),
        rng.uniform(size=shape[:3]) < 0.3,
        rng.standard_normal((classes, shape[3]), np.float32),
    )


def program(estimator: str) -> Any:
    """Return the jitted (representations, labels, hard, rho) -> (L_c, its gradient)."""

    def f(representations, labels, hard, rho):
        return contrastive.loss(
            jax.random.key(1), representations, labels, hard, rho, estimator=estimator
        )[0]

    return jax.jit(jax.value_and_grad(f))


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give a row an estimator."""
    shape, classes = SIZES[size]
    given = jax.device_put(arrays(size))
    for estimator in ('bank', 'sampled'):
        compiled = timing.compiled(program(estimator), *given)
        ms, peak = timing.peak(compiled.milliseconds, *given)
        shown = {key: compiled.row[key] for key in ('temporary MiB', 'compile s', 'compiled')}
        caption = f"L_c of {list(shape)} float32, {classes} classes, the paper's numbers"
        yield caption, {'estimator': estimator, 'ms': ms, 'peak MiB': peak, **shown}


if __name__ == '__main__':
    timing.main('Contrastive loss', rows)
