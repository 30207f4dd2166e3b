"""A run's numbers on Weights & Biases, which is optional: `config.wandb` is the project.

The run there is that of the folder: DIR/wandb.json has its id, so that a run that resumes continues
it. What W&B has already is not sent again; what it lacks of metrics.jsonl, as after a time without
network, is. W&B's own variables of the environment hold, such as WANDB_MODE=offline.
"""

import importlib.metadata
import json
import logging
import pathlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from css_jax.run import files

LOG = logging.getLogger('css_jax')
FILE = 'wandb.json'
INSTALL = "pip install 'wandb>=0.31,<0.32'"
_TIMEOUT = 60.0  # seconds that a login or the first connection may take
_FINISH = 120.0  # seconds that the last numbers may take


def check(project: str) -> None:
    """Make sure that Weights & Biases is installed where a project is asked for.

    Raises:
        ValueError: it is not; says how to install it.
    """
    if not project:
        return
    try:
        importlib.metadata.version('wandb')
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f'wandb: got {project!r}, expected an empty one, as Weights & Biases is not '
            f'installed: {INSTALL}'
        ) from None


class WandbRun:
    """The run on Weights & Biases; whatever it raises is a warning, and training continues."""

    def __init__(
        self,
        project: str,
        workdir: str | pathlib.Path,
        config: Mapping[str, Any],
        active: bool = True,
    ):
        """Say what it will be of; nothing is sent until `open`.

        Args:
            project: '' for none.
            workdir: the run's folder; it exists.
            config: of the run, dicts in dicts.
            active: False sends nothing, as in all processes of a run but one.
        """
        self._project, self._folder = project, pathlib.Path(workdir)
        self._config = config
        self._wanted, self._run, self._first = bool(project) and active, None, 0

    def open(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begin the run there, or continue it.

        Args:
            records: lines of metrics.jsonl up to the step that the run resumes from.
        """
        if not self._wanted:
            return
        self._guarded(self._open)
        if self._run is not None:
            for record in records:
                self.write(record['step'], record)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send numbers of a step, unless the run there is further; steps never decrease."""
        if self._run is None or step < self._first:
            return
        own = ('step', 'time')  # which W&B has of its own
        numbers = {name: v for name, v in values.items() if v is not None and name not in own}
        self._guarded(lambda: self._run.log(numbers, step=step))

    def results(self, results: Mapping[str, Any]) -> None:
        """Send what an evaluation at the end has given, as 'results/miou' and so on."""
        if self._run is None:
            return
        flat = {f'results/{name}': value for name, value in _flat(results).items()}
        self._guarded(lambda: self._run.summary.update(flat))

    def close(self) -> None:
        """End the run there, with what is left to send."""
        if self._run is not None:
            self._guarded(self._run.finish)
            self._run = None

    def _open(self) -> None:
        import wandb

        self._run = wandb.init(
            project=self._project,
            id=_id(self._folder),
            name='/'.join(self._folder.absolute().parts[-2:]),
            dir=self._folder,
            config=dict(self._config),
            resume='allow',
            allow_val_change=True,  # of keys that may differ where a run resumes
            settings=wandb.Settings(
                console='off',
                init_timeout=_TIMEOUT,
                login_timeout=_TIMEOUT,
                finish_timeout=_FINISH,
            ),
        )
        self._first = self._run.step  # of a run that is continued, the one after its last

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # no login, no network, a full disk: none ends the training
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            LOG.warning(
                'warning: Weights & Biases gets nothing more of this run (%s); metrics.jsonl has '
                'every number',
                reason,
            )
            self._run, self._wanted = None, False


def _id(folder: pathlib.Path) -> str:
    """Return the id of a folder's run, drawn the first time."""
    path = folder / FILE
    try:
        return json.loads(path.read_text())['id']
    except (OSError, ValueError, KeyError, TypeError):
        found = secrets.token_hex(4)
        files.write(path, json.dumps({'id': found}) + '\n')
        return found


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Join the names of dicts inside dicts by '/'; lists are left out."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{prefix}{name}/')
        elif not isinstance(value, list | tuple):
            flat[f'{prefix}{name}'] = value
    return flat
