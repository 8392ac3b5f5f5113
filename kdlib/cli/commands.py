"""`kd run`, `check`, `record`, `tables`, `list`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kdlib.claims import Reported
from kdlib.cli.pages import reported_of, update_readme, write_pages
from kdlib.cli.session import Session, failures, prepare, records_of, tell, train
from kdlib.errors import KDError
from kdlib.experiment import Experiment, load_experiment, replications
from kdlib.files import locked
from kdlib.judging import Metrics, judge, with_choices
from kdlib.plan import Job
from kdlib.recorded import Record as Bands
from kdlib.recorded import changes, check_bands, inside_ranges, read_recorded, record_bands, write_recorded
from kdlib.report import evidence
from kdlib.verdicts import MIN_SEEDS, Outcome

ROOT = Path()


def run(options: argparse.Namespace) -> int:
    """`kd run NAME`."""
    seeds = range(options.seeds) if options.seeds else None if options.seed is None else (options.seed,)
    session = prepare(options, options.name, options.profile, options.arms, seeds, options.store)
    jobs = session.jobs()
    if options.dry_run:
        return dry_run(session, jobs)
    summary = train(session, jobs)
    records = records_of(session, jobs, summary)
    folder = ROOT / "results" / session.experiment.name / "local"
    committed = evidence.read_records(folder.parent / "runs.jsonl")
    for page in write_pages(session.experiment, records, folder, committed=committed, synthetic=session.synthetic):
        print("\n" + page)
    print(f"Written to {folder}")
    if rest := left_of_profile(session):
        print(rest)
    return tell([*failures(jobs, summary), *departures(session, records)])


def left_of_profile(session: Session) -> str:
    """What of the profile, with all its arms and seeds, the store lacks, and the command that goes on; empty where nothing."""
    experiment, profile = session.experiment, session.profile
    jobs = replace(session, arms=experiment.arms_of(profile), seeds=tuple(range(profile.seeds))).jobs()
    left = sum(not session.store.has(job.description) for job in jobs)
    if not left:
        return ""
    return (f"{left} of the {len(jobs)} runs of profile {session.profile_name} are left. To go on: "
            f"nox -s replicate_{experiment.name} -- --profile {session.profile_name} (and your other options)")


def check(options: argparse.Namespace) -> int:
    """`kd check [NAME ...]`: the check arms, seed 0, in an empty store, against the recorded bands of profile quick."""
    problems: list[str] = []
    options.require_real = True  # a check on synthetic data would check nothing
    for name in chosen(options.names):
        with told_on_error(problems), tempfile.TemporaryDirectory(prefix="kd-check-") as store:
            session = prepare(options, name, "quick", load_experiment(name).module.CHECK, (0,), Path(store))
            jobs = session.jobs()
            summary = train(session, jobs)
            records = records_of(session, jobs, summary)
            problems += [f"{name}: {sentence}" for sentence in failures(jobs, summary)]
            recorded = read_recorded(session.experiment.folder / "recorded.toml")
            for key, group in evidence.grouped(records).items():
                if key not in recorded:
                    problems.append(f"{name}: no bands are recorded for data {key[0]}; `kd record {name}` makes them")
                    continue
                metrics = evidence.measured(group, session.experiment.module.CHECK)
                misses = check_bands(recorded[key].bands, metrics)
                numbers = sum(1 for band in recorded[key].bands if band.partition(".")[0] in metrics)
                print(f"{name}: {numbers} numbers of {len(metrics)} arms checked, {len(misses)} outside their bands")
                if not numbers:
                    problems.append(f"{name}: no bands of its check arms are recorded; `kd record {name}` makes them")
                problems += [f"{name}: {miss}" for miss in misses]
    return tell(problems)


def chosen(names: Sequence[str]) -> Sequence[str]:
    """The named replications, or all; KDError where one is not there, before anything is done."""
    names = names or replications(ROOT)
    if not names:
        raise KDError(f"expected folders replications/<name> with an experiment.py in {ROOT.absolute()}, found none; call kd "
                      "in the root of the repository")
    for name in names:
        load_experiment(name)
    return names


@contextmanager
def told_on_error(problems: Sequence[str]) -> Iterator[None]:
    """An error that stops a check must not take with it what earlier replications were found to have."""
    try:
        yield
    except KDError:
        tell(problems)
        raise


def record(options: argparse.Namespace) -> int:
    """`kd record NAME`: run, then write evidence, bands and committed tables of one profile.

    Recorded runs of seeds and arms that this command does not have are kept.
    """
    options.require_real = True
    profile = load_experiment(options.name).profile(options.profile)
    seeds = (options.seed,) if options.seed is not None else range(options.seeds or max(MIN_SEEDS, profile.seeds))
    session = prepare(options, options.name, options.profile, options.arms, seeds, options.store)
    jobs = session.jobs()
    folder = ROOT / "results" / session.experiment.name
    path = folder / "runs.jsonl"
    refuse_other_protocols(session, jobs, evidence.read_records(path))
    summary = train(session, jobs)
    # Two sessions may record seeds of one replication side by side.
    with locked(folder / ".lock", "see that results/ can be written to"):
        records = evidence.merged(evidence.read_records(path), records_of(session, jobs, summary))
        evidence.write_records(path, records, [arm.name for arm in session.experiment.arms])
        write_bands(session.experiment, [r for r in records if r.profile == session.profile_name])
        for page in write_pages(session.experiment, records, folder, committed=records, synthetic=False):
            print(page)
    return tell(failures(jobs, summary))


def refuse_other_protocols(session: Session, jobs: Sequence[Job], records: Sequence[evidence.Record]) -> None:
    """Refuse to record beside runs of another protocol: no verdict may be of both. Told before anything is trained."""
    protocol, data = session.experiment.module.PROTOCOL, {job.description.data for job in jobs}
    new = {(job.description.seed, arm) for job in jobs for arm in job.arms}
    for record in records:
        kept = sorted(arm for arm in record.arms if (record.seed, arm) not in new)
        if record.profile == session.profile_name and record.data in data and kept and record.description["protocol"] != protocol:
            raise KDError(f"{session.experiment.name}, profile {session.profile_name}: expected recorded runs of protocol "
                          f"{protocol} beside the new ones, found {', '.join(kept)}, seed {record.seed}, of protocol "
                          f"{record.description['protocol']}; record all recorded arms and seeds at once, or delete its line "
                          "from runs.jsonl")


def write_bands(experiment: Experiment, records: Sequence[evidence.Record]) -> None:
    """Write the bands (and, of full runs, the verdicts) of arms with enough seeds; the commits named made the arm's runs."""
    path = experiment.folder / "recorded.toml"
    recorded = dict(read_recorded(path))
    reported = reported_of(experiment)
    for (digest, profile), group in evidence.grouped(records).items():
        metrics = {arm: seeds for arm, seeds in evidence.measured(group).items() if len(seeds) >= MIN_SEEDS}
        if not metrics:
            continue
        commits = {arm: ", ".join(sorted({str(r.environment["commit"])[:12] for r in group if arm in r.arms})) for arm in metrics}
        full = profile == "full"
        recorded[digest, profile] = Bands(record_bands(metrics, experiment.module.BANDED, commits),
                                          outcomes(reported, metrics) if full else {},
                                          inside_ranges(reported, metrics) if full else {})
    write_recorded(path, recorded)


