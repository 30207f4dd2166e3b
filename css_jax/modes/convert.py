"""--mode convert: checkpoints of other programs into runs, and runs into such checkpoints.

A checkpoint of the reference program is {'model': student, 'ema_model': teacher, 'prototypes':
[C, D]}, the first two by the names of `css_jax.weights.reference`. One of UniMatch V2, which has
networks of family dpt on a DINOv2, is {'model': student, 'model_ema': teacher}, by the names of
`css_jax.weights.dinov2`. `.pth` keeps it as it is; `.npz` and `.safetensors` join the names by
dots: 'ema_model.resnet_conv1.weight'.
"""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from css_jax import config as configs
from css_jax import methods, state
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from css_jax.weights import dinov2, files, initial, reference

LOG = logging.getLogger('css_jax')


class Program(NamedTuple):
    """A program whose checkpoints are known.

    Attributes:
        whose: the program, as it is called in messages.
        networks: 'student' and 'teacher' -> what its checkpoints call them.
        to_ours: state dict -> variables.
        to_theirs: variables -> state dict.
        front: what stands in front of the names of a state dict that it writes.
    """

    whose: str
    networks: Mapping[str, str]
    to_ours: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]
    to_theirs: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
    front: str = ''


REFERENCE = Program(
    'the reference',
    {'student': 'model', 'teacher': 'ema_model'},
    reference.from_reference,
    reference.to_reference,
)
UNIMATCH = Program(
    'UniMatch V2',
    {'student': 'model', 'teacher': 'model_ema'},
    lambda arrays: {'params': dinov2.from_torch(arrays)},
    dinov2.to_torch,
    front='module.',
)
# A converted run counts as one of at least so many steps: the teacher's EMA is past its warm-up.
LEAST_STEP = 10_000


def program(model: Any) -> Program:
    """Return the program that has the networks of `model`, which is config.model."""
    return UNIMATCH if dinov2.named(model) else REFERENCE


def to_run(
    config: ConfigDict, source: str | pathlib.Path, workdir: str | pathlib.Path
) -> pathlib.Path:
    """Make a run folder of a checkpoint of another program: evaluate it, or start from it.

    Args:
        config: of the run that the checkpoint would be of; its network must fit, and says which
            program it is, see `program`.
        source: the file, see `css_jax.weights.files`; names may start with 'module.'. Without a
            teacher in it that is the student's copy.
        workdir: a new or empty folder.

    Returns:
        The folder: config.json, and one checkpoint with a fresh optimiser.

    Raises:
        ValueError: the configuration is impossible, or the file is of another network.
        FileExistsError: the folder has something in it.
        FileNotFoundError: the file is not there.
    """
    config, workdir = configs.finalise(config), pathlib.Path(workdir)
    files.check(source, '--source')
    if workdir.exists() and any(workdir.iterdir()):
        raise FileExistsError(f'{workdir} has files in it: expected a new or empty folder')

    method, ctx = methods.METHODS[config.method], methods.context(config)
    arrays, theirs = files.read(source), program(config.model)
    shapes, called = state.flat(state.shapes(ctx)), theirs.networks
    given = {part: _network(arrays, name, source, theirs) for part, name in called.items()}
    if not given['student']:
        raise ValueError(
            f"{source} has no 'model', as {theirs.whose}'s checkpoints have; there are "
            f'{reference.listed(list(arrays))}'
        )
    if not given['teacher']:
        LOG.info('no %r in %s: the teacher is a copy of the student', called['teacher'], source)
        given['teacher'] = given['student']
    for part, network in given.items():
        wrong = initial.differences(network, shapes)
        wrong += [f'{path} is not here' for path in network if path not in shapes]
        wrong += [f'{path} is not finite' for path in state.not_finite(network)]
        if wrong:
            raise ValueError(
                f'{source}: {called[part]} is of another network: {reference.listed(wrong)}. '
                f'Here: {initial.described(config)}'
            )
    given['memory'] = _memory(arrays, method.init_memory(config), source)

    run_folder.claim(config, workdir)
    start = state.create(method, method.optimizer(config)[0], ctx, given)
    step = max(config.steps, LEAST_STEP)
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        # Nobody knows the images it was trained on. The counters have no place in our state.
        meta = {'split_hash': None, 'num_batches_tracked': _counters(arrays)}
        checkpoints.save(step, start.replace(step=jnp.int32(step)), meta)
    LOG.info('%s: %d arrays -> %s, step %d', source, len(arrays), workdir, step)
    return workdir


