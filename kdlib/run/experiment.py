"""An experiment as one object, its arms and profiles, and the run that a training function receives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdlib.batches import Examples
from kdlib.checks import check_kind
from kdlib.errors import KDError
from kdlib.files import DamagedFile, is_there
from kdlib.progress import Progress
from kdlib.run.contradictions import check_config, check_experiment
from kdlib.run.environment import source_digest
from kdlib.run.imported import imported
from kdlib.run.loaded import LoadedOnce, Members, modules_put_back
from kdlib.run.store import Description, FinishedRun, Result
from kdlib.seeds import generator
from kdlib.targets import SoftTargets

__all__ = ["DEFAULT", "Arm", "Compute", "Experiment", "Profile", "Run", "load_experiment", "loadable", "replications"]

DEFAULT = "quick"  # the profile of a session that names none, and of `kd check`


@dataclass(frozen=True)
class Arm:
    """One row of an experiment's graph: the function that trains it, what it needs, and the modes it is compared in.

    `needs` maps a role to the name of the arm that plays it. `change` holds the configuration fields that differ from
    the profile's. `snapshot` names the snapshot of the run that is this arm; several arms may be snapshots of one run.
    `role` names the arm's colour in figures (kdlib/report/roles.py), where `needs` does not tell it.
    An arm with a `seed` has one run, with that seed, for the sessions of all seeds (a source's only teacher).

    With `mapped`, `train` takes a list of runs and may train them side by side. The runs of a list differ in their seed
    and in the configuration fields that `mapped` names, in nothing else. Without it, `train` takes one run.
    """

    name: str
    modes: tuple[str, ...]
    train: Callable[[Run], Result] | Callable[[Sequence[Run]], list[Result]]
    needs: Mapping[str, str] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str = "final"
    seed: int | None = None
    mapped: tuple[str, ...] | None = None
    role: str = ""

    def results(self, runs: Sequence[Run]) -> list[Result]:
        """Train the runs and return one result for each; KDError if the function returns something else."""
        if self.mapped is None:
            found = [cast(Callable[[Run], Result], self.train)(run) for run in runs]
        else:
            found = cast(Callable[[Sequence[Run]], list[Result]], self.train)(Members(runs))
        kinds = [type(each).__name__ for each in found] if isinstance(found, list | tuple) else [type(found).__name__]
        if kinds != ["Result"] * len(runs):
            raise KDError(
                f"{self.train.__name__}: expected {len(runs)} Result, one for each run, found {', '.join(kinds)}; "
                "return Result(metrics, history, weights), and a list of them from a mapped arm"
            )
        for name, state in (item for result in found for item in result.weights.items()):
            check_kind(f"{self.train.__name__}: weights {name!r}", state, Mapping, "return progress.kept, for example")
        return found


@dataclass(frozen=True)
class Profile:
    """How much of the protocol is run: configuration, number of seeds, arms (none named: all), and what is reduced.

    Runs of the `judged` profile get verdicts once all its seeds are recorded; their number is declared here before the
    first full run. Runs of the other profiles are compared with these verdicts. `in_readme`: the top README shows this
    profile's table of arms. `synthetic`: the runs use made-up data on purpose.
    """

    config: Any
    seeds: int
    arms: tuple[str, ...] = ()
    reduced: str = ""
    judged: bool = False
    in_readme: bool = False
    synthetic: bool = False


@dataclass(frozen=True)
class Compute:
    """Where a run trains, and how.

    Threads, kind of device and the way of convolutions of students side by side (`kdlib.replicas.CONVOLUTIONS`) change
    the rounding, so they are part of a run's description. `graphs`: a CUDA device replays recorded steps.
    """

    device: str = "cpu"
    threads: int = 1
    convolutions: str = "grouped"
    graphs: bool = True


@dataclass
class Run:
    """What a training function receives: configuration, seed, data, device, and the finished runs of its parents."""

    config: Any
    seed: int
    data: Any
    device: torch.device
    label: str
    parents: Mapping[str, tuple[FinishedRun, str]]
    checkpoint: Path | None = None
    on_epoch: Callable[[Progress], None] | None = None
    on_step: Callable[[Progress], None] | None = None
    compute: Compute = field(default_factory=Compute)
    in_session: bool = False  # then it may train once
    trainings: list[Progress] = field(default_factory=list)  # which the run has begun; copies of the run share the list

    def generator(self, name: str, epoch: int = 0) -> torch.Generator:
        """Return the run's random stream of that name and epoch."""
        return generator(self.seed, name, epoch)

    def progress(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, extras: Mapping[str, Any] | None = None
    ) -> Progress:
        """Return a new training, or the interrupted one that the checkpoint holds.

        `extras` are those of `kdlib.Progress`: a scheduler, an average of the weights, a layer that only the loss uses.
        KDError, in a session, after another one of this run has begun: a run has one checkpoint and one trace.
        """
        if self.in_session and any(training.traces for training in self.trainings):
            raise KDError(
                f"{self.label}: expected one training loop for each run, found a second one; give each network or "
                "stage an arm of its own, and let the later arm need the earlier one"
            )
        made = Progress(
            model,
            optimizer,
            checkpoint=self.checkpoint,
            extras=extras,
            on_epoch=self.on_epoch,
            on_step=self.on_step,
            graphs=self.compute.graphs,
            traced=True,
        )
        # Afterwards, as it does not say whose the checkpoint is: arms of several names may share one run.
        made.label = self.label
        self.trainings.append(made)
        return made

    def soft_targets(self, role: str, part: str, examples: Examples, view: str = "plain") -> SoftTargets:
        """Return the soft targets (N, K) that the parent in `role` keeps for these examples.

        `part` is "train", "validation" or "test", for example. `view` is that of the examples when the parent computed
        the logits that it keeps. KDError for examples of other data or in another view.
        """
        if role not in self.parents:
            raise KDError(
                f"{self.label}: expected the role of a parent, of which there are {', '.join(self.parents) or 'none'}, "
                f"found {role!r}; the arm's `needs` names them"
            )
        parent, snapshot = self.parents[role]
        logits: Tensor = parent.soft_targets(f"{snapshot}.{part}").to(self.device)
        targets = SoftTargets(logits, parent.id, f"{parent.description.data}/{part}", view, f"{snapshot}.{part}")
        examples.check(targets)
        return targets


@dataclass(frozen=True)
class Experiment:
    """One replication, as its `experiment.py` builds it.

    `source` and `protocol` set its runs apart from those of other experiments; raise `protocol` with every edit that
    can change a result. `data` names the data sets, or is a function from a configuration to their names.
    `load_data(config, folders)` reads them and returns an object with `digest` and `name`. `data_fields` names the
    fields that choose other data (`--set`), with separate tables. `kd check` trains `check`; `banded` have bands.
    `metrics` names the numbers that runs have, in addition to `training_loss`. A claim, band or figure about another
    number is refused before anything is trained; if there are no names, only arms are checked.

    `load_data` gets an object that reads like the configuration. It is called once for all configurations that agree in
    the fields it has looked at. All runs share what it returns, so training functions must not change the data.

    `network(arm, config, data)` returns the network that takes the weights of an arm's runs, or None if there is none.
    `examples(arm, data, seed)` returns its training and test examples. Both are for `kd export` and `kd cost`.
    """

    source: str
    protocol: int
    data: tuple[str, ...] | Callable[[Any], tuple[str, ...]]
    load_data: Callable[[Any, Mapping[str, Path]], Any]
    arms: tuple[Arm, ...]  # parents before children
    profiles: Mapping[str, Profile]
    check: tuple[str, ...]
    banded: tuple[str, ...]
    data_fields: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    network: Callable[[Arm, Any, Any], nn.Module | None] = lambda arm, config, data: None
    examples: Callable[[Arm, Any, int], tuple[Examples, Examples]] = lambda arm, data, seed: (data.train, data.test)
    name: str = ""  # its folder's name, from load_experiment
    folder: Path = field(default_factory=Path)
    about: str = ""  # the first line of its docstring

    def __post_init__(self) -> None:
        """Refuse arms and profiles that contradict each other (KDError)."""
        check_experiment(self, DEFAULT)
        if not isinstance(self.load_data, LoadedOnce):
            object.__setattr__(self, "load_data", LoadedOnce(self.load_data))

    def arm(self, name: str) -> Arm:
        """Return the arm of that name; KDError lists the arms there are."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KDError(f"{self.name}: no arm '{name}'; there are {', '.join(arm.name for arm in self.arms)}")

    def profile(self, name: str) -> Profile:
        """Return the profile of that name; KDError lists the profiles there are."""
        if name not in self.profiles:
            raise KDError(f"{self.name}: no profile '{name}'; there are {', '.join(self.profiles)}")
        return self.profiles[name]

    @property
    def judged(self) -> str:
        """The name of the profile whose runs get verdicts; empty if there is none."""
        return next((name for name, profile in self.profiles.items() if profile.judged), "")

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The names of all numbers of runs; empty if the experiment does not say them."""
        return (*self.metrics, "training_loss") if self.metrics else ()

    def arms_of(self, profile: Profile) -> tuple[str, ...]:
        """Return the names of a profile's arms; all arms if it names none."""
        return profile.arms or tuple(arm.name for arm in self.arms)

    def config(self, arm: Arm, profile: Profile) -> Any:
        """Return the profile's configuration with the arm's changes."""
        return replace(profile.config, **arm.change)

    @contextmanager
    def unchanged(self, label: str) -> Iterator[Callable[[], None]]:
        """Keep data and modules as they are, as `LoadedOnce.unchanged` and `modules_put_back` do."""
        data = cast(LoadedOnce, self.load_data)
        with modules_put_back(self.folder) as refuse_modules, data.unchanged(label) as refuse_data:

            def refuse() -> None:
                refuse_data()
                refuse_modules()

            yield refuse

    def describe(
        self, arm: Arm, config: Any, seed: int, data: str, compute: Compute, parents: Mapping[str, str]
    ) -> Description:
        """Return the description of an arm's run; KDError names a field of the configuration that JSON does not know.

        The folder's name is not part of it, so copies share their runs.
        """
        check_config(config, f"{self.name}, arm '{arm.name}'")
        kind = compute.device.partition(":")[0]  # cuda:0 and cuda:1 share their runs
        settings = {**asdict(config), "device": kind, "threads": compute.threads}
        return Description(f"{self.source}/{arm.train.__name__}", self.protocol, settings, seed, data, parents)

    def label(self, profile: str, config: Mapping[str, Any]) -> str:
        """Return the name of a table's files: the profile, and each value of `data_fields` that is not its own."""
        usual = asdict(self.profile(profile).config)
        for key in self.data_fields:  # a record that was edited must not choose where a file is written
            if not re.fullmatch(r"[\w.,() -]{1,60}", found := str(config.get(key, ""))):
                raise KDError(
                    f"{self.name}: expected a {key} of 1 to 60 letters, digits and .,()_- in a configuration, found "
                    f"{found[:80]!a}"
                )
        return "-".join([profile, *(str(config[key]) for key in self.data_fields if config[key] != usual[key])])


def replications(root: Path) -> list[str]:
    """Return the names of the folders in replications/ that have an `experiment.py`, or may not be read, sorted."""
    folder = root / "replications"
    return sorted(path.name for path in folder.iterdir() if _has_experiment(path)) if folder.is_dir() else []


def _has_experiment(folder: Path) -> bool:
    try:
        return is_there(folder / "experiment.py")
    except KDError as error:  # whoever loads it is told; a link that leads to itself is none
        return not isinstance(error, DamagedFile)


def loadable(root: Path) -> list[Experiment]:
    """Return the replications that can be imported: one that somebody is editing does not hide the others."""
    found = []
    for name in replications(root):
        with suppress(Exception):
            found.append(load_experiment(name))
    return found


def load_experiment(name: str) -> Experiment:
    """Import `replications.<name>.experiment`; KDError if it is missing, cannot be imported, or contradicts itself."""
    module = imported(name)
    found = getattr(module, "EXPERIMENT", None)
    if not isinstance(found, Experiment):
        raise KDError(
            f"{module.__file__}: expected EXPERIMENT = Experiment(...), found {type(found).__name__}; "
            "see replications/README.md"
        )
    about = (module.__doc__ or "").strip().partition("\n")[0]
    folder = Path(str(module.__file__)).parent
    source_digest(folder)  # is kept: that of the files as they were when they were imported
    return replace(found, name=name, folder=folder, about=about)