def departures(session: Session, records: Sequence[evidence.Record]) -> list[str]:
    """A sentence for each metric outside its recorded band and each verdict that is not the recorded one.

    Nothing is recorded for synthetic data, for other data than ours, or before the first `kd record`.
    """
    recorded = read_recorded(session.experiment.folder / "recorded.toml")
    found: list[str] = []
    for key, group in evidence.grouped(records).items():
        if known := recorded.get(key):
            metrics = evidence.measured(group)
            found += [str(miss) for miss in check_bands(known.bands, metrics)]
            seeds = sorted({seed for band in known.bands.values() for seed in band.seeds})
            if session.profile_name == "full" and set(seeds) <= set(session.seeds):
                reported, same = reported_of(session.experiment), of_recorded_seeds(known, metrics)
                found += changes(known, outcomes(reported, same), inside_ranges(reported, same))
            elif session.profile_name == "full":  # both depend on the number of seeds
                print(f"Verdicts and ranges are not compared with the recorded ones, which are of {len(seeds)} seeds, "
                      f"{seeds[0]} to {seeds[-1]}")
    return found


def of_recorded_seeds(known: Bands, metrics: Metrics) -> Metrics:
    """The metrics of the recorded arms and seeds alone: with more seeds, another verdict would be no departure."""
    seeds = {key.partition(".")[0]: band.seeds for key, band in known.bands.items()}
    return {arm: {seed: measured[seed] for seed in seeds[arm] if seed in measured}
            for arm, measured in metrics.items() if arm in seeds}


