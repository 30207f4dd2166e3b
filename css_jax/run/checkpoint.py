"""Checkpoints of a run: the only file that knows Orbax.

A checkpoint is the folder DIR/checkpoints/STEP. Every process of a run writes its part of it, and
process 0 adds the checksums of all files before the folder gets its name. They tell damage: the
array format notices much of it too, but may read zeros in the middle of a file as numbers.
"""

import functools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from css_jax import parallel
from css_jax.run import checksums, files
from css_jax.state import TrainState, Variables, flat, not_finite

LOG = logging.getLogger('css_jax')
FOLDER = 'checkpoints'
_WRITING = 300  # seconds that processes wait for each other's part of a checkpoint
SCORES = 'scores.json'  # in a checkpoint's folder, once it was evaluated
_META = 'meta/metadata'  # where Orbax puts the JSON data
_OLD_SCORES = 'metrics/metrics'  # and put the scores of older versions
_CHANGES = ('_CHECKPOINT_METADATA',)  # Orbax writes the time into it last; nothing needs it


class Checkpoints:
    """Saves and restores the states of one run; keeps the latest two and the best by mIoU.

    Saving runs in the background: a step's folder gets its name only once it is complete, so
    a run killed during a save restores the one before. Every process of a run opens its own, and
    all of them call every method with the same arguments.
    """

    def __init__(self, workdir: str | pathlib.Path, read_only: bool = False):
        """Open DIR/checkpoints.

        Opened for training, it moves damaged checkpoints to DIR/checkpoints.damaged, as their
        steps will be saved again, with a warning that names them. Of the newest checkpoint all is
        compared to its checksums; of those before it sizes and small files only.

        Args:
            workdir: the run's folder.
            read_only: nothing is written or cleaned up, as another process may be training.

        Raises:
            ValueError: there are checkpoints, but none is readable; names them all.
        """
        self._folder = pathlib.Path(workdir).absolute() / FOLDER
        self._manager, self._saving = None, None
        if read_only:
            return
        parallel.on_primary(checksums.move, self._folder, _damage)
        self._scores = parallel.from_primary(lambda: list(_scores(self._folder).items()))
        self._scores = {int(step): miou for step, miou in self._scores}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,  # a killed save's remains
                preservation_policy=self,
                # Called in process 0, in the background, when all processes have written.
                # A process that fails to write is found out by the others after `timeout_secs`.
                async_options=ocp.AsyncOptions(
                    timeout_secs=_WRITING, post_finalization_callback=self._sum_up
                ),
            ),
        )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """Keep the latest two and the best; Orbax asks at every save."""
        del context
        steps = [info.step for info in checkpoints]
        scored = {step: self._scores[step] for step in steps if step in self._scores}
        kept = {*sorted(steps)[-2:], *([_best(scored)[0]] if scored else [])}
        return [step in kept for step in steps]

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Save the state of `step`; return when it is copied, so that it may be given away.

        Args:
            step: iterations done.
            state: the whole state; with several processes, arrays over the devices of all.
            meta: small JSON data kept beside it.

        Raises:
            RuntimeError: the step exists already.
            OSError: the disk has no room for it, or the step before could not be written.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(_on_one_device_each, state)),
            meta=ocp.args.JsonSave(dict(meta)),
        )
        self._wait()
        parallel.on_primary(_check_room, self._folder, step, state)
        self._saving = step
        if not self._manager.save(step, args=items):
            raise RuntimeError(f'checkpoint of step {step} was not saved: it exists already')

    def score(self, step: int, miou: float) -> None:
        """Note how a saved step was evaluated; what is then neither late nor best is removed."""
        self._wait()
        text = json.dumps({'miou': miou})
        parallel.on_primary(files.write, self._folder / str(step) / SCORES, text)
        self._scores[step] = miou
        infos = [_Info(step) for step in sorted(self._manager.all_steps())]
        for info, kept in zip(infos, self.should_preserve(infos), strict=True):
            if not kept:
                self._manager.delete(info.step)

    def lacks_score(self, step: int) -> bool:
        """Say whether a step is yet to be evaluated."""
        return step not in self._scores

    def restore(self, like: TrainState) -> TrainState:
        """Restore the latest readable state into the shapes and shardings of `like`.

        Args:
            like: arrays or shapes; their devices need not be those it was saved from.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: the state is of other shapes; names them. Or it cannot be read, or see
                `latest_step`.
        """
        if (step := self.latest_step) is None:
            raise FileNotFoundError(f'no checkpoint in {self._folder.parent}')
        self._wait()
        target, folder = _shapes(like), self._folder / str(step)
        _check_fit(folder, target)
        try:
            return _restore(folder, ocp.StandardCheckpointHandler, ocp.args.StandardRestore(target))
        except ValueError as error:  # of a file that nothing but this reads, without checksums
            said = (str(error) or repr(error)).splitlines()[0]
            raise ValueError(f'checkpoint {folder} cannot be read: {said}') from error

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON data saved beside `step`."""
        self._wait()
        return json.loads((self._folder / str(step) / _META).read_text())

    @property
    def steps(self) -> list[int]:
        """Steps that are there, ascending; read-only, damaged ones too."""
        return sorted(self._manager.all_steps()) if self._manager else checksums.steps(self._folder)

    @property
    def latest_step(self) -> int | None:
        """The newest readable step, None without checkpoints; warns of newer, damaged ones.

        Raises:
            ValueError: there are checkpoints, but none is readable; names them all.
        """
        return self._manager.latest_step() if self._manager else self._newest

    @functools.cached_property
    def _newest(self) -> int | None:
        return parallel.from_primary(checksums.newest, self._folder, _damage)

    def best(self) -> tuple[int, float] | None:
        """Return step and mIoU of the best evaluated checkpoint, None if none was evaluated."""
        self._wait()
        return _best(_scores(self._folder))

    def close(self) -> None:
        """Wait for saves under way."""
        self._wait()
        if self._manager:
            self._manager.close()

    def _wait(self) -> None:
        if not self._manager:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of Orbax's threads, whatever the disk has answered
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(
                f'{self._folder}: step {self._saving} could not be written ({said}); those before '
                'it are kept, and the same command resumes from the last one'
            ) from error

    def _sum_up(self) -> None:
        # Nothing but its name is missing now, and the name follows.
        for folder in self._folder.glob(f'{self._saving}.*'):
            checksums.sum_up(folder, _CHANGES)


def _check_room(folder: pathlib.Path, step: int, state: TrainState) -> None:
    """Raise OSError where the disk has no room for a state."""
    needed = sum(array.nbytes for array in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if free < needed:
        mib = 2**20
        raise OSError(
            f'{folder}: {free / mib:.1f} MiB are free, expected {needed / mib:.1f} MiB for step '
            f'{step}, which is not saved; those before it are kept, and the same command resumes '
            'from the last one'
        )


def find(workdir: str | pathlib.Path, which: str) -> int:
    """Resolve 'last', 'best' or a step number to a step that is there and readable.

    'last' is the newest readable one, with a warning of damaged ones after it. Every process calls
    it, and gets the same answer.

    Raises:
        FileNotFoundError: DIR has no checkpoint, or not that one; says what there is.
        ValueError: it is damaged, or for 'last' all are; names them and says what is readable.
    """
    return parallel.from_primary(_find, pathlib.Path(workdir), which)


def exists(workdir: str | pathlib.Path) -> bool:
    """Say whether a run in DIR has a complete checkpoint, damaged or not, to resume from."""
    return bool(checksums.steps(pathlib.Path(workdir) / FOLDER))


def restore_arrays(
    workdir: str | pathlib.Path, step: int, parts: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Restore parts of a state as they were saved, whatever network they are of.

    Args:
        workdir: the run's folder.
        step: a step that is there, see `find`.
        parts: fields of `TrainState`, such as 'student'.

    Returns:
        Part -> path ('params/conv1/kernel') -> array; {} for what the state has none of.

    Raises:
        FileNotFoundError: it is gone.
    """
    folder = _there(workdir, step)
    saved = _metadata(folder)
    args = _as_numpy({part: saved[part] for part in parts})
    restored = _restore(folder, ocp.PyTreeCheckpointHandler, args)
    _warn_of_nan(folder, restored)
    return {part: flat(restored[part]) for part in parts}


