"""`results.json` and the pages: their numbers are those of the records, derived by independent code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from kdlib.run.experiment import Experiment
from tests.audit import tables
from tests.audit.claims import Source, value_of
from tests.audit.faults import Fault, Faults, compare
from tests.audit.records import Record
from tests.audit.rule import differences
from tests.audit.statistics import NAN

Rows = Mapping[str, Mapping[str, Any]]


def check_json(path: Path, experiment: Experiment, source: Source, made: Mapping[str, dict[str, Any]]) -> Faults:
    """Give every fault of a replication's JSON; `made` holds for each label its records, and rows by part."""
    found = json.loads(path.read_text("utf-8"))
    yield from compare("tables", sorted(made), sorted(table["label"] for table in found["tables"]))
    lines = path.with_name("runs.jsonl").read_text("utf-8").splitlines() if made else []
    for table in (table for table in found["tables"] if table["label"] in made):
        of, place = made[table["label"]], f"table {table['label']}"
        for part in ("arms", "claims", "ingredients"):
            rows = {", ".join(row[key] for key in tables.NAMED[part]): row for row in table[part]}
            yield from _rows(f"{place}, {part}", of[part], rows)
        yield from _seeds(place, source, of, table["claims"])
        yield from _runs(place, of["records"], table, lines)
    yield from _headline(found, experiment, source, made)


def _rows(place: str, expected: Rows, found: Rows) -> Faults:
    yield from compare(f"{place}, rows", list(expected), list(found))
    for name, columns in expected.items():
        for column, value in columns.items():
            absent = value == "" or (isinstance(value, float) and value != value)
            shown = found.get(name, {}).get(column, "nothing")
            wanted = ("" if isinstance(shown, str) else None) if absent else value
            yield from compare(f"{place}, {name}, {column}", _number(wanted), _number(shown))


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _seeds(place: str, source: Source, of: Mapping[str, Any], rows: Sequence[Record]) -> Faults:
    """The values and differences of each claim's seeds, and how much device time its runs have taken."""
    records = [record for record in of["records"] if of["declared"] is None or record["seed"] < of["declared"]]
    for row in rows:
        claim, where = source.claims[row["claim"]], f"{place}, {row['claim']}, {row['mode']}"
        series = tables.series(records, claim.metric)
        for arm in row["arms"]:
            of_arm = {int(seed): float(x) for seed, x in series.get(arm["arm"], {}).items()}
            yield from compare(f"{where}, seeds of {arm['arm']}", list(of_arm), arm["seeds"])
            yield from compare(f"{where}, {arm['arm']}", list(of_arm.values()), [float(x) for x in arm["values"]])
            reported = value_of(source.values, arm["arm"], claim.metric)
            known = float(reported.keys["value"]) if reported else None
            yield from compare(f"{where}, reported for {arm['arm']}", known, arm["reported"])
            span = list(reported.range(len(of_arm))) if reported and of_arm and of["expected"] else None
            yield from compare(f"{where}, range of {arm['arm']}", span, arm["range"])
        for each in row["differences"]:
            if {each["arm"], each["over"]} <= series.keys():
                values = differences(series, each["arm"], each["over"], claim.lower)
                yield from compare(f"{where}, over {each['over']}", values, each["values"])
        yield from compare(
            f"{where}, seconds", _seconds(of["records"], {arm["arm"] for arm in row["arms"]}), row["seconds"]
        )


def _seconds(records: Sequence[Record], arms: set[str]) -> float:
    taken = {record["run"] for record in records if arms & set(record["arms"])}
    while True:
        parents = {
            parent.partition("/")[0]
            for record in records
            if record["run"] in taken
            for parent in record["description"]["parents"].values()
        }
        if parents & {record["run"] for record in records} <= taken:
            break
        taken |= parents
    by_run = {record["run"]: float(record["environment"]["seconds"]) for record in records}
    return sum(seconds for run, seconds in sorted(by_run.items()) if run in taken)


def _runs(place: str, records: Sequence[Record], table: Record, lines: Sequence[str]) -> Faults:
    yield from compare(f"{place}, runs", [record["run"] for record in records], [run["run"] for run in table["runs"]])
    for record, run in zip(records, table["runs"], strict=False):
        where, told = f"{place}, run {record['run']}", record["environment"]
        yield from compare(f"{where}, line", record, json.loads(lines[run["line"] - 1]))
        yield from compare(f"{where}, seed", record["seed"], run["seed"])
        for key in ("seconds", "device", "commit"):
            yield from compare(f"{where}, {key}", told[key], run[key])
        scalars = {
            arm: {key: x for key, x in record["metrics"][snapshot].items() if isinstance(x, int | float)}
            for arm, snapshot in record["arms"].items()
        }
        yield from compare(f"{where}, arms", scalars, run["arms"])
    whole = "".join(sorted(lines[run["line"] - 1] + "\n" for run in table["runs"]))
    yield from compare(f"{place}, SHA-256", hashlib.sha256(whole.encode()).hexdigest(), table["records_sha256"])
    seconds = {record["run"]: float(record["environment"]["seconds"]) for record in records}
    yield from compare(f"{place}, seconds", sum(seconds.values()), table["provenance"]["seconds"])


