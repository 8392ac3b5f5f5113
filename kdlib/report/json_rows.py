"""The rows of a table in `results.json`: arms, claims, ingredients and runs."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdlib.judge.claims import Claim, Effect, Exact, Reported, Trend, Value, fixed_rival, pairs, reported_range
from kdlib.judge.judging import Metrics, chosen, judge, of_declared, values_of, with_choices
from kdlib.judge.rules import Sized
from kdlib.report.markdown import aim, scale, unit, unit_of_values
from kdlib.report.roles import role_of
from kdlib.run.experiment import Experiment
from kdlib.run.records import Record, measured

__all__ = ["arm_rows", "claim_rows", "command", "ingredient_rows", "run_rows"]

Row = dict[str, Any]
TEXT = {  # columns of the CSV files whose cells are text, also if they look like a number
    *("arm", "modes", "claim", "mark", "kind", "metric", "statement", "mode", "differs", "verdict", "next_outcome"),
    *("recorded", "says", "detail", "role", "ingredient", "over"),
}


def _read(path: Path) -> list[Row]:
    """The rows of a CSV file; none if there is no such file, because a table without rows has none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _cell(key, cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def _cell(column: str, cell: str) -> Any:
    if column in TEXT:
        return cell
    if cell in ("", "True", "False"):
        return {"True": True, "False": False}.get(cell)
    return int(cell) if cell.isdecimal() else float(cell)


def arm_rows(experiment: Experiment, path: Path) -> list[Row]:
    """Return the arms: the columns of the CSV file and the part that each arm plays."""
    return [{**row, "role": role_of(experiment.arm(row["arm"]), experiment.arms)} for row in _read(path)]


def ingredient_rows(reported: Reported, path: Path) -> list[Row]:
    """Return the ingredients: the columns of the CSV file, and how their numbers are shown."""
    shown = scale(reported, reported.primary.metric)
    return [{**row, "percent": shown.percent, "decimals": shown.decimals} for row in _read(path)]


# ---- claims


def claim_rows(
    experiment: Experiment, reported: Reported, records: Sequence[Record], path: Path, ranged: bool
) -> list[Row]:
    """Return the claims by mode: the columns of the CSV file, the seeds' values, and the command for one seed.

    `ranged`: the runs should reach the source's numbers, so next to these there is the range of a mean.
    `agrees`: the bounds of the means that agree with the reported size. `seconds`: the device time of all runs that the
    row is made from, those of teachers included.
    """
    profile = experiment.profile(records[0].profile)
    declared = profile.seeds if profile.judged else None
    numbers = of_declared(measured(records), declared)
    taken = {choice.name: chosen(choice, numbers) or choice.name for choice in reported.choices}
    numbers = with_choices(reported.choices, numbers)
    by_id = {record.run: record for record in records}
    rows = []
    for row in _read(path):
        claim, mode = reported.claims[row["claim"]], row["mode"]
        arms = _arms_of(experiment, reported, claim, mode, taken)
        rows.append(
            {
                **row,
                "place": claim.place,
                **_shown(reported, claim),
                "agrees": _agreeing(claim, mode, numbers, declared),
                "arms": [_seeds(experiment, reported, claim, arm, numbers, ranged) for arm in arms],
                "differences": _differences(claim, mode, numbers),
                "seconds": _seconds(records, by_id, arms),
                "command": command(experiment, records, arms),
            }
        )
    return rows


def _arms_of(
    experiment: Experiment, reported: Reported, claim: Claim, mode: str, taken: Mapping[str, str]
) -> list[str]:
    """The compared arms, the chosen one in place of a choice; next to a taught arm also the sham that it must beat."""
    compared, part = claim.modes[mode], reported.part("transfer")
    named = [taken.get(arm, arm) for arm in (*compared.arms, *compared.rivals)]
    if part and claim.metric == reported.primary.metric and part.arm in named:
        named.append(part.rival)
    known = {arm.name for arm in experiment.arms}
    return [arm for arm in dict.fromkeys(named) if arm in known]


def _shown(reported: Reported, claim: Claim) -> Row:
    """How the numbers of a claim are shown."""
    shown = scale(reported, claim.metric)
    return {
        "unit": unit(claim, shown),
        "aim": aim(claim, shown),
        "percent": shown.percent and not isinstance(claim, Exact | Trend),
        "decimals": 2 if isinstance(claim, Trend) else shown.decimals,
        "signed": fixed_rival(claim) is None,
        # Of the arms' own values: those of a trend are no tau.
        "of_arms": {"unit": unit_of_values(claim.metric, shown), "percent": shown.percent, "decimals": shown.decimals},
    }


def _agreeing(claim: Claim, mode: str, numbers: Metrics, declared: int | None) -> list[float] | None:
    """Which means agree with the reported size, on the claim's scale; None if the claim has no size or no verdict."""
    basis = judge(claim, mode, numbers, declared=declared).basis
    if basis is None or not isinstance(basis.rule, Sized) or not isinstance(claim, Effect | Value):
        return None
    room = float(basis.rule.room(basis.moments)[0])
    return [claim.reported - room, claim.reported + room]


def _seeds(experiment: Experiment, reported: Reported, claim: Claim, arm: str, numbers: Metrics, ranged: bool) -> Row:
    """An arm's values of the claim's metric by seed, next to the number that the source reports for it."""
    found = values_of(numbers, claim.metric, arm)
    value = reported.value(arm, claim.metric)
    return {
        "arm": arm,
        "role": role_of(experiment.arm(arm), experiment.arms),
        "seeds": list(found),
        "values": list(found.values()),
        "reported": value.value if value else None,
        "range": list(reported_range(value, len(found))) if value and found and ranged else None,
    }


def _differences(claim: Claim, mode: str, numbers: Metrics) -> list[Row]:
    """The paired differences by seed, over each rival; none for trends and for arms that are compared with a number."""
    rows = []
    for arm, rival in [] if isinstance(claim, Trend) else pairs(claim, mode):
        found = values_of(numbers, claim.metric, arm, rival, lower_is_better=claim.lower_is_better)
        rows.append({"arm": arm, "over": rival, "seeds": list(found), "values": list(found.values())})
    return rows


def _seconds(records: Sequence[Record], by_id: Mapping[str, Record], arms: Collection[str]) -> float:
    """The seconds of the runs of some arms, and of the runs that taught them."""
    wanted = [record.run for record in records if not record.arms.keys().isdisjoint(arms)]
    counted: dict[str, float] = {}
    while wanted:
        run = wanted.pop()
        if run in by_id and run not in counted:
            counted[run] = float(by_id[run].environment.get("seconds", 0))
            wanted += [str(parent).partition("/")[0] for parent in by_id[run].description["parents"].values()]
    return sum(counted[run] for run in sorted(counted))


def command(experiment: Experiment, records: Sequence[Record], arms: Sequence[str], seed: str = "") -> str:
    """Return the command that trains arms of a table again, for one seed: by default the first recorded one."""
    of_arms = [record for record in records if not record.arms.keys().isdisjoint(arms)] or records
    first = of_arms[0]
    config, usual = first.description["config"], asdict(experiment.profile(first.profile).config)
    options = ["--profile", first.profile, "--arms", ",".join(arms)]
    options += ["--seed", seed or str(min(record.seed for record in of_arms))]
    for name in experiment.data_fields:
        if config[name] != usual[name]:
            options += ["--set", f"{name}={config[name]}"]
    for name, default in (("device", "cpu"), ("threads", 1), ("replicas", 1), ("convolutions", "grouped")):
        if config.get(name, default) != default:
            options += [f"--{name}", str(config[name])]
    return f"nox -s replicate_{experiment.name} -- {shlex.join(options)}"


# ---- runs


def run_rows(records: Sequence[Record], dates: Mapping[str, str], lines: Sequence[int]) -> list[Row]:
    """Return the runs: each serves one arm or several; `lines` are their lines in `runs.jsonl`."""
    return [
        {
            "run": record.run,
            "line": line,
            "seed": record.seed,
            "arms": {arm: _scalars(record.metrics[snapshot]) for arm, snapshot in record.arms.items()},
            "parents": dict(record.description["parents"]),
            "seconds": record.environment.get("seconds"),
            "device": str(record.environment.get("device", "unknown")),
            "commit": str(record.environment.get("commit", "unknown")),
            "date": dates.get(str(record.environment.get("commit"))),
        }
        for record, line in zip(records, lines, strict=True)
    ]


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in sorted(metrics.items()) if type(value) in (int, float)}
