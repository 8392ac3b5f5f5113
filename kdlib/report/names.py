"""Names in the files of a replication, compared with its arms, metrics and claims before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path

from kdlib.errors import KDError, UnknownName
from kdlib.judge.bands import Bands, read_bands
from kdlib.judge.claims import SHAM, Reported
from kdlib.report.pages import figures_of, reported_of
from kdlib.run.experiment import Experiment
from kdlib.run.records import Record

__all__ = ["claimed_metrics", "refuse_reserved", "refuse_unknown_names"]

RESERVED = ("index", "site")  # of the pages: results/site/index.html


def refuse_reserved(name: str) -> None:
    """Raise KDError for the name of a replication whose page or folder would replace that of all results."""
    if name in RESERVED:
        raise KDError(
            f"replications/{name}: expected a name other than {' and '.join(RESERVED)}, which the pages of all results "
            f"have (results/site/index.html), found {name}; choose another name, for example my_{name}"
        )


def refuse_unknown_names(experiment: Experiment, *, bands: bool = True) -> None:
    """Read `claims.toml`, `bands.toml` and `figures.py`, as the end of a session does.

    KDError for a reserved name, for an arm, a metric, a claim, a mode or a profile that does not exist, and for a file
    that is wrong in itself. Without `bands`, those are not looked at: `kd record` makes them.
    """
    refuse_reserved(experiment.name)
    reported = reported_of(experiment)
    _refuse_other_modes(experiment, reported)
    path = experiment.folder / "bands.toml"
    for (digest, profile), known in read_bands(path).items() if bands else ():
        if profile not in experiment.profiles:
            raise _wrong(path, experiment, "a profile", profile, experiment.profiles)
        for what, name, there in _names(known, reported):
            if there and name not in there:
                raise _wrong(path, experiment, f"data {digest}, profile {profile}: {what}", name, there)
    _look_at_figure(experiment, reported)


def claimed_metrics(experiment: Experiment) -> dict[str, set[str]]:
    """Return the metrics that claims compare, by arm."""
    found: dict[str, set[str]] = {}
    for claim in reported_of(experiment).claims.values():
        for compared in claim.modes.values():
            for arm in (*compared.arms, *compared.rivals):
                found.setdefault(arm, set()).add(claim.metric)
    return found


def _refuse_other_modes(experiment: Experiment, reported: Reported) -> None:
    """Refuse a claim in a mode that a compared arm does not have; a rival may be a sham."""
    modes = {arm.name: arm.modes for arm in experiment.arms}
    for name, claim in reported.claims.items():
        for mode, compared in claim.modes.items():
            for arm in (*compared.arms, *compared.rivals):
                own = modes.get(arm, (mode,))  # one that is chosen among others has theirs
                if mode not in own and not (arm in compared.rivals and SHAM in own):
                    raise KDError(
                        f"{experiment.folder / 'claims.toml'}: claims.{name}.modes: expected arms of mode {mode!r}, "
                        f"found {arm}, which is {', '.join(own)}; take another arm, or correct its modes in "
                        "experiment.py"
                    )


def _names(known: Bands, reported: Reported) -> Iterator[tuple[str, str, Collection[str]]]:
    """What bands and verdicts are about: what each name should be, the name, and all such names."""
    for key in (*known.bands, *known.inside):
        arm, _, metric = key.partition(".")
        yield "an arm", arm, reported.arms
        yield "a metric", metric, reported.metrics
    for claim, modes in known.verdicts.items():
        yield "a claim", claim, reported.claims
        for mode in modes:
            yield f"a mode of claim {claim}", mode, reported.claims[claim].modes


def _wrong(path: Path, experiment: Experiment, what: str, found: str, there: Collection[str]) -> KDError:
    return KDError(
        f"{path}: expected {what} of {experiment.name} ({', '.join(there)}), found {found}; delete it there, or let "
        f"`kd record {experiment.name}` write the file again"
    )


def _look_at_figure(experiment: Experiment, reported: Reported) -> None:
    """Let the figure of each profile name its parts, for a record that serves no arm: nothing is drawn."""
    draw = getattr(figures_of(experiment), "draw", None)
    if draw is None:
        return
    _refuse_other_arguments(draw, experiment)
    for name, profile in experiment.profiles.items():
        about = {"data": "", "config": asdict(profile.config), "seed": 0}
        try:
            draw([Record(name, 0, "", {}, "", about, {}, [], {}, "")], reported)
        except UnknownName as error:
            raise KDError(f"{experiment.folder / 'figures.py'}: {error}") from error
        # Not every figure can be asked without the record of a run; it is looked at when it is drawn.
        except (Exception, SystemExit):
            return


def _refuse_other_arguments(draw: Callable[..., object], experiment: Experiment) -> None:
    try:
        inspect.signature(draw).bind([], None)
    except TypeError as error:
        raise KDError(
            f"{experiment.folder / 'figures.py'}: expected draw(records, reported), found draw"
            f"{inspect.signature(draw)} ({error}); give it these two parameters"
        ) from error
    except ValueError:  # it has no signature that Python knows
        return
