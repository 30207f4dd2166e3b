"""Command line: python -m css_jax.main --config FILE[:ARG] --workdir DIR [--mode MODE].

Any key of the configuration can be set, as in --config.optimizer.learning_rate=0.01; the table of
keys is css_jax/config.py.
"""

import logging
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from css_jax import overrides

# Read when jax is imported, which a file of configs/ already does.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'css_jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))

MODES = {
    'train': 'train, or go on with the run in DIR, then evaluate',
    'evaluate': 'restore a checkpoint from DIR and evaluate it',
    'preview': 'write what the network sees and what a step costs to DIR, without training',
    'pseudo_labels': 'measure the pseudo-labels of the run in DIR against the truth, by class',
    'convert': 'a checkpoint of the reference to a run (--source), or a run to one (--target)',
    'report': 'compare the runs in the folders of DIR: a table and a picture',
    'sweep': 'run a table of the paper over seeds, each run in a folder of its own in DIR',
}
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'

_CONFIG = flags.DEFINE_string(
    'config',
    None,
    'FILE[:ARG] of configs/; default: that of the run in DIR, or quickstart.py; '
    '--config.KEY=VALUE changes a key of it',
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run', required=True)
_MODE = flags.DEFINE_enum(
    'mode', 'train', list(MODES), '; '.join(f'{name}: {text}' for name, text in MODES.items())
)
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'last', 'to evaluate: last, best or a step')
_SOURCE = flags.DEFINE_string('source', None, 'to convert: checkpoint of the reference, to read')
_TARGET = flags.DEFINE_string('target', None, 'to convert: checkpoint of the reference, to write')
_SWEEP = {
    'table': flags.DEFINE_string('table', None, 'to sweep: its number in the paper'),
    'seeds': flags.DEFINE_list('seeds', None, 'of a sweep; default: 0,1,2'),
    'labels': flags.DEFINE_list(
        'labels', None, "numbers of labelled images of a sweep, as in 8,16; default: the paper's"
    ),
    'print_commands': flags.DEFINE_bool(
        'print_commands', None, 'print the commands of a sweep, one a line, and run nothing'
    ),
}


def main(argv: list[str]) -> None:
    """Runs one mode; a mistake of the user is one line, not a traceback."""
    argv, changes = overrides.split(argv)
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags start with --')
    # Orbax warns at every checkpoint that was not evaluated; what fails, it raises.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.basicConfig(format='%(message)s', stream=sys.stdout, force=True)
    logging.getLogger('css_jax').setLevel(logging.INFO)
    try:
        _run(changes)
    except (ValueError, OSError, FloatingPointError) as error:
        _stop(error)
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from the last checkpoint', file=sys.stderr)
        sys.exit(130)


def _run(changes: Mapping[str, str | None]) -> None:
    from css_jax import convert, evaluate, preview, quality, report, sweep, train

    if not _WORKDIR.value:
        raise ValueError('--workdir is empty: expected a folder')
    workdir, mode, which = pathlib.Path(_WORKDIR.value), _MODE.value, _CHECKPOINT.value
    given = {name: flag.value for name, flag in _SWEEP.items() if flag.value is not None}
    if given and mode != 'sweep':
        raise ValueError(f'--{next(iter(given))}: expected with --mode=sweep, got {mode}')
    if mode == 'sweep':
        sweep.sweep(workdir, config=_CONFIG.value, changes=changes, **given)
        return
    config = overrides.load(_config_path())
    config.update_from_flattened_dict(overrides.values(config, changes))
    if which != 'last' and mode not in ('evaluate', 'pseudo_labels', 'convert'):
        raise ValueError(f'--checkpoint={which}: expected with --mode=evaluate, got {mode}')
    source, target = _SOURCE.value, _TARGET.value
    if (source or target) and mode != 'convert':
        raise ValueError(f'--source and --target: expected with --mode=convert, got {mode}')
    if mode == 'convert' and bool(source) == bool(target):
        raise ValueError(
            '--mode=convert: expected either --source=FILE, which is made the run in --workdir, or '
            '--target=FILE, to which that run is written'
        )
    if mode == 'train':
        train.train(config, workdir)
    elif mode == 'evaluate':
        evaluate.evaluate(config, workdir, which)
    elif mode == 'pseudo_labels':
        quality.quality(config, workdir, which)
    elif mode == 'convert' and source:
        convert.to_run(config, source, workdir)
    elif mode == 'convert':
        convert.to_file(workdir, target, which)
    elif mode == 'preview':
        preview.preview(config, workdir)
    else:
        report.report(workdir)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags but for changes to the configuration, which it leaves to `main`.

    Returns:
        The program's name, what is no flag, and the changes.
    """
    others, changes = overrides.split(argv)
    try:
        return [*flags.FLAGS(others), *overrides.arguments(changes)]
    except flags.Error as error:
        _stop(error)


def _config_path() -> str:
    """The configuration to take: without --config that of the run in DIR, else the quickstart's."""
    if _CONFIG.value is not None:
        return _CONFIG.value
    has_run = (pathlib.Path(_WORKDIR.value) / 'config.json').exists()
    if has_run or _MODE.value in ('evaluate', 'pseudo_labels'):
        return f'{CONFIGS / "stored.py"}:{_WORKDIR.value}'
    return str(CONFIGS / 'quickstart.py')


def _stop(error: Exception) -> NoReturn:
    if os.environ.get('CSS_JAX_TRACEBACK'):
        raise error
    sys.exit(f'error: {error}\n(--help lists the flags, CSS_JAX_TRACEBACK=1 shows where)')


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
