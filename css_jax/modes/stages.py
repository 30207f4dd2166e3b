"""--mode stages: USSS from its two runs, the second on label embeddings of the first.

DIR/stage1 is a run of `usss_basic`, DIR/embeddings.npz what `--mode embeddings` makes of it, and
DIR/stage2 the run that is asked for. The same command resumes wherever it has stopped.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import train
from css_jax.methods import METHODS, usss, usss_rows
from css_jax.modes import embeddings

LOG = logging.getLogger('css_jax')
FIRST, SECOND = 'stage1', 'stage2'


def stages(config: ConfigDict, workdir: str | pathlib.Path) -> Mapping[str, Any]:
    """Train on labels alone, make label embeddings, and train the method on these.

    Args:
        config: of the second run, with `usss.embeddings` not set.
        workdir: gets all three; made if missing.

    Returns:
        The results of the second run.

    Raises:
        ValueError: the method has no label embeddings, or a file of them is set.
    """
    workdir = pathlib.Path(workdir)
    method = METHODS.get(config.method)
    if method is None or 'usss.embeddings' not in method.keys:
        own = [name for name, other in METHODS.items() if 'usss.embeddings' in other.keys]
        raise ValueError(
            f'--mode stages: got method {config.method}, expected one of {", ".join(own)}'
        )
    if config.usss.embeddings:
        raise ValueError(
            f'usss.embeddings: got {config.usss.embeddings!r}, expected nothing with --mode '
            'stages, which makes them'
        )
    first = ConfigDict(config.to_dict())
    first.method = 'usss_basic'
    for name in [name for name in first.data.streams if name.startswith(usss.UNLABELLED)]:
        del first.data.streams[name]
    LOG.info('stage 1 of 2: %s', workdir / FIRST)
    train.train(first, workdir / FIRST)
    made = workdir / usss_rows.FILE
    if not made.exists():
        embeddings.make(first, workdir / FIRST, made)
    LOG.info('stage 2 of 2: %s', workdir / SECOND)
    second = ConfigDict(config.to_dict())
    second.usss.embeddings = str(made)
    return train.train(second, workdir / SECOND)
