"""Ctrl-C, and the signals that end a job: they stop a command at once, and never show a traceback."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["INTERRUPTED", "STOPPED", "Stopped", "Stopping"]

STOPPED = 3  # exit status of a session that its time limit or a signal ended
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
# Windows lacks SIGUSR1, which Slurm sends some time before it ends a job.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 has come."""


class Stopping:
    """While it is entered, signals end the process or, once `ready` is true, raise KeyboardInterrupt or Stopped.

    Nothing has to be saved before that. An exception would not do then: a module that is being imported may turn it
    into another one. `say(status)` returns the last words.
    """

    def __init__(self, say: Callable[[int], str]) -> None:
        self.say, self.ready = say, False
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Stopping:
        """Take over the signals, if this is the main thread: no other may."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background ignores Ctrl-C
                    self.before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, before in self.before.items():
            signal.signal(number, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        status = INTERRUPTED if number == signal.SIGINT else STOPPED
        if not self.ready:
            os.write(2 if status == INTERRUPTED else 1, self.say(status).encode(errors="backslashreplace"))
            os._exit(status)
        # A repeated signal must not disturb the end. A second Ctrl-C ends the process at once, without a word.
        for other in self.before:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise KeyboardInterrupt if status == INTERRUPTED else Stopped
