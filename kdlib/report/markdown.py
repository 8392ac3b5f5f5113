"""Numbers and text as Markdown: rounded as the source's decimals say, without any live markup."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kdlib.judge.claims import (
    Best,
    Claim,
    Comparable,
    Direction,
    Effect,
    Exact,
    NonInferior,
    Reported,
    ReportedValue,
    Trend,
    Value,
    fixed_rival,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NONE",
    "Scale",
    "aim",
    "arms_shown",
    "claims_shown",
    "escaped",
    "found",
    "ingredients_shown",
    "mark",
    "percent",
    "scale",
    "table",
    "unescaped",
    "unit",
    "unit_of_values",
]

NONE = "—"
NOT_RUN = "not run"
_MOST_DECIMALS = 6
_SHORT = 60


def escaped(text: object) -> str:
    """Return text as one line that Markdown shows unchanged: without markup, links, cells or line breaks."""
    # Category C has control characters and the marks that reverse direction, Z all spaces and line breaks.
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text))
    line = re.sub(r"([\\`*\[\]|<>#~$&@])", r"\\\1", " ".join(line.split()))
    # An underscore at the edge of a word would become emphasis, a bare address a link.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    return re.sub(r"(?i)(?<=:)//|(?<=\bwww)\.", lambda match: "\\" + match[0], line)


def unescaped(text: str) -> str:
    """Return Markdown text without its escapes, as a terminal should show it."""
    return re.sub(r"\\([\\`*\[\]|<>#~$&@_/.])", r"\1", text)


def table(frame: pd.DataFrame, right: Sequence[str] = ()) -> str:
    """Return a frame of escaped strings as a Markdown table; the columns `right` are aligned to the right."""
    if frame.empty:
        return "Nothing has been run yet."
    align = ["right" if head in right else "left" for head in frame.columns]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


# ---- numbers


@dataclass(frozen=True)
class Scale:
    """How a metric is shown: in percent if the source's unit is, with one decimal more than the source prints."""

    percent: bool = False
    decimals: int = 3

    def show(self, number: float, sign: str = "", decimals: int | None = None) -> str:
        """Return a number as text, an em dash for nan; `sign` "+" is for differences, `decimals` for shares."""
        if math.isnan(number):
            return NONE
        places = self.decimals if decimals is None else decimals
        shift = 2 if self.percent else 0
        # A number that would be rounded to 0 has as many decimals as its first digit needs.
        while number and places < _MOST_DECIMALS and round(abs(number) * 10**shift, max(0, places - shift)) == 0:
            places += 1
        return f"{number * 10**shift:{sign},.{max(0, places - shift)}f}"

    def between(self, low: float, high: float, sign: str = "") -> str:
        """Return a range of numbers as text."""
        return NONE if math.isnan(low) else f"{self.show(low, sign)} to {self.show(high, sign)}"


def scale(reported: Reported, metric: str) -> Scale:
    """Return the scale of a metric, from all numbers that the source reports of it."""
    values = [value for value in reported.values.values() if value.metric == metric]
    claims = [c for c in reported.claims.values() if c.metric == metric and isinstance(c, Effect | Value)]
    in_percent = any(re.search(r"%|\b(percent|percentage|points?)\b", value.unit) for value in values)
    percent = in_percent and all(abs(value.value) <= 1 for value in values)  # a share: not "146 errors (1.46%)"
    printed = [*(value.decimals for value in values), *(claim.decimals for claim in claims)]
    return Scale(percent, min(_MOST_DECIMALS, max(0, max(printed) + 1)) if printed else 3)


def _reported(value: ReportedValue | None, shown: Scale) -> str:
    if value is None:
        return NONE
    text = shown.show(value.value, decimals=value.decimals)
    if value.std is None:
        return text
    return f"{text} ± {value.std * (100 if shown.percent else 1):.2g} ({value.runs})"


# ---- the two frames, as strings


