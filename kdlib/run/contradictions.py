"""What an experiment says must not contradict itself, and its runs must be readable: else it is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from kdlib.checks import whole_number
from kdlib.errors import KDError
from kdlib.run.readable import check_plain, plain_name
from kdlib.shapes import Misshapen, shown

if TYPE_CHECKING:
    from kdlib.run.experiment import Arm, Experiment

__all__ = ["check_config", "check_data", "check_experiment"]

MODES = ("as described", "as released", "controlled", "sham")  # of arms; kdlib.judge has those of claims


def check_experiment(experiment: Experiment, default: str) -> None:
    """Raise KDError for arms and profiles that contradict each other; `default` is a profile that there must be."""
    if not plain_name(experiment.source):
        raise KDError(f"source: expected a text, found {shown(experiment.source)}; name the source")
    if type(protocol := experiment.protocol) is not int or abs(protocol) >= 2**63:
        raise KDError(f"protocol: expected a whole number below 2^63, found {shown(protocol)}; begin with 1")
    _check_arms(experiment)
    _check_profiles(experiment, default)


def check_config(config: Any, whose: str) -> None:
    """Raise KDError, which names the field, if a configuration could not be read back from the record of a run."""
    try:
        check_plain(config, "config", config=True)
    except Misshapen as error:
        raise KDError(
            f"{whose}: {error}; the configuration is kept as JSON. Write it so in Config (a path or a type as a text, "
            "a dict with other keys as a tuple of pairs), and let the training function make of it what it needs"
        ) from error


def check_data(data: Any, whose: str) -> None:
    """Raise KDError unless the data that `load_data` returned have a digest and a name, which records need."""
    for name in ("digest", "name"):
        if not plain_name(found := getattr(data, name, None)):
            raise KDError(
                f"{whose}: expected load_data to return an object whose `{name}` is a text, not empty, found "
                f"{shown(found)} in a {type(data).__name__}; see replications/README.md"
            )


def _check_arm(arm: Arm) -> None:
    if not plain_name(arm.name):
        raise KDError(f"expected texts as names of arms, found {shown(arm.name)}; rename it")
    if not plain_name(getattr(arm.train, "__name__", None)):
        raise KDError(
            f"arm '{arm.name}': expected a function with a name, which is part of its runs' descriptions, found one of "
            f"type {type(arm.train).__name__}; write a function with `def` that calls it"
        )
    if not isinstance(arm.modes, tuple) or not {*arm.modes} <= {*MODES}:
        raise KDError(f"arm '{arm.name}': expected a tuple of modes ({', '.join(MODES)}), found {shown(arm.modes)}")
    if not isinstance(arm.needs, Mapping):
        raise KDError(f"arm '{arm.name}': expected needs such as {{'teacher': 'teacher'}}, found {shown(arm.needs)}")
    if not plain_name(arm.snapshot) or "/" in arm.snapshot:
        raise KDError(f"arm '{arm.name}': expected a snapshot without '/' in its name, found {shown(arm.snapshot)}")
    if arm.seed is not None and type(arm.seed) is not int:
        raise KDError(f"arm '{arm.name}': expected a whole number as its seed, found {shown(arm.seed)}")
    check_config(dict(arm.change), f"arm '{arm.name}'")  # here once, and not for each profile


def _check_arms(experiment: Experiment) -> None:
    # Arms are found by name, and the name of its training function is part of a run's description.
    functions: dict[str, Any] = {}
    arms: dict[str, Arm] = {}
    for arm in experiment.arms:
        _check_arm(arm)
        if arm.name in arms:
            raise KDError(f"expected arms of different names, found two called '{arm.name}'; rename one")
        if functions.setdefault(arm.train.__name__, arm.train) is not arm.train:
            raise KDError(
                f"expected training functions of different names, found two called '{arm.train.__name__}' "
                f"(arm '{arm.name}'); otherwise the run of one is taken for the run of the other"
            )
        for name in arm.needs.values():
            if name not in arms:
                raise KDError(f"arm '{arm.name}' needs '{name}': expected it before '{arm.name}' in the list of arms")
            # Otherwise the one run would have another parent in every seed's session, and would not be one run.
            if arm.seed is not None and arms[name].seed != arm.seed:
                raise KDError(
                    f"expected all that arm '{arm.name}' needs to have its seed, {arm.seed}, found {arms[name].seed} "
                    f"for '{name}'; give it seed={arm.seed}"
                )
        arms[arm.name] = arm


def _check_profiles(experiment: Experiment, default: str) -> None:
    names = [arm.name for arm in experiment.arms]
    if default not in experiment.profiles:
        raise KDError(f"expected a profile '{default}', the default of sessions, found {list(experiment.profiles)}")
    for place in ("metrics", "banded", "check", "data"):
        if isinstance(getattr(experiment, place), str):
            raise KDError(f"{place}: expected a tuple of names, found a text; write a comma after a single name")
    for name, profile in experiment.profiles.items():
        whole_number(f"profile {name}: seeds", profile.seeds, least=1)
    if len([profile for profile in experiment.profiles.values() if profile.judged]) > 1:
        raise KDError("expected one profile with judged=True at most, found several; a claim has one verdict")
    for place, wanted in [("check", experiment.check), *((n, p.arms) for n, p in experiment.profiles.items())]:
        if unknown := [name for name in wanted if name not in names]:
            raise KDError(f"{place}: expected names of arms, found {', '.join(unknown)}; there are {', '.join(names)}")
    if unknown := [name for name in experiment.banded if name not in (experiment.known_metrics or experiment.banded)]:
        found = f"{', '.join(unknown)}; there are {', '.join(experiment.known_metrics)}"
        raise KDError(f"banded: expected names of metrics, found {found}")
    for name, profile in experiment.profiles.items():
        _check_fields(experiment, name, profile.config)


def _check_fields(experiment: Experiment, profile: str, config: Any) -> None:
    if not is_dataclass(config) or isinstance(config, type):
        kind = "the class itself" if isinstance(config, type) else f"one of type {type(config).__name__}"
        raise KDError(f"profile {profile}: expected a dataclass as its configuration, found {kind}; write Config()")
    check_config(config, f"profile {profile}")
    known = {field.name for field in fields(config)}
    if taken := sorted({"device", "threads", "replicas"} & known):  # a run's description has its own
        raise KDError(f"profile {profile}: expected other names for its fields {', '.join(taken)}; rename them")
    for arm in experiment.arms:
        if unknown := sorted({*arm.change, *(arm.mapped or ())} - known):
            raise KDError(f"arm '{arm.name}': expected fields of the configuration, found {', '.join(unknown)}")
    for name in experiment.data_fields:
        if name not in known:
            raise KDError(f"data_fields: expected fields of profile {profile}'s configuration, found {name}")
        if not isinstance(value := getattr(config, name), bool | int | float | str):
            kind = type(value).__name__
            raise KDError(f"data_fields: expected fields that a text of --set can fill, found {kind} for {name}")
