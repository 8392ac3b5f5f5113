"""`kd list` shows the replications; `kd list NAME` shows one: its profiles with seeds and hours, arms and claims."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from statistics import fmean

from kdlib.cli.again import name_of
from kdlib.cli.commands import ROOT, chosen
from kdlib.cli.elsewhere import refuse_elsewhere
from kdlib.cli.say import say
from kdlib.errors import KDError
from kdlib.judge.bands import read_bands
from kdlib.report.markdown import mark
from kdlib.report.pages import label_of, reported_of
from kdlib.run.experiment import Experiment, load_experiment, replications
from kdlib.run.plan import wanted_arms
from kdlib.run.records import Record, read_records
from kdlib.run.session import data_sets
from kdlib.terminal import duration

__all__ = ["show_list"]

COLUMNS = 80


def show_list(options: argparse.Namespace) -> int:
    """`kd list [NAME ...]`."""
    status = 0
    for name in map(name_of, options.names or replications(ROOT) or chosen(())):
        try:
            refuse_elsewhere(name, ROOT)
            experiment = load_experiment(name)
        except KDError as error:
            if options.names:
                raise
            say(f"{name}: {error}")  # one that somebody is editing does not hide the others
            status = 2
            continue
        say(f"{name}: {experiment.about}")
        for line in _about(experiment) if options.names else _short(experiment):
            say(line)
    return status


def _short(experiment: Experiment) -> Iterator[str]:
    for label, profile in experiment.profiles.items():
        yield f"  {label}: {_seeds(profile.seeds)}{', ' + profile.reduced if profile.reduced else ''}"
    yield "  arms: " + ", ".join(arm.name for arm in experiment.arms)


def _about(experiment: Experiment) -> Iterator[str]:
    """The lines about one replication, of 80 columns."""
    records = read_records(ROOT / "results" / experiment.name / "runs.jsonl")
    yield "profiles (the time of all runs, one after the other, where they are recorded)"
    for name, profile in experiment.profiles.items():
        about = [_seeds(profile.seeds), f"{len(experiment.arms_of(profile))} arms", _time(experiment, name, records)]
        about += ["gives verdicts"] * profile.judged + ["synthetic data"] * profile.synthetic
        data = () if profile.synthetic else data_sets(experiment, profile.config)
        about += [f"data {', '.join(data)}"] * bool(data) + [profile.reduced] * bool(profile.reduced)
        yield from _wrapped(f"{name}: {', '.join(about)}")
    yield "arms"
    for arm in experiment.arms:
        needs = f"; needs {', '.join(dict.fromkeys(arm.needs.values()))}" if arm.needs else ""
        seed = "" if arm.seed is None else f"; seed {arm.seed} only"
        yield from _wrapped(f"{arm.name}: {', '.join(arm.modes)}{needs}{seed}")
    yield "claims"
    known, judged = read_bands(experiment.folder / "bands.toml"), experiment.judged
    own = {record.data for record in records if label_of(experiment, record) == judged}
    verdicts = next((known[data, judged].verdicts for data in sorted(own) if (data, judged) in known), {})
    for claim in reported_of(experiment).claims.values():
        found = {mode: verdicts.get(claim.name, {}).get(mode) for mode in claim.modes}
        outcomes = "; ".join(f"{mode}: {outcome or 'no verdict yet'}" for mode, outcome in found.items())
        kind = f"{mark(claim)}, {claim.kind}" if mark(claim) else claim.kind
        yield from _wrapped(f"{claim.name} ({kind}): {claim.statement} {outcomes}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)


def _seeds(number: int) -> str:
    return f"{number} seed{'' if number == 1 else 's'}"


def _time(experiment: Experiment, name: str, records: Sequence[Record]) -> str:
    """How long the runs of a profile take, by its recorded runs on its own data."""
    profile, seconds, counted, unknown = experiment.profile(name), 0.0, set[str](), False
    own = [record for record in records if label_of(experiment, record) == name]
    for arm in wanted_arms(experiment, experiment.arms_of(profile)):
        of_arm = [record for record in own if arm.name in record.arms and "seconds" in record.environment]
        if arm.name not in counted and of_arm:
            times = 1 if arm.seed is not None else profile.seeds
            seconds += times * fmean(record.environment["seconds"] for record in of_arm)
            counted |= {name for record in of_arm for name in record.arms}  # arms of one run
        unknown |= not of_arm
    if not seconds:
        return "time unknown"
    return f"{'at least' if unknown else 'about'} {duration(seconds)}"
