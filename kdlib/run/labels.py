"""Which arms and which profile of a replication a stored run is of, for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kdlib.files import canonical_json
from kdlib.run.experiment import Arm, Experiment, load_experiment, replications
from kdlib.run.networks import OF_COMPUTE
from kdlib.run.store import FinishedRun

__all__ = ["Label", "label_of"]


class Label(NamedTuple):
    """The names of a run's arms, and of the profiles that have its configuration; none if nobody knows.

    `snapshots` are those of the arms, in their order: a run may serve several arms by different weights.
    """

    replication: str
    arms: tuple[str, ...]
    profiles: tuple[str, ...]
    snapshots: tuple[str, ...] = ()

    @property
    def arm(self) -> str:
        """The shortest name among its arms, and how many others there are; nothing without an arm."""
        more = f" +{len(self.arms) - 1}" if len(self.arms) > 1 else ""
        return f"{min(self.arms, key=len)}{more}" if self.arms else ""

    @property
    def snapshot(self) -> str:
        """The snapshot of the arm that `arm` names; "final" without an arm."""
        return self.snapshots[self.arms.index(min(self.arms, key=len))] if self.snapshots else "final"

    def of(self, snapshot: str) -> Label:
        """Return the label with those arms alone that a snapshot serves."""
        pairs = [pair for pair in zip(self.arms, self.snapshots, strict=True) if pair[1] == snapshot]
        return self._replace(arms=tuple(arm for arm, _ in pairs), snapshots=tuple(name for _, name in pairs))


def label_of(run: FinishedRun, runs: Mapping[str, FinishedRun]) -> Label:
    """Return the label of a run by the replication that made it; `runs` are those of the store, by their ids."""
    name = str(run.environment.get("replication", ""))
    try:
        experiment = load_experiment(name) if name in replications(Path()) else None
    except Exception:  # an experiment that somebody is editing does not hide the runs
        experiment = None
    if experiment is None:
        return Label(name, (), ())
    arms = _arms(run, runs, experiment)
    profiles, snapshots = _profiles(run, experiment, arms), tuple(arm.snapshot for arm in arms)
    return Label(name, tuple(arm.name for arm in arms), tuple(profiles), snapshots)


def _arms(run: FinishedRun, runs: Mapping[str, FinishedRun], experiment: Experiment) -> list[Arm]:
    """The arms with the run's training function and configuration, whose parents are the run's."""
    config, known = _config(run, experiment), _configs(experiment.name)
    return [
        arm
        for arm in experiment.arms
        if f"{experiment.source}/{arm.train.__name__}" == run.description.recipe
        and experiment.protocol == run.description.protocol  # of another one no session uses it
        and (arm.name, config) in known
        and _has_parents(arm, run, runs, experiment)
    ]


def _has_parents(arm: Arm, run: FinishedRun, runs: Mapping[str, FinishedRun], experiment: Experiment) -> bool:
    if arm.needs.keys() != run.description.parents.keys():
        return False
    for role, needed in arm.needs.items():
        parent, _, snapshot = str(run.description.parents[role]).partition("/")
        if snapshot != experiment.arm(needed).snapshot:
            return False
        if parent in runs and needed not in [each.name for each in _arms(runs[parent], runs, experiment)]:
            return False
    return True


def _profiles(run: FinishedRun, experiment: Experiment, arms: list[Arm]) -> list[str]:
    """The profiles with the run's configuration, and what else chooses its data."""
    config, own = _config(run, experiment), run.description.config
    names = dict.fromkeys(name for arm in arms for name in _configs(experiment.name)[arm.name, config])
    if any(field not in own for field in experiment.data_fields):
        return list(names)
    return [experiment.label(name, own) for name in names]


def _config(run: FinishedRun, experiment: Experiment) -> str:
    left_out = OF_COMPUTE | {*experiment.data_fields}
    return canonical_json({name: value for name, value in run.description.config.items() if name not in left_out})


@cache  # of its name: experiments are compared field by field, which is slow
def _configs(name: str) -> Mapping[tuple[str, str], Sequence[str]]:
    """The profiles of a replication by arm and configuration."""
    experiment, found = load_experiment(name), defaultdict[tuple[str, str], list[str]](list)
    for profile_name, profile in experiment.profiles.items():
        for arm in experiment.arms:
            config = asdict(experiment.config(arm, profile))
            own = {key: value for key, value in config.items() if key not in experiment.data_fields}
            found[arm.name, canonical_json(own)].append(profile_name)
    return dict(found)
