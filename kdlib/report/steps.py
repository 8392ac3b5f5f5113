"""What may be run after a session: more seeds of its arms, or the rest of its profile, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdlib.judge.verdicts import MIN_SEEDS
from kdlib.report.sessions import Replication
from kdlib.run.costs import costs
from kdlib.run.records import Record
from kdlib.run.session import Session, left_of_profile
from kdlib.terminal import duration

__all__ = ["Step", "next_steps"]


@dataclass(frozen=True)
class Step:
    """A session that may follow: what it gives, and its number of seeds, of the same arms (None: the whole profile)."""

    text: str
    seeds: int | None = None


def next_steps(result: Replication, past: Sequence[Record]) -> list[Step]:
    """Return the sessions that may follow one; the recorded runs in `past` say how long runs take."""
    session, past = result.session, [*past, *result.records]
    if result.left or session.unavailable:  # its own command comes first; synthetic data are no reason for more runs
        return []
    wanted = session.profile.seeds if session.profile.judged else max(MIN_SEEDS, session.profile.seeds)
    steps = []
    if not session.synthetic and not {*range(wanted)} <= {*session.seeds}:
        time = _time(replace(session, seeds=tuple(range(wanted))), past)
        steps.append(Step(f"For seeds 0 to {wanted - 1} of these arms ({time}):", wanted))
    left, whole = left_of_profile(session)
    others = {*session.experiment.arms_of(session.profile)} - {*session.arms}
    if left and (others or not steps):
        profile = replace(session, arms=session.experiment.arms_of(session.profile), seeds=_seeds(session))
        text = f"For the other {left} of the {whole} runs of this profile ({_time(profile, past)}):"
        steps.append(Step(text))
    return steps


def _seeds(session: Session) -> tuple[int, ...]:
    return tuple(range(session.profile.seeds))


def _time(session: Session, past: Sequence[Record]) -> str:
    """How long the runs take that the store lacks."""
    planned, seconds = costs(session, session.jobs(), past)
    new = [cost for cost in planned if not cost.stored]
    unknown = sum(cost.seconds is None for cost in new)
    if unknown == len(new):
        return "time unknown" if new else "all runs are stored"
    return f"{'at least' if unknown else 'about'} {duration(seconds)}"
