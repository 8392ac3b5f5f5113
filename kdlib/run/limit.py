"""The time limit of a session: what can still be begun, and the exception that stops a run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kdlib.run.plan import Job
from kdlib.run.store import FinishedRun

__all__ = ["Limit", "OutOfTime"]

LEAST_SECONDS = 10.0  # of training: a run can be saved after any step, but has to be set up first


class OutOfTime(BaseException):
    """A run stops at a checkpoint, because the time of its session is up. It is no error, so no `except` takes it."""


@dataclass
class Limit:
    """When a session has to stop, as a value of `time.monotonic()`, and the seconds of one epoch, by arm.

    All processes of a machine read the same monotonic clock.
    """

    deadline: float = math.inf
    epoch_seconds: dict[str, float] = field(default_factory=dict)

    def allows(self, group: Sequence[Job]) -> bool:
        """Return whether a group that begins now can finish an epoch, or make some steps of a longer one, in time."""
        seconds = len(group) * self.epoch_seconds.get(group[0].arms[0], 0.0)
        return time.monotonic() + min(seconds, LEAST_SECONDS) < self.deadline

    def learn(self, job: Job, run: FinishedRun) -> None:
        """Note how long an epoch of a finished run has taken."""
        if run.history and "seconds" in run.environment:
            seconds = run.environment["seconds"] / len(run.history)
            self.epoch_seconds.update(dict.fromkeys(job.arms, seconds))
