"""The printed tables, Markdown and README's: every cell as it must be printed, from the unrounded rows."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdlib.audit.derived import Row, choice, empty, ingredients, of_one_teacher, on_scale, rulings
from kdlib.audit.evidence import Record, canonical
from kdlib.audit.faults import Fault, differs, numbers, plain
from kdlib.audit.reported import Claim, Reported
from kdlib.audit.rule import OUTCOMES
from kdlib.experiment import Experiment

NONE = "—"
NOT_RUN = "not run"
MADE_OF = "What the difference is made of"
SUMMARY = "table"  # the name of README's marks around the table of all replications
NOTED = {"95", "1", "5"}  # the numbers that the notes below the tables hold: level, n - 1, seeds of a verdict
COLUMNS = {"agreement": ("agree", ".3f"), "teacher_kl": ("KL", ".3f"), "entropy": ("entropy", ".3f"),
           "parameters": ("params", ",.0f"), "epochs": ("epochs", "g")}  # fmt: skip

VERSIONS = ("python", "torch", "numpy", "numba", "kdlib")


def printed(reported: Reported, metric: str, number: Any, sign: str = "", decimals: int | None = None) -> str:
    """A number as tables print it."""
    percent, usual = reported.scale(metric)
    if empty(number):
        return NONE
    places = (usual if decimals is None else decimals) - (2 if percent else 0)
    return f"{number * (100 if percent else 1):{sign},.{max(0, places)}f}"


def _between(reported: Reported, metric: str, low: float, high: float, sign: str = "") -> str:
    if math.isnan(low):
        return NONE
    return f"{printed(reported, metric, low, sign)} to {printed(reported, metric, high, sign)}"


def check(file: str, text: str, experiment: Experiment, reported: Reported, records: Sequence[Record], arms: Sequence[Row],
          claims: Sequence[Row]) -> Iterator[Fault]:
    """Every fault of a replication's page."""
    head, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = {part.partition("\n")[0].strip(): part.partition("\n")[2] for part in rest}
    made_of = [MADE_OF] if reported.ingredients else []
    yield from differs(file, "sections", ["Arms", "Claims", *made_of, "How to read this"], list(sections))
    yield from _lines(file, head, _heading(experiment, reported, records))
    for name, cells in (("Arms", [arm_cells(row, reported) for row in arms]),
                        ("Claims", [_claim(row, reported) for row in claims])):
        section = sections.get(name, "")
        yield from check_table(file, name, section, cells)
        chosen = [_choice(name, table, records) for name, table in reported.chosen.items()]
        yield from _lines(file, section, _selections(reported, arms) if name == "Arms" else
                          [*map(_statement, reported.claims), *chosen])
    for name in made_of:
        section = sections.get(name, "")
        yield from check_table(file, name, section, [_ingredient(row, reported) for row in ingredients(reported, records)])
        yield from _lines(file, section, [])
    notes = sections.get("How to read this", "")
    if of_one := of_one_teacher(experiment, records):
        line = f"- One teacher has taught all seeds of {', '.join(of_one)}: their intervals leave the teacher's variance out."
        yield from differs(file, "How to read this: of one teacher", line, next(
            (found for found in map(plain, notes.splitlines()) if found.startswith("- One teacher")), "no such line"))
        notes = "\n".join(other for other in notes.splitlines() if plain(other) != line)
    for number in numbers(notes):
        if number not in NOTED:
            yield Fault(file, "How to read this", f"no number but {', '.join(sorted(NOTED))}", number)


def _lines(file: str, section: str, expected: Sequence[str]) -> Iterator[Fault]:
    """Lines outside of tables: those expected, and no other with a number in it."""
    lines = [" ".join(plain(line).split()) for line in section.splitlines() if line.strip() and not line.startswith("|")]
    wanted = [" ".join(line.split()) for line in expected]
    for line in wanted:
        if line not in lines:
            start = re.match(r"\W*\w+\W*", line)
            found = next((other for other in lines if start and other.startswith(start[0])), "no such line")
            yield Fault(file, "text", line, found)
    for line in lines:
        if line not in wanted and numbers(line):
            yield Fault(file, "text", "no other line with numbers", line)


def _heading(experiment: Experiment, reported: Reported, records: Sequence[Record]) -> list[str]:
    seeds, profile = sorted({record["seed"] for record in records}), records[0]["profile"]
    environments = [record["environment"] for record in records]
    reduced = experiment.module.PROFILES[profile].reduced
    return [
        f"# {experiment.name}",
        f"Source: {reported.source['citation']}, <{reported.source.get('url', '')}>",
        "- data: " + _each(f"{r['data_name']} (digest {r['description']['data']})" for r in records),
        f"- profile: {profile}" + (f"; reduced: {reduced}" if reduced else ""),
        f"- seeds: {len(seeds)} ({', '.join(map(str, seeds))}), {len({record['run'] for record in records})} runs",
        "- device: " + _each(map(_device, records)),
        "- records: SHA-256 " + hashlib.sha256("".join(sorted(canonical(r) + "\n" for r in records)).encode()).hexdigest(),
        "- versions: " + _each(", ".join(f"{name} {e['versions'][name]}" for name in VERSIONS if name in e["versions"])
                               for e in environments),
        "- commit: " + _each(map(_commit, environments)),
    ]


