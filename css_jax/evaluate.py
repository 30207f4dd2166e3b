"""The evaluation of a run by its public name, `css_jax.evaluate.evaluate(config, workdir)`."""

from css_jax.modes.evaluate import evaluate

__all__ = ['evaluate']
