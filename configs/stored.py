"""The configuration of a run that is there: configs/stored.py:DIR; main takes it by itself."""

from ml_collections import ConfigDict

from css_jax.config import file


def get_config(workdir: str) -> ConfigDict:
    """Return what DIR/config.json has."""
    return file.read(workdir)
