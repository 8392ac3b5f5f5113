"""`kd run`, `check`, `record`, `tables`, `list`: from a replication's folder to judged tables."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kdlib.claims import Reported, load_reported
from kdlib.cli.live import reporter
from kdlib.data import DataUnavailable, fetch
from kdlib.engine import Job, Summary, execute, plan
from kdlib.errors import KDError
from kdlib.experiment import Compute, Experiment, Profile, load_experiment, replications
from kdlib.judging import Metrics, judge
from kdlib.recorded import Record as Bands
from kdlib.recorded import changes, check_bands, inside_ranges, read_recorded, record_bands, write_recorded
from kdlib.report import evidence
from kdlib.report import tables as report
from kdlib.runs import Store
from kdlib.verdicts import Outcome

ROOT = Path()
BAND_SEEDS = 5
EXAMPLE = "ecg"  # the replication whose quick table README shows


@dataclass(frozen=True)
class Session:
    """What one command runs: a replication's arms for some seeds, on some data, somewhere."""

    experiment: Experiment
    profile_name: str
    profile: Profile
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    compute: Compute
    workers: int
    folders: Mapping[str, Path]
    store: Store

    @property
    def synthetic(self) -> bool:
        """Whether the stand-in is used in place of real data."""
        return not self.folders

    def jobs(self) -> list[Job]:
        """The runs behind the arms."""
        return plan(self.experiment, self.profile, self.arms, self.seeds, self.compute, self.folders)


