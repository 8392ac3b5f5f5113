"""Whole sessions: `replicate` compares runs with the bands, `check` does so in an empty store, `record` writes.

from kdlib.report import replicate
from kdlib.run import prepare

found = replicate(prepare("ecg", "smoke"))
found.arms  # a pandas frame, one row for each arm
found.claims
found.problems
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdlib.errors import KDError
from kdlib.files import locked
from kdlib.judge.bands import bands_of, read_bands, write_bands
from kdlib.judge.departures import SESSION_LEVEL, changes, compared
from kdlib.report.frames import arms_table, claims_table, is_reduced
from kdlib.report.pages import reported_of, write_pages
from kdlib.report.pairs import pair_faults
from kdlib.run.engine import Summary
from kdlib.run.events import Report
from kdlib.run.experiment import Experiment
from kdlib.run.plan import Job
from kdlib.run.records import Record, grouped, measured, merged, read_records, write_records
from kdlib.run.session import Session, complete, failures, records_of, train
from kdlib.run.store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recording", "Replication", "check", "record", "replicate"]

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
        reduced = is_reduced(session.profile, session.synthetic)
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
        data = session.experiment.load_data(config, session.folders).digest
        return claims_table(
            reported_of(session.experiment),
            self.records,
            known.get((data, session.experiment.judged)),
            declared=session.profile.seeds if session.profile.judged else None,
            synthetic=session.synthetic,
            analogue=self.label != session.profile_name,
        )

    @property
    def label(self) -> str:
        """The name of the session's tables: the profile, and what chooses other data than its own."""
        session = self.session
        return session.experiment.label(session.profile_name, asdict(session.profile.config))


def replicate(session: Session, reporter: Reporter = silent, past: Sequence[Record] = ()) -> Replication:
    """Train what the store lacks and compare every metric with its band, and every verdict with the recorded one.

    If the time is up before the end, verdicts on seeds that are not complete are not compared. The recorded runs in
    `past` say how long an epoch takes.
    """
    jobs, summary = _trained(session, reporter, past)
    records, problems = records_of(session, jobs, summary), failures(jobs, summary)
    incomplete = _incomplete(jobs, summary)
    whole = replace(session, seeds=tuple(seed for seed in session.seeds if seed not in incomplete))
    departed, notes = departures(whole, records)
    if session.unavailable:
        notes.insert(0, f"The runs use synthetic data, because the real data are not available: {session.unavailable}")
    return Replication(session, records, [*problems, *departed], notes, len(summary.left))


def _trained(session: Session, reporter: Reporter, past: Sequence[Record] = ()) -> tuple[list[Job], Summary]:
    jobs = session.jobs()
    with reporter(jobs) as report:
        return jobs, train(session, jobs, report, past)


def _incomplete(jobs: Sequence[Job], summary: Summary) -> list[int]:
    """The seeds of which a run is left, because the time is up."""
    return sorted({job.description.seed for job in jobs if job.description.id in summary.left})


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
    _refuse_synthetic(session, "check")
    with tempfile.TemporaryDirectory(prefix="kd-check-") as store:
        session = replace(session, store=Store(Path(store)))
        jobs, summary = _trained(session, reporter)
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


# ---- record


@dataclass(frozen=True)
class Recording:
    """The outcome of `record`: failed runs, the pages written, what was not recorded, how many runs are left.

    `records` are those of the session.
    """

    problems: list[str]
    pages: list[str]
    notes: list[str] = field(default_factory=list)
    left: int = 0
    records: list[Record] = field(default_factory=list)


