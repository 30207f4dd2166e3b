"""Checkpoints of a run: the only file that knows Orbax."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from css_jax.state import TrainState, Variables, flat

FOLDER = 'checkpoints'


class Checkpoints:
    """Saves and restores the states of one run; keeps the latest two and the best by mIoU.

    Saving goes on in the background: a step's folder gets its name only once it is complete, so
    a run killed during a save restores the one before.
    """

    def __init__(self, workdir: str | pathlib.Path, read_only: bool = False):
        """Opens DIR/checkpoints.

        Args:
            workdir: the run's folder.
            read_only: nothing is written or cleaned up, as another process may be training.
        """
        policies = checkpoint_managers.preservation_policy
        best = {'get_metric_fn': _miou, 'reverse': False, 'n': 1}
        self._manager = ocp.CheckpointManager(
            pathlib.Path(workdir).absolute() / FOLDER,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=not read_only,  # a killed save's remains
                read_only=read_only,
                best_fn=_miou,  # without it best_step() is the latest
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(2),
                        policies.BestN(**best, keep_checkpoints_without_metrics=False),
                    ]
                ),
            ),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        meta: Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Saves the state of `step`.

        Args:
            step: iterations done.
            state: the whole state.
            meta: small JSON data kept beside it.
            scores: {'miou': ...} if this step was evaluated.

        Raises:
            RuntimeError: the step exists already.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
        )
        if not self._manager.save(step, args=items, metrics=dict(scores) if scores else None):
            raise RuntimeError(f'checkpoint of step {step} was not saved: it exists already')

    def restore(self, like: TrainState) -> TrainState:
        """Restores the latest state into the shapes and types of `like`."""
        items = ocp.args.Composite(state=ocp.args.StandardRestore(_shapes(like)))
        return self._manager.restore(self._manager.latest_step(), args=items)['state']

    def meta(self, step: int) -> dict[str, Any]:
        """Gives the JSON data saved beside `step`."""
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=items)['meta']

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest step, None without checkpoints."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """Step and mIoU of the best evaluated checkpoint, None if none was evaluated."""
        self._manager.wait_until_finished()
        step = self._manager.best_step()
        scores = self._manager.metrics(step) if step is not None else None
        return (step, scores['miou']) if scores else None

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def find(workdir: str | pathlib.Path, which: str) -> int:
    """Resolves 'last', 'best' or a step number to a step that is there.

    Raises:
        FileNotFoundError: DIR has no checkpoint, or not that one; says what there is.
    """
    if not (pathlib.Path(workdir) / FOLDER).is_dir():
        raise FileNotFoundError(
            f'no checkpoint in {workdir}: expected a folder that --mode train has written to'
        )
    checkpoints = Checkpoints(workdir, read_only=True)
    steps, best = checkpoints.steps, checkpoints.best()
    checkpoints.close()
    found = {'last': steps[-1] if steps else None, 'best': best[0] if best else None}
    step = found[which] if which in found else int(which) if which.isdigit() else None
    if step not in steps:
        raise FileNotFoundError(
            f'checkpoint {which!r} is not in {workdir}: there are steps {steps}, the best '
            f'evaluated is {found["best"]}; expected last, best or one of the steps'
        )
    return step


def exists(workdir: str | pathlib.Path) -> bool:
    """Says whether a run in DIR has a complete checkpoint to go on from."""
    return any(path.name.isdigit() for path in (pathlib.Path(workdir) / FOLDER).glob('*'))


def restore_arrays(
    workdir: str | pathlib.Path, step: int, parts: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Restores parts of a state as they were saved, whatever network they are of.

    Args:
        workdir: the run's folder.
        step: a step that is there, see `find`.
        parts: fields of `TrainState`, such as 'student'.

    Returns:
        Part -> path ('params/conv1/kernel') -> array; {} for what the state has none of.
    """
    with ocp.CheckpointManager(
        pathlib.Path(workdir).absolute() / FOLDER,
        options=ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0),
        item_handlers={'state': ocp.PyTreeCheckpointHandler()},
    ) as manager:
        saved = manager.item_metadata(step)['state'].tree
        saved = {part: saved[part] for part in parts}
        args = ocp.args.PyTreeRestore(
            saved,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved),
            partial_restore=True,
        )
        restored = manager.restore(step, args=ocp.args.Composite(state=args))['state']
    return {part: flat(restored[part]) for part in parts}


def restore_network(
    workdir: str | pathlib.Path, step: int, like: Variables, network: str = 'teacher'
) -> Variables:
    """Restores one network alone.

    Args:
        workdir: the run's folder.
        step: a step that is there, see `find`.
        like: the network's arrays or their shapes.
        network: 'teacher' or 'student'.
    """
    target = {network: _shapes(like)}
    args = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    folder = pathlib.Path(workdir).absolute() / FOLDER
    # A manager of its own: one that has restored with other arguments refuses these.
    with ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0)
    ) as manager:
        return manager.restore(step, args=ocp.args.Composite(state=args))['state'][network]


def _miou(scores: Mapping[str, float]) -> float:
    return scores['miou']


def _shapes(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', sharding))

    return jax.tree.map(shape, tree)
