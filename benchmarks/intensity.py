"""iMAS's changes of an image's colours, beside Pillow's, and what the strong view is of a step.

    python -m benchmarks.intensity --size small

'small' runs on one core of a CPU, 'real' on the device as it is; Pillow has one core in both.
Images are 513 x 513, as the paper's crops, and lie on the device, or in memory as Pillow's.

- 'alone ms' is of an operation of `css_jax.ops.intensity` compiled by itself, 'in the view ms' of
  the strong view of one image by this operation only. Both have a level of 0.5.
- The strong view is two operations an image, drawn for each image, and anew for each round. It has
  two forms; a CPU takes one image after the other, other devices take all together.
- What is compared is run once a round, in turns. Times are medians over the rounds, 'to Pillow' is
  the median of the ratios of single rounds. On a CPU it is CPU time, which others' work changes
  little.
- The shares are counted, see `benchmarks.count`. The step's operations are those of convolutions
  and products; of the strong view every equation has as many as its largest array has numbers.
  Where it branches, the costliest branch is counted.
"""

import math
import operator
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks import count, step, timing
from css_jax.ops import intensity

SIDE, BATCH, OPERATIONS, LEVEL = 513, 16, 2, 0.5
ROUNDS = 9, 31  # of the strong view, of an operation
FORMS = {'one by one': intensity.one_by_one, 'together': intensity.together}
_PAPER = {
    'crop': SIDE / step.SIDE['real'],
    'model.backbone': 'resnet101',
    'model.stem': 'deep',
}
# Name -> arguments of `step.configuration`; all else is the method's.
STEPS: dict[str, dict[str, Any]] = {
    "the paper's on VOC": {'size': 'real', **_PAPER, 'model.dtype': 'float32'},
    "the paper's in bfloat16": {'size': 'real', **_PAPER},
    "the quickstart's": {'size': 'small', 'model.dtype': 'float32'},
}


