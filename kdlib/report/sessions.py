"""Whole sessions: `replicate` compares runs with the bands, `check` does so in an empty store.

`kdlib.report.recording` has `record`, which writes.

from kdlib.report import replicate
from kdlib.run import prepare

found = replicate(prepare("ecg", "smoke"))
found.arms  # a pandas frame, one row for each arm
found.claims
found.problems
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlib.errors import KDError
from kdlib.judge.bands import read_bands
from kdlib.judge.departures import SESSION_LEVEL, changes, compared
from kdlib.report.frames import arms_table, claims_table, is_reduced
from kdlib.report.names import claimed_metrics, refuse_unknown_names
from kdlib.report.pages import reported_of
from kdlib.run.engine import Summary
from kdlib.run.events import Report
from kdlib.run.plan import Job
from kdlib.run.records import Record, grouped, measured
from kdlib.run.session import Session, failures, records_of, train
from kdlib.run.store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Replication", "check", "departures", "incomplete", "refuse_synthetic", "replicate", "trained"]

Reporter = Callable[[Sequence[Job]], AbstractContextManager[Report]]  # shows how a session goes on


@contextmanager
def silent(jobs: Sequence[Job]) -> Iterator[Report]:
    """Show nothing."""
    yield lambda event: None


@dataclass(frozen=True)
class Replication:
    """The outcome of a session: records of its runs, problems that fail it, and notes.

    A problem is a failed run, a number far outside its band, more missed bands than chance allows, or a verdict that is
    not the recorded one. One number outside its band is a warning, among the notes. `left` runs are not finished,
    because the session's time is up.
    """

    session: Session
    records: list[Record]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: int = 0

    @property
    def arms(self) -> pd.DataFrame:
        """One row for each arm: what was measured next to what is reported."""
        session = self.session
        reduced = is_reduced(session.profile, session.synthetic, self.label != session.profile_name)
        return arms_table(session.experiment.arms, reported_of(session.experiment), self.records, reduced)

    @property
    def claims(self) -> pd.DataFrame:
        """One row for each claim and mode."""
        session = self.session
        known = read_bands(session.experiment.folder / "bands.toml")
        # The judged profile may train on more data, with another digest: its bands are those of its own data.
        judged = session.experiment.profile(session.experiment.judged) if session.experiment.judged else session.profile
        config = replace(
            judged.config, **{f: getattr(session.profile.config, f) for f in session.experiment.data_fields}
        )
        return claims_table(
            reported_of(session.experiment),
            self.records,
            known.get((self._judged_data(config, known), session.experiment.judged)),
            declared=session.profile.seeds if session.profile.judged else None,
            synthetic=session.synthetic,
            analogue=self.label != session.profile_name,
        )

    def _judged_data(self, config: Any, known: Collection[tuple[str, str]]) -> str:
        """The digest of the data that the judged profile trains on; empty if that is not known here."""
        session = self.session
        needed = session.experiment.data
        if session.synthetic or {*(needed(config) if callable(needed) else needed)} <= {*session.folders}:
            with suppress(KDError):  # it may need more pictures than there are
                return str(session.experiment.load_data(config, session.folders).digest)
        # It needs more than this session, such as the weights that a teacher begins with.
        recorded = [data for data, profile in known if profile == session.experiment.judged]
        return recorded[0] if len(recorded) == 1 else ""

    @property
    def label(self) -> str:
        """The name of the session's tables: the profile, and what chooses other data than its own."""
        session = self.session
        return session.experiment.label(session.profile_name, asdict(session.profile.config))


def replicate(session: Session, reporter: Reporter = silent, past: Sequence[Record] = ()) -> Replication:
    """Train what the store lacks and compare every metric with its band, and every verdict with the recorded one.

    If runs fail, or the time is up before the end, verdicts on seeds that are not complete are not compared. The
    recorded runs in `past` say how long an epoch takes. KDError, before anything is trained, for claims, bands and
    figures about what the experiment does not have.
    """
    refuse_unknown_names(session.experiment)
    jobs, summary = trained(session, reporter, past)
    records, problems = records_of(session, jobs, summary), failures(jobs, summary)
    begun = incomplete(jobs, summary)
    whole = replace(session, seeds=tuple(seed for seed in session.seeds if seed not in begun))
    departed, notes = departures(whole, records)
    notes += older_protocol(session, past)
    return Replication(session, records, [*problems, *departed], notes, len(summary.left))


