"""Command line: python -m css_jax.main --config FILE[:ARG] --workdir DIR [--mode MODE].

Any key of the configuration can be set, as in --config.optimizer.learning_rate=0.01; the table of
keys is css_jax/config/table.py, those of a method stand in its file.
"""

import logging
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

# Read when jax is imported, which the table of keys already does.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'css_jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))

from css_jax import parallel  # noqa: E402
from css_jax.config import command_line  # noqa: E402
from css_jax.modes import MODES  # noqa: E402

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
flags.DEFINE_string('checkpoint', None, 'to read: last (default), best or a step')
flags.DEFINE_multi_string(
    'source',
    None,
    'to convert: checkpoint of the reference, to read; to predict: images, folders, globs and '
    'videos, several paths or several times',
)
flags.DEFINE_string(
    'target',
    None,
    'to convert: checkpoint of the reference, to write; of embeddings: their file; of predictions: '
    'their folder; of export: a new file',
)
flags.DEFINE_string(
    'evaluation',
    None,
    'of a method with several: whose classes, to predict, export; default: the first',
)
flags.DEFINE_bool('confidence', None, 'to predict: write maps of confidence and similarity too')
flags.DEFINE_bool(
    'for_labelling', None, "to predict: write LabelMe's polygons of what is confident too"
)
flags.DEFINE_float('threshold', None, 'of --for_labelling: least confidence; default: 0.9')
flags.DEFINE_integer(
    'max_side',
    None,
    'to predict: images with a longer side are made smaller to it; 0: none is; default: as the '
    "run's images were prepared",
)
flags.DEFINE_integer(
    'max_pixels',
    None,
    'to predict: that an image may have, as large ones fill the memory; default: 89,478,485',
)
flags.DEFINE_enum(
    'format',
    None,
    ['onnx', 'stablehlo', 'torch'],
    'of export; default: by the ending of --target',
)
flags.DEFINE_string(
    'export_size', None, "HEIGHT,WIDTH of an export's images; default: as the run is evaluated"
)
flags.DEFINE_string('coordinator', None, 'host:port of process 0 of a run of several processes')
flags.DEFINE_integer('process_count', None, 'how many they are; 1: this one alone, cluster or not')
flags.DEFINE_integer('process_id', None, 'which this one is, from 0; clusters tell all three')
flags.DEFINE_string(
    'table', None, 'to sweep: 1 | 2 | 3 | 5 | 6 | 7 | imas:classic | imas:blended | imas:cityscapes'
)
flags.DEFINE_list('seeds', None, 'of a sweep; default: 0,1,2')
flags.DEFINE_list(
    'labels', None, "numbers of labelled images of a sweep, as in 8,16; default: the paper's"
)
flags.DEFINE_bool(
    'print_commands', None, 'print the commands of a sweep, one a line, and run nothing'
)
# Flag -> the modes that read it; --config has the changes of its keys with it.
_PREDICT = ('evaluation', 'max_side', 'max_pixels', 'confidence', 'for_labelling', 'threshold')
_SWEEP = ('table', 'seeds', 'labels', 'print_commands')
_EXPORT = ('format', 'evaluation', 'export_size')
_PROCESSES = ('coordinator', 'process_count', 'process_id')
READ_BY = {
    'config': [mode for mode in MODES if mode not in ('report', 'export')],
    'checkpoint': ['evaluate', 'pseudo_labels', 'convert', 'embeddings', 'predict', 'export'],
    'source': ['convert', 'predict'],
    'target': ['convert', 'embeddings', 'predict', 'export'],
    **{name: ['predict'] for name in _PREDICT},
    **{name: ['export'] for name in _EXPORT},
    'evaluation': ['predict', 'export'],
    **{name: ['sweep'] for name in _SWEEP},
    **{name: ['train', 'evaluate'] for name in _PROCESSES},
    'process_count': list(MODES),  # 1 in all of them
}


