"""SIGTERM and Ctrl-C as a wish: a run finishes its step, saves, and ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from css_jax import parallel


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has saved its last step."""

    def __init__(self, step: int, number: int):
        """Say how it is resumed.

        Args:
            step: iterations done, of the checkpoint.
            number: of the signal.
        """
        name = signal.Signals(number).name
        super().__init__(
            f'stopped by {name} after step {step}, which is saved; the same command resumes from it'
        )
        self.number = number


@contextlib.contextmanager
def caught() -> Iterator[Callable[[], int]]:
    """Catch SIGTERM and SIGINT while a run trains; the second SIGINT interrupts as ever.

    A signal that is ignored stays so, as Ctrl-C in the background of a script. Threads other than
    the main one cannot catch signals; there nothing is caught.

    Yields:
        A function that gives the number of the signal that came, 0 before one has.
    """
    came: list[int] = []
    # With several processes SIGTERM in any of them is heard by jax, see `parallel.stops`.
    _, several = parallel.process()
    several = several > 1

    def handle(number: int, frame: Any) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not came:  # print could be called inside of itself here
            first = 'and the evaluation under way, if there is one' if several else 'not evaluated'
            text = f'saving after this step, {first}; Ctrl-C stops at once'
            os.write(2, f'{signal.Signals(number).name}: {text}\n'.encode())
        came.append(number)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if several:  # nobody asks any more what jax has heard
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
