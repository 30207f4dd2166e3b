"""--mode stages: USSS from its two runs, the second on label embeddings of the first.

DIR/stage1 is a run of `usss_basic`, DIR/embeddings.npz what `--mode embeddings` makes of it, and
DIR/stage2 the run that is asked for. The same command resumes wherever it has stopped.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax import prepare, state, train
from css_jax.methods import METHODS, usss, usss_rows
from css_jax.modes import embeddings
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder

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
    made, second = workdir / usss_rows.FILE, ConfigDict(config.to_dict())
    second.usss.embeddings = str(made)
    if checkpoint.exists(workdir / SECOND):  # by the path that it was begun with
        second.usss.embeddings = run_folder.load(workdir / SECOND).usss.embeddings
    else:
        _check(config, workdir / SECOND)
    LOG.info('stage 1 of 2: %s', workdir / FIRST)
    train.train(first, workdir / FIRST)
    if not made.exists():
        made.with_suffix('.png').unlink(missing_ok=True)  # of an attempt that was stopped
        embeddings.make(first, workdir / FIRST, made)
    LOG.info('stage 2 of 2: %s', workdir / SECOND)
    return train.train(second, workdir / SECOND)


def _check(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trace the second run, so that what it cannot do is known before the first one trains.

    Raises:
        ValueError: see `css_jax.prepare.prepare`; or the embedding is wider than the features.
    """
    run = prepare.prepare(config, workdir)
    student = state.networks(run.method, run.ctx)['student']
    channels = student.params['head_embedding']['kernel'].shape[2]
    if (wanted := run.config.usss.embedding_dim) > channels:
        raise ValueError(
            f'usss.embedding_dim: got {wanted}, expected at most the {channels} channels of the '
            'features'
        )
