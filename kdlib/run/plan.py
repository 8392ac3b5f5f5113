"""The runs that a session needs, parents before children, and which of them can be trained side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdlib.files import canonical_json
from kdlib.run.experiment import Arm, Compute, Experiment, Profile
from kdlib.run.store import Description

__all__ = ["Job", "plan", "wanted_arms"]


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
) -> list[Job]:
    """Return the runs of the named arms, seed by seed, parents before children; snapshots of one run share a job.

    With `replicas` > 1, runs that differ only in their seed and in their arm's `mapped` fields are trained in groups of
    at most `replicas`.
    """
    names = list(names)
    jobs = _jobs(experiment, profile, names, seeds, compute, folders, {})
    if replicas == 1:
        return jobs
    groups = _groups(experiment, jobs, replicas)
    return _jobs(experiment, profile, names, seeds, compute, folders, groups)


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
            data = experiment.load_data(config, folders).digest
            parents = {role: placed[name] for role, name in arm.needs.items()}
            own_seed = seed if arm.seed is None else arm.seed
            parents_alone = {role: f"{alone}/{snapshot}" for role, (_, snapshot, alone) in parents.items()}
            alone = experiment.describe(arm, config, own_seed, data, compute, parents_alone)
            group, size = groups.get(alone.id, ("", 1))
            # Rounding may depend on how many are trained side by side, never on which: so the number is enough.
            side_by_side = {"replicas": size} if size > 1 else {}
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
