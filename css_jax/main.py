"""Command line: python -m css_jax.main --config FILE[:ARG] --workdir DIR [--mode MODE].

Any key of the configuration can be set, as in --config.optimizer.learning_rate=0.01; the table of
keys is css_jax/config.py.
"""

import logging
import os
import pathlib
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# Read when jax is imported, which a file of configs/ already does.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'css_jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))

MODES = {
    'train': 'train, or go on with the run in DIR, then evaluate',
    'evaluate': 'restore a checkpoint from DIR and evaluate it',
    'preview': 'write what the network sees and what a step costs to DIR, without training',
    'report': 'compare the runs in the folders of DIR: a table and a picture',
}
QUICKSTART = pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py'

_CONFIG = config_flags.DEFINE_config_file(
    'config', help_string=f'file of configs/; default: the one in DIR, or {QUICKSTART.name}'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run', required=True)
_MODE = flags.DEFINE_enum(
    'mode', 'train', list(MODES), '; '.join(f'{name}: {text}' for name, text in MODES.items())
)
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'last', 'to evaluate: last, best or a step')


def main(argv: list[str]) -> None:
    """Runs one mode; a mistake of the user is one line, not a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags start with --')
    # Orbax warns at every checkpoint that was not evaluated; what fails, it raises.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.basicConfig(format='%(message)s', stream=sys.stdout, force=True)
    logging.getLogger('css_jax').setLevel(logging.INFO)
    try:
        _run()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if os.environ.get('CSS_JAX_TRACEBACK'):
            raise
        sys.exit(f'error: {error}')


def _run() -> None:
    from css_jax import config as configs
    from css_jax import evaluate, preview, report, train

    workdir, mode = pathlib.Path(_WORKDIR.value), _MODE.value
    if mode == 'report':
        report.report(workdir)
        return
    config = _CONFIG.value
    if config is None and (mode == 'evaluate' or (workdir / configs.FILE).exists()):
        config = configs.load(workdir)
    elif config is None:
        config = config_flags.config_path_loader(QUICKSTART)
    if mode == 'train':
        train.train(config, workdir)
    elif mode == 'evaluate':
        evaluate.evaluate(config, workdir, _CHECKPOINT.value)
    else:
        preview.preview(config, workdir)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in them or in a file of configs/ is one line too."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        if os.environ.get('CSS_JAX_TRACEBACK'):
            raise
        sys.exit(f'error: {str(error).strip().splitlines()[-1]} (--help lists the flags)')


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
