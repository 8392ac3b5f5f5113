"""One session: some arms and seeds of a replication, prepared from plain arguments, trained, and put on record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kdlib.checks import path_of
from kdlib.data import DataUnavailable, fetch
from kdlib.data.present import is_folder
from kdlib.errors import KDError
from kdlib.replicas import CONVOLUTIONS
from kdlib.run.arguments import count_of, minutes_of, seeds_of, typed_value
from kdlib.run.devices import device_of, kind_of
from kdlib.run.engine import Summary, execute
from kdlib.run.environment import source_digest
from kdlib.run.events import Report
from kdlib.run.executor import Executor
from kdlib.run.experiment import DEFAULT, Compute, Experiment, Profile, load_experiment
from kdlib.run.group import Setting
from kdlib.run.limit import Limit
from kdlib.run.on_ray import OnRay, ray_module
from kdlib.run.plan import Job, plan, wanted_arms
from kdlib.run.records import Record, record_of
from kdlib.run.store import Store

__all__ = [
    "Session",
    "Watcher",
    "complete",
    "data_sets",
    "failures",
    "folder_of",
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

    `unavailable` says why the real data are not there, so that this is the replication's profile on synthetic data
    instead of the one asked for; otherwise it is empty.
    `order` says what is outermost in the order of work, seeds or arms. `deadline` is the value of `time.monotonic()`
    at which the session has to stop.
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
    order: str = "seeds"
    deadline: float = math.inf
    executor: Callable[[Setting, Report], Executor] | None = None  # what trains, instead of processes of this machine

    @property
    def synthetic(self) -> bool:
        """Whether the runs see synthetic data. What an experiment makes or ships itself (`data=()`) is real."""
        return self.profile.synthetic

    def jobs(self) -> list[Job]:
        """Return the runs that the arms need, in the order in which they are begun: parents before children."""
        what = self.experiment, self.profile, self.arms, self.seeds
        return plan(*what, self.compute, self.folders, self.replicas, self.order)


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
    ray: str = "",
    replicas: int = 1,
    convolutions: str = "grouped",
    graphs: bool = True,
    order: str = "seeds",
    minutes: float | None = None,
    require_real: bool = False,
    downloads: Callable[[str], Watcher] | None = None,
) -> Session:
    """Look up a replication, its profile, data and device, as `kd run NAME` does.

    `arms`, `seeds`: those of the profile if none are given. `settings`: other values of the fields that choose the
    data. `data`: a folder that holds the data sets' folders. `workers`: training processes side by side; on a CPU as
    many as fit; on a CUDA device they spread over the visible cards. `ray`: the address of a Ray cluster, or "auto" or
    "local", where `workers` groups are trained side by side, or as many as fit. `replicas`, `convolutions`: students
    side by side, and how their convolutions are computed. `graphs`: a CUDA device replays recorded steps. `order`:
    "seeds" trains all arms of a seed before the next seed, "arms" all seeds of an arm before the next arm; the arms are
    in the order of `arms`. `minutes`: the session stops at checkpoints, so many minutes after this call.
    `downloads(data set)` returns an object that is told how a download goes on. If the real data are neither here nor
    to be downloaded, the session is of the profile on synthetic data, with no more seeds than that profile has, or,
    with `require_real`, DataUnavailable is raised. KDError says what is wrong and what to do.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes_of(minutes)
    store, data = path_of("store", store), None if data is None else path_of("data", data)
    if data is not None and not is_folder(data):  # also for a profile on synthetic data, which would not look there
        raise KDError(f"--data {data}: expected a folder that holds data sets, found no such folder")
    threads, replicas = count_of("threads", threads), count_of("replicas", replicas)
    experiment = load_experiment(name)
    if source_digest.__wrapped__(experiment.folder) != source_digest(experiment.folder):
        raise KDError(
            f"{name}: expected the source files that this process has imported, found that they were edited since; "
            "start Python again (in a notebook, the kernel), since an edit does not reach what is imported"
        )
    chosen = _with_settings(experiment, profile, settings or {})
    if isinstance(arms, str):
        raise KDError(f"arms: expected names of arms in a list, found a text; write [{arms!r}]")
    for arm in arms:
        experiment.arm(arm)
    if convolutions not in CONVOLUTIONS:
        raise KDError(f"--convolutions {convolutions}: expected {' or '.join(CONVOLUTIONS)}")
    compute = Compute(kind_of(device) if ray else device_of(device), threads, convolutions, graphs)
    executor = partial(OnRay, ray_module(), ray, experiment.folder.parent, data, workers) if ray else None
    folders, unavailable = _folders(experiment, profile, chosen, data, require_real, downloads)
    if unavailable:
        profile = _stand_in(experiment, unavailable)
        chosen = _with_settings(experiment, profile, settings or {})
        seeds = seeds and seeds[: chosen.seeds]
    alone = compute.device != "cpu" or chosen.synthetic or bool(ray)
    usual = 1 if alone else max(1, _cores() // threads)
    workers = usual if workers is None else count_of("workers", workers)
    seeds = seeds_of(range(chosen.seeds) if seeds is None else seeds)
    arms = tuple(arms) or experiment.arms_of(chosen)
    if replicas > 1 and all(arm.mapped is None for arm in wanted_arms(experiment, arms)):
        raise KDError(f"--replicas {replicas}: no arm of {name} can be trained side by side; leave it away")
    return Session(
        experiment,
        profile,
        chosen,
        arms,
        seeds,
        compute,
        workers,
        folders,
        Store(store),
        replicas,
        unavailable,
        order,
        deadline,
        executor,
    )


def _with_settings(experiment: Experiment, label: str, settings: Mapping[str, str]) -> Profile:
    """The profile called `label`, with other values of the fields that choose its data."""
    profile = experiment.profile(label)
    if unknown := settings.keys() - set(experiment.data_fields):
        raise KDError(
            f"--set {', '.join(sorted(unknown))}: expected fields that choose the data of {experiment.name}, which are "
            f"{', '.join(experiment.data_fields) or 'none'}; edit experiment.py to change the protocol"
        )
    usual = {field.name: getattr(profile.config, field.name) for field in fields(profile.config)}
    typed = {name: typed_value(name, text, usual[name]) for name, text in settings.items()}
    changed = replace(profile, config=replace(profile.config, **typed))
    experiment.label(label, asdict(changed.config))  # refuses what cannot be part of a file's name, before training
    return changed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folders(
    experiment: Experiment,
    profile: str,
    chosen: Profile,
    data: Path | None,
    require_real: bool,
    downloads: Callable[[str], Watcher] | None,
) -> tuple[dict[str, Path], str]:
    """The data sets' folders, or why there are none."""
    if chosen.synthetic:
        if require_real:
            raise KDError(
                f"profile {profile} of {experiment.name}: expected one on real data, as --require-real, check and "
                "record ask for, found synthetic data by design; choose another profile"
            )
        return {}, ""
    try:
        return {name: folder_of(name, data, downloads) for name in data_sets(experiment, chosen.config)}, ""
    except DataUnavailable as error:
        if require_real:
            raise
        return {}, str(error)


def _stand_in(experiment: Experiment, unavailable: str) -> str:
    """Return the name of the profile on synthetic data: nobody waits for long runs that say nothing."""
    for name, profile in experiment.profiles.items():
        if profile.synthetic:
            return name
    raise DataUnavailable(
        f"{unavailable} (Without them, expected a profile of {experiment.name} on synthetic data, found none.)"
    )


def data_sets(experiment: Experiment, config: Any) -> tuple[str, ...]:
    """Return the names of the data sets that a configuration needs."""
    return experiment.data(config) if callable(experiment.data) else experiment.data


def folder_of(name: str, data: Path | None, downloads: Callable[[str], Watcher] | None) -> Path:
    """Return the folder of a data set, which is downloaded if necessary."""
    if downloads is None:
        return fetch.find(name, data)
    watcher = downloads(name)
    return fetch.find(name, data, watcher, watcher.waits)


def train(
    session: Session,
    jobs: Sequence[Job],
    report: Report = lambda event: None,
    past: Sequence[Record] = (),
    metrics: Mapping[str, Collection[str]] | None = None,
) -> Summary:
    """Train every run that the store lacks; `report` is told of each event. A run without its arm's `metrics` fails.

    From the recorded runs in `past`, a session with a deadline knows which runs can still be begun.
    """
    known = {
        arm: record.environment["seconds"] / len(record.history)
        for record in past
        if record.profile == session.profile_name and record.history and "seconds" in record.environment
        for arm in record.arms
    }
    return execute(
        jobs,
        session.store,
        compute=session.compute,
        folders=session.folders,
        workers=session.workers,
        executor=session.executor,
        report=report,
        limit=Limit(session.deadline, known),
        metrics=metrics or {},
    )


def records_of(session: Session, jobs: Sequence[Job], summary: Summary) -> list[Record]:
    """Return the records of the finished runs by seed, in the order of the experiment's arms."""
    places = {arm.name: place for place, arm in enumerate(session.experiment.arms)}
    records = []
    for job in sorted(jobs, key=lambda job: (job.description.seed, places[job.arms[0]])):
        if found := summary.finished.get(job.description.id):
            arms = {name: session.experiment.arm(name).snapshot for name in job.arms}
            name = session.experiment.load_data(job.config, session.folders).name
            records.append(record_of(found, session.profile_name, arms, name))
    return records


def complete(jobs: Sequence[Job], summary: Summary) -> list[Job]:
    """Return the jobs of the seeds of which all runs are finished, and the jobs that they need."""
    begun = {job.description.seed for job in jobs if job.description.id not in summary.finished}
    wanted: set[str] = set()
    for job in reversed(jobs):  # children before parents
        if job.description.seed not in begun or job.description.id in wanted:
            wanted |= {job.description.id, *(parent for parent, _ in job.parents.values())}
    return [job for job in jobs if job.description.id in wanted]


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
    return sum(not is_stored(session, job) for job in jobs), len(jobs)


def is_stored(session: Session, job: Job) -> bool:
    """Return whether the store has a job's run; a run that cannot be read just now counts as missing."""
    try:
        return session.store.has(job.description)
    except KDError:
        return False