WORST = (  # outcomes from best to worst, as results/README.md lists them
    *("replicated", "effect replicated, magnitude differs (larger)", "effect replicated, magnitude differs (smaller)"),
    *("much smaller than reported", "inconclusive", "inconclusive (too few seeds)", "interim", "not replicated"),
    *("no difference", "contradicted", "not replicated (reversed)", "reversed"),
)


def _headline(found: Record, experiment: Experiment, source: Source, made: Mapping[str, dict[str, Any]]) -> Faults:
    """The headline points to the first of the worst verdicts on primary claims, if an arm of one has runs."""
    rows = made.get(experiment.judged, {}).get("claims", {})
    primary = [name for name, claim in source.claims.items() if claim.keys.get("primary")]
    judged = [(name, mode, rows[f"{name}, {mode}"]) for name in primary for mode in source.claims[name].modes if rows]
    if not any(row["n"] for *_, row in judged):
        yield from compare("headline", None, found["headline"])
        return

    def rank(row: Mapping[str, Any]) -> int:
        return WORST.index("interim" if row["verdict"].startswith("interim") else row["verdict"])

    name, mode, _ = max(judged, key=lambda one: rank(one[2]))
    yield from compare("headline", {"table": experiment.judged, "claim": name, "mode": mode}, found["headline"])


# ---- pages


class _Cells(HTMLParser):
    """The rows of the tables of a page whose rows have attributes: these, and each cell's text and raw number."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, str], dict[str, tuple[str, str]]]] = []
        self.cell: tuple[str, str, list[str]] | None = None
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {key: value or "" for key, value in attrs}
        if tag == "tr":
            self.rows.append((told, {}))
        elif tag in ("td", "th") and self.rows:
            self.cell = (told.get("data-label", ""), told.get("data-value", ""), [])
        elif tag == "span" and "about" in told.get("class", ""):
            self.hidden = 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self.hidden = 0
        elif tag in ("td", "th") and self.cell:
            label, raw, text = self.cell
            self.rows[-1][1][label] = (raw, " ".join("".join(text).split()))
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell and not self.hidden:
            self.cell[2].append(data)


def page_rows(path: Path) -> list[tuple[dict[str, str], dict[str, tuple[str, str]]]]:
    """Return the rows of a page's tables: attributes, and (raw number, text) by the label of the cell."""
    reader = _Cells()
    reader.feed(path.read_text("utf-8"))
    return reader.rows


def check_page(path: Path, found: Mapping[str, Any]) -> Faults:
    """Give a fault for each claim on a replication's page that is not as its JSON says."""
    rows = [cells for told, cells in page_rows(path) if "data-claim" in told]
    claims = [row for table in found["tables"] for row in table["claims"]]
    yield from compare("rows of claims", len(claims), len(rows))
    for row, cells in zip(claims, rows, strict=False):
        yield from _cells(f"{row['claim']}, {row['mode']}", row, cells, row.get("verdict") or row["recorded"])


def check_index(path: Path, found: Sequence[Mapping[str, Any]]) -> Faults:
    """Give a fault for each line of the first page that is not as the JSON of its replication says."""
    rows = {told["data-name"]: cells for told, cells in page_rows(path) if "data-name" in told}
    yield from compare("rows", sorted(one["name"] for one in found), sorted(rows))
    for one in (one for one in found if one["name"] in rows and one["headline"]):
        table = next(table for table in one["tables"] if table["label"] == one["headline"]["table"])
        wanted = one["headline"]["claim"], one["headline"]["mode"]
        row = next(row for row in table["claims"] if (row["claim"], row["mode"]) == wanted)
        yield from _cells(one["name"], row, rows[one["name"]], row["verdict"])
        transfer = next((part for part in table["ingredients"] if part["role"] == "transfer"), None)
        if transfer and transfer["difference"] is not None:
            scale = 100 if transfer["percent"] else 1
            yield from _cell(
                f"{one['name']}, transfer", transfer["difference"], rows[one["name"]]["Transfer proper"], scale
            )


def _cells(place: str, row: Mapping[str, Any], cells: Mapping[str, tuple[str, str]], verdict: str) -> Faults:
    scale = 100 if row["percent"] else 1
    for label, key in (("Measured", "measured"), ("Reported", "reported")):
        if row[key] is not None and row["kind"] != "exact":
            yield from _cell(f"{place}, {label}", row[key], cells[label], scale)
    yield from compare(f"{place}, n", str(row["n"]), cells["n"][1])
    shown = next((cells[label][1] for label in ("Verdict", "Full verdict") if label in cells), "")
    if row["n"] and verdict and not shown.endswith(verdict):
        yield Fault(f"{place}, verdict", verdict, shown)


def _cell(place: str, value: float, cell: tuple[str, str], scale: float) -> Faults:
    """The raw number of a cell is the value, and its text the value rounded to the digits that it has."""
    raw, text = cell
    yield from compare(place, float(value), float(raw or NAN))
    number = re.search(r"[+-]?[\d,]+(\.\d+)?", text)
    digits = len(number[1]) - 1 if number and number[1] else 0
    if number is None or abs(float(number[0].replace(",", "")) - scale * value) > 0.5000001 * 10.0**-digits:
        yield Fault(place, f"{scale * value:.17g} rounded", text)
