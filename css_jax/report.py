"""Runs side by side: their scores as a table, their predictions as a picture."""

import pathlib
from collections.abc import Mapping

import numpy as np

from css_jax import config as configs
from css_jax import evaluate, monitor, pictures, predict, stored
from css_jax.data import evaluation, geometry, sources

TABLE = 'report.md'
PICTURE = 'report.png'


def report(folder: str | pathlib.Path, examples: int = 6, file: str = evaluate.RESULTS) -> str:
    """Compares the finished runs in the folders of `folder`.

    Prints a table of IoU per class and mIoU, writes it to report.md, and a picture (image, truth,
    each run's prediction) to report.png. The runs must have been evaluated on one split by one
    protocol.

    Args:
        folder: has one folder a run.
        examples: images shown, spread evenly over the split.
        file: which results of a run, see `css_jax.evaluate.results_file`.

    Returns:
        The table, Markdown.

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
    results = {path.parent.name: stored.results(path) for path in runs}
    first = next(iter(results.values()))
    for key, differ in {
        'split': 'were evaluated on different splits',
        'protocol': 'were evaluated by different protocols',
    }.items():
        values = {name: result[key] for name, result in results.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f'the runs in {folder} {differ}: {values}')
    classes = {name: list(result['iou']) for name, result in results.items()}
    if any(names != list(first['iou']) for names in classes.values()):
        raise ValueError(f'the runs in {folder} have different classes: {classes}')
    names = tuple(first['iou'])
    columns = {
        name: {**result, 'iou': list(result['iou'].values())} for name, result in results.items()
    }
    table = monitor.scores_table(names, columns)
    heading = f'IoU in % on {first["split"]}'
    (folder / TABLE).write_text(f'{heading}\n\n{table}\n\n{first["protocol"]}\n')
    print(f'{heading}\n{table}\n{first["protocol"]}')
    _picture(folder, results, examples)
    print(f'written: {folder / TABLE}, {folder / PICTURE}')
    return table


def _picture(folder: pathlib.Path, results: Mapping[str, Mapping], examples: int) -> None:
    """Draws the predictions of the weights the table is about, each on the whole image."""
    run, first = next(iter(results.items()))
    config, split = configs.finalise(stored.load(folder / run)), first['eval']
    source = sources.load(split['dataset'], split['split'], config.data.dir)
    # What was padded to one size is shown so; a static size also saves compilations.
    whole = split['protocol'] == 'whole'
    size = evaluation.eval_size(source, split['pad_to']) if whole else (0, 0)
    shown = np.unique(np.linspace(0, len(source) - 1, examples).round().astype(int))
    chosen = [evaluation.example(source, int(index), size) for index in shown]
    cell = np.max([example['label'].shape for example in chosen], axis=0)

    def column(images: list[np.ndarray]) -> np.ndarray:  # of one size, white where there is none
        white = (255, 255, 255)
        return np.stack([geometry.pad_to(image, cell, 'constant', white) for image in images])

    def colours(labels: list[np.ndarray]) -> np.ndarray:
        return column([pictures.colourise(one, config.num_classes) for one in labels])

    columns = {
        'image': column([example['image'] for example in chosen]),
        'truth': colours([example['label'] for example in chosen]),
    }
    for run, result in results.items():
        predictor = predict.load(folder / run, str(result['step']), result['eval']['network'])
        columns[run] = colours([_predicted(predictor, example) for example in chosen])
    pictures.write_grid(folder / PICTURE, columns)


def _predicted(predictor: predict.Predictor, example: Mapping[str, np.ndarray]) -> np.ndarray:
    """Gives an image's predicted classes [H, W], void where the truth is."""
    labels = predictor.predict(example['image'][None])[0]
    return np.where(example['label'] == sources.VOID, sources.VOID, labels)
