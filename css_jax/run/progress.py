"""Speed of a run and its time to go."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TypeVar

from tqdm import tqdm

LOG = logging.getLogger('css_jax')
_QUIET = 10.0  # seconds between lines
# Of the numbers that methods log, those that tell whether pseudo-labels are any good.
SHARES = ('confident', 'valid', 'agreement', 'labelled')
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
    """Format the log line of one step: the losses, what passes a threshold, speed, time to go.

    The record of the run, metrics.jsonl, has every number.
    """
    terms = sorted(name for name in values if name.startswith('loss_'))
    shown = {name.removeprefix('loss_'): values[name] for name in ('loss', *terms)}
    shown |= {name: values[name] for name in SHARES if name in values}
    numbers = [f'{name} {value:6.3f}' for name, value in shown.items()]
    share = f'step {step:{len(str(steps))}}/{steps} {100 * step // steps:3}%'
    speed = f'{values["images_per_second"]:.1f} img/s'
    return '  '.join([share, *numbers, speed, f'to go {duration(values["seconds_to_go"])}'])


class Lines(logging.StreamHandler):
    """Writes log lines above a bar that is shown, and as they are where there is none."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=self.stream)
        except BrokenPipeError:  # nobody reads any more, as behind `| head`
            pass
        except Exception:
            self.handleError(record)


class Bar:
    """A bar with the share of the steps, the time to go, the loss and the last mIoU.

    It is there in a terminal alone; a file gets the lines of `line`.
    """

    def __init__(self, step: int, steps: int, shown: bool = True):
        """Show the bar.

        Args:
            step: iterations done.
            steps: of the run.
            shown: False shows none, as in all processes of a run but one.
        """
        form = '{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt} {desc}'
        self._bar = tqdm(
            total=steps, initial=step, bar_format=form, leave=False, dynamic_ncols=True,
            disable=None if shown else True,
        )  # fmt: skip
        self._words: dict[str, str] = {}

    def step(self) -> None:
        """Count a step."""
        self._bar.update()

    def say(self, **words: str) -> None:
        """Show words behind the steps, in place of those of the same names before."""
        self._words |= words
        shown = [f'{name.replace("_", " ")} {word}' for name, word in self._words.items()]
        self._bar.set_description_str(', '.join(shown))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
