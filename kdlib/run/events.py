"""What a session tells while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdlib.run.plan import Job

__all__ = ["Event", "Report"]


@dataclass(frozen=True)
class Event:
    """Something that a session shows: a run that started, finished, stopped and so on.

    `kind` is started, epoch, finished, reused, stopped (the time is up), failed, blocked or notice.
    """

    kind: str
    job: Job
    text: str = ""
    epoch: int = 0
    count: int = 0  # epochs in all
    numbers: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Event], None]
