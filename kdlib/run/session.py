"""One session: some arms and seeds of a replication, prepared from plain arguments, trained, and put on record."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from kdlib.data import DataUnavailable, fetch
from kdlib.errors import KDError
from kdlib.run.engine import Report, Summary, execute
from kdlib.run.experiment import DEFAULT, Compute, Experiment, Profile, load_experiment
from kdlib.run.plan import Job, plan
from kdlib.run.records import Record, record_of
from kdlib.run.store import Store

__all__ = [
    "Cost",
    "Session",
    "Watcher",
    "costs",
    "device_of",
    "failures",
    "left_of_profile",
    "prepare",
    "records_of",
    "train",
]


class Watcher(Protocol):
    """Is told how the download of a data set goes on."""

    def __call__(self, file: str, received: int, expected: int) -> None:
        """Take a file's name, the bytes of the whole set received so far, and the bytes expected."""

    def waits(self) -> None:
        """Another process downloads the same data set, and this one waits for it."""


@dataclass(frozen=True)
class Session:
    """What is run: a replication's arms for some seeds, on some data, somewhere.

    `unavailable` says why synthetic data stand in for the real ones; it is empty if they do not, or do so by design.
    """

    experiment: Experiment
    profile_name: str
    profile: Profile
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    compute: Compute
    workers: int
    folders: Mapping[str, Path]
    store: Store
    replicas: int
    unavailable: str = ""

    @property
    def synthetic(self) -> bool:
        """Whether the runs see synthetic data."""
        return self.profile.synthetic or (bool(self.experiment.data) and not self.folders)

    def jobs(self) -> list[Job]:
        """Return the runs that the arms need, parents before children."""
        return plan(self.experiment, self.profile, self.arms, self.seeds, self.compute, self.folders, self.replicas)


