"""What crosses devices in a step, by kind: a formula of shapes alone, and what a program sends.

Tests hold compiled programs to it, and docs/scaling.md has its table.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import methods, state
from css_jax.parallel import cost

# Of each BatchNorm: arrays [C] summed in a forward pass (the mean, the mean square about it) and in
# a backward one (the cotangents of either).
FORWARD, BACKWARD = 2, 2
IMAGE = 'one image and its maps, to a neighbour'


def arrays(config: ConfigDict, devices: int, crop: tuple[int, int]) -> dict[str, Counter]:
    """Say from the shapes alone what one step of CSS sends, in kinds.

    Args:
        config: finalised; no micro-batches, no remat, the bank over the global batch.
        devices: P.
        crop: height and width of an image.

    Returns:
        Kind -> how often each (operation, type, shape without sides of 1) is sent; without the
        scalars.
    """
    c = config.contrastive
    shapes = state.shapes(methods.context(config))
    # The biases of a block's last BatchNorm and of its projection's are added to one sum, so they
    # have one gradient, and XLA sends it once.
    params = _shapes(shapes.params, lambda path: not path.endswith('downsample_bn/bias'))
    channels = _shapes(shapes.batch_stats, lambda path: path.endswith('/mean'))
    students = 2
    teachers = (1 + config.teacher.labelled_pass) * (config.teacher.batch_norm == 'own')
    classes, depth = config.num_classes, config.model.representation_dim
    segments = 2  # labelled and unlabelled pixels
    maps = 2 + (config.pseudo_label == 'cross') + _other_indicator(config)
    labels = 1 + (config.pseudo_label == 'cross')
    return {
        'gradients': _sums(params),
        'BatchNorm, forward': _sums(channels * FORWARD * (students + teachers)),
        'BatchNorm, backward': _sums(channels * BACKWARD * students),
        'prototypes: sums and counts': _sums([(classes, depth), (classes,)]),
        'bank': _sums([(classes, c.bank, depth)]),
        "counts of every device's pixels": _sums([(devices, classes, 2 * segments)], 's32'),
        IMAGE: Counter(
            {
                ('collective-permute', 'f32', (*crop, 3)): 1,
                ('collective-permute', 's32', crop): labels,
                ('collective-permute', 'f32', crop): maps - labels,
            }
        ),
    }


def _shapes(tree: Any, chosen: Callable[[str], bool]) -> list[tuple[int, ...]]:
    return [leaf.shape for path, leaf in state.flat(tree).items() if chosen(path)]


def _other_indicator(config: ConfigDict) -> bool:
    """Say whether L_c has an indicator of its own, which moves with the image too."""
    crossed = config.pseudo_label == 'cross' and config.unsupervised.cross_indicator == 'similarity'
    other = crossed or config.contrastive.valid_indicator == 'similarity'
    return config.indicator == 'both' and other


def _sums(shapes: list[tuple[int, ...]], kind: str = 'f32') -> Counter:
    return Counter(('all-reduce', kind, _squeezed(shape)) for shape in shapes)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def found(text: str) -> Counter:
    """Return what a compiled program sends, in the form of `arrays`; combined sums are parted."""
    return Counter(
        (operation, kind, _squeezed(shape))
        for operation, results in cost.traffic(text)
        for kind, shape in results
    )


def unaccounted(text: str, kinds: Mapping[str, Counter]) -> tuple[Counter, int]:
    """Compare a compiled program with `arrays`.

    Returns:
        What the program sends more often, or less, than expected, and how much more often, without
        the scalars; and how many scalars it sends.
    """
    difference = found(text)
    for counter in kinds.values():
        difference.subtract(counter)
    scalars = difference.pop(('all-reduce', 'f32', ()), 0)
    return Counter({array: count for array, count in difference.items() if count}), scalars


def sent(counter: Counter, devices: int) -> float:
    """Return the bytes a device sends: 2 (P-1)/P of what a ring sums, all that it passes on.

    Args:
        counter: of one kind, see `arrays`.
        devices: P.
    """
    ring = {'all-reduce': 2 * (devices - 1) / devices, 'collective-permute': 1}
    return sum(
        ring[operation] * 4 * math.prod(shape) * count
        for (operation, _, shape), count in counter.items()
    )


def chain(text: str) -> int:
    """Return the most operations of a program's entry that wait for one another: its latencies."""
    depth: dict[str, int] = {}
    operation = re.compile(rf' ({"|".join(cost.COLLECTIVES)})(-start)?\(')
    for line in text[text.index('\nENTRY') :].splitlines():
        name, _, body = line.strip().removeprefix('ROOT ').partition(' = ')
        body = body.split(', metadata=')[0].split(', control-predecessors=')[0]
        before = [depth.get(operand, 0) for operand in re.findall(r'%[\w.\-]+', body)]
        depth[name] = max(before, default=0) + bool(operation.search(body))
    return max(depth.values())
