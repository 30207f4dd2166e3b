"""What crosses devices in a step, by kind, and a model of the step's time on many of them.

    python -m benchmarks.traffic --size real --out benchmarks/results/traffic.md

The step is compiled for 8 fake devices of this CPU, not run: 'real' is the paper's VOC network
(ResNet-101, output stride 8, 21 classes), 'small' the quickstart's. Every array that its program
sends is accounted for (`unaccounted`), or it ends with an error. But for one image, whose bytes
follow from the crop, nothing depends on crop or batch, so small images are compiled. The
assumptions of the model are in docs/scaling.md; nothing was measured on such machines.
"""

import functools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import quickstart, voc
from css_jax import config as configs
from css_jax import methods, parallel, state
from css_jax import step as steps
from css_jax.parallel import cost

MIB = 2**20
Row = dict[str, str | float]
DEVICES = 8
COMPILED = (64, 64)  # the crop of the program
# Of each BatchNorm: arrays [C] summed in a forward pass (the mean, the mean square about it) and in
# a backward one (the cotangents of either).
FORWARD, BACKWARD = 2, 2
IMAGE = 'one image and its maps, to a neighbour'
SCALARS = 'scalars of losses and metrics'

# The model's assumptions, see docs/scaling.md. Bytes/s that a chip sends, and seconds.
BANDWIDTH = {'NVLink': 450e9, 'InfiniBand': 50e9, 'ICI': 600e9}
COMPUTE = 0.168  # of 2 labelled and 2 unlabelled images on one chip
# Caption -> number of chips, labelled images on each (and as many unlabelled).
SCALING = {
    '2 + 2 images a chip': [(1, 2), (8, 2), (64, 2), (1024, 2)],
    "the paper's 16 + 16 images in all": [(1, 16), (8, 2), (16, 1)],
}


def configuration(size: str) -> ConfigDict:
    """Gives CSS(mix) as the paper trains it on VOC, or as the quickstart does."""
    if size == 'small':
        return configs.finalise(quickstart.get_config('css_mix'))
    return configs.finalise(voc.get_config('classic,92,css_mix'))


def arrays(config: ConfigDict, devices: int, crop: tuple[int, int]) -> dict[str, Counter]:
    """Says from the shapes alone what one step of CSS sends, in kinds.

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
    """Whether L_c has an indicator of its own, which moves with the image too."""
    crossed = config.pseudo_label == 'cross' and config.unsupervised.cross_indicator == 'similarity'
    other = crossed or config.contrastive.valid_indicator == 'similarity'
    return config.indicator == 'both' and other


def _sums(shapes: list[tuple[int, ...]], kind: str = 'f32') -> Counter:
    return Counter(('all-reduce', kind, _squeezed(shape)) for shape in shapes)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def found(text: str) -> Counter:
    """Gives what a compiled program sends, in the form of `arrays`; combined sums are parted."""
    return Counter(
        (operation, kind, _squeezed(shape))
        for operation, results in cost.traffic(text)
        for kind, shape in results
    )


def unaccounted(text: str, kinds: Mapping[str, Counter]) -> tuple[Counter, int]:
    """Compares a compiled program with `arrays`.

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
    """Gives the bytes that a device sends: 2 (P-1)/P of what a ring sums, all of what it passes on.

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
    """Gives the most operations of a program's entry that wait for one another: its latencies."""
    depth: dict[str, int] = {}
    operation = re.compile(rf' ({"|".join(cost.COLLECTIVES)})(-start)?\(')
    for line in text[text.index('\nENTRY') :].splitlines():
        name, _, body = line.strip().removeprefix('ROOT ').partition(' = ')
        body = body.split(', metadata=')[0].split(', control-predecessors=')[0]
        before = [depth.get(operand, 0) for operand in re.findall(r'%[\w.\-]+', body)]
        depth[name] = max(before, default=0) + bool(operation.search(body))
    return max(depth.values())


