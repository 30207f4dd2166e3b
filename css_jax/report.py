"""Runs side by side: their scores as a table, their predictions as a picture."""

import json
import pathlib

import numpy as np

from css_jax import config as configs
from css_jax import evaluate, monitor, pictures, predict, stored
from css_jax.data import sources, streams

TABLE = 'report.md'
PICTURE = 'report.png'


def report(folder: str | pathlib.Path, examples: int = 6) -> str:
    """Compares the finished runs in the folders of `folder`.

    Prints a table of IoU per class and mIoU, writes it to report.md, and a picture (image, truth,
    each run's prediction) to report.png. The runs must have been evaluated on one split.

    Args:
        folder: has one folder a run.
        examples: images shown, spread evenly over the split.

    Returns:
        The table, Markdown.

    Raises:
        FileNotFoundError: no folder in it has results.
        ValueError: the runs were evaluated on different splits, or have different classes.
    """
    folder = pathlib.Path(folder)
    runs = sorted(folder.glob(f'*/{evaluate.RESULTS}'), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise FileNotFoundError(
            f'no */{evaluate.RESULTS} in {folder}: expected folders of runs that were evaluated'
        )
    results = {path.parent.name: json.loads(path.read_text()) for path in runs}
    splits = {name: result['split'] for name, result in results.items()}
    if len(set(splits.values())) > 1:
        raise ValueError(f'the runs in {folder} were evaluated on different splits: {splits}')

    first = next(iter(results.values()))
    classes = {name: list(result['iou']) for name, result in results.items()}
    if any(names != list(first['iou']) for names in classes.values()):
        raise ValueError(f'the runs in {folder} have different classes: {classes}')
    names = tuple(first['iou'])
    columns = {
        name: {**result, 'iou': list(result['iou'].values())} for name, result in results.items()
    }
    table = monitor.scores_table(names, columns)
    (folder / TABLE).write_text(f'IoU in % on {first["split"]}\n\n{table}\n')
    print(f'IoU in % on {first["split"]}\n{table}')
    steps = {name: result['step'] for name, result in results.items()}
    _picture(folder, steps, first['eval'], examples)
    print(f'written: {folder / TABLE}, {folder / PICTURE}')
    return table


def _picture(folder: pathlib.Path, steps: dict[str, int], split: dict, examples: int) -> None:
    """Draws the predictions of the weights the table is about: run -> step."""
    config = configs.finalise(stored.load(folder / next(iter(steps))))
    source = sources.load(split['dataset'], split['split'], config.data.dir)
    shown = np.linspace(0, len(source) - 1, examples).round().astype(int)
    size = tuple(split['pad_to'])
    batches = streams.eval_batches(source, batch_size=1, size=size)
    chosen = [batch for i, batch in enumerate(batches) if i in shown]
    images = np.concatenate([batch['image'] for batch in chosen])
    labels = np.concatenate([batch['label'] for batch in chosen])
    columns = {'image': images, 'truth': pictures.colourise(labels, config.num_classes)}
    for run in steps:
        predicted = predict.load(folder / run, str(steps[run])).predict(images)
        predicted = np.where(labels == sources.VOID, sources.VOID, predicted)
        columns[run] = pictures.colourise(predicted, config.num_classes)
    pictures.write_grid(folder / PICTURE, columns)
