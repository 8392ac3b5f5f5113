"""`record` runs a session and writes its records, bands and tables. It mixes no runs that are not of one experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kdlib.errors import KDError
from kdlib.files import canonical_json, locked, read_json
from kdlib.judge.bands import bands_of, read_bands, write_bands
from kdlib.report.names import refuse_unknown_names
from kdlib.report.one_experiment import other_source_files, unlike_seeds
from kdlib.report.pages import Page, label_of, reported_of, write_pages
from kdlib.report.pairs import pair_faults
from kdlib.report.sessions import Reporter, incomplete, refuse_synthetic, silent, trained
from kdlib.run.environment import is_clean, no_commit
from kdlib.run.experiment import Experiment
from kdlib.run.networks import OF_COMPUTE
from kdlib.run.records import Record, grouped, measured, merged, read_records, write_records
from kdlib.run.reuse import is_of_another_replication
from kdlib.run.session import Session, complete, failures, is_stored, records_of

__all__ = ["Recording", "held", "record", "update_bands"]

LOCKED = "see that results/ can be written to"


@dataclass(frozen=True)
class Recording:
    """The outcome of `record`: failed runs, the pages written, what was not recorded, how many runs are left.

    `records` are those of the session, `recorded` all of the file after it.
    """

    problems: list[str]
    pages: list[Page]
    notes: list[str] = field(default_factory=list)
    left: int = 0
    records: list[Record] = field(default_factory=list)
    recorded: list[Record] = field(default_factory=list)


def held(folder: Path, on_wait: Callable[[Path], None]) -> AbstractContextManager[None]:
    """Return the lock of a replication's results; `on_wait(lock)` is called if another session has it."""
    lock = folder / ".lock"
    return locked(lock, LOCKED, partial(on_wait, lock))


def record(
    session: Session,
    results: Path,
    reporter: Reporter = silent,
    on_wait: Callable[[Path], None] = lambda lock: None,
) -> Recording:
    """Run a session, then write its records, bands and tables below `results`.

    If runs fail, or the time is up before the end, only seeds with all arms of the session are recorded; the others
    stay in the store. If another session writes there, `on_wait(lock)` is called, and this one waits.

    Recorded runs of other seeds and arms are kept. Those of another protocol, of another configuration, or of other
    data, are replaced if the session has all their arms and seeds. KDError, before anything is trained, if it has not,
    for code that is not committed, for more seeds of the judged profile than it declares, for claims and figures about
    what the experiment does not have, and for results that cannot be written. KDError, before anything is written, for
    compared arms that differ in what `claims.toml` does not name, or do not differ in what it names, and for seeds of
    an arm that were trained in different ways.
    """
    refuse_synthetic(session, "record")
    experiment, folder = session.experiment, results / session.experiment.name
    refuse_unknown_names(experiment, bands=False)
    read_bands(experiment.folder / "bands.toml")  # before training: what cannot be read is not replaced
    path = folder / "runs.jsonl"
    with held(folder, on_wait):
        recorded = read_records(path)
    refuse_undeclared_seeds(session, recorded)
    refuse_unlike(session, _planned(session), recorded)
    refuse_uncommitted(experiment)
    refuse_others_runs(session)
    jobs, summary = trained(session, reporter, recorded)
    problems, notes = failures(jobs, summary), []
    if begun := incomplete(jobs, summary):
        jobs = complete(jobs, summary)
        some = f"seed{'s' * (len(begun) > 1)} {', '.join(map(str, begun))}"
        notes.append(f"Not recorded, because not all of their runs are finished: {some}.")
    new = records_of(session, jobs, summary)
    if unclean := [record.run for record in new if record.environment.get("clean") is not True]:
        notes.append(
            f"{len(unclean)} runs of the store were trained with code that no commit is known to hold, {unclean[0]} "
            "for example. The audit refuses them; commit the code, and record with another --store to train them anew."
        )
    if begun and not new:
        return Recording(problems, [], ["Nothing is recorded: no seed is complete."], len(summary.left), [], recorded)
    # Two sessions may record seeds of one replication at the same time.
    with held(folder, on_wait):
        recorded = read_records(path)
        try:
            old = refuse_unlike(session, _cells(new), recorded)
        except KDError as error:
            if not problems and not summary.left:
                raise  # another session has recorded them meanwhile
            return Recording(problems, [], [*notes, f"Nothing is recorded: {error}"], len(summary.left), new, recorded)
        records = merged(old, new)
        if faults := unlike_seeds(records):
            raise KDError(
                f"nothing is recorded: the seeds of an arm are not of one experiment: {'; '.join(faults)}. Raise "
                "`protocol` in experiment.py and record all seeds anew, or undo the edit between them"
            )
        notes += [note] if (note := other_source_files(new, records)) else []
        if faults := pair_faults(experiment, reported_of(experiment), records):
            raise KDError(f"nothing is recorded: compared arms are not as claims.toml says: {'; '.join(faults)}")
        # In the order of the file, so that tables do not depend on that of recording.
        records = write_records(path, records, [arm.name for arm in experiment.arms])
        update_bands(experiment, [r for r in records if r.profile == session.profile_name])
        pages = write_pages(experiment, records, folder, committed=records, synthetic=False)
    return Recording(problems, pages, notes, len(summary.left), new, records)


def refuse_undeclared_seeds(session: Session, records: Sequence[Record]) -> None:
    """Refuse more seeds of the judged profile than it declares: to look and then run more makes false verdicts."""
    declared, name = session.profile.seeds, session.profile_name
    recorded = {record.seed for record in records if record.profile == name}
    if session.profile.judged and (more := sorted(seed for seed in {*session.seeds, *recorded} if seed >= declared)):
        raise KDError(
            f"{session.experiment.name}, profile {name}: expected seeds 0 to {declared - 1}, which experiment.py "
            f"declares, found {', '.join(map(str, more))}; raise the declared number there first, with the date"
        )


