"""What `run`, `check` and `record` share: a replication's arms, looked up and trained."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdlib.cli.live import Downloading, reporter
from kdlib.data import DataUnavailable, fetch
from kdlib.engine import Summary, execute
from kdlib.errors import KDError
from kdlib.experiment import Compute, Experiment, Profile, load_experiment
from kdlib.plan import Job, plan
from kdlib.report import evidence
from kdlib.runs import Store


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
    replicas: int

    @property
    def synthetic(self) -> bool:
        """Whether the stand-in is used in place of real data."""
        return not self.folders

    def jobs(self) -> list[Job]:
        """The runs behind the arms."""
        return plan(self.experiment, self.profile, self.arms, self.seeds, self.compute, self.folders, self.replicas)


def prepare(options: argparse.Namespace, name: str, profile_name: str, arms: Sequence[str], seeds: Sequence[int] | None,
            store: Path) -> Session:
    """Look up replication, profile, data and device; KDError says what is missing."""
    experiment = load_experiment(name)
    profile = _with_data(experiment, experiment.profile(profile_name), options.set)
    chosen = tuple(arms) or experiment.arms_of(profile)
    for arm in chosen:
        experiment.arm(arm)
    compute = Compute(_device(options.device), options.threads)
    workers = options.workers or (1 if compute.device != "cpu" or profile.synthetic else max(1, _cores() // compute.threads))
    return Session(experiment, profile_name, profile, chosen, tuple(range(profile.seeds) if seeds is None else seeds), compute,
                   workers, _folders(experiment, profile, options), Store(store), options.replicas)


def _with_data(experiment: Experiment, profile: Profile, settings: Sequence[str]) -> Profile:
    changes = dict(setting.partition("=")[::2] for setting in settings)
    if unknown := changes.keys() - set(experiment.module.DATA_FIELDS):
        raise KDError(f"--set {', '.join(sorted(unknown))}: expected fields that choose the data of {experiment.name}, which are "
                      f"{', '.join(experiment.module.DATA_FIELDS) or 'none'}; edit experiment.py to change the protocol")
    return replace(profile, config=replace(profile.config, **changes))


def _device(name: str) -> str:
    import torch

    if name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise KDError(f"--device {name}: expected cpu, cuda, or cuda:N")
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if number >= count:
        found = f"{count}" if count else f"none that torch {torch.__version__} can use"
        raise KDError(f"--device {name}: expected CUDA device {number}, found {found}; leave --device out to train on the CPU")
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folders(experiment: Experiment, profile: Profile, options: argparse.Namespace) -> dict[str, Path]:
    if profile.synthetic:
        if options.require_real:
            raise KDError(f"profile smoke of {experiment.name}: expected one on real data, as --require-real, check and "
                          "record ask for, found synthetic data by design; choose another profile")
        return {}
    try:
        shown = {name: Downloading(name) for name in experiment.module.DATA}
        return {name: fetch.find(name, options.data, show, show.waits) for name, show in shown.items()}
    except DataUnavailable as error:
        if options.require_real:
            raise
        print(f"\n*** The real data cannot be had here: {error}\n*** {experiment.name} goes on with a SYNTHETIC stand-in: "
              "the tables are marked and no claim gets a verdict.\n*** --require-real makes this an error.\n",
              file=sys.stderr, flush=True)
        return {}


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
