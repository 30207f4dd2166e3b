"""Command line: python -m css_jax.main --config FILE[:ARG] --workdir DIR [--mode MODE].

Any key of the configuration can be set, as in --config.optimizer.learning_rate=0.01; the table of
keys is css_jax/config.py.
"""

import argparse
import logging
import os
import pathlib
import re
import sys
from typing import NoReturn

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
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'

_CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='file of configs/; default: that of the run in DIR, or quickstart.py'
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
    except (ValueError, OSError, FloatingPointError) as error:
        _stop(error)
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from the last checkpoint', file=sys.stderr)
        sys.exit(130)


def _run() -> None:
    from css_jax import evaluate, preview, report, train

    if not _WORKDIR.value:
        raise ValueError('--workdir is empty: expected a folder')
    workdir, mode, which = pathlib.Path(_WORKDIR.value), _MODE.value, _CHECKPOINT.value
    if which != 'last' and mode != 'evaluate':
        raise ValueError(f'--checkpoint={which}: expected with --mode=evaluate, got {mode}')
    if mode == 'train':
        train.train(_CONFIG.value, workdir)
    elif mode == 'evaluate':
        evaluate.evaluate(_CONFIG.value, workdir, which)
    elif mode == 'preview':
        preview.preview(_CONFIG.value, workdir)
    else:
        report.report(workdir)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in them or in a file of configs/ is one line too.

    Without --config it is the configuration of the run in DIR, else the quickstart's, so that
    single keys can be set in either case.
    """
    try:
        if not any(re.match(r'--?config(=|$)', argument) for argument in argv):
            argv = [argv[0], f'--config={_default_config(argv)}', *argv[1:]]
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        _stop(error)


def _default_config(argv: list[str]) -> pathlib.Path | str:
    """The file to take where none is given; the flags are not parsed yet."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prefix_chars='-')
    for name in ('workdir', 'mode'):
        reader.add_argument(f'--{name}', f'-{name}', default='')
    known, _ = reader.parse_known_args(argv[1:])
    has_run = known.workdir and (pathlib.Path(known.workdir) / 'config.json').exists()
    if known.workdir and (has_run or known.mode == 'evaluate'):
        return f'{CONFIGS}/stored.py:{known.workdir}'
    return CONFIGS / 'quickstart.py'


def _stop(error: Exception) -> NoReturn:
    if os.environ.get('CSS_JAX_TRACEBACK'):
        raise error
    text = str(error)
    if isinstance(error, KeyError | AttributeError):  # quotes the key, at times twice
        text = 'no such key: ' + text.replace('\\n', '\n').replace('\\', '').replace("'", '')
    text = re.sub(r'^Configuration is not available because of [^:]*: ', '', text.strip())
    lines = text.splitlines()
    # A flag error of a file of configs/ quotes the whole traceback; its last line says it.
    text = lines[-1] if any(line.startswith('Traceback') for line in lines) else '\n'.join(lines)
    sys.exit(f'error: {text}\n(--help lists the flags, CSS_JAX_TRACEBACK=1 shows where)')


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