def refuse_uncommitted(experiment: Experiment) -> None:
    """Refuse to train runs whose commit does not hold their code: the audit would refuse them in the end."""
    if why := no_commit(experiment.folder):
        raise KDError(
            f"{experiment.name}: expected git to name the commit of the code, so that a recorded run names it, found "
            f"that {why[:400]}; mend that, or use `kd run`, which records nothing"
        )
    if is_clean(experiment.folder) is False:
        raise KDError(
            f"{experiment.name}: expected code that is committed, so that a recorded run names it, found changes in "
            "kdlib/ or replications/ (`git status --ignored` lists them); commit them, or use `kd run`, which records "
            "nothing"
        )


def refuse_others_runs(session: Session) -> None:
    """Refuse runs of the store that another replication of the same source has made with other code."""
    experiment = session.experiment
    for job in session.jobs():
        run = session.store.find(job.description) if is_stored(session, job) else None
        if run is not None and is_of_another_replication(run.environment, run.description.recipe, experiment):
            raise KDError(
                f"record {experiment.name}: expected runs of replications/{experiment.name}, found run {run.id} in the "
                f"store, which replications/{run.environment['replication']} made with other code. Both have the "
                f"source '{experiment.source}': give one of them another, or record with another --store"
            )


# ---- runs that may not be in one table


class _Cell(NamedTuple):
    """A place of a table."""

    seed: int
    arm: str


def _planned(session: Session) -> set[_Cell]:
    return {_Cell(job.description.seed, arm) for job in session.jobs() for arm in job.arms}


def _cells(records: Sequence[Record]) -> set[_Cell]:
    return {_Cell(record.seed, arm) for record in records for arm in record.arms}


def refuse_unlike(session: Session, new: set[_Cell], records: Sequence[Record]) -> list[Record]:
    """Return the recorded runs that may stay next to the `new` ones, or are replaced by them.

    Those of other data have the same table and are left out: all their places are filled anew. KDError for recorded
    runs of another protocol or of other data of which a place is not filled, because no verdict may mix both.
    """
    experiment, kept = session.experiment, []
    own, arms = (
        experiment.label(session.profile_name, asdict(session.profile.config)),
        [a.name for a in experiment.arms],
    )
    for old in records:
        if old.profile != session.profile_name or label_of(experiment, old) != own:
            kept.append(old)
            continue
        if gone := sorted({*old.arms} - {*arms}):
            raise KDError(
                f"{experiment.name}, profile {session.profile_name}: expected recorded runs of its arms "
                f"({', '.join(arms)}), found {', '.join(gone)}, seed {old.seed}; delete its line from runs.jsonl"
            )
        left = [arm for arm in sorted(old.arms) if _Cell(old.seed, arm) not in new]
        for what, expected, found in _unlike(session, old):
            if left:
                raise KDError(
                    f"{experiment.name}, profile {session.profile_name}: expected recorded runs of {what} {expected} "
                    f"next to the new ones, found {', '.join(left)}, seed {old.seed}, of {what} {found}; record all "
                    "recorded arms and seeds at once, or delete its line from runs.jsonl"
                )
        if not any(what == "data" for what, *_ in _unlike(session, old)):
            kept.append(old)
    return kept


def _unlike(session: Session, old: Record) -> list[tuple[str, object, object]]:
    """In what a recorded run differs from a run of the same arms now."""
    experiment, protocol = session.experiment, old.description["protocol"]
    found: list[tuple[str, object, object]] = []
    if protocol != experiment.protocol:
        found.append(("protocol", experiment.protocol, protocol))
    usual = experiment.config(experiment.arm(next(iter(old.arms))), session.profile)
    own, stored = read_json(canonical_json(asdict(usual))), old.description["config"]
    for name in sorted((own.keys() | stored.keys()) - {*experiment.data_fields} - OF_COMPUTE):
        # Of a new or a former field, the traces tell whether it stands for other numbers (`unlike_seeds`).
        if (name in own and name in stored) or not old.trace:
            now, then = (config.get(name, "(missing)") for config in (own, stored))
            if now != then:
                found.append((name, now, then))
    data = {_data_of(session, arm) for arm in old.arms}
    if old.data not in data:
        found.append(("data", ", ".join(sorted(data)), old.data))
    return found


def _data_of(session: Session, arm: str) -> str:
    """The digest of the data of an arm."""
    experiment = session.experiment
    digest: str = experiment.load_data(experiment.config(experiment.arm(arm), session.profile), session.folders).digest
    return digest


# ---- bands


def update_bands(experiment: Experiment, records: Sequence[Record]) -> None:
    """Write the bands of all arms with enough seeds, and of judged runs the verdicts on complete claims.

    `records` are all recorded runs of one profile; bands of this profile on other data than theirs are left out.
    """
    path, groups = experiment.folder / "bands.toml", grouped(records)
    profiles = {profile for _, profile in groups}
    bands = {key: known for key, known in read_bands(path).items() if key[1] not in profiles or key in groups}
    reported = reported_of(experiment)
    for (digest, profile), group in groups.items():
        metrics = measured(group)
        commits = {
            arm: ", ".join(sorted({str(r.environment.get("commit", "unknown"))[:12] for r in group if arm in r.arms}))
            for arm in metrics
        }
        of = experiment.profile(profile)
        judged = reported if of.judged else None
        bands[digest, profile] = bands_of(metrics, experiment.banded, commits, judged, of.seeds)
    write_bands(path, bands)