def restore_network(
    workdir: str | pathlib.Path, step: int, like: Variables, network: str = 'teacher'
) -> Variables:
    """Restore one network alone; warn where its numbers are not finite.

    Args:
        workdir: the run's folder.
        step: a step that is there, see `find`.
        like: the network's arrays or their shapes, and their shardings; what has none goes to
            this process's first device.
        network: 'teacher' or 'student'.

    Raises:
        FileNotFoundError: it is gone.
        ValueError: the network is of other shapes; names them.
    """
    target = {network: _shapes(like)}
    args = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    folder = _there(workdir, step)
    _check_fit(folder, target)
    restored = _restore(folder, ocp.PyTreeCheckpointHandler, args)
    _warn_of_nan(folder, restored)
    return restored[network]


def _there(workdir: str | pathlib.Path, step: int) -> pathlib.Path:
    """Return the folder of a step; FileNotFoundError where the run that trains has removed it."""
    folder = pathlib.Path(workdir).absolute() / FOLDER / str(step)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'checkpoint {folder} is gone: a run that trains keeps its latest two and its best; '
            'the same command takes one that is there now'
        )
    return folder


def _warn_of_nan(folder: pathlib.Path, tree: Any) -> None:
    if wrong := not_finite(flat(tree)):
        LOG.warning(
            'warning: %s: %d arrays hold numbers that are not finite, such as %s: what is computed '
            'with them means nothing',
            *(folder, len(wrong), wrong[0]),
        )


