"""The mean and standard deviation of pixels that a run's first weights expect."""

import pathlib
from typing import Any

from css_jax.config import file
from css_jax.models import backbones
from css_jax.models.backbones import Pixels


def normalisation(config: Any, workdir: str | pathlib.Path | None = None) -> Pixels:
    """Return mean and standard deviation of RGB in [0, 1] that the first weights expect.

    Those of the run to start from, else of the backbone's published weights, else ImageNet's. Opens
    no file of weights.

    Args:
        config: has init_from, model.pretrained, model.backbone.
        workdir: the run's own folder, if it has one: what has started from `init_from` already
            knows, and `init_from` may be gone.

    Raises:
        FileNotFoundError: init_from is not a run's folder.
    """
    if config.init_from:
        data = (_begun(config, workdir) or _source(config.init_from))['data']
        return Pixels(tuple(data['mean']), tuple(data['std']))
    return backbones.pixels(config.model)


def _begun(config: Any, workdir: str | pathlib.Path | None) -> dict | None:
    """Return the values of the run in `workdir` if it is one from the same `init_from`."""
    if workdir is None or not (pathlib.Path(workdir) / file.NAME).exists():
        return None
    run = file.values(workdir)
    return run if run.get('init_from') == config.init_from else None


def _source(folder: str) -> dict:
    try:
        return file.values(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'init_from: {error}') from None
