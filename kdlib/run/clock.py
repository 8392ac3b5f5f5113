"""The seconds that a training has taken, over all sessions that it was stopped in."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path

from kdlib.files import DamagedFile, is_there, read_file, set_aside
from kdlib.progress import CHECKPOINT_SECONDS

__all__ = ["Clock"]

LEAST_BUSY = 0.05  # of the time that passes: a process that uses less was stopped, by a scheduler or by the user


class Clock:
    """Training seconds, summed over interrupted sessions, without the time in which the process was stopped."""

    def __init__(self, path: Path) -> None:
        self.path, self.last, self.epoch_seconds = path, time.monotonic(), 0.0  # end of the last epoch, and its length
        self.before = self.counted = self.counted_at_epoch = 0.0
        self.at = self.last, time.process_time()
        try:
            before = float(read_file(path))
            self.before = before if math.isfinite(before) else 0.0
        except ValueError:  # it was cut: this costs a number in a table, no result
            pass
        except DamagedFile:  # the first session, or a pipe, on which `save` would wait
            if is_there(path):
                set_aside(path)

    @property
    def seconds(self) -> float:
        """Training seconds so far."""
        now, used = time.monotonic(), time.process_time()
        passed, busy = now - self.at[0], used - self.at[1]
        self.counted += passed if busy >= LEAST_BUSY * passed else busy
        self.at = now, used
        return self.before + self.counted

    def epoch_ends(self) -> None:
        """Save the seconds, and note the length of the epoch with its evaluation and checkpoint."""
        self.save()
        self.last, self.epoch_seconds = self.at[0], self.counted - self.counted_at_epoch
        self.counted_at_epoch = self.counted

    def allows_an_epoch(self, deadline: float) -> bool:
        """Return whether another epoch ends in time; a long one is begun, as it can stop within."""
        return self.last + (self.epoch_seconds if self.epoch_seconds < CHECKPOINT_SECONDS else 0.0) < deadline

    def save(self) -> None:
        """Save the seconds for a later session, if the disk allows it."""
        with suppress(OSError):
            if self.path.is_symlink():  # what it leads to is the user's
                self.path.unlink()
            self.path.write_text(f"{self.seconds:.2f}\n")
