"""The methods by name. A method is one file and one entry here; see `css_jax.methods.method`."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from css_jax import models
from css_jax.methods import (
    cosa,
    css,
    imas,
    mean_teacher,
    supervised,
    unimatch,
    unimatch_supervised,
    usss,
)
from css_jax.methods.method import Evaluation, Method, computing
from css_jax.state import Context

METHODS: dict[str, Method] = {
    'supervised': supervised.METHOD,
    'mean_teacher': mean_teacher.METHOD,
    'cutmix': mean_teacher.CUTMIX,
    'baseline': css.BASELINE,
    'css_cross': css.CROSS,
    'css_mix': css.MIX,
    'css': css.METHOD,
    'imas': imas.METHOD,
    'imas_supervised': imas.SUPERVISED,
    'unimatch': unimatch.METHOD,
    'unimatch_v1': unimatch.V1,
    'fixmatch': unimatch.FIXMATCH,
    'unimatch_supervised': unimatch_supervised.METHOD,
    'cosa': cosa.METHOD,
    'usss_single': usss.SINGLE,
    'usss_basic': usss.BASIC,
    'usss_cross': usss.CROSS,
    'usss_full': usss.FULL,
}

__all__ = ['METHODS', 'Evaluation', 'Method', 'context', 'phases']


def phases(config: ConfigDict) -> list[tuple[int, Method]]:
    """Return [(until step, method)] of a run: what `config.method` runs before, and itself.

    Args:
        config: finalised.

    Raises:
        ValueError: the phases do not follow one another, or read a stream that the method does
            not.
    """
    method = METHODS[config.method]
    found = [*method.phases(config), (config.steps, method)]
    untils = [until for until, _ in found]
    if untils != sorted(untils) or untils[0] < 0:
        raise ValueError(
            f'method {config.method}: its phases end at steps {untils}, expected numbers that grow '
            f'up to steps={config.steps}'
        )
    for until, phase in found:
        for stream, reads in phase.streams.items():
            if method.streams.get(stream) != reads:
                raise ValueError(
                    f'method {config.method}: its phase until step {until} reads {reads!r} of '
                    f'stream {stream!r}, expected one of its own streams, {dict(method.streams)}'
                )
    return found


def context(
    config: ConfigDict, axis: str | None = None, images: Mapping[str, int] | None = None
) -> Context:
    """Return the network of `config.method`, with the configuration, as methods take them.

    Args:
        config: finalised.
        axis: name of the device axis, or None.
        images: stream -> how many images it has; training needs it, evaluation does not.
    """
    with computing(f'the heads of method {config.method}'):
        outputs = METHODS[config.method].outputs(config)
    module = models.build(config.model, config.num_classes, outputs, axis_name=axis)
    return Context(module, config, axis, images or {})
