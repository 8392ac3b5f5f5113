"""Ctrl-C, and the signals that end a job: they stop a command at once, and never show a traceback."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

__all__ = ["INTERRUPTED", "STOPPED", "Stopped", "Stopping"]

STOPPED = 3  # exit status of a session that its time limit or a signal ended
PATIENCE = 5.0  # seconds
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
        self.say, self.ready, self.stopped_at = say, False, math.inf
        self.status = INTERRUPTED  # of the signal that has come: a library may raise another exception in its place
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
        # The end has PATIENCE seconds. It may never come: Python drops an exception that is raised in a destructor.
        if not self.ready or time.monotonic() > self.stopped_at + PATIENCE:
            os.write(2 if status == INTERRUPTED else 1, self.say(status).encode(errors="backslashreplace"))
            os._exit(status)
        if self.stopped_at < math.inf:  # a repeated signal must not disturb the end
            return
        self.stopped_at, self.status = time.monotonic(), status
        if signal.SIGINT in self.before:  # a second Ctrl-C ends the process at once, without a word
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt if status == INTERRUPTED else Stopped
