"""Speed of a run and its time to go."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TypeVar

LOG = logging.getLogger('css_jax')
_QUIET = 10.0  # seconds between lines
Item = TypeVar('Item')


class Progress:
    """Speed and time to go, from the steps since the last call."""

    def __init__(self, step: int, steps: int):
        """Start the clock.

        Args:
            step: iterations done.
            steps: iterations of the run.
        """
        self._steps, self._speed = steps, None
        self._step, self._time = step, time.perf_counter()

    def pause(self, steps: int = 0) -> 'Pause':
        """Return a context whose time does not count: compilation, evaluation.

        Args:
            steps: iterations done inside it, which do not count either.
        """
        return Pause(self, steps)

    def update(self, step: int, images_per_step: int) -> dict[str, float]:
        """Return {'images_per_second', 'seconds_to_go'} at `step`.

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
        """Leave `seconds` and `steps` out of the interval."""
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


def tracked(items: Iterable[Item], what: str, count: int = 0) -> Iterator[Item]:
    """Yield the items and log, every ten seconds, how far it is and the time to go.

    Args:
        items: with a length.
        what: they are, for the log.
        count: about how many there are, where they have no length.
    """
    count = len(items) if isinstance(items, Sized) else count
    start = told = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and count and now - told > _QUIET:
            to_go = duration((now - start) / done * (count - done))
            LOG.info('%s: %d of %d · to go %s', what, done, count, to_go)
            told = now
        yield item


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03 or 02:03."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes:02d}:{rest:02d}'


def line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Format the log line of one step: every number, and the time to go."""
    numbers = [f'{name} {value:.4g}' for name, value in values.items() if name != 'seconds_to_go']
    share = f'step {step}/{steps} ({100 * step // steps}%)'
    return ' · '.join([share, *numbers, f'to go {duration(values["seconds_to_go"])}'])
