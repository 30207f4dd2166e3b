"""Time and memory of the contrastive loss and of what it needs, forward and backward.

    python -m benchmarks.contrastive --size real

Each row runs in a process of its own, so that its peak memory is its own: the highest mark of the
process (on an accelerator: of the allocator) less what was in use when the inputs and the compiled
program were there. Where the mark cannot be reset (not Linux's CPU), making the inputs may have
set it, and the peak is an upper bound.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks import timing
from css_jax.ops import contrastive, losses, prototypes

SIZES = {  # representation map and classes; the rest is the paper's
    'real': ((16, 128, 128, 256), 21),
    'small': ((2, 32, 32, 64), 7),
}


def inputs(size: str) -> tuple[jax.Array, ...]:
    """Gives representations, labels (one in C + 1 ignored), hard (0.3 of them), prototypes."""
    shape, num_classes = SIZES[size]
    keys = jax.random.split(jax.random.key(0), 4)
    return (
        jax.jit(jax.random.normal, static_argnums=1)(keys[0], shape),
        jax.random.randint(keys[1], shape[:-1], -1, num_classes),
        jax.random.bernoulli(keys[2], 0.3, shape[:-1]),
        jax.random.normal(keys[3], (num_classes, shape[-1])),
    )


def loss_and_gradient(estimator: str) -> Callable:
    def f(representations, labels, hard, rho):
        return contrastive.loss(
            jax.random.key(1), representations, labels, hard, rho, estimator=estimator
        )[0]

    return jax.value_and_grad(f)


def hardness(representations, labels, hard, rho):
    """Which pixels are hard, as method CSS decides it; `hard` itself is not used."""
    logits = prototypes.cosine(representations, rho) / 0.5
    return jnp.exp(-losses.pixel_cross_entropy(logits, labels)) < 0.8


def class_sums(representations, labels, hard, rho):
    return prototypes.class_sums(representations, labels, len(rho))


PROGRAMS = {
    'bank, forward + backward': loss_and_gradient('bank'),
    'sampled, forward + backward': loss_and_gradient('sampled'),
    'hard pixels': hardness,
    'class sums': class_sums,
}


def measure(name: str, size: str) -> timing.Row:
    """Compiles and times one of PROGRAMS."""
    arguments = jax.block_until_ready(inputs(size))
    program, account = timing.compiled(jax.jit(PROGRAMS[name]), *arguments)
    timing.forget_peak()
    before, _ = timing.memory_in_use()
    spent = timing.milliseconds(lambda: program(*arguments))
    return {
        'program': name,
        'ms': spent,
        'temporary MiB': account['temporary MiB'],
        'peak above inputs MiB': (timing.memory_in_use()[1] - before) / timing.MIB,
        'compile s': account['compile s'],
    }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a program, each measured in a fresh process."""
    shape, num_classes = SIZES[size]
    caption = (
        f'Representations {list(shape)} float32, {num_classes} classes, 256 anchors a class, '
        '512 negatives, bank of 256'
    )
    for name in PROGRAMS:
        yield caption, timing.isolated(measure, name, size)


if __name__ == '__main__':
    timing.main('Contrastive loss', rows)