def record(session: Session, results: Path, reporter: Reporter = silent) -> Recording:
    """Run a session, then write its records, bands and tables below `results`.

    If the time is up before the end, only seeds with all arms of the session are recorded; the others stay in the
    store.

    Recorded runs of other seeds and arms are kept. KDError, before anything is trained, for more seeds of the judged
    profile than it declares, and for runs of another protocol next to the recorded ones. KDError, before anything is
    written, for compared arms that differ in what `claims.toml` does not name, or do not differ in what it names.
    """
    _refuse_synthetic(session, "record")
    experiment, folder = session.experiment, results / session.experiment.name
    path = folder / "runs.jsonl"
    recorded = read_records(path)
    refuse_undeclared_seeds(session, recorded)
    refuse_other_protocols(session, session.jobs(), recorded)
    jobs, summary = _trained(session, reporter, recorded)
    problems, notes = failures(jobs, summary), []
    if summary.left:
        incomplete, jobs = _incomplete(jobs, summary), _recordable(session, jobs, summary, recorded)
        some = f"seed{'s' * (len(incomplete) > 1)} {', '.join(map(str, incomplete))}"
        notes.append(f"Not recorded, because not all of their runs are finished: {some}.")
    new = records_of(session, jobs, summary)
    if summary.left and not new:
        return Recording(problems, [], ["Nothing is recorded: no seed is complete."], len(summary.left))
    # Two sessions may record seeds of one replication at the same time.
    with locked(folder / ".lock", "see that results/ can be written to"):
        records = merged(read_records(path), new)
        if faults := pair_faults(experiment, reported_of(experiment), records):
            raise KDError("\n".join(["nothing is recorded: compared arms are not as claims.toml says", *faults]))
        write_records(path, records, [arm.name for arm in experiment.arms])
        records = read_records(path)  # in the order of the file, so that tables do not depend on that of recording
        update_bands(experiment, [r for r in records if r.profile == session.profile_name])
        pages = write_pages(experiment, records, folder, committed=records, synthetic=False)
    return Recording(problems, pages, notes, len(summary.left), new)


def _recordable(session: Session, jobs: Sequence[Job], summary: Summary, recorded: Sequence[Record]) -> list[Job]:
    """The jobs of complete seeds; none, if that would leave runs of another protocol next to them."""
    whole = complete(jobs, summary)
    try:
        refuse_other_protocols(session, whole, recorded)
    except KDError:
        return []
    return whole


def _refuse_synthetic(session: Session, what: str) -> None:
    if session.synthetic:
        why = session.unavailable or "the profile is synthetic by design"
        raise KDError(f"{what} {session.experiment.name}: expected real data, found synthetic ones: {why}")


def refuse_undeclared_seeds(session: Session, records: Sequence[Record]) -> None:
    """Refuse more seeds of the judged profile than it declares: to look and then run more makes false verdicts."""
    declared, name = session.profile.seeds, session.profile_name
    recorded = {record.seed for record in records if record.profile == name}
    if session.profile.judged and (more := sorted(seed for seed in {*session.seeds, *recorded} if seed >= declared)):
        raise KDError(
            f"{session.experiment.name}, profile {name}: expected seeds 0 to {declared - 1}, which experiment.py "
            f"declares, found {', '.join(map(str, more))}; raise the declared number there first, with the date"
        )


def refuse_other_protocols(session: Session, jobs: Sequence[Job], records: Sequence[Record]) -> None:
    """Refuse to record next to runs of another protocol, before anything is trained: no verdict may mix both."""
    experiment, data = session.experiment, {job.description.data for job in jobs}
    new = {(job.description.seed, arm) for job in jobs for arm in job.arms}
    for old in records:
        kept = sorted(arm for arm in old.arms if (old.seed, arm) not in new)
        protocol = old.description["protocol"]
        same_table = old.profile == session.profile_name and old.data in data
        if same_table and kept and protocol != experiment.protocol:
            raise KDError(
                f"{experiment.name}, profile {session.profile_name}: expected recorded runs of protocol "
                f"{experiment.protocol} next to the new ones, found {', '.join(kept)}, seed {old.seed}, of protocol "
                f"{protocol}; record all recorded arms and seeds at once, or delete its line from runs.jsonl"
            )


def update_bands(experiment: Experiment, records: Sequence[Record]) -> None:
    """Write the bands of all arms with enough seeds, and of judged runs the verdicts on complete claims."""
    path = experiment.folder / "bands.toml"
    bands = dict(read_bands(path))
    reported = reported_of(experiment)
    for (digest, profile), group in grouped(records).items():
        metrics = measured(group)
        commits = {
            arm: ", ".join(sorted({str(r.environment.get("commit", "unknown"))[:12] for r in group if arm in r.arms}))
            for arm in metrics
        }
        of = experiment.profile(profile)
        judged = reported if of.judged else None
        bands[digest, profile] = bands_of(metrics, experiment.banded, commits, judged, of.seeds)
    write_bands(path, bands)