def prepare(options: argparse.Namespace, name: str, profile_name: str, arms: Sequence[str], seeds: Sequence[int] | None,
            store: Path) -> Session:
    """Look up replication, profile, data and device; KDError says what is missing."""
    experiment = load_experiment(name)
    profile = _with_data(experiment, experiment.profile(profile_name), options.set)
    chosen = tuple(arms) or profile.arms or tuple(arm.name for arm in experiment.arms)
    for arm in chosen:
        experiment.arm(arm)
    compute = Compute(_device(options.device), options.threads)
    workers = options.workers or (1 if compute.device != "cpu" or profile.synthetic else max(1, _cores() // compute.threads))
    return Session(experiment, profile_name, profile, chosen, tuple(range(profile.seeds) if seeds is None else seeds), compute,
                   workers, _folders(experiment, profile, options), Store(store))


def _with_data(experiment: Experiment, profile: Profile, settings: Sequence[str]) -> Profile:
    changes = dict(setting.partition("=")[::2] for setting in settings)
    if unknown := changes.keys() - set(experiment.module.DATA_FIELDS):
        raise KDError(f"--set {', '.join(sorted(unknown))}: expected fields that choose the data of {experiment.name}, which are "
                      f"{', '.join(experiment.module.DATA_FIELDS) or 'none'}; edit experiment.py to change the protocol")
    return replace(profile, config=replace(profile.config, **changes))


def _device(name: str) -> str:
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise KDError(f"--device {name}: expected a CUDA device, found none that torch {torch.__version__} can use; leave "
                      "--device out to train on the CPU")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise KDError(f"--device {name}: expected cpu or cuda")
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folders(experiment: Experiment, profile: Profile, options: argparse.Namespace) -> dict[str, Path]:
    if profile.synthetic:
        if options.require_real:
            raise KDError(f"--require-real: profile smoke of {experiment.name} runs on synthetic data by design; "
                          "choose another profile")
        return {}
    try:
        return {name: fetch.find(name, options.data) for name in experiment.module.DATA}
    except DataUnavailable as error:
        if options.require_real:
            raise
        print(f"\n*** The real data cannot be had here: {error}\n*** {experiment.name} goes on with a SYNTHETIC stand-in: "
              "the tables are marked and no claim gets a verdict.\n*** --require-real makes this an error.\n",
              file=sys.stderr, flush=True)
        return {}


# ---- running


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
    for page in publish(session, records, folder):
        print("\n" + page)
    print(f"Written to {folder}")
    return tell([*failures(jobs, summary), *departures(session, records)])


def train(session: Session, jobs: Sequence[Job]) -> Summary:
    """Have all runs, showing progress."""
    with reporter(jobs) as show:
        return execute(jobs, session.store, compute=session.compute, folders=session.folders, workers=session.workers,
                       report=show)


def records_of(session: Session, jobs: Sequence[Job], summary: Summary) -> list[evidence.Record]:
    """The evidence of the finished runs."""
    records = []
    for job in jobs:
        if found := summary.finished.get(job.description.id):
            arms = {name: session.experiment.arm(name).snapshot for name in job.arms}
            name = session.experiment.load_data(job.config, session.folders).name
            records.append(evidence.record_of(found, session.profile_name, arms, name))
    return records


def publish(session: Session, records: Sequence[evidence.Record], folder: Path) -> list[str]:
    """Write the tables, one set for each data set among the records, and give their Markdown."""
    return write_pages(session.experiment, records, folder, synthetic=session.synthetic)


def write_pages(experiment: Experiment, records: Sequence[evidence.Record], folder: Path, *, synthetic: bool) -> list[str]:
    """The tables (and the figure, where the replication has a `figures.py`) of each profile and data set among the records."""
    reported, bands = _reported(experiment), read_recorded(experiment.folder / "recorded.toml")
    pages = []
    for (digest, profile_name), group in evidence.grouped(records).items():
        profile = experiment.profile(profile_name)
        label = _label(experiment, group[0], synthetic and not profile.synthetic)
        pages.append(report.write_tables(folder, label, experiment, reported, group, profile=profile_name,
                                         reduced=profile.reduced, synthetic=synthetic, recorded=bands.get((digest, "full"))))
        if (experiment.folder / "figures.py").exists():
            importlib.import_module(f"replications.{experiment.name}.figures").draw(group, reported, folder / f"{label}.png")
    return pages


def _label(experiment: Experiment, record: evidence.Record, stand_in: bool) -> str:
    """The name of a table's files: the profile and whatever in the data differs from the profile's own."""
    usual = asdict(experiment.profile(record.profile).config)
    other = [str(value) for key, value in record.description["config"].items()
             if key in experiment.module.DATA_FIELDS and value != usual[key]]
    return "-".join([record.profile, *other, *(["synthetic"] if stand_in else [])])


def failures(jobs: Sequence[Job], summary: Summary) -> list[str]:
    """A sentence for each run that failed or was not started."""
    labels = {job.description.id: job.label for job in jobs}
    return [*(f"{labels[run]}: failed: {why}" for run, why in summary.failed.items()),
            *(f"{labels[run]}: not started, its parent {labels[parent]} failed" for run, parent in summary.blocked.items())]


def tell(problems: Sequence[str]) -> int:
    """Print what fails a session; gives the exit status."""
    for problem in problems:
        print(f"FAILED  {problem}", file=sys.stderr)
    return 1 if problems else 0


# ---- against what is recorded


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
            if session.profile_name == "full" and len(session.seeds) >= BAND_SEEDS:
                reported = _reported(session.experiment)
                found += changes(known, outcomes(reported, metrics), inside_ranges(reported, metrics))
    return found


def outcomes(reported: Reported, metrics: Metrics) -> dict[str, dict[str, Outcome]]:
    """The verdict of each claim in each mode whose arms have been run."""
    return {name: {mode: judge(claim, mode, metrics).verdict for mode, arms in claim.modes.items()
                   if {*arms.arms, *arms.over} <= metrics.keys()} for name, claim in reported.claims.items()}


def _reported(experiment: Experiment) -> Reported:
    return load_reported(experiment.folder / "reported.toml", [arm.name for arm in experiment.arms])


def check(options: argparse.Namespace) -> int:
    """`kd check [NAME ...]`: the check arms, seed 0, in an empty store, against the recorded bands of profile quick."""
    problems: list[str] = []
    options.require_real = True  # a check on synthetic data would check nothing
    for name in options.names or replications(ROOT):
        with tempfile.TemporaryDirectory(prefix="kd-check-") as store:
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
                problems += [f"{name}: {miss}" for miss in misses]
    return tell(problems)


def record(options: argparse.Namespace) -> int:
    """`kd record NAME`: run, then write evidence, bands and committed tables of one profile.

    Recorded runs of seeds and arms that this command does not have are kept.
    """
    options.require_real = True
    profile = load_experiment(options.name).profile(options.profile)
    seeds = (options.seed,) if options.seed is not None else range(options.seeds or max(BAND_SEEDS, profile.seeds))
    session = prepare(options, options.name, options.profile, options.arms, seeds, options.store)
    jobs = session.jobs()
    summary = train(session, jobs)
    folder = ROOT / "results" / session.experiment.name
    path = folder / "runs.jsonl"
    past = evidence.read_records(path) if path.exists() else []
    records = evidence.merged(past, records_of(session, jobs, summary))
    evidence.write_records(path, records, [arm.name for arm in session.experiment.arms])
    write_bands(session.experiment, [r for r in records if r.profile == session.profile_name])
    for page in write_pages(session.experiment, records, folder, synthetic=False):
        print(page)
    return tell(failures(jobs, summary))


def write_bands(experiment: Experiment, records: Sequence[evidence.Record]) -> None:
    """Write the bands (and, of full runs, the verdicts) of arms with enough seeds; the commits named made the runs."""
    path = experiment.folder / "recorded.toml"
    recorded = dict(read_recorded(path))
    reported = _reported(experiment)
    for (digest, profile), group in evidence.grouped(records).items():
        metrics = {arm: seeds for arm, seeds in evidence.measured(group).items() if len(seeds) >= BAND_SEEDS}
        if not metrics:
            continue
        commits = ", ".join(sorted({str(r.environment["commit"])[:12] for r in group}))
        full = profile == "full"
        recorded[digest, profile] = Bands(record_bands(metrics, experiment.module.BANDED, commits),
                                          outcomes(reported, metrics) if full else {},
                                          inside_ranges(reported, metrics) if full else {})
    write_recorded(path, recorded)


def tables(options: argparse.Namespace) -> int:
    """`kd tables [NAME ...]`: the committed tables and README's summary, again, from the committed runs."""
    for name in options.names or replications(ROOT):
        path = ROOT / "results" / name / "runs.jsonl"
        if path.exists():
            experiment = load_experiment(name)
            write_pages(experiment, evidence.read_records(path), path.parent, synthetic=False)
            print(f"written {path.parent}")
    update_readme()
    return 0


def update_readme() -> None:
    """Put one row for each replication into README's table."""
    rows = []
    for name in replications(ROOT):
        experiment, path = load_experiment(name), ROOT / "results" / name / "runs.jsonl"
        records = evidence.read_records(path) if path.exists() else []
        usual = [r for r in records if r.profile == "full" and _label(experiment, r, False) == "full"]
        rows.append(report.summary_line(name, _reported(experiment), usual))
    shown = {EXAMPLE: page.read_text(encoding="utf-8")} if (page := ROOT / "results" / EXAMPLE / "quick.md").exists() else {}
    report.update_readme(ROOT / "README.md", rows, shown)


# ---- looking


def dry_run(session: Session, jobs: Sequence[Job]) -> int:
    """Print the runs a session would make, and what they would cost by the recorded runs of the same arms."""
    path = ROOT / "results" / session.experiment.name / "runs.jsonl"
    past = evidence.read_records(path) if path.exists() else []
    cost = {arm: r.environment for r in past if r.profile == session.profile_name for arm in r.arms}
    seconds = disk = 0.0
    unknown = 0
    for job in jobs:
        known = cost.get(job.arms[0])
        stored = session.store.find(job.description) is not None
        print(f"{job.description.id}  {job.label}: " + ("in the store" if stored else
              f"about {known['seconds'] / 60:.1f} min" if known else "cost not known"))
        if not stored and known:
            seconds, disk = seconds + known["seconds"], disk + known["stored_bytes"]
        unknown += not stored and not known
    print(f"{len(jobs)} runs; about {seconds / 60 / session.workers:.0f} minutes on {session.workers} workers and "
          f"{disk / 1e6:.1f} MB in {session.store.folder}" + (f", {unknown} runs of unknown cost left out" if unknown else ""))
    return 0


def show_list(options: argparse.Namespace) -> int:
    """`kd list`."""
    for name in replications(ROOT):
        experiment = load_experiment(name)
        print(f"{name}: {(experiment.module.__doc__ or '').strip().splitlines()[0]}")
        for profile, about in experiment.module.PROFILES.items():
            print(f"  {profile}: {about.seeds} seeds{', ' + about.reduced if about.reduced else ''}")
        print("  arms: " + ", ".join(arm.name for arm in experiment.arms))
    return 0
