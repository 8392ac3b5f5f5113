"""The numbers of the front picture: of every primary claim the reported gain, the measured one, and its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdlib.judge.claims import Best, Claim, Effect, Exact, Ingredient, Reported, Trend, fixed_rival
from kdlib.judge.judging import Metrics, judge, of_declared, values_of, with_choices
from kdlib.report.chains import PARTS, chain
from kdlib.report.frames import on_claims_scale
from kdlib.report.markdown import Scale, scale, unit
from kdlib.report.pages import reported_of
from kdlib.report.panels import interval
from kdlib.run.experiment import Experiment, load_experiment, replications
from kdlib.run.records import Record, measured, read_records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Mark", "Row", "front_rows", "table_of"]


class Mark(NamedTuple):
    """A number of a row in the metric's own unit, positive if better, with its 95% interval (empty below 3 seeds).

    `own`: the part is a step between the two arms of the measured gain, of the same seeds. A part that is not compares
    other arms, or is of other seeds.
    """

    part: str  # reported, measured, or one of PARTS
    arm: str
    over: str
    value: float
    low: float | str = ""
    high: float | str = ""
    n: int | str = ""
    own: bool = True


class Row(NamedTuple):
    """A primary claim with its marks; `declared` are the parts that `claims.toml` has arms for."""

    replication: str
    claim: Claim
    mode: str
    profile: str
    seeds: int  # that the profile declares for a verdict; 0: it gives none
    unit: str
    shown: Scale
    declared: Sequence[str]
    marks: Sequence[Mark]

    def mark(self, part: str) -> Mark | None:
        """Return the mark of a part; None if it has no runs."""
        return next((mark for mark in self.marks if mark.part == part), None)


def front_rows(root: Path) -> list[Row]:
    """Return a row for each primary claim of each replication below `root`, but for those about an exact number."""
    rows: list[Row] = []
    for name in replications(root):
        experiment = load_experiment(name)
        reported = reported_of(experiment)
        profile, numbers = _numbers(experiment, reported, read_records(root / "results" / name / "runs.jsonl"))
        seeds = experiment.profile(profile).seeds if profile == experiment.judged else 0
        claims = [c for c in reported.claims.values() if c.primary and not isinstance(c, Exact)]
        rows += [_row(name, reported, claim, profile, seeds, numbers) for claim in claims]
    return rows


def _numbers(experiment: Experiment, reported: Reported, records: Sequence[Record]) -> tuple[str, Metrics]:
    """Return the metrics of the judged runs of the source's own data, of profile quick if there are none."""
    for profile in (experiment.judged, "quick"):
        own = [r for r in records if experiment.label(r.profile, r.description["config"]) == profile]
        if own:
            declared = experiment.profile(profile).seeds if profile == experiment.judged else None
            return profile, with_choices(reported.choices, of_declared(measured(own), declared))
    return "", {}


def _row(name: str, reported: Reported, claim: Claim, profile: str, seeds: int, numbers: Metrics) -> Row:
    one_gain = not isinstance(claim, Trend | Best)
    has_parts = one_gain and claim is reported.primary
    parts = [part for role in PARTS if (part := reported.part(role))] if has_parts else []
    mode, steps = _steps(claim, parts)
    compared = claim.modes[mode]
    arm, over = compared.arms[0], compared.rivals[0] if fixed_rival(claim) is None and compared.rivals else ""
    shown = Scale(False, 2) if isinstance(claim, Trend) else scale(reported, claim.metric)
    marks = [Mark("reported", arm, over, claim.reported)] if isinstance(claim, Effect) else []
    if one_gain:
        whole = _gains(claim, numbers, arm, over)
        named = [("measured", arm, over, True)]
        for part in parts:
            own = part in steps and _gains(claim, numbers, part.arm, part.rival).keys() == whole.keys()
            named.append((part.role, part.arm, part.rival, own))
        marks += [mark for each in named if (mark := _measured(claim, numbers, *each))]
    else:
        marks += _judged(claim, mode, numbers)
    return Row(name, claim, mode, profile, seeds, unit(claim, shown), shown, [part.role for part in parts], marks)


def _steps(claim: Claim, parts: Sequence[Ingredient]) -> tuple[str, Sequence[Ingredient]]:
    """Return the mode whose comparison most parts make up, one after the other, and these parts; else the first."""
    steps, chains = [(part.arm, part.rival) for part in parts], {}
    for mode, compared in claim.modes.items():
        chains[mode] = chain(steps, compared.arms[0], compared.rivals[0] if compared.rivals else "")
    longest = max(chains, key=lambda mode: len(chains[mode]))
    return longest, [parts[place] for place in chains[longest]]


def _gains(claim: Claim, numbers: Metrics, arm: str, over: str) -> dict[int, float]:
    return values_of(numbers, claim.metric, arm, over, lower_is_better=claim.lower_is_better)


def _judged(claim: Claim, mode: str, numbers: Metrics) -> list[Mark]:
    """The number that the verdict of a trend, or of the best of several arms, is about."""
    verdict = judge(claim, mode, numbers, declared=None)
    if not verdict.n:
        return []
    mean, low, high = on_claims_scale(claim, verdict)
    mark = Mark("measured", ", ".join(claim.modes[mode].arms), "", mean, n=verdict.n)
    return [mark._replace(low=low, high=high) if math.isfinite(low) else mark]


def _measured(claim: Claim, numbers: Metrics, part: str, arm: str, over: str, own: bool) -> Mark | None:
    gains = list(_gains(claim, numbers, arm, over).values())
    if not gains:
        return None
    return Mark(part, arm, over, float(np.mean(gains)), *interval(gains), len(gains), own)


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a line for each mark; no number is rounded, and shares stay shares."""
    import pandas as pd

    lines = [
        {"replication": row.replication, "claim": row.claim.name, "mode": row.mode, "profile": row.profile}
        | {"metric": f"{'tau of ' * isinstance(row.claim, Trend)}{row.claim.metric}", **mark._asdict()}
        for row in rows
        for mark in row.marks
    ]
    columns = ["replication", "claim", "mode", "profile", "metric", *Mark._fields]
    return pd.DataFrame(lines, columns=columns, dtype=object)