def _damage(folder: pathlib.Path, whole: bool = True) -> str | None:
    """Say what is wrong with a checkpoint, in one process and without the others."""
    if (folder / checksums.SUMS).exists():
        return checksums.difference(folder, whole)
    # An older version wrote it, or it is the rest of one. The handler alone, as a checkpointer
    # waits for the other processes.
    try:
        json.loads((folder / _META).read_text())
        ocp.PyTreeCheckpointHandler().restore(folder / 'state', args=_as_numpy(_metadata(folder)))
    except Exception as error:  # whatever Orbax and TensorStore make of it
        return (str(error) or repr(error)).splitlines()[0]
    return None


def _find(workdir: pathlib.Path, which: str) -> int:
    folder = workdir.absolute() / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(
            f'no checkpoint in {workdir}: expected a folder that --mode train has written to'
        )
    steps = checksums.steps(folder)
    if which == 'last' and (newest := checksums.newest(folder, _damage)) is not None:
        return newest
    best, _ = Checkpoints(workdir, read_only=True).best() or (None, None)
    step = best if which == 'best' else int(which) if which.isdigit() else None
    if step not in steps:
        raise FileNotFoundError(
            f'checkpoint {which!r} is not in {workdir}: there are steps {steps}, the best '
            f'evaluated is {best}; expected last, best or one of the steps'
        )
    if reason := _damage(folder / str(step)):
        others = [other for other in steps if other != step and not _damage(folder / str(other))]
        raise ValueError(
            f'checkpoint {which!r} of {workdir}, step {step}, is damaged: {reason}; the readable '
            f'steps are {others}'
        )
    return step


def _on_one_device_each(x: jax.Array) -> jax.Array:
    """Return an array that all devices have whole as the first device of each process has it.

    Orbax cuts what is replicated into a part a device, by a program for each shape and device.
    A part a process is enough for all to write together, and for one alone nothing is cut.
    """
    sharding = _one_device_each(x.sharding)
    parts = [part.data for part in x.addressable_shards if part.device in sharding.device_set]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)


@functools.cache
def _one_device_each(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    devices = sorted(sharding.device_set, key=lambda d: (d.process_index, d.id))
    first = {}
    for device in devices:
        first.setdefault(device.process_index, device)
    return parallel.Layout('jit', tuple(first.values())).replicated


def _check_fit(folder: pathlib.Path, like: Any) -> None:
    """Raise ValueError, with names, unless what is saved has the shapes of `like`."""

    def shape(x: Any) -> tuple[int, ...]:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return tuple((jax.eval_shape(jax.random.key_data, x) if is_key else x).shape)

    here = {path: shape(x) for path, x in flat(like).items()}
    parts = {path.split('/')[0] for path in here}
    saved = {part: tree for part, tree in _metadata(folder).items() if part in parts}
    there = {path: tuple(x.shape) for path, x in flat(saved).items()}
    wrong = [
        f'{path}: {there.get(path, "nothing")} there, {here.get(path, "nothing")} here'
        for path in sorted(here.keys() | there.keys())
        if here.get(path) != there.get(path)
    ]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise ValueError(f'checkpoint {folder} is of another state: {"; ".join(wrong[:3])}{more}')


class _Info(NamedTuple):
    """What `should_preserve` asks of a checkpoint."""

    step: int


def _scores(folder: pathlib.Path) -> dict[int, float]:
    """Return step -> mIoU of the checkpoints that were evaluated; warn of damaged scores."""
    found = {}
    for step in checksums.steps(folder):
        paths = [folder / str(step) / name for name in (SCORES, _OLD_SCORES)]
        try:
            for path in [path for path in paths if path.exists()][:1]:
                found[step] = float(json.loads(path.read_text())['miou'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if (folder / str(step)).exists():  # else the run that trains has removed it
                checksums.warn(folder / str(step), f'{error!r}', 'it does not count as the best')
    return found


def _best(scores: Mapping[int, float]) -> tuple[int, float] | None:
    """Return step and mIoU of the best, of equals the newest; None if there is none."""
    return max(scores.items(), key=lambda item: item[::-1]) if scores else None


def _metadata(folder: pathlib.Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(folder / 'state').tree


def _as_numpy(tree: Any) -> ocp.args.PyTreeRestore:
    """Say to restore what a tree of metadata names, and nothing else, to host arrays."""
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return ocp.args.PyTreeRestore(tree, restore_args=args, partial_restore=True)


def _restore(folder: pathlib.Path, handler: Callable, args: Any) -> Any:
    with ocp.Checkpointer(handler()) as checkpointer:
        return checkpointer.restore(folder / 'state', args=args)


def _shapes(tree: Any) -> Any:
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, 'sharding', None) or alone
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)
