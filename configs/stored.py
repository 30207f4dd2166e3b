"""The configuration of a run that is there: configs/stored.py:DIR; main takes it by itself."""

from ml_collections import ConfigDict

from css_jax import stored


def get_config(workdir: str) -> ConfigDict:
    """Gives what DIR/config.json has."""
    return stored.load(workdir)