def main(argv: list[str]) -> None:
    """Run one mode; a mistake of the user is one line, not a traceback."""
    from css_jax.run import memory, progress, signals

    argv, changes = command_line.split(argv)
    # A shell gives the files of a glob after --source, of which the first is the flag's.
    takes_more = _MODE.value == 'report' or (_MODE.value == 'predict' and flags.FLAGS.source)
    if len(argv) > 1 and not takes_more:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags start with --')
    # Orbax warns at every checkpoint that was not evaluated; what fails, it raises.
    absl_logging.set_verbosity(absl_logging.ERROR)
    sys.unraisablehook = _unraisable
    lines = progress.Lines(sys.stdout)
    logging.basicConfig(format='%(message)s', handlers=[lines], force=True)
    logging.getLogger('css_jax').setLevel(logging.INFO)
    goes_on = '; the same command resumes from the last checkpoint'
    try:
        with memory.mode(_MODE.value):
            _run(changes, argv[1:])
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        how = goes_on if _MODE.value in ('train', 'sweep', 'stages') else ''
        print(f'\nstopped{how}', file=sys.stderr)
        parallel.leave(130)
    except Exception as error:
        in_words = isinstance(error, (ValueError, OSError, FloatingPointError))
        _, count = parallel.process()
        if not in_words or os.environ.get('CSS_JAX_TRACEBACK'):
            if count == 1:
                raise
            traceback.print_exc()
        if not in_words:  # as where data is exchanged with a process that has ended
            how = goes_on if _MODE.value == 'train' else ''
            error = f'{_first_line(error)}; if another process has ended, it says why{how}'
        print(_sentence(error), file=sys.stderr)
        parallel.leave(1)


def _run(changes: Mapping[str, str | None], paths: Sequence[str]) -> None:
    workdir, mode = pathlib.Path(_WORKDIR.value), _MODE.value
    given = _given(changes)
    _join(mode, given)
    from css_jax import train
    from css_jax.modes import (
        convert,
        embeddings,
        evaluate,
        export,
        predict,
        preview,
        pseudo_labels,
        report,
        stages,
        sweep,
    )

    which = given.get('checkpoint', 'last')
    if mode == 'sweep':
        arguments = {name: given[name] for name in _SWEEP if name in given}
        sweep.sweep(workdir, config=_CONFIG.value, changes=changes, **arguments)
        return
    if mode == 'report':
        report.report([workdir, *paths])
        return
    if mode == 'export':
        form, *asked = (given.get(name) for name in _EXPORT)
        export.export(workdir, given.get('target'), form, which, *asked)
        return
    if mode == 'convert' and given.get('target'):
        convert.to_file(workdir, given['target'], which)
        return
    with parallel.together():
        config = command_line.load(_config_path(), changes)
        config.update_from_flattened_dict(command_line.values(config, changes))
    if mode == 'train':
        train.train(config, workdir)
    elif mode == 'evaluate':
        evaluate.evaluate(config, workdir, which)
    elif mode == 'predict':
        asked = predict.Asked(**{name: given[name] for name in _PREDICT if name in given})
        every = [*given['source'], *paths]
        predict.predict(config, workdir, every, given['target'], which, asked)
    elif mode == 'pseudo_labels':
        pseudo_labels.pseudo_labels(config, workdir, which)
    elif mode == 'embeddings':
        embeddings.make(config, workdir, given.get('target'), which)
    elif mode == 'stages':
        stages.stages(config, workdir)
    elif mode == 'convert':
        convert.to_run(config, given['source'][0], workdir)
    else:
        file = f'{workdir}/config.json' if _stored() else _config_path()
        preview.preview(config, workdir, file, changes)