def older_protocol(session: Session, past: Sequence[Record]) -> list[str]:
    """Return a note if what is recorded was trained under another protocol than this session's runs."""
    now, name = session.experiment.protocol, session.experiment.name
    others = {record.description["protocol"] for record in past if record.profile == session.profile_name} - {now}
    return [
        f"{name}: what is recorded of profile {session.profile_name} is of protocol {each}, and these runs are of "
        f"protocol {now}: they need not agree. `kd record {name} --profile {session.profile_name}` records anew."
        for each in sorted(others)
    ]


def trained(session: Session, reporter: Reporter, past: Sequence[Record] = ()) -> tuple[list[Job], Summary]:
    """Train what the store lacks; return the jobs and their outcome."""
    jobs = session.jobs()
    with reporter(jobs) as report:
        return jobs, train(session, jobs, report, past, claimed_metrics(session.experiment))


def incomplete(jobs: Sequence[Job], summary: Summary) -> list[int]:
    """Return the seeds of which a run is not finished: it failed, was not started, or the time is up."""
    return sorted({job.description.seed for job in jobs if job.description.id not in summary.finished})


def departures(session: Session, records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Return a sentence for each reason to fail the session, and for each changed verdict; and warnings and notes.

    There are no bands for synthetic data, for other data than ours, or before the first `kd record`.
    """
    experiment = session.experiment
    bands = read_bands(experiment.folder / "bands.toml")
    found: list[str] = []
    notes: list[str] = []
    groups = grouped(records)
    for key, group in groups.items():
        if known := bands.get(key):
            metrics = measured(group)
            numbers = compared(known.bands, metrics, SESSION_LEVEL / len(groups))
            found += numbers.problems
            notes += numbers.warnings
            seeds = sorted({seed for band in known.bands.values() for seed in band.seeds})
            if session.profile.judged and set(seeds) <= set(session.seeds):
                found += changes(known, reported_of(experiment), metrics, session.profile.seeds)
            elif session.profile.judged:  # both depend on the number of seeds
                notes.append(
                    "Verdicts and ranges are not compared with the recorded ones, which are of "
                    f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}."
                )
    return found, notes


# ---- check


def check(session: Session, reporter: Reporter = silent, checks: int = 1) -> Replication:
    """Train a session's arms in an empty store of its own and compare the experiment's check arms with the bands.

    `checks`: how many replications are checked together. They are one family, so each of them may fail by chance in a
    k-th part of the sessions that one check alone may. Problems say why the session fails, also if there was nothing to
    compare. Notes have the warnings and count the numbers.
    """
    refuse_synthetic(session, "check")
    refuse_unknown_names(session.experiment)
    with tempfile.TemporaryDirectory(prefix="kd-check-") as store:
        session = replace(session, store=Store(Path(store)))
        jobs, summary = trained(session, reporter)
        records, problems = records_of(session, jobs, summary), failures(jobs, summary)
    experiment = session.experiment
    notes = []
    bands = read_bands(experiment.folder / "bands.toml")
    for key, group in grouped(records).items():
        if key not in bands:
            problems.append(f"no bands are recorded for data {key[0]}; `kd record {experiment.name}` makes them")
            continue
        metrics = measured(group, experiment.check)
        found = compared(bands[key].bands, metrics, SESSION_LEVEL / checks)
        notes += found.warnings
        notes.append(
            f"{found.numbers} number{'s' * (found.numbers != 1)} of {len(metrics)} arm{'s' * (len(metrics) != 1)} "
            f"checked, {len(found.misses)} outside their bands"
        )
        if not found.numbers:
            problems.append(f"no bands of its check arms are recorded; `kd record {experiment.name}` makes them")
        problems += found.problems
    return Replication(session, records, problems, notes)


def refuse_synthetic(session: Session, what: str) -> None:
    """Refuse what needs real data: a check or a recording."""
    if session.synthetic:
        why = session.unavailable or f"profile {session.profile_name} has them by design"
        raise KDError(f"{what} {session.experiment.name}: expected real data, found synthetic ones: {why}")
