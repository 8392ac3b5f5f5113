"""What an experiment is made of: arms, profiles, and the run a training function is given."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.batches import Examples
from kdlib.errors import KDError
from kdlib.runs import Description, FinishedRun, Result
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import Progress


@dataclass(frozen=True)
class Arm:
    """One row of an experiment's graph: which function trains it, what it needs, and in which modes it is compared.

    `needs` maps a role to the arm that plays it; `change` holds the configuration fields that differ from the
    profile's; `snapshot` says which of the run's snapshots is this arm (several arms may be snapshots of one run).
    An arm with a `seed` has one run, of that seed, in the sessions of all seeds: a source's only teacher.
    `together` trains several runs side by side that differ in seed and in the fields `mapped` alone, as `train` would.
    """

    name: str
    modes: tuple[str, ...]
    train: Callable[[Run], Result]
    needs: Mapping[str, str] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str = "final"
    seed: int | None = None
    together: Callable[[Sequence[Run]], list[Result]] | None = None
    mapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """How much of the protocol is run: configuration, number of seeds, arms (none named: all), and what is reduced."""

    config: Any
    seeds: int
    arms: tuple[str, ...] = ()
    reduced: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class Compute:
    """Where a run trains; threads and kind of device are part of its description, as they change the rounding."""

    device: str = "cpu"
    threads: int = 1


@dataclass
class Run:
    """What a training function is given: configuration, seed, data, device, finished parents."""

    config: Any
    seed: int
    data: Any
    device: torch.device
    label: str
    parents: Mapping[str, tuple[FinishedRun, str]]
    checkpoint: Path | None = None
    on_epoch: Callable[[Progress], None] | None = None

    def generator(self, name: str, epoch: int = 0) -> torch.Generator:
        """The run's random stream of that name and epoch."""
        return generator(self.seed, name, epoch)

    def progress(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """A new training, or what an interrupted one left behind."""
        return Progress(model, optimizer, checkpoint=self.checkpoint, label=self.label, on_epoch=self.on_epoch)

    def soft_targets(self, role: str, part: str, examples: Examples) -> SoftTargets:
        """The soft targets that the parent in `role` keeps for these examples (`part`: "train", "validation", "test").

        A run keeps logits of plain examples: those of other data or in other views are refused (KDError).
        """
        parent, snapshot = self.parents[role]
        logits: Tensor = parent.soft_targets(f"{snapshot}.{part}").to(self.device)
        targets = SoftTargets(logits, parent.id, f"{parent.description.data}/{part}")
        targets.check(examples)
        return targets


@dataclass(frozen=True)
class Experiment:
    """One replication, read from its `experiment.py`."""

    name: str
    module: ModuleType

    @property
    def folder(self) -> Path:
        """The replication's folder."""
        return Path(str(self.module.__file__)).parent

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, parents before children."""
        arms: tuple[Arm, ...] = self.module.ARMS
        return arms

    def arm(self, name: str) -> Arm:
        """The arm of that name; KDError lists the arms there are."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KDError(f"{self.name}: no arm '{name}'; there are {', '.join(arm.name for arm in self.arms)}")

    def profile(self, name: str) -> Profile:
        """The profile of that name; KDError lists the profiles there are."""
        profiles: Mapping[str, Profile] = self.module.PROFILES
        if name not in profiles:
            raise KDError(f"{self.name}: no profile '{name}'; there are {', '.join(profiles)}")
        return profiles[name]

    def arms_of(self, profile: Profile) -> tuple[str, ...]:
        """The names of a profile's arms; all where it names none."""
        return profile.arms or tuple(arm.name for arm in self.arms)

    def config(self, arm: Arm, profile: Profile) -> Any:
        """The profile's configuration with the arm's changes."""
        return replace(profile.config, **arm.change)

    def load_data(self, config: Any, folders: Mapping[str, Path]) -> Any:
        """The experiment's data (it has a `digest`); without folders its synthetic stand-in."""
        return self.module.load_data(config, folders)

    def describe(self, arm: Arm, config: Any, seed: int, data: str, compute: Compute,
                 parents: Mapping[str, str]) -> Description:
        """The description of an arm's run; the folder's name is not part of it, so copies share their runs."""
        kind = compute.device.partition(":")[0]  # cuda:0 and cuda:1 share their runs
        return Description(f"{self.module.SOURCE}/{arm.train.__name__}", self.module.PROTOCOL,
                           {**asdict(config), **asdict(compute), "device": kind}, seed, data, parents)


def replications(root: Path) -> list[str]:
    """Names of the folders with an `experiment.py`, sorted: the list of replications."""
    return sorted(path.parent.name for path in root.glob("replications/*/experiment.py"))


def load_experiment(name: str) -> Experiment:
    """Import `replications.<name>.experiment`; KDError where it is missing or lacks a part."""
    try:
        module = importlib.import_module(f"replications.{name}.experiment")
    except ModuleNotFoundError as error:
        if error.name is None or not f"replications.{name}.experiment".startswith(error.name):
            raise  # something the experiment itself imports
        raise KDError(f"no replication '{name}' here: expected replications/{name}/experiment.py below the current folder; "
                      "run from the repository's top, see `kd list`") from error
    missing = [part for part in ("SOURCE", "PROTOCOL", "ARMS", "PROFILES", "CHECK", "BANDED", "DATA", "DATA_FIELDS", "load_data")
               if not hasattr(module, part)]
    if missing:
        raise KDError(f"{module.__file__}: expected {', '.join(missing)} to be defined; see README, 'Add a replication'")
    _check_names(module)
    return Experiment(name, module)


def _check_names(module: ModuleType) -> None:
    # Arms are found by name, and the name of its training function is part of a run's description.
    functions: dict[str, Any] = {}
    arms: dict[str, Arm] = {}
    for arm in module.ARMS:
        if arm.name in arms:
            raise KDError(f"{module.__file__}: expected arms of different names, found two called '{arm.name}'; rename one")
        arms[arm.name] = arm
        if functions.setdefault(arm.train.__name__, arm.train) is not arm.train:
            raise KDError(f"{module.__file__}: expected training functions of different names, found two called "
                          f"'{arm.train.__name__}' (arm '{arm.name}'); their runs would be taken for each other")
        # Otherwise the one run would have another parent in every seed's session, and not be one.
        for name in arm.needs.values() if arm.seed is not None else ():
            if name in arms and arms[name].seed != arm.seed:
                raise KDError(f"{module.__file__}: expected all that arm '{arm.name}' needs to have its seed, {arm.seed}, found "
                              f"{arms[name].seed} for '{name}'; give it seed={arm.seed}")
