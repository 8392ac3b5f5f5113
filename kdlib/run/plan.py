"""The runs that a session needs, parents before children, and which of them can be trained side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdlib.errors import KDError
from kdlib.files import canonical_json
from kdlib.run.contradictions import check_data
from kdlib.run.experiment import Arm, Compute, Experiment, Profile
from kdlib.run.store import Description

__all__ = ["ORDERS", "Job", "grouped", "plan", "wanted_arms"]

ORDERS = ("seeds", "arms")  # what is outermost in the order of work


@dataclass(frozen=True)
class Job:
    """A run that is needed: its description, the arms it serves, and its parents as role -> (run id, snapshot).

    Jobs of one `group` are trained side by side in one loop; a job without a group is trained alone.
    """

    experiment: str
    description: Description
    config: Any
    arms: tuple[str, ...]
    parents: Mapping[str, tuple[str, str]]
    group: str = ""

    @cached_property
    def id(self) -> str:
        """The run's id. It is asked for often, and takes a SHA-256."""
        return self.description.id

    @property
    def label(self) -> str:
        """The run's name for people: arms and seed."""
        return f"{' = '.join(self.arms)}, seed {self.description.seed}"


def wanted_arms(experiment: Experiment, names: Iterable[str]) -> list[Arm]:
    """Return the named arms and all arms that they need, in the experiment's order."""
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        arm = experiment.arm(pending.pop())
        if arm.name not in wanted:
            wanted.add(arm.name)
            pending.extend(arm.needs.values())
    return [arm for arm in experiment.arms if arm.name in wanted]


def plan(
    experiment: Experiment,
    profile: Profile,
    names: Iterable[str],
    seeds: Sequence[int],
    compute: Compute,
    folders: Mapping[str, Path],
    replicas: int = 1,
    order: str = "seeds",
) -> list[Job]:
    """Return the runs of the named arms, in the order in which they are begun; snapshots of one run share a job.

    The arms are in the order of `names`, each directly after the arms that it needs. `order` "seeds" gives all arms of
    the first seed, then those of the next one; "arms" gives all seeds of the first arm, then those of the next one.

    With `replicas` > 1, runs that differ only in their seed and in their arm's `mapped` fields are trained in groups of
    at most `replicas`. A group is at the place of its first run, directly after all parents of its runs. The order
    changes no run's id and no group. KDError for another `order`.
    """
    if order not in ORDERS:
        raise KDError(f"order: expected {' or '.join(ORDERS)}, found {order!r}; choose one of them")
    names = list(names)
    jobs = _jobs(experiment, profile, names, seeds, compute, folders, {})
    if replicas > 1:
        groups = _groups(experiment, jobs, replicas)
        jobs = _jobs(experiment, profile, names, seeds, compute, folders, groups)
    return _in_order(jobs, _ranks(experiment, names), seeds, order)


def _ranks(experiment: Experiment, names: Sequence[str]) -> dict[str, int]:
    """The place of each arm: those of `names` in their order, each after the arms that it needs."""
    ranks: dict[str, int] = {}

    def add(name: str) -> None:
        for parent in experiment.arm(name).needs.values():
            add(parent)
        ranks.setdefault(name, len(ranks))

    for name in names:
        add(name)
    return ranks


def _in_order(jobs: Sequence[Job], ranks: Mapping[str, int], seeds: Sequence[int], order: str) -> list[Job]:
    """The jobs in the order in which they are begun; those of a group stay together, in their own order."""
    groups = grouped(jobs)
    place = {job.description.id: job.group or job.description.id for job in jobs}
    placed: dict[str, Job] = {}
    places = {seed: number for number, seed in reversed(list(enumerate(seeds)))}

    def key(group: str) -> tuple[int, int]:
        def of(job: Job) -> tuple[int, int]:
            seed = job.description.seed
            # The run of an arm with a fixed seed is needed from the first seed on, whatever its own is.
            pair = places.get(seed, 0), min(ranks[name] for name in job.arms)
            return pair if order == "seeds" else pair[::-1]

        return min(map(of, groups[group]))

    def add(group: str) -> None:
        for job in groups[group]:
            for parent, _ in job.parents.values():
                if parent not in placed:
                    add(place[parent])
        placed.update({job.description.id: job for job in groups[group]})

    for group in sorted(groups, key=key):
        add(group)
    return list(placed.values())


def grouped(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Return the jobs that are trained in one loop, by the name of their group or the id of their only run."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group or job.description.id, []).append(job)
    return groups


def _jobs(
    experiment: Experiment,
    profile: Profile,
    names: Sequence[str],
    seeds: Sequence[int],
    compute: Compute,
    folders: Mapping[str, Path],
    groups: Mapping[str, tuple[str, int]],
) -> list[Job]:
    jobs: dict[str, Job] = {}
    for seed in seeds:
        placed: dict[str, tuple[str, str, str]] = {}  # arm -> (run id, snapshot, id of the same run trained alone)
        for arm in wanted_arms(experiment, names):
            config = experiment.config(arm, profile)
            data = experiment.load_data(config, folders)
            check_data(data, f"{experiment.name}, arm '{arm.name}'")
            parents = {role: placed[name] for role, name in arm.needs.items()}
            own_seed = seed if arm.seed is None else arm.seed
            parents_alone = {role: f"{alone}/{snapshot}" for role, (_, snapshot, alone) in parents.items()}
            alone = experiment.describe(arm, config, own_seed, data.digest, compute, parents_alone)
            group, size = groups.get(alone.id, ("", 1))
            # Rounding may depend on how many are trained side by side, never on which: so the number is enough.
            side_by_side: dict[str, Any] = {"replicas": size} if size > 1 else {}
            if size > 1 and compute.convolutions != Compute.convolutions:
                side_by_side["convolutions"] = compute.convolutions
            description = replace(
                alone,
                config={**alone.config, **side_by_side},
                parents={role: f"{run}/{snapshot}" for role, (run, snapshot, _) in parents.items()},
            )
            places = {role: (run, snapshot) for role, (run, snapshot, _) in parents.items()}
            known = jobs.get(description.id)
            # An arm of a fixed seed is met once for every seed.
            arms = tuple(dict.fromkeys((*known.arms, arm.name))) if known else (arm.name,)
            jobs[description.id] = Job(experiment.name, description, config, arms, places, group)
            placed[arm.name] = (description.id, arm.snapshot, alone.id)
    return list(jobs.values())


def _groups(experiment: Experiment, jobs: Sequence[Job], largest: int) -> dict[str, tuple[str, int]]:
    """Group and size, by id of the run trained alone; all runs of a group are equally far from their ancestors."""
    depth: dict[str, int] = {}
    alike: dict[str, list[str]] = {}
    for job in jobs:
        run, arm = job.description.id, experiment.arm(job.arms[0])
        depth[run] = 1 + max((depth[parent] for parent, _ in job.parents.values()), default=-1)
        if arm.mapped is not None:
            fixed = {name: value for name, value in asdict(job.config).items() if name not in arm.mapped}
            key = canonical_json([job.description.recipe, fixed, job.description.data, depth[run]])
            alike.setdefault(key, []).append(run)
    groups = {}
    for runs in alike.values():
        for first in range(0, len(runs), largest):
            members = runs[first : first + largest]
            groups.update({run: (members[0], len(members)) for run in members if len(members) > 1})
    return groups