def arms_shown(frame: pd.DataFrame, reported: Reported, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the arms' frame as escaped strings under short heads, without the columns that are empty for all arms."""
    import pandas as pd

    rows = []
    for _, row in frame.iterrows():
        shown = {"arm": escaped(row["arm"]), "mode": escaped(row["modes"]), "n": str(row["n"])}
        for metric in metrics:
            prefix = "" if len(metrics) == 1 else f"{_head(metric)}: "
            shown |= _metric_cells(row, reported, metric, prefix)
        for key, (head, form) in _FURTHER.items():
            shown[head] = NONE if math.isnan(row[key]) else format(row[key], form)
        rows.append(shown)
    strings = pd.DataFrame(rows)
    return strings.loc[:, (strings != NONE).any()] if rows else strings


_FURTHER = {
    "agreement": ("agreement", ".3f"),
    "teacher_kl": ("KL (nats)", ".3f"),
    "entropy": ("entropy (nats)", ".3f"),
    "parameters": ("parameters", ",.0f"),
    "epochs": ("epochs", "g"),
}


def _metric_cells(row: Any, reported: Reported, metric: str, prefix: str) -> dict[str, str]:
    shown = scale(reported, metric)
    inside = row[f"{metric}_inside"]
    return {
        _head(metric) + (" %" if shown.percent else ""): shown.show(row[metric]),
        f"{prefix}95% over seeds": shown.between(row[f"{metric}_low"], row[f"{metric}_high"]),
        f"{prefix}test-set ±": shown.show(row[f"{metric}_test_set"]),
        f"{prefix}reported": _reported(reported.value(row["arm"], metric), shown),
        f"{prefix}range": shown.between(row[f"{metric}_range_low"], row[f"{metric}_range_high"]),
        f"{prefix}inside": NONE if inside is None else "yes" if inside else "no",
    }


def _head(metric: str) -> str:
    return re.sub(r"\bf1\b", "F1", escaped(metric).replace("_", " "))


def claims_shown(frame: pd.DataFrame, reported: Reported, judged: bool, synthetic: bool) -> pd.DataFrame:
    """Return the claims' frame as escaped strings: with verdicts (`judged`), or with what the runs say about them."""
    import pandas as pd

    rows = []
    for _, row in frame.iterrows():
        claim = reported.claims[row["claim"]]
        shown = {
            "claim": escaped(row["claim"] + (f" ({row['mark']})" if row["mark"] else "")),
            "about": escaped(textwrap.shorten(claim.statement, _SHORT, placeholder=" …")),
            "mode": row["mode"],
            "differs in": row["differs"] or NONE,
            "unit": unit(claim, scale(reported, claim.metric)),
            "reported": aim(claim, scale(reported, claim.metric)),
        }
        shown |= found(claim, scale(reported, claim.metric), row["measured"], row["low"], row["high"])
        shown["n"] = str(row["n"])
        if synthetic:
            shown["verdict"] = "none: synthetic data"
        elif judged:
            shown["verdict"] = _verdict_cell(row)
            shown |= _firmness_cells(row, claim, scale(reported, claim.metric))
        else:
            shown |= {"full verdict": row["recorded"] or NONE, "this run": row["says"] if row["n"] else NOT_RUN}
        rows.append(shown)
    return pd.DataFrame(rows)


_PARTS = {"": NONE, "schedule": "schedule and data", "softness": "softness", "transfer": "transfer proper"}


def ingredients_shown(frame: pd.DataFrame, reported: Reported) -> pd.DataFrame:
    """Return the ingredients' frame as escaped strings."""
    import pandas as pd

    shown = scale(reported, reported.primary.metric)
    head = f"difference ({'points of ' * shown.percent}{_head(reported.primary.metric)})"
    return pd.DataFrame(
        [
            {
                "part": _PARTS[row["role"]],
                "ingredient": escaped(row["ingredient"]),
                "arm": escaped(row["arm"]),
                "over": escaped(row["over"]),
                "differs in": row["differs"],
                head: shown.show(row["difference"], "+"),
                "95%": shown.between(row["low"], row["high"], "+"),
                "n": str(row["n"]),
            }
            for _, row in frame.iterrows()
        ]
    )


def mark(claim: Claim) -> str:
    """Return "primary" for a claim that makes the headline, "ours" for one that is not the source's, else nothing."""
    return "primary" if claim.primary else "ours" if claim.ours else ""


def aim(claim: Claim, shown: Scale) -> str:
    """Return what the source reports, or what a claim without a number asks of the difference."""
    match claim:
        case Effect():  # the difference of two numbers may have more digits than one of them
            return shown.show(claim.reported, "+", max(claim.decimals, _digits(claim.reported)))
        case Value():
            return shown.show(claim.reported, decimals=claim.decimals)
        case NonInferior():
            return f"above {_declared(-claim.margin, shown, '+')}"
        case Comparable():
            return f"within {_declared(claim.margin, shown)}"
        case Exact():
            return " and ".join(f"{number:,.12g}" for number in _expected(claim))
        case Trend():
            return "tau above 0"
        case Best():
            return "above 0 over each"
        case Direction(threshold=None):
            return "above 0"
        case Direction():
            assert claim.threshold is not None
            return f"{'below' if claim.lower_is_better else 'above'} {_declared(claim.threshold, shown)}"


def _declared(number: float, shown: Scale, sign: str = "") -> str:
    """A number that decides, with all its digits."""
    return shown.show(number or 0.0, sign, max(shown.decimals, _digits(number)))


def _digits(number: float) -> int:
    """The number of decimals that a number is written with."""
    return max(0, -int(Decimal(str(number)).normalize().as_tuple().exponent))


def _expected(claim: Exact) -> list[float]:
    return list(dict.fromkeys(number for compared in claim.modes.values() for number in compared.expected))


def unit(claim: Claim, shown: Scale) -> str:
    """Return the unit of a claim's numbers: points of accuracy, macro F1, nats of entropy, ..."""
    metric = _head(claim.metric)
    if isinstance(claim, Trend):
        return "Kendall's tau"
    if isinstance(claim, Exact):
        return metric
    if shown.percent and fixed_rival(claim) is None:
        return f"points of {metric}"
    return unit_of_values(claim.metric, shown)


def unit_of_values(metric: str, shown: Scale) -> str:
    """Return the unit of an arm's values of a metric: % accuracy, nats of entropy, errors, ..."""
    if metric in ("entropy", "teacher_kl"):
        return f"nats of {'KL' if metric == 'teacher_kl' else metric}"
    return f"{'% ' * shown.percent}{_head(metric)}"


def found(claim: Claim, shown: Scale, measured: float, low: float, high: float) -> dict[str, str]:
    """Return the cells `measured` and `95%` of a claim."""
    if isinstance(claim, Exact):
        off = NONE if math.isnan(measured) else f"off by {measured:,.12g}" if measured else "equal"
        return {"measured": off, "95%": NONE}
    shown = Scale(False, 2) if isinstance(claim, Trend) else shown
    sign = "+" if fixed_rival(claim) is None else ""
    return {"measured": shown.show(measured, sign), "95%": shown.between(low, high, sign)}


def _verdict_cell(row: Any) -> str:
    text = (str(row["verdict"]) if row["n"] else NOT_RUN) + (" (analogue)" if row["analogue"] else "")
    if not math.isnan(row["needed_n"]):
        steady = "" if row["kind"] in ("effect", "value") else ", if the mean stays"
        text += f"; {row['needed_n']:.0f} seeds would decide{steady}"
    recorded = row["recorded"]
    return text + (f"; recorded: {recorded}" if recorded and recorded != row["verdict"] else "")


def _firmness_cells(row: Any, claim: Claim, shown: Scale) -> dict[str, str]:
    """The share of redraws with the same outcome, and how far the mean is from the nearest other outcome."""
    shown = Scale(False, 2) if isinstance(claim, Trend) else shown
    beyond = f"{shown.show(row['margin'])} away: {row['next_outcome']}" if row["next_outcome"] else NONE
    return {"firmness": percent(row["firmness"]), "nearest other outcome": beyond}


def percent(share: float) -> str:
    """Return a share in whole percent, an em dash for nan."""
    return NONE if math.isnan(share) else f"{share:.0%}"