def _each(texts: Any) -> str:
    return "; ".join(sorted(set(texts)))


def _device(record: Record) -> str:
    config = record["description"]["config"]
    threads = config["threads"]
    return f"{config['device']} ({record['environment']['device']}), {threads} thread{'s' * (threads != 1)} a run"


def _commit(environment: Mapping[str, Any]) -> str:
    state = {True: "clean tree", False: "uncommitted changes", None: "tree not known"}[environment["clean"]]
    return f"{environment['commit'][:10]} ({state})"


def _statement(claim: Claim) -> str:
    kind = ", ".join(filter(None, [claim.mark, claim.kind]))
    place = f" ({claim.keys['place']})" if claim.keys.get("place") else ""
    return f"- {claim.name}, {kind}: {claim.keys['statement']}{place}"


def _selections(reported: Reported, arms: Sequence[Row]) -> list[str]:
    beside = [(value.selected, row["arm"]) for row in arms for metric in reported.metrics
              if (value := reported.value(row["arm"], metric)) and value.selected]
    return [f"- {text}: {', '.join(dict.fromkeys(arm for other, arm in beside if other == text))}"
            for text in dict.fromkeys(text for text, _ in beside)]


def _choice(name: str, table: Mapping[str, Any], records: Sequence[Record]) -> str:
    arm = choice(table, records) or "not all of them have runs"
    return f"- {name}: of {len(table['among'])} arms the one with the highest mean {table['by']}: {arm}"


# ---- cells; those that begin with "~" hold text of the same numbers, those that end with " …" a text's beginning


def arm_cells(row: Row, reported: Reported) -> dict[str, str]:
    """The row of an arm."""
    cells = {"arm": row["arm"], "mode": row["modes"], "n": str(row["n"])}
    for metric in reported.metrics:
        head = re.sub(r"\bf1\b", "F1", metric.replace("_", " "))
        prefix = f"{head}: " if len(reported.metrics) > 1 else ""
        value, inside = reported.value(row["arm"], metric), row[metric + "_inside"]
        beside = NONE
        if value:
            beside = printed(reported, metric, value.value, decimals=value.decimals)
            spread = "" if value.std is None else f" ± {value.std * (100 if reported.scale(metric)[0] else 1):.2g} ({value.runs})"
            beside += spread
        cells |= {
            head + (" %" if reported.scale(metric)[0] else ""): printed(reported, metric, row[metric]),
            f"{prefix}95% over seeds": _between(reported, metric, row[metric + "_low"], row[metric + "_high"]),
            f"{prefix}test-set ±": printed(reported, metric, row[metric + "_test_set"]),
            f"{prefix}reported": beside,
            f"{prefix}range": _between(reported, metric, row[metric + "_range_low"], row[metric + "_range_high"]),
            f"{prefix}inside": NONE if inside == "" else "yes" if inside else "no",
        }
    return cells | {head: NONE if empty(row[key]) else format(row[key], form) for key, (head, form) in COLUMNS.items()}


def _claim(row: Row, reported: Reported) -> dict[str, str]:
    claim = next(claim for claim in reported.claims if claim.name == row["claim"])
    measured, interval = _measured(claim, reported, row["measured"], row["low"], row["high"])
    cells = {"claim": claim.name + (f" ({claim.mark})" if claim.mark else ""), "about": row["statement"] + " …",
             "mode": row["mode"], "reported": "~" + _aim(claim, reported), "measured": measured, "95%": interval,
             "n": str(row["n"])}  # fmt: skip
    if row["says"]:
        return cells | {"full verdict": row["recorded"] or NONE, "this run": row["says"] if row["n"] else NOT_RUN}
    verdict = (row["verdict"] if row["n"] else NOT_RUN) + (" (analogue)" if row["analogue"] else "")
    steady = "" if claim.kind in ("effect", "value") else ", if the mean stays"
    verdict += "" if empty(row["needed_n"]) else f"; {row['needed_n']:.0f} seeds would decide{steady}"
    changed = row["recorded"] and row["recorded"] != row["verdict"]
    return cells | {"verdict": verdict + (f"; recorded: {row['recorded']}" if changed else "")}


def _ingredient(row: Row, reported: Reported) -> dict[str, str]:
    return {"ingredient": row["label"], "arm": row["arm"], "over": row["over"],
            "difference": printed(reported, row["metric"], row["difference"], "+"),
            "95%": _between(reported, row["metric"], row["low"], row["high"], "+"), "n": str(row["n"])}


def _measured(claim: Claim, reported: Reported, mean: float, low: float, high: float) -> tuple[str, str]:
    if claim.kind == "exact":
        return NONE if math.isnan(mean) else f"off by {mean:,.12g}" if mean else "equal", NONE
    sign = "" if claim.kind == "value" or "threshold" in claim.keys else "+"
    if claim.kind == "trend":
        bounds = NONE if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"
        return NONE if math.isnan(mean) else f"{mean:+.2f}", bounds
    return printed(reported, claim.metric, mean, sign), _between(reported, claim.metric, low, high, sign)


