"""What a session ends with on a terminal or in a log: at most 25 lines of at most 80 columns, as plain text.

Each claim has a line that says what is reported, and a line for each mode: this run, the recorded runs, the verdict or
what it lacks. The whole tables are in the files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdlib.judge.bands import read_bands
from kdlib.judge.claims import Claim, Effect, Exact, Reported, Trend, Value
from kdlib.judge.departures import compared
from kdlib.judge.verdicts import MIN_SEEDS, Outcome
from kdlib.report.frames import claims_table
from kdlib.report.heading import ranges
from kdlib.report.markdown import NONE, aim, found, mark, scale, unescaped, unit
from kdlib.report.pages import reported_of
from kdlib.report.sessions import Replication
from kdlib.run.plan import wanted_arms
from kdlib.run.records import Record, grouped, measured
from kdlib.run.session import Session
from kdlib.terminal import place, printable, shortened, width_of, words_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "LINES", "is_asked", "lines_of"]

LINES, COLUMNS = 25, 80
_SHORT = {
    Outcome.LARGER: "replicated, larger",
    Outcome.SMALLER: "replicated, smaller",
    Outcome.MUCH_SMALLER: "much smaller",
    Outcome.NOT_REPLICATED_REVERSED: "reversed",
}


def lines_of(
    result: Replication, committed: Sequence[Record], written: Path | None, steps: Sequence[str] = ()
) -> list[str]:
    """Return the lines about a session's runs, next to the `committed` records of the same profile and data.

    `written`: the tables; None: they could not be written. `steps`: lines that come last; they say which command goes
    on, and are not cut.
    """
    head = _head(result)
    if not result.records:
        return [*_fitted(head), "No run has finished.", *steps]
    page = printable(place(written)) if written else "not written"
    tables = f"Tables: {page} (--print shows them)"
    end = [*_numbers(result), tables if written and width_of(tables) <= COLUMNS else f"Tables: {page}"]
    room = LINES - len(head) - len(end) - len(steps) - 2  # two empty lines
    before = [record for record in committed if _same_table(record, result.records[0])]
    body = _claims(result, before, room) or _arms(result, before, room)
    return [*_fitted([*head, "", *body, "", *end], whole=page), *steps]


def _fitted(lines: Sequence[str], whole: str | None = None) -> list[str]:
    """Lines of at most 80 columns; a line that ends with the path `whole` is not cut, because it is to be copied."""
    return [
        line if whole and line.endswith(whole) else shortened(line, COLUMNS, 0.25) for line in map(printable, lines)
    ]


def _head(result: Replication) -> list[str]:
    session = result.session
    seeds = f"seed{'' if len(session.seeds) == 1 else 's'} {ranges(sorted(set(session.seeds)))}"
    runs = f"{len(result.records)} run{'' if len(result.records) == 1 else 's'}"
    data = f" on {result.records[0].data_name}" if result.records else ""
    lines = [*textwrap.wrap(f"{session.experiment.name}, profile {result.label}: {seeds}; {runs}{data}", COLUMNS)][:2]
    if session.synthetic:
        lines.append("SYNTHETIC DATA: the numbers say nothing about the source. There are no verdicts.")
    return lines


def _same_table(record: Record, first: Record) -> bool:
    return (record.data, record.profile) == (first.data, first.profile)


def _numbers(result: Replication) -> list[str]:
    """How many numbers were compared with bands."""
    if result.session.synthetic:
        return []
    bands, numbers, outside = read_bands(result.session.experiment.folder / "bands.toml"), 0, 0
    for key, group in grouped(result.records).items():
        if key in bands:
            each = compared(bands[key].bands, measured(group))
            numbers, outside = numbers + each.numbers, outside + len(each.misses)
    if not numbers:
        return ["Bands: none are recorded for these runs, so no number was compared."]
    return [f"Bands: {numbers} number{'' if numbers == 1 else 's'} compared, {outside} outside their bands."]


# ---- claims


@dataclass(frozen=True)
class _Row:
    """A claim in one mode, as text."""

    mode: str
    measured: str
    interval: str
    n: str
    recorded: str
    verdict: str

    def cells(self, interval: bool, recorded: bool) -> tuple[str, ...]:
        within = f" ({self.interval})" if interval and self.interval else ""
        return f"  {self.mode}", self.measured + within, self.n, self.recorded if recorded else "", self.verdict


def _claims(result: Replication, before: Sequence[Record], room: int) -> list[str]:
    """The claims of which the session has all arms, the primary ones first; as many as fit."""
    reported = reported_of(result.session.experiment)
    known = _by_claim(claims_table(reported, before, None, declared=None))
    found_rows = _by_claim(result.claims)
    parts: list[tuple[str, list[_Row]]] = []
    for claim in sorted(reported.claims.values(), key=lambda claim: not claim.primary):
        modes = [mode for mode in claim.modes if is_asked(result.session, reported, claim, mode)]
        rows = [_row(result, reported, claim, found_rows[claim.name, m], known[claim.name, m]) for m in modes]
        if rows:
            parts.append((_heading(claim, reported), rows))
    shown, used = 0, 1  # the line of heads
    while shown < len(parts):
        used += 1 + len(parts[shown][1])
        if used + (shown + 1 < len(parts)) > room:
            break
        shown += 1
    more = len(parts) - shown
    rest = [f"... and {more} more claim{'' if more == 1 else 's'}: see the tables"] if more else []
    return [*_table(parts[:shown]), *rest] if shown else rest


def _by_claim(frame: pd.DataFrame) -> dict[tuple[str, str], Any]:
    return {(row["claim"], row["mode"]): row for _, row in frame.iterrows()}


def is_asked(session: Session, reported: Reported, claim: Claim, mode: str) -> bool:
    """Return whether a session trains all arms of a claim in a mode."""
    arms = {arm.name for arm in wanted_arms(session.experiment, session.arms)}
    choices = {choice.name: choice.among for choice in reported.choices}
    needed = claim.modes[mode].arms + claim.modes[mode].rivals
    return all({*choices.get(name, (name,))} <= arms for name in needed)


def _heading(claim: Claim, reported: Reported) -> str:
    shown = scale(reported, claim.metric)
    about = f" ({mark(claim)})" if mark(claim) else ""
    word = "reported" if isinstance(claim, Effect | Value | Exact) else "expected"
    of = "" if isinstance(claim, Trend) else f" {unescaped(unit(claim, shown))}"
    number, each, _ = aim(claim, shown).partition(" over each")
    head = f"{claim.name}{about}, {word} {number}{of}{each}: "
    return head + shortened(claim.statement, max(20, COLUMNS - width_of(head)), 0)


def _row(result: Replication, reported: Reported, claim: Claim, row: Any, before: Any) -> _Row:
    shown = scale(reported, claim.metric)
    cells = found(claim, shown, row["measured"], row["low"], row["high"])
    known = found(claim, shown, before["measured"], before["low"], before["high"])
    measured, interval, recorded = (
        "" if text == NONE else text for text in (cells["measured"], cells["95%"], known["measured"])
    )
    return _Row(row["mode"], measured, interval, str(row["n"]), recorded, _verdict(result.session, claim, row))


def _verdict(session: Session, claim: Claim, row: Any) -> str:
    """The verdict, or what it lacks, and in brackets the recorded one if it is another."""
    if session.synthetic:
        return ""
    verdict, recorded = _of_this_run(session, claim, row), _short(row["recorded"])
    return f"{verdict} ({recorded})" if recorded and recorded != verdict else verdict


def _of_this_run(session: Session, claim: Claim, row: Any) -> str:
    if not row["n"]:
        return "no seed has all its runs"
    if not session.profile.judged:
        return _says(row) if row["recorded"] else f"no {session.experiment.judged} verdict yet"
    if row["n"] < session.profile.seeds and not isinstance(claim, Exact):
        return f"{row['n']} of {session.profile.seeds} seeds"
    return _short(row["verdict"])


def _short(outcome: str) -> str:
    return _SHORT.get(Outcome(outcome), outcome) if outcome else ""


def _says(row: Any) -> str:
    """What runs without a verdict say about the recorded one, or how many seeds they need for it."""
    if row["says"] != "too few seeds":
        return str(row["says"])
    if row["n"] < MIN_SEEDS:
        return f"needs {MIN_SEEDS} seeds"
    return "needs more seeds" if row["needed_n"] != row["needed_n"] else f"needs {row['needed_n']:.0f} seeds"


def _table(parts: Sequence[tuple[str, Sequence[_Row]]]) -> list[str]:
    """The rows under their claims; if they do not fit, without the intervals, and then without the recorded means."""
    heads = ("", "this run", "n", "recorded", "verdict (recorded)")
    rows = [row for _, of_claim in parts for row in of_claim]
    for shown in ((True, True), (False, True), (False, False)):
        head, *rest = _aligned([heads, *(row.cells(*shown) for row in rows)])
        if max(map(width_of, rest)) <= COLUMNS:
            break
    lines, left = [head], iter(rest)
    for heading, of_claim in parts:
        lines += [heading, *(next(left) for _ in of_claim)]
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the heads first, as lines; columns that are empty below their head are left out."""
    used = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(width_of, column)) for column in used]
    padded = [
        [cell + " " * (width - width_of(cell)) for cell in column] for column, width in zip(used, widths, strict=True)
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


# ---- arms, of a session that has no claim


def _arms(result: Replication, before: Sequence[Record], room: int) -> list[str]:
    """The means of the arms, for a session that has not all arms of any claim."""
    reported = reported_of(result.session.experiment)
    metric = reported.primary.metric
    shown, known, rows = scale(reported, metric), _means(before, metric), []
    for arm, (mean, n) in _means(result.records, metric).items():
        recorded = shown.show(known[arm][0]) if arm in known else ""
        rows.append((arm, shown.show(mean), str(n), recorded))
    if not rows:
        return []
    name = f"{words_of(metric)}{' in percent' if shown.percent else ''}"
    lines = _aligned([("arm", name, "n", "recorded"), *rows])
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], f"... and {len(lines) - room + 1} more arms: see the tables"]


def _means(records: Sequence[Record], metric: str) -> dict[str, tuple[float, int]]:
    """Mean and number of seeds of each arm that has the metric."""
    numbers = {
        arm: [found[metric] for found in seeds.values() if metric in found] for arm, seeds in measured(records).items()
    }
    return {arm: (fmean(values), len(values)) for arm, values in numbers.items() if values}