def drawn(images: int, side: int) -> np.ndarray:
    """Draw images [B, H, W, 3] uint8: patches of one colour, with noise."""
    rng = np.random.default_rng(0)
    patches = rng.uniform(0, 255, (images, -(-side // 32), -(-side // 32), 3))
    pixels = patches.repeat(32, 1).repeat(32, 2)[:, :side, :side]
    return (pixels + 8 * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8)


def pillow(name: str, level: float) -> Callable[[Image.Image], Image.Image]:
    """Return what Pillow has for an operation."""
    match name:
        case 'identity':
            return Image.Image.copy
        case 'blur':
            blur = ImageFilter.GaussianBlur(float(intensity.parameter(name, level)))
            return operator.methodcaller('filter', blur)
        case 'contrast' | 'brightness' | 'color' | 'sharpness':
            kind, factor = (
                getattr(ImageEnhance, name.capitalize()),
                intensity.parameter(name, level),
            )
            return lambda image: kind(image).enhance(float(factor))
        case 'posterize' | 'solarize':
            number, change = int(intensity.parameter(name, level)), getattr(ImageOps, name)
            return lambda image: change(image, number)
        case 'hue':
            return partial(_turned, np.uint8(int(intensity.parameter(name, level)) % 256))
    return getattr(ImageOps, name)


def _turned(shift: np.uint8, image: Image.Image) -> Image.Image:
    hue, *others = image.convert('HSV').split()
    return Image.merge('HSV', (Image.fromarray(np.asarray(hue) + shift), *others)).convert('RGB')


def turns(runs: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Time functions of the round in turns: name -> milliseconds in each round.

    On a CPU it is the time of this process alone, all its threads together.
    """
    clock = time.process_time if jax.default_backend() == 'cpu' else time.perf_counter
    for run in runs.values():
        jax.block_until_ready(run(0))
    found = {name: [] for name in runs}
    for i in range(rounds):
        for name, run in runs.items():
            start = clock()
            jax.block_until_ready(run(i))
            found[name].append(1e3 * (clock() - start))
    return found


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median ratio of times to those of the same rounds."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def operations(names: Sequence[str], side: int, rounds: int) -> Iterator[timing.Row]:
    """Give a row an operation on one image."""
    images = drawn(1, side)
    picture, images = Image.fromarray(images[0]), jax.device_put(images)
    levels, first = np.full((1, 1), LEVEL, np.float32), np.zeros((1, 1), np.int32)
    view = timing.compiled(jax.jit(intensity.strong), images, first, levels).call
    for name in names:
        given = images[0], levels[0, 0]
        alone = timing.compiled(jax.jit(getattr(intensity, name)), *given).call
        place, theirs = first + intensity.NAMES.index(name), pillow(name, LEVEL)
        runs = {
            'alone': lambda _, alone=alone, given=given: alone(*given),
            'in the view': lambda _, place=place: view(images, place, levels),
            'Pillow': lambda _, theirs=theirs: theirs(picture),
        }
        times = turns(runs, rounds)
        row = {'operation': name}
        row |= {f'{key} ms': statistics.median(found) for key, found in times.items()}
        others = times.pop('Pillow')
        yield row | {f'{key} to Pillow': ratio(found, others) for key, found in times.items()}


def views(batch: int, side: int, rounds: int) -> Iterator[timing.Row]:
    """Give a row a form of the strong view, and one what Pillow takes for the same."""
    rng, images = np.random.default_rng(0), drawn(batch, side)
    shape = rounds, batch, OPERATIONS
    places = rng.integers(0, len(intensity.NAMES), shape, np.int32)
    levels = rng.uniform(0, 0.999, shape).astype(np.float32)
    pictures = [Image.fromarray(image) for image in images]
    changes = np.vectorize(lambda place, level: pillow(intensity.NAMES[place], float(level)))
    theirs, images = changes(places, levels), jax.device_put(images)

    def by_pillow(i: int) -> None:
        for picture, changes in zip(pictures, theirs[i], strict=True):
            for change in changes:
                picture = change(picture)

    programs, runs = {}, {'Pillow': by_pillow}
    for name, form in FORMS.items():
        programs[name] = timing.compiled(jax.jit(form), images, places[0], levels[0])
        call = programs[name].call
        runs[name] = lambda i, call=call: call(images, places[i], levels[i])
    times = turns(runs, rounds)
    shown = ('temporary MiB', 'compile s', 'compiled')
    for name, found in times.items():
        row = {'strong view': name, 'ms an image': statistics.median(found) / batch}
        row |= {'to Pillow': ratio(found, times['Pillow'])}
        yield row | {key: programs[name].row[key] if name in programs else None for key in shown}


def numbers(jaxpr: Any) -> float:
    """Add up, over all equations of a jaxpr, the numbers of the largest array of each."""
    total = 0.0
    for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        body = next((params[key] for key in count.BODIES if key in params), None)
        if name == 'cond':
            total += max(map(numbers, params['branches']))
        elif body is not None and not name.startswith(('reduce', *count.ALONE)):
            total += params.get('length', 1) * numbers(body)
        else:
            total += max(math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
    return total


def shapes(batch: int, side: int, changes: int = OPERATIONS) -> tuple:
    """Return the shapes that the strong view takes: of images, places and levels."""
    given = ((batch, side, side, 3), 'uint8'), ((batch, changes), 'int32')
    return tuple(jax.ShapeDtypeStruct(*one) for one in (*given, ((batch, changes), 'float32')))


def asked(form: Callable, config: ConfigDict) -> dict[str, float]:
    """Count the operations ('flops') and bytes of the strong view in a step, in one form."""
    stream = config.data.streams.unlabelled
    given = shapes(stream.batch_size, stream.crop[0], config.imas.operations)
    jaxpr = jax.make_jaxpr(form)(*given)
    found = count.totals(count.kernels(jaxpr))
    return found | {'flops': found['flops'] + numbers(jaxpr)}


def shares(name: str) -> Iterator[timing.Row]:
    """Give a row a form of the strong view: what it is of one of STEPS.

    The step is counted with the form that it has here, in whose place each form is put.
    """
    config = step.configuration(method='imas', **STEPS[name])
    run, here = step.Run(config), asked(intensity.strong, config)
    whole = count.totals(count.kernels(run.jitted.trace(*run.shapes).jaxpr))
    for form, function in FORMS.items():
        own = asked(function, config)
        total = {key: whole[key] - here[key] + own[key] for key in ('flops', 'bytes')}
        yield {
            'step': name,
            'images': step.images(config),
            'strong view': form,
            'its GFLOP': own['flops'] / 1e9,
            "the step's GFLOP": total['flops'] / 1e9,
            'share in %': 100 * own['flops'] / total['flops'],
            'its GB': own['bytes'] / 1e9,
            "the step's GB": total['bytes'] / 1e9,
            'share of bytes in %': 100 * own['bytes'] / total['bytes'],
        }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give the strong view's rows, those of the operations, and those of the shares."""
    if size == 'small':
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before XLA makes its threads
    few, many = ROUNDS
    for row in views(BATCH, SIDE, few):
        yield f'{OPERATIONS} operations on {BATCH} images of {SIDE} x {SIDE}, {few} rounds', row
    for row in operations(intensity.NAMES, SIDE, many):
        yield f'One operation on an image of {SIDE} x {SIDE}, {many} rounds', row
    for name in STEPS:
        for row in shares(name):
            yield "The strong view's share of a step of iMAS, counted", row


if __name__ == '__main__':
    timing.main('Changes of colours', rows)