def program(config: ConfigDict, layout: parallel.Layout, batch: Mapping) -> str:
    """Compiles a step, without making a state, and gives its text."""
    method = methods.METHODS[config.method]
    tx, ctx = method.optimizer(config)[0], methods.context(config, parallel.AXIS)
    current = jax.eval_shape(lambda: state.create(method, tx, methods.context(config)))
    step = functools.partial(steps.train_step, method=method, optimizer=tx, ctx=ctx)
    return layout.compile_step(step, layout.replicas(current), layout.place(batch)).as_text()


def latency(chips: str, devices: int) -> float:
    """Gives the assumed seconds of a sum of few bytes over all devices."""
    if chips == 'TPU v5p':  # to the farthest of a torus with equal sides and back, 1 us a link
        return 1e-6 * 2 * 3 * devices ** (1 / 3) / 2
    # 10 us in a node of 8, then up and down a tree of nodes, 5 us a level.
    return 10e-6 + 5e-6 * 2 * max(0, math.log2(devices / 8))


def model(chips: str, devices: int, images: float, size: float, waits: int) -> dict[str, float]:
    """Models a step: compute, then bytes at the bandwidth, then latencies; nothing overlaps.

    Args:
        chips: 'H100' (nodes of 8) or 'TPU v5p'.
        devices: P.
        images: of each stream on a device.
        size: bytes that a device sends.
        waits: operations that wait for one another.

    Returns:
        Milliseconds of each part and of the step, and the share of compute in it.
    """
    link = 'ICI' if chips == 'TPU v5p' else 'NVLink' if devices <= 8 else 'InfiniBand'
    compute = 1e3 * COMPUTE * images / 2
    moving = 1e3 * size / BANDWIDTH[link]
    waiting = 1e3 * waits * latency(chips, devices)
    total = compute + moving + waiting
    return {
        'compute ms': compute,
        'bytes ms': moving,
        'latency ms': waiting,
        'step ms': total,
        'efficiency': compute / total,
    }


def rows(size: str) -> Iterator[tuple[str, Row]]:
    """Gives a row a kind, one of all operations, and for 'real' the model's rows."""
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', DEVICES)
    config = configuration(size)
    images = np.zeros((DEVICES, *COMPILED, 3), np.uint8)
    batch = {name: {'image': images} for name in config.data.streams}
    batch['labelled']['label'] = images[..., 0]
    text = program(config, parallel.Layout('jit'), batch)
    other, scalars = unaccounted(text, arrays(config, DEVICES, COMPILED))
    if other:
        raise ValueError(f'the program does not send what the formula says: {dict(other)}')

    crop = tuple(config.data.streams.unlabelled.crop)
    caption = f'What each of {DEVICES} devices sends in a step, crop {crop[0]} x {crop[1]}'
    kinds = arrays(config, DEVICES, crop)
    kinds[SCALARS] = Counter({('all-reduce', 'f32', ()): scalars})
    for name, counter in kinds.items():
        yield caption, row(name, counter)
    yield caption, row('all', sum(kinds.values(), Counter()))

    waits = chain(text)
    yield (
        'Operations of the compiled program',
        {
            'arrays': found(text).total(),
            'operations, sums combined by XLA': len(cost.traffic(text)),
            'the most that wait for one another': waits,
        },
    )
    for caption, cases in SCALING.items() if size == 'real' else ():
        for chips in ('H100', 'TPU v5p'):
            for devices, share in cases:
                counters = arrays(config, devices, crop).values() if devices > 1 else ()
                bytes_ = sum(sent(counter, devices) for counter in counters)
                modelled = model(chips, devices, share, bytes_, waits if devices > 1 else 0)
                yield (
                    f'Model, not measured: {caption}',
                    {
                        'chips': chips,
                        'number': devices,
                        'images in all': f'{share * devices} + {share * devices}',
                        **modelled,
                    },
                )


def row(name: str, counter: Counter) -> Row:
    """Gives the table's row of one kind."""
    size = sum(4 * math.prod(shape) * count for (_, _, shape), count in counter.items())
    return {
        'what': name,
        'arrays': counter.total(),
        'MiB': size / MIB,
        'MiB sent': sent(counter, DEVICES) / MIB,
    }


if __name__ == '__main__':
    # Not above: it turns off the cache of compiled programs, which whoever imports this may need.
    from benchmarks import timing

    os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')  # only read, not run
    timing.main('What crosses devices', rows)
