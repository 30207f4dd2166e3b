"""--mode report: runs side by side, their scores as a table, their predictions as a picture."""

import pathlib
from collections.abc import Mapping

import numpy as np

from css_jax import predict
from css_jax.data import evaluation as batches
from css_jax.data import geometry, sources
from css_jax.evaluation import pictures, tables
from css_jax.evaluation import results as result_files
from css_jax.run import folder as run_folder

TABLE = 'report.md'
PICTURE = 'report.png'


def report(folder: str | pathlib.Path, examples: int = 6, file: str = result_files.RESULTS) -> str:
    """Compare the finished runs in the folders of `folder`.

    Prints a table of IoU per class and mIoU, and one of what the runs' methods have beside, writes
    them to report.md, and a picture (image, truth, each run's prediction) to report.png; of runs
    with several evaluations one of each, such as report_NAME.png. The runs must have been evaluated
    on the same splits by one protocol.

    Args:
        folder: has one folder a run.
        examples: images shown, spread evenly over the split.
        file: which results of a run, see `css_jax.evaluation.results.file_name`.

    Returns:
        The tables, Markdown.

    Raises:
        FileNotFoundError: no folder in it has results.
        ValueError: the runs were evaluated on different splits, by different protocols, or have
            different classes; or a file is damaged.
    """
    folder = pathlib.Path(folder)
    runs = sorted(folder.glob(f'*/{file}'), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise FileNotFoundError(
            f'no */{file} in {folder}: expected folders of runs that were evaluated'
        )
    results = {path.parent.name: result_files.read(path) for path in runs}
    first = next(iter(results.values()))
    ways = {name: result_files.without_network(r['protocol']) for name, r in results.items()}
    for differ, values in {
        'on different splits': {name: result['split'] for name, result in results.items()},
        'by different protocols': ways,
    }.items():
        if len(set(values.values())) > 1:
            raise ValueError(f'the runs in {folder} were evaluated {differ}: {values}')
    classes = {name: list(result['iou']) for name, result in results.items()}
    if any(names != list(first['iou']) for names in classes.values()):
        raise ValueError(f'the runs in {folder} have different classes: {classes}')
    names = tuple(first['iou'])
    columns = {
        name: {**result, 'iou': list(result['iou'].values())} for name, result in results.items()
    }
    more = {name: result_files.numbers_of_all(result) for name, result in results.items()}
    parts = tables.scores_table(names, columns), tables.more_table(more)
    table = '\n\n'.join(filter(None, parts))
    heading = f'IoU in % on {first["split"]}'
    protocol = result_files.protocols_of(results)
    (folder / TABLE).write_text(f'{heading}\n\n{table}\n\n{protocol}\n')
    print(f'{heading}\n{table}\n{protocol}')
    paths = _pictures(folder, results, examples)
    print(f'written: {", ".join([str(folder / TABLE), *paths])}')
    return table


def _pictures(folder: pathlib.Path, results: Mapping[str, Mapping], examples: int) -> list[str]:
    """Draw a picture of each evaluation; return their paths."""
    several = next(iter(results.values())).get('evaluations', {})
    paths = {name: folder / f'report_{name}.png' for name in several} or {None: folder / PICTURE}
    for name, path in paths.items():
        _picture(path, folder, results, name, examples)
    return list(map(str, paths.values()))


def _picture(
    path: pathlib.Path,
    folder: pathlib.Path,
    results: Mapping[str, Mapping],
    evaluation: str | None,
    examples: int,
) -> None:
    """Draw the predictions of the weights that the table is about, each on the whole image."""
    run, first = next(iter(results.items()))
    config = run_folder.load(folder / run)
    part = first['evaluations'][evaluation] if evaluation else first
    dataset, _, split = part['split'].rpartition(':')
    source = sources.load(dataset, split, config.data.dir)
    # What was padded to one size is shown so; a static size also saves compilations.
    whole = first['eval']['protocol'] == 'whole'
    size = batches.eval_size(source, first['eval']['pad_to']) if whole else (0, 0)
    shown = np.unique(np.linspace(0, len(source) - 1, examples).round().astype(int))
    chosen = [batches.example(source, int(index), size) for index in shown]
    cell = np.max([example['label'].shape for example in chosen], axis=0)

    def column(images: list[np.ndarray]) -> np.ndarray:  # of one size, white where there is none
        white = (255, 255, 255)
        return np.stack([geometry.pad_to(image, cell, 'constant', white) for image in images])

    palette = pictures.palette(sources.palette(dataset, config.data.dir), len(part['iou']))

    def colours(labels: list[np.ndarray]) -> np.ndarray:
        return column([pictures.colourise(one, palette) for one in labels])

    columns = {
        'image': column([example['image'] for example in chosen]),
        'truth': colours([example['label'] for example in chosen]),
    }
    for run, result in results.items():
        own = run_folder.load(folder / run).eval.network
        network = result['eval']['network']
        predictor = predict.load(
            folder / run, str(result['step']), None if network == own else network, evaluation
        )
        columns[run] = colours([_predicted(predictor, example) for example in chosen])
    pictures.write_grid(path, columns)


def _predicted(predictor: predict.Predictor, example: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return an image's predicted classes [H, W], void where its truth is, if it has any."""
    labels = predictor.predict(example['image'][None])[0]
    void = example['label'] == sources.VOID
    return labels if void.all() else np.where(void, sources.VOID, labels)
