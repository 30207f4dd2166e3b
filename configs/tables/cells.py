"""What a table is made of: cells, and rows of them."""

import statistics
from typing import NamedTuple


class Cell(NamedTuple):
    """One number of a table.

    Attributes:
        row: its name in the paper.
        labels: how many images are labelled.
        variant: what else a column is of; '' where the table has a column for each `labels`.
        method: the words of a configuration's argument that say what is run, on any dataset.
        mean: mIoU in percent.
        std: standard deviation over the runs; None where there is none.
        setup: the words that only the table's own file needs, as of the network.
    """

    row: str
    labels: int
    variant: str
    method: str
    mean: float
    std: float | None
    setup: str = ''


class Table(NamedTuple):
    """One table.

    Attributes:
        title: what it shows.
        file: the file of configs/ that has its runs.
        protocol: the word that this file needs beside a cell's; '' for none.
        cells: row by row.
        source: whose numbers they are.
        note: what they are.
    """

    title: str
    file: str
    protocol: str
    cells: tuple[Cell, ...]
    source: str = 'paper'
    note: str = 'The published numbers are the best of many evaluations on val.'


def row(
    name: str,
    method: str,
    labels: tuple[int, ...],
    means: tuple[float, ...],
    stds: tuple[float | None, ...] | None = None,
    variant: str = '',
) -> tuple[Cell, ...]:
    """Return the cells of a row, for each number of labelled images its mean."""
    stds = stds or (None,) * len(means)
    return tuple(
        Cell(name, count, variant, method, mean, std)
        for count, mean, std in zip(labels, means, stds, strict=True)
    )


def runs(
    name: str,
    method: str,
    setup: str,
    labels: tuple[int, ...],
    logs: tuple[float | tuple[float, ...], ...],
) -> tuple[Cell, ...]:
    """Return the cells of a row whose numbers are of logs.

    Args:
        name: the row's.
        method: name in `css_jax.methods.METHODS`.
        setup: of the cells.
        labels: how many images are labelled.
        logs: number for each, or the numbers of several logs.
    """
    every = [log if isinstance(log, tuple) else (log,) for log in logs]
    return tuple(
        Cell(
            name, count, '', method, statistics.mean(numbers),
            statistics.stdev(numbers) if len(numbers) > 1 else None, setup,
        )
        for count, numbers in zip(labels, every, strict=True)
    )  # fmt: skip
