"""The numbers of the front picture: of every primary claim the reported gain, the measured one, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdlib.judge.claims import Claim, Comparison, Effect, Ingredient, Reported, fixed_rival
from kdlib.judge.judging import Metrics, of_declared, values_of, with_choices
from kdlib.report.markdown import Scale, scale, unit
from kdlib.report.pages import reported_of
from kdlib.report.panels import interval
from kdlib.run.experiment import Experiment, load_experiment, replications
from kdlib.run.records import Record, measured, read_records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PARTS", "Mark", "Row", "front_rows", "table_of"]

PARTS = ("schedule", "softness", "transfer")  # in this order they lead from the claim's rival to its arm


class Mark(NamedTuple):
    """A number of a row in the metric's own unit, positive if better, with its 95% interval (empty below 3 seeds).

    `own`: the part is a step between the two arms of the measured gain. A part that is not compares other arms.
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
    """Return a row for each primary claim of each replication below `root`."""
    rows = []
    for name in replications(root):
        experiment = load_experiment(name)
        reported = reported_of(experiment)
        profile, numbers = _numbers(experiment, reported, read_records(root / "results" / name / "runs.jsonl"))
        seeds = experiment.profile(profile).seeds if profile == experiment.judged else 0
        rows += [_row(name, reported, c, profile, seeds, numbers) for c in reported.claims.values() if c.primary]
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
    parts = [part for role in PARTS if (part := reported.part(role))] if claim is reported.primary else []
    mode, steps = _steps(claim, parts)
    compared = claim.modes[mode]
    arm, over = compared.arms[0], compared.rivals[0] if fixed_rival(claim) is None and compared.rivals else ""
    marks = [Mark("reported", arm, over, claim.reported)] if isinstance(claim, Effect) else []
    named = [("measured", arm, over, True), *((part.role, part.arm, part.rival, part in steps) for part in parts)]
    marks += [mark for part in named if (mark := _measured(claim, numbers, *part))]
    shown = scale(reported, claim.metric)
    return Row(name, claim, mode, profile, seeds, unit(claim, shown), shown, [part.role for part in parts], marks)


def _steps(claim: Claim, parts: Sequence[Ingredient]) -> tuple[str, Sequence[Ingredient]]:
    """Return the mode whose comparison most parts make up, one after the other, and these parts; else the first."""
    chains = [parts[first:last] for first in range(len(parts)) for last in range(first + 1, len(parts) + 1)]
    for chain in sorted(chains, key=len, reverse=True):
        for mode, compared in claim.modes.items():
            if _lead(chain, compared):
                return mode, chain
    return next(iter(claim.modes)), ()


def _lead(chain: Sequence[Ingredient], compared: Comparison) -> bool:
    """Return whether each part begins with the arm where the one before it ends, from the rival to the arm."""
    ends = [*compared.rivals[:1], *(part.arm for part in chain)]
    return [part.rival for part in chain] == ends[:-1] and ends[-1] == compared.arms[0]


def _measured(claim: Claim, numbers: Metrics, part: str, arm: str, over: str, own: bool) -> Mark | None:
    gains = list(values_of(numbers, claim.metric, arm, over, lower_is_better=claim.lower_is_better).values())
    if not gains:
        return None
    return Mark(part, arm, over, float(np.mean(gains)), *interval(gains), len(gains), own)


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a line for each mark; no number is rounded, and shares stay shares."""
    import pandas as pd

    lines = [
        {"replication": row.replication, "claim": row.claim.name, "mode": row.mode, "profile": row.profile}
        | {"metric": row.claim.metric, **mark._asdict()}
        for row in rows
        for mark in row.marks
    ]
    columns = ["replication", "claim", "mode", "profile", "metric", *Mark._fields]
    return pd.DataFrame(lines, columns=columns, dtype=object)
