"""A run that is asked to stop, by Ctrl-C or by SIGTERM, ends after the step at hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """The run ended early, because it was asked to.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Request:
    """Whether a signal has come, and which."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Note the first SIGINT or SIGTERM instead of ending; a second one ends at once. Only the main thread sees signals."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise Stopped(number)
        request.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