def prepare(
    name: str,
    profile: str = DEFAULT,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    settings: Mapping[str, str] | None = None,
    data: Path | None = None,
    store: Path = Path(".kd"),
    device: str = "cpu",
    threads: int = 1,
    workers: int | None = None,
    replicas: int = 1,
    require_real: bool = False,
    downloads: Callable[[str], Watcher] | None = None,
) -> Session:
    """Look up a replication, its profile, data and device, as `kd run NAME` does.

    `arms`, `seeds`: those of the profile if none are given. `settings`: other values of the fields that choose the
    data. `data`: a folder that holds the data sets' folders. `workers`: training processes side by side; on a CPU as
    many as fit. `downloads(data set)` returns an object that is told how a download goes on. Without the real data the
    session uses synthetic ones, or, with `require_real`, DataUnavailable is raised. KDError says what is wrong and what
    to do.
    """
    experiment = load_experiment(name)
    chosen = _with_settings(experiment, experiment.profile(profile), settings or {})
    wanted = tuple(arms) or experiment.arms_of(chosen)
    for arm in wanted:
        experiment.arm(arm)
    compute = Compute(device_of(device), threads)
    if workers is None:
        alone = compute.device != "cpu" or chosen.synthetic
        workers = 1 if alone else max(1, _cores() // threads)
    folders, unavailable = _folders(experiment, profile, data, require_real, downloads)
    return Session(
        experiment,
        profile,
        chosen,
        wanted,
        tuple(range(chosen.seeds) if seeds is None else seeds),
        compute,
        workers,
        folders,
        Store(store),
        replicas,
        unavailable,
    )


def _with_settings(experiment: Experiment, profile: Profile, settings: Mapping[str, str]) -> Profile:
    if unknown := settings.keys() - set(experiment.data_fields):
        raise KDError(
            f"--set {', '.join(sorted(unknown))}: expected fields that choose the data of {experiment.name}, which are "
            f"{', '.join(experiment.data_fields) or 'none'}; edit experiment.py to change the protocol"
        )
    usual = {field.name: getattr(profile.config, field.name) for field in fields(profile.config)}
    typed = {name: _typed(name, text, usual[name]) for name, text in settings.items()}
    return replace(profile, config=replace(profile.config, **typed))


def _typed(name: str, text: str, usual: Any) -> Any:
    """The text of a setting as a value of the field's type."""
    kind = type(usual)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (KeyError, ValueError) as error:
        expected = {bool: "true or false", int: "a whole number"}.get(kind, "a finite number")
        raise KDError(f"--set {name}={text}: expected {expected}, such as {usual}, found {text!r}") from error


def device_of(name: str) -> str:
    """Return the device of that name; KDError if this machine has none."""
    if name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise KDError(f"--device {name}: expected cpu, cuda, or cuda:N")
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if number >= count:
        found = f"{count}" if count else f"none that torch {torch.__version__} can use"
        raise KDError(
            f"--device {name}: expected CUDA device {number}, found {found}; leave --device out to train on the CPU"
        )
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folders(
    experiment: Experiment,
    profile: str,
    data: Path | None,
    require_real: bool,
    downloads: Callable[[str], Watcher] | None,
) -> tuple[dict[str, Path], str]:
    """The data sets' folders, or why there are none."""
    if experiment.profile(profile).synthetic:
        if require_real:
            raise KDError(
                f"profile {profile} of {experiment.name}: expected one on real data, as --require-real, check and "
                "record ask for, found synthetic data by design; choose another profile"
            )
        return {}, ""
    try:
        return {name: _folder(name, data, downloads) for name in experiment.data}, ""
    except DataUnavailable as error:
        if require_real:
            raise
        return {}, str(error)


def _folder(name: str, data: Path | None, downloads: Callable[[str], Watcher] | None) -> Path:
    if downloads is None:
        return fetch.find(name, data)
    watcher = downloads(name)
    return fetch.find(name, data, watcher, watcher.waits)


def train(session: Session, jobs: Sequence[Job], report: Report = lambda event: None) -> Summary:
    """Train every run that the store lacks; `report` is told of each event."""
    return execute(
        jobs,
        session.store,
        compute=session.compute,
        folders=session.folders,
        workers=session.workers,
        report=report,
    )


def records_of(session: Session, jobs: Sequence[Job], summary: Summary) -> list[Record]:
    """Return the records of the finished runs."""
    records = []
    for job in jobs:
        if found := summary.finished.get(job.description.id):
            arms = {name: session.experiment.arm(name).snapshot for name in job.arms}
            name = session.experiment.load_data(job.config, session.folders).name
            records.append(record_of(found, session.profile_name, arms, name))
    return records


def failures(jobs: Sequence[Job], summary: Summary) -> list[str]:
    """Return a sentence for each run that failed or was not started."""
    labels = {job.description.id: job.label for job in jobs}
    return [
        *(f"{labels[run]}: failed: {why}" for run, why in summary.failed.items()),
        *(
            f"{labels[run]}: not started, because its parent {labels[parent]} failed"
            for run, parent in summary.blocked.items()
        ),
    ]


def left_of_profile(session: Session) -> tuple[int, int]:
    """Return how many runs of the whole profile the store lacks, and how many the profile has."""
    experiment, profile = session.experiment, session.profile
    whole = replace(session, arms=experiment.arms_of(profile), seeds=tuple(range(profile.seeds)))
    jobs = whole.jobs()
    return sum(not session.store.has(job.description) for job in jobs), len(jobs)


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
        stored = session.store.has(job.description)
        cost = Cost(job, stored, about.get("seconds"), about.get("stored_bytes"))
        found.append(cost)
        seconds = 0.0 if stored else cost.seconds or 0.0
        until[job.description.id] = seconds + max((until[run] for run, _ in job.parents.values()), default=0.0)
    total = sum(cost.seconds or 0.0 for cost in found if not cost.stored)
    return found, max(total / session.workers, *until.values(), 0.0)
