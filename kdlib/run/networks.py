"""From a stored run to its network: the replication and the arm that trained it, its configuration and its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from kdlib.errors import KDError
from kdlib.files import canonical_json, is_there, read_json
from kdlib.packing import with_versions
from kdlib.run.experiment import Arm, Experiment, Profile
from kdlib.run.finished import WEIGHTS, FinishedRun

__all__ = ["Origin", "origin_of", "trained_network"]

OF_COMPUTE = {"device", "threads", "replicas", "convolutions"}  # of a run's configuration, next to the experiment's own


@dataclass(frozen=True)
class Origin:
    """What made a run. `synthetic`: a profile with its configuration uses made-up data on purpose."""

    experiment: Experiment
    arm: Arm
    config: Any
    synthetic: bool


def origin_of(run: FinishedRun, experiments: Sequence[Experiment], arms: Sequence[str] = ()) -> Origin:
    """Return the origin of a run; if several experiments have it, that of the folder that the run names.

    Of several arms with its training function, it is the one that `arms` names (`label_of` knows the arms by their
    parents too), else one whose configuration in some profile is the run's, else one that changes most.
    KDError if none of the experiments has a training function of that name with this configuration.
    """
    first = sorted(experiments, key=lambda each: each.name != run.environment.get("replication"))
    for experiment in first:
        some = next(iter(experiment.profiles.values()))
        kind = type(some.config)
        own = {name: value for name, value in run.description.config.items() if name not in OF_COMPUTE}
        fitting = [
            arm
            for arm in experiment.arms
            if f"{experiment.source}/{arm.train.__name__}" == run.description.recipe
            and _agree(_as_stored(experiment.config(arm, some)), own, arm.change)
        ]
        if not fitting or {field.name for field in fields(kind)} != own.keys():
            continue
        configs = [experiment.config(arm, each) for arm in fitting for each in experiment.profiles.values()]
        known = [(each, _as_stored(each)) for each in configs]
        config = kind(**{name: _restored(name, value, known) for name, value in own.items()})
        profiles = {arm.name: _profiles(experiment, arm, config) for arm in fitting}
        arm = max(fitting, key=lambda arm: (arm.name in arms, bool(profiles[arm.name]), len(arm.change)))
        return Origin(experiment, arm, config, any(profile.synthetic for profile in profiles[arm.name]))
    if not Path("replications").is_dir():
        raise KDError(
            f"run {run.id}: expected a folder replications/ here, found none; run from the top folder of the repository"
        )
    raise KDError(
        f"run {run.id}: expected one of a replication in this folder, found recipe {run.description.recipe} with "
        "another configuration; check out the commit that made it (`kd explain` names it)"
    )


def _profiles(experiment: Experiment, arm: Arm, config: Any) -> list[Profile]:
    """The profiles in which an arm has this configuration, but for what chooses the data."""
    data = {name: getattr(config, name) for name in experiment.data_fields}
    return [
        profile
        for profile in experiment.profiles.values()
        if replace(experiment.config(arm, profile), **data) == config
    ]


def _as_stored(config: Any) -> Any:
    """A configuration as a run's file has it: with lists for tuples, and dicts for dataclasses."""
    return read_json(canonical_json(asdict(config)))


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> bool:
    return all(one[name] == other.get(name) for name in names)


def _restored(name: str, value: Any, known: Sequence[tuple[Any, Mapping[str, Any]]]) -> Any:
    """A value as the experiment writes it, from what a run's file has; `known` are configurations in both forms."""
    for config, stored in known:
        if stored[name] == value:
            return getattr(config, name)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def trained_network(run: FinishedRun, snapshot: str, origin: Origin, data: Any) -> nn.Module:
    """Return the network of a run's snapshot, with its weights, in evaluation mode.

    `data` is what the experiment loads for the configuration. KDError for other data than the run's, for runs whose
    arm has no network, for runs without weights, and for snapshots that the run does not have.
    """
    if data.digest != run.description.data:
        raise KDError(
            f"run {run.id}: expected the data that it was trained on, digest {run.description.data}, found "
            f"{data.digest} ({data.name}); choose their folder with --data"
        )
    network = origin.experiment.network(origin.arm, origin.config, data)
    if network is None:
        raise KDError(
            f"run {run.id} ({origin.arm.name}): expected a run that trained one network, found an ensemble, a "
            "specialist, a measurement, or an experiment without network=...; choose another run"
        )
    if snapshot not in run.metrics:
        raise KDError(
            f"run {run.id}: expected snapshot '{snapshot}', found {', '.join(run.metrics)}; choose one of them"
        )
    try:
        versions = getattr(network.state_dict(), "_metadata", {})
        network.load_state_dict(with_versions(run.weights(snapshot), versions))
    except (KDError, RuntimeError) as error:
        if not is_there(run.folder / WEIGHTS):
            raise  # pruned: the error says so
        raise KDError(
            f"run {run.id} ({origin.arm.name}): expected weights of its network, found none that fit; of a "
            "recorded teacher only the logits are kept. Choose another run, or train one with --profile full"
        ) from error
    return network.eval()
