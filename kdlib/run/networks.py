"""From a stored run to its network: the replication and the arm that trained it, its configuration and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from kdlib.errors import KDError
from kdlib.files import is_there
from kdlib.packing import with_versions
from kdlib.run.experiment import Arm, Experiment
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


def origin_of(run: FinishedRun, experiments: Sequence[Experiment]) -> Origin:
    """Return the origin of a run; if several experiments have it, that of the folder that the run names.

    KDError if none of the experiments has a training function of that name with this configuration.
    """
    first = sorted(experiments, key=lambda each: each.name != run.environment.get("replication"))
    for experiment in first:
        for arm in experiment.arms:
            kind = type(next(iter(experiment.profiles.values())).config)
            own = {name: value for name, value in run.description.config.items() if name not in OF_COMPUTE}
            named = f"{experiment.source}/{arm.train.__name__}" == run.description.recipe
            if not named or {field.name for field in fields(kind)} != own.keys():
                continue
            config = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in own.items()})
            if all(own[name] == _as_stored(value) for name, value in arm.change.items()):
                profiles = [profile for profile in experiment.profiles.values() if profile.synthetic]
                synthetic = any(experiment.config(arm, profile) == config for profile in profiles)
                return Origin(experiment, arm, config, synthetic)
    if not Path("replications").is_dir():
        raise KDError(
            f"run {run.id}: expected a folder replications/ here, found none; run from the top folder of the repository"
        )
    raise KDError(
        f"run {run.id}: expected one of a replication in this folder, found recipe {run.description.recipe} with "
        "another configuration; check out the commit that made it (`kd explain` names it)"
    )


def _as_stored(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # JSON has lists only


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
