"""What the runs of a session will cost, from recorded runs of the same arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdlib.run.plan import Job
from kdlib.run.records import Record
from kdlib.run.session import Session, is_stored

__all__ = ["Cost", "costs"]


@dataclass(frozen=True)
class Cost:
    """A planned run and what it will cost, from a recorded run of the same arm; None: nothing is recorded yet."""

    job: Job
    stored: bool
    seconds: float | None
    stored_bytes: float | None


def costs(session: Session, jobs: Sequence[Job], past: Sequence[Record]) -> tuple[list[Cost], float]:
    """Return the cost of each run, and the seconds that the session will take at least with its workers."""
    known = {arm: r.environment for r in past if r.profile == session.profile_name for arm in r.arms}
    found = []
    until: dict[str, float] = {}  # seconds of a run and of the runs it waits for
    for job in jobs:
        about = known.get(job.arms[0], {})
        stored = is_stored(session, job)
        cost = Cost(job, stored, about.get("seconds"), about.get("stored_bytes"))
        found.append(cost)
        seconds = 0.0 if stored else cost.seconds or 0.0
        until[job.description.id] = seconds + max((until[run] for run, _ in job.parents.values()), default=0.0)
    total = sum(cost.seconds or 0.0 for cost in found if not cost.stored)
    return found, max(total / session.workers, *until.values(), 0.0)
