"""Runs that are counted in epochs, as some authors' are: steps = epochs x steps of an epoch."""

from collections.abc import Callable
from typing import Any

from css_jax.data import splits


def images(stream: str) -> Callable[[Any], int]:
    """Return a default that counts the images of a stream."""
    return lambda c: len(splits.subset(stream, c.data.streams, splits.load(c.data)))


def steps(group: str, per_epoch: Callable[[Any], int]) -> Callable[[Any], int | None]:
    """Return the default of `steps` from the key GROUP.epochs, None where that is 0.

    Args:
        group: of the method's keys.
        per_epoch: configuration -> steps of an epoch.
    """

    def value(config: Any) -> int | None:
        epochs = config[group].epochs
        return epochs * per_epoch(config) if epochs else None

    return value


def warnings(config: Any, group: str, per_epoch: int) -> list[str]:
    """Say where `steps` is set, so that GROUP.epochs counts for nothing.

    Args:
        config: finalised.
        group: of the method's keys.
        per_epoch: steps of an epoch.
    """
    epochs = config[group].epochs
    if not epochs or config.steps == epochs * per_epoch:
        return []
    return [
        f'{group}.epochs={epochs} has no effect: steps={config.steps} is set, which is '
        f'{config.steps / per_epoch:.1f} epochs'
    ]
