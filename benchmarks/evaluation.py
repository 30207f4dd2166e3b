"""Images a second that an evaluation scores, by protocol: python -m benchmarks.evaluation.

The compiled measure of `css_jax.evaluation.evaluator` (prediction, confusion matrix, loss) on
random uint8 images that lie on the device: what the host has to read and decode is in
`benchmarks.data`. 'real' is VOC's evaluation (ResNet-101, images padded to 512 x 512) and, for
sliding windows, Cityscapes' (1024 x 2048, windows of 768); 'small' the quickstart's network.
'whole' and 'flip' have one static shape; 'whole_exact' compiles once for each of the sizes in its
row, and its img/s are without that.
"""

from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import step, timing
from css_jax import methods, parallel, state
from css_jax.evaluation import evaluator, protocols
from css_jax.methods import views

# Protocol -> changed keys of config.eval, images a batch, sizes of the images.
CASES: dict[str, dict[str, tuple[dict[str, Any], int, tuple]]] = {
    'real': {
        'whole': ({}, 16, ((512, 512),)),
        'whole + flip': ({'flip': True}, 16, ((512, 512),)),
        'sliding': ({'protocol': 'sliding', 'window': (768, 768)}, 1, ((1024, 2048),)),
        'whole_exact': ({'protocol': 'whole_exact'}, 8, ((375, 500), (500, 375), (333, 500))),
    },
    'small': {
        'whole': ({}, 50, ((64, 64),)),
        'whole + flip': ({'flip': True}, 50, ((64, 64),)),
        'sliding': ({'protocol': 'sliding', 'window': (64, 64)}, 1, ((128, 256),)),
        'whole_exact': ({'protocol': 'whole_exact'}, 8, ((48, 64), (64, 48), (44, 64))),
    },
}


def measure(size: str, name: str, dtype: str) -> timing.Row:
    """Compiles and times one of CASES."""
    changes, count, sizes = CASES[size][name]
    changes = {f'eval.{key}': value for key, value in changes.items()}
    config = step.configuration(size, dtype=dtype, **changes)
    layout = parallel.Layout(devices=jax.devices()[:1])
    ctx = methods.context(config)
    (evaluated,) = methods.METHODS[config.method].evaluations(config).values()
    window = protocols.window(config, evaluated.dataset)
    predict = protocols.prediction(config, ctx, evaluated.predict, window)

    def scores(variables: Any, batch: dict[str, jax.Array]) -> evaluator.Scores:
        logits, labels = predict(variables, batch['image']), views.host_labels(batch['label'])
        return evaluator.Scores.single_from_model_output(labels=labels, logits=logits)

    make = parallel.compile(lambda: state.variables(ctx, jax.random.key(0)), layout.replicated)
    variables, scored = make(), layout.compile_sums(scores)
    spent = compiling = gflop = temporary = 0.0
    for sides in sizes:
        keys = jax.random.split(jax.random.key(0))
        images = jax.random.bits(keys[0], (count, *sides, 3), 'uint8')
        labels = jax.random.randint(keys[1], (count, *sides), 0, config.num_classes, 'uint8')
        batch = layout.place(jax.device_get({'image': images, 'label': labels}))
        program, account = timing.compiled(scored, variables, batch)
        _, row = timing.timed(program, account, variables, batch)
        spent, gflop = spent + row['ms'], gflop + row['GFLOP']
        compiling += row['compile s']
        temporary = max(temporary, row['temporary MiB'])
    return {
        'protocol': name,
        'images': f'{count} x ' + ', '.join(f'{height}x{width}' for height, width in sizes),
        'img/s': 1e3 * count * len(sizes) / spent,
        'ms an image': spent / count / len(sizes),
        'TFLOP/s': gflop / spent,
        'compile s': compiling,
        'temporary MiB': temporary,
    }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a protocol and type, each measured in a process of its own."""
    for dtype in ('bfloat16', 'float32') if size == 'real' else ('float32',):
        for name in CASES[size]:
            row = timing.attempt(timing.isolated, measure, size, name, dtype)
            yield (
                f'Evaluation, {dtype}, the device alone',
                row or {'protocol': name, 'images': step.OUT_OF_MEMORY},
            )


if __name__ == '__main__':
    timing.main('Evaluation', rows)
