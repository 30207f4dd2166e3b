"""The record of a run while it trains: metrics.jsonl, TensorBoard events, a profile."""

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from css_jax.run import files, wandb_run

LOG = logging.getLogger('css_jax')
METRICS = 'metrics.jsonl'
SAMPLES = 'samples'


class Writer:
    """Writes each step's numbers once, to DIR/metrics.jsonl and to TensorBoard event files.

    metrics.jsonl is the record, a line a step; the event files are made from it. A run that was
    killed has written steps that the restored checkpoint does not know: opening drops those, and
    makes the event files anew, so that every step is there once however often the run was killed.
    Pictures are likewise made from DIR/samples/STEP_NAME.png.

    What cannot be written, as on a full disk, is named once, and training continues without it: the
    weights are worth more than their record.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        step: int,
        active: bool = True,
        tracker: wandb_run.WandbRun | None = None,
    ):
        """Open the record of a run that resumes from `step`.

        Args:
            workdir: the run's folder; it exists.
            step: iterations done; later records are dropped.
            active: False writes nothing, as in all processes of a run but one.
            tracker: gets the numbers too.
        """
        self._active = active
        if not active:
            return
        folder = pathlib.Path(workdir)
        records = [r for r in read(workdir) if r['step'] <= step]
        files.write(folder / METRICS, ''.join(_line(record) for record in records))
        for old in folder.glob('events.out.tfevents.*'):
            old.unlink()
        # Without the thread of a SummaryWriter, which would end, and be waited for, on a full disk.
        self._events = EventsWriter(str(folder / 'events'))
        self._path, self._warned = folder / METRICS, False
        # Unbuffered: what a full disk has refused is gone, and is not tried again at the next line.
        self._file = self._path.open('r+b', buffering=0)
        self._record: dict = {}
        self._place = self._file.seek(0, os.SEEK_END)  # of the last line, once there is one
        for record in records:
            self._add_events(record, record)
        if records:
            self._record = records[-1]
            self._place -= len(_line(self._record))
        self._samples = folder / SAMPLES
        self._shown: set[pathlib.Path] = set()
        for path in sorted(self._samples.glob('*.png')):
            own = re.fullmatch(r'([0-9]{8,})_(.+)', path.stem)  # others are somebody's own
            if own and int(own[1]) > step:
                path.unlink()
            elif own:
                self._add_picture(int(own[1]), own[2], path)
        self._events.flush()
        self._tracker = tracker
        if tracker is not None:
            tracker.open(records)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Keep a picture of `step`, uint8 RGB [H, W, 3]; one of the same step takes its place."""
        if not self._active:
            return
        path = self._samples / f'{step:08d}_{name}.png'
        with self._kept(path):
            self._samples.mkdir(exist_ok=True)
            files.write(path, cv2.imencode('.png', image[..., ::-1])[1].tobytes())
            self._add_picture(step, name, path)
            self._events.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers of `step`, to its line if it has one; what is written survives a kill."""
        if not self._active:
            return
        values = {name: _plain(value) for name, value in values.items()}
        known = self._record if self._record.get('step') == step else {}
        values = {name: value for name, value in values.items() if known.get(name, ...) != value}
        if known and not values:
            return
        if known:
            self._record |= values  # a longer line, which takes the place of the one before
        else:
            self._place = self._file.seek(0, os.SEEK_END)
            self._record = {'step': step, 'time': round(time.time(), 3), **values}
        with self._kept(self._path):
            self._put(_line(self._record).encode())
            self._add_events(self._record, values)
            self._events.flush()
        if self._tracker is not None:
            self._tracker.write(step, values)

    def _put(self, line: bytes) -> None:
        """Write a line at its place, whole or not at all."""
        self._file.seek(self._place)
        if self._file.write(line) < len(line):
            self._file.truncate(self._place)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the files."""
        if not self._active:
            return
        with self._kept(self._path):
            self._file.close()
            self._events.close()

    @contextlib.contextmanager
    def _kept(self, path: pathlib.Path) -> Iterator[None]:
        """Warn, once, where a file cannot be written."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                LOG.warning(
                    'warning: %s cannot be written (%s): training continues without it',
                    path,
                    error.strerror or error,
                )
            self._warned = True

    def _add_picture(self, step: int, name: str, path: pathlib.Path) -> None:
        if path in self._shown:  # a resumed run evaluates a step again if its score is not saved
            return
        self._shown.add(path)
        image, time = cv2.imread(str(path)), path.stat().st_mtime
        if image is not None:  # else a damaged file
            rgb = image[..., ::-1]
            made = summary.image(f'{SAMPLES}/{name}', rgb, dataformats='HWC')
            self._events.write_event(Event(wall_time=time, step=step, summary=made))

    def _add_events(self, record: Mapping[str, float], values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in ('step', 'time') and value is not None:
                made = summary.scalar(name, value)
                event = Event(wall_time=record['time'], step=record['step'], summary=made)
                self._events.write_event(event)


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(record) + '\n'


def read(workdir: str | pathlib.Path) -> list[dict]:
    """Read DIR/metrics.jsonl; a last line that a kill has cut off is left out."""
    path = pathlib.Path(workdir) / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Profile:
    """Traces some steps of a run into DIR/profile: TensorBoard opens it, Perfetto its .json.gz."""

    def __init__(self, workdir: str | pathlib.Path, steps: tuple[int, int], active: bool = True):
        """Start nothing yet.

        Args:
            workdir: the run's folder.
            steps: first step, from 0, and the one after the last; (0, 0): none.
            active: False traces nothing.
        """
        self._folder = str(pathlib.Path(workdir) / 'profile')
        self._steps = range(*steps) if active else range(0)
        self._running = False

    def before(self, step: int) -> None:
        """Start the trace if it is the turn of `step`."""
        if step in self._steps and not self._running:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would bury, and slow down, the rest
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """End the trace, once the arrays of `result` are there, if `step` is the last in it."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """End a trace that is running still."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            LOG.info('profile written: %s', self._folder)


def _plain(value: float) -> float | None:
    """JSON has no NaN; None stands for it."""
    value = float(value)
    return value if math.isfinite(value) else None
