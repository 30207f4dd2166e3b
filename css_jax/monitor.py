"""What a run tells while it runs: metrics.jsonl, TensorBoard events, a line with a time to go."""

import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tensorboardX import SummaryWriter

LOG = logging.getLogger('css_jax')
METRICS = 'metrics.jsonl'


class Writer:
    """Writes each step's numbers once, to DIR/metrics.jsonl and to TensorBoard event files.

    metrics.jsonl is the record; the event files are made from it. A run that was killed has
    written steps that the restored checkpoint does not know: opening drops those, and makes the
    event files anew, so that every step is there once however often the run was killed.
    """

    def __init__(self, workdir: str | pathlib.Path, step: int, active: bool = True):
        """Opens the record of a run that goes on from `step`.

        Args:
            workdir: the run's folder; it exists.
            step: iterations done; later records are dropped.
            active: False writes nothing, as in all processes of a run but one.
        """
        self._active = active
        if not active:
            return
        folder = pathlib.Path(workdir)
        path = folder / METRICS
        records = [r for r in read(workdir) if r['step'] <= step]
        draft = path.with_suffix('.tmp')
        draft.write_text(''.join(json.dumps(r) + '\n' for r in records))
        os.replace(draft, path)
        for old in folder.glob('events.out.tfevents.*'):
            old.unlink()
        self._events = SummaryWriter(str(folder), flush_secs=5)
        self._file = path.open('a')
        for record in records:
            self._add_events(record)
        self._events.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers of `step`; what is written survives a kill."""
        if not self._active:
            return
        record = {'step': step, 'time': round(time.time(), 3)}
        record.update({name: _plain(value) for name, value in values.items()})
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        self._add_events(record)
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        if not self._active:
            return
        self._file.close()
        self._events.close()

    def _add_events(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name not in ('step', 'time') and value is not None:
                self._events.add_scalar(name, value, record['step'], walltime=record['time'])


def read(workdir: str | pathlib.Path) -> list[dict]:
    """Reads DIR/metrics.jsonl; a last line that a kill has cut off is left out."""
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
        """Starts nothing yet.

        Args:
            workdir: the run's folder.
            steps: first step, from 0, and the one after the last; (0, 0): none.
            active: False traces nothing.
        """
        self._folder = str(pathlib.Path(workdir) / 'profile')
        self._steps = range(*steps) if active else range(0)
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if it is the turn of `step`."""
        if step in self._steps and not self._running:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would bury, and slow down, the rest
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace, once the arrays of `result` are there, if `step` is the last in it."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is running still."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            LOG.info('profile written: %s', self._folder)


class Progress:
    """Speed and time to go, from the steps since the last call."""

    def __init__(self, step: int, steps: int):
        """Starts the clock.

        Args:
            step: iterations done.
            steps: iterations of the run.
        """
        self._steps, self._speed = steps, None
        self._step, self._time = step, time.perf_counter()

    def pause(self, steps: int = 0) -> 'Pause':
        """Gives a context whose time does not count: compilation, evaluation.

        Args:
            steps: iterations done inside it, which do not count either.
        """
        return Pause(self, steps)

    def update(self, step: int, images_per_step: int) -> dict[str, float]:
        """Gives {'images_per_second', 'seconds_to_go'} at `step`.

        Args:
            step: iterations done.
            images_per_step: images of all streams in one iteration, over all devices.
        """
        now = time.perf_counter()
        speed = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        # The time to go follows a smoothed speed: one slow interval does not double it.
        self._speed = speed if self._speed is None else 0.5 * (self._speed + speed)
        return {
            'images_per_second': speed * images_per_step,
            'seconds_to_go': (self._steps - step) / max(self._speed, 1e-9),
        }

    def leave_out(self, seconds: float, steps: int) -> None:
        """Leaves `seconds` and `steps` out of the interval."""
        self._time += seconds
        self._step += steps


class Pause:
    """See `Progress.pause`."""

    def __init__(self, progress: Progress, steps: int):
        self._progress, self._steps = progress, steps

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._progress.leave_out(time.perf_counter() - self._start, self._steps)


def duration(seconds: float) -> str:
    """Formats seconds as 1:02:03 or 02:03."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes:02d}:{rest:02d}'


def line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Formats the log line of one step: every number, and the time to go."""
    numbers = [f'{name} {value:.4g}' for name, value in values.items() if name != 'seconds_to_go']
    share = f'step {step}/{steps} ({100 * step // steps}%)'
    return ' · '.join([share, *numbers, f'to go {duration(values["seconds_to_go"])}'])


def scores_table(names: tuple[str, ...], columns: Mapping[str, Mapping], digits: int = 2) -> str:
    """Formats scores as a Markdown table: a row per class, then mIoU and pixel accuracy.

    Args:
        names: class names.
        columns: heading -> scores as `css_jax.ops.metrics.scores` gives them.
        digits: behind the point, of percent.

    Returns:
        The table; '-' where a class is neither true nor predicted.
    """

    def percent(value: float | None) -> str:
        return '-' if value is None else f'{100 * value:.{digits}f}'

    rows = [['class', *columns]]
    rows += [[n, *(percent(c['iou'][i]) for c in columns.values())] for i, n in enumerate(names)]
    rows += [['mIoU', *(percent(c['miou']) for c in columns.values())]]
    rows += [['pixel accuracy', *(percent(c['accuracy']) for c in columns.values())]]
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of text as a Markdown table, the first row its heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) + ' |'
        for r in rows
    ]
    rule = '|' + '|'.join(['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])]) + '|'
    return '\n'.join([lines[0], rule, *lines[1:]])


def _plain(value: float) -> float | None:
    """JSON has no NaN; None stands for it."""
    value = float(value)
    return value if math.isfinite(value) else None
