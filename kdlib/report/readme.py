"""The README's table of all replications, and the places of tables in READMEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdlib.errors import KDError
from kdlib.judge.claims import Best, Claim, Exact, Reported, Trend
from kdlib.judge.judging import Metrics, judge, of_declared, values_of, with_choices
from kdlib.judge.verdicts import Verdict, headline
from kdlib.report.chains import PARTS, chain
from kdlib.report.frames import bounds, on_claims_scale, part_differences, spread
from kdlib.report.markdown import NONE, aim, escaped, found, percent, scale, table, unit
from kdlib.run.records import Record, measured

__all__ = ["replace_table", "section", "summary_line", "summary_table", "worst_primary"]


def summary_line(name: str, reported: Reported, records: Sequence[Record], declared: int) -> dict[str, str]:
    """Return a replication's row: the primary claim and mode with the worst verdict of `records`, the judged runs.

    `declared` is the number of seeds that a verdict needs. If no arms of a primary claim have runs, the row says that
    the replication has not been run in full.
    """
    numbers = with_choices(reported.choices, of_declared(measured(records), declared))
    found_worst = worst_primary(reported, numbers, declared)
    if found_worst is None:
        return _row(name, reported, reported.primary, "") | {"verdict": "not yet run in full"}
    worst, claim, mode = found_worst
    cells = found(claim, scale(reported, claim.metric), *on_claims_scale(claim, worst))
    interval = "" if cells["95%"] == NONE else f" ({cells['95%']})"
    measurement = f"{cells['measured']}{interval}, n = {worst.n}"
    about = {
        "measured": measurement,
        "transfer proper": _transfer(reported, numbers, claim, mode),
        "verdict": str(worst),
        "firmness": percent(worst.firmness),
    }
    return _row(name, reported, claim, f", {mode}") | about


def worst_primary(reported: Reported, numbers: Metrics, declared: int) -> tuple[Verdict, Claim, str] | None:
    """Return the worst verdict on a primary claim in a mode, the claim and the mode; None before the first run."""
    primary = [claim for claim in reported.claims.values() if claim.primary]
    judged = [
        (judge(claim, mode, numbers, declared=declared), claim, mode) for claim in primary for mode in claim.modes
    ]
    if not any(verdict.n for verdict, _, _ in judged):
        return None
    worst = headline(verdict for verdict, _, _ in judged)
    return next(each for each in judged if each[0] is worst)


def _row(name: str, reported: Reported, claim: Claim, mode: str) -> dict[str, str]:
    shown = scale(reported, claim.metric)
    return {
        "replication": escaped(name),
        "claim": f"{escaped(claim.name)}{mode}: {escaped(claim.statement)}",
        "unit": unit(claim, shown),
        "reported": aim(claim, shown),
        "measured": NONE,
        "transfer proper": NONE,
        "verdict": "",
        "firmness": NONE,
    }


def _transfer(reported: Reported, numbers: Metrics, claim: Claim, mode: str) -> str:
    """A taught student over the sham, with the 95% interval, and whether that is a part of the claim's gain."""
    part, metric = reported.part("transfer"), claim.metric
    if part is None or claim is not reported.primary:
        return NONE
    differences = part_differences(part, numbers, claim)
    if not differences:
        return NONE
    shown, mean = scale(reported, metric), sum(differences) / len(differences)
    between = shown.between(*bounds(differences, spread(metric)), "+")
    text = shown.show(mean, "+") + ("" if between == NONE else f" ({between})")
    return text + ("" if _is_own(reported, numbers, claim, mode) else ", of other arms or seeds")


def _is_own(reported: Reported, numbers: Metrics, claim: Claim, mode: str) -> bool:
    """Whether transfer proper is a step of the claim's gain in a mode, of the same seeds."""
    parts = [part for role in PARTS if (part := reported.part(role))]
    compared = claim.modes[mode]
    if isinstance(claim, Trend | Best | Exact) or not compared.rivals:
        return False
    arm, over = compared.arms[0], compared.rivals[0]
    steps = [parts[place] for place in chain([(part.arm, part.rival) for part in parts], arm, over)]
    transfer = next((part for part in steps if part.role == "transfer"), None)
    pairs = [(arm, over), (transfer.arm, transfer.rival)] if transfer else []
    seeds = [values_of(numbers, claim.metric, *pair).keys() for pair in pairs]
    return bool(seeds) and seeds[0] == seeds[1]


def summary_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Return the Markdown of all replications' rows."""
    import pandas as pd

    return table(pd.DataFrame(lines))


def replace_table(text: str, content: str, mark: str = "table") -> str:
    """Return `text` with `content` between the lines <!-- mark:begin --> and <!-- mark:end -->.

    KDError unless the text has one of each, in this order.
    """
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or end in before:
        raise KDError(
            f"expected one line {begin} and one line {end} after it, found {text.count(begin)} and "
            f"{text.count(end)}; put them around the place of the table"
        )
    return f"{before}{begin}\n{content}\n{end}{after}"


def section(page: str, name: str) -> str:
    """Return the table in a section of a replication's Markdown page."""
    return page.partition(f"## {name}\n\n")[2].partition("\n\n")[0]