def outcomes(reported: Reported, metrics: Metrics) -> dict[str, dict[str, Outcome]]:
    """The verdict of each claim in each mode whose arms have been run."""
    metrics = with_choices(reported.choices, metrics)
    return {name: {mode: judge(claim, mode, metrics).verdict for mode, arms in claim.modes.items()
                   if {*arms.arms, *arms.over} <= metrics.keys()} for name, claim in reported.claims.items()}


def tables(options: argparse.Namespace) -> int:
    """`kd tables [NAME ...]`: the committed tables and README's summary, again, from the committed runs."""
    for name in chosen(options.names):
        path = ROOT / "results" / name / "runs.jsonl"
        if path.exists():
            records = evidence.read_records(path)
            write_pages(load_experiment(name), records, path.parent, committed=records, synthetic=False)
            print(f"written {path.parent}")
    update_readme(ROOT)
    return 0


def dry_run(session: Session, jobs: Sequence[Job]) -> int:
    """Print the runs a session would make, and what they would cost by the recorded runs of the same arms."""
    path = ROOT / "results" / session.experiment.name / "runs.jsonl"
    past = evidence.read_records(path)
    cost = {arm: r.environment for r in past if r.profile == session.profile_name for arm in r.arms}
    total = disk = 0.0
    unknown = 0
    until: dict[str, float] = {}  # seconds of a run and of the runs it waits for
    for job in jobs:
        known = cost.get(job.arms[0])
        seconds = stored_bytes = 0.0
        if session.store.has(job.description):
            about = "in the store"
        elif known is None:
            about = "cost not known"
            unknown += 1
        else:
            seconds, stored_bytes = known["seconds"], known["stored_bytes"]
            about = f"about {seconds / 60:.1f} min"
        print(f"{job.description.id}  {job.label}: {about}")
        total, disk = total + seconds, disk + stored_bytes
        until[job.description.id] = seconds + max((until[run] for run, _ in job.parents.values()), default=0.0)
    least = max(total / session.workers, *until.values())
    print(f"{len(jobs)} runs; about {least / 60:.0f} minutes on {session.workers} workers and "
          f"{disk / 1e6:.1f} MB in {session.store.folder}" + (f", {unknown} runs of unknown cost left out" if unknown else ""))
    return 0


def show_list(options: argparse.Namespace) -> int:
    """`kd list`."""
    for name in chosen(()):
        experiment = load_experiment(name)
        about, _, _ = (experiment.module.__doc__ or "").strip().partition("\n")
        print(f"{name}: {about}")
        for label, profile in experiment.module.PROFILES.items():
            print(f"  {label}: {profile.seeds} seeds{', ' + profile.reduced if profile.reduced else ''}")
        print("  arms: " + ", ".join(arm.name for arm in experiment.arms))
    return 0
