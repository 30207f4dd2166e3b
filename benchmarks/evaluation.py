"""Images a second that an evaluation scores, by protocol: python -m benchmarks.evaluation.

The compiled measure of `css_jax.evaluation.evaluator` (prediction, confusion matrix, loss) on
random uint8 images that lie on the device: what the host has to read and decode is in
`benchmarks.data`. 'real' is VOC's evaluation in bfloat16 (ResNet-101, images padded to 512 x 512)
and, for sliding windows, Cityscapes' (1024 x 2048, windows of 768); 'small' the quickstart's, in
float32.
"""

from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import step, timing
from css_jax import methods, parallel, state
from css_jax.evaluation import evaluator, protocols
from css_jax.methods import views

# Protocol -> changed keys of config.eval, images a batch, their height and width.
CASES: dict[str, dict[str, tuple[dict[str, Any], int, tuple[int, int]]]] = {
    'real': {
        'whole': ({}, 16, (512, 512)),
        'sliding': ({'protocol': 'sliding', 'window': (768, 768)}, 1, (1024, 2048)),
        'whole, flip': ({'flip': True}, 16, (512, 512)),
    },
    'small': {
        'whole': ({}, 50, (64, 64)),
        'sliding': ({'protocol': 'sliding', 'window': (64, 64)}, 1, (128, 256)),
        'whole, flip': ({'flip': True}, 50, (64, 64)),
    },
}
TYPE = {'real': 'bfloat16', 'small': 'float32'}


def program(size: str, name: str) -> tuple[Any, tuple]:
    """Return the jitted measure of one of CASES, and the shapes that it takes."""
    changes, count, sides = CASES[size][name]
    changes = {f'eval.{key}': value for key, value in changes.items()}
    config = step.configuration(size, **{'model.dtype': TYPE[size]}, **changes)
    layout = parallel.Layout(devices=jax.devices()[:1])
    ctx = methods.context(config)
    (evaluated,) = methods.METHODS[config.method].evaluations(config).values()
    window = protocols.window(config, evaluated.dataset)
    predict = protocols.prediction(config, ctx, evaluated.predict, window)

    def scores(variables: Any, batch: dict[str, jax.Array]) -> evaluator.Scores:
        logits, labels = predict(variables, batch['image']), views.host_labels(batch['label'])
        return evaluator.Scores.single_from_model_output(labels=labels, logits=logits)

    batch = {'image': (count, *sides, 3), 'label': (count, *sides)}
    batch = {key: jax.ShapeDtypeStruct(shape, 'uint8') for key, shape in batch.items()}
    shapes = layout.replicas(state.shapes(ctx)), layout.placed(batch)
    return layout.compile_sums(scores), shapes


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Give a row a protocol."""
    caption = f'Evaluation, {TYPE[size]}, the device alone'
    for name, (_, count, sides) in CASES[size].items():
        function, shapes = program(size, name)
        compiled = timing.compiled(function, *shapes)
        arrays = step.filled(shapes, classes=7)
        arrays = jax.device_put(arrays, jax.tree.map(lambda x: x.sharding, shapes))
        ms = compiled.milliseconds(*arrays)
        row = {'protocol': name, 'images': f'{count} of {sides[0]} x {sides[1]}'}
        row |= {'img/s': 1e3 * count / ms, 'TFLOP/s': compiled.row['GFLOP'] / ms}
        shown = ('compile s', 'compiled', 'temporary MiB')
        yield caption, row | {key: compiled.row[key] for key in shown}


if __name__ == '__main__':
    timing.main('Evaluation', rows)
