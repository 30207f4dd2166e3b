"""--mode export: a run's network in a file for other programs: ONNX, StableHLO or torch.

ONNX and StableHLO are the network with its preprocessing, see `css_jax.export`. For
torch it is the arrays alone, by the names of a program that has the same network; `--mode convert
--target` writes both networks and the prototypes, as a checkpoint of CSS's program has them.
"""

import logging
import pathlib
import tempfile

from flax.traverse_util import unflatten_dict

from css_jax.export import onnx, stablehlo
from css_jax.export import program as programs
from css_jax.run import checkpoint, files
from css_jax.run import folder as run_folder
from css_jax.weights import files as weight_files
from css_jax.weights import state_dicts

LOG = logging.getLogger('css_jax')
# Format -> endings of its files.
FORMATS = {
    'onnx': ('.onnx',),
    'stablehlo': ('.stablehlo',),
    'torch': ('.pth', '.pt', '.npz', '.safetensors'),
}


def export(
    workdir: str | pathlib.Path,
    target: str | pathlib.Path,
    form: str | None = None,
    which: str = 'last',
    evaluation: str | None = None,
    size: str | None = None,
) -> pathlib.Path:
    """Write the network that a run is evaluated with to a file.

    The run may be in training. The file is written whole or not at all.

    Args:
        workdir: the run's folder.
        target: a new file.
        form: one of `FORMATS`; None: by the ending of `target`.
        which: 'last', 'best' or a step.
        evaluation: of a method with several, whose classes to predict; None: the first one's.
        size: 'HEIGHT,WIDTH' of the images; None: see `programs.load`.

    Returns:
        The file.

    Raises:
        ValueError: an argument is impossible, the network cannot be had in this format, or what
            writes the format is not installed.
        FileExistsError: the file is there already.
        FileNotFoundError: there is no such run or checkpoint.
    """
    target = pathlib.Path(target)
    form, pair = format_of(target, form), size_of(size)
    if form == 'torch' and size is not None:
        raise ValueError(f'--export_size={size}: expected with --format=onnx, stablehlo, got torch')
    _check_target(target, form)
    config = run_folder.load(workdir)
    evaluated = programs.chosen(config, evaluation)
    step = checkpoint.find(workdir, which)
    if form == 'torch':
        return _to_torch(workdir, target, config.model, step, evaluated.network)

    changes = onnx.CHANGES if form == 'onnx' else {}
    program = programs.load(workdir, config, step, evaluated, pair, changes)
    LOG.info('%s, step %d: converting to %s, which takes a minute or so', workdir, step, form)
    make = {'onnx': onnx, 'stablehlo': stablehlo}[form]
    data, told = make.to_bytes(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write(target, data)
    for line in ('protocol', 'input', 'outputs', 'preprocessing'):
        LOG.info('%s: %s', line, program.about[line])
    LOG.info('batch: any number; height and width: fixed')
    LOG.info('classes: %s', ', '.join(program.about['classes']))
    LOG.info('written: %s, %.1f MB, %s', target, len(data) / 1e6, told)
    return target


def format_of(target: pathlib.Path, form: str | None) -> str:
    """Return the format of a file.

    Args:
        target: the file.
        form: the format, if it was said.

    Raises:
        ValueError: the ending of the file is of another format, or of none.
    """
    expected = FORMATS[form] if form else [e for endings in FORMATS.values() for e in endings]
    if target.suffix not in expected:
        asked = f' with --format={form}' if form else ''
        raise ValueError(
            f'--target: got {str(target)!r}, expected a file ending in {", ".join(expected)}{asked}'
        )
    return form or next(name for name, endings in FORMATS.items() if target.suffix in endings)


def size_of(text: str | None) -> tuple[int, int] | None:
    """Return the height and width that 'HEIGHT,WIDTH' says.

    Raises:
        ValueError: it does not say two whole numbers above 0.
    """
    if text is None:
        return None
    sides = [side.strip() for side in text.split(',')]
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f'--export_size: got {text!r}, expected HEIGHT,WIDTH, as in 480,640')
    return int(sides[0]), int(sides[1])


def _check_target(target: pathlib.Path, form: str) -> None:
    """Raise unless the file can be written, before anything is computed."""
    if target.exists():
        raise FileExistsError(f'--target: {target} is there already: expected a new file')
    there = next(path for path in target.absolute().parents if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f'--target={target}: {there} is a file, expected a folder')
    try:  # what the system calls writable may be a read-only disk, or take no files, as /proc
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f'--target={target}: {there} cannot be written: {error.strerror}') from error
    if form == 'torch':
        weight_files.check_format(target, '--target')
    else:
        {'onnx': onnx, 'stablehlo': stablehlo}[form].check()


def _to_torch(
    workdir: str | pathlib.Path,
    target: pathlib.Path,
    model: object,
    step: int,
    network: str,
) -> pathlib.Path:
    """Write the arrays of a network; see `css_jax.weights.state_dicts`."""
    arrays = checkpoint.restore_arrays(workdir, step, (network,))[network]
    if not arrays:
        raise ValueError(f'the run has no {network}')
    whose, found = state_dicts.convert(model, unflatten_dict(arrays, sep='/'), step)
    weight_files.write(target, found)
    LOG.info('%s, step %d: %d arrays of the %s', workdir, step, len(found), network)
    LOG.info('by the names of %s, whose program has this network; without preprocessing', whose)
    LOG.info('written: %s', target)
    return target
