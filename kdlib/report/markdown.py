"""Numbers and text as Markdown: rounded where the source's decimals say so, with nothing live in it."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kdlib.claims import Claim, Reported, Value

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NONE", "Scale", "aim", "arms_shown", "claims_shown", "escaped", "found", "ingredients_shown", "mark", "scale", "table",
]  # fmt: skip

NONE = "—"
NOT_RUN = "not run"
_MOST_DECIMALS = 6
_SHORT = 60


def escaped(text: object) -> str:
    """Text as one line that Markdown shows as it stands: without markup, links, cells or line breaks."""
    # category C: control characters and the marks that reverse direction; Z: all spaces and line breaks
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text))
    line = re.sub(r"([\\`*\[\]|<>#~$&@])", r"\\\1", " ".join(line.split()))
    # an underscore within a word is plain, one at its edge is emphasis; bare addresses would become links
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    return re.sub(r"(?i)(?<=:)//|(?<=\bwww)\.", lambda match: "\\" + match[0], line)


def table(frame: pd.DataFrame, right: Sequence[str] = ()) -> str:
    """A Markdown table of a frame of escaped strings; the columns `right` are aligned to the right."""
    if frame.empty:
        return "Nothing has been run yet."
    align = ["right" if head in right else "left" for head in frame.columns]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


# ---- numbers


@dataclass(frozen=True)
class Scale:
    """How a metric is shown: percent where the source's unit is, one decimal more than the source prints."""

    percent: bool = False
    decimals: int = 3

    def show(self, number: float, sign: str = "", decimals: int | None = None) -> str:
        """A number, an em dash for nan; `sign` "+" for differences; `decimals` as of the share."""
        if math.isnan(number):
            return NONE
        places = self.decimals if decimals is None else decimals
        shift = 2 if self.percent else 0
        return f"{number * 10**shift:{sign},.{max(0, places - shift)}f}"

    def between(self, low: float, high: float, sign: str = "") -> str:
        """A range of numbers."""
        return NONE if math.isnan(low) else f"{self.show(low, sign)} to {self.show(high, sign)}"


def scale(reported: Reported, metric: str) -> Scale:
    """The scale of a metric, from all that the source reports of it."""
    values = [value for value in reported.values.values() if value.metric == metric]
    claims = [c for c in reported.claims.values() if c.metric == metric and c.kind in ("effect", "value")]
    percent = any(re.search(r"%|\b(percent|percentage|points?)\b", value.unit) for value in values)
    printed = [*(value.decimals for value in values), *(claim.decimals for claim in claims)]
    return Scale(percent, min(_MOST_DECIMALS, max(0, max(printed) + 1)) if printed else 3)


def _reported(value: Value | None, shown: Scale) -> str:
    if value is None:
        return NONE
    text = shown.show(value.value, decimals=value.decimals)
    if value.std is None:
        return text
    return f"{text} ± {value.std * (100 if shown.percent else 1):.2g} ({value.runs})"


# ---- the two frames, as strings


def arms_shown(frame: pd.DataFrame, reported: Reported, metrics: Sequence[str]) -> pd.DataFrame:
    """The arms' frame as escaped strings under short heads, without columns in which no arm has anything."""
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
    "agreement": ("agree", ".3f"), "teacher_kl": ("KL", ".3f"), "entropy": ("entropy", ".3f"),
    "parameters": ("params", ",.0f"), "epochs": ("epochs", "g"),
}  # fmt: skip


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


def claims_shown(frame: pd.DataFrame, reported: Reported, full: bool, synthetic: bool) -> pd.DataFrame:
    """The claims' frame as escaped strings: verdicts (`full`), or what the runs say of the full ones'."""
    import pandas as pd

    rows = []
    for _, row in frame.iterrows():
        claim = reported.claims[row["claim"]]
        shown = {
            "claim": escaped(row["claim"] + (f" ({row['mark']})" if row["mark"] else "")),
            "about": escaped(textwrap.shorten(claim.statement, _SHORT, placeholder=" …")),
            "mode": row["mode"], "reported": aim(claim, scale(reported, claim.metric)),
        }  # fmt: skip
        shown |= found(claim, scale(reported, claim.metric), row["measured"], row["low"], row["high"])
        shown["n"] = str(row["n"])
        if synthetic:
            shown["verdict"] = "none: synthetic data"
        elif full:
            shown["verdict"] = _verdict_cell(row)
        else:
            shown |= {"full verdict": row["recorded"] or NONE, "this run": row["says"] if row["n"] else NOT_RUN}
        rows.append(shown)
    return pd.DataFrame(rows)


def ingredients_shown(frame: pd.DataFrame, reported: Reported) -> pd.DataFrame:
    """The ingredients' frame as escaped strings."""
    import pandas as pd

    shown = scale(reported, reported.primary.metric)
    return pd.DataFrame([
        {"ingredient": escaped(row["ingredient"]), "arm": escaped(row["arm"]), "over": escaped(row["over"]),
         "difference": shown.show(row["difference"], "+"), "95%": shown.between(row["low"], row["high"], "+"),
         "n": str(row["n"])}
        for _, row in frame.iterrows()
    ])  # fmt: skip


def mark(claim: Claim) -> str:
    """Whether a claim is among those that make the headline, or not the source's."""
    return "primary" if claim.primary else "ours" if claim.ours else ""


def aim(claim: Claim, shown: Scale) -> str:
    """What the source reports, or what a claim without a number asks of the difference."""
    match claim.kind:
        case "effect":  # the difference of two numbers may have more digits than one of them
            digits = -int(Decimal(str(claim.reported)).as_tuple().exponent)
            return shown.show(claim.reported, "+", max(claim.decimals, digits))
        case "value":
            return shown.show(claim.reported, decimals=claim.decimals)
        case "non-inferior":
            return f"above {shown.show(-claim.margin, '+')}"
        case "comparable":
            return f"within {shown.show(claim.margin)}"
        case "exact":
            return " and ".join(f"{number:,.12g}" for number in _expected(claim))
        case "trend":
            return "tau above 0"
        case "best":
            return "above 0 over each"
    if claim.threshold is None:
        return "above 0"
    return f"{'below' if claim.lower_is_better else 'above'} {shown.show(claim.threshold)}"


def _expected(claim: Claim) -> list[float]:
    return list(dict.fromkeys(number for arms in claim.modes.values() for number in arms.expected))


def found(claim: Claim, shown: Scale, measured: float, low: float, high: float) -> dict[str, str]:
    """The cells `measured` and `95%` of a claim."""
    if claim.kind == "exact":
        off = NONE if math.isnan(measured) else f"off by {measured:,.12g}" if measured else "equal"
        return {"measured": off, "95%": NONE}
    shown = Scale(False, 2) if claim.kind == "trend" else shown
    sign = "" if claim.kind == "value" or claim.threshold is not None else "+"
    return {"measured": shown.show(measured, sign), "95%": shown.between(low, high, sign)}


def _verdict_cell(row: Any) -> str:
    text = (str(row["verdict"]) if row["n"] else NOT_RUN) + (" (analogue)" if row["analogue"] else "")
    if not math.isnan(row["needed_n"]):
        steady = "" if row["kind"] in ("effect", "value") else ", if the mean stays"
        text += f"; {row['needed_n']:.0f} seeds would decide{steady}"
    recorded = row["recorded"]
    return text + (f"; recorded: {recorded}" if recorded and recorded != row["verdict"] else "")