def to_file(
    workdir: str | pathlib.Path, target: str | pathlib.Path, which: str = 'last'
) -> pathlib.Path:
    """Write a run's student, teacher and prototypes by another program's names, see `program`.

    Of a method without a teacher the student is written alone.

    BatchNorm's `num_batches_tracked`, which torch's strict loading asks for, is what the checkpoint
    of the reference had that the run was made of, else the step.

    Args:
        workdir: the run's folder.
        target: a new file ending in .pth, .npz or .safetensors.
        which: 'last', 'best' or a step.

    Returns:
        The file.

    Raises:
        ValueError: the network has arrays that the program has no name for.
        FileExistsError: the file is there already.
        FileNotFoundError: there is no such run or checkpoint.
    """
    target = pathlib.Path(target)
    files.check_format(target, '--target')
    if target.exists():
        raise FileExistsError(f'--target: {target} is there already: expected a new file')
    theirs = program(run_folder.load(workdir).model)
    step = checkpoint.find(workdir, which)
    saved = checkpoint.restore_arrays(workdir, step, (*theirs.networks, 'memory'))
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
        counters = checkpoints.meta(step).get('num_batches_tracked', {})
    tree: dict[str, Any] = {}
    for part, name in theirs.networks.items():
        if not saved[part]:  # a method without a teacher
            continue
        network = theirs.to_theirs(unflatten_dict(saved[part], sep='/'))
        own = {n.removeprefix(f'{name}.'): count for n, count in counters.items()}
        network |= reference.counters(network, step, own)
        tree[name] = {f'{theirs.front}{n}': array for n, array in network.items()}
    if 'prototypes' in saved['memory']:
        tree['prototypes'] = saved['memory']['prototypes']
    files.write(target, tree)
    LOG.info('%s, step %d: %s -> %s', workdir, step, ', '.join(tree), target)
    return target


def _network(
    arrays: dict[str, np.ndarray], name: str, source: str | pathlib.Path, theirs: Program
) -> dict[str, np.ndarray]:
    """Return path -> array of the network called `name`, {} if there is none."""
    prefix = f'{name}.'
    network = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    if not network:
        return {}
    try:
        return state.flat(theirs.to_ours(network))
    except ValueError as error:
        raise ValueError(f"{source}: {name} is not {theirs.whose}'s network: {error}") from None


def _counters(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    counters = {k: v for k, v in arrays.items() if k.endswith('num_batches_tracked')}
    return {k.replace('.module.', '.', 1): int(np.ravel(v)[0]) for k, v in counters.items()}


def _memory(
    arrays: dict[str, np.ndarray], memory: dict[str, Any], source: str | pathlib.Path
) -> dict[str, np.ndarray]:
    """Return the prototypes, and which classes have one: the reference's start as zeros."""
    if 'prototypes' not in memory:
        return {}
    if 'prototypes' not in arrays:
        LOG.info('no prototypes in %s: no class has one', source)
        return {}
    prototypes = np.asarray(arrays['prototypes'], np.float32)
    if prototypes.shape != memory['prototypes'].shape:
        raise ValueError(
            f'{source}: prototypes have {prototypes.shape}, expected {memory["prototypes"].shape}'
        )
    return {'prototypes': prototypes, 'seen': (prototypes != 0).any(-1)}
