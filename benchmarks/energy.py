"""CoSA's dense energy by its side, and what a training step of CoSA asks for.

    python -m benchmarks.energy --size small

'small' runs on one core of a CPU, 'real' on the device as it is, and at the authors' side, too.

- The energy is that of logits at a sixteenth of the crop, with its gradient by them. Sides are run
  in turns, 'ms' is the median over the rounds; on a CPU it is CPU time, which others' work changes
  little.
- The steps are those of configs/cosa.py:voc, without weights and data. None is run: they are
  counted, see `benchmarks.count`, and memory is the account of the device's compiler.
- A step's operations are those of convolutions and products; of the energy every equation has as
  many again as its largest array has numbers. What a step has more than one without energy is the
  energy's, with the interpolation of the logits.
- Views are the assignment network's: at all scales, mirrored, with the CAMs and the segmentation
  that are made of them.
"""

import functools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import count, intensity, step, timing
from configs import cosa
from css_jax import config as configs
from css_jax import methods
from css_jax import step as steps
from css_jax.data import streams
from css_jax.methods import cosa_cams, cosa_settings
from css_jax.ops import crf, resize

IMAGES, CLASSES, CROP, ROUNDS = 4, 21, 448, 9
SIGMA_RGB, SIGMA_XY = 15.0, 100.0
SIDES = {'small': (28, 56, 112), 'real': (28, 56, 112, 224)}
PHASES = 'classification alone', 'the full step'
# Backbone -> whether its steps are compiled as well, which takes minutes.
BACKBONES, TYPES = {'vit_small': False, 'vit_base': True}, ('float32', 'bfloat16')


def gradient(side: int) -> Callable:
    """Return (logits, images, mask, box) -> the energy at a side, and its gradient by logits."""

    def energy(logits: Any, images: Any, mask: Any, box: Any) -> Any:
        size = images.shape[1:3]
        likely = resize.half_pixel_through(jax.nn.softmax, logits, size, (side, side))
        return crf.dense_energy(images, likely, mask, box, SIGMA_RGB, SIGMA_XY, side)[0]

    return jax.value_and_grad(energy)


def drawn(images: int, crop: int) -> tuple[np.ndarray, ...]:
    """Draw what the function of `gradient` takes; one pixel of 22 has no label."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((images, crop // 16, crop // 16, CLASSES), np.float32)
    mask = rng.integers(-1, CLASSES, (images, crop, crop), np.int32)
    box = np.tile(np.int32([0, crop, 0, crop]), (images, 1))
    return 3 * logits, intensity.drawn(images, crop), mask, box


def asked(jaxpr: Any) -> dict[str, float]:
    """Count a program: 'flops' of its products, 'numbers' of all its equations, and 'bytes'."""
    return count.totals(count.kernels(jaxpr)) | {'numbers': intensity.numbers(jaxpr)}


def energies(images: int, crop: int, sides: Sequence[int], rounds: int) -> Iterator[timing.Row]:
    """Give a row a side of the energy."""
    given = jax.device_put(drawn(images, crop))
    programs = {side: timing.compiled(jax.jit(gradient(side)), *given) for side in sides}
    runs = {side: lambda _, call=one.call: call(*given) for side, one in programs.items()}
    for side, times in intensity.turns(runs, rounds).items():
        found = asked(jax.make_jaxpr(gradient(side))(*given))
        yield {
            'side': side,
            'ms': statistics.median(times),
            'GFLOP of products': found['flops'] / 1e9,
            'G operations else': found['numbers'] / 1e9,
            'GB': found['bytes'] / 1e9,
            'temporary MiB': programs[side].row['temporary MiB'],
        }


def configuration(backbone: str, dtype: str) -> ConfigDict:
    """Return the published runs' configuration on VOC, with another backbone or type."""
    words = f'voc,backbone={backbone},pretrained=,model.dtype={dtype}'
    return configs.finalise(cosa.get_config(words))


def jitted(run: step.Run, phase: int) -> Any:
    """Return the step of a phase of a run."""
    given = {'method': methods.phases(run.config)[phase][1], 'optimizer': run.tx, 'ctx': run.ctx}
    return jax.jit(functools.partial(steps.train_step, **given), donate_argnums=0)


def views(run: step.Run, batch: Any) -> dict[str, float]:
    """Count what the assignment network says of a batch."""
    size, classes = batch[cosa_settings.STREAM]['image'].shape, run.config.num_classes
    given = (size, 'float32'), ((size[0], classes - 1), 'bool')
    say = functools.partial(cosa_cams.assignments, ctx=run.ctx)
    shapes = [jax.ShapeDtypeStruct(*one) for one in given]
    return asked(jax.make_jaxpr(say)(run.shapes[0].teacher, *shapes))


def phases(config: ConfigDict, compiles: bool = False) -> Iterator[timing.Row]:
    """Give a row a phase of a run, with the compiler's account of memory if it is to compile."""
    run, without = step.Run(config), ConfigDict(config.to_dict())
    without.cosa.energy_weight = 0.0
    shapes = run.shapes[0], streams.batch_shapes(config.data, config.data.streams)
    for i, name in enumerate(PHASES):
        program = jitted(run, i)
        whole = asked(program.trace(*shapes).jaxpr)
        rest = asked(jitted(step.Run(without), i).trace(*shapes).jaxpr)
        own = {key: whole[key] - rest[key] for key in whole}
        labels = views(run, shapes[1]) if i else dict.fromkeys(whole, 0.0)
        account = timing.compiled(program, *shapes).row if compiles else {}
        yield {
            'network': f'{config.model.backbone}, {config.model.dtype}',
            'phase': name,
            'GFLOP': whole['flops'] / 1e9,
            'views %': 100 * labels['flops'] / whole['flops'],
            'energy %': 100 * (own['flops'] + own['numbers']) / whole['flops'],
            'GB': whole['bytes'] / 1e9,
            'views % of GB': 100 * labels['bytes'] / whole['bytes'],
            'energy % of GB': 100 * own['bytes'] / whole['bytes'],
            **{key: account.get(key) for key in ('memory MiB', 'temporary MiB')},
        }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give the energy's rows, then those of the steps."""
    if size == 'small':
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before XLA makes its threads
    caption = f'{IMAGES} of {CROP} x {CROP}, {CLASSES} classes'
    for row in energies(IMAGES, CROP, SIDES[size], ROUNDS):
        yield f'The energy and its gradient: {caption}, {ROUNDS} rounds', row
    for backbone, compiles in BACKBONES.items():
        for dtype in TYPES:
            for row in phases(configuration(backbone, dtype), compiles):
                yield f'A step of CoSA on VOC, counted: {caption}', row


if __name__ == '__main__':
    timing.main("CoSA's energy and step", rows)