def _join(mode: str, given: Mapping[str, Any]) -> None:
    """Join the other processes of this run, if there are any; process 0 alone logs."""
    parallel.start(*(given.get(name) for name in _PROCESSES))
    index, count = parallel.process()
    if count > 1 and mode not in READ_BY['coordinator']:
        expected = ', '.join(READ_BY['coordinator'])
        raise ValueError(
            f'--mode={mode} runs in one process, got {count}: several are for {expected}; on a '
            'cluster --process_count=1 keeps a process alone'
        )
    if index > 0:
        logging.getLogger('css_jax').setLevel(logging.ERROR)
    if count > 1 and mode != 'train':  # where SIGTERM is caught to save, see `parallel.stops`
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _given(changes: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the flags that are set, by name, once it is sure that this mode reads them all.

    Raises:
        ValueError: it does not, or --workdir cannot be a folder; says what is expected.
    """
    if not _WORKDIR.value:
        raise ValueError('--workdir is empty: expected a folder')
    workdir, mode = pathlib.Path(_WORKDIR.value), _MODE.value
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f'--workdir={workdir}: {there} is no folder')

    given = {name: flags.FLAGS[name].value for name in READ_BY}
    given = {name: value for name, value in given.items() if value is not None}
    shown = {name: f'--{name}' for name in given}
    if changes:
        shown['config'] = command_line.arguments(changes)[0]
    for name, flag in shown.items():
        if mode not in READ_BY[name]:
            expected = ', '.join(READ_BY[name])
            raise ValueError(f'{flag}: expected with --mode={expected}, got {mode}')
    if mode == 'export' and not given.get('target'):
        raise ValueError('--mode=export: expected --target=FILE, to which the network is written')
    if mode == 'predict':
        for name, what in (('source', 'PATH...'), ('target', 'FOLDER')):
            if not given.get(name):
                raise ValueError(f'--mode=predict: expected --{name}={what}, got none')
        if 'threshold' in given and not given.get('for_labelling'):
            raise ValueError('--threshold: expected with --for_labelling')
    if mode == 'convert':
        if len(sources := given.get('source', [])) > 1:
            raise ValueError(f'--source: got {", ".join(sources)}, expected one file')
        if bool(given.get('source')) == bool(given.get('target')):
            raise ValueError(
                '--mode=convert: expected either --source=FILE, which is made the run in '
                '--workdir, or --target=FILE, to which that run is written'
            )
        name, other = ('config', 'source') if given.get('target') else ('checkpoint', 'target')
        if name in shown:
            raise ValueError(f'{shown[name]}: expected with --{other}')
    return given


def parse(argv: list[str]) -> list[str]:
    """Parse the flags but for changes to the configuration, which it leaves to `main`.

    Returns:
        The program's name, what is no flag, and the changes.
    """
    others, changes = command_line.split(argv)
    try:
        return [*flags.FLAGS(others), *command_line.arguments(changes)]
    except flags.Error as error:
        sys.exit(_sentence(error))


def _config_path() -> str:
    """The configuration to take: without --config that of the run in DIR, else the quickstart's."""
    if _CONFIG.value is not None:
        return _CONFIG.value
    if _stored():
        return f'{command_line.CONFIGS / "stored.py"}:{_WORKDIR.value}'
    return str(command_line.CONFIGS / 'quickstart.py')


def _stored() -> bool:
    """Say whether the configuration is that of the run in DIR."""
    has_run = (pathlib.Path(_WORKDIR.value) / 'config.json').exists()
    return _CONFIG.value is None and (
        has_run or _MODE.value in ('evaluate', 'predict', 'pseudo_labels', 'embeddings')
    )


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.splitlines()[0]


def _unraisable(given: Any) -> None:
    """Print what could not be raised, but for what a save that failed leaves behind.

    TensorStore tells an event loop that is gone by then of every array that it did not write.
    """
    if str(given.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(given)


def _sentence(error: Exception | str) -> str:
    return f'error: {error}\n(--help lists the flags, CSS_JAX_TRACEBACK=1 shows where)'


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