def _aim(claim: Claim, reported: Reported) -> str:
    if claim.kind in ("effect", "value"):
        size = float(claim.keys["reported"])
        if claim.kind == "value":
            return printed(reported, claim.metric, size, decimals=claim.keys["decimals"])
        digits = next(n for n in range(20) if round(size, n) == size)
        return printed(reported, claim.metric, size, "+", max(claim.keys["decimals"], digits))
    if claim.kind == "exact":
        return " ".join(f"{number:,.12g}" for number in dict.fromkeys(n for mode in claim.modes.values() for n in mode.expected))
    if claim.kind == "non-inferior":
        return printed(reported, claim.metric, -claim.margin, "+")
    if claim.kind == "comparable":
        return printed(reported, claim.metric, claim.margin)
    return printed(reported, claim.metric, float(claim.keys["threshold"])) if "threshold" in claim.keys else "0"


def check_table(file: str, name: str, section: str, rows: Sequence[Mapping[str, str]]) -> Iterator[Fault]:
    """The one table of a section, cell by cell; columns in which no row has anything may be left out."""
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines()
             if line.startswith("|")]
    if len(lines) != len(rows) + 2:
        yield Fault(file, f"table {name}", f"{len(rows)} rows", f"{max(0, len(lines) - 2)} rows")
        return
    heads = [plain(head) for head in lines[0]]
    known = list(dict.fromkeys(head for row in rows for head in row))
    wanted = [head for head in known if head in heads or any(row.get(head, NONE) != NONE for row in rows)]
    yield from differs(file, f"table {name}: columns", wanted, heads)
    for row, cells in zip(rows, lines[2:], strict=True):
        keys = [key for key in ("ingredient", "arm", "claim", "mode", "replication") if key in row]
        place = f"table {name}, row {', '.join(row[key] for key in keys)}"
        yield from differs(file, f"{place}: number of cells", len(heads), len(cells))
        for head, cell in zip(heads, map(plain, cells), strict=False):
            content = row.get(head, NONE)
            begun = cell.removesuffix("…").strip()
            if content.endswith(" …") and begun and content.startswith(begun):
                continue
            if content.startswith("~") and numbers(content) == numbers(cell):
                continue
            yield from differs(file, f"{place}, column {head}", content.removeprefix("~"), cell)


# ---- README


def summary(name: str, reported: Reported, records: Sequence[Record]) -> dict[str, str]:
    """README's row: the primary claim and mode with the worst verdict of the full runs."""
    primary = [claim for claim in reported.claims if claim.mark == "primary"]
    judged = rulings(reported, records)
    cells = [(claim, mode) for claim in primary for mode in claim.modes]
    if all(judged[claim.name, mode].n == 0 for claim, mode in cells):
        return _summary(name, primary[0], "", reported, NONE, "not yet run in full")
    claim, mode = max(cells, key=lambda cell: OUTCOMES.index(judged[cell[0].name, cell[1]].outcome))
    found = judged[claim.name, mode]
    measured, interval = _measured(claim, reported, *on_scale(claim, found))
    measured += ("" if interval == NONE else f" ({interval})") + f", n = {found.n}"
    return _summary(name, claim, f", {mode}", reported, measured, found.outcome)


def _summary(name: str, claim: Claim, mode: str, reported: Reported, measured: str, verdict: str) -> dict[str, str]:
    return {"replication": name, "claim": f"{claim.name}{mode}: {claim.keys['statement']}",
            "reported": "~" + _aim(claim, reported), "measured": measured, "verdict": verdict}  # fmt: skip


def check_explanation(file: str, text: str, reported: Reported, records: Sequence[Record],
                      claims: Sequence[Row]) -> Iterator[Fault]:
    """The tables of the full runs in a replication's own README; they may be left out."""
    if not records:
        if re.search(r"(?m)^<!-- (claims|ingredients):begin -->\n\|", text):
            yield Fault(file, "", "no table before there are full runs", "one")
        return
    parts = [_ingredient(row, reported) for row in ingredients(reported, records)]
    yield from check_readme(file, text, {"claims": [_claim(row, reported) for row in claims], "ingredients": parts})


def check_readme(file: str, text: str, tables: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[Fault]:
    """README's tables, each between two marks of its name; those of arms may be left out."""
    for mark, rows in tables.items():
        parts = re.split(rf"^<!-- {mark}:(begin|end) -->$", text, flags=re.MULTILINE)
        if parts[1::2] == ["begin", "end"]:
            yield from check_table(file, mark, parts[2], rows)
            yield from _lines(file, parts[2], [])
        elif mark == SUMMARY or parts[1:]:
            yield Fault(file, "", f"<!-- {mark}:begin --> and after it <!-- {mark}:end -->, once each", str(parts[1::2]))


